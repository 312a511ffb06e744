"""Beads in space, from where they are found in the views of an aligned series."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

FEWEST_VIEWS = 5
"""A bead in space is found in at least this many views ..."""

LEAST_SHARE = 0.3
"""... and in this share of those whose field of view it lies in."""

_DEEPEST_ANGSTROM = 5000.0
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class LocatedBeads:
    """Beads in space and what of the findings belongs to them.

    Parameters
    ----------
    points_angstrom
        `(beads, 3)` xyz from the specimen's centre.
    owners
        For each view, `(k,)` the bead that each finding belongs to, -1 for none.
    residual_angstrom
        RMS distance of the findings from their beads' projections; NaN without beads.
    """

    points_angstrom: FloatArray
    owners: tuple[IntArray, ...]
    residual_angstrom: float


def locate_beads(
    found_angstrom: Sequence[FloatArray],
    matrices: FloatArray,
    tolerance_angstrom: float,
    reach_angstrom: FloatArray,
) -> LocatedBeads:
    """Find the points in space whose projections were found.

    Each finding that belongs to no bead yet is a line in space. The point of it that most other views agree with
    becomes a bead when enough do.

    Parameters
    ----------
    found_angstrom
        For each of n views, `(k, 2)` xy of what was found, from the centre of the view.
    matrices
        `(n, 4, 4)` specimen to view, as `verglas.ops.geometry.projection_matrices` makes them.
    tolerance_angstrom
        How far a finding may lie from a bead's projection.
    reach_angstrom
        `(2,)` xy of the corner of the views, from their centre.
    """
    owners = tuple(np.full(len(found), -1, np.intp) for found in found_angstrom)
    points: list[FloatArray] = []
    for view in np.argsort(-np.abs(matrices[:, 2, 2]), kind="stable"):
        for row, place in enumerate(found_angstrom[view]):
            if owners[view][row] >= 0:
                continue
            point, rows = _follow(place, int(view), found_angstrom, owners, matrices, tolerance_angstrom)
            seen = _is_inside(project_beads(point[None], matrices)[:, 0], reach_angstrom)
            if (rows >= 0).sum() >= max(FEWEST_VIEWS, LEAST_SHARE * seen.sum()):
                for other in np.flatnonzero(rows >= 0):
                    owners[other][rows[other]] = len(points)
                points.append(point)
    located = np.array(points).reshape(-1, 3)
    return LocatedBeads(located, owners, _measure_residual(located, owners, found_angstrom, matrices))


def project_beads(points_angstrom: FloatArray, matrices: FloatArray) -> FloatArray:
    """Places `(n, beads, 2)` of points `(beads, 3)` in the views, xy from their centre in Å."""
    return np.asarray(points_angstrom @ matrices[:, :2, :3].transpose(0, 2, 1) + matrices[:, None, :2, 3])


def _follow(
    place: FloatArray,
    view: int,
    found: Sequence[FloatArray],
    owners: tuple[IntArray, ...],
    matrices: FloatArray,
    tolerance: float,
) -> tuple[FloatArray, IntArray]:
    """Point on the line of sight of a finding with which most views agree, and the row of each view that does."""
    # Row 2 of the matrix is the beam's direction in the specimen, whatever the magnification does in the plane.
    start = np.linalg.pinv(matrices[view, :2, :3]) @ (place - matrices[view, :2, 3])
    beam = matrices[view, 2, :3]
    at_start = project_beads(start[None], matrices)[:, 0]
    along = matrices[:, :2, :3] @ beam
    depths = [np.zeros(1)]
    for other, places in enumerate(found):
        length = float((along[other] ** 2).sum())
        free = places[owners[other] < 0]
        if length > 0.01 and len(free):
            depth = (free - at_start[other]) @ along[other] / length
            aside = np.linalg.norm(free - at_start[other] - depth[:, None] * along[other], axis=1)
            depths.append(depth[(aside < tolerance) & (np.abs(depth) < _DEEPEST_ANGSTROM)])
    # One candidate for all that agree to half the tolerance.
    steps = np.unique(np.rint(np.concatenate(depths) / (tolerance / 2)))
    points = start + steps[:, None] * (tolerance / 2) * beam
    support = _count_support(points, found, owners, matrices, tolerance)
    point = points[int(support.argmax())]
    rows = _assign(point, found, owners, matrices, tolerance)
    for _ in range(_ROUNDS):
        if (rows >= 0).sum() < 2:
            break
        point = _intersect(rows, found, matrices)
        rows = _assign(point, found, owners, matrices, tolerance)
    return point, rows


def _count_support(
    points: FloatArray,
    found: Sequence[FloatArray],
    owners: tuple[IntArray, ...],
    matrices: FloatArray,
    tolerance: float,
) -> FloatArray:
    """Count the views that agree with each point, nearer ones more."""
    support = np.zeros(len(points))
    projected = project_beads(points, matrices)
    for view, places in enumerate(found):
        free = places[owners[view] < 0]
        if len(free):
            nearest = np.linalg.norm(projected[view][:, None] - free, axis=2).min(axis=1)
            support += np.maximum(0, 1 - (nearest / tolerance) ** 2)
    return support


def _assign(
    point: FloatArray,
    found: Sequence[FloatArray],
    owners: tuple[IntArray, ...],
    matrices: FloatArray,
    tolerance: float,
) -> IntArray:
    """Row of the finding in each view that lies nearest to a point's projection, -1 where none is near."""
    rows = np.full(len(found), -1, np.intp)
    projected = project_beads(point[None], matrices)[:, 0]
    for view, places in enumerate(found):
        if len(places):
            distance = np.linalg.norm(places - projected[view], axis=1)
            distance[owners[view] >= 0] = np.inf
            nearest = int(distance.argmin())
            if distance[nearest] < tolerance:
                rows[view] = nearest
    return rows


def _intersect(rows: IntArray, found: Sequence[FloatArray], matrices: FloatArray) -> FloatArray:
    """Point nearest to the lines of sight of the findings."""
    views = np.flatnonzero(rows >= 0)
    columns = matrices[views, :2, :3].reshape(-1, 3)
    values = np.stack([found[int(view)][rows[view]] - matrices[view, :2, 3] for view in views]).ravel()
    return np.asarray(np.linalg.lstsq(columns, values, rcond=None)[0])


def _is_inside(places: FloatArray, reach: FloatArray) -> npt.NDArray[np.bool_]:
    return np.asarray((np.abs(places) <= reach).all(axis=-1))


def _measure_residual(
    points: FloatArray, owners: tuple[IntArray, ...], found: Sequence[FloatArray], matrices: FloatArray
) -> float:
    projected = project_beads(points, matrices)
    squares = [
        ((places[own >= 0] - projected[view][own[own >= 0]]) ** 2).sum(axis=1)
        for view, (places, own) in enumerate(zip(found, owners, strict=True))
        if len(places)
    ]
    together = np.concatenate(squares) if squares else np.empty(0)
    return float(np.sqrt(together.mean())) if len(together) else float("nan")
