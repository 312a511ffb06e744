"""Contrast, damage, loss and counting against numbers worked out by hand."""

import numpy as np
import pytest
import scipy.integrate

from verglas.algo.simulation.detector import Camera, apply_mtf, count_electrons, make_camera
from verglas.algo.simulation.imaging import (
    contrast_transfer,
    critical_exposure,
    exposure_attenuation,
    frequency_grid,
    interaction_constant,
    make_ice_noise,
    slab_transmission,
)
from verglas.errors import UserError
from verglas.model import Optics


@pytest.mark.parametrize(("kv", "expected"), [(100.0, 9.244e-4), (200.0, 7.288e-4), (300.0, 6.526e-4)])
def test_interaction_constant_of_kirklands_table(kv: float, expected: float) -> None:
    assert interaction_constant(kv) == pytest.approx(expected, rel=1e-3)


def test_first_zero_without_cs_lies_where_the_phase_reaches_pi() -> None:
    optics = Optics(1.0, cs_mm=0.0, amplitude_contrast=0.0)
    # π λ Δf k² = π at 300 kV: λ = 0.019687 Å, Δf = 12,000 Å.
    k = np.array([[1 / np.sqrt(0.0196875 * 12000.0)]])
    zero = np.zeros((1, 1))
    inside = contrast_transfer(k * 0.99, zero, optics, defocus_u_angstrom=12e3, defocus_v_angstrom=12e3)
    outside = contrast_transfer(k * 1.01, zero, optics, defocus_u_angstrom=12e3, defocus_v_angstrom=12e3)
    assert inside[0, 0] == pytest.approx(-outside[0, 0], rel=0.05)
    assert inside[0, 0] > 0.03


def test_transfer_by_hand_with_everything_on() -> None:
    optics = Optics(1.0, voltage_kv=200.0, cs_mm=2.0, amplitude_contrast=0.07)
    wavelength = 0.0250793
    kx, ky = 0.12 * np.cos(np.deg2rad(70)), 0.12 * np.sin(np.deg2rad(70))
    defocus = 15000.0 + 400.0 * np.cos(np.deg2rad(2 * (70 - 25)))
    chi = np.pi * wavelength * defocus * 0.12**2 - np.pi / 2 * 2e7 * wavelength**3 * 0.12**4
    expected = np.sin(chi + np.arcsin(0.07) + np.deg2rad(40))
    found = contrast_transfer(
        np.array(kx),
        np.array(ky),
        optics,
        defocus_u_angstrom=15400.0,
        defocus_v_angstrom=14600.0,
        defocus_angle_deg=25.0,
        phase_shift_deg=40.0,
    )
    assert float(found) == pytest.approx(expected, abs=2e-4)


def test_underfocus_transfer_at_zero_is_the_amplitude_contrast() -> None:
    kx, ky = frequency_grid((8, 9), 2.0)
    found = contrast_transfer(
        kx, ky, Optics(2.0, amplitude_contrast=0.1), defocus_u_angstrom=2e4, defocus_v_angstrom=2e4
    )
    assert found.shape == (8, 5)
    assert found[0, 0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("k", "kv", "expected"),
    [(0.1, 300.0, 14.138), (1 / 3, 300.0, 4.336), (0.1, 200.0, 11.310), (0.05, 300.0, 38.721)],
)
def test_critical_exposure_by_hand(k: float, kv: float, expected: float) -> None:
    assert float(critical_exposure(k, kv)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("k", [0.02, 0.1, 0.3])
def test_attenuation_is_the_mean_over_the_exposure(k: float) -> None:
    critical = float(critical_exposure(k))
    integral, _ = scipy.integrate.quad(lambda n: np.exp(-n / (2 * critical)), 30.0, 36.0)
    assert float(exposure_attenuation(k, 30.0, 6.0)) == pytest.approx(integral / 6)
    assert float(exposure_attenuation(k, 30.0, 0.0)) == pytest.approx(np.exp(-15.0 / critical))
    assert float(exposure_attenuation(0.0, 30.0, 6.0)) == 1.0


def test_attenuation_refuses_negative_exposure() -> None:
    with pytest.raises(UserError, match="exposures"):
        exposure_attenuation(0.1, -1.0, 3.0)


def test_slab_lets_pass_what_beer_and_lambert_say() -> None:
    assert slab_transmission(3500.0, 1.0) == pytest.approx(np.exp(-1))
    assert slab_transmission(1750.0, 0.5) == pytest.approx(np.exp(-1))
    assert slab_transmission(1000.0, -0.5, np.inf) == 1.0
    with pytest.raises(UserError, match="along the slab"):
        slab_transmission(100.0, 0.0)


def test_ice_noise_has_the_variance_of_water() -> None:
    noise = make_ice_noise((300, 300), 4.0, 1000.0, np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert noise.var() == pytest.approx(0.0311 * 1000 * 145.6**2 * 0.063 / 16, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.2)


def test_counts_have_poisson_mean_and_variance() -> None:
    counts = count_electrons(np.full((400, 400), 7.5, dtype=np.float32), np.random.default_rng(1))
    assert counts.dtype == np.uint16
    assert counts.mean() == pytest.approx(7.5, abs=0.03)
    assert counts.var() == pytest.approx(7.5, rel=0.02)


def test_gain_corrects_counts_and_bad_pixels_stand_out() -> None:
    camera = make_camera((128, 160), seed=3, hot_fraction=1e-3, dead_fraction=1e-3)
    counts = count_electrons(np.full((128, 160), 200.0), np.random.default_rng(2), camera)
    good = ~camera.hot & ~camera.dead
    corrected = (counts * camera.gain)[good]
    assert corrected.mean() == pytest.approx(200.0, rel=2e-3)
    # What is left after the gain is the counting alone.
    assert corrected.var() == pytest.approx(200.0 * camera.gain[good].mean(), rel=0.05)
    assert counts[good].var() > 1.3 * corrected.var()
    assert camera.dead.any()
    assert counts[camera.dead].max() == 0
    assert (counts * camera.gain)[camera.hot].mean() == pytest.approx(250.0, rel=0.05)


def test_camera_is_the_seeds_and_its_mean_gain_is_one() -> None:
    one, two, other = (make_camera((70, 70), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.gain, two.gain)
    assert not np.array_equal(one.gain, other.gain)
    assert one.gain.mean() == pytest.approx(1.0, abs=1e-5)


def test_counting_refuses_a_camera_of_another_size() -> None:
    camera = make_camera((8, 8), seed=0)
    assert isinstance(camera, Camera)
    with pytest.raises(UserError, match="camera has"):
        count_electrons(np.ones((8, 9)), np.random.default_rng(0), camera)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mtf_scales_a_wave_and_keeps_the_mean(dtype: type) -> None:
    x = np.arange(64)
    image = np.tile(3 + np.cos(2 * np.pi * x / 8), (64, 1)).astype(dtype)
    found = apply_mtf(image, [0.0, 0.25, 0.5], [2.0, 1.0, 0.2])
    expected = np.tile(3 + 0.75 * np.cos(2 * np.pi * x / 8), (64, 1))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mtf_refuses_frequencies_that_do_not_rise() -> None:
    with pytest.raises(UserError, match="rising"):
        apply_mtf(np.ones((4, 4)), [0.0, 0.3, 0.2], [1, 1, 1])
