"""Fourier voxels of a cube between two resolutions: what coarse comparisons of maps need."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from verglas.errors import UserError

BandValues = Complex[Tensor, "n k"]
"""`(n, k)` values of n volumes at the voxels of a band."""


@dataclass(frozen=True, eq=False)
class Band:
    """Fourier voxels between two spheres, of the half transform of a cube.

    Parameters
    ----------
    size
        Side n of the cube, even: the smallest that holds the band.
    index
        `(k,)` flat into `(n, n, n // 2 + 1)`.
    places_xyz
        `(k, 3)` signed indices.
    counts
        `(k,)` 1, and 1/2 in the plane kx = 0, which holds every voxel and its mate.
    """

    size: int
    index: Int[Tensor, " k"]
    places_xyz: Float[Tensor, "k 3"]
    counts: Float[Tensor, " k"]


def choose_band(
    box: int,
    pixel_size_angstrom: float,
    finest_angstrom: float,
    coarsest_angstrom: float = math.inf,
    device: torch.device | str = "cpu",
) -> Band:
    """List the Fourier voxels of a box between two resolutions.

    Parameters
    ----------
    box
        Side of the box, pixels.
    pixel_size_angstrom
        Of the box.
    finest_angstrom, coarsest_angstrom
        Limits of the band. The origin never belongs to it, nor what lies at or beyond Nyquist.
    device
        Of the tensors.

    Raises
    ------
    UserError
        When the band holds nothing.
    """
    extent = box * pixel_size_angstrom
    high = min(extent / finest_angstrom, box / 2 - 1)
    low = max(extent / coarsest_angstrom, 0.5)
    size = min(box, 2 * math.ceil(high + 1))
    axis = torch.fft.fftfreq(size, 1 / size, device=device)
    half = torch.arange(size // 2 + 1, dtype=axis.dtype, device=device)
    z, y, x = torch.meshgrid(axis, axis, half, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    inside = ((radius >= low) & (radius <= high) & (x < size / 2)).reshape(-1)
    index = torch.nonzero(inside)[:, 0]
    if not len(index):
        raise UserError(
            f"no Fourier voxel of a box of {extent:g} Å lies between {coarsest_angstrom:g} and {finest_angstrom:g} Å"
        )
    places = torch.stack([x, y, z], dim=-1).reshape(-1, 3)[index]
    counts = torch.where(places[:, 0] == 0, 0.5, 1.0)
    return Band(size, index, places, counts)
