"""`align-tilts`: tilt series aligned by their gold beads, or by patches of the specimen."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.alignment_methods import Method, align_views, warn
from verglas.steps.alignment_results import (
    CAPTIONS,
    BinnedViews,
    Marks,
    apply_alignment,
    draw_alignment,
    write_alignment,
)
from verglas.steps.series_results import PROCESS_BYTES, describe_series, summarise_series
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.alignment import MarkAlignment

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

LARGEST_SIDE = 2048
"""Views are averaged in blocks to at most this many pixels a side before beads are looked for."""


class AlignTiltsParams(Params):
    """Align tilt series by their gold beads or by patches, from raw views and stage angles."""

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the series")]
    method: Annotated[
        Literal["auto", "beads", "patches"],
        Field(
            description="what to align by; `auto` takes beads, and patches of the specimen where these fail"
        ),
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
    local: Annotated[
        bool,
        Field(
            description="fit a smooth field of local shifts where held-out beads say that it helps, but not with "
            "`rigid`; `reconstruct` and IMOD apply it, RELION does not"
        ),
    ] = True
    refine: Annotated[
        bool,
        Field(
            description="match views aligned by beads with projections of the reconstruction in the end; always done "
            "with patches"
        ),
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
        The beads or patches and the fit, in pixels of the averaged views.
    views
        The averaged views.
    marks
        Whether they are beads or patches, and how large in pixels of the averaged views.
    found
        Beads that were found in each good view; with patches those that were erased, empty without gold.
    warnings
        Sentences for the user; one that begins with POOR means that the result is not to be trusted.
    """

    aligned: TiltSeries
    alignment: "MarkAlignment"
    views: BinnedViews
    marks: Marks
    found: tuple[int, ...]
    warnings: tuple[str, ...]


def align_series(series: TiltSeries, params: AlignTiltsParams) -> SeriesAlignment:
    """Align one series; nothing is written.

    Raises
    ------
    UserError
        When an image cannot be used, there are fewer than five good views, or neither beads nor patches align it.
    """
    views = _read_views(series)
    rough = float(series.z_rot_deg.mean()) if params.axis_angle is None else params.axis_angle
    method = Method(
        params.method,
        rough,
        params.search_axis,
        params.bead_diameter,
        params.rigid,
        params.local,
        params.refine,
    )
    outcome = align_views(
        [views.images[row] for row in views.good],
        series.nominal_tilt_deg[views.good],
        series.pixel_size_angstrom * views.factor,
        method,
    )
    aligned = apply_alignment(series, outcome.alignment, views)
    return SeriesAlignment(
        aligned, outcome.alignment, views, outcome.marks, outcome.found, warn(series, outcome, views, rough)
    )


def run_item(item: Item, params: AlignTiltsParams, context: Context) -> ItemResult:
    """Align one series; write its tables, IMOD's files and the beads or patches, and draw the residuals."""
    from verglas.io.relion_tilt_series import local_field_path, write_one_tilt_series
    from verglas.steps.aligned_stack import write_aligned_stack

    done = align_series(item.record, params)
    aligned, alignment, views = done.aligned, done.alignment, done.views
    star = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / star, aligned)
    tables = (star,) if aligned.local is None else (star, local_field_path(star).as_posix())
    size_angstrom = done.marks.size_px * views.factor * aligned.pixel_size_angstrom
    files = write_alignment(aligned, alignment, views, done.marks, context.folder)
    if params.stack:
        stack = f"stacks/{item.name}_ali.mrc"
        write_aligned_stack(context.folder, stack, aligned.take(aligned.selected))
        files += (stack, str(Path(stack).with_suffix(".samplingMask")))
    figures = draw_alignment(aligned, alignment, views, done.marks, context.folder)
    values = {
        **describe_series(aligned),
        **_describe(done, views.factor, aligned.pixel_size_angstrom),
        "diameter_angstrom": size_angstrom if done.marks.kind == "beads" else None,
    }
    return ItemResult((*tables, *files, *figures), values, done.warnings)


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
    ("patches", "patches", "", "that were followed where a series was aligned by them"),
    ("bead diameter", "diameter_angstrom", "Å", "given or estimated"),
    ("residual x", "rms_x_px", "px", "RMS of all measured beads or patches in x"),
    ("residual y", "rms_y_px", "px", "RMS of all measured beads or patches in y"),
    (
        "held-out residual x",
        "held_out_x_px",
        "px",
        "RMS in x of beads or patches that the fit of the views had not seen",
    ),
    (
        "held-out residual y",
        "held_out_y_px",
        "px",
        "RMS in y of beads or patches that the fit of the views had not seen",
    ),
    (
        "thickness",
        "thickness_angstrom",
        "Å",
        "between the faces or the outermost beads; with patches the one that explains what the views share",
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


def _describe(done: SeriesAlignment, factor: int, pixel_size_angstrom: float) -> dict[str, Any]:
    """Figures of one series, in pixels of its images."""
    alignment, kind = done.alignment, done.marks.kind
    held_out, rms, slab = alignment.trials[0].held_out_px, alignment.rms_px, alignment.slab
    freedom = alignment.trials[0].freedom
    search = alignment.axis_search
    return {
        "method": kind,
        "beads": len(alignment.points_px) if kind == "beads" else None,
        "patches": len(alignment.points_px) if kind == "patches" else None,
        "beads_found_per_view": float(np.median(done.found)) if done.found else None,
        "measurements": int(np.isfinite(alignment.residuals_px[..., 0]).sum()),
        "explained": alignment.explained_share,
        "rms_x_px": rms[0] * factor,
        "rms_y_px": rms[1] * factor,
        "held_out_x_px": held_out[0] * factor if np.isfinite(held_out[0]) else None,
        "held_out_y_px": held_out[1] * factor if np.isfinite(held_out[1]) else None,
        "freedom": {name: getattr(freedom, name) for name in vars(freedom)},
        "local": done.aligned.local is not None,
        "thickness_angstrom": slab.thickness_px * factor * pixel_size_angstrom if slab else None,
        "axis_searched": alignment.searched,
        "axis_certainty": search.certainty if search and np.isfinite(search.certainty) else None,
    }


ALIGN_TILTS_STEP = Step(
    name="align-tilts",
    params=AlignTiltsParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
