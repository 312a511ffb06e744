"""Which variables the beads can carry: held-out beads decide."""

from collections.abc import Iterator
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

LEVELS = (0, 1, 5, -1)
"""Nodes of a variable, from none to one a view. Only the axis has a common value that beads can tell."""

FOLDS = 5
"""Every fifth bead is held out in turn."""

FEWEST_FITTED = 4
"""Beads that must be left for the fit when others are held out."""

LEAST_GAIN = 0.01
"""A freer fit must lower the held-out residual by this fraction."""

_OVERDETERMINED = 3.0
_CUT = 5.0


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
    seen = np.isfinite(tracks_px[..., 0])
    residuals = np.full_like(tracks_px, np.nan)
    folds = np.arange(len(tracks_px)) % FOLDS
    for fold in range(min(FOLDS, len(tracks_px))):
        out = folds == fold
        if (seen[~out].sum(axis=1) >= FEWEST_VIEWS).sum() < FEWEST_FITTED:
            continue
        geometry = fit_bundle(tracks_px[~out], start, freedom).geometry
        left = locate_beads(tracks_px[out], geometry).residuals_px
        # A view whose every bead was held out has no shift.
        left[:, ~seen[~out].any(axis=0)] = np.nan
        residuals[out] = left
    return Trial(freedom, residuals)


def choose_freedom(tracks_px: FloatArray, start: ViewGeometry) -> list[Trial]:
    """Free one variable after the other, always that which makes the held-out beads fit best.

    It ends when none makes them fit better by a hundredth. A freedom is not tried when there are not three
    times as many numbers measured as unknowns.

    Returns
    -------
    list
        All trials, the chosen one first.
    """
    best = hold_out(tracks_px, start, Freedom())
    trials: list[Trial] = []
    limit = _CUT * float(np.nan_to_num(np.nanmedian(np.linalg.norm(best.residuals_px, axis=-1)), nan=1.0))
    while True:
        tried = [hold_out(tracks_px, start, freer) for freer in _free_more(best.freedom, tracks_px)]
        better = min([best, *tried], key=lambda trial: trial.merit(limit))
        trials += tried
        if not better.merit(limit) < (1 - LEAST_GAIN) * best.merit(limit):
            return [best, *(trial for trial in trials if trial is not best)]
        trials.append(best)
        best = better


def _free_more(freedom: Freedom, tracks_px: FloatArray) -> Iterator[Freedom]:
    """Freedoms with one variable freer, as far as there are measurements for them."""
    beads, views = tracks_px.shape[:2]
    measured = 2 * int(np.isfinite(tracks_px[..., 0]).sum())
    for name in VARIABLES:
        level = LEVELS.index(getattr(freedom, name)) + 1
        level += LEVELS[level : level + 1] == (1,) and name != "axis"
        if level < len(LEVELS):
            freer = replace(freedom, **{name: LEVELS[level]})
            if measured >= _OVERDETERMINED * (2 * views + 3 * beads + freer.count(views)):
                yield freer


def refine_alignment(tracks_px: FloatArray, start: ViewGeometry) -> tuple[BundleFit, list[Trial]]:
    """Choose the freedom by held-out beads and fit it to all of them."""
    trials = choose_freedom(tracks_px, start)
    return fit_bundle(tracks_px, start, trials[0].freedom), trials
