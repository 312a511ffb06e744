"""How sharp beads are in a tomogram: the steepest rise of their mean profile."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

FloatArray = npt.NDArray[np.float64]

_HALF = 4
"""A bead is centred within so many voxels of where it is expected."""


def measure_bead_edge(volume: npt.NDArray[np.floating], places_px: FloatArray, diameter_px: float) -> float:
    """Return the steepest rise of dark beads against their surroundings, in standard deviations a voxel.

    Each bead is centred by its own mass; its profile is the mean over circles of its central section.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    places_px
        `(k, 3)` xyz of the beads from the centre `n // 2`; those too near an edge are passed over.
    diameter_px
        Of the beads.
    """
    radii = np.arange(0, 1.2 * diameter_px, 0.5)
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    margin = int(np.ceil(1.2 * diameter_px)) + _HALF + 2
    rises = []
    for place in np.rint(places_px[:, ::-1]).astype(int) + np.array(volume.shape) // 2:
        if (place < margin).any() or (place >= np.array(volume.shape) - margin).any():
            continue
        around = tuple(slice(n - _HALF, n + _HALF + 1) for n in place)
        near = tuple(slice(n - margin, n + margin + 1) for n in place)
        mass = np.clip(np.median(volume[near]) - volume[around], 0, None)
        mass[mass < mass.max() / 2] = 0
        steps = [float((axis * mass).sum() / mass.sum()) - _HALF for axis in np.indices(mass.shape)]
        z, y, x = place + steps
        rows, columns = y + radii[:, None] * np.sin(angles), x + radii[:, None] * np.cos(angles)
        profile = map_coordinates(volume, [np.full_like(rows, z), rows, columns], order=3).mean(axis=1)
        rises.append(np.diff(profile).max() / 0.5)
    inner = volume[tuple(slice(n // 8, n - n // 8) for n in volume.shape)]
    return float(np.mean(rises) / inner.std())
