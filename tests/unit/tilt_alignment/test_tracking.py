"""Tracks: which bead is which, with beads that are missing, false, or lie where no one looked."""

import numpy as np
import pytest

from verglas.algo.tilt_alignment.coarse import find_coarse_shifts, order_outward
from verglas.algo.tilt_alignment.geometry import project_points, start_geometry
from verglas.algo.tilt_alignment.tracking import find_axis, match_beads, track_beads, vote_offset
from verglas.errors import UserError

TILTS = np.arange(-60.0, 61.0, 5.0)
GATE = 15.0


def make_detections(points, truth, *, missing=0.15, false=3, reach=500.0, seed=0):
    """What a finder would give: places to a pixel, a few beads overlooked, a few things that are no beads."""
    rng = np.random.default_rng(seed)
    places = project_points(truth, points)
    detections, members = [], []
    for view in range(len(truth)):
        rows = np.flatnonzero(
            (rng.uniform(size=len(points)) > missing) & (np.abs(places[:, view]) < reach).all(axis=1)
        )
        junk = rng.uniform(-reach, reach, (false, 2))
        detections.append(np.concatenate([places[rows, view] + rng.normal(0, 0.5, (len(rows), 2)), junk]))
        members.append(np.concatenate([rows, np.full(false, -1)]))
    return detections, members


def make_case(seed=0, count=16):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (count, 3)) * [700, 480, 100]
    truth = start_geometry(TILTS, 30.0, np.cumsum(rng.normal(0, 10, (len(TILTS), 2)), axis=0))
    return points, truth


def purity(tracks, detections, members):
    """Share of the measurements that belong to the bead that most of their track does, and of all that exist."""
    right = total = 0
    for track in tracks:
        owners = []
        for view in np.flatnonzero(np.isfinite(track[:, 0])):
            distance = np.linalg.norm(detections[view] - track[view], axis=1)
            owners.append(members[view][distance.argmin()])
        owners = np.array(owners)
        counts = np.bincount(owners[owners >= 0], minlength=1)
        right, total = right + counts.max(), total + len(owners)
    exist = sum(int((owner >= 0).sum()) for owner in members)
    return right / total, right / exist


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beads_are_followed(seed):
    points, truth = make_case(seed)
    detections, members = make_detections(points, truth, seed=seed)
    rough = start_geometry(
        TILTS, 34.0, truth.shift_px + np.random.default_rng(seed).normal(0, 15, truth.shift_px.shape)
    )
    tracks, _ = track_beads(detections, rough, GATE)
    pure, complete = purity(tracks, detections, members)
    assert pure > 0.97
    assert complete > 0.9


def test_a_view_that_jumped_far_is_found():
    points, truth = make_case(5)
    detections, members = make_detections(points, truth, seed=5)
    shifts = truth.shift_px.copy()
    shifts[3:6] += [300.0, -250.0]
    tracks, _ = track_beads(detections, start_geometry(TILTS, 30.0, shifts), GATE)
    pure, complete = purity(tracks, detections, members)
    assert pure > 0.97
    assert complete > 0.9


@pytest.mark.parametrize("axis", [-75.0, -4.0, 30.0, 88.0])
def test_an_unknown_axis_is_found(axis):
    points, _ = make_case(2)
    rng = np.random.default_rng(3)
    truth = start_geometry(TILTS, axis, rng.normal(0, 10, (len(TILTS), 2)))
    detections, _ = make_detections(points, truth)
    found = find_axis(detections, start_geometry(TILTS, 0.0, truth.shift_px), GATE)
    assert abs((found - axis + 90) % 180 - 90) < 1.0


def test_no_axis_is_found_in_nothing():
    rng = np.random.default_rng(0)
    nothing = [np.empty((0, 2)) for _ in TILTS]
    assert find_axis(nothing, start_geometry(TILTS, 0.0), GATE) is None
    few = [rng.uniform(-400, 400, (2, 2)) for _ in TILTS]
    assert find_axis(few, start_geometry(TILTS, 0.0), GATE) is None


def test_the_vote_is_for_the_near_shift_unless_a_far_one_is_much_better():
    rng = np.random.default_rng(1)
    expected = rng.uniform(-400, 400, (12, 2))
    assert np.allclose(vote_offset(expected, expected + np.array([7.0, -3.0]), 5.0, 40.0), [7.0, -3.0])
    assert np.allclose(
        vote_offset(expected, expected + np.array([207.0, -130.0]), 5.0, 40.0), [207.0, -130.0]
    )
    # Chance does not make a far shift.
    assert np.linalg.norm(vote_offset(expected, rng.uniform(-400, 400, (12, 2)), 5.0, 40.0)) <= 40.0
    assert not vote_offset(expected[:1], expected[:1] + 9.0, 5.0, 40.0).any()
    assert not vote_offset(expected, np.empty((0, 2)), 5.0, 40.0).any()


def test_each_bead_is_matched_once():
    expected = np.array([[0.0, 0.0], [10.0, 0.0], [100.0, 0.0]])
    found = np.array([[9.0, 0.0], [1.0, 1.0], [60.0, 0.0]])
    rows, columns = match_beads(expected, found, 15.0)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_the_way_leads_outward_from_the_lowest_tilt():
    order = order_outward([-6.0, 3.0, 0.1, -3.0, 6.0])
    assert order[0] == (2, 2)
    assert set(order[1:]) == {(1, 2), (3, 2), (4, 1), (0, 3)}


def draw_texture(geometry, view, side=256, seed=0):
    """A view of a flat specimen of many blobs, drawn by direct sums."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1.4 * side, 1.4 * side, (1500, 3)) * [1, 1, 0]
    places = project_points(geometry, points)[:, view]
    steps = np.arange(side) - side // 2
    across = np.exp(-((steps - places[:, :1]) ** 2) / 8)
    along = np.exp(-((steps - places[:, 1:]) ** 2) / 8)
    return (along.T * rng.uniform(0.5, 1.5, 1500)) @ across


def test_coarse_shifts_are_those_of_the_specimen():
    tilts = np.arange(-45.0, 46.0, 15.0)
    shifts = np.random.default_rng(0).normal(0, 12, (len(tilts), 2))
    shifts[3] = 0.0
    truth = start_geometry(tilts, 25.0, shifts)
    views = [draw_texture(truth, view).astype(np.float32) for view in range(len(tilts))]
    assert np.abs(find_coarse_shifts(views, tilts, 25.0) - shifts).max() < 2.0
    with pytest.raises(UserError, match="`tilt_deg` must have one angle for each of 7 images; got 3"):
        find_coarse_shifts(views, tilts[:3], 25.0)
