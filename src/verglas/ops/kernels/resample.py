"""Sampling of views along the rows that back-projection adds.

Convention
----------
Coefficients are those of a cubic B-spline (`verglas.ops.backprojection.spline_response` divides them out of an
image in Fourier space). Sample `(v, phase, k)` of view t is taken at the pixel

    frames[t, 0] + frames[t, 1] * v + frames[t, 2] * (k + phase / phases)     along y
    frames[t, 3] + frames[t, 4] * v + frames[t, 5] * (k + phase / phases)     along x

Places outside the image are zero. Next to its edges the coefficients go on mirrored at the outermost pixels.
"""

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verglas.shapes import Image, Values

EDGE = 1e-4
"""Pixels by which rounding may take a place on the outermost pixels beyond them."""


def resample_rows(coefficients: Image, frames: Values, shape: tuple[int, int, int]) -> Values:
    """Sample every view on its own sheared frame.

    Parameters
    ----------
    coefficients
        `(n, y, x)` float32 cubic B-spline coefficients of the views.
    frames
        `(n, 6)` float64 places of the samples, see the module's convention.
    shape
        `(v, phase, k)` number of samples.

    Returns
    -------
    Tensor
        `(n, v, phase, k)` float32.
    """
    if coefficients.ndim != 3 or frames.shape != (coefficients.shape[0], 6):
        raise ValueError(
            f"`coefficients` must be (n, y, x) and `frames` (n, 6); "
            f"got {tuple(coefficients.shape)}, {tuple(frames.shape)}"
        )
    if coefficients.device.type == "cuda":
        return resample_rows_reference(coefficients, frames, shape)
    rows = torch.empty((coefficients.shape[0], *shape), dtype=torch.float32)
    _resample_numba(coefficients.contiguous().numpy(), frames.to(torch.float64).numpy(), rows.numpy())
    return rows


def resample_rows_reference(coefficients: Tensor, frames: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Do what `resample_rows` does, in plain torch; also what runs on a GPU, a view at a time."""
    v_size, phases, k_size = shape
    device = coefficients.device
    v = torch.arange(v_size, dtype=torch.float64, device=device)[:, None, None]
    k = torch.arange(k_size, dtype=torch.float64, device=device)
    k = k + torch.arange(phases, dtype=torch.float64, device=device)[:, None] / phases
    rows = torch.empty((coefficients.shape[0], *shape), dtype=torch.float32, device=device)
    for image, frame, row in zip(coefficients, frames.to(device), rows, strict=True):
        y = frame[0] + frame[1] * v + frame[2] * k
        x = frame[3] + frame[4] * v + frame[5] * k
        height, width = image.shape
        inside = (y >= -EDGE) & (y <= height - 1 + EDGE) & (x >= -EDGE) & (x <= width - 1 + EDGE)
        y_low, x_low = y.floor().long() - 1, x.floor().long() - 1
        y_weights, x_weights = _spline_weights(y - y.floor()), _spline_weights(x - x.floor())
        total = torch.zeros(shape, dtype=torch.float32, device=device)
        for i in range(4):
            rows_of = _mirror(y_low + i, height)
            for j in range(4):
                weights = (y_weights[i] * x_weights[j]).float()
                total += weights * image[rows_of, _mirror(x_low + j, width)]
        row.copy_(total * inside)
    return rows


def _mirror(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.minimum(index, 2 * (size - 1) - index).clamp(min=0)


def _spline_weights(t: Tensor) -> list[Tensor]:
    return [
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    ]


@numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)
def _resample_numba(
    coefficients: npt.NDArray[np.float32], frames: npt.NDArray[np.float64], rows: npt.NDArray[np.float32]
) -> None:
    views, y_size, x_size = coefficients.shape
    _, v_size, phases, k_size = rows.shape
    for job in numba.prange(views * v_size):
        t, v = job // v_size, job % v_size
        image = coefficients[t]
        for phase in range(phases):
            target = rows[t, v, phase]
            y_start = frames[t, 0] + frames[t, 1] * v + frames[t, 2] * phase / phases
            x_start = frames[t, 3] + frames[t, 4] * v + frames[t, 5] * phase / phases
            for k in range(k_size):
                y = y_start + frames[t, 2] * k
                x = x_start + frames[t, 5] * k
                iy, ix = int(np.floor(y)) - 1, int(np.floor(x)) - 1
                if iy < 0 or iy + 3 >= y_size or ix < 0 or ix + 3 >= x_size:
                    target[k] = _sample_at_edge(image, y, x)
                    continue
                a = np.float32(y - np.floor(y))
                b = np.float32(x - np.floor(x))
                sixth = np.float32(1.0 / 6.0)
                one, three, four, six = np.float32(1), np.float32(3), np.float32(4), np.float32(6)
                b0 = (one - b) * (one - b) * (one - b) * sixth
                b1 = (four - six * b * b + three * b * b * b) * sixth
                b3 = b * b * b * sixth
                b2 = one - b0 - b1 - b3
                a0 = (one - a) * (one - a) * (one - a) * sixth
                a1 = (four - six * a * a + three * a * a * a) * sixth
                a3 = a * a * a * sixth
                a2 = one - a0 - a1 - a3
                r0 = image[iy, ix : ix + 4]
                r1 = image[iy + 1, ix : ix + 4]
                r2 = image[iy + 2, ix : ix + 4]
                r3 = image[iy + 3, ix : ix + 4]
                target[k] = (
                    a0 * (b0 * r0[0] + b1 * r0[1] + b2 * r0[2] + b3 * r0[3])
                    + a1 * (b0 * r1[0] + b1 * r1[1] + b2 * r1[2] + b3 * r1[3])
                    + a2 * (b0 * r2[0] + b1 * r2[1] + b2 * r2[2] + b3 * r2[3])
                    + a3 * (b0 * r3[0] + b1 * r3[1] + b2 * r3[2] + b3 * r3[3])
                )


@numba.njit(fastmath=True, nogil=True, cache=True)
def _sample_at_edge(image: npt.NDArray[np.float32], y: float, x: float) -> float:
    height, width = image.shape
    if y < -EDGE or y > height - 1 + EDGE or x < -EDGE or x > width - 1 + EDGE:
        return 0.0
    total = 0.0
    for i in range(4):
        row = abs(int(np.floor(y)) - 1 + i)
        row = max(0, min(row, 2 * (height - 1) - row))
        for j in range(4):
            column = abs(int(np.floor(x)) - 1 + j)
            column = max(0, min(column, 2 * (width - 1) - column))
            total += _spline(y - np.floor(y) + 1 - i) * _spline(x - np.floor(x) + 1 - j) * image[row, column]
    return total


@numba.njit(fastmath=True, nogil=True, cache=True)
def _spline(t: float) -> float:
    t = abs(t)
    if t < 1:
        return (4 - 6 * t * t + 3 * t * t * t) / 6
    return max(0.0, 2 - t) ** 3 / 6
