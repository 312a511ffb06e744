"""The slab in which beads lie: how it is tilted, how thick it is, and the view of it when it is level."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.gauge import turn_specimen
from verglas.algo.tilt_alignment.geometry import ViewGeometry, view_matrices

FloatArray = npt.NDArray[np.float64]

FEWEST_BEADS = 5
"""Fewer say nothing about a slab."""

LARGEST_ERROR_DEG = 1.0
"""A slope that is known no better is not corrected."""

_TWO_FACES = 0.3
_ROUNDS = 20


@dataclass(frozen=True)
class Slab:
    """Two faces, or one, on which the beads lie.

    Parameters
    ----------
    slope_x, slope_y
        Rise of z with x and with y.
    middle_px
        z of the middle between the faces, above the origin.
    thickness_px
        Distance of the faces, or of the outermost beads where they lie on no two faces.
    error_deg
        Standard error of the steeper slope.
    faces
        1 or 2.
    """

    slope_x: float
    slope_y: float
    middle_px: float
    thickness_px: float
    error_deg: float
    faces: int


def fit_slab(points_px: FloatArray) -> Slab | None:
    """Fit parallel faces to beads; none when there are fewer than five.

    Two faces are taken when the beads lie less than a third as far from them as from one.

    Parameters
    ----------
    points_px
        `(beads, 3)` xyz.
    """
    points = points_px[np.isfinite(points_px).all(axis=1)]
    if len(points) < FEWEST_BEADS:
        return None
    one = _fit_faces(points, np.zeros(len(points), int))
    fits = [one, *(_part_faces(points, start) for start in (one[0][:2], np.zeros(2)))]
    two = min(fits[1:], key=lambda fit: fit[2])
    both = (
        len(points) > FEWEST_BEADS
        and min(np.bincount(two[1], minlength=2)) > 1
        and two[2] < _TWO_FACES * one[2]
    )
    (slope_x, slope_y, *heights), _, _, error = two if both else one
    flat = points[:, 2] - points[:, :2] @ (slope_x, slope_y)
    thickness = abs(heights[1] - heights[0]) if both else float(np.ptp(flat))
    middle = float(np.mean(heights)) if both else float(flat.min() + flat.max()) / 2
    cosine = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    return Slab(float(slope_x), float(slope_y), middle, float(thickness * cosine), error, 1 + bool(both))


def _fit_faces(
    points: FloatArray, face: npt.NDArray[np.int_]
) -> tuple[FloatArray, npt.NDArray[np.int_], float, float]:
    """Slopes and heights, the faces, the scatter about them, and the error of the slopes in degrees."""
    columns = np.column_stack([points[:, :2], face[:, None] == np.arange(face.max() + 1)])
    found, *_ = np.linalg.lstsq(columns, points[:, 2], rcond=None)
    left = points[:, 2] - columns @ found
    scatter = float(np.sqrt((left**2).sum() / max(1, len(points) - columns.shape[1])))
    spread = np.linalg.pinv(columns.T @ columns)
    return found, face, scatter, float(np.rad2deg(scatter * np.sqrt(np.diag(spread)[:2].max())))


def _part_faces(
    points: FloatArray, slopes: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.int_], float, float]:
    """Give each bead to one of two faces and fit them, until nothing changes."""
    flat = points[:, 2] - points[:, :2] @ slopes
    face = (flat > (flat.min() + flat.max()) / 2).astype(int)
    for _ in range(_ROUNDS):
        if face.min() == face.max():
            return _fit_faces(points, np.zeros(len(points), int))
        fit = _fit_faces(points, face)
        heights = fit[0][2:]
        flat = points[:, 2] - points[:, :2] @ fit[0][:2]
        nearest = np.abs(flat[:, None] - heights).argmin(axis=1)
        if (nearest == face).all():
            break
        face = nearest
    return fit


def level_specimen(
    geometry: ViewGeometry, points_px: FloatArray, slab: Slab | None
) -> tuple[ViewGeometry, FloatArray]:
    """Put the specimen's centre in the middle of the slab, under the centre of the view of lowest tilt, and level it.

    A slope is corrected when its error is below a degree; without a slab only the centre moves.

    Parameters
    ----------
    geometry
        Of n views.
    points_px
        `(beads, 3)` xyz.
    slab
        From :func:`fit_slab`.

    Returns
    -------
    tuple
        The same views in the new frame, and the beads `(beads, 3)` in it.
    """
    lowest = int(np.abs(geometry.tilt_deg).argmin())
    matrix = np.eye(3)
    plane = np.array([0.0, 0.0, 0.0 if slab is None else slab.middle_px])
    if slab is not None and slab.error_deg <= LARGEST_ERROR_DEG:
        plane[:2] = slab.slope_x, slab.slope_y
        matrix = _level_matrix(slab)
    # The origin is the point of the middle plane that the lowest tilt shows in the middle of the image.
    start = np.array([0.0, 0.0, plane[2]])
    seen = turn_specimen(geometry, np.eye(3), start).shift_px[lowest]
    step = np.linalg.solve(_along_plane(geometry, lowest, plane[:2]), -seen)
    origin = start + np.array([step[0], step[1], step @ plane[:2]])
    return turn_specimen(geometry, matrix, origin), (points_px - origin) @ matrix


def _along_plane(geometry: ViewGeometry, view: int, slopes: FloatArray) -> FloatArray:
    """`(2, 2)` how the image moves when one goes along x and y on the plane."""
    matrix = view_matrices(geometry)[view]
    return np.asarray(matrix[:, :2] + np.outer(matrix[:, 2], slopes))


def _level_matrix(slab: Slab) -> FloatArray:
    """Rotation about x, then y, that takes z to the normal of the faces."""
    normal = np.array([-slab.slope_x, -slab.slope_y, 1.0])
    normal /= np.linalg.norm(normal)
    about_x, about_y = -np.arcsin(normal[1]), np.arctan2(normal[0], normal[2])
    (cx, sx), (cy, sy) = ((np.cos(angle), np.sin(angle)) for angle in (about_x, about_y))
    turn_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.asarray(turn_y @ turn_x)
