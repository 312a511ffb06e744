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
        margins = one.find_margins(particles.positions_angstrom)
        better = (particles.tomogram_names == one.name) & (margins >= 0) & ((rows < 0) | (margins > most))
        rows[better], most[better] = row, margins[better]
    return rows
