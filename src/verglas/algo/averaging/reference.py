"""References as the alignment sees them: Fourier voxels within a band, of the map turned and of its derivatives."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import radial_frequency
from verglas.ops.kernels import fourier_points
from verglas.ops.projection import transform_volume
from verglas.shapes import Rotations

_OVERSAMPLING = 2

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


def turn_reference(volume: Float[Tensor, "z y x"], rotations: Rotations, band: Band) -> BandValues:
    """Transform a reference turned by each of many rotations, within a band.

    Parameters
    ----------
    volume
        `(n, n, n)`, zero near its borders; centred on voxel `n // 2`.
    rotations
        `(r, 3, 3)`; what lay along v comes to lie along R v.
    band
        Of a box of the volume's side.

    Returns
    -------
    Tensor
        `(r, k)` complex64.
    """
    padded = transform_volume(volume, _OVERSAMPLING).to(torch.complex64)
    return fourier_points.read_turned(padded, rotations, band.places_xyz * _OVERSAMPLING)


def differentiate_reference(volume: Float[Tensor, "z y x"], band: Band) -> BandValues:
    """Transform a reference and its derivatives by small turns and shifts, within a band.

    A reference turned by the small vector ω and shifted by t is, to first order, f - (ω × r)·∇f - t·∇f.

    Parameters
    ----------
    volume
        `(n, n, n)`, zero near its borders.
    band
        Of a box of the volume's side.

    Returns
    -------
    Tensor
        `(7, k)` complex64: the reference, its derivatives by ω in radians about x, y and z, and by t in voxels
        along x, y and z.
    """
    size = volume.shape[-1]
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    axes = (
        torch.fft.rfftfreq(size, device=volume.device),
        torch.fft.fftfreq(size, device=volume.device)[:, None],
        torch.fft.fftfreq(size, device=volume.device)[:, None, None],
    )
    slopes = [
        torch.fft.fftshift(torch.fft.irfftn(2j * math.pi * axis * transform, s=volume.shape)) for axis in axes
    ]
    line = torch.arange(size, dtype=volume.dtype, device=volume.device) - size // 2
    x, y, z = line, line[:, None], line[:, None, None]
    dx, dy, dz = slopes
    parts = [volume, y * dz - z * dy, z * dx - x * dz, x * dy - y * dx, dx, dy, dz]
    values = [volume, *(-part for part in parts[1:])]
    return torch.stack([gather_band(part, band) for part in values])


def gather_band(volume: Float[Tensor, "z y x"], band: Band) -> Complex[Tensor, " k"]:
    """Transform a volume centred on voxel `n // 2` and keep what lies within a band; complex64."""
    size = volume.shape[-1]
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    x, y, z = band.places_xyz.long().unbind(-1)
    values: Tensor = transform[z % size, y % size, x].to(torch.complex64)
    return values


def share_low_resolution(
    first: Float[Tensor, "z y x"],
    second: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    limit_angstrom: float,
) -> tuple[Float[Tensor, "z y x"], Float[Tensor, "z y x"]]:
    """Give both half maps the mean of the two up to a resolution, which keeps them in one frame.

    Parameters
    ----------
    first, second
        `(n, n, n)`.
    pixel_size_angstrom
        Of a voxel.
    limit_angstrom
        Finest detail that is shared, Å.
    """
    shape = tuple(first.shape)
    low = radial_frequency(shape, pixel_size_angstrom, device=first.device) <= 1 / limit_angstrom
    difference = torch.fft.irfftn(torch.fft.rfftn(second - first) * low, s=shape)
    return first + difference / 2, second - difference / 2
