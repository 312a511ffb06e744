"""Transforms of crops, moved and multiplied by what the microscope lets through, in one pass.

Pixel k = (kx, ky) of the half transform of crop (p, v) becomes

    F(k) T(k) exp(-2πi k·t)      with      T = f_v(k) sin(k·Q·k + a |k|⁴ + φ)

and beside it stands T²: t is how far the particle is moved in sides of the crop, f_v what all crops of a view share.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

import math
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor


def move_and_weigh(
    slices: Complex[Tensor, "p v y kx"],
    shifts: Float[Tensor, "p v 2"],
    phases: Float[Tensor, "p v 5"],
    factors: Float[Tensor, "v y kx"],
    seen: Bool[Tensor, "p v"],
) -> Float[Tensor, "p v y kx"]:
    """Change slices in place, with the kernel of their device.

    Parameters
    ----------
    slices
        `(p, v, n, n // 2 + 1)` complex64, origin at index 0.
    shifts
        `(p, v, 2)` t yx, float64.
    phases
        `(p, v, 5)` Qxx, Qxy, Qyy, a and φ, for k in pixels; float64.
    factors
        `(v, n, n // 2 + 1)` f.
    seen
        `(p, v)`; what is not seen becomes zero.

    Returns
    -------
    Tensor
        `(p, v, n, n // 2 + 1)` T².
    """
    if slices.device.type != "cpu":
        return move_and_weigh_reference(slices, shifts, phases, factors, seen)
    squares = slices.real.new_empty(slices.shape)
    if len(slices):
        _weigh_numba(
            torch.view_as_real(slices).numpy(),
            *(one.double().contiguous().numpy() for one in (shifts, phases)),
            factors.contiguous().numpy(),
            seen.contiguous().numpy(),
            squares.numpy(),
        )
    return squares


def move_and_weigh_reference(
    slices: Tensor, shifts: Tensor, phases: Tensor, factors: Tensor, seen: Tensor
) -> Tensor:
    """Do what `move_and_weigh` does in plain torch."""
    size, device = slices.shape[-2], slices.device
    y = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=device)[:, None]
    x = torch.arange(slices.shape[-1], dtype=torch.float64, device=device)
    xx, xy, yy, quartic, start = (one[..., None, None].to(device) for one in phases.unbind(-1))
    chi = xx * x**2 + xy * x * y + yy * y**2 + quartic * (x**2 + y**2) ** 2 + start
    transfer = (torch.sin(chi) * seen[..., None, None]).to(factors) * factors
    shifts = shifts[..., None, None].to(device)
    turn = -2 * math.pi * (shifts[..., 0, :, :] * y + shifts[..., 1, :, :] * x)
    slices *= transfer * torch.polar(torch.ones_like(turn), turn).to(slices.dtype)
    squares: Tensor = transfer.square()
    return squares


@numba.njit(cache=True, inline="always")
@no_type_check
def sine(angle):  # noqa: ANN201
    """Return the sine to 4e-9, and without a branch, so that a row is done several pixels at a time."""
    half_turns = np.floor(angle / math.pi + 0.5)
    rest = angle - half_turns * math.pi
    sign = 1.0 - 2.0 * (half_turns - 2.0 * np.floor(0.5 * half_turns))
    square = rest * rest
    series = 1.0 / 6227020800.0
    series = series * square - 1.0 / 39916800.0
    series = series * square + 1.0 / 362880.0
    series = series * square - 1.0 / 5040.0
    series = series * square + 1.0 / 120.0
    series = series * square - 1.0 / 6.0
    return sign * (rest + rest * square * series)


@numba.njit(cache=True, parallel=True)
@no_type_check
def _weigh_numba(slices, shifts, phases, factors, seen, squares):
    particles, views, size, half = squares.shape
    for unit in numba.prange(particles * views):
        p, v = unit // views, unit % views
        if not seen[p, v]:
            slices[p, v] = 0.0
            squares[p, v] = 0.0
            continue
        xx, xy, yy, quartic, start = phases[p, v]
        turns = np.empty((half, 2))
        for kx in range(half):
            angle = -2 * math.pi * shifts[p, v, 1] * kx
            turns[kx, 0], turns[kx, 1] = math.cos(angle), math.sin(angle)
        for j in range(size):
            ky = j if 2 * j < size else j - size
            angle = -2 * math.pi * shifts[p, v, 0] * ky
            row_cos, row_sin = math.cos(angle), math.sin(angle)
            for kx in range(half):
                radius = float(kx * kx + ky * ky)
                chi = xx * kx * kx + xy * kx * ky + yy * ky * ky + quartic * radius * radius + start
                transfer = factors[v, j, kx] * sine(chi)
                cos = (row_cos * turns[kx, 0] - row_sin * turns[kx, 1]) * transfer
                sin = (row_cos * turns[kx, 1] + row_sin * turns[kx, 0]) * transfer
                real, imag = slices[p, v, j, kx, 0], slices[p, v, j, kx, 1]
                slices[p, v, j, kx, 0] = real * cos - imag * sin
                slices[p, v, j, kx, 1] = real * sin + imag * cos
                squares[p, v, j, kx] = transfer * transfer
