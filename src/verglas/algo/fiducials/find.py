"""Gold beads in single images, found by a matched filter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import irfft2, next_fast_len, rfft2

from verglas.errors import UserError
from verglas.ops.binning import bin_images
from verglas.ops.peaks import find_peaks, refine_peaks

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

THRESHOLD_SD = 7.0
"""A bead's score is at least this many robust standard deviations of all scores ..."""

FAINTEST = 0.4
"""... and this fraction of the median of the ten best scores."""

MOST = 200
"""So many beads of an image are returned at most."""

_BRIGHTEST = 10
_SMALLEST_PX, _LARGEST_PX = 4.0, 40.0
_LARGEST_SEARCHED = 720
_SAMPLE = 200_000  # pixels are enough to tell the scatter


@dataclass(frozen=True, eq=False)
class Beads:
    """Beads of one image, best first.

    Parameters
    ----------
    positions_px
        `(k, 2)` xy from the centre `n // 2` of the image.
    scores
        `(k,)` in standard deviations of the background.
    diameter_px
        Of every bead.
    """

    positions_px: FloatArray
    scores: FloatArray
    diameter_px: float

    def __len__(self) -> int:
        return len(self.scores)


def find_beads(image: Image, diameter_px: float | None = None) -> Beads:
    """Find dark balls of one diameter.

    Parameters
    ----------
    image
        `(y, x)`, sampled so that a bead is at least some four pixels wide.
    diameter_px
        Of the beads; estimated from this image when none.

    Raises
    ------
    UserError
        When the diameter is below two pixels, or not below a quarter of the image.
    """
    diameter = estimate_diameter([image]) if diameter_px is None else float(diameter_px)
    if not 2 <= diameter < min(image.shape) / 4:
        raise UserError(
            f"`diameter_px` must be from 2 to a quarter of the image's {min(image.shape)} pixels; got {diameter:g}"
        )
    scores = torch.from_numpy(score_beads(image, diameter))
    places, heights = find_peaks(scores, MOST, 0.6 * diameter, THRESHOLD_SD)
    if not len(heights):
        return Beads(np.empty((0, 2)), np.empty(0), diameter)
    bright = float(heights[:_BRIGHTEST].median())
    keep = heights >= FAINTEST * bright
    refined, _ = refine_peaks(scores, places[keep])
    centre = np.array([n // 2 for n in image.shape])
    return Beads((refined.numpy() - centre)[:, ::-1].copy(), heights[keep].numpy(), diameter)


def estimate_diameter(images: Sequence[Image]) -> float:
    """Estimate the diameter of the beads in pixels: that whose matched filter stands out most from the background.

    Diameters from four to forty pixels are tried in steps of a sixth, then a twelfth on either side of the best,
    on images that are averaged in blocks to at most 720 pixels a side.

    Parameters
    ----------
    images
        One or a few images `(y, x)`.

    Raises
    ------
    UserError
        When there is no image, or one is smaller than 64 pixels.
    """
    if not images or min(min(image.shape) for image in images) < 64:
        raise UserError(
            "the diameter of beads is estimated from images of 64 x 64 pixels or more; there are none"
        )
    factor = -(-max(images[0].shape) // _LARGEST_SEARCHED)
    small = [bin_images(torch.as_tensor(np.asarray(image, np.float32)), factor).numpy() for image in images]
    largest = min(_LARGEST_PX, min(small[0].shape) / 8)
    count = max(2, round(np.log(largest / _SMALLEST_PX) / np.log(7 / 6)) + 1)
    diameters = np.geomspace(_SMALLEST_PX, largest, count).tolist()

    def judge(diameter: float) -> float:
        return float(np.median([_stand_out(image, diameter) for image in small]))

    merits = {diameter: judge(diameter) for diameter in diameters}
    best, half_step = max(merits, key=merits.__getitem__), (diameters[1] / diameters[0]) ** 0.5
    merits |= {diameter: judge(diameter) for diameter in (best / half_step, best * half_step)}
    return float(factor * max(merits, key=merits.__getitem__))


def _stand_out(image: Image, diameter_px: float) -> float:
    """Median score of the eight best beads."""
    _, heights = find_peaks(torch.from_numpy(score_beads(image, diameter_px)), 8, diameter_px, 5.0)
    return float(heights.median()) if len(heights) else 0.0


def score_beads(image: Image, diameter_px: float) -> FloatArray:
    """Score places by a matched filter of dark balls: mean of a ring around less that of the ball, in deviations.

    Parameters
    ----------
    image
        `(y, x)`; beads are darker than what is around them.
    diameter_px
        Of the ball; the ring reaches from 1.3 to 2 times as far.

    Returns
    -------
    ndarray
        `(y, x)`; zero median, and 1 for the scatter of the background.
    """
    radius = diameter_px / 2
    reach = int(np.ceil(2 * radius))
    shape = [next_fast_len(n + reach, real=True) for n in image.shape]
    kernel = np.zeros(shape, np.float32)
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(steps[:, None], steps)
    ball = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))
    ring = ((distance >= 1.3 * radius) & (distance <= 2 * radius)).astype(float)
    kernel[np.ix_(steps, steps)] = ring / ring.sum() - ball / ball.sum()
    edges = [(0, size - n) for size, n in zip(shape, image.shape, strict=True)]
    flat = np.asarray(image - image.mean(dtype=np.float64), np.float32)
    padded = np.pad(flat, edges, mode="reflect" if reach < min(image.shape) else "edge")
    scores = irfft2(rfft2(padded) * rfft2(kernel), shape)[: image.shape[0], : image.shape[1]]
    sample = scores.ravel()[:: max(1, scores.size // _SAMPLE)]
    middle = np.median(sample)
    spread = 1.4826 * np.median(np.abs(sample - middle))
    return np.asarray((scores - middle) / max(spread, 1e-12), np.float64)
