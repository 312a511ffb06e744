"""What a total-variation denoiser does to every pixel in every step: energy, gradient, projected step.

The image X lies between 0 and 1 and is seen as Y = 2 sqrt(k2 X + k1), with noise of equal variance everywhere.
The energy is E(X) = ½ Σ (2 sqrt(k2 X + k1) - Y)² + μ Σ sqrt(dx² + dy² + β²), with forward differences that wrap
around. On the CPU a numba kernel goes through each array once; elsewhere plain torch does the same.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BLOCK_ROWS = 32


@dataclass(frozen=True)
class VariationModel:
    """Constants of the energy: `k1` and `k2` of what is seen, `weight` μ and `roundness` β of the variation."""

    k1: float
    k2: float
    weight: float
    roundness: float


def energy_gradient(
    trial: Tensor, seen: Tensor, model: VariationModel, last: Tensor, last_gradient: Tensor, out: Tensor
) -> tuple[float, float, float]:
    """Write the gradient of the energy at `trial` to `out`.

    Parameters
    ----------
    trial, seen
        `(y, x)` X and Y, contiguous.
    model
        Constants.
    last, last_gradient
        `(y, x)` X of the step before and its gradient.
    out
        `(y, x)` for the gradient.

    Returns
    -------
    tuple
        The energy, s·s and s·g with s the step from `last` to `trial` and g the change of the gradient.
    """
    arrays = (trial, seen, last, last_gradient, out)
    if trial.device.type != "cpu":
        return energy_gradient_reference(trial, seen, model, last, last_gradient, out)
    sums = np.zeros((-(-trial.shape[0] // _BLOCK_ROWS), 3))
    constants = np.array([model.k1, model.k2, model.weight, model.roundness**2]).astype(trial.numpy().dtype)
    x, y, x0, g0, g = (array.numpy() for array in arrays)
    _energy_gradient_numba(x, y, x0, g0, g, constants, sums)
    energy, square, product = sums.sum(axis=0)
    return float(energy), float(square), float(product)


def energy_gradient_reference(
    trial: Tensor, seen: Tensor, model: VariationModel, last: Tensor, last_gradient: Tensor, out: Tensor
) -> tuple[float, float, float]:
    """Do what `energy_gradient` does, in plain torch."""
    across, down = trial.roll(-1, 1) - trial, trial.roll(-1, 0) - trial
    length = (across.square() + down.square() + model.roundness**2).sqrt()
    expected = 2 * (model.k2 * trial + model.k1).sqrt()
    miss = expected - seen
    energy = 0.5 * miss.double().square().sum() + model.weight * length.double().sum()
    across, down = across / length, down / length
    divergence = across.roll(1, 1) - across + down.roll(1, 0) - down
    out.copy_(miss * (2 * model.k2) / expected + model.weight * divergence)
    step = (trial - last).double()
    return float(energy), float(step.square().sum()), float((step * (out - last_gradient)).sum())


def step_down(start: Tensor, gradient: Tensor, length: float, share: float, out: Tensor) -> float:
    """Write to `out` the place a share of the way from `start` to its projected step down the gradient.

    Parameters
    ----------
    start, gradient
        `(y, x)`, contiguous.
    length
        Factor on the gradient before the step is cut to values from 0 to 1.
    share
        Of the way.
    out
        `(y, x)`.

    Returns
    -------
    float
        The product of the gradient and the whole way.
    """
    if start.device.type != "cpu":
        way = (start - length * gradient).clamp(0, 1) - start
        out.copy_(start + share * way)
        return float((gradient.double() * way.double()).sum())
    kind = start.numpy().dtype.type
    sums = np.zeros(-(-start.shape[0] // _BLOCK_ROWS))
    _step_numba(start.numpy(), gradient.numpy(), kind(length), kind(share), out.numpy(), sums)
    return float(sums.sum())


@numba.njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy", cache=True)
def _energy_gradient_numba(
    trial: npt.NDArray[np.floating],
    seen: npt.NDArray[np.floating],
    last: npt.NDArray[np.floating],
    last_gradient: npt.NDArray[np.floating],
    out: npt.NDArray[np.floating],
    constants: npt.NDArray[np.floating],
    sums: npt.NDArray[np.float64],
) -> None:
    rows, columns = trial.shape
    k1, k2, weight, round2 = constants[0], constants[1], constants[2], constants[3]
    two, half = trial.dtype.type(2), trial.dtype.type(0.5)
    for block in numba.prange(sums.shape[0]):
        first = block * _BLOCK_ROWS
        across = np.empty(columns + 1, trial.dtype)
        down = np.empty(columns, trial.dtype)
        above = np.empty(columns, trial.dtype)
        energy, square, product = 0.0, 0.0, 0.0
        for i in range(first - 1, min(rows, first + _BLOCK_ROWS)):
            here, below = trial[i % rows], trial[(i + 1) % rows]
            lengths = 0.0
            for j in range(columns - 1):
                dx, dy = here[j + 1] - here[j], below[j] - here[j]
                length = np.sqrt(dx * dx + dy * dy + round2)
                across[j + 1] = dx / length
                down[j] = dy / length
                lengths += length
            dx, dy = here[0] - here[columns - 1], below[columns - 1] - here[columns - 1]
            length = np.sqrt(dx * dx + dy * dy + round2)
            across[columns] = dx / length
            across[0] = across[columns]
            down[columns - 1] = dy / length
            if i >= first:
                energy += weight * (lengths + length)
                y, x0, g0, g = seen[i], last[i], last_gradient[i], out[i]
                misses, squares, products = 0.0, 0.0, 0.0
                for j in range(columns):
                    expected = two * np.sqrt(k2 * here[j] + k1)
                    miss = expected - y[j]
                    value = miss * (two * k2) / expected + weight * (
                        across[j] - across[j + 1] + above[j] - down[j]
                    )
                    step = here[j] - x0[j]
                    misses += half * miss * miss
                    squares += step * step
                    products += step * (value - g0[j])
                    g[j] = value
                energy += misses
                square += squares
                product += products
            above, down = down, above
        sums[block, 0] = energy
        sums[block, 1] = square
        sums[block, 2] = product


@numba.njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy", cache=True)
def _step_numba(
    start: npt.NDArray[np.floating],
    gradient: npt.NDArray[np.floating],
    length: float,
    share: float,
    out: npt.NDArray[np.floating],
    sums: npt.NDArray[np.float64],
) -> None:
    rows, columns = start.shape
    zero, one = start.dtype.type(0), start.dtype.type(1)
    for block in numba.prange(sums.shape[0]):
        total = 0.0
        for i in range(block * _BLOCK_ROWS, min(rows, (block + 1) * _BLOCK_ROWS)):
            x, g, to = start[i], gradient[i], out[i]
            for j in range(columns):
                way = min(max(x[j] - length * g[j], zero), one) - x[j]
                to[j] = x[j] + share * way
                total += g[j] * way
        sums[block] = total


def make_arrays(like: Tensor, count: int) -> list[Tensor]:
    """Make `count` arrays for the functions above."""
    return [torch.zeros_like(like, memory_format=torch.contiguous_format) for _ in range(count)]
