"""What all steps that make tilt series leave behind: tables, pictures, figures of merit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.step import Estimate, Figure, Item, ItemResult, Summary, Value

FloatArray = npt.NDArray[np.floating]

PIXEL_TOLERANCE = 0.01
"""Fraction by which two pixel sizes of the same images may differ."""

PROCESS_BYTES = 350 << 20

_DRAWN_PIXELS = 1024
_ROWS = 64
_MOST_DRAWN = 6


def choose_pixel_size(
    given: float | None, header: float | None, recorded: float | None, where: str
) -> tuple[float, list[str]]:
    """Choose the pixel size of images: the user's, else that of their header, else that of the metadata.

    A header of exactly 1 Å counts only when nothing else is known, because many programs write it for that.

    Parameters
    ----------
    given
        What the user says, Å.
    header
        What the header of the images says.
    recorded
        What the metadata say of the same images.
    where
        Names the images in the error.

    Returns
    -------
    pixel_size_angstrom, warnings
        One sentence when two of them differ.

    Raises
    ------
    UserError
        When none is known, or the one chosen is not finite and positive.
    """
    known = {"`pixel_size`": given, "the header": header, "the metadata": recorded}
    sizes = {name: size for name, size in known.items() if size}
    if len(sizes) > 1 and sizes.get("the header") == 1.0:
        del sizes["the header"]
    if not sizes:
        raise UserError(f"the pixel size of {where} is not in its header; expected `pixel_size` in Å")
    (name, chosen), *others = sizes.items()
    if not (np.isfinite(chosen) and chosen > 0):
        raise UserError(f"the pixel size of {where} must be positive; {name} has {chosen:g} Å")
    warnings = [
        f"the pixel size is {chosen:g} Å after {name}, but {size:g} Å after {other}"
        for other, size in others
        if abs(size / chosen - 1) > PIXEL_TOLERANCE
    ]
    if name == "the header" and chosen == 1.0:
        warnings.append("the header's pixel size is 1 Å, which many programs write when they do not know it")
    return chosen, warnings


def draw_series(series: TiltSeries, folder: Path, marks: Sequence[tuple[int, str]] = ()) -> dict[str, str]:
    """Draw the geometry of a series, and its views at both ends, in the middle, and those that are marked.

    Parameters
    ----------
    series
        The series; only the images drawn are read.
    folder
        The job folder.
    marks
        Views to draw too, up to three, and a word on each.

    Returns
    -------
    dict
        Kind of the picture to its path relative to the job folder.

    Raises
    ------
    UserError
        When an image cannot be read, or holds values that are not finite.
    """
    from verglas.figures.tilt_series import draw_geometry, draw_views
    from verglas.io.mrc import check_finite, read_image

    paths = {kind: f"figures/{series.name}_{kind}.png" for kind in ("views", "geometry")}
    tilts = np.asarray(series.y_tilt_deg)
    words = dict(marks)
    ends = (int(tilts.argmin()), int(np.abs(tilts).argmin()), int(tilts.argmax()))
    rows = list(dict.fromkeys([*ends, *words]))[:_MOST_DRAWN]
    rows.sort(key=lambda row: tilts[row])
    views, pixel = [], series.pixel_size_angstrom
    for row in rows:
        image = series.images[row]
        view = check_finite(read_image(image), f"view {row + 1} in {str(image.path)!r}")
        small, pixel = shrink(view, series.pixel_size_angstrom)
        views.append(small)
    # Adding 0 takes the sign off a zero.
    labels = [f"{round(tilts[row], 1) + 0.0:+.1f}° {words.get(row, '')}".rstrip() for row in rows]
    draw_views(views, labels, pixel, folder / paths["views"])
    draw_geometry(series, folder / paths["geometry"])
    return paths


def shrink(image: FloatArray, pixel_size_angstrom: float) -> tuple[FloatArray, float]:
    """Average whole blocks of an image until it is small enough for a picture; its pixel size grows along."""
    factor = max(1, -(-max(image.shape) // _DRAWN_PIXELS))
    y, x = (size // factor for size in image.shape)
    # Some rows at a time: an image whose rows are apart in memory would be copied as a whole.
    strips = [
        image[top * factor : min(top + _ROWS, y) * factor, : x * factor].reshape(-1, factor, x, factor)
        for top in range(0, y, _ROWS)
    ]
    small = np.concatenate([strip.mean(axis=(1, 3)) for strip in strips])
    return small, pixel_size_angstrom * factor


def describe_series(series: TiltSeries) -> dict[str, Any]:
    """Figures of one series for its record."""
    tilts = np.asarray(series.y_tilt_deg)
    last = series.pre_exposure_e_per_a2 + series.exposure_e_per_a2
    shifts = np.hypot(series.x_shift_angstrom, series.y_shift_angstrom)
    return {
        "views": len(series),
        "left_out": int((~series.selected).sum()),
        "pixel_size_angstrom": series.pixel_size_angstrom,
        "tilt_min_deg": float(tilts.min()),
        "tilt_max_deg": float(tilts.max()),
        "axis_deg": float(series.z_rot_deg.mean()),
        "exposure_e_per_a2": float(last.max()) if np.isfinite(last).all() else None,
        "largest_shift_angstrom": float(shifts.max()),
    }


def summarise_series(
    results: dict[str, ItemResult],
    folder: Path,
    captions: dict[str, str],
    more: dict[str, Value] | None = None,
) -> Summary:
    """Write `tilt_series.star` of the series whose own files the items wrote, and gather what they say.

    Parameters
    ----------
    results
        With the values of :func:`describe_series`.
    folder
        The job folder.
    captions
        Kind of each picture to what to look for in it.
    more
        Further figures of merit.
    """
    from verglas.io.relion_tilt_series import read_one_tilt_series, write_tilt_series_index

    stars = {name: folder / "tilt_series" / f"{name}.star" for name in results}
    write_tilt_series_index(
        folder / "tilt_series.star", [(read_one_tilt_series(star), star) for star in stars.values()]
    )
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in captions.items()
    ]
    columns = {key: [result.values[key] for result in results.values()] for key in _COLUMNS}
    tilts = [*columns["tilt_min_deg"], *columns["tilt_max_deg"]]
    exposures = [value for value in columns["exposure_e_per_a2"] if value is not None]
    values = {
        "tilt series": Value(len(results), "", "that were brought in"),
        "views": Value(sum(columns["views"]), "", "in all series together"),
        "left out": Value(sum(columns["left_out"]), "views", "that are not selected"),
        "pixel size": Value(_tell_range(columns["pixel_size_angstrom"], "g"), "Å", "side of a pixel"),
        "tilt range": Value(f"{min(tilts):.1f} to {max(tilts):.1f}", "degrees", "lowest and highest tilt"),
        "tilt axis": Value(_tell_range(columns["axis_deg"], ".2f"), "degrees", "its angle in the image"),
        "exposure": Value(_tell_range(exposures, ".1f"), "e/Å²", "of a whole series"),
        "largest shift": Value(
            round(max(columns["largest_shift_angstrom"]), 1), "Å", "of the specimen's centre in a view"
        ),
    }
    return Summary(figures, values | (more or {}), gather_warnings(results), ["tilt_series.star"])


_COLUMNS = (
    *("views", "left_out", "pixel_size_angstrom", "tilt_min_deg", "tilt_max_deg", "axis_deg"),
    *("exposure_e_per_a2", "largest_shift_angstrom"),
)


def gather_warnings(results: dict[str, ItemResult]) -> list[str]:
    """Return each warning once, with the names of the items that it is about."""
    names: dict[str, list[str]] = {}
    for name, result in results.items():
        for warning in result.warnings:
            names.setdefault(warning, []).append(name)
    return [
        f"{', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}: {warning}"
        for warning, found in names.items()
    ]


def estimate_drawing(items: Sequence[Item], largest_image_bytes: int) -> Estimate:
    """Estimate what reading and drawing a few views of each series takes, by times measured on one core."""
    seconds = len(items) * (2.0 + 3 * largest_image_bytes / 2e8)
    return Estimate(PROCESS_BYTES + 4 * largest_image_bytes, len(items) << 20, seconds)


def _tell_range(values: Sequence[float], form: str) -> str:
    if not values:
        return "unknown"
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
