"""Curves in an image, and where its pixels lie beside them.

Convention
----------
Points are yx in pixels. The normal of a curve whose tangent is (ty, tx) is (tx, -ty), and distances are positive on
its side. An arc is a centre, the angle theta of its direction (cos theta, sin theta) there, and a curvature kappa:
positive when the circle's centre lies against the normal. These are MemXTerminator's `rlnAngleTheta` and
`rlnCurveKappa`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_WIDEST_TURN = 0.9 * np.pi
_FIT_ROUNDS = 25


@dataclass(frozen=True)
class Arc:
    """A straight line or a circle's arc.

    Parameters
    ----------
    centre_yx
        A point on it, pixels.
    theta_deg
        Its direction there, from the y axis towards x.
    kappa
        Curvature, 1/pixel.
    """

    centre_yx: tuple[float, float]
    theta_deg: float
    kappa: float

    @property
    def direction(self) -> FloatArray:
        """`(2,)` yx unit vector along the arc at its centre."""
        theta = np.deg2rad(self.theta_deg)
        return np.array([np.cos(theta), np.sin(theta)])

    @property
    def normal(self) -> FloatArray:
        """`(2,)` yx unit vector across it."""
        theta = np.deg2rad(self.theta_deg)
        return np.array([np.sin(theta), -np.cos(theta)])

    def locate(self, points_yx: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return distance from the arc and position along it, both `(...)` pixels, of points `(..., 2)`."""
        away = points_yx - np.array(self.centre_yx)
        across, along = away @ self.normal, away @ self.direction
        bend = self.kappa * (across**2 + along**2)
        root = np.sqrt(np.maximum(1 + self.kappa * (2 * across + bend), 0))
        distance = (2 * across + bend) / (1 + root)
        if abs(self.kappa) < 1e-9:
            return distance, along
        return distance, np.arctan2(self.kappa * along, 1 + self.kappa * across) / self.kappa

    def trace(self, half_length: float, step: float = 1.0) -> FloatArray:
        """Return points `(m, 2)` of the arc to both sides of its centre, at most nearly a circle."""
        if abs(self.kappa) * half_length > _WIDEST_TURN:
            half_length = _WIDEST_TURN / abs(self.kappa)
        s = np.linspace(-half_length, half_length, 2 * max(2, round(half_length / step)) + 1)
        turn = self.kappa * s
        along = s * np.sinc(turn / np.pi)
        across = -s * np.sin(turn / 2) * np.sinc(turn / (2 * np.pi))
        return np.array(self.centre_yx) + along[:, None] * self.direction + across[:, None] * self.normal


def evaluate_bezier(control_yx: FloatArray, t: FloatArray) -> FloatArray:
    """Return the points `(m, 2)` of a cubic Bézier curve of control points `(4, 2)`."""
    return bezier_weights(t) @ control_yx


def bezier_weights(t: FloatArray) -> FloatArray:
    """Return the weights `(m, 4)` of the control points of a cubic Bézier curve (Bernstein's polynomials)."""
    u = 1 - t
    return np.stack([u**3, 3 * u**2 * t, 3 * u * t**2, t**3], axis=1)


def fit_bezier(points_yx: FloatArray) -> FloatArray:
    """Return the control points `(4, 2)` of the cubic Bézier curve nearest to a path `(m, 2)`.

    Points and parameters are fitted in turn, from parameters that grow with the path's length.
    """
    steps = np.linalg.norm(np.diff(points_yx, axis=0), axis=1)
    t = np.concatenate([[0.0], np.cumsum(steps)]) / max(steps.sum(), 1e-12)
    dense = np.linspace(0, 1, 2000)
    weights = bezier_weights(dense)
    control = np.zeros((4, 2))
    for _ in range(_FIT_ROUNDS):
        control = np.asarray(np.linalg.lstsq(bezier_weights(t), points_yx, rcond=None)[0], float)
        t = dense[cKDTree(weights @ control).query(points_yx)[1]]
    return control


def extend_path(points_yx: FloatArray, length: float) -> FloatArray:
    """Return an open path `(m, 2)` continued straight by `length` pixels at both ends."""
    steps = np.arange(1.0, max(2.0, length) + 1)
    first = points_yx[0] - points_yx[min(2, len(points_yx) - 1)]
    last = points_yx[-1] - points_yx[max(-3, -len(points_yx))]
    before = points_yx[0] + steps[::-1, None] * first / np.linalg.norm(first)
    after = points_yx[-1] + steps[:, None] * last / np.linalg.norm(last)
    return np.concatenate([before, points_yx, after])


def resample_path(points_yx: FloatArray, step: float, *, closed: bool) -> FloatArray:
    """Return a path at nearly even steps of its length; the first point of a closed one is not repeated."""
    path = np.concatenate([points_yx, points_yx[:1]]) if closed else points_yx
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    path = path[np.concatenate([[True], lengths > 1e-9])]
    s = np.concatenate([[0.0], np.cumsum(lengths[lengths > 1e-9])])
    count = max(4, round(s[-1] / step))
    if closed:
        path[-1] = path[0]
    curve = CubicSpline(s, path, bc_type="periodic" if closed else "natural")
    return np.asarray(
        curve(np.linspace(0, s[-1], count, endpoint=False) if closed else np.linspace(0, s[-1], count))
    )


def path_normals(points_yx: FloatArray, *, closed: bool) -> FloatArray:
    """Return unit normals `(m, 2)` of a path."""
    if closed:
        tangents = np.roll(points_yx, -1, axis=0) - np.roll(points_yx, 1, axis=0)
    else:
        tangents = np.gradient(points_yx, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-12)
    return np.stack([tangents[:, 1], -tangents[:, 0]], axis=1)


@dataclass(frozen=True, eq=False)
class Band:
    """Pixels near a curve.

    Parameters
    ----------
    pixels
        `(k,)` flat indices into the image.
    distance
        `(k,)` from the curve, pixels, positive on the side of its normal.
    position
        `(k,)` along the curve from its first point, pixels.
    length
        Of the curve, pixels.
    closed
        Whether its ends meet.
    """

    pixels: IntArray
    distance: FloatArray
    position: FloatArray
    length: float
    closed: bool

    def take(self, chosen: npt.NDArray[np.bool_]) -> Self:
        """Return the band of some of its pixels."""
        return type(self)(
            self.pixels[chosen], self.distance[chosen], self.position[chosen], self.length, self.closed
        )


def locate_on_path(
    path: FloatArray, points_yx: FloatArray, *, closed: bool
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Return distance from a path, position along it, and whether the foot lies within its ends, of points `(k, 2)`.

    The path must be sampled evenly, and finely against its radius of curvature.
    """
    count = len(path)
    normals = path_normals(path, closed=closed)
    nearest = cKDTree(path).query(points_yx)[1]
    ends = np.concatenate([path, path[:1]]) if closed else path
    step = float(np.linalg.norm(np.diff(ends, axis=0), axis=1).mean())
    away = points_yx - path[nearest]
    normal = normals[nearest]
    along = -away[:, 0] * normal[:, 1] + away[:, 1] * normal[:, 0]
    across = (away * normal).sum(axis=1)
    # Near its foot the curve is a circle: the turn of the normals over a step is its curvature.
    before, after = (nearest - 1) % count, (nearest + 1) % count
    if not closed:
        before, after = np.maximum(nearest - 1, 0), np.minimum(nearest + 1, count - 1)
    spans = np.maximum(((after - before) % count) * step, 1e-9)
    turned = normals[before, 0] * normals[after, 1] - normals[before, 1] * normals[after, 0]
    kappa = turned / spans
    bend = kappa * (across**2 + along**2)
    root = np.sqrt(np.maximum(1 + kappa * (2 * across + bend), 0))
    distance = (2 * across + bend) / (1 + root)
    offset = along / np.maximum(1 + kappa * across, 0.2)
    position = nearest * step + np.clip(offset, -1.5 * step, 1.5 * step)
    inside = np.ones(len(points_yx), dtype=bool)
    if closed:
        position %= count * step
    else:
        inside = ~(((nearest == 0) & (along < 0)) | ((nearest == count - 1) & (along > 0)))
    return distance, position, inside


def map_band(path: FloatArray, shape: tuple[int, int], half_width: float, *, closed: bool) -> Band:
    """Find the pixels within `half_width` of an evenly sampled path.

    Parameters
    ----------
    path
        `(m, 2)` yx.
    shape
        Of the image.
    half_width
        Pixels.
    closed
        Whether the path's ends meet.
    """
    reach = np.arange(-half_width - 1, half_width + 1.5, 0.5)
    normals = path_normals(path, closed=closed)
    step = float(np.linalg.norm(np.diff(path, axis=0), axis=1).mean())
    dense = resample_path(path, 0.5, closed=closed) if step > 0.5 else path
    if len(dense) != len(path):
        normals = path_normals(dense, closed=closed)
    near = np.rint(dense[:, None] + reach[:, None] * normals[:, None]).astype(np.int64).reshape(-1, 2)
    near = near[((near >= 0) & (near < shape)).all(axis=1)]
    pixels = np.unique(near[:, 0] * shape[1] + near[:, 1])
    points = np.stack(np.divmod(pixels, shape[1]), axis=1).astype(float)
    length = float(len(path) * step if closed else (len(path) - 1) * step)
    if not len(pixels):
        empty = np.zeros(0)
        return Band(pixels, empty, empty, length, closed)
    distance, position, inside = locate_on_path(path, points, closed=closed)
    band = Band(pixels, distance, position, length, closed)
    return band.take(inside & (np.abs(distance) <= half_width))
