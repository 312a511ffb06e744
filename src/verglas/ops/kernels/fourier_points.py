"""Values of a turned Fourier volume at a list of its own voxels, with trilinear weights.

The volume is the half transform of a cube of even size N, origin at index 0. Turned by R it has at k the value
that it had at Rᵀ k; Friedel's mate stands in for what lies in the other half, and beyond Nyquist is nothing.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.shapes import Rotations


def read_turned(
    volume: Tensor, rotations: Rotations, places_xyz: Float[Tensor, "k 3"]
) -> Complex[Tensor, "r k"]:
    """Read turned volumes with the kernel of the tensors' device.

    Parameters
    ----------
    volume
        `(N, N, N // 2 + 1)` complex64.
    rotations
        `(r, 3, 3)`.
    places_xyz
        `(k, 3)` in voxels of the volume.

    Returns
    -------
    Tensor
        `(r, k)` complex64.
    """
    if volume.device.type != "cpu":
        return read_turned_reference(volume, rotations, places_xyz)
    values = volume.new_empty(len(rotations), len(places_xyz))
    _read_numba(
        volume.resolve_conj().contiguous().numpy(),
        rotations.double().contiguous().numpy(),
        places_xyz.double().contiguous().numpy(),
        values.numpy(),
    )
    return values


def read_turned_reference(
    volume: Tensor, rotations: Rotations, places_xyz: Float[Tensor, "k 3"]
) -> Complex[Tensor, "r k"]:
    """Do what `read_turned` does in plain torch."""
    size = volume.shape[0]
    values = []
    for rotation in rotations:
        place = places_xyz.double() @ rotation.double().to(places_xyz.device)
        mirrored = place[:, 0] < 0
        place = torch.where(mirrored[:, None], -place, place)
        inside = place.square().sum(-1) < (size / 2 - 1) ** 2
        place = torch.where(inside[:, None], place, 0.0)
        low = place.floor()
        fraction = place - low
        value = volume.new_zeros(len(place))
        for corner in range(8):
            step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=place.device)
            x, y, z = (low.long() + step).unbind(-1)
            weight = torch.where(step.bool(), fraction, 1 - fraction).prod(-1)
            value = value + volume[z % size, y % size, x] * weight.to(volume.real.dtype)
        values.append(torch.where(mirrored, value.conj(), value) * inside)
    return torch.stack(values)


@numba.njit(cache=True, parallel=True)
@no_type_check
def _read_numba(volume, rotations, places, values):
    size = volume.shape[0]
    limit = (size / 2 - 1) ** 2
    for r in numba.prange(rotations.shape[0]):
        m = rotations[r]
        for k in range(places.shape[0]):
            kx, ky, kz = places[k, 0], places[k, 1], places[k, 2]
            x = m[0, 0] * kx + m[1, 0] * ky + m[2, 0] * kz
            y = m[0, 1] * kx + m[1, 1] * ky + m[2, 1] * kz
            z = m[0, 2] * kx + m[1, 2] * ky + m[2, 2] * kz
            if x * x + y * y + z * z >= limit:
                values[r, k] = 0
                continue
            mirrored = x < 0
            if mirrored:
                x, y, z = -x, -y, -z
            x0, y0, z0 = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
            fx, fy, fz = np.float32(x - x0), np.float32(y - y0), np.float32(z - z0)
            one = np.float32(1)
            value = np.complex64(0)
            for dz in range(2):
                wz = fz if dz else one - fz
                zi = (z0 + dz) % size
                for dy in range(2):
                    w = wz * (fy if dy else one - fy)
                    yi = (y0 + dy) % size
                    value += w * ((one - fx) * volume[zi, yi, x0] + fx * volume[zi, yi, x0 + 1])
            values[r, k] = value.conjugate() if mirrored else value
