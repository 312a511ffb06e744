"""Alignment of a tilt series without beads: patches of the specimen followed from coarse to fine sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.tilt_alignment.bundle import BundleFit, Freedom
from verglas.algo.tilt_alignment.coarse import find_coarse_shifts
from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, start_geometry
from verglas.algo.tilt_alignment.patch_fit import fit_patches, refine_patches
from verglas.algo.tilt_alignment.patches import (
    Displacements,
    Layer,
    choose_thickness,
    measure_layer,
    plane_matrices,
    whiten_view,
)
from verglas.algo.tilt_alignment.selection import Trial
from verglas.errors import UserError
from verglas.ops.binning import bin_images

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

FEWEST_VIEWS = 5


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
    Level(128, 64, 0.6, 10.0, 6, Freedom(axis=1), 1e-3, True),
    Level(256, 64, 0.6, 6.0, 8, Freedom(axis=1, scale=5), 3e-4, True),
    Level(512, 96, 0.6, 5.0, 6, Freedom(axis=1, scale=5), 1e-4, False),
)

_CONVERGED_PX = 0.1
_LAST_ROUNDS = 2
_LARGEST = 2.0
_THICKNESSES = 0.7
_MARGIN = 0.4
_FEWEST_A_ROW = 3


@dataclass(frozen=True, eq=False)
class PatchAlignment:
    """An alignment by patches; all lengths in pixels of the views.

    Parameters
    ----------
    fit
        Geometry of the views, places and residuals of the patches.
    tracks_px
        `(patches, n, 2)` xy from the image's centre; NaN where a patch was not measured.
    trials
        Held-out residuals of the freedoms that were tried, the chosen one first.
    size_px
        Side of a patch.
    thickness_px
        Of the slab that explains best what the views share.
    scores
        `(patches, n)` correlation of each patch with what the other views predict.
    """

    fit: BundleFit
    tracks_px: FloatArray
    trials: tuple[Trial, ...]
    size_px: float
    thickness_px: float
    scores: FloatArray


def align_by_patches(images: Sequence[Image], tilt_deg: npt.ArrayLike, axis_deg: float) -> PatchAlignment:
    """Align views by what they show.

    Parameters
    ----------
    images
        n good views `(y, x)`, in any order.
    tilt_deg
        `(n,)` stage angles.
    axis_deg
        Angle of the tilt axis in the image, to a few degrees.

    Raises
    ------
    UserError
        When there are fewer than five views.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    if len(tilt) < FEWEST_VIEWS:
        raise UserError(f"an alignment by patches needs at least {FEWEST_VIEWS} good views; got {len(tilt)}")
    shifts = find_coarse_shifts(images, tilt, axis_deg)
    return refine_by_patches(images, start_geometry(tilt, axis_deg, shifts))


def refine_by_patches(
    images: Sequence[Image], geometry: ViewGeometry, levels: Sequence[Level] = LEVELS
) -> PatchAlignment:
    """Align by patches from a geometry that is roughly known.

    Parameters
    ----------
    images
        n good views `(y, x)`.
    geometry
        With shifts that err by less than a tenth of the field, and the tilts of the stage.
    levels
        From coarse to fine.
    """
    state = _State(geometry, (0.0, 0.0), 0.0)
    for level in levels:
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
            found, fit = search.measure(state, level.freedom)
            moved = measure_change(fit, state.geometry)
            state = replace(state, geometry=fit.geometry, slope=fit_slope(fit))
            if moved < _CONVERGED_PX:
                break
        state = state.resize(factor)
    state = state.resize(1 / factor)
    fit, trials = refine_patches(found.tracks, state.geometry, search.nominal)
    for _ in range(_LAST_ROUNDS):
        state = replace(state, geometry=fit.geometry, slope=fit_slope(fit))
        found, fit = search.measure(state, trials[0].freedom)
    return _enlarge(fit, found, trials, search.lay(state), factor)


@dataclass(frozen=True, eq=False)
class _State:
    """What the search moves, in pixels of its level; a thickness of 0 is unknown."""

    geometry: ViewGeometry
    slope: tuple[float, float]
    thickness_px: float

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
        return lay_patches(state.geometry, self.views[0].shape, level, state.slope, state.thickness_px)

    def find_thickness(self, state: _State) -> _State:
        return replace(state, thickness_px=choose_thickness(self.views, state.geometry, self.lay(state)))

    def measure(self, state: _State, freedom: Freedom) -> tuple[Displacements, BundleFit]:
        level = self.level
        found = measure_layer(self.views, state.geometry, self.lay(state), level.reach, anchor=level.anchor)
        return found, fit_patches(found.tracks, state.geometry, freedom, self.nominal)


def _enlarge(
    fit: BundleFit,
    found: Displacements,
    trials: Sequence[Trial],
    layer: Layer,
    factor: int,
) -> PatchAlignment:
    """In pixels of the views, from those of the level."""
    whole = replace(
        fit,
        geometry=_resize(fit.geometry, factor),
        points_px=fit.points_px * factor,
        residuals_px=fit.residuals_px * factor,
        sigma_px=fit.sigma_px * factor,
    )
    larger = tuple(replace(trial, residuals_px=trial.residuals_px * factor) for trial in trials)
    places = found.tracks.places_px * factor
    return PatchAlignment(
        whole, places, larger, layer.size * factor, layer.thickness_px * factor, found.scores
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


def fit_slope(fit: BundleFit) -> tuple[float, float]:
    """Rise along x and y of the plane through the patches, by weights that outliers do not move."""
    points = fit.points_px[np.isfinite(fit.points_px).all(axis=1)]
    if len(points) < 4:
        return 0.0, 0.0
    design = np.column_stack([points[:, :2], np.ones(len(points))])
    weights = np.ones(len(points))
    for _ in range(10):
        found = np.linalg.lstsq(design * weights[:, None], points[:, 2] * weights, rcond=None)[0]
        miss = points[:, 2] - design @ found
        spread = 1.4826 * np.median(np.abs(miss)) + 1e-6
        weights = 1 / np.sqrt(1 + (miss / (3 * spread)) ** 2)
    x, y = np.clip(found[:2], -0.3, 0.3)
    return float(x), float(y)


def _resize(geometry: ViewGeometry, factor: float) -> ViewGeometry:
    return replace(geometry, shift_px=geometry.shift_px * factor)
