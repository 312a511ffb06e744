"""How high noise scores, and which threshold lets a stated number of false picks through."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import erfcinv, log_ndtr, ndtr

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


def fit_noise(heights: FloatArray, lower: float = 0.5, upper: float = 0.9) -> NoiseModel:
    """Fit the heights of maxima between two quantiles, above which there may be molecules.

    The likelihood is that of heights known to lie between the quantiles, so that what lies above does not count.

    Parameters
    ----------
    heights
        `(n,)` of maxima that keep the particle's distance from each other.
    lower, upper
        Quantiles between which they are taken to be noise.

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
    low, high = np.quantile(heights, (lower, upper))
    inside = np.sort(heights[(heights >= low) & (heights <= high)]).astype(float)
    scale = float(inside.mean())

    def cost(parameters: FloatArray) -> float:
        sigma, tries = scale * math.exp(parameters[0]), math.exp(parameters[1])
        z = inside / sigma
        density = math.log(tries / sigma) - 0.5 * z**2 + (tries - 1) * log_ndtr(z)
        ends = ndtr(np.array([low, high]) / sigma) ** tries
        return float(len(inside) * math.log(max(ends[1] - ends[0], 1e-300)) - density.sum())

    best = min(
        (
            minimize(
                cost, [math.log(1 / math.sqrt(2 * math.log(tries))), math.log(tries)], method="Nelder-Mead"
            )
            for tries in (1e2, 1e4)
        ),
        key=lambda found: float(found.fun),
    )
    sigma, tries = scale * math.exp(best.x[0]), math.exp(best.x[1])
    ends = ndtr(np.array([low, high]) / sigma) ** tries
    return NoiseModel(sigma, tries, len(inside) / float(ends[1] - ends[0]))


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
