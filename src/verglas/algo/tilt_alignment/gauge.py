"""How far two geometries of the same views differ, when what no image can tell is taken off."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, view_matrices
from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GeometryDifference:
    """Differences of n views; root mean squares unless the name says otherwise.

    Parameters
    ----------
    shift_px
        `(n, 2)` difference in x and y of where a specimen point lies, on average over the points.
    axis_deg, tilt_deg
        `(n,)` differences of the axis and of the tilt.
    scale
        `(n,)` ratio of the magnifications less one.
    """

    shift_px: FloatArray
    axis_deg: FloatArray
    tilt_deg: FloatArray
    scale: FloatArray

    @property
    def rms_shift_px(self) -> tuple[float, float]:
        """Root mean square in x and y."""
        x, y = np.sqrt((self.shift_px**2).mean(axis=0))
        return float(x), float(y)


def compare_geometries(found: ViewGeometry, truth: ViewGeometry, points_px: FloatArray) -> GeometryDifference:
    """Compare a geometry with the truth.

    Images do not tell where the specimen's origin is, how it is turned, nor how large it is. So the points are
    moved, turned and scaled in space until they appear through the one geometry as nearly as can be where they
    appear through the other. What is left is the difference.

    Parameters
    ----------
    found, truth
        Of the same views, in pixels of the same size.
    points_px
        `(k, 3)` points of the specimen in the frame of `truth`, such as its beads.

    Raises
    ------
    UserError
        When they have not the same number of views.
    """
    if len(found) != len(truth):
        raise UserError(f"two geometries of {len(found)} and {len(truth)} views; expected the same views")
    expected = project_points(truth, points_px)
    reach = max(1.0, float(np.abs(points_px).max()))

    def miss(unknowns: FloatArray) -> FloatArray:
        """Seven numbers: turns about x, y, z, the logarithm of a scale, a shift in units of the reach."""
        moved = np.exp(unknowns[3]) * points_px @ _turn(unknowns[:3]).T + reach * unknowns[4:]
        return np.asarray(project_points(found, moved) - expected).ravel()

    fit = least_squares(miss, np.zeros(7), loss="soft_l1")
    # An error of the axis would hide in the turn about z.
    gauge = np.exp(fit.x[3]) * _turn(np.array([fit.x[0], fit.x[1], 0.0]))
    seen = _split(view_matrices(found) @ gauge)
    known = _split(view_matrices(truth))
    return GeometryDifference(
        miss(fit.x).reshape(expected.shape).mean(axis=0),
        (seen[0] - known[0] + 180) % 360 - 180,
        seen[1] - known[1],
        seen[2] / known[2] - 1,
    )


def turn_specimen(geometry: ViewGeometry, matrix: FloatArray, origin_px: npt.ArrayLike) -> ViewGeometry:
    """Describe the same views in a specimen frame that is moved and turned.

    Parameters
    ----------
    geometry
        Of n views.
    matrix
        `(3, 3)` rotation that takes directions of the new frame to the old one.
    origin_px
        xyz of the new origin in the old frame.

    Returns
    -------
    ViewGeometry
        The magnifications stay; the three angles of each view are those of the turned rotation.
    """
    shift = geometry.shift_px + view_matrices(geometry) @ np.asarray(origin_px, dtype=float)
    plain = replace(
        geometry,
        scale=np.ones(len(geometry)),
        stretch=np.zeros(len(geometry)),
        skew=np.zeros(len(geometry)),
    )
    rows = view_matrices(plain) @ matrix
    third = np.cross(rows[:, 0], rows[:, 1])
    # Rz(c) Ry(b) Rx(a) begins with the column (cos c cos b, sin c cos b, -sin b), and ends with the row
    # (-sin b, cos b sin a, cos b cos a).
    axis = np.arctan2(rows[:, 1, 0], rows[:, 0, 0])
    tilt = np.arctan2(-third[:, 0], np.hypot(third[:, 1], third[:, 2]))
    x_tilt = np.arctan2(third[:, 1], third[:, 2])
    return replace(
        geometry,
        shift_px=shift,
        axis_deg=np.rad2deg(axis),
        tilt_deg=np.rad2deg(tilt),
        x_tilt_deg=np.rad2deg(x_tilt),
    )


def _turn(angles_rad: FloatArray) -> FloatArray:
    """Rotation by these angles about x, then y, then z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles_rad), np.sin(angles_rad)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _split(matrices: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Axis and tilt in degrees, and scale, of `(n, 2, 3)` matrices."""
    scale = np.sqrt(np.linalg.norm(np.cross(matrices[:, 0], matrices[:, 1]), axis=1))
    third = np.cross(matrices[:, 0], matrices[:, 1]) / scale[:, None] ** 2
    axis = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    tilt = np.rad2deg(np.arctan2(-third[:, 0], np.hypot(third[:, 1], third[:, 2])))
    return axis, tilt, scale
