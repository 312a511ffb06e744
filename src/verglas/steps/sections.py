"""Central sections of a volume, as pictures show them."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

SLAB_ANGSTROM = 200.0
"""Thickness of the sections drawn in the report."""


def cut_sections(
    volume: FloatArray, voxel_size_angstrom: float, thickness_angstrom: float = SLAB_ANGSTROM
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average the central slab of a `(z, y, x)` volume along each axis: `(y, x)`, `(z, x)`, `(y, z)`."""
    z, y, x = (slice(*bounds) for bounds in _bounds(volume.shape, voxel_size_angstrom, thickness_angstrom))
    return volume[z].mean(axis=0), volume[:, y].mean(axis=1), volume[:, :, x].mean(axis=2).T


class Sections:
    """Central sections of a volume, gathered from its blocks as they pass."""

    def __init__(self, shape: tuple[int, int, int], voxel_size_angstrom: float) -> None:
        z, y, x = shape
        self._bounds = _bounds(shape, voxel_size_angstrom)
        self.xy = np.zeros((y, x), np.float32)
        self.xz = np.zeros((z, x), np.float32)
        self.yz = np.zeros((y, z), np.float32)

    def add(self, first_section: int, first_row: int, block: FloatArray) -> None:
        """Take what a block `(z, y, x)` as wide as the volume, that begins at these voxels, adds to the sections."""
        (z0, z1), (y0, y1), (x0, x1) = self._bounds
        depth, height, _ = block.shape
        along_z = slice(first_section, first_section + depth)
        along_y = slice(first_row, first_row + height)
        self.yz[along_y, along_z] = block[:, :, x0:x1].mean(axis=2).T
        # Voxels of the block that lie in the slabs; there may be none.
        inner_z = block[max(z0 - first_section, 0) : max(z1 - first_section, 0)]
        inner_y = block[:, max(y0 - first_row, 0) : max(y1 - first_row, 0)]
        self.xy[along_y] += inner_z.sum(axis=0) / (z1 - z0)
        self.xz[along_z] += inner_y.sum(axis=1) / (y1 - y0)


def _bounds(
    shape: tuple[int, ...], voxel_size_angstrom: float, thickness_angstrom: float = SLAB_ANGSTROM
) -> list[tuple[int, int]]:
    half = max(1, round(thickness_angstrom / voxel_size_angstrom / 2))
    return [(max(0, n // 2 - half), min(n, n // 2 + half)) for n in shape]
