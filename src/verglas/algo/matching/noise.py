"""How high noise scores, and which threshold lets a stated number of false picks through."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import erfcinv, expit, log_ndtr

from verglas.errors import UserError

FloatArray = npt.NDArray[np.floating[Any]]

_FEWEST_PEAKS = 50


@dataclass(frozen=True)
class NoiseModel:
    """Heights of the maxima that noise makes.

    Each is the largest of `tries` draws from a normal distribution of deviation `sigma`: one for every orientation
    and place about the maximum that is independent of the others.

    Parameters
    ----------
    sigma, tries
        Fitted.
    count
        Maxima that noise makes in all.
    """

    sigma: float
    tries: float
    count: float

    def expect_above(self, score: npt.ArrayLike) -> FloatArray:
        """Maxima of noise that are expected above a score."""
        logarithm = self.tries * log_ndtr(np.asarray(score, dtype=float) / self.sigma)
        return np.asarray(-self.count * np.expm1(logarithm))

    def find_threshold(self, false_positives: float) -> float:
        """Score that noise exceeds so many times in all."""
        if not false_positives > 0:
            raise UserError(f"`false_positives` must be positive; got {false_positives:g}")
        if false_positives >= self.count:
            return 0.0
        logarithm = np.log1p(-false_positives / self.count) / self.tries
        low, high = 0.0, 40.0 * self.sigma
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if log_ndtr(middle / self.sigma) < logarithm else (low, middle)
        return high


def fit_noise(heights: FloatArray) -> NoiseModel:
    """Fit the heights of maxima above a quantile as noise and one normal hill of molecules.

    Below the quantile the kinds of noise in a tomogram (vacuum, ice, cytoplasm) mix. Without the hill the fit would
    have to stop where molecules may begin, and be drawn out far to where the threshold is.

    Parameters
    ----------
    heights
        `(n,)` of maxima that keep the particle's distance from each other.

    Raises
    ------
    UserError
        When there are too few maxima.
    """
    if len(heights) < _FEWEST_PEAKS:
        raise UserError(
            f"only {len(heights)} maxima of the score tell how high noise scores; expected at least {_FEWEST_PEAKS}: "
            "search a larger region"
        )
    lowest, top = np.quantile(heights, (_FITTED_FROM, _LOWEST_HILL)).astype(float)
    values = np.sort(heights[heights >= lowest]).astype(float)
    mixture = _Mixture(values, float(lowest), float(top))
    best = min(
        (
            minimize(
                mixture.cost,
                mixture.begin(tries, rise),
                method="Nelder-Mead",
                options={"maxiter": 4000, "maxfev": 4000, "xatol": 1e-4, "fatol": 1e-4},
            )
            for tries in (1e2, 1e4)
            for rise in (0.1, 0.5)
        ),
        key=lambda found: float(found.fun),
    )
    return mixture.read(best.x)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """Likelihood of sorted heights, all above `lowest`, as noise and a hill whose mean is above `top`."""

    values: FloatArray
    lowest: float
    top: float

    def begin(self, tries: float, rise: float) -> FloatArray:
        """Parameters: logarithms of sigma and tries, logit of the hill's share, logarithms of rise and width."""
        return np.array(
            [-0.5 * math.log(2 * math.log(tries)), math.log(tries), -3.0, math.log(rise), math.log(_WIDTH)]
        )

    def cost(self, parameters: FloatArray) -> float:
        """Negative logarithm of the likelihood, and of a loose prior on the hill's width."""
        sigma, tries = self._noise(parameters)
        z = self.values / sigma
        noise = math.log(tries / sigma) - 0.5 * z**2 + (tries - 1) * log_ndtr(z)
        noise -= math.log(max(self._above(sigma, tries), 1e-300))
        mean = self.top + self._scale * math.exp(parameters[3])
        width = (mean - self.lowest) * min(max(math.exp(parameters[4]), 0.05), 0.5)
        hill = -0.5 * ((self.values - mean) / width) ** 2 - math.log(width)
        hill -= log_ndtr((mean - self.lowest) / width)
        share = expit(parameters[2])
        likelihood = np.logaddexp(math.log1p(-share) + noise, np.log(max(share, 1e-300)) + hill).sum()
        return float(0.5 * ((parameters[4] - math.log(_WIDTH)) / 0.7) ** 2 - likelihood)

    def read(self, parameters: FloatArray) -> NoiseModel:
        sigma, tries = self._noise(parameters)
        noise = len(self.values) * (1 - float(expit(parameters[2])))
        return NoiseModel(sigma, tries, noise / self._above(sigma, tries))

    @property
    def _scale(self) -> float:
        return float(self.values[: len(self.values) // 2 + 1].mean())

    def _noise(self, parameters: FloatArray) -> tuple[float, float]:
        tries = math.exp(min(max(parameters[1], math.log(_FEWEST_TRIES)), math.log(_MOST_TRIES)))
        return self._scale * math.exp(parameters[0]), tries

    def _above(self, sigma: float, tries: float) -> float:
        """Share of the maxima of noise that are above the lowest that is fitted."""
        return float(-np.expm1(tries * log_ndtr(self.lowest / sigma)))


_FEWEST_TRIES = 20.0
_MOST_TRIES = 1e7
_FITTED_FROM = 0.7
"""Quantile of the heights above which they are fitted."""

_LOWEST_HILL = 0.97
"""Quantile above which the middle of the hill lies."""

_WIDTH = 0.25
"""Deviation of the hill in units of its height above the lowest value fitted, as first taken."""


def find_gap(scores: FloatArray) -> float | None:
    """Find the valley below the highest hill of scores, where that hill clearly stands apart.

    It does when the density of the scores is three times lower in the valley than in the hill and than somewhere
    below, when a tenth of the scores lie above, and when the means on both sides differ by four times the root
    mean square of the deviations there. Those of any single hill, even of a flat one, differ by three and a half.

    Parameters
    ----------
    scores
        `(n,)` of what rises above the noise.

    Returns
    -------
    float or None
        None where there is one hill, or too few scores to tell.
    """
    values = np.sort(scores.astype(float))
    fewest = max(_FEWEST_IN_HILL, math.ceil(_LEAST_SHARE * len(values)))
    if len(values) < 2 * _FEWEST_IN_HILL or values[0] == values[-1]:
        return None
    grid = np.linspace(values[0], values[-1], 256)
    width = _SMOOTHING * values.std()
    density = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).sum(axis=1)
    below = np.maximum.accumulate(density)
    above = np.maximum.accumulate(density[::-1])[::-1]
    deep = density * _DEPTH <= np.minimum(below, above)
    for place in grid[deep][np.argsort(density[deep], kind="stable")]:
        low, high = values[values < place], values[values >= place]
        if len(high) < fewest or len(low) < _FEWEST_IN_HILL:
            continue
        if high.mean() - low.mean() >= _APART * math.sqrt((low.var() + high.var()) / 2):
            return float(place)
    return None


_FEWEST_IN_HILL = 3
_LEAST_SHARE = 0.1
_SMOOTHING = 0.15
_DEPTH = 3.0
_APART = 4.0


def expected_count_threshold(expected: int, voxels: int, orientations: int, deviation: float) -> float:
    """Threshold by emClarity's rule: that which a tenth of the expected number would exceed by chance.

    T = √2 erfcinv(2 ⌈N / 10⌉ / (voxels · orientations)) deviations of all scores, each counted as independent.

    Parameters
    ----------
    expected
        Number of molecules that are expected, N.
    voxels, orientations
        How many were searched.
    deviation
        Standard deviation of all scores.

    Raises
    ------
    UserError
        When a number is not positive.
    """
    if min(expected, voxels, orientations) < 1 or not deviation > 0:
        raise UserError(
            f"`expected`, `voxels`, `orientations` and `deviation` must be positive; got {expected}, {voxels}, "
            f"{orientations} and {deviation:g}"
        )
    return independent_threshold(math.ceil(0.1 * expected), voxels, orientations, deviation)


def independent_threshold(false_positives: float, voxels: int, orientations: int, deviation: float) -> float:
    """Threshold that so many scores exceed by chance when all are independent and normal.

    Parameters
    ----------
    false_positives
        Scores that may.
    voxels, orientations
        How many were searched.
    deviation
        Standard deviation of all scores.
    """
    share = 2 * false_positives / (float(voxels) * orientations)
    return float(math.sqrt(2) * erfcinv(min(share, 1.0)) * deviation)
