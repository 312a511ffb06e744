"""Bundle adjustment: the geometry of all views and the places of all beads from the tracks of the beads.

A bead at p (xyz, pixels, from the specimen's centre) appears in a view, in pixels xy from the centre of the
image, at

    shift + scale · Rz(axis) · (Ry(tilt) · p)[xy]

which is the model of `TiltSeries`. A tilt about x that all views share only turns the specimen, so it is no
unknown here; so is a common offset of all tilts, which a weak pull towards the nominal angles holds.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]

FEWEST_VIEWS = 3
"""A bead seen in fewer views has no place in space."""

# How far angles and scales may stray before the pull to the nominal counts as much as one measurement.
_PULL = {"axis": np.deg2rad(5.0), "tilt": np.deg2rad(2.0), "scale": 0.02}
_MOST_ROUNDS = 60
_TUNING = 6.0  # gentle: beads that move with the specimen are no outliers
_OUTLIER = 5.0


@dataclass(frozen=True, eq=False)
class ViewGeometry:
    """Geometry of n views in pixels.

    Parameters
    ----------
    tilt_deg, axis_deg
        `(n,)` tilt and angle of the tilt axis in the image.
    shift_px
        `(n, 2)` xy of the specimen's centre from the image's centre.
    scale
        `(n,)` magnification.
    """

    tilt_deg: FloatArray
    axis_deg: FloatArray
    shift_px: FloatArray
    scale: FloatArray

    def __len__(self) -> int:
        return len(self.tilt_deg)

    def take(self, rows: npt.ArrayLike) -> "ViewGeometry":
        """Return these views only."""
        index = np.asarray(rows)
        return ViewGeometry(
            self.tilt_deg[index], self.axis_deg[index], self.shift_px[index], self.scale[index]
        )


@dataclass(frozen=True)
class Freedom:
    """Which variables are fitted beside the shifts, as the number of nodes of a line over the views.

    0 keeps a variable at its start, 1 fits one value for all views, more fit a line through so many nodes, and
    -1 fits every view alone. The scale never has a common value, because the beads' places take it up.
    """

    axis: int = 1
    tilt: int = 0
    scale: int = 0

    def count(self, views: int) -> int:
        """Return how many unknowns these are."""
        axis, tilt, scale = (views if n < 0 else n for n in (self.axis, self.tilt, self.scale))
        return axis + tilt + scale


@dataclass(frozen=True, eq=False)
class BundleFit:
    """What a fit found.

    Parameters
    ----------
    geometry
        Of the views.
    points_px
        `(beads, 3)` xyz; NaN for beads with too few measurements.
    residuals_px
        `(beads, n, 2)` measured less expected; NaN where nothing was measured.
    used
        `(beads, n)` measurements that are no outliers.
    sigma_px
        Robust standard deviation of the residuals along one axis.
    """

    geometry: ViewGeometry
    points_px: FloatArray
    residuals_px: FloatArray
    used: npt.NDArray[np.bool_]
    sigma_px: float

    @property
    def rms_px(self) -> tuple[float, float]:
        """Root mean square of the residuals in x and y, of the measurements that are no outliers."""
        x, y = np.sqrt((self.residuals_px[self.used] ** 2).mean(axis=0)) if self.used.any() else (np.nan,) * 2
        return float(x), float(y)


def view_matrices(geometry: ViewGeometry) -> FloatArray:
    """`(n, 2, 3)` matrices from specimen to image, without the shifts."""
    axis, tilt = np.deg2rad(geometry.axis_deg), np.deg2rad(geometry.tilt_deg)
    zero = np.zeros_like(tilt)
    rows = np.stack(
        [
            np.stack([np.cos(axis) * np.cos(tilt), -np.sin(axis), np.cos(axis) * np.sin(tilt)], axis=-1),
            np.stack(
                [np.sin(axis) * np.cos(tilt), np.cos(axis) + zero, np.sin(axis) * np.sin(tilt)], axis=-1
            ),
        ],
        axis=-2,
    )
    return np.asarray(rows * geometry.scale[:, None, None])


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
    seen = np.isfinite(tracks_px).all(axis=-1)
    weight = seen.astype(float) if weights is None else weights * seen
    matrices = view_matrices(geometry)
    offsets = np.where(seen[..., None], tracks_px - geometry.shift_px, 0.0)
    normal = np.einsum("bv,vij,vik->bjk", weight, matrices, matrices) + 1e-9 * np.eye(3)
    right = np.einsum("bv,vij,bvi->bj", weight, matrices, offsets)
    points = np.linalg.solve(normal, right[..., None])[..., 0]
    points[(weight > 0).sum(axis=1) < 2] = np.nan
    return np.asarray(points)


def fit_bundle(
    tracks_px: FloatArray, start: ViewGeometry, freedom: Freedom, *, rounds: int = _MOST_ROUNDS
) -> BundleFit:
    """Fit views and beads by Levenberg and Marquardt with Cauchy's loss, the beads eliminated by Schur.

    The scale of the loss is the median of the residuals, anew in every round. In the end measurements more than
    five standard deviations off are outliers; the specimen's centre is moved to the middle of the beads.

    Parameters
    ----------
    tracks_px
        `(beads, n, 2)` xy from the centre of the image; NaN where a bead was not measured.
    start
        Nominal geometry with rough shifts.
    freedom
        What is fitted beside the shifts.
    rounds
        At most so many steps.

    Raises
    ------
    UserError
        When no bead is seen in three views.
    """
    seen = np.isfinite(tracks_px).all(axis=-1)
    known = seen.sum(axis=1) >= FEWEST_VIEWS
    if not known.any():
        raise UserError(f"no bead was measured in {FEWEST_VIEWS} views or more; expected at least one")
    seen = seen & known[:, None]
    tracks = np.where(seen[..., None], tracks_px, 0.0)
    basis = _make_basis(start, freedom)
    geometry = start
    points = np.nan_to_num(triangulate_points(start, np.where(seen[..., None], tracks, np.nan)))
    damping = 1e-3
    residuals = np.where(seen[..., None], tracks - project_points(geometry, points), 0.0)
    for _ in range(rounds):
        sigma = _robust_sigma(residuals, seen)
        weights = _cauchy_weights(residuals, seen, sigma)
        loss = _cauchy_loss(residuals, seen, sigma)
        moved = False
        for _ in range(8):
            new_geometry, new_points = _take_step(
                geometry, points, start, residuals, weights, basis, damping, sigma
            )
            new_residuals = np.where(seen[..., None], tracks - project_points(new_geometry, new_points), 0.0)
            new_loss = _cauchy_loss(new_residuals, seen, sigma)
            if new_loss < loss:
                moved = True
                break
            damping *= 10
        if not moved:
            break
        geometry, points, residuals = new_geometry, new_points, new_residuals
        damping = max(damping / 10, 1e-9)
        if loss - new_loss < 1e-7 * loss:
            break
    return _finish(tracks_px, geometry, points, known)


def locate_beads(tracks_px: FloatArray, geometry: ViewGeometry) -> BundleFit:
    """Place beads in views that are known, robustly; nothing of the views changes. For held-out beads."""
    seen = np.isfinite(tracks_px).all(axis=-1)
    known = seen.sum(axis=1) >= FEWEST_VIEWS
    weights = seen.astype(float)
    points = triangulate_points(geometry, tracks_px, weights)
    for _ in range(20):
        residuals = np.where(seen[..., None], tracks_px - project_points(geometry, points), 0.0)
        residuals = np.nan_to_num(residuals)
        weights = _cauchy_weights(residuals, seen, _robust_sigma(residuals, seen & known[:, None]))
        points = triangulate_points(geometry, tracks_px, weights)
    return _judge(tracks_px, geometry, points, known)


def _make_basis(start: ViewGeometry, freedom: Freedom) -> FloatArray:
    """`(5 n, unknowns)`: shift x, shift y, axis, tilt, scale of each view from the unknowns."""
    count = len(start)
    blocks = [np.kron(np.eye(count), np.eye(5)[:, :2])]
    for column, nodes in ((2, freedom.axis), (3, freedom.tilt), (4, freedom.scale)):
        blocks.append(np.kron(_lines(start.tilt_deg, nodes), np.eye(5)[:, column : column + 1]))
    return np.concatenate(blocks, axis=1)


def _lines(tilt_deg: FloatArray, nodes: int) -> FloatArray:
    """`(n, nodes)` hat functions over the rank of the tilt."""
    count = len(tilt_deg)
    if nodes == 0:
        return np.zeros((count, 0))
    if nodes < 0 or nodes >= count:
        return np.eye(count)
    if nodes == 1:
        return np.ones((count, 1))
    rank = np.argsort(np.argsort(tilt_deg, kind="stable")) * (nodes - 1) / (count - 1)
    return np.asarray(np.clip(1 - np.abs(rank[:, None] - np.arange(nodes)), 0, None))


def _take_step(
    geometry: ViewGeometry,
    points: FloatArray,
    start: ViewGeometry,
    residuals: FloatArray,
    weights: FloatArray,
    basis: FloatArray,
    damping: float,
    sigma: float,
) -> tuple[ViewGeometry, FloatArray]:
    """One damped step of Gauss and Newton."""
    by_view, by_point = _differentiate(geometry, points)
    count, beads = len(geometry), len(points)
    pull, strain = _pull_back(geometry, start, sigma)
    normal_v = np.einsum("bv,bvik,bvil->vkl", weights, by_view, by_view) + pull[:, :, None] * np.eye(5)
    right_v = np.einsum("bv,bvik,bvi->vk", weights, by_view, residuals) + pull * strain
    normal_p = np.einsum("bv,vik,vil->bkl", weights, by_point, by_point)
    normal_p = normal_p * (1 + damping * np.eye(3)) + 1e-6 * np.eye(3)
    right_p = np.einsum("bv,vik,bvi->bk", weights, by_point, residuals)
    cross = np.einsum("bv,bvik,vil->vkbl", weights, by_view, by_point).reshape(5 * count, beads, 3)
    inverse_p = np.linalg.inv(normal_p)
    lifted = np.einsum("abl,blm->abm", cross, inverse_p)
    views = np.zeros((count, 5, count, 5))
    views[np.arange(count), :, np.arange(count), :] = normal_v
    normal = views.reshape(5 * count, 5 * count)
    reduced = normal - lifted.reshape(5 * count, -1) @ cross.reshape(5 * count, -1).T
    right = right_v.ravel() - np.einsum("abm,bm->a", lifted, right_p)
    system = basis.T @ reduced @ basis
    system[np.diag_indices_from(system)] += damping * np.diag(basis.T @ normal @ basis) + 1e-12
    change = basis @ np.linalg.solve(system, basis.T @ right)
    step_p = np.einsum("blm,bm->bl", inverse_p, right_p - np.einsum("abl,a->bl", cross, change))
    d = change.reshape(count, 5)
    moved = ViewGeometry(
        geometry.tilt_deg + np.rad2deg(d[:, 3]),
        geometry.axis_deg + np.rad2deg(d[:, 2]),
        geometry.shift_px + d[:, :2],
        geometry.scale * np.exp(d[:, 4]),
    )
    return moved, points + step_p


def _differentiate(geometry: ViewGeometry, points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`(beads, n, 2, 5)` derivatives by the view's variables, `(n, 2, 3)` by the bead's place."""
    matrices = view_matrices(geometry)
    quarter = replace(geometry, tilt_deg=geometry.tilt_deg + 90.0)
    turned = view_matrices(quarter)
    turned[:, :, 1] = 0.0  # y does not change with the tilt
    place = np.einsum("vij,bj->bvi", matrices, points)
    by_view = np.zeros((*place.shape, 5))
    by_view[..., 0, 0] = by_view[..., 1, 1] = 1.0
    by_view[..., 0, 2], by_view[..., 1, 2] = -place[..., 1], place[..., 0]
    by_view[..., 3] = np.einsum("vij,bj->bvi", turned, points)
    by_view[..., 4] = place
    return by_view, matrices


def _pull_back(geometry: ViewGeometry, start: ViewGeometry, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Weights and lengths `(n, 5)` of the springs to the start."""
    weights = np.zeros((len(geometry), 5))
    strain = np.zeros((len(geometry), 5))
    weights[:, :2] = 1e-6
    strain[:, :2] = start.shift_px - geometry.shift_px
    for column, name in ((2, "axis"), (3, "tilt")):
        weights[:, column] = (sigma / _PULL[name]) ** 2
        change = getattr(start, f"{name}_deg") - getattr(geometry, f"{name}_deg")
        strain[:, column] = np.deg2rad(change)
    weights[:, 4] = (sigma / _PULL["scale"]) ** 2
    strain[:, 4] = np.log(start.scale / geometry.scale)
    return weights, strain


def _robust_sigma(residuals: FloatArray, seen: npt.NDArray[np.bool_]) -> float:
    """Standard deviation along one axis from the median of the lengths, never below a hundredth pixel."""
    if not seen.any():
        return 1.0
    return max(0.01, float(np.median(np.linalg.norm(residuals[seen], axis=-1))) / 1.1774)


def _cauchy_weights(residuals: FloatArray, seen: npt.NDArray[np.bool_], sigma: float) -> FloatArray:
    square = (residuals**2).sum(axis=-1) / (_TUNING * sigma) ** 2
    return np.asarray(np.where(seen, 1.0 / (1.0 + square), 0.0))


def _cauchy_loss(residuals: FloatArray, seen: npt.NDArray[np.bool_], sigma: float) -> float:
    square = (residuals[seen] ** 2).sum(axis=-1) / (_TUNING * sigma) ** 2
    return float(np.log1p(square).sum())


def _finish(
    tracks_px: FloatArray, geometry: ViewGeometry, points: FloatArray, known: npt.NDArray[np.bool_]
) -> BundleFit:
    """Move the specimen's centre to the middle of the beads and judge the measurements."""
    centre = points[known].mean(axis=0)
    shift = geometry.shift_px + view_matrices(geometry) @ centre
    return _judge(tracks_px, replace(geometry, shift_px=shift), points - centre, known)


def _judge(
    tracks_px: FloatArray, geometry: ViewGeometry, points: FloatArray, known: npt.NDArray[np.bool_]
) -> BundleFit:
    points = np.where(known[:, None], points, np.nan)
    residuals = tracks_px - project_points(geometry, points)
    seen = np.isfinite(residuals).all(axis=-1)
    sigma = _robust_sigma(residuals, seen)
    length = np.linalg.norm(np.where(seen[..., None], residuals, np.inf), axis=-1)
    return BundleFit(geometry, points, residuals, length < _OUTLIER * sigma, sigma)
