"""Scores of templates at every place of a tomogram: the best orientation of each, a block at a time."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verglas.algo.matching.bank import Bank, Basis
from verglas.errors import OutOfMemoryError
from verglas.ops.fft import fast_size
from verglas.ops.kernels.best_row import best_row
from verglas.shapes import Volume

T = TypeVar("T")

_TILE = 512
_ROWS = 8192
_FFTS_AT_ONCE = 4


@dataclass(frozen=True)
class Block:
    """A part of a volume: its first voxel and its size, zyx."""

    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where the block lies in the volume."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))
        return z, y, x


@dataclass(frozen=True, eq=False)
class BlockScores:
    """What a search found in a block.

    Parameters
    ----------
    best
        `(t, z, y, x)` best score of each template.
    orientation
        `(t, z, y, x)` row of that template's orientations that has it, int32.
    square
        Sum of the squares of a sample of all scores, whatever their orientation.
    count
        How many were sampled.
    """

    best: Float[Tensor, "t z y x"]
    orientation: Int[Tensor, "t z y x"]
    square: float
    count: int


def plan_blocks(
    shape: tuple[int, int, int], bank: Bank, memory_bytes: int, threads: int = 1, *, half: bool = True
) -> list[Block]:
    """Part a volume into the largest equal blocks whose search fits in memory.

    Parameters
    ----------
    shape
        `(z, y, x)` of the volume.
    bank
        What is searched for.
    memory_bytes
        What the search of one block may take.
    threads
        Threads that work at the same time.
    half
        Whether correlations are kept in half precision.

    Raises
    ------
    OutOfMemoryError
        When the smallest sensible block needs more.
    """
    halo = bank.size
    counts = [1, 1, 1]
    while True:
        sizes = [-(-n // c) for n, c in zip(shape, counts, strict=True)]
        need = block_bytes((sizes[0], sizes[1], sizes[2]), bank, threads, half=half)
        if need <= memory_bytes and math.prod(n + halo for n in sizes) <= _LARGEST_BLOCK:
            break
        longest = max(range(3), key=lambda axis: sizes[axis])
        if sizes[longest] <= halo:
            if need > memory_bytes:
                raise OutOfMemoryError(
                    f"a block of {sizes} voxels needs {need / 1e9:.1f} GB for the search; expected at most "
                    f"{memory_bytes / 1e9:.1f} GB: give more memory or a coarser search"
                )
            break
        counts[longest] += 1
    starts = [[round(i * n / c) for i in range(c + 1)] for n, c in zip(shape, counts, strict=True)]
    return [
        Block((z, y, x), (starts[0][k + 1] - z, starts[1][j + 1] - y, starts[2][i + 1] - x))
        for (k, z), (j, y), (i, x) in product(*(list(enumerate(s[:-1])) for s in starts))
    ]


# Transforms of more than this many voxels leave the processor's last cache.
_LARGEST_BLOCK = 160**3


def block_bytes(shape: tuple[int, int, int], bank: Bank, threads: int, *, half: bool) -> int:
    """Memory that the search of a block takes, bytes."""
    voxels = math.prod(shape)
    padded = math.prod(fast_size(n + bank.size) for n in shape)
    masks = bank.masks
    kept = bank.templates.volumes.shape[0] * (2 if half else 4) + (8 * masks.volumes.shape[0] if masks else 0)
    tiles = threads * _TILE * min(_ROWS, len(bank)) * ((2 if half else 4) + (16 if masks else 0))
    return voxels * (kept + 16 + 8 * len(bank.rows)) + padded * 4 * (6 + 4 * threads) + tiles


def cut_block(volume: Volume, block: Block, size: int) -> Volume:
    """Cut a block and the halo that a template of `size` voxels reads about it; zero outside the volume."""
    before = size // 2
    patch = volume.new_zeros([n + size - 1 for n in block.shape])
    source, target = [], []
    for start, n, whole in zip(block.start, block.shape, volume.shape, strict=True):
        first, last = max(0, start - before), min(whole, start - before + n + size - 1)
        source.append(slice(first, last))
        target.append(slice(first - start + before, last - start + before))
    patch[tuple(target)] = volume[tuple(source)]
    return patch


def search_block(
    patch: Volume, bank: Bank, *, floor: float, threads: int = 1, half: bool | None = None
) -> BlockScores:
    """Score every place of a block.

    The score is the correlation coefficient of the turned template and the volume under the turned mask, both
    less their means there (Roseman 2003), from -1 to 1.

    Parameters
    ----------
    patch
        `(z + n - 1, y + n - 1, x + n - 1)` filtered volume of `cut_block`, n the side of a template's box; on the
        bank's device.
    bank
        What is searched for.
    floor
        Variance of the volume below which a place counts as empty; its score is 0.
    threads
        Threads on the CPU.
    half
        Whether to multiply in half precision (bfloat16); none does where the processor is built for it. The
        scores of the best orientations are summed in single precision.

    Returns
    -------
    BlockScores
        Of the block without its halo.
    """
    half = has_fast_bfloat16(patch.device) if half is None else half
    shape = tuple(n - bank.size + 1 for n in patch.shape)
    frame = tuple(fast_size(n) for n in patch.shape)
    spectrum = torch.fft.rfftn(patch, s=frame)
    columns = math.prod(shape)
    dtype = torch.bfloat16 if half else torch.float32
    with _Workers(threads if patch.device.type == "cpu" else 1) as workers:
        spread: Tensor | tuple[Tensor, Tensor]
        if bank.masks is None:
            assert bank.mask is not None
            spread = _inverse_spread(patch, spectrum, bank.mask, shape, frame, floor).reshape(-1)
        else:
            squares = torch.fft.rfftn(patch.square(), s=frame)
            means = _correlate_basis(spectrum, bank.masks, shape, frame, torch.float32, workers)
            spread = (means, _correlate_basis(squares, bank.masks, shape, frame, torch.float32, workers))
        parts = _correlate_basis(spectrum, bank.templates, shape, frame, dtype, workers)
        best = torch.empty(len(bank.rows), columns, device=patch.device)
        orientation = torch.empty(len(bank.rows), columns, dtype=torch.int32, device=patch.device)
        loadings = bank.templates.loadings.to(dtype)
        tile = _TILE if patch.device.type == "cpu" else _TILE << 6

        def score(start: int) -> tuple[float, int]:
            stop = min(columns, start + tile)
            return _score_tile(bank, loadings, parts, spread, floor, best, orientation, start, stop)

        sums = workers.map(score, range(0, columns, tile))
    return BlockScores(
        best.reshape(-1, *shape),
        orientation.reshape(-1, *shape),
        sum(square for square, _ in sums),
        sum(count for _, count in sums),
    )


def _correlate_basis(
    spectrum: Tensor,
    basis: Basis,
    shape: tuple[int, ...],
    frame: tuple[int, ...],
    dtype: torch.dtype,
    workers: "_Workers",
) -> Tensor:
    """Correlate a block with the volumes of a basis: `(k, voxels)`."""
    count = len(basis.volumes)
    parts = torch.empty(count, *shape, dtype=dtype, device=spectrum.device)
    z, y, x = shape

    def correlate(first: int) -> None:
        for k in range(first, min(count, first + _FFTS_AT_ONCE)):
            # The corner, not the centre, of a volume lies at index 0, and the patch begins where the first
            # template would.
            transform = torch.fft.rfftn(basis.volumes[k], s=frame).conj_physical_().mul_(spectrum)
            parts[k] = torch.fft.irfftn(transform, s=frame)[:z, :y, :x]

    workers.map(correlate, range(0, count, _FFTS_AT_ONCE))
    return parts.reshape(count, -1)


def _inverse_spread(
    patch: Tensor,
    spectrum: Tensor,
    mask: Tensor,
    shape: tuple[int, ...],
    frame: tuple[int, ...],
    floor: float,
) -> Tensor:
    """One over the root of Σ mask (v - mean)², zero where the volume is empty."""
    z, y, x = shape
    window = torch.fft.rfftn(mask, s=frame).conj_physical_()
    mass = float(mask.sum())
    means = torch.fft.irfftn(spectrum * window, s=frame)[:z, :y, :x] / mass
    squares = torch.fft.irfftn(torch.fft.rfftn(patch.square(), s=frame) * window, s=frame)[:z, :y, :x] / mass
    variance = squares - means.square()
    return torch.where(variance > floor, (variance.clamp_min(floor) * mass).rsqrt(), 0.0)


def _score_tile(
    bank: Bank,
    loadings: Tensor,
    parts: Tensor,
    spread: Tensor | tuple[Tensor, Tensor],
    floor: float,
    best: Tensor,
    orientation: Tensor,
    start: int,
    stop: int,
) -> tuple[float, int]:
    """Find the best orientation of each template in columns `start` to `stop`; sample the squares of scores."""
    columns = parts[:, start:stop].contiguous()
    square, count = 0.0, 0
    for template, (first, last) in enumerate(bank.rows):
        tops, rows = [], []
        for row in range(first, last, _ROWS):
            end = min(last, row + _ROWS)
            scores = loadings[row:end] @ columns
            if isinstance(spread, tuple):
                scores = scores.float() * _turned_spread(bank, spread, floor, row, end, start, stop)
            elif row == first:
                sample = scores[::_SAMPLE_STEP].float() * spread[start:stop]
                square += float(sample.square().sum())
                count += int((spread[start:stop] > 0).sum()) * len(sample)
            top, place = best_row(scores)
            tops.append(top.float())
            rows.append(place + (row - first))
        value, piece = torch.stack(tops).max(0)
        chosen = torch.stack(rows).gather(0, piece[None])[0]
        orientation[template, start:stop] = chosen
        if isinstance(spread, tuple):
            best[template, start:stop] = value
        else:
            exact = (bank.templates.loadings[first + chosen.long()] * columns.T.float()).sum(1)
            best[template, start:stop] = exact * spread[start:stop]
    return square, count


_SAMPLE_STEP = 61


def _turned_spread(
    bank: Bank, spread: tuple[Tensor, Tensor], floor: float, row: int, end: int, start: int, stop: int
) -> Tensor:
    """As `_inverse_spread`, under the mask of each row: `(rows, columns)`."""
    assert bank.masks is not None
    assert bank.mass is not None
    loadings, mass = bank.masks.loadings[row:end], bank.mass[row:end, None]
    means = (loadings @ spread[0][:, start:stop]) / mass
    variance = (loadings @ spread[1][:, start:stop]) / mass - means.square()
    return torch.where(variance > floor, (variance.clamp_min(floor) * mass).rsqrt(), 0.0)


@cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 faster than those of single precision."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class _Workers:
    """Threads of Python with one thread of torch each; without them work runs where it is called."""

    def __init__(self, threads: int) -> None:
        self._pool = (
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
            if threads > 1
            else None
        )

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[int], T], values: Sequence[int]) -> list[T]:
        """Do them all, and return what they gave in their order."""
        return list(self._pool.map(function, values)) if self._pool else [function(value) for value in values]
