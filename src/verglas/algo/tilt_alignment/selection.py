"""Which variables the beads can carry: held-out beads decide."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.bundle import (
    FEWEST_VIEWS,
    VARIABLES,
    BundleFit,
    Freedom,
    fit_bundle,
    locate_beads,
)
from verglas.algo.tilt_alignment.geometry import ViewGeometry

FloatArray = npt.NDArray[np.float64]

FOLDS = 5
"""Every fifth bead is held out in turn."""

FEWEST_FITTED = 4
"""Beads that must be left for the fit when others are held out."""

LEAST_GAIN = 0.01
"""A freer fit must lower the held-out residual by this fraction."""

_OVERDETERMINED = 3.0
_CUT = 5.0
_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Trial:
    """One freedom, tried.

    Parameters
    ----------
    freedom
        What was fitted.
    residuals_px
        `(beads, n, 2)` of each bead in a fit of the views that had not seen it, its own place fitted; NaN where
        there is none.
    """

    freedom: Freedom
    residuals_px: FloatArray

    @property
    def held_out_px(self) -> tuple[float, float]:
        """RMS in x and y over all measurements, outliers too; NaN when too few beads allow none to be held out."""
        residuals = self.residuals_px[np.isfinite(self.residuals_px[..., 0])]
        if not len(residuals):
            return np.nan, np.nan
        x, y = np.sqrt((residuals**2).mean(axis=0))
        return float(x), float(y)

    def merit(self, limit_px: float) -> float:
        """Root mean square of the lengths, those above the limit cut to it; less is better."""
        lengths = np.linalg.norm(self.residuals_px[np.isfinite(self.residuals_px[..., 0])], axis=-1)
        return float(np.sqrt((np.minimum(lengths, limit_px) ** 2).mean())) if len(lengths) else np.inf


def hold_out(
    tracks_px: FloatArray, start: ViewGeometry, freedom: Freedom, begin: ViewGeometry | None = None
) -> Trial:
    """Fit without every fifth bead in turn, and measure how far the beads that were left out lie off.

    Parameters
    ----------
    tracks_px
        `(beads, n, 2)`; NaN where a bead was not measured.
    start
        Nominal geometry with rough shifts.
    freedom
        What is fitted beside the shifts.
    begin
        Where the fits begin; none is the start.
    """
    seen = np.isfinite(tracks_px[..., 0])
    residuals = np.full_like(tracks_px, np.nan)
    folds = np.arange(len(tracks_px)) % FOLDS
    for fold in range(min(FOLDS, len(tracks_px))):
        out = folds == fold
        if (seen[~out].sum(axis=1) >= FEWEST_VIEWS).sum() < FEWEST_FITTED:
            continue
        geometry = fit_bundle(tracks_px[~out], start, freedom, begin=begin, rounds=_ROUNDS).geometry
        left = locate_beads(tracks_px[out], geometry).residuals_px
        # A view whose every bead was held out has no shift.
        left[:, ~seen[~out].any(axis=0)] = np.nan
        residuals[out] = left
    return Trial(freedom, residuals)


def choose_freedom(
    tracks_px: FloatArray, start: ViewGeometry, variables: Sequence[str] = VARIABLES
) -> list[Trial]:
    """Free one variable after the other, always that which makes the held-out beads fit best.

    It ends when none makes them fit better by a hundredth. What made them fit worse once is not tried again. A
    freedom is not tried when there are not three times as many numbers measured as unknowns.

    Returns
    -------
    list
        All trials, the chosen one first.
    """
    geometry = fit_bundle(tracks_px, start, Freedom()).geometry
    best = hold_out(tracks_px, start, Freedom(), geometry)
    trials = [best]
    limit = _CUT * _typical(best.residuals_px)
    steps = {(name, level) for name in variables for level in (5, -1)}
    while True:
        tried: dict[tuple[str, int], Trial] = {}
        for name, level in sorted(steps):
            freer = replace(best.freedom, **{name: level})
            if getattr(best.freedom, name) not in {level, -1} and _can_carry(tracks_px, freer):
                tried[name, level] = hold_out(tracks_px, start, freer, geometry)
        trials += tried.values()
        better = min(tried.values(), key=lambda trial: trial.merit(limit), default=best)
        if not better.merit(limit) < (1 - LEAST_GAIN) * best.merit(limit):
            return [best, *(trial for trial in trials if trial is not best)]
        steps = {
            step for step, trial in tried.items() if trial.merit(limit) < (1 + LEAST_GAIN) * best.merit(limit)
        }
        best = better
        geometry = fit_bundle(tracks_px, start, best.freedom, begin=geometry).geometry


def _can_carry(tracks_px: FloatArray, freedom: Freedom) -> bool:
    """Whether there are measurements enough."""
    beads, views = tracks_px.shape[:2]
    measured = 2 * int(np.isfinite(tracks_px[..., 0]).sum())
    return bool(measured >= _OVERDETERMINED * (2 * views + 3 * beads + freedom.count(views)))


def _typical(residuals_px: FloatArray) -> float:
    """Median length; 1 where nothing was held out."""
    lengths = np.linalg.norm(residuals_px[np.isfinite(residuals_px[..., 0])], axis=-1)
    return float(np.median(lengths)) if len(lengths) else 1.0


def refine_alignment(
    tracks_px: FloatArray, start: ViewGeometry, variables: Sequence[str] = VARIABLES
) -> tuple[BundleFit, list[Trial]]:
    """Choose the freedom by held-out beads and fit it to all of them."""
    trials = choose_freedom(tracks_px, start, variables)
    return fit_bundle(tracks_px, start, trials[0].freedom), trials
