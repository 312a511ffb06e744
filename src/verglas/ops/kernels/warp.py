"""Displaced images, sampled with a windowed sinc and added up in one pass.

Convention
----------
The image is parted into square blocks, each of which is taken from where it was displaced to: block (i, j) of the
result at pixel p is the image at `p + shifts[i, j]`. The interpolation is separable, eight samples along each axis
under a Kaiser window; outside the image its outermost pixels hold. The first pass along x uses the shift of the block
that the sampled row ends up in.
"""

import math
from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 16
"""Side of a block in pixels: a gradient of 0.2 % of displacement makes steps of 0.03 pixels between blocks."""

TAPS = 8
AT_ONCE = 4
"""Images that are best added together."""

_BETA = 5.0
_STEPS = 1024
_STRIP = 32


def _make_table() -> npt.NDArray[np.float32]:
    """Weights of the eight samples from -3 to 4 for fractions of a pixel from 0 to 1."""
    fraction = np.arange(_STEPS + 1)[:, None] / _STEPS
    distance = np.arange(TAPS)[None] - (TAPS // 2 - 1) - fraction
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (distance / (TAPS / 2)) ** 2, 0, None))) / np.i0(_BETA)
    weights = np.sinc(distance) * window
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


_TABLE = _make_table()


def count_blocks(shape: tuple[int, int]) -> tuple[int, int]:
    """Blocks along y and x that cover an image."""
    return math.ceil(shape[0] / BLOCK), math.ceil(shape[1] / BLOCK)


def add_displaced(
    images: Sequence[Float[Tensor, "y x"]],
    shifts: Float[Tensor, "n by bx 2"],
    weights: Float[Tensor, "n k"],
    sums: Float[Tensor, "k y x"],
) -> None:
    """Add n displaced images to k sums, with a weight for each; several at once pass fewer times over the sums.

    Parameters
    ----------
    images
        n of `(y, x)` float32.
    shifts
        `(n, by, bx, 2)` yx of each block, pixels; see the module's convention.
    weights
        `(n, k)`.
    sums
        `(k, y, x)` float32, changed in place.
    """
    blocks = count_blocks((sums.shape[1], sums.shape[2]))
    if tuple(shifts.shape[:3]) != (len(images), *blocks):
        raise ValueError(
            f"`shifts` must be one a block; got {tuple(shifts.shape)} for {len(images)} of {tuple(sums.shape[1:])}"
        )
    if sums.device.type != "cpu":
        for image, shift, weight in zip(images, shifts, weights, strict=True):
            sums += weight.to(sums)[:, None, None] * displace_reference(image, shift)
        return
    arrays = [image.contiguous().numpy() for image in images]
    moves = shifts.to(torch.float64).contiguous().numpy()
    shares = weights.to(torch.float32).contiguous().numpy()
    start = 0
    while start < len(arrays):
        # Two sizes only, because each is compiled.
        count = AT_ONCE if start + AT_ONCE <= len(arrays) else 1
        stop = start + count
        _add_numba(tuple(arrays[start:stop]), moves[start:stop], shares[start:stop], _TABLE, sums.numpy())
        start = stop


def displace_reference(image: Tensor, shifts: Tensor) -> Tensor:
    """Do what `add_displaced` adds, in plain torch; also what runs on a GPU."""
    height, width = image.shape
    device = image.device
    table = torch.from_numpy(_TABLE).to(device)
    shifts = shifts.to(device, torch.float64)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    mean = shifts[..., 0].mean().round().long()
    # Where the row of a sample ends up in the result.
    block = ((rows - mean).clamp(0, height - 1) // BLOCK)[:, None]
    whole, weights = _part(shifts[block, columns // BLOCK, 1], table)
    step = torch.zeros_like(image)
    for tap in range(TAPS):
        place = (columns + whole + tap - (TAPS // 2 - 1)).clamp(0, width - 1)
        step += weights[..., tap] * image.gather(1, place)
    whole, weights = _part(shifts[(rows // BLOCK)[:, None], columns // BLOCK, 0], table)
    result = torch.zeros_like(image)
    for tap in range(TAPS):
        place = (rows[:, None] + whole + tap - (TAPS // 2 - 1)).clamp(0, height - 1)
        result += weights[..., tap] * step.gather(0, place)
    return result


def _part(shift: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    whole = shift.floor()
    return whole.long(), table[((shift - whole) * _STEPS + 0.5).long()]


@numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)
def _add_numba(
    images: tuple[npt.NDArray[np.float32], ...],
    shifts: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float32],
    table: npt.NDArray[np.float32],
    sums: npt.NDArray[np.float32],
) -> None:
    height = sums.shape[1]
    blocks = shifts.shape[2]
    means = np.zeros(len(images), np.int64)
    margins = np.zeros(len(images), np.int64)
    for f in range(len(images)):
        mean, margin = 0.0, 0
        for i in range(shifts.shape[1]):
            for j in range(blocks):
                mean += shifts[f, i, j, 0]
                margin = max(margin, int(np.abs(shifts[f, i, j, 1])) + 2)
        means[f] = int(np.rint(mean / (shifts.shape[1] * blocks)))
        margins[f] = margin + TAPS
    for strip in numba.prange((height + _STRIP - 1) // _STRIP):
        top, bottom = strip * _STRIP, min(height, (strip + 1) * _STRIP)
        for f in range(len(images)):
            _add_strip(images[f], shifts[f], weights[f], table, top, bottom, means[f], margins[f], sums)


@numba.njit(fastmath=True, nogil=True, cache=True)
def _add_strip(
    image: npt.NDArray[np.float32],
    shifts: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float32],
    table: npt.NDArray[np.float32],
    top: int,
    bottom: int,
    mean_row: int,
    margin: int,
    sums: npt.NDArray[np.float32],
) -> None:
    """Add what belongs into rows `top` to `bottom`."""
    height, width = image.shape
    blocks = shifts.shape[1]
    low, high = 1 << 30, -(1 << 30)
    for i in range(top // BLOCK, (bottom - 1) // BLOCK + 1):
        for j in range(blocks):
            whole = int(np.floor(shifts[i, j, 0]))
            low, high = min(low, whole), max(high, whole)
    first = top + low - (TAPS // 2 - 1)
    count = bottom + high + TAPS // 2 - first + 1
    step = np.empty((count, width), np.float32)
    line = np.empty(width + 2 * margin, np.float32)
    for n in range(count):
        row = min(max(first + n, 0), height - 1)
        line[:margin] = image[row, 0]
        line[margin : margin + width] = image[row]
        line[margin + width :] = image[row, width - 1]
        i = min(max(row - mean_row, 0), height - 1) // BLOCK
        for j in range(blocks):
            shift = shifts[i, j, 1]
            whole = int(np.floor(shift))
            w = table[int((shift - whole) * _STEPS + 0.5)]
            left, right = j * BLOCK, min(width, (j + 1) * BLOCK)
            start = left + margin + whole - (TAPS // 2 - 1)
            # Views that are counted from zero, so that the compiler need not think of negative indices.
            into = step[n, left:right]
            part = line[start : start + len(into) + TAPS - 1]
            w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
            for x in range(len(into)):
                into[x] = (
                    w0 * part[x]
                    + w1 * part[x + 1]
                    + w2 * part[x + 2]
                    + w3 * part[x + 3]
                    + w4 * part[x + 4]
                    + w5 * part[x + 5]
                    + w6 * part[x + 6]
                    + w7 * part[x + 7]
                )
    result = np.empty(width, np.float32)
    for y in range(top, bottom):
        i = y // BLOCK
        for j in range(blocks):
            shift = shifts[i, j, 0]
            whole = int(np.floor(shift))
            w = table[int((shift - whole) * _STEPS + 0.5)]
            left, right = j * BLOCK, min(width, (j + 1) * BLOCK)
            n = y + whole - (TAPS // 2 - 1) - first
            w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
            s0, s1, s2, s3 = (
                step[n, left:right],
                step[n + 1, left:right],
                step[n + 2, left:right],
                step[n + 3, left:right],
            )
            s4, s5, s6, s7 = (
                step[n + 4, left:right],
                step[n + 5, left:right],
                step[n + 6, left:right],
                step[n + 7, left:right],
            )
            into = result[left:right]
            for x in range(len(into)):
                into[x] = (
                    w0 * s0[x]
                    + w1 * s1[x]
                    + w2 * s2[x]
                    + w3 * s3[x]
                    + w4 * s4[x]
                    + w5 * s5[x]
                    + w6 * s6[x]
                    + w7 * s7[x]
                )
        for k in range(len(weights)):
            weight, total = weights[k], sums[k, y]
            for x in range(width):
                total[x] += weight * result[x]
