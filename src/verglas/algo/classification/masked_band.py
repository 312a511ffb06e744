"""Maps that are limited twice: to a band of Fourier voxels, and to a mask in space."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verglas.ops.band import Band, BandValues


@dataclass(frozen=True, eq=False)
class MaskedBand:
    """Fourier voxels of a cube's half transform, and masks of the cube.

    Parameters
    ----------
    band
        The voxels.
    mask
        `(n, n, n)` 0 to 1 of what may differ among particles, its middle at voxel `n // 2`.
    support
        `(n, n, n)` 0 to 1 of the whole molecule.
    """

    band: Band
    mask: Float[Tensor, "z y x"]
    support: Float[Tensor, "z y x"]

    @property
    def counts(self) -> Float[Tensor, " k"]:
        """`(k,)` weight of each voxel in a sum over the half space."""
        return self.band.counts

    @property
    def shells(self) -> Int[Tensor, " k"]:
        """`(k,)` whole number nearest to each voxel's distance from the origin."""
        nearest: Tensor = self.band.places_xyz.norm(dim=-1).round().long()
        return nearest

    def to_volumes(self, maps: BandValues) -> Float[Tensor, "n z y x"]:
        """`(n, z, y, x)` maps in space, not masked, their middle at voxel `n // 2`."""
        size = self.band.size
        half = maps.new_zeros(len(maps), size * size * (size // 2 + 1))
        half[:, self.band.index] = maps
        volumes = torch.fft.irfftn(half.reshape(-1, size, size, size // 2 + 1), s=(size,) * 3, dim=(1, 2, 3))
        centred: Tensor = torch.fft.fftshift(volumes, dim=(1, 2, 3))
        return centred

    def confine(self, maps: BandValues, mask: Float[Tensor, "z y x"]) -> BandValues:
        """Mask maps in space and take them back to the band."""
        return self.to_band(self.to_volumes(maps) * mask)

    def to_band(self, volumes: Float[Tensor, "n z y x"]) -> BandValues:
        """`(n, k)` transforms of maps, their middle at voxel `n // 2`, at the voxels of the band."""
        shifted = torch.fft.ifftshift(volumes, dim=(1, 2, 3))
        kept: Tensor = torch.fft.rfftn(shifted, dim=(1, 2, 3)).flatten(1)[:, self.band.index]
        return kept

    def pose_maps(self, mean: BandValues) -> BandValues:
        """`(6, k)` how a map `(1, k)` changes per voxel moved along x, y, z, and per radian turned about each."""
        size = self.band.size
        moved = -2j * math.pi / size * self.band.places_xyz.T * mean
        line = torch.arange(size, dtype=mean.real.dtype, device=mean.device) - size // 2
        x, y, z = torch.meshgrid(line, line, line, indexing="ij")[::-1]
        fx, fy, fz = self.to_volumes(moved)
        turned = torch.stack([y * fz - z * fy, z * fx - x * fz, x * fy - y * fx])
        return torch.cat([moved, self.to_band(turned)])

    def multiply(self, first: BandValues, second: BandValues) -> Float[Tensor, "n m"]:
        """`(n, m)` inner products 2 Σ Re(conj(a) b) over the half space, float64."""
        return 2 * (as_real(first * self.counts) @ as_real(second).T).double()

    def average_shells(self, values: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
        """`(k, c)` mean of each shell, at its voxels."""
        shells = self.shells
        count = torch.bincount(shells).clamp(min=1).to(values)
        sums = values.new_zeros(len(count), values.shape[1]).index_add_(0, shells, values)
        return (sums / count[:, None])[shells]


def as_real(maps: BandValues) -> Float[Tensor, "n k2"]:
    """`(n, 2 k)` real and imaginary parts side by side."""
    return torch.view_as_real(maps.contiguous()).flatten(1)
