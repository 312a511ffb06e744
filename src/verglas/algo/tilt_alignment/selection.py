"""Which variables the beads can carry: held-out beads decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.bundle import BundleFit, Freedom, ViewGeometry, fit_bundle, locate_beads

FloatArray = npt.NDArray[np.float64]

FREEDOMS = (
    Freedom(axis=0),
    Freedom(axis=1),
    Freedom(axis=5),
    Freedom(axis=5, tilt=5),
    Freedom(axis=5, tilt=5, scale=5),
    Freedom(axis=-1, tilt=5, scale=5),
    Freedom(axis=-1, tilt=-1, scale=5),
    Freedom(axis=-1, tilt=-1, scale=-1),
)
"""From few unknowns to many."""

FOLDS = 5
"""Every fifth bead is held out in turn."""

FEWEST_FITTED = 4
"""Beads that must be left for the fit when others are held out."""

LEAST_GAIN = 0.01
"""A freer fit must lower the held-out residual by this fraction."""

_OVERDETERMINED = 3.0


@dataclass(frozen=True, eq=False)
class Trial:
    """One freedom, tried.

    Parameters
    ----------
    freedom
        What was fitted.
    held_out_px
        RMS in x and y of the beads that the views' fit had not seen, over all measurements, each bead's own
        place fitted; NaN where too few beads allow none to be held out.
    held_out_robust_px
        The same without outliers.
    """

    freedom: Freedom
    held_out_px: tuple[float, float]
    held_out_robust_px: tuple[float, float]

    @property
    def merit(self) -> float:
        """Root of the sum of both squares, without outliers; less is better."""
        return float(np.hypot(*self.held_out_robust_px))


def hold_out(tracks_px: FloatArray, start: ViewGeometry, freedom: Freedom) -> Trial:
    """Fit without every fifth bead in turn, and measure how far the beads that were left out lie off.

    Parameters
    ----------
    tracks_px
        `(beads, n, 2)`; NaN where a bead was not measured.
    start
        Nominal geometry with rough shifts.
    freedom
        What is fitted beside the shifts.
    """
    folds = np.arange(len(tracks_px)) % FOLDS
    residuals, used = [np.empty((0, 2))], [np.empty(0, bool)]
    for fold in range(FOLDS):
        out = folds == fold
        if not out.any() or (~out).sum() < FEWEST_FITTED:
            continue
        geometry = fit_bundle(tracks_px[~out], start, freedom).geometry
        left = locate_beads(tracks_px[out], geometry)
        # A view whose every bead was held out has no shift.
        measured = np.isfinite(left.residuals_px[..., 0]) & np.isfinite(tracks_px[~out, :, 0]).any(axis=0)
        residuals.append(left.residuals_px[measured])
        used.append(left.used[measured])
    joined, inliers = np.concatenate(residuals), np.concatenate(used)
    return Trial(freedom, _rms(joined), _rms(joined[inliers]))


def choose_freedom(
    tracks_px: FloatArray, start: ViewGeometry, freedoms: Sequence[Freedom] = FREEDOMS
) -> list[Trial]:
    """Try freedoms from few unknowns to many; the best is the last that made the held-out beads fit better.

    A freedom is not tried when there are not three times as many numbers measured as unknowns.

    Returns
    -------
    list
        All trials, the best one first.
    """
    seen = np.isfinite(tracks_px[..., 0])
    measured = 2 * int(seen.sum())
    best: list[Trial] = []
    for freedom in freedoms:
        unknowns = 2 * len(start) + 3 * len(tracks_px) + freedom.count(len(start))
        if best and measured < _OVERDETERMINED * unknowns:
            continue
        trial = hold_out(tracks_px, start, freedom)
        if not best or trial.merit < (1 - LEAST_GAIN) * best[0].merit:
            best.insert(0, trial)
        else:
            best.append(trial)
    return best


def refine_alignment(tracks_px: FloatArray, start: ViewGeometry) -> tuple[BundleFit, list[Trial]]:
    """Choose the freedom by held-out beads and fit it to all of them."""
    trials = choose_freedom(tracks_px, start)
    return fit_bundle(tracks_px, start, trials[0].freedom), trials


def _rms(residuals: FloatArray) -> tuple[float, float]:
    if not len(residuals):
        return np.nan, np.nan
    x, y = np.sqrt((residuals**2).mean(axis=0))
    return float(x), float(y)
