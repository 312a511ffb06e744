"""By what a tilt series is aligned, beads or patches, and what is to be said of the result."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.steps.alignment_results import BinnedViews, Marks

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.alignment import MarkAlignment

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

POOR_PX = 1.5
"""A held-out residual above this, in pixels of the sampling that was measured on, is told as a warning."""

POORLY_EXPLAINED = 0.4
"""So is a track for less than this share of the beads found."""

FEW_BEADS = 5

_RIGID = ("axis", "tilt", "x_tilt")
_AXIS_TOLERANCE_DEG = 10.0
_BAD_VIEW = 3.0


@dataclass(frozen=True)
class Method:
    """What the user asks for.

    Parameters
    ----------
    name
        "beads", "patches", or "auto": beads when they carry an alignment, else patches.
    axis_deg
        Rough angle of the axis.
    search_axis
        Whether it is searched over all directions.
    bead_diameter_angstrom
        Of the beads; estimated when none.
    rigid
        Whether magnification, stretch and skew of the views are kept.
    local
        Whether a local field may be fitted.
    refine
        Whether views aligned by beads are matched with projections in the end.
    """

    name: str
    axis_deg: float
    search_axis: bool = False
    bead_diameter_angstrom: float | None = None
    rigid: bool = False
    local: bool = True
    refine: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """An alignment in pixels of the block averages.

    Parameters
    ----------
    alignment
        By beads or by patches.
    marks
        Of which kind and size.
    found
        Beads that were found in each view; for patches those that were erased, empty when there is no gold.
    notes
        Why it was not aligned by what was tried first.
    """

    alignment: "MarkAlignment"
    marks: Marks
    found: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def align_views(
    images: list[Image], tilt_deg: FloatArray, pixel_size_angstrom: float, method: Method
) -> Outcome:
    """Align the good views of a series.

    Raises
    ------
    UserError
        When there are too few views, or neither beads nor patches align them.
    """
    if not images:
        raise UserError("no view of the series is selected and without fault; expected at least five")
    given = method.bead_diameter_angstrom
    diameter = None if given is None else given / pixel_size_angstrom
    if method.name == "patches":
        return _align_by_patches(images, tilt_deg, diameter, method)
    try:
        by_beads = _align_by_beads(images, tilt_deg, diameter, method)
        problem = _doubt_beads(by_beads.alignment)
    except UserError as error:
        if method.name == "beads":
            raise
        by_beads, problem = None, str(error)
    if by_beads is not None and (method.name == "beads" or not problem):
        return by_beads
    try:
        by_patches = _align_by_patches(images, tilt_deg, diameter, method)
    except UserError as error:
        if by_beads is not None:
            return by_beads
        raise UserError(f"{problem}; and by patches: {error}") from error
    note = f"aligned by patches, for beads do not carry an alignment: {problem}"
    return replace(by_patches, notes=(note,))


def _align_by_beads(
    images: list[Image], tilt_deg: FloatArray, diameter_px: float | None, method: Method
) -> Outcome:
    from verglas.algo.tilt_alignment.bead_alignment import align_by_beads
    from verglas.algo.tilt_alignment.bundle import VARIABLES
    from verglas.steps.gold_in_views import find_view_beads

    found = find_view_beads(images, tilt_deg, diameter_px)
    alignment = align_by_beads(
        images,
        tilt_deg,
        found.places_px,
        found.diameter_px,
        method.axis_deg,
        _RIGID if method.rigid else VARIABLES,
        search=method.search_axis,
        local=method.local and not method.rigid,
    )
    outcome = Outcome(alignment, Marks("beads", found.diameter_px), found.counts)
    return _match_projections(images, tilt_deg, outcome) if method.refine else outcome


def _align_by_patches(
    images: list[Image], tilt_deg: FloatArray, diameter_px: float | None, method: Method
) -> Outcome:
    """Align by patches of the views from which gold is erased, for it would outweigh all else."""
    from verglas.algo.tilt_alignment.patch_alignment import align_by_patches
    from verglas.steps.gold_in_views import erase_gold

    erased, counts = erase_gold(images, tilt_deg, diameter_px)
    alignment = align_by_patches(
        erased, tilt_deg, method.axis_deg, search=method.search_axis, rigid=method.rigid
    )
    return Outcome(alignment, Marks("patches", alignment.size_px), counts)


def _match_projections(images: list[Image], tilt_deg: FloatArray, outcome: Outcome) -> Outcome:
    """Refine an alignment by beads; kept only if the beads fit as well as those held out did."""
    from verglas.algo.tilt_alignment.bundle import locate_beads
    from verglas.algo.tilt_alignment.projection_matching import match_projections
    from verglas.steps.gold_in_views import erase_gold

    alignment = outcome.alignment
    if alignment.slab is None:
        return replace(outcome, notes=("too few beads to tell the slab that projection matching needs",))
    erased, _ = erase_gold(images, tilt_deg, outcome.marks.size_px)
    try:
        matched = match_projections(erased, alignment.geometry, alignment.slab.thickness_px)
    except UserError as error:
        return replace(outcome, notes=(f"not matched with projections: {error}",))
    placed = locate_beads(alignment.tracks_px, matched.geometry)
    if not matched.better or np.hypot(*placed.rms_px) > np.hypot(*alignment.trials[0].held_out_px):
        return replace(outcome, notes=("projection matching found nothing better than the beads say",))
    better = replace(
        alignment,
        geometry=matched.geometry,
        points_px=placed.points_px,
        residuals_px=placed.residuals_px,
    )
    return replace(outcome, alignment=better)


def _doubt_beads(alignment: "MarkAlignment") -> str:
    """Why an alignment by beads is not to be trusted; nothing when it is."""
    held_out = float(np.hypot(*alignment.trials[0].held_out_px))
    share = alignment.explained_share
    if len(alignment.points_px) < FEW_BEADS:
        return f"only {len(alignment.points_px)} were tracked"
    if not held_out <= POOR_PX:
        return f"held-out ones lie {held_out:.1f} pixels off"
    if share is not None and share < POORLY_EXPLAINED:
        return f"only {share:.0%} of what looks like beads lies on a track"
    return ""


def warn(series: TiltSeries, outcome: Outcome, views: BinnedViews, rough_deg: float) -> tuple[str, ...]:
    """Say all that the user should look at."""
    alignment, kind = outcome.alignment, outcome.marks.kind
    tilts, warnings = series.nominal_tilt_deg, list(outcome.notes)
    for fault in ("dark", "blank"):
        rows = [row for row, found in enumerate(views.faults) if found == fault]
        if rows:
            warnings.append(f"{_list_tilts(tilts[rows])}: {fault}, left out")
    if alignment.lost.any():
        warnings.append(
            f"{_list_tilts(tilts[views.good][alignment.lost])}: fewer than three {kind}, left out"
        )
    if len(alignment.points_px) < FEW_BEADS:
        warnings.append(
            f"only {len(alignment.points_px)} {kind} were tracked; look whether the alignment is right"
        )
    sampling = alignment.factor
    held_out = float(np.hypot(*alignment.trials[0].held_out_px))
    if not np.isfinite(held_out):
        warnings.append(f"too few {kind} to hold any out, so nothing tells how good the alignment is")
    elif held_out > POOR_PX * sampling:
        warnings.append(
            f"POOR: held-out {kind} lie {held_out * views.factor:.1f} pixels from where they are expected"
        )
    share = alignment.explained_share
    if share is not None and share < POORLY_EXPLAINED:
        warnings.append(f"POOR: only {share:.0%} of what looks like beads lies on a track")
    warnings += _warn_of_axis(outcome, rough_deg)
    squares = np.where(np.isfinite(alignment.residuals_px), alignment.residuals_px**2, 0.0).sum(axis=(0, 2))
    rms = np.sqrt(squares / np.maximum(np.isfinite(alignment.residuals_px[..., 0]).sum(axis=0), 1))
    worst = ~alignment.lost & (rms > _BAD_VIEW * np.median(rms[~alignment.lost]))
    if worst.any():
        warnings.append(f"{_list_tilts(tilts[views.good][worst])}: fit much worse than the others")
    return tuple(warnings)


def _warn_of_axis(outcome: Outcome, rough_deg: float) -> list[str]:
    """Say when the axis is another one than the user believes, or may be."""
    from verglas.algo.tilt_alignment.common_lines import CERTAIN

    warnings = []
    axis = float(np.median(outcome.alignment.geometry.axis_deg))
    apart = abs((axis - rough_deg + 90) % 180 - 90)
    if apart > _AXIS_TOLERANCE_DEG:
        warnings.append(
            f"the tilt axis was found at {axis:.1f} degrees and not near {rough_deg:.1f}; images do not tell it from "
            "its opposite, so z may be mirrored: give `axis_angle` when it is known"
        )
    search = outcome.alignment.axis_search
    if search is not None and search.certainty < CERTAIN:
        warnings.append(
            f"common lines do not tell the tilt axis (certainty {search.certainty:.1f}, expected {CERTAIN:g}); "
            "the alignment began with their best guess"
        )
    return warnings


def _list_tilts(tilts: FloatArray) -> str:
    """Name views by their tilts."""
    return f"{'view' if len(tilts) == 1 else 'views'} at {', '.join(f'{tilt:+.1f}°' for tilt in tilts)}"
