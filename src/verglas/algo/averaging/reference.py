"""References as the alignment sees them: centred, masked, and as Fourier voxels within a band."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import fourier_shift, radial_frequency
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


def centre_mass(volume: Float[Tensor, "z y x"], mask: Float[Tensor, "z y x"]) -> Float[Tensor, "z y x"]:
    """Shift a map so that the centre of mass of what is dense within a mask lies on voxel `n // 2`.

    Voxels count by how far they exceed the mean within the mask by more than a standard deviation; without any there
    is nothing to centre.

    Parameters
    ----------
    volume
        `(n, n, n)`, dense is bright.
    mask
        `(n, n, n)`, 0 to 1.
    """
    total = mask.sum().clamp(min=1e-12)
    mean = (volume * mask).sum() / total
    spread = ((volume - mean).square() * mask).sum().div(total).sqrt()
    dense = ((volume - mean - spread) * mask).clamp(min=0).double()
    if not float(dense.sum()):
        return volume
    shifts = [
        -float(
            (dense.sum([other for other in range(3) if other != axis]) * _line(volume, axis)).sum()
            / dense.sum()
        )
        for axis in range(3)
    ]
    return fourier_shift(volume, torch.tensor(shifts, dtype=volume.dtype, device=volume.device))


def _line(volume: Tensor, axis: int) -> Tensor:
    size = volume.shape[axis]
    return torch.arange(size, dtype=torch.float64, device=volume.device) - size // 2
