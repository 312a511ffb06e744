"""Alignment of a tilt series without beads: patches of the specimen followed from coarse to fine sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.tilt_alignment.alignment import FEWEST_GOOD_VIEWS, MarkAlignment
from verglas.algo.tilt_alignment.bundle import BundleFit, Freedom
from verglas.algo.tilt_alignment.coarse import find_coarse_shifts
from verglas.algo.tilt_alignment.common_lines import CERTAIN, find_axis_by_lines
from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, start_geometry
from verglas.algo.tilt_alignment.patch_fit import FREEDOMS, fit_patches, refine_patches
from verglas.algo.tilt_alignment.patches import (
    Displacements,
    Layer,
    choose_thickness,
    measure_layer,
    plane_matrices,
    whiten_view,
)
from verglas.algo.tilt_alignment.projection_matching import match_projections
from verglas.algo.tilt_alignment.selection import Trial
from verglas.algo.tilt_alignment.slab import Slab, level_specimen
from verglas.errors import UserError
from verglas.ops.binning import bin_images, binned_centre_step

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Level:
    """One sampling.

    Parameters
    ----------
    side
        Longest side of the images, about, pixels.
    size
        Side of the patches, pixels.
    spacing
        From patch to patch, in sizes.
    reach
        Longest displacement that is looked for, pixels.
    rounds
        At most so many.
    freedom
        What is fitted beside the shifts.
    anchor
        See `measure_layer`.
    finds_thickness
        Whether the slab's thickness is found anew.
    """

    side: int
    size: int
    spacing: float
    reach: float
    rounds: int
    freedom: Freedom
    anchor: float
    finds_thickness: bool


LEVELS = (
    Level(128, 64, 0.4, 10.0, 6, Freedom(axis=1), 1e-3, True),
    Level(256, 64, 0.4, 6.0, 6, Freedom(axis=1, scale=5), 3e-4, False),
    Level(512, 96, 0.4, 5.0, 4, Freedom(axis=1, scale=5), 1e-4, False),
)

_AXIS_REACH_DEG = 10.0
_CONVERGED_PX = 0.05
_WORTH_FINER = 0.3
_ROOMY = 1.15  # what lies beyond the slab harms more than room in it
_BOLD, _BOLD_TURN, _STEEPEST = 1.7, 2.2, 0.3
_LAST_ROUNDS = 1
_SHARE_NOTHING_PX = 2.0
_LARGEST = 2.0
_THICKNESSES = 1.4  # what enters and leaves smaller patches turned the axis by 0.2 degrees
_MARGIN = 0.4
_FEWEST_A_ROW = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchAlignment(MarkAlignment):
    """An alignment by patches, whose residuals are from where the fit and the rest of each track say.

    Parameters
    ----------
    slab
        Where the patches lay before it was levelled, as thick as explains best what the views share.
    size_px
        Side of a patch.
    scores
        `(patches, n)` correlation of each patch with what the other views predict.
    gain
        By what fraction the views agreed better with projections of the others once they had been matched with
        them; if it is below `LEAST_GAIN` of `projection_matching` they were left where the patches say.
    """

    slab: Slab
    size_px: float
    scores: FloatArray
    gain: float = 0.0


def align_by_patches(
    images: Sequence[Image],
    tilt_deg: npt.ArrayLike,
    axis_deg: float | None,
    *,
    search: bool = False,
    rigid: bool = False,
) -> PatchAlignment:
    """Align views by what they show.

    Common lines tell the axis to some five degrees. What they say is taken when nothing else is known, and when they
    are certain that the rough one is more than ten degrees off: nearer than that the patches find it themselves. Of
    two opposite directions that nearer to the rough one is taken.

    Parameters
    ----------
    images
        n good views `(y, x)`, in any order.
    tilt_deg
        `(n,)` stage angles.
    axis_deg
        Rough angle of the tilt axis in the image; none when unknown.
    search
        Take what common lines say in any case.
    rigid
        Keep the magnification of the views.

    Raises
    ------
    UserError
        When there are fewer than five views, or the views share too little.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    if len(tilt) < FEWEST_GOOD_VIEWS:
        raise UserError(
            f"an alignment by patches needs at least {FEWEST_GOOD_VIEWS} good views; got {len(tilt)}"
        )
    found = find_axis_by_lines(images, tilt, find_coarse_shifts(images, tilt, axis_deg))
    known = 0.0 if axis_deg is None else axis_deg
    nearer = found.axis_deg + 180 * round((known - found.axis_deg) / 180)
    elsewhere = abs(nearer - known) > _AXIS_REACH_DEG and found.certainty >= CERTAIN
    asked = search or axis_deg is None or elsewhere
    axis = nearer if asked else known
    shifts = find_coarse_shifts(images, tilt, axis)
    result = refine_by_patches(images, start_geometry(tilt, axis, shifts), rigid=rigid)
    miss = float(np.hypot(*result.trials[0].held_out_px)) / result.factor
    if miss > _SHARE_NOTHING_PX:
        raise UserError(
            "neighbouring views do not show the same: held-out patches lie "
            f"{miss * result.factor:.1f} pixels from where the others say; expected a specimen with structure"
        )
    matched = match_projections(images, result.geometry, _ROOMY * result.slab.thickness_px)
    return replace(
        result,
        geometry=matched.geometry,
        searched=asked,
        axis_search=found if asked else None,
        gain=matched.gain,
    )


def refine_by_patches(
    images: Sequence[Image],
    geometry: ViewGeometry,
    *,
    rigid: bool = False,
) -> PatchAlignment:
    """Align by patches from a geometry that is roughly known.

    Parameters
    ----------
    images
        n good views `(y, x)`.
    geometry
        With shifts that err by less than a tenth of the field, and the tilts of the stage.
    rigid
        Keep the magnification of the views.
    """
    freedoms = tuple(dict.fromkeys(replace(f, scale=0) if rigid else f for f in FREEDOMS))
    state = _State(geometry, (0.0, 0.0), 0.0)
    for level in LEVELS:
        factor = max(1, round(max(images[0].shape) / level.side))
        views = [
            whiten_view(bin_images(torch.from_numpy(np.asarray(i, np.float32)), factor).numpy())
            for i in images
        ]
        search = _Search(views, _resize(geometry, 1 / factor), level)
        state = state.resize(1 / factor)
        if level.finds_thickness:
            state = search.find_thickness(state)
        for _ in range(level.rounds):
            found, fit = search.measure(state, replace(level.freedom, scale=0) if rigid else level.freedom)
            moved = measure_change(fit, state.geometry)
            state = state.follow(fit)
            if moved < _CONVERGED_PX:
                break
        state = state.resize(factor)
        if found.highest < _WORTH_FINER or factor == 1:
            break
    state = state.resize(1 / factor)
    fit, trials = refine_patches(found.tracks, state.geometry, search.nominal, freedoms)
    for _ in range(_LAST_ROUNDS):
        state = state.follow(fit)
        found, fit = search.measure(state, trials[0].freedom)
    return _conclude(fit, found, trials, search.lay(state), factor, images[0].shape)


@dataclass(frozen=True, eq=False)
class _State:
    """What the search moves, in pixels of its level; a thickness of 0 is unknown."""

    geometry: ViewGeometry
    slope: tuple[float, float]
    thickness_px: float

    def follow(self, fit: BundleFit) -> "_State":
        # Patches are drawn to the plane and the axis with which they were measured, so both go beyond what they say.
        x, y = (
            float(np.clip(old + _BOLD * (new - old), -_STEEPEST, _STEEPEST))
            for old, new in zip(self.slope, fit_slope(fit)[0], strict=True)
        )
        turn = (_BOLD_TURN - 1) * (fit.geometry.axis_deg - self.geometry.axis_deg)
        return replace(
            self, geometry=replace(fit.geometry, axis_deg=fit.geometry.axis_deg + turn), slope=(x, y)
        )

    def resize(self, factor: float) -> "_State":
        return _State(_resize(self.geometry, factor), self.slope, self.thickness_px * factor)


@dataclass(frozen=True, eq=False)
class _Search:
    """What does not move at one level."""

    views: list[npt.NDArray[np.float32]]
    nominal: ViewGeometry
    level: Level

    def lay(self, state: _State) -> Layer:
        # What a thick slab shows in one patch moves apart when it is tilted: the patch must hold it.
        side = min(self.views[0].shape)
        size = max(self.level.size, min(_LARGEST * self.level.size, _THICKNESSES * state.thickness_px))
        level = replace(self.level, size=2 * round(min(size, side / 2) / 2))
        return lay_patches(
            state.geometry, self.views[0].shape, level, state.slope, _ROOMY * state.thickness_px
        )

    def find_thickness(self, state: _State) -> _State:
        return replace(state, thickness_px=choose_thickness(self.views, state.geometry, self.lay(state)))

    def measure(self, state: _State, freedom: Freedom) -> tuple[Displacements, BundleFit]:
        level = self.level
        found = measure_layer(self.views, state.geometry, self.lay(state), level.reach, anchor=level.anchor)
        return found, fit_patches(found.tracks, state.geometry, freedom, self.nominal)


def _conclude(
    fit: BundleFit,
    found: Displacements,
    trials: Sequence[Trial],
    layer: Layer,
    factor: int,
    shape: tuple[int, ...],
) -> PatchAlignment:
    """Level the slab, and turn pixels of the finest sampling into those of the views."""
    (slope_x, slope_y), error = fit_slope(fit)
    slab = Slab(slope_x, slope_y, 0.0, layer.thickness_px / _ROOMY * factor, error, 1)
    # Block averages have their centre elsewhere than the views.
    step = np.array([binned_centre_step(size, factor) for size in shape[::-1]])
    larger = _resize(fit.geometry, factor)
    larger = replace(larger, shift_px=larger.shift_px + step)
    geometry, points = level_specimen(larger, fit.points_px * factor, slab)
    return PatchAlignment(
        geometry=geometry,
        points_px=points,
        tracks_px=found.tracks.places_px * factor + step,
        residuals_px=fit.residuals_px * factor,
        trials=tuple(replace(trial, residuals_px=trial.residuals_px * factor) for trial in trials),
        slab=slab,
        factor=factor,
        size_px=layer.size * factor,
        scores=found.scores,
    )


def measure_change(fit: BundleFit, before: ViewGeometry) -> float:
    """RMS movement of the patches' places in the views, less that of each patch in all of them; pixels."""
    step = project_points(fit.geometry, fit.points_px) - project_points(before, fit.points_px)
    step = step[np.isfinite(step).all(axis=(1, 2))]
    step = step - step.mean(axis=1, keepdims=True)
    return float(np.sqrt((step**2).sum(axis=-1).mean()))


def lay_patches(
    geometry: ViewGeometry,
    shape: tuple[int, ...],
    level: Level,
    slope: tuple[float, float],
    thickness_px: float,
) -> Layer:
    """Lay patches in rows over what the view of lowest tilt shows, three by three at least."""
    low = int(np.abs(geometry.tilt_deg).argmin())
    room = np.array(shape[::-1]) / 2 - _MARGIN * level.size
    counts = np.maximum(_FEWEST_A_ROW, 1 + np.rint(2 * room / (level.spacing * level.size))).astype(int)
    x, y = (np.linspace(-r, r, n) for r, n in zip(room, counts, strict=True))
    seen = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    plane, _ = plane_matrices(geometry.take([low]), slope)
    xy = np.linalg.solve(plane[0], seen.T).T
    return Layer(np.column_stack([xy, xy @ np.array(slope)]), slope, level.size, thickness_px)


def fit_slope(fit: BundleFit) -> tuple[tuple[float, float], float]:
    """Rise along x and y of the plane through the patches, robustly, and the error of the steeper one in degrees."""
    points = fit.points_px[np.isfinite(fit.points_px).all(axis=1)]
    design = np.column_stack([points[:, :2], np.ones(len(points))])
    weights = np.ones(len(points))
    for _ in range(10):
        found = np.linalg.lstsq(design * weights[:, None], points[:, 2] * weights, rcond=None)[0]
        miss = points[:, 2] - design @ found
        spread = 1.4826 * float(np.median(np.abs(miss))) + 1e-6
        weights = 1 / np.sqrt(1 + (miss / (3 * spread)) ** 2)
    errors = spread * np.sqrt(np.diag(np.linalg.pinv(design.T @ design))[:2])
    x, y = np.clip(found[:2], -_STEEPEST, _STEEPEST)
    return (float(x), float(y)), float(np.rad2deg(errors.max()))


def _resize(geometry: ViewGeometry, factor: float) -> ViewGeometry:
    return replace(geometry, shift_px=geometry.shift_px * factor)
