"""`align-tilts`: tilt series aligned by their gold beads."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.alignment_results import (
    CAPTIONS,
    BinnedViews,
    apply_alignment,
    draw_alignment,
    write_alignment,
)
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
        Field(
            description="search the tilt axis over all directions; the rough angle only tells it from its opposite"
        ),
    ] = False
    bead_diameter: Annotated[
        float | None, Field(gt=0, description="of the gold beads, in Å; estimated when not given")
    ] = None
    rigid: Annotated[
        bool,
        Field(description="fit no magnification, stretch and skew of the views, which RELION does not read"),
    ] = False
    stack: Annotated[bool, Field(description="write the aligned stacks and their sampling masks too")] = False


def list_items(params: AlignTiltsParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.io.relion_tilt_series import read_tilt_series

    return [
        Item(name, series, tuple(dict.fromkeys(image.path for image in series.images)))
        for name, series in read_tilt_series(params.tilt_series).items()
    ]


@dataclass(frozen=True, eq=False)
class SeriesAlignment:
    """An aligned series and how it came about.

    Parameters
    ----------
    aligned
        The record with its new geometry.
    alignment
        The beads and the fit, in pixels of the averaged views.
    views
        The averaged views.
    diameter_px
        Of the beads, in pixels of the averaged views.
    found
        Beads that were found in each good view.
    warnings
        Sentences for the user; one that begins with POOR means that the result is not to be trusted.
    """

    aligned: TiltSeries
    alignment: "BeadAlignment"
    views: BinnedViews
    diameter_px: float
    found: tuple[int, ...]
    warnings: tuple[str, ...]


def align_series(series: TiltSeries, params: AlignTiltsParams) -> SeriesAlignment:
    """Align one series; nothing is written.

    Raises
    ------
    UserError
        When an image cannot be used, there are fewer than five good views, or too few beads.
    """
    from verglas.algo.tilt_alignment.bead_alignment import align_by_beads
    from verglas.algo.tilt_alignment.bundle import VARIABLES

    views = _read_views(series)
    rough = float(series.z_rot_deg.mean()) if params.axis_angle is None else params.axis_angle
    tilts = series.nominal_tilt_deg[views.good]
    images = [views.images[row] for row in views.good]
    pixel = series.pixel_size_angstrom * views.factor
    detections, diameter = _find_beads(images, tilts, pixel, params.bead_diameter)
    variables = _RIGID if params.rigid else VARIABLES
    alignment = align_by_beads(
        images, tilts, detections, diameter, rough, variables, search=params.search_axis
    )
    aligned = apply_alignment(series, alignment, views)
    found = tuple(len(places) for places in detections)
    return SeriesAlignment(aligned, alignment, views, diameter, found, _warn(series, alignment, views, rough))


def run_item(item: Item, params: AlignTiltsParams, context: Context) -> ItemResult:
    """Align one series; write its tables, IMOD's files and the beads, and draw the residuals."""
    from verglas.io.relion_tilt_series import write_one_tilt_series
    from verglas.steps.aligned_stack import write_aligned_stack

    done = align_series(item.record, params)
    aligned, alignment, views = done.aligned, done.alignment, done.views
    star = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / star, aligned)
    diameter_angstrom = done.diameter_px * views.factor * aligned.pixel_size_angstrom
    files = write_alignment(aligned, alignment, views, diameter_angstrom, context.folder)
    if params.stack:
        stack = f"stacks/{item.name}_ali.mrc"
        write_aligned_stack(context.folder, stack, aligned.take(aligned.selected))
        files += (stack, str(Path(stack).with_suffix(".samplingMask")))
    figures = draw_alignment(aligned, alignment, views, done.diameter_px, context.folder)
    values = {
        **describe_series(aligned),
        **_describe(alignment, views.factor, aligned.pixel_size_angstrom, done.found),
        "diameter_angstrom": diameter_angstrom,
    }
    return ItemResult((star, *files, *figures), values, done.warnings)


def summarise(results: dict[str, ItemResult], params: AlignTiltsParams, folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    more = {
        name: Value(_tell([result.values[key] for result in results.values()]), unit, meaning)
        for name, key, unit, meaning in _MORE
    }
    return summarise_series(results, folder, CAPTIONS, more)


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
        seconds += (
            12 + len(series) * (2e-8 * pixels + 3e-7 * small) + (2e-7 * len(series) * pixels * params.stack)
        )
    return Estimate(PROCESS_BYTES + memory, disk, seconds)


_MORE = (
    ("beads", "beads", "", "that were tracked, a series"),
    ("bead diameter", "diameter_angstrom", "Å", "given or estimated"),
    ("residual x", "rms_x_px", "px", "RMS of all measured beads in x"),
    ("residual y", "rms_y_px", "px", "RMS of all measured beads in y"),
    (
        "held-out residual x",
        "held_out_x_px",
        "px",
        "RMS in x of beads that the fit of the views had not seen",
    ),
    (
        "held-out residual y",
        "held_out_y_px",
        "px",
        "RMS in y of beads that the fit of the views had not seen",
    ),
    (
        "thickness",
        "thickness_angstrom",
        "Å",
        "between the faces on which the beads lie, or the outermost beads",
    ),
)


def _tell(values: list[float | None]) -> float | str:
    """One number for one series, the range for several."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return "unknown"
    low, high = (round(float(value), 3) for value in (min(known), max(known)))
    return low if low == high else f"{low:g} to {high:g}"


def _read_views(series: TiltSeries) -> BinnedViews:
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
    return BinnedViews(images, factor, faults, np.flatnonzero(series.selected & ~bad))


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


def _describe(
    alignment: "BeadAlignment", factor: int, pixel_size_angstrom: float, found: tuple[int, ...]
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


def _warn(
    series: TiltSeries, alignment: "BeadAlignment", views: BinnedViews, rough_deg: float
) -> tuple[str, ...]:
    """Say all that the user should look at."""
    tilts, warnings = series.nominal_tilt_deg, []
    for fault in ("dark", "blank"):
        rows = [row for row, found in enumerate(views.faults) if found == fault]
        if rows:
            warnings.append(f"{_list_tilts(tilts[rows])}: {fault}, left out")
    if alignment.lost.any():
        warnings.append(f"{_list_tilts(tilts[views.good][alignment.lost])}: fewer than three beads, left out")
    if len(alignment.points_px) < FEW_BEADS:
        warnings.append(
            f"only {len(alignment.points_px)} beads were tracked; look whether the alignment is right"
        )
    held_out = float(np.hypot(*alignment.trials[0].held_out_px))
    if not np.isfinite(held_out):
        warnings.append("too few beads to hold any out, so nothing tells how good the alignment is")
    elif held_out > POOR_PX:
        warnings.append(
            f"POOR: held-out beads lie {held_out * views.factor:.1f} pixels from where they are expected"
        )
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


ALIGN_TILTS_STEP = Step(
    name="align-tilts",
    params=AlignTiltsParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
