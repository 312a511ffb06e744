"""Motion of the whole image: cross-correlation with the sum of the other frames, coarse to fine."""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.algo.motion.likelihood import Grid, align, limit_grid
from verglas.ops.fft import fast_size
from verglas.runtime import map_threads

B_FACTORS = (1500.0, 400.0)
"""Pixels²; frequencies are weighted by exp(-2 B k²). RELION has 150, but here the likelihood follows."""

_LEAST_WEIGHT = 1e-3
_ROUNDS = 8


def correlate_frames(
    bands: Complex[Tensor, "n h w"], grid: Grid, shape: tuple[int, int]
) -> Float[Tensor, "n 2"]:
    """Find how far each frame lies from the others.

    Parameters
    ----------
    bands
        `(n, h, w)` half transforms of the frames, low frequencies only.
    grid
        Of the transforms.
    shape
        `(y, x)` pixels of the frames; the largest shift is an eighth of the shorter side.

    Returns
    -------
    Tensor
        `(n, 2)` yx, pixels, of mean zero.
    """
    shifts = torch.zeros(len(bands), 2, dtype=torch.float64)
    for b_factor in B_FACTORS:
        highest = math.sqrt(-math.log(_LEAST_WEIGHT) / (2 * b_factor))
        low, rows, columns = limit_grid(grid, highest)
        part = bands[:, rows, :columns]
        radius2 = low.y[:, None] ** 2 + low.x[None] ** 2
        weights = torch.where(low.usable, torch.exp(-2 * b_factor * radius2), 0.0).to(bands.device)
        for _ in range(_ROUNDS):
            step = _correlate_once(part, low, weights, shifts, shape)
            shifts = shifts + step
            shifts = shifts - shifts.mean(0)
            if float(step.abs().max()) < 0.3:
                break
    return shifts


def _correlate_once(
    part: Tensor, grid: Grid, weights: Tensor, shifts: Tensor, shape: tuple[int, int]
) -> Tensor:
    moved = align(part, grid, shifts)
    total = moved.sum(0)
    # The map is sampled a little more finely than the band needs, and is as large as the frame.
    sizes = [
        fast_size(math.ceil(2.6 * float(axis.abs().max()) * size))
        for axis, size in zip((grid.y, grid.x), shape, strict=True)
    ]
    places = (grid.y * shape[0]).round().long() % sizes[0]
    scale = [size / fine for size, fine in zip(shape, sizes, strict=True)]
    reach = [
        max(2, min(fine // 2 - 1, int(min(shape) / 8 / s))) for fine, s in zip(sizes, scale, strict=True)
    ]
    steps = torch.zeros(len(part), 2, dtype=torch.float64)

    def find_step(i: int) -> None:
        own = moved[i]
        product = torch.zeros(sizes[0], sizes[1] // 2 + 1, dtype=part.dtype, device=part.device)
        product[places, : len(grid.x)] = own * (total - own).conj() * weights
        maps = torch.fft.irfft2(product, s=sizes)
        maps = torch.roll(maps, (reach[0], reach[1]), (0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
        steps[i] = _find_peak(maps.cpu()) - torch.tensor(reach, dtype=torch.float64)

    map_threads(find_step, range(len(moved)))
    return steps * torch.tensor(scale, dtype=torch.float64)


def _find_peak(maps: Tensor) -> Tensor:
    """Place of the highest value, between pixels by parabolas."""
    place = int(maps.argmax())
    y, x = divmod(place, maps.shape[1])
    result = []
    for line, at in ((maps[:, x], y), (maps[y], x)):
        offset = 0.0
        if 0 < at < len(line) - 1:
            before, here, after = (float(line[at + d]) for d in (-1, 0, 1))
            curvature = before - 2 * here + after
            offset = 0.5 * (before - after) / curvature if curvature < 0 else 0.0
        result.append(at + offset)
    return torch.tensor(result, dtype=torch.float64)
