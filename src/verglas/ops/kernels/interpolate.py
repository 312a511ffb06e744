"""Resampling of volumes under affine maps, linear or with cubic B-splines.

Convention
----------
Indices are zyx. Voxel o of the result is read at the place `inverse[:, :3] @ o + inverse[:, 3]` of the input.
Inside the footprint of the input, from -0.5 to n - 0.5 on each axis, its samples (or spline coefficients) are
continued by mirrors at the outer samples; outside, the result is `fill`. An image is a volume of one section.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

import math
from collections.abc import Iterator
from itertools import product
from typing import no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

try:
    from verglas.ops.kernels import interpolate_triton as _triton
except ImportError:  # triton comes with the `cuda` extra only
    _triton = None  # type: ignore[assignment]

_POLE = math.sqrt(3.0) - 2.0
# Powers of the pole from here on are below the rounding of float64.
_HORIZON = 30
_POINTS_AT_ONCE = 1 << 20


def sample_affine(
    volumes: Tensor, inverse: Tensor, out_shape: tuple[int, int, int], cubic: bool, fill: float
) -> Tensor:
    """Read volumes under affine maps with the kernel of the tensors' device; gradients take the reference.

    Parameters
    ----------
    volumes
        `(n, z, y, x)` samples, or spline coefficients when `cubic`; n is 1 or b.
    inverse
        `(b, 3, 4)` float64, see the module's convention.
    out_shape
        Sizes of each result, zyx.
    cubic
        Whether to read with cubic B-splines.
    fill
        What lies outside.

    Returns
    -------
    Tensor
        `(b, *out_shape)` in the dtype of `volumes`.
    """
    if torch.is_grad_enabled() and (volumes.requires_grad or inverse.requires_grad):
        return sample_affine_reference(volumes, inverse, out_shape, cubic, fill)
    volumes, inverse = volumes.detach().contiguous(), inverse.detach().contiguous()
    if volumes.device.type == "cpu" and volumes.dtype in {torch.float32, torch.float64}:
        result = volumes.new_empty(len(inverse), *out_shape)
        kernel = _cubic_numba if cubic else _linear_numba
        kernel(volumes.numpy(), inverse.numpy(), result.numpy(), fill)
        return result
    if volumes.device.type == "cuda" and _triton is not None and volumes.dtype == torch.float32:
        return _triton.sample_affine(volumes, inverse, out_shape, cubic, fill)
    return sample_affine_reference(volumes, inverse, out_shape, cubic, fill)


def sample_affine_reference(
    volumes: Tensor, inverse: Tensor, out_shape: tuple[int, int, int], cubic: bool, fill: float
) -> Tensor:
    """Do what `sample_affine` does, in plain torch; differentiable in the volumes and the maps."""
    results = []
    for item, affine in enumerate(inverse):
        volume = volumes[item if len(volumes) > 1 else 0]
        parts = [read_places(volume, places, cubic, fill) for places in _places(affine, out_shape)]
        results.append(torch.cat(parts).reshape(out_shape))
    return torch.stack(results) if results else volumes.new_empty(0, *out_shape)


def spline_coefficients(volumes: Tensor, dims: int) -> Tensor:
    """Turn samples into cubic B-spline coefficients with the kernel of the tensor's device.

    Parameters
    ----------
    volumes
        `(..., n)`.
    dims
        How many of the last axes are filtered.

    Returns
    -------
    Tensor
        Coefficients c with (c[i - 1] + 4 c[i] + c[i + 1]) / 6 the samples, continued by mirrors (Unser,
        Aldroubi and Eden 1993).
    """
    numba_can = volumes.device.type == "cpu" and volumes.dtype in {torch.float32, torch.float64}
    if not numba_can or (torch.is_grad_enabled() and volumes.requires_grad):
        return spline_coefficients_reference(volumes, dims)
    coefficients = volumes.detach().clone(memory_format=torch.contiguous_format)
    for axis in range(-dims, 0):
        size, inner = volumes.shape[axis], math.prod(volumes.shape[axis:][1:])
        if size > 1:
            _prefilter_numba(coefficients.view(-1, size, inner).numpy())
    return coefficients


def spline_coefficients_reference(volumes: Tensor, dims: int) -> Tensor:
    """Do what `spline_coefficients` does, in plain torch: the banded matrix of each axis is inverted."""
    for axis in range(-dims, 0):
        size = volumes.shape[axis]
        if size > 1:
            line = torch.full((size - 1,), 1 / 6, dtype=torch.float64, device=volumes.device)
            matrix = torch.eye(size, dtype=torch.float64, device=volumes.device) * (4 / 6)
            matrix = matrix + line.diag(1) + line.diag(-1)
            matrix[0, 1] += 1 / 6
            matrix[-1, -2] += 1 / 6
            solve = torch.linalg.inv(matrix).to(volumes.dtype)
            volumes = (volumes.movedim(axis, -1) @ solve.mT).movedim(-1, axis)
    return volumes


def _places(affine: Tensor, out_shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Yield the `(m, 3)` input places of all output voxels, a few sections at a time."""
    z, y, x = (torch.arange(n, dtype=affine.dtype, device=affine.device)[:, None] for n in out_shape)
    plane = (y * affine[:, 1])[:, None] + x * affine[:, 2]
    sections = max(1, _POINTS_AT_ONCE // (out_shape[1] * out_shape[2]))
    for part in torch.split(z * affine[:, 0] + affine[:, 3], sections):
        yield (part[:, None, None] + plane).reshape(-1, 3)


def read_places(volume: Tensor, places: Tensor, cubic: bool, fill: float) -> Tensor:
    """Read samples, or spline coefficients when `cubic`, `(z, y, x)` at `(m, 3)` places zyx, in plain torch."""
    low = places.detach().floor()
    indices, weights = [], []
    for axis, size in enumerate(volume.shape):
        fraction, first = places[:, axis] - low[:, axis], low[:, axis].long()
        if size == 1:
            indices.append([torch.zeros_like(first)])
            weights.append([torch.ones_like(fraction)])
        else:
            offsets = range(-1, 3) if cubic else range(2)
            indices.append([_mirror(first + offset, size) for offset in offsets])
            weights.append(_cubic_weights(fraction) if cubic else [1 - fraction, fraction])
    flat = volume.reshape(-1)
    total = volume.new_zeros(len(places))
    for z, y, x in product(*(range(len(taps)) for taps in indices)):
        index = (indices[0][z] * volume.shape[1] + indices[1][y]) * volume.shape[2] + indices[2][x]
        total = total + (weights[0][z] * weights[1][y] * weights[2][x]).to(volume.dtype) * flat[index]
    sizes = places.new_tensor(volume.shape)
    inside = ((places >= -0.5) & (places < sizes - 0.5)).all(-1)
    return torch.where(inside, total, fill)


def _cubic_weights(t: Tensor) -> list[Tensor]:
    return [(1 - t) ** 3 / 6, 2 / 3 - t**2 * (2 - t) / 2, 2 / 3 - (1 - t) ** 2 * (1 + t) / 2, t**3 / 6]


def _mirror(index: Tensor, size: int) -> Tensor:
    # Twice, because the four taps of a spline are wider than a short axis; a place outside is made harmless.
    index = index.abs()
    index = torch.where(index >= size, (2 * size - 2 - index).abs(), index)
    return index.clamp_max(size - 1)


@no_type_check
@numba.njit(inline="always")
def _mirror_numba(index, size):
    index = abs(index)
    if index >= size:
        index = abs(2 * size - 2 - index)
    return min(index, size - 1)


@no_type_check
@numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)
def _linear_numba(volumes, inverse, result, fill):
    count, z_size, y_size, x_size = volumes.shape
    _, z_out, y_out, x_out = result.shape
    for job in numba.prange(len(inverse) * z_out * y_out):
        item, z_to, y_to = job // (z_out * y_out), job // y_out % z_out, job % y_out
        m = inverse[item]
        volume = volumes[item if count > 1 else 0]
        target = result[item, z_to, y_to]
        z_start = m[0, 0] * z_to + m[0, 1] * y_to + m[0, 3]
        y_start = m[1, 0] * z_to + m[1, 1] * y_to + m[1, 3]
        x_start = m[2, 0] * z_to + m[2, 1] * y_to + m[2, 3]
        for x_to in range(x_out):
            z = z_start + m[0, 2] * x_to
            y = y_start + m[1, 2] * x_to
            x = x_start + m[2, 2] * x_to
            if not (-0.5 <= z < z_size - 0.5 and -0.5 <= y < y_size - 0.5 and -0.5 <= x < x_size - 0.5):
                target[x_to] = fill
                continue
            z0, y0, x0 = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
            a, b, c = z - z0, y - y0, x - x0
            z1, y1, x1 = z0 + 1, y0 + 1, x0 + 1
            if y0 < 0 or y1 >= y_size:
                y0, y1 = _mirror_numba(y0, y_size), _mirror_numba(y1, y_size)
            if x0 < 0 or x1 >= x_size:
                x0, x1 = _mirror_numba(x0, x_size), _mirror_numba(x1, x_size)
            if z_size == 1:
                plane = volume[0]
                low = (1 - c) * plane[y0, x0] + c * plane[y0, x1]
                high = (1 - c) * plane[y1, x0] + c * plane[y1, x1]
                target[x_to] = (1 - b) * low + b * high
                continue
            if z0 < 0 or z1 >= z_size:
                z0, z1 = _mirror_numba(z0, z_size), _mirror_numba(z1, z_size)
            p00 = (1 - c) * volume[z0, y0, x0] + c * volume[z0, y0, x1]
            p01 = (1 - c) * volume[z0, y1, x0] + c * volume[z0, y1, x1]
            p10 = (1 - c) * volume[z1, y0, x0] + c * volume[z1, y0, x1]
            p11 = (1 - c) * volume[z1, y1, x0] + c * volume[z1, y1, x1]
            target[x_to] = (1 - a) * ((1 - b) * p00 + b * p01) + a * ((1 - b) * p10 + b * p11)


@no_type_check
@numba.njit(inline="always")
def _cubic_weights_numba(t):
    s = 1.0 - t
    return s * s * s / 6, 2 / 3 - t * t * (2 - t) / 2, 2 / 3 - s * s * (2 - s) / 2, t * t * t / 6


@no_type_check
@numba.njit(inline="always")
def _read_plane_numba(flat, start, y_stride, v, w):
    """Read 4 x 4 samples from `start` on; those along x are contiguous, so that they share instructions."""
    real = flat.dtype.type
    s0 = s1 = s2 = s3 = real(0)
    for j in range(4):
        weight = real(v[0] if j == 0 else v[1] if j == 1 else v[2] if j == 2 else v[3])
        # Unsigned, because a signed index would be tested for being negative.
        at = start + j * y_stride
        s0 += weight * flat[np.uintp(at)]
        s1 += weight * flat[np.uintp(at + 1)]
        s2 += weight * flat[np.uintp(at + 2)]
        s3 += weight * flat[np.uintp(at + 3)]
    return real(w[0]) * s0 + real(w[1]) * s1 + real(w[2]) * s2 + real(w[3]) * s3


@no_type_check
@numba.njit(fastmath=True, nogil=True)
def _read_border_numba(volume, zi, yi, xi, u, v, w):
    """Read 4 x 4 x 4 samples, or 4 x 4 of an image, with mirrors at the borders."""
    z_size, y_size, x_size = volume.shape
    x0, x1 = _mirror_numba(xi, x_size), _mirror_numba(xi + 1, x_size)
    x2, x3 = _mirror_numba(xi + 2, x_size), _mirror_numba(xi + 3, x_size)
    total = 0.0
    for i in range(4 if z_size > 1 else 1):
        plane = volume[_mirror_numba(zi + i, z_size)]
        outer = u[i] if z_size > 1 else 1.0
        for j in range(4):
            row = plane[_mirror_numba(yi + j, y_size)]
            total += outer * v[j] * (w[0] * row[x0] + w[1] * row[x1] + w[2] * row[x2] + w[3] * row[x3])
    return total


@no_type_check
@numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)
def _cubic_numba(volumes, inverse, result, fill):
    count, z_size, y_size, x_size = volumes.shape
    _, z_out, y_out, x_out = result.shape
    for job in numba.prange(len(inverse) * z_out * y_out):
        item, z_to, y_to = job // (z_out * y_out), job // y_out % z_out, job % y_out
        m = inverse[item]
        volume = volumes[item if count > 1 else 0]
        flat = volume.reshape(-1)
        target = result[item, z_to, y_to]
        z_start = m[0, 0] * z_to + m[0, 1] * y_to + m[0, 3]
        y_start = m[1, 0] * z_to + m[1, 1] * y_to + m[1, 3]
        x_start = m[2, 0] * z_to + m[2, 1] * y_to + m[2, 3]
        for x_to in range(x_out):
            z = z_start + m[0, 2] * x_to
            y = y_start + m[1, 2] * x_to
            x = x_start + m[2, 2] * x_to
            if not (-0.5 <= z < z_size - 0.5 and -0.5 <= y < y_size - 0.5 and -0.5 <= x < x_size - 0.5):
                target[x_to] = fill
                continue
            zi, yi, xi = int(np.floor(z)) - 1, int(np.floor(y)) - 1, int(np.floor(x)) - 1
            u = _cubic_weights_numba(z - zi - 1)
            v = _cubic_weights_numba(y - yi - 1)
            w = _cubic_weights_numba(x - xi - 1)
            z_inside = z_size == 1 or (zi >= 0 and zi + 3 < z_size)
            if z_inside and yi >= 0 and yi + 3 < y_size and xi >= 0 and xi + 3 < x_size:
                plane = y_size * x_size
                start = max(zi, 0) * plane + yi * x_size + xi
                if z_size == 1:
                    target[x_to] = _read_plane_numba(flat, start, x_size, v, w)
                else:
                    target[x_to] = (
                        u[0] * _read_plane_numba(flat, start, x_size, v, w)
                        + u[1] * _read_plane_numba(flat, start + plane, x_size, v, w)
                        + u[2] * _read_plane_numba(flat, start + 2 * plane, x_size, v, w)
                        + u[3] * _read_plane_numba(flat, start + 3 * plane, x_size, v, w)
                    )
            else:
                target[x_to] = _read_border_numba(volume, zi, yi, xi, u, v, w)


@no_type_check
@numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)
def _prefilter_numba(lines):
    outer, size, inner = lines.shape
    width = min(inner, 64)
    blocks = (inner + width - 1) // width
    period = 2 * size - 2
    for job in numba.prange(outer * blocks):
        start = job % blocks * width
        block = lines[job // blocks, :, start : min(start + width, inner)]
        for i in range(block.shape[1]):
            first = 0.0
            power = 1.0
            for k in range(_HORIZON):
                place = k % period
                first += power * block[place if place < size else period - place, i]
                power *= _POLE
            block[0, i] = first
        for k in range(1, size):
            for i in range(block.shape[1]):
                block[k, i] += _POLE * block[k - 1, i]
        for i in range(block.shape[1]):
            block[size - 1, i] = (
                6 * _POLE / (_POLE * _POLE - 1) * (block[size - 1, i] + _POLE * block[size - 2, i])
            )
        for k in range(size - 2, -1, -1):
            for i in range(block.shape[1]):
                block[k, i] = _POLE * (block[k + 1, i] - 6 * block[k, i])
