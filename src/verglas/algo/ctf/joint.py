"""Defocus and astigmatism of every view of a series, from all views together.

A view of 3 e/Å² says little by itself. Views are joined by what is known of a stage: their defoci follow a specimen
that turns at some distance from the axis, and scatter around that by Student's t; their astigmatism scatters
normally around that of the series. How wide either scatter is comes from the series itself by
expectation-maximisation, so weak views follow the others and strong ones do not.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.search import FilterBank, astigmatism_offsets

FloatArray = npt.NDArray[np.floating]

ASTIGMATISM_REACH = 1500.0
"""Half of the largest difference between defocus u and v, Å."""

_FREEDOM = 4.0
_USUAL_SPREAD, _USUAL_VIEWS = 200.0, 10  # of autofocus, Å; and how many views that knowledge is worth
_LEAST_ASTIGMATISM_SPREAD = 10.0
_OFF_AXIS = 5000.0
_FEWEST_FOR_TREND = 7


@dataclass(frozen=True, eq=False)
class ViewFits:
    """Defocus of each view.

    Parameters
    ----------
    defocus_angstrom, error_angstrom
        `(n,)` posterior mean and standard deviation at the specimen's centre.
    astigmatism
        `(n, 2)` a and b of the defocus a cos 2α + b sin 2α along the direction α, Å.
    trend_angstrom
        `(n,)` what the views scatter around.
    """

    defocus_angstrom: FloatArray
    error_angstrom: FloatArray
    astigmatism: FloatArray
    trend_angstrom: FloatArray


def score_view(
    bank: FilterBank, defocus_angstrom: FloatArray, side: float, astigmatism: FloatArray
) -> FloatArray:
    """Correlation `(d,)` of a view, in standard deviations of its noise.

    Parameters
    ----------
    bank
        Of the view.
    defocus_angstrom
        `(d,)` tried.
    side
        Change of the defocus with height: the hand, or 0 for none.
    astigmatism
        `(2,)`.
    """
    return bank.score(defocus_angstrom, view_offsets(bank, side, astigmatism))


def view_offsets(bank: FilterBank, side: float, astigmatism: FloatArray) -> FloatArray:
    """Defocus of each row less that of the view, `(r,)`."""
    return np.asarray(side * bank.depth_angstrom + astigmatism_offsets(bank.direction_deg, astigmatism))


def fit_views(
    banks: list[FilterBank], tilt_deg: FloatArray, centre_angstrom: float, side: int, reach_angstrom: float
) -> ViewFits:
    """Fit all views for one hand.

    Parameters
    ----------
    banks
        One a view.
    tilt_deg
        `(n,)`, for the trend.
    centre_angstrom
        Mean defocus of the series.
    side
        The hand.
    reach_angstrom
        How far a view may be from the mean.
    """
    count = len(banks)
    common: FloatArray = np.zeros(2)
    for _ in range(3):
        fits = _fit_defocus(
            banks, tilt_deg, centre_angstrom, side, np.tile(common, (count, 1)), reach_angstrom
        )
        common = _fit_common_astigmatism(banks, fits.defocus_angstrom, side, common)
    own = _fit_own_astigmatism(banks, fits.defocus_angstrom, side, common)
    return _fit_defocus(banks, tilt_deg, centre_angstrom, side, own, reach_angstrom)


def _fit_defocus(
    banks: list[FilterBank],
    tilt_deg: FloatArray,
    centre: float,
    side: int,
    astigmatism: FloatArray,
    reach: float,
) -> ViewFits:
    """Posterior of each view's defocus, with the prior's trend and width found from all views."""
    steps = np.arange(-reach, reach + 1, 20.0)
    scores = np.array(
        [score_view(bank, centre + steps, side, own) for bank, own in zip(banks, astigmatism, strict=True)]
    )
    # The strength of a view's rings is unknown; its best value leaves half the squared score.
    likelihood = 0.5 * np.square(np.maximum(scores, 0))
    terms = _trend_terms(tilt_deg)
    trend: FloatArray = np.zeros(len(banks))
    spread = reach / 4
    for _ in range(40):
        deviation = (steps - trend[:, None]) / spread
        posterior = _normalise(likelihood - 0.5 * (_FREEDOM + 1) * np.log1p(np.square(deviation) / _FREEDOM))
        trust = posterior * (_FREEDOM + 1) / (_FREEDOM + np.square(deviation))
        weight = trust.sum(axis=1)
        trend = _fit_trend(terms, trust @ steps / weight, weight / spread**2)
        square = float((trust * np.square(steps - trend[:, None])).sum())
        known = square + _USUAL_VIEWS * _USUAL_SPREAD**2
        spread = min(math.sqrt(known / (len(banks) + _USUAL_VIEWS)), reach)
    mean = posterior @ steps
    error = np.sqrt((posterior * np.square(steps - mean[:, None])).sum(axis=1))
    return ViewFits(centre + mean, error, astigmatism, centre + trend)


def _trend_terms(tilt_deg: FloatArray) -> FloatArray:
    """`(n, t)` heights of points beside and above the axis as they turn with the stage; and a constant."""
    turn = np.deg2rad(tilt_deg)
    terms = np.stack([np.ones_like(turn), np.sin(turn), 1 - np.cos(turn)], axis=1)
    return terms if len(turn) >= _FEWEST_FOR_TREND else terms[:, :1]


def _fit_trend(terms: FloatArray, values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted least squares, with a specimen that is more likely near the axis than far from it."""
    ridge = np.diag([0.0, *[_OFF_AXIS**-2] * (terms.shape[1] - 1)])
    normal = (terms * weights[:, None]).T @ terms + ridge
    return np.asarray(terms @ np.linalg.solve(normal, (terms * weights[:, None]).T @ values))


def _fit_common_astigmatism(
    banks: list[FilterBank], defocus: FloatArray, side: int, start: FloatArray
) -> FloatArray:
    """Search in two dimensions, coarse to fine, for the astigmatism that all views share."""
    rows = _stack_rows(banks, defocus, side)
    best, score = start, rows.total(start)
    if not start.any():
        ring = np.arange(8) * np.pi / 4
        for radius in (200.0, 400.0, 800.0, 1200.0):
            for turn in ring:
                point = radius * np.array([np.cos(turn), np.sin(turn)])
                if (value := rows.total(point)) > score:
                    best, score = point, value
    step = 160.0
    while step > 4:
        tried = [best + step * np.array(move) for move in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        values = [rows.total(point) if np.hypot(*point) < ASTIGMATISM_REACH else -np.inf for point in tried]
        if max(values) > score:
            best, score = tried[int(np.argmax(values))], max(values)
        else:
            step /= 2
    return best


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of all views in one, which are looked up much faster than one view after the other."""

    correlation: FloatArray
    norm: FloatArray
    weight: FloatArray
    view: npt.NDArray[np.intp]
    direction_deg: FloatArray
    place: FloatArray
    step: float

    def total(self, astigmatism: FloatArray) -> float:
        """Sum of the scores of all views."""
        place = self.place + astigmatism_offsets(self.direction_deg, astigmatism) / self.step
        place = np.clip(place, 0, self.norm.shape[1] - 1.000001)
        low = place.astype(int)
        part, rows = place - low, np.arange(len(low))
        values = (1 - part) * self.correlation[rows, low] + part * self.correlation[rows, low + 1]
        norms = (1 - part) * self.norm[self.view, low] + part * self.norm[self.view, low + 1]
        norm = np.bincount(self.view, self.weight * norms)
        return float((np.bincount(self.view, values) / np.sqrt(norm)).sum())


def _stack_rows(banks: list[FilterBank], defocus: FloatArray, side: int) -> _Rows:
    view = np.repeat(np.arange(len(banks)), [len(bank.weight) for bank in banks])
    depth = np.concatenate([bank.depth_angstrom for bank in banks])
    grid = banks[0].grid
    return _Rows(
        correlation=np.concatenate([bank.correlation for bank in banks]),
        norm=np.stack([bank.norm for bank in banks]),
        weight=np.concatenate([bank.weight for bank in banks]),
        view=view,
        direction_deg=np.concatenate([bank.direction_deg for bank in banks]),
        place=(defocus[view] + side * depth - grid.start) / grid.step,
        step=grid.step,
    )


def _fit_own_astigmatism(
    banks: list[FilterBank], defocus: FloatArray, side: int, common: FloatArray
) -> FloatArray:
    """`(n, 2)` posterior mean of each view's astigmatism, its defocus free to move along."""
    moves = np.arange(-300.0, 301.0, 50.0)
    grid = np.stack(np.meshgrid(*[np.arange(-400.0, 401.0, 100.0)] * 2), axis=-1).reshape(-1, 2)
    scores = np.array(
        [
            [score_view(bank, place + moves, side, common + point) for point in grid]
            for bank, place in zip(banks, defocus, strict=True)
        ]
    )
    likelihood = 0.5 * np.square(np.maximum(scores, 0)).max(axis=2)
    spread = 100.0
    for _ in range(20):
        posterior = _normalise(likelihood - 0.5 * np.square(grid / spread).sum(axis=1))
        square = float((posterior * np.square(grid).sum(axis=1)).sum() / (2 * len(banks)))
        spread = max(math.sqrt(square), _LEAST_ASTIGMATISM_SPREAD)
    return np.asarray(common + posterior @ grid)


def _normalise(logarithm: FloatArray) -> FloatArray:
    """Turn logarithms `(n, p)` into probabilities that sum to one in each row."""
    likely = np.exp(logarithm - logarithm.max(axis=1, keepdims=True))
    return np.asarray(likely / likely.sum(axis=1, keepdims=True))
