"""Bundle adjustment of patches, whose places in neighbouring views err together.

A patch is measured against its neighbours, so its errors wander along the series: steps between near views are
known well, the whole track hardly. The fit therefore takes each track with its information matrix (the Hessian of
its likelihood), not as so many independent places. The model of the views and the variables are those of `bundle`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.bundle import (
    VARIABLES,
    BundleFit,
    Freedom,
    differentiate_views,
    make_basis,
)
from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, view_matrices
from verglas.algo.tilt_alignment.selection import FOLDS, LEAST_GAIN, Trial

FloatArray = npt.NDArray[np.float64]

FREEDOMS = (
    Freedom(axis=1),
    Freedom(axis=1, scale=5),
    Freedom(axis=1, scale=5, tilt=5),
    Freedom(axis=1, scale=5, tilt=-1),
)
"""From few unknowns to many."""

# How far each variable strays: a stage and a projector system, one standard deviation.
_STRAY = {"axis": np.deg2rad(5.0), "tilt": np.deg2rad(0.2), "x_tilt": np.deg2rad(0.2)}
_STRAY |= {"scale": 0.005, "stretch": 0.005, "skew": 0.005}
_ROUNDS = 12
_TUNING = 2.0
_FEWEST_FITTED = 4


@dataclass(frozen=True, eq=False)
class PatchTracks:
    """Tracks of patches with what is known of their errors.

    Parameters
    ----------
    places_px
        `(b, n, 2)` xy from the image's centre; NaN where a patch was not measured. At least two views each.
    roots
        `(b, 2 n, 2 n)` matrices R with R^T R the information on the places x y x y ..., 1/px², up to a factor that
        all share; zero where nothing was measured.
    """

    places_px: FloatArray
    roots: FloatArray

    def take(self, rows: npt.ArrayLike) -> "PatchTracks":
        """Return these patches only."""
        index = np.asarray(rows)
        return PatchTracks(self.places_px[index], self.roots[index])


def fit_patches(
    tracks: PatchTracks, start: ViewGeometry, freedom: Freedom, nominal: ViewGeometry
) -> BundleFit:
    """Fit views and patches by Gauss and Newton; patches that fit badly count less (Cauchy).

    Parameters
    ----------
    tracks
        Of b patches in n views.
    start
        Where the fit begins.
    freedom
        What is fitted beside the shifts.
    nominal
        What the variables are pulled to, by how far they usually stray.
    """
    columns, basis = make_basis(start, freedom)
    geometry = start
    points = place_patches(tracks, geometry)
    for _ in range(_ROUNDS):
        misfit = measure_misfit(tracks, geometry, points)
        weights, variance = _weigh(misfit, tracks)
        change, moves = _solve(tracks, geometry, points, weights / variance, (columns, basis), nominal)
        geometry = _move(geometry, change)
        points = points + moves
        if np.abs(change[:, :2]).max() < 1e-3:
            break
    centre = points.mean(axis=0)
    shift = geometry.shift_px + view_matrices(geometry) @ centre
    return _judge(tracks, replace(geometry, shift_px=shift), points - centre)


def place_patches(tracks: PatchTracks, geometry: ViewGeometry) -> FloatArray:
    """`(b, 3)` places of the patches in views that are known."""
    count = len(geometry)
    design = tracks.roots @ view_matrices(geometry).reshape(2 * count, 3)
    offsets = np.nan_to_num(tracks.places_px - geometry.shift_px).reshape(-1, 2 * count, 1)
    normal = np.swapaxes(design, 1, 2) @ design
    normal += 1e-6 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-12 * np.eye(3)
    # A track says little of its own middle: that is taken from its places.
    solved = np.linalg.solve(normal, np.swapaxes(design, 1, 2) @ (tracks.roots @ offsets))
    return np.asarray(solved[..., 0], dtype=float)


def measure_misfit(tracks: PatchTracks, geometry: ViewGeometry, points: FloatArray) -> FloatArray:
    """`(b, 2 n)` residuals in units of their standard deviations, up to the factor that all share."""
    residuals = np.nan_to_num(tracks.places_px - project_points(geometry, points))
    return np.asarray(np.einsum("bij,bj->bi", tracks.roots, residuals.reshape(len(points), -1)))


def local_residuals(tracks: PatchTracks, geometry: ViewGeometry, points: FloatArray) -> FloatArray:
    """`(b, n, 2)` how far each place lies from where the fit and the rest of its track say it is; NaN if unknown.

    The track as a whole may wander further off than its steps: this is what the images contradict.
    """
    count = len(geometry)
    pulls = np.swapaxes(tracks.roots, 1, 2) @ measure_misfit(tracks, geometry, points)[..., None]
    columns = tracks.roots.reshape(len(points), 2 * count, count, 2)
    alone = np.einsum("bavi,bavj->bvij", columns, columns)
    alone = np.where(np.isfinite(tracks.places_px[..., :1, None]), alone, np.eye(2))
    steps = np.linalg.solve(alone, pulls.reshape(len(points), count, 2, 1))[..., 0]
    return np.where(np.isfinite(tracks.places_px), steps, np.nan)


def hold_out_patches(
    tracks: PatchTracks, start: ViewGeometry, freedom: Freedom, nominal: ViewGeometry
) -> tuple[Trial, FloatArray]:
    """Fit without every fifth patch in turn; local residuals and mean square misfit `(b,)` of those left out."""
    folds = np.arange(len(tracks.places_px)) % FOLDS
    residuals = np.full_like(tracks.places_px, np.nan)
    misfits = np.full(len(folds), np.nan)
    for fold in range(FOLDS):
        out = folds == fold
        if not out.any() or (~out).sum() < _FEWEST_FITTED:
            continue
        geometry = fit_patches(tracks.take(~out), start, freedom, nominal).geometry
        left = tracks.take(out)
        points = place_patches(left, geometry)
        residuals[out] = local_residuals(left, geometry, points)
        misfits[out] = (measure_misfit(left, geometry, points) ** 2).sum(axis=1) / _count(left)
    return Trial(freedom, residuals), misfits


def refine_patches(
    tracks: PatchTracks, start: ViewGeometry, nominal: ViewGeometry, freedoms: Sequence[Freedom] = FREEDOMS
) -> tuple[BundleFit, list[Trial]]:
    """Choose the freedom by held-out patches, and fit it to all of them; the chosen trial is the first."""
    trials: list[Trial] = []
    least = np.inf
    for freedom in freedoms:
        trial, misfits = hold_out_patches(tracks, start, freedom, nominal)
        known = misfits[np.isfinite(misfits)]
        merit = float(np.median(known)) if len(known) else np.inf
        if not trials or merit < (1 - LEAST_GAIN) * least:
            trials.insert(0, trial)
            least = merit
        else:
            trials.append(trial)
    return fit_patches(tracks, start, trials[0].freedom, nominal), trials


def _count(tracks: PatchTracks) -> FloatArray:
    """`(b,)` numbers measured, less those that a patch's own place takes up."""
    return np.asarray(np.maximum(2.0 * np.isfinite(tracks.places_px[..., 0]).sum(axis=1) - 3, 1.0))


def _weigh(misfit: FloatArray, tracks: PatchTracks) -> tuple[FloatArray, float]:
    """Cauchy's weights of the patches, and the factor of the variances."""
    square = (misfit**2).sum(axis=1) / _count(tracks)
    variance = max(float(np.median(square)), 1e-12)
    return 1 / (1 + square / (variance * _TUNING**2)), variance


def _solve(
    tracks: PatchTracks,
    geometry: ViewGeometry,
    points: FloatArray,
    weights: FloatArray,
    free: tuple[list[int], FloatArray],
    nominal: ViewGeometry,
) -> tuple[FloatArray, FloatArray]:
    """Find changes `(n, 8)` of the views and `(b, 3)` of the patches; the patches are eliminated first (Schur)."""
    (columns, basis), count = free, len(geometry)
    by_view, by_point = differentiate_views(geometry, points)
    by_view, width = by_view[..., columns], len(columns)
    stray, strain = (table[:, columns] for table in _pull_back(geometry, nominal))
    blocks = basis.reshape(count, width, -1)
    normal = basis.T @ (stray.ravel()[:, None] * basis)
    right = basis.T @ (stray * strain).ravel()
    misfit = measure_misfit(tracks, geometry, points)
    lifts = []
    for row, root in enumerate(tracks.roots):
        a = root @ np.einsum("vik,vku->viu", by_view[row], blocks).reshape(2 * count, -1)
        p = root @ by_point.reshape(2 * count, 3)
        inverse = np.linalg.inv(p.T @ p + 1e-9 * np.trace(p.T @ p) * np.eye(3) + 1e-12 * np.eye(3))
        free_a, free_r = a - p @ (inverse @ (p.T @ a)), misfit[row] - p @ (inverse @ (p.T @ misfit[row]))
        normal += weights[row] * a.T @ free_a
        right += weights[row] * a.T @ free_r
        lifts.append((inverse @ p.T, a))
    normal[np.diag_indices_from(normal)] += 1e-9 * np.trace(normal) / len(normal)
    unknowns = np.linalg.solve(normal, right)
    moves = np.array([lift @ (misfit[row] - a @ unknowns) for row, (lift, a) in enumerate(lifts)])
    change = np.zeros((count, 2 + len(VARIABLES)))
    change[:, columns] = (basis @ unknowns).reshape(count, width)
    return change, moves


def _pull_back(geometry: ViewGeometry, nominal: ViewGeometry) -> tuple[FloatArray, FloatArray]:
    """Weights and lengths `(n, 8)` of the springs to the nominal geometry."""
    weights = np.full((len(geometry), 2 + len(VARIABLES)), 1e-6)
    strain = np.zeros_like(weights)
    for column, name in enumerate(VARIABLES, 2):
        weights[:, column] = _STRAY[name] ** -2
        if name in ("axis", "tilt", "x_tilt"):
            strain[:, column] = np.deg2rad(getattr(nominal, f"{name}_deg") - getattr(geometry, f"{name}_deg"))
        else:
            strain[:, column] = getattr(nominal, name) - getattr(geometry, name)
    return weights, strain


def _move(geometry: ViewGeometry, change: FloatArray) -> ViewGeometry:
    return ViewGeometry(
        geometry.tilt_deg + np.rad2deg(change[:, 3]),
        geometry.axis_deg + np.rad2deg(change[:, 2]),
        geometry.shift_px + change[:, :2],
        geometry.x_tilt_deg + np.rad2deg(change[:, 4]),
        geometry.scale * np.exp(change[:, 5]),
        geometry.stretch + change[:, 6],
        geometry.skew + change[:, 7],
    )


def _judge(tracks: PatchTracks, geometry: ViewGeometry, points: FloatArray) -> BundleFit:
    residuals = local_residuals(tracks, geometry, points)
    seen = np.isfinite(residuals[..., 0])
    misfit = measure_misfit(tracks, geometry, points)
    weights, _ = _weigh(misfit, tracks)
    lengths = np.linalg.norm(residuals[seen], axis=-1)
    sigma = max(0.01, float(np.median(lengths)) / 1.1774) if len(lengths) else 1.0
    return BundleFit(geometry, points, residuals, seen & (weights > 0.2)[:, None], sigma)
