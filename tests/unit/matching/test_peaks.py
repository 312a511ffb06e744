import numpy as np
import pytest
from scipy.special import erfcinv

from verglas.algo.matching.noise import (
    expected_count_threshold,
    find_gap,
    fit_noise,
    independent_threshold,
)
from verglas.algo.matching.peaks import (
    Peaks,
    allow_inside,
    exclude_neighbours,
    find_local_maxima,
    keep_away,
    remove_neighbours,
)
from verglas.errors import UserError


def rotation_z(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def make_peaks(places_zyx, scores, orientation=None, template=None):
    count = len(scores)
    zeros = np.zeros(count, dtype=int)
    return Peaks(
        np.array(places_zyx),
        np.array(scores, dtype=float),
        zeros if orientation is None else np.array(orientation),
        zeros if template is None else np.array(template),
    )


def test_maxima_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, 9, 10, 11)).astype(np.float32)
    rows = rng.integers(0, 50, scores.shape)
    allowed = allow_inside((9, 10, 11), 2)
    peaks = find_local_maxima(scores, rows, allowed, lowest=0.5)
    top = scores.max(axis=0)
    expected = [
        (z, y, x)
        for z in range(2, 7)
        for y in range(2, 8)
        for x in range(2, 9)
        if top[z, y, x] == top[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].max() and top[z, y, x] > 0.5
    ]
    assert sorted(map(tuple, peaks.places.tolist())) == sorted(expected)
    assert (np.diff(peaks.scores) <= 0).all()
    for place, score, row, template in zip(
        peaks.places, peaks.scores, peaks.orientation, peaks.template, strict=True
    ):
        at = (int(template), *place)
        assert scores[at] == score == scores[(slice(None), *place)].max()
        assert rows[at] == row


def test_exclusion_follows_the_particles_shape():
    """A rod along x, 10 by 3 by 3 voxels, turned by 90 degrees about z, keeps others away along y."""
    places = [(20, 20, 20), (20, 20, 26), (20, 26, 20), (20, 31, 20)]
    matrices = np.stack([np.eye(3), rotation_z(90)])
    radii = np.array([[10.0, 3.0, 3.0]])
    along_x = exclude_neighbours(make_peaks(places, [4, 3, 2, 1]), [matrices], radii)
    assert along_x.tolist() == [0, 2, 3]
    along_y = exclude_neighbours(
        make_peaks(places, [4, 3, 2, 1], orientation=[1, 0, 0, 0]), [matrices], radii
    )
    assert along_y.tolist() == [0, 1, 3]
    assert exclude_neighbours(make_peaks(places, [4, 3, 2, 1]), [matrices], radii, count=1).tolist() == [0]
    assert len(exclude_neighbours(make_peaks(np.zeros((0, 3), int), []), [matrices], radii)) == 0


def test_edges_and_gold_are_kept_away_from():
    assert allow_inside((8, 8, 8), 2.5).sum() == 2**3
    gold = np.zeros((9, 9, 9), dtype=bool)
    gold[4, 4, 4] = True
    z, y, x = np.indices(gold.shape) - 4
    np.testing.assert_array_equal(keep_away(gold, 3.0), np.sqrt(z**2 + y**2 + x**2) >= 3)
    assert keep_away(np.zeros((3, 3, 3), dtype=bool), 5.0).all()


def test_lattices_are_kept_and_strays_are_not():
    grid = np.stack(np.meshgrid(np.arange(4) * 10.0, np.arange(4) * 10.0, [0.0]), axis=-1).reshape(-1, 3)
    stray, tilted = np.array([[200.0, 0.0, 0.0]]), np.array([[15.0, 15.0, 5.0]])
    positions = np.concatenate([grid, stray, tilted])
    matrices = np.repeat(np.eye(3)[None], len(positions), axis=0)
    matrices[-1] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    keep = remove_neighbours(positions, matrices, 12.0, 20.0, 2)
    assert keep.tolist() == [True] * 16 + [False, False]
    # Whatever its direction, the last one has enough neighbours.
    assert remove_neighbours(positions, matrices, 12.0, 180.0, 2).tolist() == [True] * 16 + [False, True]
    with pytest.raises(UserError, match="must not be negative"):
        remove_neighbours(positions, matrices, -1.0, 20.0, 2)


def test_the_threshold_lets_the_stated_number_of_false_maxima_through():
    """Maxima of 300 normal draws each, with molecules above: the fit sees the noise, whatever the molecules."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((8000, 300)).max(axis=1) * 0.04
    molecules = rng.normal(0.24, 0.02, 400)
    model = fit_noise(np.concatenate([noise, molecules]))
    threshold = model.find_threshold(20.0)
    assert 8 <= (noise > threshold).sum() <= 45
    assert model.expect_above(threshold) == pytest.approx(20.0, rel=1e-3)
    assert (molecules > threshold).mean() > 0.9
    assert model.find_threshold(1e9) == 0
    with pytest.raises(UserError, match="must be positive"):
        model.find_threshold(0.0)
    with pytest.raises(UserError, match="expected at least 50"):
        fit_noise(noise[:10])


def test_noise_alone_is_not_taken_for_molecules():
    noise = np.random.default_rng(3).standard_normal((4000, 1000)).max(axis=1) * 0.05
    model = fit_noise(noise)
    for stated in (10.0, 40.0, 200.0):
        assert stated / 2 <= (noise > model.find_threshold(stated)).sum() <= 2 * stated


def test_emclaritys_rule():
    """T = √2 erfcinv(2 ⌈N / 10⌉ / tries) deviations."""
    expected = np.sqrt(2) * erfcinv(2 * 13 / (1e6 * 500)) * 0.04
    assert expected_count_threshold(123, 10**6, 500, 0.04) == pytest.approx(expected)
    # By chance so many of all independent scores exceed it.
    scores = np.random.default_rng(2).standard_normal(400_000) * 0.04
    assert 70 < (scores > independent_threshold(100, 1000, 400, 0.04)).sum() < 135
    with pytest.raises(UserError, match="must be positive"):
        expected_count_threshold(0, 10, 10, 0.04)


def test_a_gap_is_found_only_between_two_hills():
    rng = np.random.default_rng(3)
    decoys, molecules = rng.normal(0.35, 0.04, 40), rng.normal(0.75, 0.04, 60)
    gap = find_gap(np.concatenate([decoys, molecules]))
    assert decoys.max() < gap < molecules.min()
    # Of three hills the highest counts.
    gap = find_gap(np.concatenate([decoys, rng.normal(0.55, 0.02, 50), molecules + 0.05]))
    assert 0.6 < gap < molecules.min() + 0.05
    for one_hill in (
        rng.normal(0.3, 0.03, 500),
        rng.uniform(0.2, 0.4, 500),
        0.2 + rng.exponential(0.03, 500),
        np.concatenate([rng.normal(0.3, 0.02, 300), rng.normal(0.9, 0.02, 5)]),
        np.array([0.1, 0.2, 0.9, 0.95]),
    ):
        assert find_gap(one_hill) is None
