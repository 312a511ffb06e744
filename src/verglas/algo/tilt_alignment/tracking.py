"""Tracks of beads: which bead of one view is which of another.

A model of the beads in space grows from the lowest tilt outward. Each new view is laid on what the model
expects, first by a vote on the shift, then bead by bead; after every view the model is fitted anew. Beads that
the first view did not show are found afterwards as pairs of views that agree with others.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from verglas.algo.tilt_alignment.bundle import Freedom, fit_bundle
from verglas.algo.tilt_alignment.coarse import order_outward
from verglas.algo.tilt_alignment.geometry import (
    ViewGeometry,
    find_known,
    project_points,
    triangulate_points,
    view_matrices,
)

FloatArray = npt.NDArray[np.float64]

_SEARCH = 4.0
"""The vote looks for shifts up to this many gates away from the coarse ones."""

_FEWEST_VOTES = 3
_CHANCE, _FAR_BETTER = 0.01, 1.5
_FEWEST_CONFIRM = 5
_LEAST_APART_DEG, _MOST_APART_DEG = 8, 25
_CENTRAL_DEG = 16.0
_AXIS_STEP_DEG = 15


def track_beads(
    detections: Sequence[FloatArray], start: ViewGeometry, gate_px: float
) -> tuple[FloatArray, ViewGeometry]:
    """Track beads through all views.

    Parameters
    ----------
    detections
        `(k, 2)` xy of the beads found in each of n views, pixels from the image's centre.
    start
        Nominal geometry with coarse shifts.
    gate_px
        How far a bead may lie from where it is expected: about a diameter.

    Returns
    -------
    tuple
        `(beads, n, 2)` tracks, NaN where a bead was not found, and the geometry that they were laid on.
    """
    tracks, geometry = grow_tracks(detections, start, gate_px)
    for _ in range(3):
        fresh = find_missed_beads(detections, tracks, geometry, gate_px)
        points = np.concatenate([triangulate_points(geometry, _longest_first(tracks)), fresh])
        points = merge_points(points[np.isfinite(points).all(axis=1)], gate_px)
        tracks = assign_beads(detections, geometry, points, gate_px)
        tracks = tracks[np.isfinite(tracks[..., 0]).sum(axis=1) >= _FEWEST_VOTES]
        if not len(tracks):
            return tracks, geometry
        geometry = fit_bundle(tracks, geometry, Freedom(axis=1), rounds=20).geometry
    return tracks, geometry


def grow_tracks(
    detections: Sequence[FloatArray], start: ViewGeometry, gate_px: float
) -> tuple[FloatArray, ViewGeometry]:
    """Follow the beads of a view of low tilt outward; parameters and result are those of `track_beads`."""
    order = order_outward(start.tilt_deg - start.tilt_deg[_choose_first(detections, start.tilt_deg)])
    first = order[0][0]
    geometry = start
    tracks = np.full((len(detections[first]), len(start), 2), np.nan)
    tracks[:, first] = detections[first]
    points = _lift(detections[first], start, first)
    included = [first]
    for view, inner in order[1:]:
        step = start.shift_px[view] - _carry(start, view, inner)
        shift = geometry.shift_px.copy()
        shift[view] = _carry(geometry, view, inner) + step
        geometry = replace(geometry, shift_px=shift)
        expected = project_points(geometry.take([view]), points)[:, 0]
        offset = vote_offset(expected, detections[view], gate_px / 2, _SEARCH * gate_px)
        shift[view] += offset
        rows, columns = match_beads(expected + offset, detections[view], gate_px)
        included.append(view)
        if len(rows) < _FEWEST_VOTES and len(rows) < len(points):
            continue
        tracks[rows, view] = detections[view][columns]
        geometry, points = _refit(tracks, geometry, points, included)
    return tracks, geometry


def _choose_first(detections: Sequence[FloatArray], tilt_deg: FloatArray) -> int:
    """Choose the lowest tilt that shows at least half as many beads as others do."""
    counts = np.array([len(found) for found in detections])
    usual = np.median(counts[np.abs(tilt_deg - np.median(tilt_deg)) <= _CENTRAL_DEG])
    return int(np.where(counts >= usual / 2, np.abs(tilt_deg), np.inf).argmin())


def _longest_first(tracks: FloatArray) -> FloatArray:
    return tracks[np.argsort(-np.isfinite(tracks[..., 0]).sum(axis=1), kind="stable")]


def _carry(geometry: ViewGeometry, view: int, inner: int) -> FloatArray:
    """Shift of the inner view, stretched to the tilt of the other."""
    matrices = view_matrices(geometry)
    return np.asarray(
        matrices[view, :, :2] @ np.linalg.solve(matrices[inner, :, :2], geometry.shift_px[inner])
    )


def _lift(places: FloatArray, geometry: ViewGeometry, view: int) -> FloatArray:
    """Points at height 0 that appear at these places."""
    flat = np.linalg.solve(view_matrices(geometry)[view, :, :2], (places - geometry.shift_px[view]).T).T
    return np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)


def _refit(
    tracks: FloatArray, geometry: ViewGeometry, points: FloatArray, included: list[int]
) -> tuple[ViewGeometry, FloatArray]:
    """Fit shifts and beads of the views so far, and leave the rest as it is."""
    part = tracks[:, included]
    if (np.isfinite(part[..., 0]).sum(axis=1) >= _FEWEST_VOTES).sum() < 2:
        return geometry, points
    fit = fit_bundle(part, geometry.take(included), Freedom(axis=0), rounds=8)
    shift = geometry.shift_px.copy()
    shift[included] = fit.geometry.shift_px
    known = find_known(fit.points_px)
    # The fit may have moved the origin; beads it could not place are lifted from their first view again.
    geometry = replace(geometry, shift_px=shift)
    lifted = _lift(part[:, 0], geometry, included[0])
    return geometry, np.where(known[:, None], np.nan_to_num(fit.points_px), lifted)


def vote_offset(expected: FloatArray, found: FloatArray, gate_px: float, search_px: float) -> FloatArray:
    """Shift that brings most expected places onto found ones; none when hardly any agree.

    It is looked for nearby first. When fewer than half agree there, it may be of any length, if more agree on
    it than chance would let.

    Parameters
    ----------
    expected, found
        `(m, 2)` and `(k, 2)` xy.
    gate_px
        How well they must agree.
    search_px
        Longest shift that is called near.
    """
    steps = (found[None] - expected[:, None]).reshape(-1, 2)
    near = steps[np.linalg.norm(steps, axis=1) <= search_px]
    offset, votes = _count_votes(near, gate_px, search_px)
    if not len(steps) or votes >= max(_FEWEST_VOTES, min(len(expected), len(found)) / 2):
        return offset
    longest = float(np.linalg.norm(steps, axis=1).max())
    # Loads for a third of a second, and most series need no look so far.
    from scipy.stats import poisson

    far, more = _count_votes(steps, gate_px, longest)
    crowd = len(steps) * gate_px**2 / max(longest, gate_px) ** 2
    by_chance = 1 + float(poisson.isf(_CHANCE / len(steps), crowd))
    return far if more > max(by_chance, _FAR_BETTER * votes) else offset


def _count_votes(steps: FloatArray, gate_px: float, longest_px: float) -> tuple[FloatArray, int]:
    """Find the step that most others agree with, of equals the shortest, and how many do."""
    if len(steps) < _FEWEST_VOTES:
        return np.zeros(2), 0
    near: Sequence[list[int]] = cKDTree(steps).query_ball_point(steps, gate_px)  # type: ignore[assignment]
    votes = np.array([len(group) for group in near]) - 1e-3 * np.linalg.norm(steps, axis=1) / longest_px
    best = near[int(votes.argmax())]
    if len(best) < _FEWEST_VOTES:
        return np.zeros(2), 0
    return np.asarray(np.median(steps[best], axis=0)), len(best)


def match_beads(
    expected: FloatArray, found: FloatArray, gate_px: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of `expected` and of `found` that belong together, so that the sum of their distances is least."""
    if not len(expected) or not len(found):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    distance = np.linalg.norm(expected[:, None] - found[None], axis=2)
    rows, columns = linear_sum_assignment(np.minimum(distance, gate_px))
    near = distance[rows, columns] < gate_px
    return rows[near], columns[near]


def assign_beads(
    detections: Sequence[FloatArray], geometry: ViewGeometry, points: FloatArray, gate_px: float
) -> FloatArray:
    """Tracks `(beads, n, 2)` of known points in known views."""
    expected = project_points(geometry, points)
    tracks = np.full(expected.shape, np.nan)
    for view, found in enumerate(detections):
        offset = vote_offset(expected[:, view], found, gate_px / 2, gate_px)
        rows, columns = match_beads(expected[:, view] + offset, found, gate_px)
        tracks[rows, view] = found[columns]
    return tracks


def merge_points(points: FloatArray, distance_px: float) -> FloatArray:
    """Keep of points nearer to each other than this the first one."""
    kept: list[int] = []
    for row, point in enumerate(points):
        if all(np.linalg.norm(point - points[other]) > distance_px for other in kept):
            kept.append(row)
    return points[kept]


def find_missed_beads(
    detections: Sequence[FloatArray], tracks: FloatArray, geometry: ViewGeometry, gate_px: float
) -> FloatArray:
    """Points `(k, 3)` of beads that no track has.

    Pairs of free detections in views 8 to 25 degrees apart make candidates. The one that most views confirm is
    taken, with all the detections that it explains, until none is left that five views confirm.
    """
    free = _free_detections(detections, tracks, gate_px)
    points = _make_candidates(free, geometry, gate_px)
    found: list[FloatArray] = []
    while len(points):
        distances, nearest = _nearest_detections(points, free, geometry)
        support = (distances < gate_px / 2).sum(axis=1)
        best = int(support.argmax())
        if support[best] < _FEWEST_CONFIRM:
            break
        found.append(points[best])
        taken = distances[best] < gate_px
        free = [
            np.delete(spots, nearest[best, view], axis=0) if taken[view] else spots
            for view, spots in enumerate(free)
        ]
        points = points[support >= _FEWEST_CONFIRM]
        points = points[np.linalg.norm(points - found[-1], axis=1) > 1e-9]
    return np.array(found).reshape(-1, 3)


def _make_candidates(free: Sequence[FloatArray], geometry: ViewGeometry, gate_px: float) -> FloatArray:
    """Points `(k, 3)` on lines of sight of two views."""
    points = [np.empty((0, 3))]
    order = np.argsort(geometry.tilt_deg)
    for place, view in enumerate(order):
        apart = geometry.tilt_deg[order[place + 1 :]] - geometry.tilt_deg[view]
        others = order[place + 1 :][(apart >= _LEAST_APART_DEG) & (apart <= _MOST_APART_DEG)]
        points += [
            _pair_up(free[view], free[other], geometry.take([view, other]), gate_px) for other in others
        ]
    return np.concatenate(points)


def _nearest_detections(
    points: FloatArray, free: Sequence[FloatArray], geometry: ViewGeometry
) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """`(k, n)` distance to, and row of, the free detection next to each point in each view."""
    expected = project_points(geometry, points)
    distances = np.full(expected.shape[:2], np.inf)
    rows = np.zeros(expected.shape[:2], np.intp)
    for view, spots in enumerate(free):
        if len(spots):
            distances[:, view], rows[:, view] = cKDTree(spots).query(expected[:, view])
    return distances, rows


def _free_detections(
    detections: Sequence[FloatArray], tracks: FloatArray, gate_px: float
) -> list[FloatArray]:
    free = []
    for view, found in enumerate(detections):
        taken = tracks[np.isfinite(tracks[:, view, 0]), view]
        distance = np.linalg.norm(found[:, None] - taken[None], axis=2).min(axis=1, initial=np.inf)
        free.append(found[distance > 1e-6])
    return free


def _pair_up(first: FloatArray, second: FloatArray, geometry: ViewGeometry, gate_px: float) -> FloatArray:
    """Points that lie on one line of sight of each of two views, at a height that a specimen may have."""
    if not len(first) or not len(second):
        return np.empty((0, 3))
    i, j = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(first)), np.arange(len(second)), indexing="ij")
    )
    pairs = np.stack([first[i], second[j]], axis=1)
    points = triangulate_points(geometry, pairs)
    misses = np.linalg.norm(project_points(geometry, points) - pairs, axis=2).max(axis=1)
    return np.asarray(points[(misses < gate_px / 4) & (np.abs(points[:, 2]) < 30 * gate_px)])


def find_axis(detections: Sequence[FloatArray], start: ViewGeometry, gate_px: float) -> float | None:
    """Angle of the tilt axis from beads alone, from -90 to 90 degrees: the one that tracks most beads best.

    Tracks are grown through the views within 16 degrees of the lowest tilt for every 15th degree, and the axis
    is fitted to each. Beads tell neither the axis from its opposite nor, with it, the hand of the specimen.

    Parameters
    ----------
    detections, gate_px
        As of `track_beads`.
    start
        With shifts that were found without an axis; its axis is not used.

    Returns
    -------
    float or None
        None when no angle lets three beads be tracked.
    """
    lowest = float(start.tilt_deg[np.abs(start.tilt_deg).argmin()])
    rows = np.flatnonzero(np.abs(start.tilt_deg - lowest) <= _CENTRAL_DEG)
    if len(rows) < 5:
        rows = np.argsort(np.abs(start.tilt_deg - lowest), kind="stable")[:5]
        rows.sort()
    near, found = start.take(rows), [detections[int(row)] for row in rows]
    best, merit = None, -np.inf
    for angle in range(-90, 90, _AXIS_STEP_DEG):
        tracks, geometry = grow_tracks(
            found, replace(near, axis_deg=np.full(len(rows), float(angle))), gate_px
        )
        if (np.isfinite(tracks[..., 0]).sum(axis=1) >= len(rows) / 2).sum() < _FEWEST_VOTES:
            continue
        fit = fit_bundle(tracks, geometry, Freedom(axis=1), rounds=30)
        # Each measurement counts by how well it fits; one that fits no better than to the gate counts nothing.
        worth = np.where(fit.used, 1 - np.linalg.norm(fit.residuals_px, axis=-1) / gate_px, 0.0)
        if (score := float(np.clip(np.nan_to_num(worth), 0, None).sum())) > merit:
            best, merit = float(fit.geometry.axis_deg[0]), score
    return None if best is None else (best + 90) % 180 - 90
