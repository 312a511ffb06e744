"""Sums over the aligned transforms of many images, without the aligned transforms.

Convention
----------
Image i has the half transform F_i at frequencies (y, x); aligned it is M_i = F_i e^{2πi (y s_i + x t_i)} for a
displacement (s_i, t_i). With R = Σ M_i over the images, what is summed over frequencies is

- `score`: Σ w Im(M_i R*) times y and times x for each i, and Σ w C times y², yx and x², where C = |R|² - Σ |M_i|²;
- `powers`: Σ |M_i|² over i and C, by ring.

Rows are parted in the same way for any number of threads, so that the sums are the same to the last digit.
"""

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.runtime import map_threads

FloatArray = npt.NDArray[np.float64]

_ROWS = 64


def sum_scores(
    transforms: Complex[Tensor, "n h w"],
    shifts: Float[Tensor, "n 2"],
    y: Float[Tensor, " r"],
    x: Float[Tensor, " c"],
    weights: Float[Tensor, "r c"],
    rows: Float[Tensor, " r"],
) -> tuple[FloatArray, FloatArray]:
    """Sum the slopes of the images and the products of what they have in common; see the module's convention.

    Parameters
    ----------
    transforms
        `(n, h, w)`, of which `rows` and the first columns count.
    shifts
        `(n, 2)` yx.
    y, x
        `(r,)` frequencies of the rows, `(c,)` of the first columns.
    weights
        `(r, c)` w.
    rows
        `(r,)` indices.

    Returns
    -------
    slopes, products
        `(n, 2)` for y and x; `(3,)` for y², yx and x².
    """
    given = _prepare(transforms, shifts, y, x, rows)
    table = weights.float().contiguous().numpy()

    def add(first: int) -> tuple[FloatArray, FloatArray]:
        sums: tuple[FloatArray, FloatArray] = _sum_scores(
            *(*given, table, first, min(first + _ROWS, len(rows)))
        )
        return sums

    parts = map_threads(add, range(0, len(rows), _ROWS))
    return np.sum([slopes for slopes, _ in parts], axis=0), np.sum(
        [products for _, products in parts], axis=0
    )


def sum_powers(
    transforms: Complex[Tensor, "n h w"],
    shifts: Float[Tensor, "n 2"],
    y: Float[Tensor, " h"],
    x: Float[Tensor, " w"],
    rings: Float[Tensor, "h w"],
) -> FloatArray:
    """Sum powers by ring, `(2, k)`: of the images, and of what they have in common; rings below 0 are left out."""
    given = _prepare(transforms, shifts, y, x, torch.arange(len(y)))
    table = rings.to(torch.int32).contiguous().numpy()
    count = int(rings.max()) + 1

    def add(first: int) -> FloatArray:
        sums: FloatArray = _sum_powers(*(*given, table, count, first, min(first + _ROWS, len(y))))
        return sums

    total: FloatArray = np.sum(map_threads(add, range(0, len(y), _ROWS)), axis=0)
    return total


def _prepare(transforms: Tensor, shifts: Tensor, y: Tensor, x: Tensor, rows: Tensor) -> tuple[Any, ...]:
    shifts = shifts.to(torch.float64)
    turn_y = torch.exp(2j * math.pi * shifts[:, :1] * y.double())
    turn_x = torch.exp(2j * math.pi * shifts[:, 1:] * x.double())
    return (
        transforms.to(torch.complex64).contiguous().numpy(),
        rows.numpy(),
        turn_y.to(torch.complex64).numpy(),
        turn_x.real.float().contiguous().numpy(),
        turn_x.imag.float().contiguous().numpy(),
        y.float().numpy(),
        x.float().numpy(),
    )


@numba.njit(fastmath=True, nogil=True, cache=True)
def _align_row(
    transforms: npt.NDArray[np.complex64],
    row: int,
    turns: npt.NDArray[np.complex64],
    real_x: npt.NDArray[np.float32],
    imag_x: npt.NDArray[np.float32],
    real: npt.NDArray[np.float32],
    imag: npt.NDArray[np.float32],
    total: npt.NDArray[np.float32],
) -> None:
    """Aligned transforms of one row, their sum (real and imaginary part), and the sum of their powers."""
    width = real_x.shape[1]
    total[:] = 0
    total_real, total_imag, own = total[0], total[1], total[2]
    for f in range(len(transforms)):
        line = transforms[f, row, :width]
        cos, sin = turns[f].real, turns[f].imag
        cos_x, sin_x, into_real, into_imag = real_x[f], imag_x[f], real[f], imag[f]
        for c in range(width):
            a = cos * cos_x[c] - sin * sin_x[c]
            b = cos * sin_x[c] + sin * cos_x[c]
            value = line[c]
            into_real[c] = value.real * a - value.imag * b
            into_imag[c] = value.real * b + value.imag * a
        for c in range(width):
            total_real[c] += into_real[c]
            total_imag[c] += into_imag[c]
        for c in range(width):
            own[c] += into_real[c] * into_real[c] + into_imag[c] * into_imag[c]


@numba.njit(fastmath=True, nogil=True, cache=True)
def _sum_scores(
    transforms: npt.NDArray[np.complex64],
    rows: npt.NDArray[np.int64],
    turn_y: npt.NDArray[np.complex64],
    real_x: npt.NDArray[np.float32],
    imag_x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    first: int,
    last: int,
) -> tuple[FloatArray, FloatArray]:
    count, width = real_x.shape
    real, imag = np.empty((count, width), np.float32), np.empty((count, width), np.float32)
    total = np.empty((3, width), np.float32)
    slopes, products = np.zeros((count, 2)), np.zeros(3)
    for r in range(first, last):
        _align_row(transforms, rows[r], turn_y[:, r], real_x, imag_x, real, imag, total)
        weight, total_real, total_imag, own = weights[r], total[0], total[1], total[2]
        level, tilted, bent = np.float32(0), np.float32(0), np.float32(0)
        for c in range(width):
            common = weight[c] * (total_real[c] * total_real[c] + total_imag[c] * total_imag[c] - own[c])
            level += common
            tilted += common * x[c]
            bent += common * x[c] * x[c]
        products[0] += y[r] * y[r] * level
        products[1] += y[r] * tilted
        products[2] += bent
        for c in range(width):
            total_real[c] *= weight[c]
            total_imag[c] *= weight[c]
        for f in range(count):
            own_real, own_imag = real[f], imag[f]
            level, tilted = np.float32(0), np.float32(0)
            for c in range(width):
                slope = own_imag[c] * total_real[c] - own_real[c] * total_imag[c]
                level += slope
                tilted += slope * x[c]
            slopes[f, 0] += y[r] * level
            slopes[f, 1] += tilted
    return slopes, products


@numba.njit(fastmath=True, nogil=True, cache=True)
def _sum_powers(
    transforms: npt.NDArray[np.complex64],
    rows: npt.NDArray[np.int64],
    turn_y: npt.NDArray[np.complex64],
    real_x: npt.NDArray[np.float32],
    imag_x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    rings: npt.NDArray[np.int32],
    size: int,
    first: int,
    last: int,
) -> FloatArray:
    count, width = real_x.shape
    real, imag = np.empty((count, width), np.float32), np.empty((count, width), np.float32)
    total = np.empty((3, width), np.float32)
    sums = np.zeros((2, size))
    for r in range(first, last):
        _align_row(transforms, rows[r], turn_y[:, r], real_x, imag_x, real, imag, total)
        for c in range(width):
            ring = rings[r, c]
            if ring >= 0:
                sums[0, ring] += total[2, c]
                sums[1, ring] += total[0, c] * total[0, c] + total[1, c] * total[1, c] - total[2, c]
    return sums
