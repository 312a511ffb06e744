"""Gaussians: merging keeps the moments, atoms follow two independent tables, solids their transforms."""

import gemmi
import numpy as np
import pytest
import scipy.constants
from scipy.special import erf

from verglas.algo.simulation.atoms import VOLT_ANGSTROM2, scatterers_from_atoms, scattering_factor
from verglas.algo.simulation.membranes import make_vesicle
from verglas.algo.simulation.phantoms import make_blob_phantom, make_demo_ribosome
from verglas.algo.simulation.render import render_volume, transform_scatterers
from verglas.algo.simulation.scatterers import (
    Scatterers,
    centre_scatterers,
    coarsen_scatterers,
    join_scatterers,
    move_scatterers,
)
from verglas.algo.simulation.solids import (
    fill_ball,
)
from verglas.errors import UserError


def random_scatterers(count: int = 500, seed: int = 0) -> Scatterers:
    rng = np.random.default_rng(seed)
    return Scatterers(rng.normal(0, 30, (count, 3)), rng.uniform(1, 5, count), rng.uniform(0.5, 2, count))


def mean_square_radius(s: Scatterers) -> float:
    squares = (s.positions_angstrom**2).sum(axis=1) + 3 * s.sigmas_angstrom**2
    return float(s.weights_v_a3 @ squares / s.weights_v_a3.sum())


def test_merging_keeps_total_centre_and_mean_square_radius() -> None:
    fine = random_scatterers()
    # A spacing so small that the least standard deviation does not act; cells of 4 Å still hold several.
    fine = Scatterers(fine.positions_angstrom / 4, fine.weights_v_a3, fine.sigmas_angstrom + 2)
    coarse = coarsen_scatterers(fine, 4.0)
    assert len(coarse) < len(fine) / 1.2
    assert coarse.total_v_a3 == pytest.approx(fine.total_v_a3, rel=1e-12)
    np.testing.assert_allclose(coarse.centre_angstrom, fine.centre_angstrom, atol=1e-10)
    assert mean_square_radius(coarse) == pytest.approx(mean_square_radius(fine), rel=1e-12)


def test_merging_changes_low_frequencies_little() -> None:
    body = make_blob_phantom(2000, 60.0, seed=3, sigma_angstrom=3.0)
    k = np.stack([np.linspace(0, 1 / 40, 12), np.zeros(12), np.full(12, 0.003)], axis=1)
    exact = transform_scatterers(body, k)
    merged = transform_scatterers(coarsen_scatterers(body, 6.0), k)
    assert np.abs(merged - exact).max() < 0.01 * np.abs(exact).max()


def test_merging_leaves_no_narrow_gaussian() -> None:
    assert coarsen_scatterers(random_scatterers(), 10.0).sigmas_angstrom.min() >= 4.0


@pytest.mark.parametrize("spacing", [0.0, -1.0])
def test_merging_refuses_bad_spacing(spacing: float) -> None:
    with pytest.raises(UserError, match="spacing_angstrom"):
        coarsen_scatterers(random_scatterers(), spacing)


def test_merging_refuses_mixed_signs() -> None:
    mixed = Scatterers(np.zeros((2, 3)), np.array([1.0, -1.0]), np.ones(2))
    with pytest.raises(UserError, match="one sign"):
        coarsen_scatterers(mixed, 5.0)


def test_moving_and_joining() -> None:
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    one = Scatterers(np.array([[1.0, 2.0, 3.0]]), np.array([2.0]), np.array([1.5]))
    moved = move_scatterers(one, quarter, (10.0, 0.0, 0.0))
    np.testing.assert_allclose(moved.positions_angstrom, [[8.0, 1.0, 3.0]])
    both = join_scatterers([one, moved, moved, moved])
    assert both.total_v_a3 == pytest.approx(8.0)
    np.testing.assert_allclose(centre_scatterers(both).centre_angstrom, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("positions", "weights", "sigmas", "word"),
    [
        (np.zeros((2, 2)), np.ones(2), np.ones(2), "positions_angstrom"),
        (np.zeros((2, 3)), np.ones(3), np.ones(2), "weights_v_a3"),
        (np.zeros((2, 3)), np.ones(2), np.zeros(2), "sigmas_angstrom"),
        (np.full((2, 3), np.nan), np.ones(2), np.ones(2), "finite"),
    ],
)
def test_scatterers_refuse_bad_arrays(
    positions: np.ndarray, weights: np.ndarray, sigmas: np.ndarray, word: str
) -> None:
    with pytest.raises(UserError, match=word):
        Scatterers(positions, weights, sigmas)


def test_potential_constant_from_natures_constants() -> None:
    names = ("Planck constant", "electron mass", "elementary charge")
    h, m, e = (scipy.constants.physical_constants[name][0] for name in names)
    assert pytest.approx(h**2 / (2 * np.pi * m * e) * 1e20, rel=1e-6) == VOLT_ANGSTROM2


@pytest.mark.parametrize("symbol", ["C", "N", "O", "P", "S", "Fe"])
@pytest.mark.parametrize("s", [0.3, 0.6, 1.0])
def test_atoms_obey_mott_bethe_with_the_x_ray_table(symbol: str, s: float) -> None:
    element = gemmi.Element(symbol)
    x_ray = element.it92.calculate_sf(s * s)
    expected = 0.0239337 * (element.atomic_number - x_ray) / s**2
    atom = scatterers_from_atoms(np.zeros((1, 3)), [element.atomic_number], contrast=1.0)
    found = transform_scatterers(atom, [2 * s, 0.0, 0.0]).real / VOLT_ANGSTROM2
    assert found == pytest.approx(expected, rel=0.03)


def test_b_factor_occupancy_and_contrast_act_as_written() -> None:
    k = 0.2
    plain = scatterers_from_atoms(np.zeros((1, 3)), [6], contrast=1.0)
    atom = scatterers_from_atoms(np.zeros((1, 3)), [6], 40.0, 0.5, contrast=0.4)
    ratio = transform_scatterers(atom, [0, k, 0]).real / transform_scatterers(plain, [0, k, 0]).real
    assert ratio == pytest.approx(0.2 * np.exp(-40.0 * k**2 / 4))


def test_atoms_refuse_unknown_elements_and_negative_b() -> None:
    with pytest.raises(UserError, match="atomic_numbers"):
        scattering_factor(0)
    with pytest.raises(UserError, match="b_factors_a2"):
        scatterers_from_atoms(np.zeros((1, 3)), [6], -1.0)


def transform_ball(frequency: np.ndarray, radius_angstrom: float) -> np.ndarray:
    """Transform of a ball of 1 V: 3 V (sin q - q cos q) / q³ with q = 2π r k and V the volume."""
    q = 2 * np.pi * radius_angstrom * frequency
    return 4 * np.pi * radius_angstrom**3 * (np.sin(q) - q * np.cos(q)) / q**3


def test_filled_ball_is_flat_inside_and_has_the_balls_transform() -> None:
    ball = fill_ball(60.0, 6.0, 2.0)
    assert ball.total_v_a3 == pytest.approx(4 / 3 * np.pi * 60**3 * 2)
    volume = render_volume(ball, (40, 40, 40), 4.0)
    np.testing.assert_allclose(volume[16:25, 16:25, 16:25], 2.0, rtol=0.02)
    k = np.array([[0.006, 0, 0], [0, 0.012, 0.0]])
    blur = np.exp(-2 * np.pi**2 * 3.6**2 * (k**2).sum(axis=1))
    expected = 2 * transform_ball(np.linalg.norm(k, axis=1), 60.0) * blur
    np.testing.assert_allclose(transform_scatterers(ball, k).real, expected, rtol=0.05)


def test_vesicle_profile_shows_two_leaflets_37_angstrom_apart() -> None:
    vesicle = make_vesicle(150.0, 6.0)
    line = render_volume(vesicle, (1, 1, 401), 1.0)[0, 0, 200:]
    peaks = np.flatnonzero((line[1:-1] > line[:-2]) & (line[1:-1] >= line[2:])) + 1
    peaks = peaks[line[peaks] > 1]
    np.testing.assert_allclose(peaks, [131.5, 168.5], atol=1.5)
    assert line[peaks].min() == pytest.approx(2.9, abs=0.3)
    with pytest.raises(UserError, match="radius_angstrom"):
        make_vesicle(30.0)


def test_vesicle_is_smooth_on_the_sphere() -> None:
    vesicle = make_vesicle(150.0, 8.0)
    k = 1 / 37.0
    directions = np.random.default_rng(1).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    values = transform_scatterers(vesicle, directions * k).real
    assert values.std() < 0.005 * abs(values.mean())


def test_phantoms_are_centred_and_without_symmetry() -> None:
    ribosome = make_demo_ribosome(14.0)
    np.testing.assert_allclose(ribosome.centre_angstrom, 0, atol=1e-9)
    assert 115 < ribosome.radius_angstrom < 190
    volume = render_volume(ribosome, (36, 36, 36), 10.0)[1:, 1:, 1:]
    inside = volume > 0.3
    for axes in (0, 1, 2, (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        turned = np.flip(volume, axes)
        both = inside | np.flip(inside, axes)
        assert np.corrcoef(turned[both], volume[both])[0, 1] < 0.8
    assert len(make_blob_phantom(20, 30.0, seed=1)) == 20
    with pytest.raises(UserError, match="phantom"):
        make_blob_phantom(0, 30.0, seed=1)


def test_mean_over_a_voxel_is_the_product_of_error_functions() -> None:
    one = Scatterers(np.array([[1.3, -0.4, 0.2]]), np.array([5.0]), np.array([0.8]))
    voxel = 2.0
    centres = (np.arange(8) - 4) * voxel

    def share(place: float) -> np.ndarray:
        scale = 1 / (np.sqrt(2) * 0.8)
        return (erf((centres + 1 - place) * scale) - erf((centres - 1 - place) * scale)) / 2

    expected = 5.0 / voxel**3 * np.einsum("z,y,x->zyx", share(0.2), share(-0.4), share(1.3))
    found = render_volume(one, (8, 8, 8), voxel, sampling="average")
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
