"""Averages and poses against truth, and the parts of the search against plain sums."""

import math

import numpy as np
import pytest
import torch

from tests.unit.averaging.cases import PIXEL, draw_body, draw_poses, open_views
from verglas.algo.averaging.alignment import Reference, align_particles, plan_search
from verglas.algo.averaging.halves import (
    HalfSums,
    correlate_halves,
    filter_average,
    reconstruct_half,
    spread_cones,
)
from verglas.algo.averaging.reference import (
    centre_mass,
    share_low_resolution,
    turn_reference,
)
from verglas.algo.averaging.search import BandParticles, score_grid, spread_shifts
from verglas.algo.averaging.sums import open_source, quality_bfactors, sum_particles
from verglas.algo.averaging.transfer import TransferModel
from verglas.benchmarks.cases import disturb_poses
from verglas.errors import UserError
from verglas.ops.band import choose_band
from verglas.ops.fsc import fourier_shell_correlation
from verglas.ops.kernels import fourier_points
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.projection import insert_slices, insert_slices_apart
from verglas.ops.rotation import (
    angular_distance_deg,
    local_rotations,
    random_rotations,
)
from verglas.ops.symmetry import split_group, symmetry_matrices

BOX = 32
ONE = torch.eye(3, dtype=torch.float64)[None]
PLAIN = TransferModel(ctf=False, dose=False)


@pytest.fixture(scope="module")
def noisy():
    positions, rotations = draw_poses(40)
    views = open_views(positions, rotations, noise=1.0)
    return open_source(views, positions, BOX, PLAIN), positions, rotations


def average(source, positions, rotations):
    return HalfSums(*sum_particles(source, positions, rotations, ONE))


def test_the_average_is_the_body(noisy):
    source, positions, rotations = noisy
    found = reconstruct_half(average(source, positions, rotations), BOX)
    mask = soft_sphere_mask((BOX,) * 3, 10, 3)
    frequency, curve = fourier_shell_correlation(found, draw_body(BOX), PIXEL, mask)
    assert float(curve[2:7].min()) > 0.9
    assert frequency[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("group", ["O", "D3"])
def test_symmetric_sums_are_those_of_every_operation(noisy, group):
    source, positions, rotations = noisy
    few, operations = slice(0, 1), symmetry_matrices(group).double()
    sums, weights = sum_particles(source, positions[few], rotations[few], operations)
    each = [sum_particles(source, positions[few], rotations[few] @ one, ONE) for one in operations]
    for found, expected in ((sums, sum(one[0] for one in each)), (weights, sum(one[1] for one in each))):
        error = (found - expected).abs().max() / expected.abs().max()
        assert float(error) < 1e-5


def test_symmetry_is_applied_in_the_reference_frame(noisy):
    source, positions, rotations = noisy
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    sums = sum_particles(source, positions, rotations, torch.cat([ONE, half_turn[None]]))
    found = reconstruct_half(HalfSums(*sums), BOX)
    turned = found.flip((1, 2)).roll((1, 1), (1, 2))
    inner = slice(4, -4)
    difference = (found - turned)[inner, inner, inner].std() / found[inner, inner, inner].std()
    assert float(difference) < 0.02


def refer(body, finest, symmetry="C1", **options):
    """A reference of the body, in a sphere of 80 Å."""
    plan = plan_search(80.0, finest, symmetry=symmetry, **options)
    return Reference(body * soft_sphere_mask((BOX,) * 3, 8, 4), PIXEL, plan)


@pytest.fixture(scope="module")
def faint(noisy):
    _, positions, rotations = noisy
    return open_source(open_views(positions, rotations, noise=0.1), positions, BOX, PLAIN)


@pytest.mark.parametrize(
    "options",
    [{}, {"turn_deg": 12, "step_deg": 6, "shift_angstrom": 20}, {"grid_deg": (12, 6, 12, 6)}],
    ids=["by the resolution", "turns", "emClarity's"],
)
def test_poses_are_found_to_about_a_degree(noisy, faint, options):
    _, positions, rotations = noisy
    start = disturb_poses(positions, rotations, 4, 8, seed=3)
    poses, chosen = align_particles(faint, *start, [refer(draw_body(BOX), 25, **options)])
    assert float(angular_distance_deg(poses.rotations, rotations).median()) < 1.5
    assert float((poses.positions_angstrom - positions).norm(dim=-1).median()) < 1.5
    assert float(poses.scores.min()) > 0
    assert float(poses.scores.max()) < 1
    assert not chosen.any()


def test_the_same_pose_is_found_from_near_and_from_far(noisy):
    source, positions, rotations = noisy
    reference = refer(draw_body(BOX), 25)
    far, near = (
        align_particles(source, positions, start, [reference])[0]
        for start in (disturb_poses(positions, rotations, 4, 0, seed=3)[1], rotations)
    )
    assert float(angular_distance_deg(far.rotations, near.rotations).median()) < 0.2
    assert float((far.scores / near.scores - 1).abs().median()) < 1e-3


def test_all_orientations_are_searched_at_180_degrees(noisy):
    source, positions, rotations = noisy
    few = slice(0, 6)
    lost = random_rotations(6, torch.Generator().manual_seed(9))
    reference = refer(draw_body(BOX), 30, turn_deg=180, step_deg=20, shift_angstrom=5)
    poses, _ = align_particles(source, positions[few], lost, [reference])
    assert float(angular_distance_deg(poses.rotations, rotations[few]).median()) < 3


def test_a_better_pose_is_kept(noisy):
    source, positions, rotations = noisy
    reference = refer(draw_body(BOX), 25, turn_deg=0, shift_angstrom=0, refine=False)
    poses, _ = align_particles(source, positions, rotations, [reference])
    torch.testing.assert_close(poses.rotations, rotations)
    torch.testing.assert_close(poses.positions_angstrom, positions)


def test_each_particle_goes_to_the_reference_that_it_shows(noisy, faint):
    _, positions, rotations = noisy
    # The mirrored body is another one, which no turn makes of the first.
    body = draw_body(BOX)
    other = torch.roll(body.flip(0), 1, 0)
    _, chosen = align_particles(faint, positions, rotations, [refer(other, 25), refer(body, 25)])
    assert chosen.tolist() == [1] * len(positions)


def test_the_grid_follows_the_resolution():
    fine, coarse = plan_search(125.0, 8.0), plan_search(125.0, 40.0)
    assert fine.step_deg == pytest.approx(math.degrees(8 / 125))
    assert fine.coarse_angstrom == pytest.approx(16.0)
    assert fine.shift_angstrom == pytest.approx(8.0)
    assert (coarse.step_deg, coarse.coarse_angstrom) == (6.0, 40.0)
    assert len(fine.turns) == len(coarse.turns) == 33
    assert float(angular_distance_deg(fine.turns, torch.eye(3).double()).max()) == pytest.approx(
        2 * fine.step_deg
    )


def test_symmetric_references_need_fewer_orientations():
    whole, part = (
        plan_search(80.0, 30.0, turn_deg=180, step_deg=20, symmetry=group).turns for group in ("C1", "D4")
    )
    assert len(part) < 0.4 * len(whole)


def test_a_map_is_brought_to_its_centre_of_mass():
    body = draw_body(BOX, shift_px=(1.5, -2.0, 0.5))
    found = centre_mass(body, soft_sphere_mask((BOX,) * 3, 12, 3))
    mass = found.clamp(min=0.3 * float(found.max())) - 0.3 * float(found.max())
    line = torch.arange(BOX) - BOX // 2
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        assert abs(float((mass.sum(others) * line).sum() / mass.sum())) < 0.5
    empty = torch.zeros(BOX, BOX, BOX)
    assert centre_mass(empty, torch.ones(BOX, BOX, BOX)) is empty


def gather_band(volume, band):
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    x, y, z = band.places_xyz.long().unbind(-1)
    return transform[z % BOX, y % BOX, x].to(torch.complex64)


def test_turned_references_are_those_of_the_turned_body():
    rotations = random_rotations(3, torch.Generator().manual_seed(0))
    band = choose_band(BOX, PIXEL, 35.0)
    found = turn_reference(draw_body(BOX), rotations, band)
    for values, rotation in zip(found, rotations, strict=True):
        expected = gather_band(draw_body(BOX, rotation), choose_band(BOX, PIXEL, 35.0))
        error = (values - expected).abs().square().sum() / expected.abs().square().sum()
        assert float(error) < 2e-3


def test_the_grid_scores_by_the_plain_sum():
    generator = torch.Generator().manual_seed(2)
    band = choose_band(16, PIXEL, 40.0, 90.0)
    count = len(band.index)
    data = torch.randn(2, count, generator=generator, dtype=torch.complex64)
    weights = torch.rand(2, count, generator=generator)
    bank = torch.randn(5, count, generator=generator, dtype=torch.complex64)
    shifts = spread_shifts(2.0, 1.0)
    particles = BandParticles(data, weights, torch.tensor([3.0, 5.0]))
    turns, moves, scores = score_grid(particles, bank, shifts, band, 16)
    for p in range(2):
        table = np.zeros((5, len(shifts)))
        for r in range(5):
            energy = float((weights[p] * bank[r].abs() ** 2 * band.counts).sum()) * float(particles.power[p])
            for s, shift in enumerate(shifts):
                phase = torch.exp(-2j * math.pi / 16 * (band.places_xyz @ shift))
                overlap = (data[p].conj() * bank[r] * phase * band.counts).sum().real
                table[r, s] = float(overlap) / math.sqrt(energy)
        assert (int(turns[p]), int(moves[p])) == np.unravel_index(table.argmax(), table.shape)
        assert float(scores[p]) == pytest.approx(table.max(), rel=1e-4)


def test_kernels_of_turned_points_agree():
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(24, 24, 13, dtype=torch.complex64, generator=generator)
    places = torch.cartesian_prod(*[torch.arange(-6.0, 7.0)] * 3)
    rotations = random_rotations(3, generator)
    one = fourier_points.read_turned(volume, rotations, places)
    other = fourier_points.read_turned_reference(volume, rotations, places)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_volumes_filled_apart_are_those_filled_alone():
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(3, 5, 16, 9, dtype=torch.complex64, generator=generator)
    weights = torch.rand(3, 5, 16, 9, generator=generator)
    rotations = random_rotations(15, generator).reshape(3, 5, 3, 3)
    sums, totals = insert_slices_apart(slices, weights, rotations, 20)
    for row in range(3):
        alone = insert_slices(slices[row], weights[row], rotations[row], 20)
        torch.testing.assert_close(sums[row], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(totals[row], alone[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="must be even; got 21"):
        insert_slices_apart(slices, weights, rotations, 21)


def test_halves_of_signal_keep_it_and_halves_of_noise_lose_it(noisy):
    source, positions, rotations = noisy
    mask = soft_sphere_mask((BOX,) * 3, 10, 3)
    halves = [average(source, positions[i::2], rotations[i::2]) for i in (0, 1)]
    maps = [reconstruct_half(half, BOX) for half in halves]
    curves = correlate_halves(*maps, PIXEL, mask)
    assert curves.resolution() < 40
    assert curves.cones.shape == (37, BOX // 2 + 1)
    whole = filter_average(halves[0] + halves[1], spread_cones(curves, 2 * BOX, PIXEL), BOX, whole=True)
    _, against = fourier_shell_correlation(whole, draw_body(BOX), PIXEL, mask)
    assert float(against[2:7].min()) > 0.9

    shuffled = random_rotations(40, torch.Generator().manual_seed(5))
    lost = [average(source, positions[i::2] + 500, shuffled[i::2]) for i in (0, 1)]
    nothing = correlate_halves(*(reconstruct_half(half, BOX) for half in lost), PIXEL, mask)
    assert nothing.resolution() > 60
    left = filter_average(lost[0] + lost[1], spread_cones(nothing, 2 * BOX, PIXEL), BOX, whole=True)
    raw = reconstruct_half(lost[0] + lost[1], BOX)
    fine = torch.fft.rfftn(left)[8:24].abs().mean() / torch.fft.rfftn(raw)[8:24].abs().mean()
    assert float(fine) < 0.1


def test_low_resolution_is_shared_and_the_rest_is_not():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(20, 20, 20, generator=generator) for _ in range(2))
    one, other = (torch.fft.rfftn(v) for v in share_low_resolution(first, second, 10.0, 50.0))
    mean = (torch.fft.rfftn(first) + torch.fft.rfftn(second)) / 2
    torch.testing.assert_close(one[0, 0, :5], mean[0, 0, :5], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other[0, 0, :5], mean[0, 0, :5], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one[0, 0, 5:], torch.fft.rfftn(first)[0, 0, 5:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other[0, 0, 5:], torch.fft.rfftn(second)[0, 0, 5:], rtol=1e-3, atol=1e-3)


def test_only_scores_below_the_mean_lose_detail():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = quality_bfactors(scores, 5.0)
    assert found[2:].tolist() == [0, 0]
    expected = (5 * (math.degrees(math.acos(0.1)) - math.degrees(math.acos(0.25)))) ** 2
    assert float(found[0]) == pytest.approx(expected)


def test_a_band_without_voxels_is_refused():
    with pytest.raises(UserError, match="between 400 and 390 Å"):
        choose_band(16, 10.0, 390.0, 400.0)


def test_the_grid_of_turns_holds_the_identity():
    torch.testing.assert_close(local_rotations(12, 4)[0], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("group", "inserted", "permuted"), [("C1", 1, 1), ("C4", 1, 4), ("D7", 7, 2), ("O", 1, 24), ("I", 5, 12)]
)
def test_groups_are_parted_into_products(group, inserted, permuted):
    matrices = symmetry_matrices(group)
    first, second = split_group(matrices)
    assert (len(first), len(second)) == (inserted, permuted)
    products = (first[:, None] @ second).reshape(-1, 1, 3, 3)
    assert float((products - matrices).abs().amax((-2, -1)).min(1).values.max()) < 1e-6
    assert float((products - matrices).abs().amax((-2, -1)).min(0).values.max()) < 1e-6
