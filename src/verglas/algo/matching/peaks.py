"""From score maps to picks: maxima that keep the particle's distance, clear of edges and gold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from torch.nn.functional import max_pool3d

from verglas.errors import UserError

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Peaks:
    """Maxima of score maps, highest first.

    Parameters
    ----------
    places
        `(n, 3)` zyx voxels.
    scores
        `(n,)`.
    orientation
        `(n,)` row of the template's orientations.
    template
        `(n,)` which template.
    """

    places: IntArray
    scores: FloatArray
    orientation: IntArray
    template: IntArray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: npt.ArrayLike) -> "Peaks":
        """Return the peaks of these rows, in this order."""
        index = np.arange(len(self))[np.asarray(rows)]
        return Peaks(self.places[index], self.scores[index], self.orientation[index], self.template[index])


def find_local_maxima(
    scores: FloatArray, orientation: IntArray, allowed: BoolArray, lowest: float = 0.0
) -> Peaks:
    """Find the voxels that no neighbour tops, in the best of several templates' maps.

    Parameters
    ----------
    scores
        `(t, z, y, x)` best score of each template.
    orientation
        `(t, z, y, x)` its orientation.
    allowed
        `(z, y, x)` where a maximum counts.
    lowest
        Score below which none is listed.

    Returns
    -------
    Peaks
        Highest first; of equal scores the one of lower index.
    """
    template = scores.argmax(axis=0)
    top = np.take_along_axis(scores, template[None], axis=0)[0]
    highest = max_pool3d(torch.from_numpy(np.ascontiguousarray(top))[None, None], 3, stride=1, padding=1)[
        0, 0
    ].numpy()
    places = np.argwhere((top >= highest) & allowed & (top > lowest))
    index = tuple(places.T)
    order = np.argsort(-top[index], kind="stable")
    places, index = places[order], tuple(axis[order] for axis in index)
    chosen = template[index]
    return Peaks(places, top[index], orientation[(chosen, *index)], chosen)


def exclude_neighbours(
    peaks: Peaks, matrices: Sequence[FloatArray], radii: FloatArray, count: int | None = None
) -> IntArray:
    """Keep peaks, from the highest down, outside the shape of every one kept before.

    Parameters
    ----------
    peaks
        Highest first.
    matrices
        For each template `(r, 3, 3)` its orientations.
    radii
        `(t, 3)` semi-axes xyz of each template's ellipsoid about a pick, in its own frame, voxels.
    count
        How many to keep at most.

    Returns
    -------
    ndarray
        Rows of the peaks that are kept.
    """
    points = peaks.places[:, ::-1].astype(float)
    free = np.ones(len(peaks), dtype=bool)
    kept: list[int] = []
    tree = cKDTree(points) if len(points) else None
    for row in range(len(peaks)):
        if not free[row]:
            continue
        if count is not None and len(kept) == count:
            break
        kept.append(row)
        shape = radii[peaks.template[row]]
        assert tree is not None
        near = np.asarray(tree.query_ball_point(points[row], float(shape.max())))
        # Offsets in the particle's frame: rows of d times R are Rᵀ d.
        offsets = (points[near] - points[row]) @ matrices[peaks.template[row]][peaks.orientation[row]]
        free[near[((offsets / shape) ** 2).sum(axis=1) < 1]] = False
    return np.array(kept, dtype=np.intp)


def allow_inside(shape: tuple[int, int, int], margin: float) -> BoolArray:
    """Voxels farther than `margin` voxels from every face of a volume."""
    allowed = np.zeros(shape, dtype=bool)
    cut = [slice(min(int(np.ceil(margin)), n // 2), max(n - int(np.ceil(margin)), n // 2)) for n in shape]
    allowed[tuple(cut)] = True
    return allowed


def keep_away(region: BoolArray, distance: float) -> BoolArray:
    """Voxels at least `distance` voxels from every voxel of a region."""
    if not region.any():
        return np.ones(region.shape, dtype=bool)
    return np.asarray(distance_transform_edt(~region) >= distance)


def remove_neighbours(
    positions: FloatArray, matrices: FloatArray, distance: float, angle_deg: float, count: int
) -> BoolArray:
    """Tell which particles belong to a lattice: those with enough neighbours that point the same way.

    This is emClarity's removeNeighbors as it was meant; at its version 1.5.3 the angle was never tested.

    Parameters
    ----------
    positions
        `(n, 3)`, any unit.
    matrices
        `(n, 3, 3)` orientations, template to specimen.
    distance
        Farthest neighbour, in the unit of the positions.
    angle_deg
        Largest angle between the z axes of neighbours.
    count
        Neighbours that a particle needs.

    Returns
    -------
    ndarray
        `(n,)` whether a particle stays.

    Raises
    ------
    UserError
        When a limit is negative.
    """
    if not (distance >= 0 and angle_deg >= 0 and count >= 0):
        raise UserError(
            f"`distance`, `angle_deg` and `count` must not be negative; got {distance}, {angle_deg} and {count}"
        )
    found = np.zeros(len(positions), dtype=int)
    if len(positions):
        pairs = cKDTree(positions).query_pairs(distance, output_type="ndarray")
        axes = matrices[:, :, 2]
        cosine = (axes[pairs[:, 0]] * axes[pairs[:, 1]]).sum(axis=1)
        alike = pairs[cosine >= np.cos(np.deg2rad(min(angle_deg, 180.0))) - 1e-12]
        found += np.bincount(alike.reshape(-1), minlength=len(positions))
    return np.asarray(found >= count)
