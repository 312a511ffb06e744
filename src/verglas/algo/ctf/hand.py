"""The hand: whether the defocus rises or falls with height, as the field on either side of the axis shows."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.joint import ViewFits, score_view, view_offsets
from verglas.algo.ctf.search import FilterBank, keep_rows

FloatArray = npt.NDArray[np.floating]

LEAST_SIGNIFICANCE = 4.0
"""Standard deviations by which one hand must be better than the other."""


@dataclass(frozen=True, eq=False)
class HandCheck:
    """What the field says of the hand.

    Parameters
    ----------
    significance
        Standard deviations by which +1 is better than -1.
    defocus_angstrom, below, axis, above
        `(f,)` score of the tiles below, near and above the axis, over their own defocus. Above is towards
        larger z; with hand +1 its peak lies at the larger defocus.
    gain, gain_score
        `(m,)` score when the slope of the defocus over the field is so many times that which the tilt says, its
        sign after hand +1.
    """

    significance: float
    defocus_angstrom: FloatArray
    below: FloatArray
    axis: FloatArray
    above: FloatArray
    gain: FloatArray
    gain_score: FloatArray

    @property
    def verdict(self) -> int:
        """Hand that the data show: +1, -1, or 0 when they cannot tell."""
        if abs(self.significance) < LEAST_SIGNIFICANCE:
            return 0
        return 1 if self.significance > 0 else -1


def compare_hands(banks: list[FilterBank], fits: dict[int, ViewFits]) -> float:
    """Tell by how many standard deviations hand +1 is better than -1.

    Each hand is taken at its own best defoci. Views and directions are independent, so where neither hand is right,
    the differences are as often of one sign as of the other, and their sum over the root of the sum of their
    squares has a standard deviation of one.
    """
    differences = []
    for i, bank in enumerate(banks):
        parts = {}
        for side, fit in fits.items():
            offsets = view_offsets(bank, side, fit.astigmatism[i])
            rows = bank.look_up(fit.defocus_angstrom[i : i + 1], offsets)[:, 0]
            sectors = len(np.unique(bank.direction_deg))
            parts[side] = rows.reshape(-1, sectors).sum(axis=0)
        differences.append(parts[1] - parts[-1])
    difference = np.array(differences)
    size = float(np.sqrt(np.square(difference).sum()))
    return float(difference.sum()) / size if size > 0 else 0.0


def check_hand(banks: list[FilterBank], fits: ViewFits, significance: float) -> HandCheck:
    """Gather the curves that show the hand.

    Parameters
    ----------
    banks
        One a view.
    fits
        Of the hand that was chosen.
    significance
        Of :func:`compare_hands`.
    """
    mean = float(fits.defocus_angstrom.mean())
    reach = 0.3 * mean
    steps = np.arange(-reach, reach + 1, 50.0)
    highest = max(float(np.abs(bank.depth_angstrom).max()) for bank in banks)
    shift = min(1500.0, 0.5 * highest)
    below, axis, above = (
        _score_height(banks, fits, height, 0.4 * shift, steps) for height in (-shift, 0.0, shift)
    )
    gain = np.linspace(-1.6, 1.6, 33)
    scores = np.array([_score_gain(banks, fits, one) for one in gain])
    return HandCheck(significance, mean + steps, below, axis, above, gain, scores)


def _score_height(
    banks: list[FilterBank], fits: ViewFits, height: float, tolerance: float, steps: FloatArray
) -> FloatArray:
    """Score of the tiles at about one height over the axis, each view's deviation from the mean taken off."""
    total, count = np.zeros(len(steps)), 0
    for bank, defocus, astigmatism in zip(banks, fits.defocus_angstrom, fits.astigmatism, strict=True):
        near = np.abs(bank.depth_angstrom - height) <= tolerance
        if near.any():
            total += score_view(keep_rows(bank, near), defocus + steps, 0, astigmatism)
            count += 1
    return total / math.sqrt(max(count, 1))


def _score_gain(banks: list[FilterBank], fits: ViewFits, gain: float) -> float:
    """Score of the series with another slope of the defocus, each view free to move a little along with it."""
    moves = np.arange(-300.0, 301.0, 50.0)
    scores = [
        score_view(bank, defocus + moves, gain, astigmatism).max()
        for bank, defocus, astigmatism in zip(banks, fits.defocus_angstrom, fits.astigmatism, strict=True)
    ]
    return float(np.sum(scores)) / math.sqrt(len(banks))
