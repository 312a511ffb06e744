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
    cut_layer,
    measure_layer,
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
    """One sampling: longest side of the images, side of the patches, reach, and rounds at it."""

    side: int
    size: int
    spacing: float
    reach: float
    rounds: int
    freedom: Freedom
    anchor: float


LEVELS = (
    Level(128, 64, 0.6, 10.0, 6, Freedom(axis=1), 1e-2),
    Level(256, 64, 0.6, 6.0, 8, Freedom(axis=1, scale=5), 3e-3),
    Level(512, 96, 0.6, 5.0, 4, Freedom(axis=1, scale=5), 3e-4),
)

_CONVERGED_PX = 0.1


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


def refine_by_patches(images: Sequence[Image], geometry: ViewGeometry, levels: Sequence[Level] = LEVELS) -> PatchAlignment:
    """Align by patches from a geometry that is roughly known."""
    slope, thickness, start = (0.0, 0.0), None, geometry
    for number, level in enumerate(levels):
        factor = max(1, round(max(images[0].shape) / level.side))
        views = [whiten_view(bin_images(torch.from_numpy(np.asarray(i, np.float32)), factor).numpy()) for i in images]
        begin = _resize(start, 1 / factor)
        here = _resize(geometry, 1 / factor)
        for turn in range(level.rounds):
            layer = lay_patches(here, views[0].shape, level, slope, (thickness or 0.15 * max(images[0].shape)) / factor)
            if number < 2 and turn == 0:
                thickness = factor * choose_thickness(views, here, layer)
                layer = replace(layer, thickness_px=thickness / factor)
            found = measure_layer(views, here, layer, level.reach, anchor=level.anchor)
            last = (number, turn) == (len(levels) - 1, level.rounds - 1)
            fit = fit_patches(found.tracks, here, level.freedom, begin)
            moved = measure_change(fit, here)
            here, slope = fit.geometry, fit_slope(fit)
            if moved < _CONVERGED_PX:
                break
        geometry = _resize(here, factor)
    fit, trials = refine_patches(found.tracks, here, begin)
    for _ in range(2):
        here, slope = fit.geometry, fit_slope(fit)
        layer = lay_patches(here, views[0].shape, level, slope, thickness / factor)
        found = measure_layer(views, here, layer, level.reach, anchor=level.anchor)
        fit = fit_patches(found.tracks, here, trials[0].freedom, begin)
    scale = float(factor)
    whole = replace(
        fit,
        geometry=_resize(fit.geometry, scale),
        points_px=fit.points_px * scale,
        residuals_px=fit.residuals_px * scale,
        sigma_px=fit.sigma_px * scale,
    )
    return PatchAlignment(
        whole, found.tracks.places_px * scale, tuple(trials), level.size * scale, thickness, found.scores
    )


def measure_change(fit: BundleFit, before: ViewGeometry) -> float:
    """RMS movement of the patches' places in the views, less that of each patch in all of them; pixels."""
    step = project_points(fit.geometry, fit.points_px) - project_points(before, fit.points_px)
    step = step[np.isfinite(step).all(axis=(1, 2))]
    step = step - step.mean(axis=1, keepdims=True)
    return float(np.sqrt((step**2).sum(axis=-1).mean()))


def lay_patches(
    geometry: ViewGeometry, shape: tuple[int, ...], level: Level, slope: tuple[float, float], thickness_px: float
) -> Layer:
    """Lay patches over what the view of lowest tilt shows."""
    low = int(np.abs(geometry.tilt_deg).argmin())
    turn = np.deg2rad(geometry.axis_deg[low])
    half = np.array(shape[::-1]) / 2
    c, s = abs(np.cos(turn)), abs(np.sin(turn))
    extent = np.array([c * half[0] + s * half[1], s * half[0] + c * half[1]])
    room = extent - 0.35 * level.size
    counts = np.maximum(1, 1 + np.floor(2 * room / (level.spacing * level.size)).astype(int))
    x, y = (np.linspace(-r, r, n) if n > 1 else np.zeros(1) for r, n in zip(room, counts, strict=True))
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    centres = np.column_stack([xy, xy @ np.array(slope)])
    seen = project_points(geometry.take([low]), centres)[:, 0] - geometry.shift_px[low]
    inside = (np.abs(seen) <= half - 0.25 * level.size + 1e-6).all(axis=1)
    if not inside.any():
        inside = np.linalg.norm(xy, axis=1) == np.linalg.norm(xy, axis=1).min()
    return Layer(centres[inside], slope, level.size, thickness_px)


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
