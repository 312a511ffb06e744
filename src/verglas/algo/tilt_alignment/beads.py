"""Gold beads in single views: found by a matched filter, centred by a fit of their own mean profile."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import map_coordinates

from verglas.errors import UserError
from verglas.ops.peaks import find_peaks, refine_peaks

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

THRESHOLD_SD = 7.0
"""A bead's score is at least this many robust standard deviations of all scores ..."""

FAINTEST = 0.4
"""... and this fraction of the median of the ten best scores."""

_BRIGHTEST = 10


@dataclass(frozen=True, eq=False)
class Beads:
    """Beads of one view, best first.

    Parameters
    ----------
    positions_px
        `(k, 2)` xy from the centre `n // 2` of the image.
    scores
        `(k,)` in standard deviations of the background.
    """

    positions_px: FloatArray
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.scores)


def score_beads(image: Image, diameter_px: float) -> FloatArray:
    """Matched filter of dark discs: mean of a ring around less mean of a disc, in robust standard deviations.

    Parameters
    ----------
    image
        `(y, x)`; beads are darker than what is around them.
    diameter_px
        Of the disc; the ring reaches from 1.3 to 2 times as far.

    Returns
    -------
    ndarray
        `(y, x)`; zero mean, and 1 for the scatter of the background.
    """
    radius = diameter_px / 2
    reach = int(np.ceil(2 * radius))
    shape = [next_fast_len(n + reach, real=True) for n in image.shape]
    kernel = np.zeros(shape)
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(steps[:, None], steps)
    disc = np.clip(radius + 0.5 - distance, 0, 1)
    ring = ((distance >= 1.3 * radius) & (distance <= 2 * radius)).astype(float)
    kernel[np.ix_(steps, steps)] = ring / ring.sum() - disc / disc.sum()
    edges = [(0, size - n) for size, n in zip(shape, image.shape, strict=True)]
    padded = np.pad(image - np.median(image), edges, mode="reflect" if reach < min(image.shape) else "edge")
    scores = irfft2(rfft2(padded) * rfft2(kernel), shape)[: image.shape[0], : image.shape[1]]
    middle = np.median(scores)
    spread = 1.4826 * np.median(np.abs(scores - middle))
    return np.asarray((scores - middle) / max(spread, 1e-12))


def find_beads(image: Image, diameter_px: float, *, threshold_sd: float = THRESHOLD_SD, most: int = 200) -> Beads:
    """Find dark discs of one diameter.

    Parameters
    ----------
    image
        `(y, x)` view, sampled so that a bead is at least some four pixels wide.
    diameter_px
        Of the beads.
    threshold_sd
        Least score of a bead.
    most
        So many are returned at most.

    Raises
    ------
    UserError
        When the diameter is below two pixels, or not below a quarter of the image.
    """
    if not 2 <= diameter_px < min(image.shape) / 4:
        raise UserError(
            f"`diameter_px` must be from 2 to a quarter of the image's {min(image.shape)} pixels; got {diameter_px:g}"
        )
    scores = torch.from_numpy(score_beads(image, diameter_px))
    places, heights = find_peaks(scores, most, 0.6 * diameter_px, threshold_sd)
    if not len(heights):
        return Beads(np.empty((0, 2)), np.empty(0))
    bright = float(heights[:_BRIGHTEST].median())
    keep = heights >= FAINTEST * bright
    refined, _ = refine_peaks(scores, places[keep])
    centre = np.array([n // 2 for n in image.shape])
    return Beads((refined.numpy() - centre)[:, ::-1].copy(), heights[keep].numpy())


def estimate_diameter(images: list[Image], smallest_px: float = 4.0, largest_px: float = 40.0) -> float:
    """Diameter of the beads: that whose matched filter stands out most from the background.

    Parameters
    ----------
    images
        A few views `(y, x)`.
    smallest_px, largest_px
        Range that is searched, in steps of a twelfth.

    Returns
    -------
    float
        Pixels.
    """
    largest_px = min(largest_px, min(images[0].shape) / 8)
    count = max(2, round(np.log(largest_px / smallest_px) / np.log(13 / 12)))
    diameters = np.geomspace(smallest_px, largest_px, count)
    merits = []
    for diameter in diameters:
        heights = []
        for image in images:
            scores = torch.from_numpy(score_beads(image, float(diameter)))
            _, found = find_peaks(scores, 8, float(diameter), 4.0)
            heights.append(float(found.median()) if len(found) else 0.0)
        merits.append(np.median(heights))
    return float(diameters[int(np.argmax(merits))])


def measure_profile(patches: FloatArray, reach: int) -> FloatArray:
    """Mean bead as a function of the distance from its centre.

    Parameters
    ----------
    patches
        `(k, 2 reach + 1, 2 reach + 1)` patches with a bead in the middle.
    reach
        Half a side.

    Returns
    -------
    ndarray
        `(2 reach + 1,)` values at distances of half pixels, 0 far out, 1 at the centre.
    """
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(steps[:, None], steps).ravel()
    border = distance > reach - 1.5
    flat = patches.reshape(len(patches), -1)
    flat = flat - np.median(flat[:, border], axis=1, keepdims=True)
    mean = np.median(flat, axis=0)
    place = 2 * distance
    index = np.minimum(place.round().astype(int), 2 * reach + 2)
    total = np.bincount(index, mean, 2 * reach + 3)
    weight = np.bincount(index, minlength=2 * reach + 3)
    filled = np.flatnonzero(weight)
    profile = np.interp(np.arange(2 * reach + 1), filled, (total[filled] / weight[filled]))
    profile = profile - profile[-3:].mean()
    return np.asarray(profile / profile[0])


def cut_patches(image: Image, positions_px: FloatArray, reach: int) -> FloatArray:
    """Patches `(k, 2 reach + 1, 2 reach + 1)` around places between the pixels, by cubic splines."""
    centre = np.array([n // 2 for n in image.shape], dtype=float)
    steps = np.arange(-reach, reach + 1)
    yx = positions_px[:, ::-1] + centre
    rows = yx[:, 0, None, None] + steps[None, :, None] + 0 * steps[None, None, :]
    columns = yx[:, 1, None, None] + steps[None, None, :] + 0 * steps[None, :, None]
    return np.asarray(map_coordinates(image, [rows, columns], order=3, mode="nearest", output=float))


def centre_beads(
    image: Image, positions_px: FloatArray, profile: FloatArray, reach: int, *, rounds: int = 8
) -> tuple[FloatArray, FloatArray]:
    """Centre beads by a least-squares fit of their profile on a sloping background, by Gauss and Newton.

    Parameters
    ----------
    image
        `(y, x)` view.
    positions_px
        `(k, 2)` rough xy from the image's centre, within a radius or so.
    profile
        From :func:`measure_profile`.
    reach
        Half the side of the patch that is fitted.
    rounds
        Steps.

    Returns
    -------
    tuple
        `(k, 2)` positions and `(k,)` correlation coefficients of bead and fit; what ran away, or lies too near
        an edge, has a coefficient of 0.
    """
    centre = np.array([n // 2 for n in image.shape], dtype=float)
    high = np.array(image.shape, dtype=float) - 1 - reach - centre
    places, scores = positions_px.astype(float).copy(), np.zeros(len(positions_px))
    for row, place in enumerate(positions_px):
        here = np.rint(place)
        if (here < reach - centre[::-1]).any() or (here > high[::-1]).any():
            continue
        y0, x0 = (here[::-1] + centre).astype(int)
        patch = image[y0 - reach : y0 + reach + 1, x0 - reach : x0 + reach + 1].astype(float)
        moved, score = _fit_profile(patch, place - here, profile, reach, rounds)
        if np.abs(moved + here - place).max() < reach / 2:
            places[row], scores[row] = moved + here, score
    return places, scores


def _fit_profile(
    patch: FloatArray, start: FloatArray, profile: FloatArray, reach: int, rounds: int
) -> tuple[FloatArray, float]:
    steps = np.arange(-reach, reach + 1, dtype=float)
    y, x = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    inside = np.hypot(x, y) <= reach
    y, x, values = y[inside], x[inside], patch.ravel()[inside]
    slope = np.gradient(profile) * 2
    knots = np.arange(len(profile)) / 2
    place, score = start.astype(float).copy(), 0.0
    for _ in range(rounds):
        dx, dy = x - place[0], y - place[1]
        distance = np.maximum(np.hypot(dx, dy), 1e-6)
        bead, fall = np.interp(distance, knots, profile, right=0.0), np.interp(distance, knots, slope, right=0.0)
        columns = np.stack([bead, np.ones_like(x), x, y, -fall * dx / distance, -fall * dy / distance], axis=1)
        found = np.linalg.lstsq(columns, values, rcond=None)[0]
        if not found[0] < 0:  # no dark bead
            return start, 0.0
        step = np.clip(found[4:] / found[0], -1.0, 1.0)
        place = place + step
        flat = values - columns[:, 1:4] @ found[1:4]
        score = float(np.corrcoef(flat, -bead)[0, 1])
        if np.abs(step).max() < 1e-3:
            break
    return place, max(score, 0.0)
