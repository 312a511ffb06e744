"""Images at half the size, smoothed first: for what only asks for low frequencies.

Convention
----------
Pixel j of the result is the image around 2 j + 1/2 under the weights 1, 5, 10, 10, 5, 1 over 32 along each axis,
which are five means of two neighbours; outside the image its outermost pixels hold. At a frequency of k cycles a
pixel of the image, amplitudes are cos(πk)⁵ of what they were, and what lies at 1/2 - k comes in with sin(πk)⁵: nearly
nothing for frequencies up to 0.2.
"""

from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

ORDER = 5
"""Number of means of two neighbours, along each axis."""

_STRIP = 64
_BEFORE, _AFTER = 2, 3


def halve_image(
    read_rows: Callable[[int, int], npt.NDArray[np.generic]],
    shape: tuple[int, int],
    gain: npt.NDArray[np.float32] | None = None,
) -> Float[Tensor, "h w"]:
    """Read an image strip by strip and return it at half the size.

    Parameters
    ----------
    read_rows
        `(top, bottom)` to rows of the image: integers or float32.
    shape
        `(y, x)` of the image, even.
    gain
        `(y, x)` that it is multiplied by.
    """
    height, width = shape
    if height % 2 or width % 2:
        raise ValueError(f"`shape` must be even; got {shape}")
    result = torch.empty(height // 2, width // 2)
    out = result.numpy()
    factors = np.empty((0, 0), np.float32) if gain is None else gain
    for top in range(0, len(out), _STRIP):
        bottom = min(top + _STRIP, len(out))
        first = max(2 * top - _BEFORE, 0)
        rows = read_rows(first, min(2 * bottom + _AFTER - 1, height))
        _halve(rows, first, factors, top, bottom, height, out)
    return result


def halve_reference(image: Float[Tensor, "y x"]) -> Float[Tensor, "h w"]:
    """Do the same in plain torch."""
    line = torch.tensor([1.0, 5.0, 10.0, 10.0, 5.0, 1.0]) / 32
    sides = (_BEFORE, _AFTER, _BEFORE, _AFTER)
    padded = torch.nn.functional.pad(image[None, None], sides, mode="replicate")
    result: Tensor = torch.nn.functional.conv2d(padded, (line[:, None] * line)[None, None], stride=2)
    return result[0, 0]


@numba.njit(fastmath=True, nogil=True, cache=True)
def _halve(
    rows: npt.NDArray[np.generic],
    first: int,
    gain: npt.NDArray[np.float32],
    top: int,
    bottom: int,
    height: int,
    out: npt.NDArray[np.float32],
) -> None:
    """Make rows `top` to `bottom` of the result from the rows of the image from `first` on."""
    width, half = rows.shape[1], out.shape[1]
    line, smooth = np.empty(width + ORDER, np.float32), np.empty(width, np.float32)
    begin = 2 * top - _BEFORE
    count = 2 * (bottom - top - 1) + ORDER + 1
    narrow = np.empty((count, half), np.float32)
    for n in range(count):
        row = min(max(begin + n, 0), height - 1)
        source = rows[row - first]
        into = line[_BEFORE : _BEFORE + width]
        if gain.size > 0:
            factor = gain[row]
            for x in range(width):
                into[x] = np.float32(source[x]) * factor[x]
        else:
            for x in range(width):
                into[x] = np.float32(source[x])
        line[:_BEFORE] = into[0]
        line[_BEFORE + width :] = into[width - 1]
        # Smoothed at every pixel, which takes less than to gather every other.
        for x in range(width):
            outer, inner = line[x] + line[x + 5], line[x + 1] + line[x + 4]
            smooth[x] = outer + np.float32(5) * inner + np.float32(10) * (line[x + 2] + line[x + 3])
        narrow[n] = smooth[::2]
    together = np.zeros(half, np.float32)
    scale = np.float32(0.25**ORDER)
    for y in range(bottom - top):
        total = out[top + y]
        part = narrow[2 * y : 2 * y + ORDER + 1]
        for near, far, weight in ((2, 3, np.float32(10)), (1, 4, np.float32(5)), (0, 5, np.float32(1))):
            one, other = part[near], part[far]
            for x in range(half):
                together[x] += weight * (one[x] + other[x])
        for x in range(half):
            total[x] = scale * together[x]
            together[x] = 0
