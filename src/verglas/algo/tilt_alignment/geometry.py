"""Geometry of the views in pixels, and where points of the specimen appear in them.

A point p (xyz, pixels, from the specimen's centre) appears in a view, in pixels xy from the centre of the
image, at

    shift + M · Rz(axis) · (Ry(tilt) · Rx(x_tilt) · p)[xy],    M = scale · ((1 + stretch, skew), (skew, 1 - stretch))

which is the model of `TiltSeries`. M follows what the exposure does to the specimen in the plane of the image.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ViewGeometry:
    """Geometry of n views.

    Parameters
    ----------
    tilt_deg, axis_deg
        `(n,)` tilt and angle of the tilt axis in the image.
    shift_px
        `(n, 2)` xy of the specimen's centre from the image's centre.
    x_tilt_deg
        `(n,)` tilt about x, before the tilt.
    scale, stretch, skew
        `(n,)` magnification, what x is longer and y shorter by, and their symmetric shear.
    """

    tilt_deg: FloatArray
    axis_deg: FloatArray
    shift_px: FloatArray
    x_tilt_deg: FloatArray
    scale: FloatArray
    stretch: FloatArray
    skew: FloatArray

    def __len__(self) -> int:
        return len(self.tilt_deg)

    @property
    def magnification(self) -> FloatArray:
        """`(n, 2, 2)` matrices M."""
        rows = [[1 + self.stretch, self.skew], [self.skew, 1 - self.stretch]]
        return np.moveaxis(np.array(rows) * self.scale, 2, 0)

    def take(self, rows: npt.ArrayLike) -> "ViewGeometry":
        """Return these views only."""
        index = np.asarray(rows)
        return ViewGeometry(**{item.name: getattr(self, item.name)[index] for item in fields(self)})


def find_known(places: FloatArray) -> npt.NDArray[np.bool_]:
    """`(...)` whether the places `(..., d)` are known, that is finite."""
    return np.asarray(np.isfinite(places).all(axis=-1))


def start_geometry(
    tilt_deg: npt.ArrayLike, axis_deg: npt.ArrayLike, shift_px: npt.ArrayLike | None = None
) -> ViewGeometry:
    """Geometry as the microscope says: one axis, the stage's tilts, rough shifts or none.

    Parameters
    ----------
    tilt_deg
        `(n,)`.
    axis_deg
        One angle, or `(n,)`.
    shift_px
        `(n, 2)`; none is zero.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    count = len(tilt)
    axis = np.broadcast_to(np.asarray(axis_deg, dtype=float), (count,)).copy()
    shift = np.zeros((count, 2)) if shift_px is None else np.asarray(shift_px, dtype=float)
    zero = np.zeros(count)
    return ViewGeometry(tilt, axis, shift, zero, np.ones(count), zero, zero)


def view_matrices(geometry: ViewGeometry) -> FloatArray:
    """`(n, 2, 3)` matrices from specimen to image, without the shifts."""
    tilt, x_tilt = np.deg2rad(geometry.tilt_deg), np.deg2rad(geometry.x_tilt_deg)
    across = np.stack([np.cos(tilt), np.sin(tilt) * np.sin(x_tilt), np.sin(tilt) * np.cos(x_tilt)], axis=-1)
    along = np.stack([np.zeros_like(tilt), np.cos(x_tilt), -np.sin(x_tilt)], axis=-1)
    return geometry.magnification @ turn_rows(geometry, across, along)


def turn_rows(geometry: ViewGeometry, across: FloatArray, along: FloatArray) -> FloatArray:
    """`(n, 2, 3)` rows across and along the tilt axis `(n, 3)`, turned into the image."""
    axis = np.deg2rad(geometry.axis_deg)[:, None]
    x = np.cos(axis) * across - np.sin(axis) * along
    y = np.sin(axis) * across + np.cos(axis) * along
    return np.stack([x, y], axis=1)


def project_points(geometry: ViewGeometry, points_px: FloatArray) -> FloatArray:
    """`(beads, n, 2)` places of points `(beads, 3)` in all views."""
    return np.asarray(np.einsum("vij,bj->bvi", view_matrices(geometry), points_px) + geometry.shift_px)


def triangulate_points(
    geometry: ViewGeometry, tracks_px: FloatArray, weights: FloatArray | None = None
) -> FloatArray:
    """Places of beads whose tracks are known, in views that are known, by least squares.

    Parameters
    ----------
    geometry
        Of n views.
    tracks_px
        `(beads, n, 2)`; NaN where a bead was not measured.
    weights
        `(beads, n)`; none is 1 where measured.

    Returns
    -------
    ndarray
        `(beads, 3)`; NaN for beads with fewer than two measurements.
    """
    seen = find_known(tracks_px)
    weight = seen.astype(float) if weights is None else weights * seen
    matrices = view_matrices(geometry)
    offsets = np.where(seen[..., None], tracks_px - geometry.shift_px, 0.0)
    normal = np.einsum("bv,vij,vik->bjk", weight, matrices, matrices) + 1e-9 * np.eye(3)
    right = np.einsum("bv,vij,bvi->bj", weight, matrices, offsets)
    points = np.linalg.solve(normal, right[..., None])[..., 0]
    points[(weight > 0).sum(axis=1) < 2] = np.nan
    return np.asarray(points)
