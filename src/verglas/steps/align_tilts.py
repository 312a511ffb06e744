"""`align-tilts`: tilt series aligned by their gold beads."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.series_results import PROCESS_BYTES, describe_series, summarise_series
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.bead_alignment import BeadAlignment

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

LARGEST_SIDE = 2048
"""Views are averaged in blocks to at most this many pixels a side before beads are looked for."""

POOR_PX = 1.5
"""A held-out residual above this, in pixels of the averaged views, is told as a warning."""

POORLY_EXPLAINED = 0.4
"""So is a track for less than this share of the beads found."""

FEW_BEADS = 5

_RIGID = ("axis", "tilt", "x_tilt")
_AXIS_TOLERANCE_DEG = 10.0
_BAD_VIEW = 3.0


class AlignTiltsParams(Params):
    """Align tilt series by their gold beads, from raw views and stage angles."""

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the series")]
    method: Annotated[
        Literal["auto", "beads"], Field(description="what to align by; `auto` takes what the images offer")
    ] = "auto"
    axis_angle: Annotated[
        float | None,
        Field(
            ge=-360,
            le=360,
            description="of the tilt axis in the image, in degrees, to ten degrees or so; the series' when not given",
        ),
    ] = None
    search_axis: Annotated[
        bool,
        Field(description="search the tilt axis over all directions; the rough angle only tells it from its opposite"),
    ] = False
    bead_diameter: Annotated[
        float | None, Field(gt=0, description="of the gold beads, in Å; estimated when not given")
    ] = None
    rigid: Annotated[
        bool, Field(description="fit no magnification, stretch and skew of the views, which RELION does not read")
    ] = False
    stack: Annotated[bool, Field(description="write the aligned stacks too")] = False


@dataclass(frozen=True, eq=False)
class _Views:
    """Views of a series, averaged in blocks.

    Parameters
    ----------
    images
        All views `(y, x)`.
    factor
        Side of a block.
    faults
        What is wrong with each, "" when nothing is.
    good
        Rows of those that are selected and have no fault.
    """

    images: list[Image]
    factor: int
    faults: tuple[str, ...]
    good: npt.NDArray[np.intp]


def list_items(params: AlignTiltsParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.io.relion_tilt_series import read_tilt_series

    return [
        Item(name, series, tuple(dict.fromkeys(image.path for image in series.images)))
        for name, series in read_tilt_series(params.tilt_series).items()
    ]


def run_item(item: Item, params: AlignTiltsParams, context: Context) -> ItemResult:
    """Align one series; write its tables, IMOD's files and the beads, and draw the residuals."""
    from verglas.algo.tilt_alignment.bead_alignment import align_by_beads
    from verglas.algo.tilt_alignment.bundle import VARIABLES
    from verglas.io.relion_tilt_series import write_one_tilt_series

    series: TiltSeries = item.record
    views = _read_views(series)
    rough = float(series.z_rot_deg.mean()) if params.axis_angle is None else params.axis_angle
    tilts = series.nominal_tilt_deg[views.good]
    images = [views.images[row] for row in views.good]
    detections, diameter = _find_beads(images, tilts, series.pixel_size_angstrom * views.factor, params.bead_diameter)
    alignment = align_by_beads(
        images, tilts, detections, diameter, rough, _RIGID if params.rigid else VARIABLES, search=params.search_axis
    )
    aligned = _apply(series, alignment, views)
    star = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / star, aligned)
    diameter_angstrom = diameter * views.factor * series.pixel_size_angstrom
    files = _write_files(aligned, alignment, views, diameter_angstrom, context.folder)
    if params.stack:
        files += (_write_stack(aligned, context.folder),)
    figures = _draw(aligned, alignment, views, diameter, context.folder)
    found = [len(places) for places in detections]
    values = {**describe_series(aligned), **_describe(alignment, views.factor, series.pixel_size_angstrom, found)}
    values["diameter_angstrom"] = diameter_angstrom
    warnings = _warn(series, alignment, views, rough)
    return ItemResult((star, *files, *figures), values, warnings)


def summarise(results: dict[str, ItemResult], params: AlignTiltsParams, folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    more = {
        name: Value(_tell([result.values[key] for result in results.values()]), unit, meaning)
        for name, key, unit, meaning in _MORE
    }
    return summarise_series(results, folder, _CAPTIONS, more)


def estimate(items: list[Item], params: AlignTiltsParams) -> Estimate:
    """From the size of the views, by times measured on one core."""
    memory, disk, seconds = 0, 0, 0.0
    for item in items:
        series: TiltSeries = item.record
        pixels = int(np.prod(series.image_shape))
        factor = -(-max(series.image_shape) // LARGEST_SIDE)
        small = pixels // factor**2
        memory = max(memory, 12 * pixels + (4 * len(series) + 60) * small)
        disk += (1 << 20) + (4 * len(series) * pixels if params.stack else 0)
        seconds += 12 + len(series) * (2e-8 * pixels + 3e-7 * small) + (2e-7 * len(series) * pixels * params.stack)
    return Estimate(PROCESS_BYTES + memory, disk, seconds)


_CAPTIONS = {
    "beads": "beads that were measured (rings) and those that were expected but not measured (dotted)",
    "residuals": "residual of every bead over the tilt; a jump is a view that moved or was not followed",
    "field": "mean residual of each bead, 40 times as long; arrows that neighbours share are the specimen's motion",
    "places": "the beads in space, from above and from both sides; the slab is level when they lie along x and y",
    "geometry": "the geometry that was found",
}

_MORE = (
    ("beads", "beads", "", "that were tracked, a series"),
    ("bead diameter", "diameter_angstrom", "Å", "given or estimated"),
    ("residual x", "rms_x_px", "px", "RMS of all measured beads in x"),
    ("residual y", "rms_y_px", "px", "RMS of all measured beads in y"),
    ("held-out residual x", "held_out_x_px", "px", "RMS in x of beads that the fit of the views had not seen"),
    ("held-out residual y", "held_out_y_px", "px", "RMS in y of beads that the fit of the views had not seen"),
    ("thickness", "thickness_angstrom", "Å", "between the faces on which the beads lie, or the outermost beads"),
)


def _tell(values: list[float | None]) -> float | str:
    """One number for one series, the range for several."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return "unknown"
    low, high = (round(float(value), 3) for value in (min(known), max(known)))
    return low if low == high else f"{low:g} to {high:g}"


def _read_views(series: TiltSeries) -> _Views:
    """Read all views one by one, average them in blocks, and find the bad ones."""
    import torch

    from verglas.algo.tilt_alignment.views import find_bad_views
    from verglas.io.mrc import check_finite, read_image
    from verglas.ops.binning import bin_images

    factor = -(-max(series.image_shape) // LARGEST_SIDE)
    images = []
    for row, image in enumerate(series.images):
        view = check_finite(read_image(image), f"view {row + 1} in {str(image.path)!r}")
        if view.shape != series.image_shape:
            raise UserError(
                f"view {row + 1} of {series.name!r} has (y, x) = {view.shape}; expected {series.image_shape}, as its "
                "record says"
            )
        images.append(bin_images(torch.from_numpy(np.asarray(view, np.float32)), factor).numpy())
    means = [float(image.mean(dtype=float)) for image in images]
    deviations = [float(image.std(dtype=float)) for image in images]
    faults = find_bad_views(means, deviations, series.nominal_tilt_deg).faults
    bad = np.array([bool(fault) for fault in faults])
    return _Views(images, factor, faults, np.flatnonzero(series.selected & ~bad))


def _find_beads(
    images: list[Image], tilt_deg: FloatArray, pixel_size_angstrom: float, diameter_angstrom: float | None
) -> tuple[list[FloatArray], float]:
    """Places of the beads of each view, and their diameter in pixels, from three of the five lowest tilts."""
    from verglas.algo.fiducials.find import estimate_diameter, find_beads

    if not images:
        raise UserError("no view of the series is selected and without fault; expected at least five")
    if diameter_angstrom is None:
        lowest = np.argsort(np.abs(tilt_deg), kind="stable")[:5:2]
        diameter = estimate_diameter([images[row] for row in lowest])
    else:
        diameter = diameter_angstrom / pixel_size_angstrom
    return [find_beads(image, diameter).positions_px for image in images], diameter


def _apply(series: TiltSeries, alignment: "BeadAlignment", views: _Views) -> TiltSeries:
    """Return the aligned series. Views left out get what lies between their neighbours."""
    from verglas.ops.binning import binned_centre_step

    geometry, kept = alignment.geometry, ~alignment.lost
    rows = views.good[kept]
    order = np.argsort(series.nominal_tilt_deg[rows], kind="stable")

    def fill(values: FloatArray) -> FloatArray:
        at = series.nominal_tilt_deg[rows][order]
        whole = np.interp(series.nominal_tilt_deg, at, values[kept][order])
        whole[rows] = values[kept]
        return whole

    step = [binned_centre_step(size, views.factor) for size in series.image_shape[::-1]]
    shifts = (geometry.shift_px * views.factor + step) * series.pixel_size_angstrom
    magnification = [[fill(geometry.magnification[:, i, j]) for j in range(2)] for i in range(2)]
    selected = np.zeros(len(series), bool)
    selected[rows] = True
    return replace(
        series,
        x_tilt_deg=fill(geometry.x_tilt_deg),
        y_tilt_deg=series.nominal_tilt_deg + fill(geometry.tilt_deg - series.nominal_tilt_deg[views.good]),
        z_rot_deg=fill(np.rad2deg(np.unwrap(np.deg2rad(geometry.axis_deg)))),
        x_shift_angstrom=fill(shifts[:, 0]),
        y_shift_angstrom=fill(shifts[:, 1]),
        magnification=np.moveaxis(np.array(magnification), 2, 0),
        selected=selected,
    )


def _write_files(
    aligned: TiltSeries, alignment: "BeadAlignment", views: _Views, diameter_angstrom: float, folder: Path
) -> tuple[str, ...]:
    """Write the beads in space, and IMOD's files with the beads in the views as a model."""
    from verglas.io.imod import tilt_series_to_imod, write_imod_folder
    from verglas.io.imod_model import make_imod_model, write_imod_model
    from verglas.io.relion_particles import write_particles

    name, pixel = aligned.name, aligned.pixel_size_angstrom
    write_particles(folder / f"beads/{name}.star", _list_beads(aligned, alignment, views.factor, diameter_angstrom))
    imod = folder / "imod" / name
    write_imod_folder(imod, name, tilt_series_to_imod(aligned))
    contours = []
    centre = np.array([size // 2 for size in views.images[0].shape[::-1]])
    for track in alignment.tracks_px:
        seen = np.isfinite(track[:, 0])
        # IMOD's pixel i has its centre at i + 0.5, and its corner is the same whatever the binning.
        places = (track[seen] + centre + 0.5) * views.factor
        rows = views.good[seen]
        order = np.argsort(rows)
        contours.append(np.column_stack([places, rows])[order])
    size = (aligned.image_shape[1], aligned.image_shape[0], len(aligned))
    radius = round(diameter_angstrom / pixel / 2)
    write_imod_model(
        imod / f"{name}.fid", make_imod_model(contours, size, pixel_size_angstrom=pixel, radius_px=radius)
    )
    written = sorted(path.name for path in imod.iterdir() if path.is_file())
    return (f"beads/{name}.star", *(f"imod/{name}/{file}" for file in written))


def _list_beads(aligned: TiltSeries, alignment: "BeadAlignment", factor: int, diameter_angstrom: float) -> Any:
    """The beads as particles, with how often and how well each was measured."""
    import pandas as pd

    from verglas.model import Particles

    pixel = factor * aligned.pixel_size_angstrom
    seen = np.isfinite(alignment.residuals_px[..., 0])
    squares = np.where(seen, (alignment.residuals_px**2).sum(axis=-1), 0.0).sum(axis=1)
    known = np.isfinite(alignment.points_px).all(axis=1)
    extra = pd.DataFrame(
        {
            "vglDiameterAngst": np.full(len(known), diameter_angstrom),
            "vglViews": seen.sum(axis=1),
            "vglResidualAngst": pixel * np.sqrt(squares / np.maximum(seen.sum(axis=1), 1)),
        }
    )
    return Particles(
        tomogram_names=np.full(int(known.sum()), aligned.name),
        positions_angstrom=alignment.points_px[known] * pixel,
        angles_deg=np.zeros((int(known.sum()), 3)),
        half_set=np.zeros(int(known.sum()), np.int64),
        score=np.full(int(known.sum()), np.nan),
        extra=extra[known].reset_index(drop=True),
    )


def _write_stack(aligned: TiltSeries, folder: Path) -> str:
    """Write the selected views with the specimen's centre in the middle and the tilt axis along y."""
    import torch

    from verglas.io.mrc import create_mrc, read_image
    from verglas.ops.geometry import axis_rotations
    from verglas.ops.interpolation import affine_transform_images

    rows = np.flatnonzero(aligned.selected)
    name = f"stacks/{aligned.name}_ali.mrc"
    turns = axis_rotations(torch.from_numpy(np.array(aligned.z_rot_deg)), "z")[:, :2, :2].numpy()
    with create_mrc(
        folder / name,
        (len(rows), *aligned.image_shape),
        voxel_size_angstrom=aligned.pixel_size_angstrom,
        is_stack=True,
    ) as writer:
        for row in rows:
            raw = np.eye(3)
            raw[:2, :2] = aligned.magnification[row] @ turns[row]
            raw[:2, 2] = aligned.x_shift_angstrom[row], aligned.y_shift_angstrom[row]
            raw[:2, 2] /= aligned.pixel_size_angstrom
            view = torch.from_numpy(np.asarray(read_image(aligned.images[row]), np.float32))
            matrix = torch.from_numpy(np.linalg.inv(raw).astype(np.float32))
            moved = affine_transform_images(view, matrix, order="cubic", fill=float(view.mean()))
            writer.write(moved.numpy()[None])
    return name


def _describe(
    alignment: "BeadAlignment", factor: int, pixel_size_angstrom: float, found: list[int]
) -> dict[str, Any]:
    """Figures of one series, in pixels of its images."""
    held_out, rms, slab = alignment.trials[0].held_out_px, alignment.rms_px, alignment.slab
    freedom = alignment.trials[0].freedom
    return {
        "beads": len(alignment.points_px),
        "beads_found_per_view": float(np.median(found)),
        "measurements": int(np.isfinite(alignment.residuals_px[..., 0]).sum()),
        "explained": float(np.nanmean(alignment.explained)),
        "rms_x_px": rms[0] * factor,
        "rms_y_px": rms[1] * factor,
        "held_out_x_px": held_out[0] * factor if np.isfinite(held_out[0]) else None,
        "held_out_y_px": held_out[1] * factor if np.isfinite(held_out[1]) else None,
        "freedom": {name: getattr(freedom, name) for name in vars(freedom)},
        "thickness_angstrom": slab.thickness_px * factor * pixel_size_angstrom if slab else None,
        "axis_searched": alignment.searched,
    }


def _warn(series: TiltSeries, alignment: "BeadAlignment", views: _Views, rough_deg: float) -> tuple[str, ...]:
    """Say all that the user should look at."""
    tilts, warnings = series.nominal_tilt_deg, []
    for fault in ("dark", "blank"):
        rows = [row for row, found in enumerate(views.faults) if found == fault]
        if rows:
            warnings.append(f"{_list_tilts(tilts[rows])}: {fault}, left out")
    if alignment.lost.any():
        warnings.append(f"{_list_tilts(tilts[views.good][alignment.lost])}: fewer than three beads, left out")
    if len(alignment.points_px) < FEW_BEADS:
        warnings.append(f"only {len(alignment.points_px)} beads were tracked; look whether the alignment is right")
    held_out = float(np.hypot(*alignment.trials[0].held_out_px))
    if not np.isfinite(held_out):
        warnings.append("too few beads to hold any out, so nothing tells how good the alignment is")
    elif held_out > POOR_PX:
        warnings.append(f"POOR: held-out beads lie {held_out * views.factor:.1f} pixels from where they are expected")
    if (share := float(np.nanmean(alignment.explained))) < POORLY_EXPLAINED:
        warnings.append(f"POOR: only {share:.0%} of what looks like beads lies on a track")
    axis = float(np.median(alignment.geometry.axis_deg))
    apart = abs((axis - rough_deg + 90) % 180 - 90)
    if apart > _AXIS_TOLERANCE_DEG:
        warnings.append(
            f"the tilt axis was found at {axis:.1f} degrees and not near {rough_deg:.1f}; beads do not tell it from "
            "its opposite, so z may be mirrored: give `axis_angle` when it is known"
        )
    squares = np.where(np.isfinite(alignment.residuals_px), alignment.residuals_px**2, 0.0).sum(axis=(0, 2))
    rms = np.sqrt(squares / np.maximum(np.isfinite(alignment.residuals_px[..., 0]).sum(axis=0), 1))
    worst = ~alignment.lost & (rms > _BAD_VIEW * np.median(rms[~alignment.lost]))
    if worst.any():
        warnings.append(f"{_list_tilts(tilts[views.good][worst])}: fit much worse than the others")
    return tuple(warnings)


def _list_tilts(tilts: FloatArray) -> str:
    """Name views by their tilts."""
    return f"{'view' if len(tilts) == 1 else 'views'} at {', '.join(f'{tilt:+.1f}°' for tilt in tilts)}"


def _draw(
    aligned: TiltSeries, alignment: "BeadAlignment", views: _Views, diameter_px: float, folder: Path
) -> tuple[str, ...]:
    from verglas.algo.tilt_alignment.geometry import project_points
    from verglas.figures.alignment import draw_beads, draw_places, draw_residual_field, draw_residuals
    from verglas.figures.tilt_series import draw_geometry

    paths = {kind: f"figures/{aligned.name}_{kind}.png" for kind in _CAPTIONS}
    tilts, pixel = aligned.nominal_tilt_deg[views.good], views.factor * aligned.pixel_size_angstrom
    draw_residuals(tilts, alignment.residuals_px * views.factor, folder / paths["residuals"])
    expected = project_points(alignment.geometry, alignment.points_px)
    shape = views.images[0].shape
    draw_residual_field(tilts, expected, alignment.residuals_px, (shape[0], shape[1]), folder / paths["field"])
    draw_places(alignment.points_px * pixel, folder / paths["places"])
    kept = np.flatnonzero(~alignment.lost)
    ends = [kept[tilts[kept].argmin()], kept[np.abs(tilts[kept]).argmin()], kept[tilts[kept].argmax()]]
    measured = np.isfinite(alignment.tracks_px[..., 0])
    draw_beads(
        [views.images[views.good[view]] for view in ends],
        [f"{round(tilts[view], 1) + 0.0:+.1f}°" for view in ends],
        [(alignment.tracks_px[measured[:, v], v], expected[~measured[:, v], v]) for v in ends],
        diameter_px,
        pixel,
        folder / paths["beads"],
    )
    draw_geometry(aligned, folder / paths["geometry"])
    return tuple(paths.values())


ALIGN_TILTS_STEP = Step(
    name="align-tilts",
    params=AlignTiltsParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
