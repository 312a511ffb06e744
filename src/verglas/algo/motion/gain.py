"""Gain references: turned as asked, and checked against what the frames themselves show."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float32]

ORIENTATIONS = tuple((turns, flip) for flip in ("none", "y") for turns in range(4))
"""The eight ways to put a square on itself: quarter turns, then perhaps a flip along y."""

LEAST_SCORE = 8.0
"""Standard deviations of chance from which a correlation counts."""


@dataclass(frozen=True)
class GainCheck:
    """Which orientation of a gain reference fits the frames.

    Parameters
    ----------
    score
        Correlation of the reference as given with the pattern in the frames, in standard deviations of chance.
    best
        `(turns, flip)` to apply to it as it is for the highest correlation.
    best_score
        That correlation; below `LEAST_SCORE` the frames show no trace of the reference.
    inverse_score
        That of the orientation given with the reciprocal of the reference.
    """

    score: float
    best: tuple[int, str]
    best_score: float
    inverse_score: float

    @property
    def is_wrong(self) -> bool:
        """Whether another orientation fits, and the one given does not."""
        return self.best_score >= LEAST_SCORE and self.best_score > 1.5 * max(self.score, 0.0) + 4.0


def turn_gain(gain: FloatArray, turns: int, flip: str) -> FloatArray:
    """Turn a reference by quarter turns clockwise as shown with y downwards (RELION's `--gain_rot`), then flip it.

    Parameters
    ----------
    gain
        `(y, x)`.
    turns
        Quarter turns.
    flip
        "none", "y" (upside down) or "x" (left to right).

    Raises
    ------
    UserError
        When `flip` is none of these.
    """
    if flip not in {"none", "y", "x"}:
        raise UserError(f"`gain_flip` must be none, y or x; got {flip!r}")
    turned = np.rot90(gain, -turns)
    if flip != "none":
        turned = turned[::-1] if flip == "y" else turned[:, ::-1]
    return np.ascontiguousarray(turned)


def check_gain(mean: FloatArray, gain: FloatArray) -> GainCheck:
    """Correlate the fine pattern of the mean raw frame with that of one over the reference in all orientations.

    A pixel that counts less has a larger gain, so counts follow 1 / gain. The specimen hardly varies from
    one pixel to the next, and what does is chance.

    Parameters
    ----------
    mean
        `(y, x)` mean or sum of the raw frames.
    gain
        `(y, x)` reference as it is to be used; pixels that are not positive are left out.

    Raises
    ------
    UserError
        When the sizes differ.
    """
    if mean.shape != gain.shape:
        raise UserError(
            f"the gain reference has (y, x) = {gain.shape}, the frames have {mean.shape}; expected one size"
        )
    for part in (1 / 4, 1 / 2):
        middle = tuple(slice(n // 2 - round(part * n / 2), n // 2 + round(part * n / 2)) for n in mean.shape)
        check = _correlate(mean[middle], gain[middle])
        # A few of the pixels tell when what they tell is clear.
        if check.best == (0, "none") and check.score >= 2 * LEAST_SCORE:
            return check
    return _correlate(mean, gain)


def _correlate(mean: FloatArray, gain: FloatArray) -> GainCheck:
    """Correlate the fine patterns in all orientations; the middle of an image is turned as the image is."""
    pattern = _fine(mean)
    usable = np.where(gain > 0, gain, np.median(gain[gain > 0]))
    reference = _fine(np.asarray(1 / usable, np.float32))
    scores = {}
    for turns, flip in ORIENTATIONS:
        turned = turn_gain(reference, turns, flip)
        if turned.shape == pattern.shape:
            scores[turns, flip] = float((pattern * turned).sum() / np.sqrt(pattern.size))
    # The reciprocal of a pattern of few percent is its negative.
    best = max(scores, key=lambda key: scores[key])
    given = scores[0, "none"]
    return GainCheck(given, best, scores[best], -given)


def _fine(image: FloatArray) -> FloatArray:
    """Take off the mean of 5 x 5 pixels around, cut outliers, and scale to unit deviation."""
    values = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    smooth = torch.nn.functional.avg_pool2d(values, 5, 1, 2, count_include_pad=False)
    fine = (values - smooth)[0, 0].numpy()
    sample = fine.ravel()[:: max(1, fine.size // 100_000)]
    limit = 6 * float(np.median(np.abs(sample - np.median(sample)))) / 0.6745
    fine = np.clip(fine, -limit, limit) if limit > 0 else fine
    fine = fine - fine.mean()
    return np.asarray(fine / (fine.std() or 1.0), np.float32)
