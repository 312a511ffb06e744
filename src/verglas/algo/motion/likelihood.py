"""How likely shifts are, given the spectra of what moved.

n images of one thing, each shifted and with noise of its own, have transforms F_i = S e^{-2πi k·s_i} + N_i.
When the thing's power is S(k) and that of the noise N(k), the logarithm of the likelihood of the shifts is, but for
a constant,

    L = Σ_k w(k) |R(k)|²,   R = Σ_i F_i e^{2πi k·s_i},   w = S / (N (N + n S)),

summed over half of Fourier space. S and N are measured: what frames have in common after alignment, and the
rest. Its second derivative is close to -(n δ_ij - 1) A with the 2 x 2 matrix A = 8π² Σ w k kᵀ Re(F_i* F_j), so
that Newton's step is a small linear system.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.ops.kernels.phase_sums import sum_powers, sum_scores

_SMOOTHING = 5


@dataclass(frozen=True, eq=False)
class Grid:
    """Frequencies of a half transform.

    Parameters
    ----------
    y, x
        `(h,)`, `(w,)` cycles a pixel of the frames.
    step
        Width of a ring of `rings`.
    rings
        `(h, w)` index of the ring.
    usable
        `(h, w)` False at the lowest frequencies, where windows leak, on the axes, where patterns of rows and columns
        of the camera lie, and beyond the highest.
    """

    y: Tensor
    x: Tensor
    step: float
    rings: Tensor
    usable: Tensor


def make_grid(shape: tuple[int, int], scale: tuple[float, float], highest: float) -> Grid:
    """Frequencies of images of `shape` whose pixels are `scale` (y, x) pixels of the frames each."""
    y = torch.fft.fftfreq(shape[0], scale[0], dtype=torch.float32)
    x = torch.fft.rfftfreq(shape[1], scale[1], dtype=torch.float32)
    radius = torch.sqrt(y[:, None] ** 2 + x[None] ** 2)
    step = max(1 / (shape[0] * scale[0]), 1 / (shape[1] * scale[1]))
    rings = (radius / step).round().long()
    usable = (radius > 2.5 * step) & (radius < highest) & (y[:, None] != 0) & (x[None] != 0)
    return Grid(y, x, step, rings, usable)


def limit_grid(grid: Grid, highest: float) -> tuple[Grid, Tensor, int]:
    """Keep the rows and columns up to a frequency; returns the rows kept and the number of columns."""
    rows = torch.nonzero(grid.y.abs() <= highest)[:, 0]
    columns = int((grid.x <= highest).sum())
    usable = grid.usable[rows, :columns]
    radius = torch.sqrt(grid.y[rows, None] ** 2 + grid.x[None, :columns] ** 2)
    kept = Grid(
        grid.y[rows], grid.x[:columns], grid.step, grid.rings[rows, :columns], usable & (radius <= highest)
    )
    return kept, rows, columns


def align(
    transforms: Complex[Tensor, "n h w"], grid: Grid, shifts: Float[Tensor, "n 2"]
) -> Complex[Tensor, "n h w"]:
    """Undo `(n, 2)` yx displacements in pixels of the frames."""
    shifts = shifts.to(transforms.device, torch.float64)
    turn_y = torch.exp(2j * math.pi * shifts[:, :1] * grid.y.to(shifts)).to(transforms.dtype)
    turn_x = torch.exp(2j * math.pi * shifts[:, 1:] * grid.x.to(shifts)).to(transforms.dtype)
    moved = transforms * turn_y[:, :, None]
    moved *= turn_x[:, None, :]
    return moved


def measure_powers(
    transforms: Complex[Tensor, "n h w"], grid: Grid, shifts: Float[Tensor, "n 2"]
) -> Float[Tensor, "2 rings"]:
    """Sum by ring the mean power of the images, and the mean of what two of them have in common."""
    count = len(transforms)
    sums = sum_powers(transforms, shifts, grid.y, grid.x, torch.where(grid.usable, grid.rings, -1))
    padded = torch.zeros(2, int(grid.rings.max()) + 1, dtype=torch.float64)
    padded[:, : sums.shape[1]] = torch.from_numpy(sums)
    return padded / torch.tensor([[count], [count * (count - 1)]])


def measure_weights(
    powers: Float[Tensor, "2 rings"], grid: Grid, count: int, images: float
) -> tuple[Tensor, Tensor]:
    """Weights w of the likelihood and the share S / (S + N) by ring, from powers summed over `images` places.

    Rings whose common power is within two standard deviations of nothing get no weight.

    Returns
    -------
    weights, shares
        `(rings,)`, for powers of one image.
    """
    rings = grid.rings[grid.usable].cpu()
    number = torch.bincount(rings, minlength=powers.shape[1]).double()
    total, signal = (_smooth(one, number) / images for one in powers)
    around = _smooth_counts(number)
    chance = total * torch.sqrt(2 / (count * (count - 1) * around.clamp(min=1) * images))
    signal = torch.where(signal > 2 * chance, signal, 0.0).clamp(max=0.999 * total)
    known = signal > 0
    noise = torch.where(known, total - signal, 1.0)
    weights = torch.where(known, signal / (noise * (noise + count * signal)), 0.0)
    shares = torch.where(known, signal / torch.where(known, total, 1.0), 0.0)
    # Powers are far from one: in single precision they would be lost.
    return weights, shares


def _smooth(sums: Tensor, number: Tensor) -> Tensor:
    kernel = torch.ones(1, 1, _SMOOTHING, dtype=sums.dtype)
    pad = _SMOOTHING // 2
    top = torch.nn.functional.conv1d(sums[None, None], kernel, padding=pad)[0, 0]
    return top / _smooth_counts(number).clamp(min=1)


def _smooth_counts(number: Tensor) -> Tensor:
    kernel = torch.ones(1, 1, _SMOOTHING, dtype=number.dtype)
    return torch.nn.functional.conv1d(number[None, None], kernel, padding=_SMOOTHING // 2)[0, 0]


def spread_weights(weights: Tensor, grid: Grid) -> Tensor:
    """`(h, w)` weights of the rings where the grid is usable."""
    return torch.where(grid.usable, weights[grid.rings.cpu()].to(grid.usable.device), 0.0).float()


def information_limit(weights: Tensor, shares: Tensor, grid: Grid, part: float = 0.98) -> float:
    """Frequency below which this part of what is known of the shifts lies."""
    number = torch.bincount(grid.rings[grid.usable].cpu(), minlength=len(weights)).double()
    k = torch.arange(len(weights), dtype=torch.float64) * grid.step
    gain = (weights.double() * shares.double() * number * k**2).cumsum(0)
    if gain[-1] <= 0:
        return float(k[-1])
    return float(k[int((gain < part * gain[-1]).sum())]) + grid.step


def score_shifts(
    transforms: Complex[Tensor, "n h w"],
    grid: Grid,
    weights: Tensor,
    shifts: Float[Tensor, "n 2"],
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of L by the shifts, and the matrix A.

    Parameters
    ----------
    transforms
        `(n, h, w)`.
    grid
        Of the transforms, or of their `rows` and first columns.
    weights
        Of the grid.
    shifts
        `(n, 2)` yx.
    rows
        Which rows the grid has; all when not given.

    Returns
    -------
    gradient, information
        `(n, 2)`, `(2, 2)`.
    """
    count = len(transforms)
    rows = torch.arange(len(grid.y)) if rows is None else rows
    slopes, (yy, yx, xx) = sum_scores(transforms, shifts, grid.y, grid.x, weights, rows)
    information = torch.tensor([[yy, yx], [yx, xx]], dtype=torch.float64) / (count * (count - 1))
    return torch.from_numpy(-4 * math.pi * slopes), 8 * math.pi**2 * information
