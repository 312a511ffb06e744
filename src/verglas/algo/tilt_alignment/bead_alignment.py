"""Alignment of a tilt series by its gold beads, from raw views to the geometry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.bundle import BundleFit, Freedom, fit_bundle
from verglas.algo.tilt_alignment.centring import centre_beads, cut_patches, measure_profile
from verglas.algo.tilt_alignment.coarse import find_coarse_shifts
from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, start_geometry
from verglas.algo.tilt_alignment.selection import Trial, refine_alignment
from verglas.algo.tilt_alignment.tracking import find_axis, track_beads
from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

LEAST_CORRELATION = 0.5
"""A bead is measured where its fit correlates with the image at least this well."""

CLEARANCE = 1.1
"""Beads whose centres are nearer than this many diameters in a view are not measured in it."""

FEWEST_VIEWS = 5
_FEWEST_BEADS = 3
_FEWEST_SEEN = 5
_WORST_BEAD = 3.0


@dataclass(frozen=True, eq=False)
class BeadAlignment:
    """An alignment by beads; all lengths in pixels of the views.

    Parameters
    ----------
    fit
        Geometry of the views, places and residuals of the beads.
    tracks_px
        `(beads, n, 2)` measured xy from the image's centre; NaN where a bead was not measured.
    trials
        Held-out residuals of the freedoms that were tried, the chosen one first.
    """

    fit: BundleFit
    tracks_px: FloatArray
    trials: tuple[Trial, ...]


def align_by_beads(
    images: Sequence[Image],
    tilt_deg: npt.ArrayLike,
    detections: Sequence[FloatArray],
    diameter_px: float,
    axis_deg: float | None = None,
) -> BeadAlignment:
    """Align views by dark beads that were found in them.

    Parameters
    ----------
    images
        n good views `(y, x)`, in any order.
    tilt_deg
        `(n,)` stage angles.
    detections
        `(k, 2)` xy of the beads found in each view, pixels from the centre of the image.
    diameter_px
        Of the beads.
    axis_deg
        Rough angle of the tilt axis in the image, to ten degrees or so; none when unknown.

    Raises
    ------
    UserError
        When there are fewer than five views, or too few beads to align by.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    if len(tilt) < FEWEST_VIEWS:
        raise UserError(f"an alignment by beads needs at least {FEWEST_VIEWS} good views; got {len(tilt)}")
    start = _start(images, tilt, axis_deg, detections, diameter_px)
    tracks, geometry = track_beads(detections, start, diameter_px)
    if len(tracks) < _FEWEST_BEADS:
        raise UserError(f"only {len(tracks)} beads could be tracked; expected at least {_FEWEST_BEADS}")
    for freedom in (Freedom(), Freedom(tilt=5, scale=5)):
        tracks = measure_tracks(images, tracks, fit_bundle(tracks, geometry, freedom), diameter_px)
    tracks = drop_outliers(tracks, geometry)
    start = replace(geometry, tilt_deg=tilt, axis_deg=fit_bundle(tracks, geometry, Freedom()).geometry.axis_deg)
    fit, trials = refine_alignment(tracks, start)
    return BeadAlignment(fit, tracks, tuple(trials))


def drop_outliers(tracks_px: FloatArray, geometry: ViewGeometry) -> FloatArray:
    """Drop measurements that lie far off, and beads that as a whole fit much worse than others.

    Parameters
    ----------
    tracks_px
        `(beads, n, 2)`; NaN where a bead was not measured.
    geometry
        Rough.

    Returns
    -------
    ndarray
        `(fewer beads, n, 2)`.
    """
    fit = fit_bundle(tracks_px, geometry, Freedom(axis=5, tilt=5, scale=5))
    tracks = np.where(fit.used[..., None], tracks_px, np.nan)
    lengths = np.linalg.norm(np.where(fit.used[..., None], fit.residuals_px, np.nan), axis=-1)
    seen = fit.used.sum(axis=1)
    worst = np.array([np.median(row[np.isfinite(row)]) if n else np.inf for row, n in zip(lengths, seen, strict=True)])
    keep = (seen >= _FEWEST_SEEN) & (worst <= _WORST_BEAD * np.median(worst[seen > 0]))
    return np.asarray(tracks[keep])


def _start(
    images: Sequence[Image],
    tilt: FloatArray,
    axis_deg: float | None,
    detections: Sequence[FloatArray],
    diameter: float,
) -> ViewGeometry:
    """Nominal geometry with coarse shifts."""
    if axis_deg is None:
        rough = find_coarse_shifts(images, tilt, None)
        blind = start_geometry(tilt, 0.0, rough)
        axis_deg = find_axis(detections, blind, diameter)
    shifts = find_coarse_shifts(images, tilt, axis_deg)
    return start_geometry(tilt, axis_deg, shifts)


def measure_tracks(
    images: Sequence[Image], tracks_px: FloatArray, fit: BundleFit, diameter_px: float
) -> FloatArray:
    """Centre all beads in all views by a fit of their mean profile, those that were not found before too.

    Parameters
    ----------
    images
        n views.
    tracks_px
        `(beads, n, 2)`; NaN where a bead was not found.
    fit
        Of these tracks.
    diameter_px
        Of the beads.

    Returns
    -------
    ndarray
        `(beads, n, 2)`; NaN where a bead is hidden, too near another one, or not where it is expected.
    """
    expected = project_points(fit.geometry, fit.points_px)
    limit = max(diameter_px / 4, 5 * fit.sigma_px)
    known = np.isfinite(tracks_px[..., 0]) & (np.linalg.norm(fit.residuals_px, axis=-1) < limit)
    rough = np.where(known[..., None], tracks_px, expected)
    reach = int(np.ceil(0.95 * diameter_px))
    patches = [
        cut_patches(images[v], rough[known[:, v], v], reach) for v in range(len(images)) if known[:, v].any()
    ]
    profile = measure_profile(np.concatenate(patches), reach)
    measured = np.full_like(rough, np.nan)
    for view, image in enumerate(images):
        rows = np.flatnonzero(np.isfinite(rough[:, view]).all(axis=1))
        rows = rows[_stand_clear(rough[rows, view], CLEARANCE * diameter_px)]
        places, scores = centre_beads(image, rough[rows, view], profile, reach)
        near = np.linalg.norm(places - expected[rows, view], axis=1) < limit
        good = (scores >= LEAST_CORRELATION) & near
        measured[rows[good], view] = places[good]
    return measured


def _stand_clear(places: FloatArray, distance: float) -> npt.NDArray[np.bool_]:
    """Whether each place is at least this far from all others."""
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return np.asarray(apart.min(axis=1, initial=np.inf) >= distance)
