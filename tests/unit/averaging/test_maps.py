"""Masks, registration, local resolution and the last filters of half maps, on bodies known by formula."""

import math

import numpy as np
import pytest
import torch

from tests.unit.averaging.cases import BALLS, PIXEL, draw_body
from verglas.algo.averaging.halves import correlate_halves, scale_solvent, sharpen_map
from verglas.algo.averaging.local_resolution import correlate_locally, measure_local_resolution
from verglas.algo.averaging.registration import (
    Registration,
    differentiate_map,
    move_map,
    move_particles,
    register_halves,
    stay_put,
)
from verglas.errors import UserError
from verglas.ops.band import choose_band
from verglas.ops.fft import radial_frequency
from verglas.ops.filters import apply_filter
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.molecule_mask import mask_molecule
from verglas.ops.rotation import random_rotations, rotation_vectors_to_matrices
from verglas.ops.statistics import fourier_shells
from verglas.ops.symmetry import symmetry_matrices

BOX = 40
MASK = soft_sphere_mask((BOX,) * 3, 11, 4)


def add_noise(volume, level, seed):
    return volume + level * torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed))


def place_ball(centre, radius):
    grid = np.indices((BOX,) * 3) - BOX // 2
    distance = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0))
    return torch.from_numpy((distance <= radius).astype(np.float32))


def test_the_mask_follows_what_is_connected_and_leaves_dust():
    molecule = torch.maximum(place_ball((-3, 0, 0), 5), 0.5 * place_ball((4, 0, 0), 5))
    dust = 0.7 * place_ball((0, 0, 12), 2.5)
    found = mask_molecule(add_noise(molecule + dust, 0.1, 0), 5.0, 80.0)
    inside = found.core > 0.5
    true = molecule > 0
    assert float((inside & true).sum()) > 0.88 * float(true.sum())
    assert float((inside & ~true).sum()) < 0.1 * float(true.sum())
    assert not inside[dust > 0].any()
    assert bool((found.molecule >= found.core - 1e-6).all())
    # Ten ångströms are two voxels, so it is three that are added: a ball of 5 becomes one of 8.
    wide = mask_molecule(place_ball((0, 0, 0), 6), 5.0, 80.0)
    reach = np.cbrt(float((wide.molecule > 0.999).sum()) / float((wide.core > 0.999).sum()))
    assert reach == pytest.approx(9 / 6, rel=0.12)
    assert wide.solvent_factor > 2


def test_noise_has_no_molecule():
    with pytest.raises(UserError, match="expected at least 5 times"):
        mask_molecule(add_noise(torch.zeros((BOX,) * 3), 1.0, 1), 5.0, 80.0, 30.0)


@pytest.mark.parametrize(("turn", "shift"), [((3.0, -2.0, 1.5), (0.6, -1.1, 0.4)), ((0, 0, 0.5), (0, 0, 0))])
def test_the_second_half_map_is_brought_onto_the_first(turn, shift):
    rotation = rotation_vectors_to_matrices(torch.tensor([turn], dtype=torch.float64))[0]
    moved = draw_body(BOX, rotation, shift)
    found = register_halves(add_noise(draw_body(BOX), 0.05, 0), add_noise(moved, 0.05, 1), PIXEL, MASK)
    # The second map is R f(x - t), so R p + t goes back to p.
    left = found.rotation @ rotation
    residual = found.rotation @ (torch.tensor(shift, dtype=torch.float64) * PIXEL) + found.shift_angstrom
    assert math.degrees(math.acos(min(1.0, (float(left.trace()) - 1) / 2))) < 0.4
    assert float(residual.norm()) < 0.05 * PIXEL
    again = move_map(moved, found, PIXEL)
    error = (again - draw_body(BOX)).square().sum() / draw_body(BOX).square().sum()
    assert float(error) < 5e-3


def test_derivatives_are_those_of_small_moves():
    band = choose_band(BOX, PIXEL, 30.0)
    basis = differentiate_map(draw_body(BOX), band)
    z, y, x = (band.places_xyz.long()[:, axis] % BOX for axis in (2, 1, 0))

    def transform(rotation=None, shift=(0.0, 0.0, 0.0)):
        return torch.fft.rfftn(torch.fft.ifftshift(draw_body(BOX, rotation, shift)))[z, y, x]

    small = 1e-2
    for axis in range(3):
        vector = torch.zeros(1, 3, dtype=torch.float64)
        vector[0, axis] = math.degrees(small)
        turn = rotation_vectors_to_matrices(vector)[0]
        shift = np.zeros(3)
        shift[axis] = small
        for row, ends in (
            (1 + axis, (transform(turn), transform(turn.T))),
            (4 + axis, (transform(shift=shift), transform(shift=-shift))),
        ):
            expected = (ends[0] - ends[1]) / (2 * small)
            error = (basis[row] - expected).abs().square().sum() / expected.abs().square().sum()
            assert float(error) < 1e-3


def test_symmetry_keeps_its_axes():
    turn = rotation_vectors_to_matrices(torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64))[0]
    first, second = draw_body(BOX), draw_body(BOX, turn, (0.0, 0.0, 1.0))
    about_z = register_halves(first, second, PIXEL, MASK, symmetry_matrices("C4"))
    torch.testing.assert_close(about_z.rotation[2], torch.tensor([0, 0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(about_z.shift_angstrom[:2], torch.zeros(2, dtype=torch.float64))
    assert about_z.turn_deg == pytest.approx(3, abs=0.4)
    assert float(about_z.shift_angstrom[2]) == pytest.approx(-PIXEL, abs=0.5)
    assert register_halves(first, second, PIXEL, MASK, symmetry_matrices("D2")).turn_deg == 0


def test_noise_is_not_registered_into_likeness():
    first, second = (add_noise(torch.zeros((BOX,) * 3), 1.0, seed) for seed in (3, 4))
    found = register_halves(first, second, PIXEL, MASK)
    curves = correlate_halves(first, move_map(second, found, PIXEL), PIXEL, MASK)
    assert float(curves.masked[5:].mean().abs()) < 0.05
    assert found.displacement_angstrom(110) < 0.2 * BOX * PIXEL


def test_moved_particles_lie_where_the_moved_map_says():
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(4, generator)
    positions = 100 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    one = Registration(random_rotations(1, generator)[0], torch.tensor([3.0, -5.0, 8.0], dtype=torch.float64))
    moved, turned = move_particles(positions, rotations, one)
    for place in torch.tensor(BALLS):
        before = positions + rotations @ place
        after = moved + turned @ (one.rotation @ place + one.shift_angstrom)
        torch.testing.assert_close(before, after)
    assert stay_put().displacement_angstrom(100.0) == 0


def test_local_resolution_tells_the_fine_side_from_the_coarse():
    size, pixel = 64, 5.0
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn((size,) * 3, generator=generator)
    radius = radial_frequency((size,) * 3, pixel)
    fine, coarse = (apply_filter(signal, (radius < 1 / limit).float(), dims=3) for limit in (14.0, 30.0))
    side = (torch.arange(size) < size // 2).float()
    both = fine * side / fine.std() + coarse * (1 - side) / coarse.std()
    first, second = (add_noise(both, 1.5, seed) for seed in (1, 2))
    found = measure_local_resolution(first, second, pixel)
    left, right = found[..., 12:20].median(), found[..., 46:50].median()
    # Windows are two waves wide and more, so either side knows a little of the other.
    assert float(left) == pytest.approx(14.0, rel=0.15)
    assert float(right) == pytest.approx(30.0, rel=0.2)
    with pytest.raises(UserError, match="equal shape"):
        measure_local_resolution(first, second[1:], pixel)


def test_local_correlation_of_noise_scatters_as_it_is_said_to():
    first, second = (add_noise(torch.zeros(64, 64, 64), 1.0, seed) for seed in (5, 6))
    assert float(correlate_locally(first, second, 5.0, 1 / 20).std()) < 0.09
    assert float(correlate_locally(first, first, 5.0, 1 / 20).min()) > 0.99


def test_solvent_is_scaled_as_signal_to_noise_is():
    signal, noise = torch.tensor([9.0, 3.0, 1.0, 0.5]), 1.0
    factor = 2.5
    found = scale_solvent(signal / (signal + noise), factor)
    torch.testing.assert_close(found, factor * signal / (factor * signal + noise))
    kept = scale_solvent(torch.tensor([1.0, 0.5, -0.1, 0.4]), factor)
    assert kept[1] > 0.5
    assert kept[2:].tolist() == pytest.approx([-0.1, 0.4])


def test_cones_are_cut_off_where_their_own_signal_ends():
    """What is known only near the xy plane gives long cones there and short ones about z."""
    size = 48
    generator = torch.Generator().manual_seed(0)
    z, y, x = np.meshgrid(*[np.fft.fftfreq(size)] * 2, np.fft.rfftfreq(size), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    known = torch.from_numpy((radius < 0.15) | ((np.abs(z) < 0.5 * radius) & (radius < 0.35))).float()
    signal = apply_filter(torch.randn((size,) * 3, generator=generator), known, dims=3)
    first, second = (add_noise(signal, 0.2, seed) for seed in (1, 2))
    mask = soft_sphere_mask((size,) * 3, 16, 6)
    limits = correlate_halves(first, second, 1.0, mask).cone_limits()
    assert float(limits[0]) == pytest.approx(0.15, abs=0.04)
    assert float(limits[-12:].min()) > 0.3  # the axes at 90° from z


def test_sharpening_and_the_detector():
    volume = draw_body(BOX)
    places = torch.tensor([0.0, 0.1])
    sharp = sharpen_map(volume, PIXEL, 2000.0, (places, torch.tensor([1.0, 0.5])))
    shell = fourier_shells((BOX,) * 3) == 6
    frequency = 6 / (BOX * PIXEL)
    one, other = (torch.fft.rfftn(v)[shell].abs().square().sum().sqrt() for v in (sharp, volume))
    expected = math.exp(2000 / 4 * frequency**2) / (1 - 5 * frequency)
    assert float(one / other) == pytest.approx(expected, rel=0.03)
