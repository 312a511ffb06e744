"""The tilt axis from common lines: summed across the axis, all views of a slab show the same line.

The central sections of all views meet in one line of Fourier space, along the tilt axis. So the views, each summed
across the true axis over what all of them show, differ only by shifts along it; across any other direction they
do not agree. Common lines tell the axis neither from its opposite nor, with it, the hand of the specimen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import affine_transform

from verglas.algo.tilt_alignment.coarse import order_outward
from verglas.algo.tilt_alignment.patches import whiten_view
from verglas.ops.binning import bin_images

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

LARGEST_SIDE = 128
"""Views are averaged in blocks to about this many pixels a side."""

CERTAIN = 3.0
"""A certainty below this says that the axis may be another one."""

_STEP_DEG, _FINE_STEP_DEG, _FINE_DEG = 2.0, 0.25, 4.0
_APART_DEG = 10.0
_SEARCH = 0.06
_WIDTH = 0.42


@dataclass(frozen=True, eq=False)
class AxisSearch:
    """What common lines say of the axis.

    Parameters
    ----------
    axis_deg
        From -90 to 90 degrees.
    certainty
        By how many standard deviations of the scores of all directions the best one stands above the best that
        is more than ten degrees away.
    angles_deg, scores
        `(k,)` directions that were tried, and the mean correlation of each view's line with those of the others.
    """

    axis_deg: float
    certainty: float
    angles_deg: FloatArray
    scores: FloatArray


def find_axis_by_lines(
    images: Sequence[Image], tilt_deg: FloatArray, shifts_px: FloatArray, angles_deg: FloatArray | None = None
) -> AxisSearch:
    """Search the direction across which the views agree best.

    Parameters
    ----------
    images
        n views `(y, x)`.
    tilt_deg
        `(n,)`.
    shifts_px
        `(n, 2)` rough xy shifts of the specimen's centre.
    angles_deg
        Directions to try; none is every second degree, with a finer search around the best.
    """
    factor = max(1, round(max(images[0].shape) / LARGEST_SIDE))
    views = [
        whiten_view(bin_images(torch.from_numpy(np.asarray(i, np.float32)), factor).numpy()) for i in images
    ]
    angles = np.arange(-90.0, 90.0, _STEP_DEG) if angles_deg is None else np.asarray(angles_deg, dtype=float)
    scores = np.array([score_axis(views, tilt_deg, shifts_px / factor, angle) for angle in angles])
    best = float(angles[scores.argmax()])
    near = best + np.arange(-_FINE_DEG, _FINE_DEG + 1e-6, _FINE_STEP_DEG)
    fine = np.array([score_axis(views, tilt_deg, shifts_px / factor, angle) for angle in near])
    away = np.abs((angles - best + 90) % 180 - 90) > _APART_DEG
    certainty = np.inf
    if away.any():
        spread = max(float(np.std(scores[away])), 1e-6)
        certainty = (float(scores.max()) - float(scores[away].max())) / spread
    top = _smooth_top(near, fine)
    return AxisSearch((top + 90) % 180 - 90, float(certainty), angles, scores)


def score_axis(
    views: Sequence[npt.NDArray[np.float32]], tilt_deg: FloatArray, shifts_px: FloatArray, axis_deg: float
) -> float:
    """Mean correlation of each view's line with the sum of the others, each moved along the axis to where it fits."""
    turn = np.deg2rad(axis_deg)
    across, along = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    length = min(views[0].shape)
    lines = []
    for view, tilt, shift in zip(views, np.deg2rad(tilt_deg), shifts_px, strict=True):
        matrix = np.stack([along, across], axis=1)[::-1]
        middle = np.array([n // 2 for n in view.shape]) + shift[::-1]
        offset = middle - matrix @ np.full(2, length // 2)
        turned = affine_transform(view, matrix, offset, (length, length), order=1)
        places = np.abs(np.arange(length) - length // 2) / (_WIDTH * length * np.cos(tilt))
        window = np.where(places < 1, 0.5 + 0.5 * np.cos(np.pi * np.clip(2 * places - 1, 0, 1)), 0.0)
        lines.append(turned @ window)
    edge = np.hanning(length)
    transforms = np.fft.rfft(np.array(lines) * edge)
    transforms /= np.linalg.norm(transforms, axis=1, keepdims=True) + 1e-12
    return _agree(transforms, tilt_deg, max(2, round(_SEARCH * length)), length)


def _agree(transforms: npt.NDArray[np.complex128], tilt_deg: FloatArray, reach: int, length: int) -> float:
    order = [view for view, _ in order_outward(tilt_deg)]
    steps = np.arange(-reach, reach + 1)
    moved = transforms.copy()
    total = moved[order[0]].copy()
    waves = np.exp(2j * np.pi * np.arange(transforms.shape[1]) / length * steps[:, None])
    for view in order[1:]:
        fits = (waves * (transforms[view] * total.conj())).real.sum(axis=1)
        moved[view] = transforms[view] * waves[fits.argmax()]
        total += moved[view]
    others = total - moved
    match = (moved * others.conj()).real.sum(axis=1) / (np.linalg.norm(others, axis=1) + 1e-12)
    return float(match.mean())


def _smooth_top(angles_deg: FloatArray, scores: FloatArray) -> float:
    """Top of the parabola through the scores, within the range."""
    near = np.abs(angles_deg - angles_deg[scores.argmax()]) <= 2.0
    bend, slope, _ = np.polyfit(angles_deg[near] - angles_deg[scores.argmax()], scores[near], 2)
    step = -slope / (2 * bend) if bend < 0 else 0.0
    return float(angles_deg[scores.argmax()] + np.clip(step, -2.0, 2.0))
