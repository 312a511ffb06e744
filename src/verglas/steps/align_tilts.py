"""`align-tilts`: tilt series aligned by their gold beads."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.series_results import PROCESS_BYTES, describe_series, summarise_series
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.bead_alignment import BeadAlignment

FloatArray = npt.NDArray[np.float64]

LARGEST_SIDE = 2048
"""Views are averaged in blocks to at most this many pixels a side before beads are looked for."""

POOR_PX = 1.5
"""A held-out residual above this, in pixels of the averaged views, is told as a warning."""

_AXIS_TOLERANCE_DEG = 10.0


class AlignTiltsParams(Params):
    """Align tilt series by their gold beads, from raw views and stage angles."""

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the series")]
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
            description="find the tilt axis from the beads; the rough angle only tells it from its opposite"
        ),
    ] = False
    bead_diameter: Annotated[
        float | None, Field(gt=0, description="of the gold beads, in Å; estimated when not given")
    ] = None


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
    from verglas.io.imod import tilt_series_to_imod, write_imod_folder
    from verglas.io.relion_tilt_series import write_one_tilt_series

    series: TiltSeries = item.record
    factor = -(-max(series.image_shape) // LARGEST_SIDE)
    views, faults = _read_views(series, factor)
    good = np.flatnonzero(series.selected & ~np.array([bool(fault) for fault in faults]))
    pixel = series.pixel_size_angstrom * factor
    rough = float(series.z_rot_deg.mean()) if params.axis_angle is None else params.axis_angle
    beads = _find_beads([views[row] for row in good], params.bead_diameter and params.bead_diameter / pixel)
    alignment = align_by_beads(
        [views[row] for row in good],
        series.nominal_tilt_deg[good],
        [found.positions_px for found in beads],
        beads[0].diameter_px,
        None if params.search_axis else rough,
    )
    aligned = _apply(series, alignment, good, factor, rough)
    star = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / star, aligned)
    imod = context.folder / "imod" / item.name
    write_imod_folder(imod, item.name, tilt_series_to_imod(aligned))
    beads = f"beads/{item.name}.star"
    _write_beads(context.folder / beads, alignment, good, aligned, factor)
    figures = _draw(item.name, alignment, good, views, aligned, context.folder, factor)
    files = sorted(str(path.relative_to(context.folder)) for path in imod.iterdir() if path.is_file())
    values = {**describe_series(aligned), **_describe(alignment, factor)}
    warnings = _warn(alignment, faults, aligned, None if params.search_axis else rough)
    return ItemResult((star, beads, *files, *figures), values, warnings)


def summarise(results: dict[str, ItemResult], params: AlignTiltsParams, folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    more = {
        name: Value(_tell([result.values[key] for result in results.values()]), unit, meaning)
        for name, key, unit, meaning in _MORE
    }
    return summarise_series(results, folder, _CAPTIONS, more)


def estimate(items: list[Item], params: AlignTiltsParams) -> Estimate:
    """From the size of the views, by times measured on one core."""
    most, seconds = 0, 0.0
    for item in items:
        series: TiltSeries = item.record
        y, x = series.image_shape
        factor = -(-max(y, x) // LARGEST_SIDE)
        most = max(most, 4 * (y * x * 2 + len(series) * y * x // factor**2))
        seconds += 8 + len(series) * y * x * 1e-7
    return Estimate(PROCESS_BYTES + most, len(items) << 20, seconds)


_CAPTIONS = {
    "beads": "beads that were measured (rings) and those that were expected but not measured (dotted)",
    "residuals": "residual of every bead over the tilt; a jump is a view that moved or was not followed",
    "field": "mean residual of each bead, 40 times as long; arrows that neighbours share are the specimen's motion",
}

_MORE = (
    ("beads", "beads", "", "that were tracked, a series"),
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
)


def _tell(values: list[float | None]) -> float | str:
    """One number for one series, the range for several."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return "unknown"
    low, high = (round(float(value), 3) for value in (min(known), max(known)))
    return low if low == high else f"{low:g} to {high:g}"


def _read_views(series: TiltSeries, factor: int) -> tuple[list[npt.NDArray[np.float32]], tuple[str, ...]]:
    """All views, averaged in blocks, and what is wrong with each."""
    from verglas.algo.tilt_alignment.views import find_bad_views
    from verglas.io.mrc import check_finite, read_image

    views = []
    for row, image in enumerate(series.images):
        view = check_finite(read_image(image), f"view {row + 1} in {str(image.path)!r}")
        if view.shape != series.image_shape:
            raise UserError(
                f"view {row + 1} of {series.name!r} has shape {view.shape}; expected {series.image_shape}"
            )
        views.append(bin_images(torch.from_numpy(view), factor).numpy())
    means = [float(view.mean()) for view in views]
    deviations = [float(view.std()) for view in views]
    return views, find_bad_views(means, deviations, series.nominal_tilt_deg).faults


def _apply(
    series: TiltSeries, alignment: "BeadAlignment", good: npt.NDArray[np.intp], factor: int, rough_deg: float
) -> TiltSeries:
    """The aligned series. Views left out get what lies between their neighbours."""
    geometry = alignment.fit.geometry
    order = np.argsort(series.nominal_tilt_deg[good], kind="stable")
    at = series.nominal_tilt_deg[good][order]

    def fill(values: FloatArray) -> FloatArray:
        whole = np.interp(series.nominal_tilt_deg, at, values[order])
        whole[good] = values
        return whole

    # Of the two opposite directions of one axis, the one nearer to what was known.
    turn = 180.0 * round((rough_deg - float(geometry.axis_deg.mean())) / 180.0)
    sign = -1.0 if turn % 360 else 1.0
    shifts = geometry.shift_px * factor + _centre_step(series.image_shape, factor)
    # TODO-free by construction: an axis turned by 180 degrees keeps the stage's angles, and mirrors z.
    offsets = fill(geometry.tilt_deg - series.nominal_tilt_deg[good]) * (sign * 0 + 1)
    selected = np.zeros(len(series), bool)
    selected[good] = True
    return replace(
        series,
        x_tilt_deg=np.zeros(len(series)),
        y_tilt_deg=series.nominal_tilt_deg + offsets,
        z_rot_deg=fill(geometry.axis_deg) + turn,
        x_shift_angstrom=fill(shifts[:, 0]) * series.pixel_size_angstrom,
        y_shift_angstrom=fill(shifts[:, 1]) * series.pixel_size_angstrom,
        magnification=fill(geometry.scale)[:, None, None] * np.eye(2),
        selected=selected,
    )


def _centre_step(image_shape: tuple[int, int], factor: int) -> FloatArray:
    """Pixels xy from the centre of the image to that of its block averages."""
    return np.array([factor * (n // factor // 2) + (factor - 1) / 2 - n // 2 for n in image_shape[::-1]])
