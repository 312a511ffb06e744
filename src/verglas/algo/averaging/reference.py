"""References as the alignment sees them: centred, masked, and as Fourier voxels within a band."""

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.ops.band import Band, BandValues
from verglas.ops.fft import fourier_shift, radial_frequency
from verglas.ops.kernels import fourier_points
from verglas.ops.projection import transform_volume
from verglas.shapes import Rotations

_OVERSAMPLING = 2


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
