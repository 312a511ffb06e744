"""Beads in views of any sampling: found, and looked for again where they are expected."""

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.fiducials.find import Beads, find_beads, score_beads
from verglas.errors import UserError
from verglas.ops.binning import bin_images, binned_centre_step

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

FAINT_SD = 3.5
"""A bead that other views tell of is believed at this score."""

_DIAMETER_PX = 8.0


def find_in_view(image: Image, diameter_px: float) -> Beads:
    """Find beads after averaging blocks of pixels, so that a bead is some eight wide.

    Parameters
    ----------
    image
        `(y, x)`.
    diameter_px
        Of the beads.

    Returns
    -------
    Beads
        In pixels of `image`.

    Raises
    ------
    UserError
        When the diameter is not below a quarter of the image.
    """
    if not diameter_px < min(image.shape) / 4:
        raise UserError(
            f"a bead's diameter must be below a quarter of the image's {min(image.shape)} px; got {diameter_px:g}"
        )
    factor = _choose_factor(diameter_px)
    beads = find_beads(_shrink(image, factor), diameter_px / factor)
    return Beads(beads.positions_px * factor + _centre_step(image.shape, factor), beads.scores, diameter_px)


def recover_beads(
    image: Image, expected_px: FloatArray, diameter_px: float, tolerance_px: float
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Look for beads near where they are expected, however faint.

    Parameters
    ----------
    image
        `(y, x)`.
    expected_px
        `(k, 2)` xy from the centre `n // 2`.
    diameter_px
        Of the beads.
    tolerance_px
        How far from there they may be.

    Returns
    -------
    tuple
        `(k, 2)` place of the best score near each expected one, and `(k,)` whether there is a bead.
    """
    factor = _choose_factor(diameter_px)
    scores = score_beads(_shrink(image, factor), diameter_px / factor)
    step = _centre_step(image.shape, factor)
    centre = np.array([n // 2 for n in scores.shape])
    reach = max(1, int(np.ceil(tolerance_px / factor)))
    places, seen = np.array(expected_px, dtype=float).reshape(-1, 2), np.zeros(len(expected_px), np.bool_)
    for row, place in enumerate(places.copy()):
        y0, x0 = np.rint((place - step)[::-1] / factor).astype(int) + centre
        low = np.maximum([y0 - reach, x0 - reach], 0)
        part = scores[low[0] : max(0, y0 + reach + 1), low[1] : max(0, x0 + reach + 1)]
        if part.size and part.max() >= FAINT_SD:
            y, x = np.unravel_index(int(part.argmax()), part.shape) + low - centre
            places[row], seen[row] = np.array([x, y]) * factor + step, True
    return places, seen


def _choose_factor(diameter_px: float) -> int:
    return max(1, int(diameter_px / _DIAMETER_PX))


def _shrink(image: Image, factor: int) -> Image:
    return np.asarray(bin_images(torch.from_numpy(np.ascontiguousarray(image)), factor).numpy())


def _centre_step(shape: tuple[int, ...], factor: int) -> FloatArray:
    """Pixels xy from the centre of an image to that of its block averages."""
    return np.array([binned_centre_step(n, factor) for n in shape[::-1]])
