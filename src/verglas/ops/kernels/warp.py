"""Displaced images, sampled with a windowed sinc and added up in one pass.

Convention
----------
The image is parted into square blocks, each of which is taken from where it was displaced to: block (i, j) of the
result at pixel p is the image at `p + shifts[i, j]`. The interpolation is separable, eight samples along each axis
under a Kaiser window; outside the image its outermost pixels hold. The first pass along x uses the shift of the block
that the sampled row ends up in.

Images are read some rows at a time, in the type that they were stored in: for each strip of the result all of them
are added while it lies in the processor's cache, and no image is ever held as a whole.
"""

import math
from collections.abc import Callable, Sequence

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.runtime import map_threads

BLOCK = 16
"""Side of a block in pixels: a gradient of 0.2 % of displacement makes steps of 0.03 pixels between blocks."""

TAPS = 8

ReadRows = Callable[[int, int, int], npt.NDArray[np.generic]]
"""`(image, top, bottom)` to the rows `top` to `bottom` (not included) of an image: integers or float32."""

_BETA = 5.0
_STEPS = 1024
_STRIP = 64
_TILE = 512
_AT_ONCE = 8


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


def read_from(images: Sequence[Float[Tensor, "y x"]]) -> ReadRows:
    """Read rows of images in memory."""
    arrays = [image.contiguous().numpy() for image in images]
    return lambda number, top, bottom: arrays[number][top:bottom]


def add_displaced(
    read_rows: ReadRows,
    shifts: Float[Tensor, "n by bx 2"],
    weights: Float[Tensor, "n k"],
    sums: Float[Tensor, "k y x"],
    gain: Float[Tensor, "y x"] | None = None,
) -> None:
    """Add n displaced images to k sums, with a weight for each, on as many threads as torch may use.

    Parameters
    ----------
    read_rows
        Gives the rows of images 0 to n - 1; called from several threads.
    shifts
        `(n, by, bx, 2)` yx of each block, pixels; see the module's convention.
    weights
        `(n, k)`.
    sums
        `(k, y, x)` float32, changed in place.
    gain
        `(y, x)` float32 that images are multiplied by before they are displaced.
    """
    height, width = sums.shape[1:]
    blocks = count_blocks((height, width))
    if tuple(shifts.shape[1:3]) != blocks or len(shifts) != len(weights):
        raise ValueError(
            f"`shifts` must be one a block; got {tuple(shifts.shape)} for {len(weights)} of {(height, width)}"
        )
    if sums.device.type != "cpu":
        for number, (shift, weight) in enumerate(zip(shifts, weights, strict=True)):
            image = torch.from_numpy(read_rows(number, 0, height).astype(np.float32)).to(sums.device)
            image = image if gain is None else image * gain.to(sums.device)
            sums += weight.to(sums)[:, None, None] * displace_reference(image, shift)
        return
    # Rows may be longer than the images: the compiler is to see whole ones.
    row = sums.stride(1)
    sums_array = torch.as_strided(sums, (len(sums), height, row), (sums.stride(0), row, 1)).numpy()
    moves = shifts.to(torch.float64).contiguous().numpy()
    shares = weights.to(torch.float32).contiguous().numpy()
    factors = np.empty((0, 0), np.float32) if gain is None else gain.contiguous().numpy()
    lows = np.floor(moves[..., 0]).astype(np.int64)
    means = np.rint(moves[..., 0].mean((1, 2))).astype(np.int64)

    def add_strip(strip: int) -> None:
        top, bottom = strip * _STRIP, min(height, (strip + 1) * _STRIP)
        there = slice(top // BLOCK, (bottom - 1) // BLOCK + 1)
        # Where the rows of this strip come from; at least one row even where all lies outside.
        first = np.clip(top + lows[:, there].min((1, 2)) - (TAPS // 2 - 1), 0, height - 1)
        last = np.clip(bottom + lows[:, there].max((1, 2)) + TAPS // 2, first + 1, height)
        for start in range(0, len(moves), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(moves)))
            rows = [read_rows(number, int(first[number]), int(last[number])) for number in part]
            together = np.concatenate(rows)
            ends = np.cumsum([0, *map(len, rows)])
            few = slice(part.start, part.stop)
            _add_strip(
                *(together, ends, first[few], factors, moves[few], means[few], shares[few]),
                *(_TABLE, top, bottom, width, sums_array),
            )

    map_threads(add_strip, range(math.ceil(height / _STRIP)))


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


@numba.njit(fastmath=True, nogil=True, cache=True)
def _add_strip(
    together: npt.NDArray[np.generic],
    ends: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    gain: npt.NDArray[np.float32],
    shifts: npt.NDArray[np.float64],
    means: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32],
    table: npt.NDArray[np.float32],
    top: int,
    bottom: int,
    width: int,
    sums: npt.NDArray[np.float32],
) -> None:
    """Add what belongs into rows `top` to `bottom`, tile by tile so that all of a tile stays in the cache.

    Image f has the rows from `first[f]` on in `together[ends[f] : ends[f + 1]]`.
    """
    # Whole blocks only: then the compiler knows the length of the innermost loops.
    result = np.empty(_TILE, np.float32)
    for left in range(0, width, _TILE):
        right = min(width, left + _TILE)
        blocks = (right - left + BLOCK - 1) // BLOCK
        for f in range(len(weights)):
            rows = together[ends[f] : ends[f + 1]]
            step, start = _move_along_x(
                rows, first[f], gain, shifts[f], means[f], table, top, bottom, left, right, sums.shape[1]
            )
            for y in range(top, bottom):
                _move_along_y(step, y - start, shifts[f, y // BLOCK], table, left // BLOCK, blocks, result)
                for k in range(weights.shape[1]):
                    weight, total = weights[f, k], sums[k, y, left:right]
                    for x in range(right - left):
                        total[x] += weight * result[x]


@numba.njit(fastmath=True, nogil=True, cache=True)
def _move_along_x(
    rows: npt.NDArray[np.generic],
    first: int,
    gain: npt.NDArray[np.float32],
    shifts: npt.NDArray[np.float64],
    mean_row: int,
    table: npt.NDArray[np.float32],
    top: int,
    bottom: int,
    left: int,
    right: int,
    height: int,
) -> tuple[npt.NDArray[np.float32], int]:
    """Sample the rows that a tile needs along x; returns them and the row of the image that the first is."""
    width = rows.shape[1]
    blocks = (right - left + BLOCK - 1) // BLOCK
    low, high, least, most = 1 << 30, -(1 << 30), 1 << 30, -(1 << 30)
    for i in range(top // BLOCK, (bottom - 1) // BLOCK + 1):
        for j in range(left // BLOCK, left // BLOCK + blocks):
            whole = int(np.floor(shifts[i, j, 0]))
            low, high = min(low, whole), max(high, whole)
    start = top + low - (TAPS // 2 - 1)
    count = bottom + high + TAPS // 2 - start + 1
    # Of these blocks along y the rows are moved.
    upper = min(max(start - mean_row, 0), height - 1) // BLOCK
    lower = min(max(start + count - 1 - mean_row, 0), height - 1) // BLOCK
    for i in range(upper, lower + 1):
        for j in range(left // BLOCK, left // BLOCK + blocks):
            whole = int(np.floor(shifts[i, j, 1]))
            least, most = min(least, whole), max(most, whole)
    begin = left + least - (TAPS // 2 - 1)
    length = blocks * BLOCK + most - least + TAPS
    line = np.empty(length, np.float32)
    step = np.empty((count, _TILE), np.float32)
    # Columns of the line that lie in the image; the others hold its outermost pixels.
    inside, outside = min(max(-begin, 0), length), max(min(width - begin, length), 0)
    for n in range(count):
        row = min(max(start + n, 0), height - 1)
        source = rows[min(max(row - first, 0), len(rows) - 1)]
        if inside < outside:
            from_image = source[begin + inside : begin + outside]
            into = line[inside:outside]
            if gain.size > 0:
                factor = gain[row, begin + inside : begin + outside]
                for x in range(len(into)):
                    into[x] = np.float32(from_image[x]) * factor[x]
            else:
                for x in range(len(into)):
                    into[x] = np.float32(from_image[x])
        for x in range(inside):
            line[x] = np.float32(source[0]) * (gain[row, 0] if gain.size > 0 else np.float32(1))
        for x in range(outside, length):
            line[x] = np.float32(source[width - 1]) * (
                gain[row, width - 1] if gain.size > 0 else np.float32(1)
            )
        i = min(max(row - mean_row, 0), height - 1) // BLOCK
        for j in range(blocks):
            shift = shifts[i, left // BLOCK + j, 1]
            whole = int(np.floor(shift))
            w = table[int((shift - whole) * _STEPS + 0.5)]
            w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
            # Views that are counted from zero, so that the compiler need not think of negative indices.
            into = step[n, j * BLOCK : (j + 1) * BLOCK]
            part = line[j * BLOCK + whole - least : (j + 1) * BLOCK + whole - least + TAPS]
            for x in range(BLOCK):
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
    return step, start


@numba.njit(fastmath=True, nogil=True, cache=True)
def _move_along_y(
    step: npt.NDArray[np.float32],
    row: int,
    shifts: npt.NDArray[np.float64],
    table: npt.NDArray[np.float32],
    first_block: int,
    blocks: int,
    result: npt.NDArray[np.float32],
) -> None:
    """Sample one row of a tile along y."""
    flat = step.reshape(-1)
    for j in range(blocks):
        shift = shifts[first_block + j, 0]
        whole = int(np.floor(shift))
        w = table[int((shift - whole) * _STEPS + 0.5)]
        n = row + whole - (TAPS // 2 - 1)
        # One view whose rows are a fixed step apart, which the compiler can prove to be no copy of the result.
        part = flat[n * _TILE + j * BLOCK : (n + TAPS - 1) * _TILE + (j + 1) * BLOCK]
        w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
        into = result[j * BLOCK : (j + 1) * BLOCK]
        for x in range(BLOCK):
            into[x] = (
                w0 * part[x]
                + w1 * part[x + _TILE]
                + w2 * part[x + 2 * _TILE]
                + w3 * part[x + 3 * _TILE]
                + w4 * part[x + 4 * _TILE]
                + w5 * part[x + 5 * _TILE]
                + w6 * part[x + 6 * _TILE]
                + w7 * part[x + 7 * _TILE]
            )
