"""Alignment of a tilt series by its gold beads, from raw views to the geometry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.tilt_alignment.alignment import FEWEST_GOOD_VIEWS, MarkAlignment
from verglas.algo.tilt_alignment.bundle import VARIABLES, BundleFit, Freedom, fit_bundle
from verglas.algo.tilt_alignment.centring import centre_beads, cut_patches, measure_profile
from verglas.algo.tilt_alignment.coarse import find_coarse_shifts
from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, start_geometry
from verglas.algo.tilt_alignment.local_alignment import fit_local_field
from verglas.algo.tilt_alignment.selection import refine_alignment
from verglas.algo.tilt_alignment.slab import fit_slab, level_specimen
from verglas.algo.tilt_alignment.tracking import find_axis, track_beads
from verglas.errors import UserError
from verglas.ops.binning import bin_images, binned_centre_step

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

LEAST_CORRELATION = 0.5
"""A bead is measured where its fit correlates with the image at least this well ..."""

LEAST_OF_TYPICAL = 0.6
"""... or as this share of what beads of the same view do, when the view is so noisy that they all do worse ..."""

LEAST_SIGNIFICANCE = 8.0
"""... but never below this many standard deviations of the correlation with noise."""

CLEARANCE = 1.1
"""Beads whose centres are nearer than this many diameters in a view are not measured in it."""

FINEST_DIAMETER = 16.0
"""Beads are measured on views averaged in blocks until they are hardly wider than so many pixels: finer pixels hold
more noise, in which the correlation drowns, and take longer."""

_FEWEST_BEADS = 3
_WELL_EXPLAINED = 0.4
_BETTER_EXPLAINED = 1.2
_FEWEST_SEEN = 5
_WORST_BEAD = 3.0


def align_by_beads(
    images: Sequence[Image],
    tilt_deg: npt.ArrayLike,
    detections: Sequence[FloatArray],
    diameter_px: float,
    axis_deg: float | None = None,
    variables: Sequence[str] = VARIABLES,
    *,
    search: bool = False,
    local: bool = True,
) -> MarkAlignment:
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
        Rough angle of the tilt axis in the image. When it does not let the beads be tracked, or is none, all
        directions are searched; of two opposite ones that nearer to it is taken.
    variables
        Which may be freed beside the shifts.
    search
        Search all directions at once; the rough angle then only tells the axis from its opposite.
    local
        Fit a local field too where held-out beads call for one.

    Raises
    ------
    UserError
        When there are fewer than five views, or too few beads to align by.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    if len(tilt) < FEWEST_GOOD_VIEWS:
        raise UserError(
            f"an alignment by beads needs at least {FEWEST_GOOD_VIEWS} good views; got {len(tilt)}"
        )
    follow = partial(_follow, images, tilt, detections, diameter_px)
    tracked, searched = None if search or axis_deg is None else follow(axis_deg), False
    if tracked is None or tracked.share < _WELL_EXPLAINED:
        found, known = _search_axis(images, tilt, detections, diameter_px), axis_deg or 0.0
        other = None if found is None else follow(found + 180 * round((known - found) / 180))
        if other is not None and (tracked is None or other.share > _BETTER_EXPLAINED * tracked.share):
            tracked, searched = other, True
    if tracked is None:
        raise UserError(
            "no three beads could be followed through the views at any angle of the tilt axis; expected gold beads"
        )
    fit, trials = refine_alignment(tracked.tracks_px, tracked.start, variables)
    slab = fit_slab(fit.points_px)
    geometry, points = level_specimen(fit.geometry, fit.points_px, slab)
    explained = explain_detections(detections, geometry, points, diameter_px)
    tracks = tracked.tracks_px
    done = MarkAlignment(
        geometry=geometry,
        points_px=points,
        tracks_px=tracks,
        residuals_px=fit.residuals_px,
        trials=tuple(trials),
        slab=slab,
        searched=searched,
        explained=explained,
    )
    bent = fit_local_field(tracks, geometry, points, tracked.start, trials[0].freedom) if local else None
    if bent is None:
        return done
    return replace(
        done,
        geometry=bent.geometry,
        points_px=bent.points_px,
        residuals_px=bent.residuals_px,
        trials=(bent.trial, *trials),
        field=bent.field,
    )


@dataclass(frozen=True, eq=False)
class _Tracked:
    """Measured tracks, the geometry to begin with, and the share of the detections that they explain."""

    tracks_px: FloatArray
    start: ViewGeometry
    share: float


def _follow(
    images: Sequence[Image],
    tilt: FloatArray,
    detections: Sequence[FloatArray],
    diameter_px: float,
    axis_deg: float,
) -> _Tracked | None:
    """Track and measure the beads; none when there are too few."""
    start = start_geometry(tilt, axis_deg, find_coarse_shifts(images, tilt, axis_deg))
    blocks = average_views(images, diameter_px)
    tracks, geometry = track_beads(detections, start, diameter_px)
    for freedom in (Freedom(), Freedom(tilt=5, scale=5), Freedom(tilt=5, scale=5)):
        if len(tracks) < _FEWEST_BEADS:
            return None
        tracks = measure_tracks(blocks, tracks, fit_bundle(tracks, geometry, freedom), diameter_px)
        tracks = tracks[np.isfinite(tracks[..., 0]).sum(axis=1) >= _FEWEST_SEEN]
    tracks = drop_outliers(tracks, geometry) if len(tracks) else tracks
    if len(tracks) < _FEWEST_BEADS:
        return None
    fit = fit_bundle(tracks, geometry, Freedom(tilt=5, scale=5))
    share = float(np.nanmean(explain_detections(detections, fit.geometry, fit.points_px, diameter_px)))
    axis = fit_bundle(tracks, geometry, Freedom()).geometry.axis_deg
    return _Tracked(tracks, replace(geometry, tilt_deg=tilt, axis_deg=axis), share)


def _search_axis(
    images: Sequence[Image], tilt: FloatArray, detections: Sequence[FloatArray], diameter_px: float
) -> float | None:
    """Angle of the axis from the beads alone; none when they do not tell it."""
    return find_axis(
        detections, start_geometry(tilt, 0.0, find_coarse_shifts(images, tilt, None)), diameter_px
    )


def explain_detections(
    detections: Sequence[FloatArray], geometry: ViewGeometry, points_px: FloatArray, diameter_px: float
) -> FloatArray:
    """`(n,)` share of the beads found in each view where one is expected; NaN where none was found."""
    expected = project_points(geometry, points_px[np.isfinite(points_px).all(axis=1)])
    shares = np.full(len(detections), np.nan)
    for view, found in enumerate(detections):
        if len(found):
            nearest = np.linalg.norm(found[:, None] - expected[None, :, view], axis=2).min(axis=1)
            shares[view] = (nearest < diameter_px / 2).mean()
    return shares


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
    worst = np.array(
        [np.median(row[np.isfinite(row)]) if n else np.inf for row, n in zip(lengths, seen, strict=True)]
    )
    keep = (seen >= _FEWEST_SEEN) & (worst <= _WORST_BEAD * np.median(worst[seen > 0]))
    return np.asarray(tracks[keep])


@dataclass(frozen=True, eq=False)
class Blocks:
    """Views averaged in blocks.

    Parameters
    ----------
    images
        n views `(y, x)`.
    factor
        Side of a block.
    step_px
        xy of the middle of an average from that of the view, pixels of the views.
    """

    images: Sequence[Image]
    factor: int
    step_px: FloatArray

    def to_blocks(self, places_px: FloatArray) -> FloatArray:
        """Turn places `(..., 2)` in the views into such in the averages."""
        return np.asarray((places_px - self.step_px) / self.factor)

    def from_blocks(self, places: FloatArray) -> FloatArray:
        """Turn places `(..., 2)` in the averages into such in the views."""
        return np.asarray(places * self.factor + self.step_px)


def average_views(images: Sequence[Image], diameter_px: float) -> Blocks:
    """Average views in blocks as far as beads of this diameter can still be measured."""
    factor = max(1, int(diameter_px / FINEST_DIAMETER))
    step = np.array([binned_centre_step(size, factor) for size in images[0].shape[::-1]])
    if factor > 1:
        images = [bin_images(torch.as_tensor(image), factor).numpy() for image in images]
    return Blocks(images, factor, step)


def measure_tracks(blocks: Blocks, tracks_px: FloatArray, fit: BundleFit, diameter_px: float) -> FloatArray:
    """Centre all beads in all views by a fit of their mean profile, those that were not found before too.

    Parameters
    ----------
    blocks
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
    rough, images = blocks.to_blocks(np.where(known[..., None], tracks_px, expected)), blocks.images
    diameter, expected, limit = diameter_px / blocks.factor, blocks.to_blocks(expected), limit / blocks.factor
    reach = int(np.ceil(0.95 * diameter))
    patches = [
        cut_patches(images[v], rough[known[:, v], v], reach) for v in range(len(images)) if known[:, v].any()
    ]
    profile = measure_profile(np.concatenate(patches), reach)
    measured = np.full_like(rough, np.nan)
    for view, image in enumerate(images):
        rows = np.flatnonzero(np.isfinite(rough[:, view]).all(axis=1))
        rows = rows[_stand_clear(rough[rows, view], CLEARANCE * diameter)]
        places, scores = centre_beads(image, rough[rows, view], profile, reach)
        near = np.linalg.norm(places - expected[rows, view], axis=1) < limit
        good = (scores >= _least_correlation(scores[known[rows, view]], reach)) & near
        measured[rows[good], view] = places[good]
    return blocks.from_blocks(measured)


def _least_correlation(scores: FloatArray, reach: int) -> float:
    """Least correlation of a bead in a view in which beads that were found before have these."""
    seen = scores[scores > 0]
    typical = float(np.median(seen)) if len(seen) else 1.0
    significant = LEAST_SIGNIFICANCE / np.sqrt(np.pi * reach**2)
    return float(min(LEAST_CORRELATION, max(LEAST_OF_TYPICAL * typical, significant)))


def _stand_clear(places: FloatArray, distance: float) -> npt.NDArray[np.bool_]:
    """Whether each place is at least this far from all others."""
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return np.asarray(apart.min(axis=1, initial=np.inf) >= distance)
