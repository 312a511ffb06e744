"""Central slices read from, and added to, a Fourier volume with trilinear weights.

The volume is the half transform of a cube of even size N, origin at index 0. A slice is the half transform
of an n x n image; its pixel (kx, ky) lies in the volume at N / n · Rᵀ (kx, ky, 0), since R takes the
reference frame to the frame in which the beam is z. Pixels at or beyond Nyquist are left out: there a rotated
slice has no partner. Each pixel of a half transform stands for itself and its Friedel mate, so the column
kx = 0, which holds both, counts half when it is added.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from verglas.shapes import Rotations

try:
    from verglas.ops.kernels import fourier_slice_triton as _triton
except ImportError:  # triton comes with the `cuda` extra only
    _triton = None  # type: ignore[assignment]


def extract(volume: Tensor, rotations: Rotations, image_size: int) -> Tensor:
    """Read slices with the kernel of the tensors' device; gradients and float64 on CUDA take the reference.

    Parameters
    ----------
    volume
        `(N, N, N // 2 + 1)` complex.
    rotations
        `(s, 3, 3)` reference to specimen.
    image_size
        Side n of the images.

    Returns
    -------
    Tensor
        `(s, n, n // 2 + 1)` complex.
    """
    if torch.is_grad_enabled() and (volume.requires_grad or rotations.requires_grad):
        return extract_reference(volume, rotations, image_size)
    volume, rotations = volume.detach().resolve_conj().contiguous(), rotations.detach().contiguous()
    slices = volume.new_zeros(len(rotations), image_size, image_size // 2 + 1)
    if volume.device.type == "cpu":
        _extract_numba(volume.numpy(), rotations.double().numpy(), slices.numpy())
    elif _triton is not None and volume.dtype == torch.complex64:
        _triton.extract(volume, rotations.float(), slices)
    else:
        slices = extract_reference(volume, rotations, image_size)
    return slices


def insert(slices: Tensor, weights: Tensor, rotations: Rotations, sums: Tensor, totals: Tensor) -> None:
    """Add slices to `sums` and their weights to `totals`, in place, with the kernel of the tensors' device.

    Parameters
    ----------
    slices
        `(p, s, n, n // 2 + 1)` complex: s slices for each of p volumes.
    weights
        `(p, s, n, n // 2 + 1)` real.
    rotations
        `(p, s, 3, 3)` reference to specimen.
    sums, totals
        `(p, N, N, N // 2 + 1)` complex and real, contiguous.
    """
    slices, weights = slices.detach().resolve_conj().contiguous(), weights.detach().contiguous()
    rotations = rotations.detach().contiguous()
    if sums.device.type == "cpu":
        arrays = (slices.numpy(), weights.numpy(), rotations.double().numpy())
        threads = numba.get_num_threads()
        parts = threads if len(sums) < threads else 1
        _insert_numba(*arrays, torch.view_as_real(sums).numpy(), totals.numpy(), parts)
        return
    for one in zip(slices, weights, rotations, sums, totals, strict=True):
        if _triton is not None and sums.dtype == torch.complex64:
            _triton.insert(one[0], one[1], one[2].float(), one[3], one[4])
        else:
            insert_reference(*one)


def extract_reference(volume: Tensor, rotations: Rotations, image_size: int) -> Tensor:
    """Do what `extract` does in plain torch; differentiable in the volume and the rotations."""
    place, mirrored, inside = _places(rotations, image_size, volume.shape[0])
    slices = volume.new_zeros(place.shape[:-1])
    for index, weight in _corners(place, volume.shape[0]):
        slices = slices + volume.reshape(-1)[index] * weight
    return torch.where(mirrored, slices.conj(), slices) * inside


def insert_reference(
    slices: Tensor, weights: Tensor, rotations: Rotations, sums: Tensor, totals: Tensor
) -> None:
    """Do what `insert` does in plain torch."""
    place, mirrored, inside = _places(rotations, slices.shape[-2], sums.shape[0])
    factor = inside.to(totals.dtype)
    factor[..., 0] *= 0.5
    values = torch.where(mirrored, slices.conj(), slices) * factor
    for index, weight in _corners(place, sums.shape[0]):
        sums.view(-1).index_add_(0, index.reshape(-1), (values * weight).reshape(-1))
        totals.view(-1).index_add_(0, index.reshape(-1), (weights * factor * weight).reshape(-1))


def _places(rotations: Tensor, size: int, volume_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where pixels lie in the half volume, `(s, n, n // 2 + 1, 3)` xyz; which are conjugated; which count."""
    options: Any = {"dtype": rotations.dtype, "device": rotations.device}
    ky = torch.fft.fftfreq(size, 1 / size, **options)[:, None]
    kx = torch.fft.rfftfreq(size, 1 / size, **options)
    pixels = torch.stack([kx.expand(size, -1), ky.expand(-1, len(kx))], dim=-1)
    place = torch.einsum("yxi,sij->syxj", pixels, rotations[..., :2, :]) * (volume_size / size)
    mirrored = place[..., 0] < 0
    place = torch.where(mirrored[..., None], -place, place)
    inside = (4 * (kx**2 + ky**2) < size**2) & ((place**2).sum(-1) < (volume_size / 2) ** 2)
    return torch.where(inside[..., None], place, 0.0), mirrored, inside


def _corners(place: Tensor, volume_size: int) -> list[tuple[Tensor, Tensor]]:
    """Flat index and weight of each of the eight voxels around the places."""
    low = place.detach().floor()
    fraction = place - low
    corners = []
    for corner in range(8):
        step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=place.device)
        x, y, z = (low.long() + step).unbind(-1)
        index = (z % volume_size * volume_size + y % volume_size) * (volume_size // 2 + 1) + x
        weight = torch.where(step.bool(), fraction, 1 - fraction).prod(-1)
        corners.append((index, weight))
    return corners


@numba.njit(cache=True, inline="always")
@no_type_check
def _place(matrix, kx, ky, scale):
    x = (matrix[0, 0] * kx + matrix[1, 0] * ky) * scale
    y = (matrix[0, 1] * kx + matrix[1, 1] * ky) * scale
    z = (matrix[0, 2] * kx + matrix[1, 2] * ky) * scale
    return x, y, z


@numba.njit(cache=True, parallel=True)
@no_type_check
def _extract_numba(volume, rotations, slices):
    size, half = slices.shape[1], slices.shape[2]
    volume_size = volume.shape[0]
    scale = volume_size / size
    for row in numba.prange(slices.shape[0] * size):
        s, j = row // size, row % size
        ky = j if 2 * j < size else j - size
        for kx in range(half):
            x, y, z = _place(rotations[s], kx, ky, scale)
            if 4 * (kx * kx + ky * ky) >= size * size or 4 * (x * x + y * y + z * z) >= volume_size**2:
                continue
            mirrored = x < 0
            if mirrored:
                x, y, z = -x, -y, -z
            x0, y0, z0 = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
            fx, fy, fz = x - x0, y - y0, z - z0
            value = 0j
            for dz in range(2):
                wz = fz if dz else 1.0 - fz
                zi = (z0 + dz) % volume_size
                for dy in range(2):
                    w = wz * (fy if dy else 1.0 - fy)
                    yi = (y0 + dy) % volume_size
                    value += w * ((1.0 - fx) * volume[zi, yi, x0] + fx * volume[zi, yi, x0 + 1])
            slices[s, j, kx] = value.conjugate() if mirrored else value


@numba.njit(cache=True, parallel=True)
@no_type_check
def _insert_numba(slices, weights, rotations, sums, totals, parts):
    # Of each volume every part owns the sections z = part (mod parts) and walks over all pixels: no two threads meet,
    # and a voxel's terms are added in the same order however many threads there are. Places are unsigned and count
    # from the first number: numba then needs no branch for indices below zero, which took most of the time.
    volumes, count, size, half = slices.shape
    side, width = totals.shape[1], totals.shape[3]
    flat_sums, flat_totals = sums.reshape(-1), totals.reshape(-1)
    scale = side / size
    number = totals.dtype.type
    one = number(1.0)
    for unit in numba.prange(volumes * parts):
        volume, part = unit // parts, unit % parts
        for s in range(count):
            matrix = rotations[volume, s]
            ax, ay, az = matrix[0, 0] * scale, matrix[0, 1] * scale, matrix[0, 2] * scale
            bx, by, bz = matrix[1, 0] * scale, matrix[1, 1] * scale, matrix[1, 2] * scale
            for j in range(size):
                ky = j if 2 * j < size else j - size
                for kx in range(half):
                    if 4 * (kx * kx + ky * ky) >= size * size:
                        break
                    x, y, z = ax * kx + bx * ky, ay * kx + by * ky, az * kx + bz * ky
                    if 4 * (x * x + y * y + z * z) >= side * side:
                        continue
                    turn = one
                    if x < 0:
                        x, y, z, turn = -x, -y, -z, -one
                    x0, y0, z0 = int(x), int(np.floor(y)), int(np.floor(z))
                    fx, fy, fz = number(x - x0), number(y - y0), number(z - z0)
                    y1, z1 = y0 + 1, z0 + 1
                    # A modulus would take longer than all the rest.
                    y0 += side if y0 < 0 else 0
                    y1 += side if y1 < 0 else 0
                    z0 += side if z0 < 0 else 0
                    z1 += side if z1 < 0 else 0
                    share = number(0.5) if kx == 0 else one
                    value = slices[volume, s, j, kx]
                    real, imag = share * value.real, share * turn * value.imag
                    weight = share * weights[volume, s, j, kx]
                    for dz in range(2):
                        zi = z1 if dz else z0
                        if parts > 1 and zi % parts != part:
                            continue
                        wz = fz if dz else one - fz
                        for dy in range(2):
                            yi = y1 if dy else y0
                            w = wz * (fy if dy else one - fy)
                            near, far = w * (one - fx), w * fx
                            total = np.uint64(((volume * side + zi) * side + yi) * width + x0)
                            place = np.uint64(2) * total
                            flat_sums[place] += near * real
                            flat_sums[place + np.uint64(1)] += near * imag
                            flat_sums[place + np.uint64(2)] += far * real
                            flat_sums[place + np.uint64(3)] += far * imag
                            flat_totals[total] += near * weight
                            flat_totals[total + np.uint64(1)] += far * weight
