"""Bundle adjustment: the geometry of all views and the places of all beads from the tracks of the beads.

A tilt about x that all views share only turns the specimen; so does a common offset of all tilts, and a common
scale only makes the specimen larger. A weak pull towards the nominal geometry holds these.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.geometry import (
    ViewGeometry,
    find_known,
    project_points,
    triangulate_points,
    turn_rows,
    view_matrices,
)
from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]

FEWEST_VIEWS = 3
"""A bead seen in fewer views has no place in space."""

VARIABLES = ("axis", "tilt", "x_tilt", "scale", "stretch", "skew")
"""Of a view, beside its shift."""

# How far angles and scales may stray before the pull to the nominal counts as much as one measurement.
_PULL = {"axis": np.deg2rad(5.0), "tilt": np.deg2rad(2.0), "x_tilt": np.deg2rad(2.0)}
_PULL |= {"scale": 0.02, "stretch": 0.01, "skew": 0.01}
_ANGLES = ("axis", "tilt", "x_tilt")
_MOST_ROUNDS = 60
_LEAST_PROGRESS = 1e-5
_TUNING = 6.0  # gentle: beads that move with the specimen are no outliers
_OUTLIER = 5.0


@dataclass(frozen=True)
class Freedom:
    """Which variables are fitted beside the shifts, as the number of nodes of a line over the views.

    0 keeps a variable at its start, 1 fits one value for all views, more fit a line through so many nodes, and
    -1 fits every view alone. A common value is told from the beads for the axis alone.
    """

    axis: int = 1
    tilt: int = 0
    x_tilt: int = 0
    scale: int = 0
    stretch: int = 0
    skew: int = 0

    def count(self, views: int) -> int:
        """Return how many unknowns these are."""
        nodes = [getattr(self, name) for name in VARIABLES]
        return sum(views if n < 0 else n for n in nodes)


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


@dataclass(frozen=True, eq=False)
class _Problem:
    """What does not change during a fit."""

    tracks: FloatArray
    seen: npt.NDArray[np.bool_]
    start: ViewGeometry
    columns: list[int]
    basis: FloatArray

    def measure(self, geometry: ViewGeometry, points: FloatArray) -> FloatArray:
        """Residuals `(beads, n, 2)`, 0 where nothing was measured."""
        return np.where(self.seen[..., None], self.tracks - project_points(geometry, points), 0.0)


@dataclass(frozen=True, eq=False)
class _State:
    """What a fit moves."""

    geometry: ViewGeometry
    points: FloatArray
    residuals: FloatArray


def fit_bundle(
    tracks_px: FloatArray,
    start: ViewGeometry,
    freedom: Freedom,
    *,
    begin: ViewGeometry | None = None,
    rounds: int = _MOST_ROUNDS,
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
    begin
        Where the fit begins, when something better than the start is known. The pull is to the start.
    rounds
        At most so many steps.

    Raises
    ------
    UserError
        When no bead is seen in three views.
    """
    seen = find_known(tracks_px)
    known = seen.sum(axis=1) >= FEWEST_VIEWS
    if not known.any():
        raise UserError(f"no bead was measured in {FEWEST_VIEWS} views or more; expected at least one")
    seen = seen & known[:, None]
    tracks = np.where(seen[..., None], tracks_px, 0.0)
    problem = _Problem(tracks, seen, start, *make_basis(start, freedom))
    first = start if begin is None else begin
    points = np.nan_to_num(triangulate_points(first, np.where(seen[..., None], tracks, np.nan)))
    state = _State(first, points, problem.measure(first, points))
    damping = 1e-3
    for _ in range(rounds):
        sigma = _robust_sigma(state.residuals, seen)
        weights = _weigh(state.residuals, seen, sigma)
        loss = _lose(state.residuals, seen, sigma)
        for _ in range(8):
            new = _take_step(problem, state, weights, damping, sigma)
            if (new_loss := _lose(new.residuals, seen, sigma)) < loss:
                break
            damping *= 10
        else:
            break
        state, damping = new, max(damping / 10, 1e-9)
        if loss - new_loss < _LEAST_PROGRESS * loss:
            break
    # The specimen's centre goes to the middle of the beads.
    centre = state.points[known].mean(axis=0)
    shift = state.geometry.shift_px + view_matrices(state.geometry) @ centre
    return _judge(tracks_px, replace(state.geometry, shift_px=shift), state.points - centre, known)


def locate_beads(tracks_px: FloatArray, geometry: ViewGeometry) -> BundleFit:
    """Place beads in views that are known, robustly; nothing of the views changes. For held-out beads."""
    seen = find_known(tracks_px)
    known = seen.sum(axis=1) >= FEWEST_VIEWS
    points = triangulate_points(geometry, tracks_px, seen.astype(float))
    for _ in range(6):
        residuals = np.where(seen[..., None], tracks_px - project_points(geometry, points), 0.0)
        residuals = np.nan_to_num(residuals)
        weights = _weigh(residuals, seen, _robust_sigma(residuals, seen & known[:, None]))
        points = triangulate_points(geometry, tracks_px, weights)
    return _judge(tracks_px, geometry, points, known)


def make_basis(start: ViewGeometry, freedom: Freedom) -> tuple[list[int], FloatArray]:
    """Columns of the variables that are fitted, and `(n columns, unknowns)`: these of each view from the unknowns."""
    count = len(start)
    lines = {2 + i: draw_lines(start.tilt_deg, getattr(freedom, name)) for i, name in enumerate(VARIABLES)}
    lines = {0: np.eye(count), 1: np.eye(count)} | {
        column: line for column, line in lines.items() if line.size
    }
    blocks = [np.kron(line, np.eye(len(lines))[:, [i]]) for i, line in enumerate(lines.values())]
    return list(lines), np.concatenate(blocks, axis=1)


def draw_lines(tilt_deg: FloatArray, nodes: int) -> FloatArray:
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


def _take_step(problem: _Problem, state: _State, weights: FloatArray, damping: float, sigma: float) -> _State:
    """One damped step of Gauss and Newton; the beads are eliminated first (Schur)."""
    geometry, basis = state.geometry, problem.basis
    by_view, by_point = differentiate_views(geometry, state.points)
    by_view = by_view[..., problem.columns]
    count, beads, width = len(geometry), len(state.points), len(problem.columns)
    pull, strain = (values[:, problem.columns] for values in _pull_back(geometry, problem.start, sigma))
    normal_v = np.einsum("bv,bvik,bvil->vkl", weights, by_view, by_view) + pull[:, :, None] * np.eye(width)
    right_v = np.einsum("bv,bvik,bvi->vk", weights, by_view, state.residuals) + pull * strain
    normal_p = np.einsum("bv,vik,vil->bkl", weights, by_point, by_point)
    normal_p = normal_p * (1 + damping * np.eye(3)) + 1e-6 * np.eye(3)
    right_p = np.einsum("bv,vik,bvi->bk", weights, by_point, state.residuals)
    cross = np.einsum("bv,bvik,vil->vkbl", weights, by_view, by_point).reshape(width * count, beads, 3)
    inverse_p = np.linalg.inv(normal_p)
    lifted = np.einsum("abl,blm->abm", cross, inverse_p)
    views = np.zeros((count, width, count, width))
    views[np.arange(count), :, np.arange(count), :] = normal_v
    normal = views.reshape(width * count, width * count)
    reduced = normal - lifted.reshape(width * count, -1) @ cross.reshape(width * count, -1).T
    right = right_v.ravel() - np.einsum("abm,bm->a", lifted, right_p)
    system = basis.T @ reduced @ basis
    system[np.diag_indices_from(system)] += damping * np.diag(basis.T @ normal @ basis) + 1e-12
    change = basis @ np.linalg.solve(system, basis.T @ right)
    points = state.points + np.einsum(
        "blm,bm->bl", inverse_p, right_p - np.einsum("abl,a->bl", cross, change)
    )
    d = np.zeros((count, 2 + len(VARIABLES)))
    d[:, problem.columns] = change.reshape(count, width)
    moved = ViewGeometry(
        geometry.tilt_deg + np.rad2deg(d[:, 3]),
        geometry.axis_deg + np.rad2deg(d[:, 2]),
        geometry.shift_px + d[:, :2],
        geometry.x_tilt_deg + np.rad2deg(d[:, 4]),
        geometry.scale * np.exp(d[:, 5]),
        geometry.stretch + d[:, 6],
        geometry.skew + d[:, 7],
    )
    return _State(moved, points, problem.measure(moved, points))


def differentiate_views(geometry: ViewGeometry, points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`(beads, n, 2, 8)` derivatives by the view's variables, `(n, 2, 3)` by the bead's place."""
    tilt, x_tilt = np.deg2rad(geometry.tilt_deg), np.deg2rad(geometry.x_tilt_deg)
    zero, sin, cos = np.zeros_like(tilt), np.sin(x_tilt), np.cos(x_tilt)
    by_tilt = turn_rows(
        geometry,
        np.stack([-np.sin(tilt), np.cos(tilt) * sin, np.cos(tilt) * cos], axis=-1),
        np.zeros((len(tilt), 3)),
    )
    by_x_tilt = turn_rows(
        geometry,
        np.stack([zero, np.sin(tilt) * cos, -np.sin(tilt) * sin], axis=-1),
        np.stack([zero, -sin, -cos], axis=-1),
    )
    matrices, m = view_matrices(geometry), geometry.magnification
    place = np.einsum("vij,bj->bvi", matrices, points)
    x, y = np.moveaxis(np.einsum("vij,bvj->bvi", np.linalg.inv(m), place), 2, 0)
    by_view = np.zeros((*place.shape, 2 + len(VARIABLES)))
    by_view[..., 0, 0] = by_view[..., 1, 1] = 1.0
    by_view[..., 2] = np.einsum("vij,bvj->bvi", m, np.stack([-y, x], axis=-1))
    by_view[..., 3] = np.einsum("vij,bj->bvi", m @ by_tilt, points)
    by_view[..., 4] = np.einsum("vij,bj->bvi", m @ by_x_tilt, points)
    by_view[..., 5] = place
    scale = geometry.scale[:, None]
    by_view[..., 6] = scale * np.stack([x, -y], axis=-1)
    by_view[..., 7] = scale * np.stack([y, x], axis=-1)
    return by_view, matrices


def _pull_back(geometry: ViewGeometry, start: ViewGeometry, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Weights and lengths `(n, 8)` of the springs to the start."""
    weights = np.empty((len(geometry), 2 + len(VARIABLES)))
    strain = np.empty_like(weights)
    weights[:, :2] = 1e-6
    strain[:, :2] = start.shift_px - geometry.shift_px
    for column, name in enumerate(VARIABLES, 2):
        weights[:, column] = (sigma / _PULL[name]) ** 2
        if name in _ANGLES:
            change = getattr(start, f"{name}_deg") - getattr(geometry, f"{name}_deg")
            strain[:, column] = np.deg2rad(change)
        else:
            strain[:, column] = getattr(start, name) - getattr(geometry, name)
    return weights, strain


def _robust_sigma(residuals: FloatArray, seen: npt.NDArray[np.bool_]) -> float:
    """Estimate the deviation along one axis from the median of the lengths; never below a hundredth pixel."""
    if not seen.any():
        return 1.0
    return max(0.01, float(np.median(np.linalg.norm(residuals[seen], axis=-1))) / 1.1774)


def _weigh(residuals: FloatArray, seen: npt.NDArray[np.bool_], sigma: float) -> FloatArray:
    """Cauchy's weights."""
    square = (residuals**2).sum(axis=-1) / (_TUNING * sigma) ** 2
    return np.asarray(np.where(seen, 1.0 / (1.0 + square), 0.0))


def weigh_residuals(residuals: FloatArray, seen: npt.NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """`(beads, n)` Cauchy's weights of residuals `(beads, n, 2)`, and their robust standard deviation."""
    sigma = _robust_sigma(residuals, seen)
    return _weigh(residuals, seen, sigma), sigma


def _lose(residuals: FloatArray, seen: npt.NDArray[np.bool_], sigma: float) -> float:
    """Cauchy's loss."""
    square = (residuals[seen] ** 2).sum(axis=-1) / (_TUNING * sigma) ** 2
    return float(np.log1p(square).sum())


def _judge(
    tracks_px: FloatArray, geometry: ViewGeometry, points: FloatArray, known: npt.NDArray[np.bool_]
) -> BundleFit:
    """Tell the outliers."""
    points = np.where(known[:, None], points, np.nan)
    residuals = tracks_px - project_points(geometry, points)
    seen = find_known(residuals)
    sigma = _robust_sigma(residuals, seen)
    length = np.linalg.norm(np.where(seen[..., None], residuals, np.inf), axis=-1)
    return BundleFit(geometry, points, residuals, length < _OUTLIER * sigma, sigma)
