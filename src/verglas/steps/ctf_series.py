"""Tilt series in `ctf`: defocus of each view, astigmatism and hand of aligned series."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.series_results import PROCESS_BYTES, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.ctf.fit import SearchRange, SeriesDefocus
    from verglas.algo.ctf.spectra import ViewSpectra
    from verglas.algo.ctf.tiles import Band
    from verglas.steps.ctf import CtfParams

FINEST_ANGSTROM = 5.0
"""Resolution at which the band ends when nothing is said, unless the pixels are too coarse for it."""


def list_series(paths: list[Path]) -> list[Item]:
    """One item a tilt series."""
    from verglas.io.relion_tilt_series import read_tilt_series

    series = {name: one for path in paths for name, one in read_tilt_series(path).items()}
    return [
        Item(name, one, tuple(dict.fromkeys(image.path for image in one.images)))
        for name, one in series.items()
    ]


def run_series(item: Item, params: "CtfParams", context: Context) -> ItemResult:
    """Estimate one series, write its tables, and draw it."""
    from verglas.algo.ctf.fit import limit_search
    from verglas.io.relion_tilt_series import write_one_tilt_series

    whole: TiltSeries = item.record
    _check_alignment(whole, params)
    series = whole.take(whole.selected)
    band, search = _make_band(series, params), _make_search(params)
    with _naming(series):
        # Before the views are read, because it may be in vain.
        limit_search(search, series.optics, band.highest_angstrom)
    views = _measure(series, band, context)
    found = _estimate(series, views, search)
    result = _fill_in(whole, found)
    star = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / star, result)
    table, warnings = _write_emclarity(result, context.folder)
    if params.aligned_stack:
        table += _write_aligned(result.take(result.selected), params, context.folder)
    figures = _draw(series, views, found, context.folder)
    return ItemResult((star, *table, *figures), _describe(series, found), (*_judge(series, found), *warnings))


def summarise_ctf_series(results: dict[str, ItemResult], params: "CtfParams", folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    from verglas.io.relion_tilt_series import read_one_tilt_series, write_tilt_series_index

    stars = {name: folder / "tilt_series" / f"{name}.star" for name in results}
    write_tilt_series_index(
        folder / "tilt_series.star", [(read_one_tilt_series(star), star) for star in stars.values()]
    )
    tables = ["tilt_series.star"]
    if params.aligned_stack:
        stars = {name: folder / "aligned" / f"{name}.star" for name in results}
        write_tilt_series_index(
            folder / "aligned.star", [(read_one_tilt_series(star), star) for star in stars.values()]
        )
        tables.append("aligned.star")
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in _CAPTIONS.items()
    ]
    found = [result.values for result in results.values()]
    hands = [value["hand_verdict"] for value in found]

    def median(key: str, digits: int) -> float:
        return round(float(np.median([value[key] for value in found])), digits)

    values = {
        "tilt series": Value(len(results), "", "whose defocus was found"),
        "defocus": Value(round(median("defocus_angstrom", 0) / 1e4, 3), "µm", "at the tilt axis; median"),
        "astigmatism": Value(median("astigmatism_angstrom", 0), "Å", "defocus u less v; median"),
        "error": Value(
            median("defocus_error_angstrom", 0), "Å", "standard error of one view's defocus; median"
        ),
        "significance": Value(median("significance", 1), "σ of noise", "of the mean defocus; median"),
        "hand": Value(
            ", ".join(f"{hands.count(word)} {word}" for word in dict.fromkeys(hands)),
            "series",
            "what the defocus on either side of the axis says of the hand in the table",
        ),
    }
    return Summary(figures, values, gather_warnings(results), tables)


def estimate_series(items: list[Item], params: "CtfParams") -> Estimate:
    """From the sizes of the views, and rates measured on one core."""
    memory, disk, seconds = 0, 0, 0.0
    for item in items:
        series: TiltSeries = item.record
        pixels = int(np.prod(series.image_shape))
        memory = max(memory, 40 * pixels + (12 << 20) * len(series))
        seconds += len(series) * (pixels * 1.2e-7 + 0.1) + 10.0
        disk += 1 << 20
        if params.aligned_stack:
            memory = max(memory, 120 * pixels)
            seconds += len(series) * pixels * 1e-6
            disk += 5 * len(series) * pixels
    return Estimate(PROCESS_BYTES + memory + (256 << 20), disk, seconds)


_CAPTIONS = {
    "views": "defocus of each view with its standard error, and astigmatism, over the tilt",
    "hand": "on the left the correlation of tiles below, near and above the tilt axis over their own defocus; on the "
    "right that of all tiles over the slope of the defocus, which peaks at +1 or -1 and so tells the hand",
    "search": "correlation of the average spectrum with the CTF over the defocus; one peak should stand out",
    "rings": "average spectrum with its background, and its rings with the fitted CTF",
}


def _check_alignment(series: TiltSeries, params: "CtfParams") -> None:
    if not series.selected.any():
        raise UserError(f"tilt series {series.name!r} has no selected view; expected at least one")
    if series.phase_shift_deg.any():
        raise UserError(
            f"tilt series {series.name!r} has a phase shift of {np.abs(series.phase_shift_deg).max():g} degrees, "
            "which the fit does not know; expected none"
        )
    geometry = (series.z_rot_deg, series.x_shift_angstrom, series.y_shift_angstrom)
    is_plain = not any(values.any() for values in geometry)
    if len(series) > 1 and is_plain and not params.images_aligned:
        raise UserError(
            f"tilt series {series.name!r} has no alignment: no shift and no axis angle in any view; expected an "
            "aligned one, or `images_aligned`"
        )


def _make_band(series: TiltSeries, params: "CtfParams") -> "Band":
    from verglas.algo.ctf.tiles import Band

    pixel = series.pixel_size_angstrom
    highest = params.highest_resolution or max(FINEST_ANGSTROM, 2.2 * pixel)
    return Band(params.lowest_resolution, highest, params.tile)


def _measure(series: TiltSeries, band: "Band", context: Context) -> "list[ViewSpectra]":
    import torch

    from verglas.algo.ctf.spectra import measure_spectra
    from verglas.io.mrc import check_finite, read_image
    from verglas.runtime import choose_device

    device = choose_device(context.device)
    views = []
    for i, image in enumerate(series.images):
        view = check_finite(read_image(image), f"view {i + 1} in {str(image.path)!r}")
        views.append(measure_spectra(torch.from_numpy(view).to(device), series, i, band))
    return views


def _make_search(params: "CtfParams") -> "SearchRange":
    from verglas.algo.ctf.fit import SearchRange

    return SearchRange(1e4 * params.lowest_defocus, 1e4 * params.highest_defocus, 1e4 * params.view_range)


@contextmanager
def _naming(series: TiltSeries) -> Iterator[None]:
    """Say in an error whose defocus it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"the defocus of {series.name!r} cannot be fitted at {series.pixel_size_angstrom:g} Å per pixel: {error}"
        ) from None


def _estimate(series: TiltSeries, views: "list[ViewSpectra]", search: "SearchRange") -> "SeriesDefocus":
    from verglas.algo.ctf.fit import LEAST_SIGNIFICANCE, estimate_defocus

    tilts = np.asarray(series.y_tilt_deg)
    with _naming(series):
        found = estimate_defocus(views, tilts, series.optics, search, hand=series.hand)
    if not found.is_found:
        raise UserError(
            f"the spectra of {series.name!r} show no rings of the CTF: the best defocus of all stands out by "
            f"{found.significance:.1f} standard deviations of noise; expected at least {LEAST_SIGNIFICANCE:g}"
        )
    return found


def _fill_in(whole: TiltSeries, found: "SeriesDefocus") -> TiltSeries:
    """Put defocus and hand into the record; views left out get the medians, so that the table has no gaps."""
    u, v, angle = found.principal
    # Angles of a weak astigmatism scatter round the circle; the one of the mean does not.
    a, b = found.views.astigmatism.mean(axis=0)
    usual = float(np.rad2deg(0.5 * np.arctan2(b, a)))
    changes: dict[str, Any] = {"hand": found.hand}
    for name, values, other in (
        ("defocus_u_angstrom", u, float(np.median(u))),
        ("defocus_v_angstrom", v, float(np.median(v))),
        ("defocus_angle_deg", angle, usual),
    ):
        column = np.full(len(whole), other)
        column[whole.selected] = values
        changes[name] = column
    return replace(whole, **changes)


def _write_emclarity(series: TiltSeries, folder: Path) -> tuple[list[str], list[str]]:
    """Write emClarity's table where its geometry can hold the series; else a sentence on why not."""
    from verglas.io.emclarity import tilt_series_to_emclarity, write_ctf_table

    try:
        table = tilt_series_to_emclarity(series)
    except UserError as error:
        return [], [f"no table for emClarity was written: {error}"]
    path = f"emclarity/fixedStacks/ctf/{series.name}_ali1_ctf.tlt"
    write_ctf_table(folder / path, table)
    return [path], []


def _write_aligned(series: TiltSeries, params: "CtfParams", folder: Path) -> list[str]:
    from verglas.io.relion_tilt_series import write_one_tilt_series
    from verglas.steps.aligned_stack import write_aligned_stack

    stack = f"emclarity/aliStacks/{series.name}_ali1.fixed"
    aligned = write_aligned_stack(folder, stack, series, ice_thickness_angstrom=params.ice_thickness)
    star = f"aligned/{series.name}.star"
    write_one_tilt_series(folder / star, aligned)
    return [stack, str(Path(stack).with_suffix(".samplingMask")), star]


def _tell_hand(series: TiltSeries, found: "SeriesDefocus") -> str:
    return {0: "cannot tell", series.hand: "right"}.get(found.verdict, "flipped")


def _describe(series: TiltSeries, found: "SeriesDefocus") -> dict[str, Any]:
    u, v, _ = found.principal
    return {
        "views": len(series),
        "defocus_angstrom": float(found.views.defocus_angstrom.mean()),
        "defocus_error_angstrom": float(np.median(found.views.error_angstrom)),
        "astigmatism_angstrom": float(np.median(u - v)),
        "significance": found.significance,
        "hand": found.hand,
        "hand_verdict": _tell_hand(series, found),
        "hand_significance": found.hand_check.significance,
        "weakest_view_score": float(found.view_score.min()),
    }


def _judge(series: TiltSeries, found: "SeriesDefocus") -> list[str]:
    """Sentences on what the user should know."""
    told = []
    verdict = _tell_hand(series, found)
    if verdict == "flipped":
        told.append(
            f"the hand is flipped: the defocus over the field changes as hand {found.hand:+d} says, not "
            f"{series.hand:+d}, by {abs(found.hand_check.significance):.1f} standard deviations; the table now has "
            f"{found.hand:+d}"
        )
    elif verdict == "cannot tell" and len(series) > 1:
        told.append(
            "the hand cannot be told from the defocus over the field "
            f"({abs(found.hand_check.significance):.1f} standard deviations); {series.hand:+d} is kept"
        )
    weak = int((found.view_score < 2.0).sum())
    if weak:
        told.append(f"{weak} of {len(series)} views show hardly any rings; their defocus follows the others'")
    return told


def _draw(series: TiltSeries, views: "list[ViewSpectra]", found: "SeriesDefocus", folder: Path) -> list[str]:
    from verglas.algo.ctf.fit import LEAST_SIGNIFICANCE
    from verglas.algo.ctf.profile import average_profile
    from verglas.figures.ctf import draw_hand, draw_rings, draw_search, draw_view_defocus

    paths = {kind: f"figures/{series.name}_{kind}.png" for kind in _CAPTIONS}
    score, defocus = found.search_score, found.search_defocus_angstrom
    draw_search(defocus, score, float(defocus[score.argmax()]), LEAST_SIGNIFICANCE, folder / paths["search"])
    profile = average_profile(views, series.optics, found)
    curves = {name: getattr(profile, name) for name in ("frequency", "power", "background", "ripple", "fit")}
    maps = (profile.ripple_2d, profile.fit_2d)
    draw_rings(curves, profile.direction_deg, maps, folder / paths["rings"])
    u, v, _ = found.principal
    draw_view_defocus(
        np.asarray(series.y_tilt_deg),
        found.views.defocus_angstrom,
        found.views.error_angstrom,
        found.views.trend_angstrom,
        u - v,
        folder / paths["views"],
    )
    check = found.hand_check
    told = f"the hand {series.hand:+d} in the table: {_tell_hand(series, found)}"
    draw_hand(
        check.defocus_angstrom,
        {"below the axis": check.below, "near the axis": check.axis, "above the axis": check.above},
        check.gain,
        check.gain_score,
        f"{told} ({abs(check.significance):.1f} σ)",
        folder / paths["hand"],
    )
    return list(paths.values())
