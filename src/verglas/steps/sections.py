"""Central sections of a volume, as pictures show them."""

import numpy as np
import numpy.typing as npt

from verglas.steps.reconstruct import SLAB_ANGSTROM

FloatArray = npt.NDArray[np.float32]


def cut_sections(volume: FloatArray, voxel_size_angstrom: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average the central slab of a `(z, y, x)` volume along each axis: `(y, x)`, `(z, x)`, `(y, z)`."""
    half = max(1, round(SLAB_ANGSTROM / voxel_size_angstrom / 2))
    z, y, x = (slice(max(0, n // 2 - half), min(n, n // 2 + half)) for n in volume.shape)
    return volume[z].mean(axis=0), volume[:, y].mean(axis=1), volume[:, :, x].mean(axis=2).T
