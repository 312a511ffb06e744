"""Which tomogram each particle lies in."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from verglas.model import Particles, Tomogram


def find_tomograms(particles: Particles, tomograms: Sequence[Tomogram]) -> npt.NDArray[np.int64]:
    """Find the tomogram of each particle: of those that hold it, the one with the most around it.

    Parameters
    ----------
    particles
        Positions in the specimen.
    tomograms
        Whole ones, and regions.

    Returns
    -------
    ndarray
        `(n,)` row of the tomogram, -1 where none holds the particle.
    """
    rows = np.full(len(particles), -1, dtype=np.int64)
    most = np.zeros(len(particles))
    for row, one in enumerate(tomograms):
        middle = np.array([n // 2 for n in reversed(one.shape)])
        voxels = (
            particles.positions_angstrom - np.array(one.centre_angstrom)
        ) / one.voxel_size_angstrom + middle
        around = (
            np.minimum(voxels, np.array(one.shape[::-1]) - 1 - voxels).min(axis=1) * one.voxel_size_angstrom
        )
        better = (particles.tomogram_names == one.name) & (around >= most) & ((rows < 0) | (around > most))
        rows[better], most[better] = row, around[better]
    return rows
