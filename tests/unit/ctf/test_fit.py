"""Defocus, astigmatism and hand against `algo.simulation`, which has a CTF of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from verglas.algo.ctf.fit import SearchRange, SeriesDefocus, estimate_defocus, lowest_visible_defocus
from verglas.algo.ctf.spectra import measure_spectra
from verglas.algo.ctf.tiles import Band
from verglas.algo.simulation.specimen import build_specimen
from verglas.algo.simulation.tilt_scheme import Misalignment, make_tilt_scheme
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.benchmarks import tilt_ctf
from verglas.errors import UserError
from verglas.model import Optics, TiltSeries
from verglas.ops.ctf import zero_frequency

Found = tuple[tilt_ctf.Case, SeriesDefocus]


@pytest.fixture(scope="module", params=[1, 2])
def found(request) -> Found:
    """Two series of 15 views, 20 e/Å² each, one of each hand."""
    case = tilt_ctf.make_case(request.param, 320, views=15, exposure_e_per_a2=20.0)
    assert case.truth.hand == {1: 1, 2: -1}[request.param]
    return case, tilt_ctf.estimate_case(case)


def test_defocus_of_each_view(found: Found) -> None:
    case, result = found
    difference = result.views.defocus_angstrom - case.truth.mean_defocus_angstrom
    assert abs(difference.mean()) < 40
    assert np.median(np.abs(difference)) < 100
    # The errors that are claimed are those that are made.
    assert 0.6 < np.std(difference / result.views.error_angstrom) < 1.7


def test_hand(found: Found) -> None:
    case, result = found
    assert result.verdict == case.truth.hand == result.hand
    check = result.hand_check
    # The curves of the figure say the same: with hand +1 what is above has more defocus.
    peaks = [check.defocus_angstrom[curve.argmax()] for curve in (check.below, check.axis, check.above)]
    assert case.truth.hand * (peaks[2] - peaks[0]) >= 100
    assert np.sign(check.gain[check.gain_score.argmax()]) == case.truth.hand


def test_astigmatism_of_the_series(found: Found) -> None:
    case, result = found
    truth = tilt_ctf._true_astigmatism(case.truth)
    assert np.abs(result.views.astigmatism.mean(axis=0) - truth[0]).max() < 60
    u, v, angle = result.principal
    assert (u >= v).all()
    turned = (angle - case.truth.defocus_angle_deg + 90) % 180 - 90
    if case.truth.defocus_u_angstrom[0] - case.truth.defocus_v_angstrom[0] > 400:
        assert np.median(np.abs(turned)) < 12


def strong_views(
    defocus: float, astigmatism: float, tilt: float, seed: int = 1
) -> tuple[TiltSeries, np.ndarray]:
    scheme = make_tilt_scheme(
        "strong",
        Optics(3.0, amplitude_contrast=0.07),
        (640, 640),
        max_tilt_deg=3.0,
        defocus_angstrom=defocus,
        exposure_e_per_a2=60.0,
        misalignment=Misalignment(astigmatism_angstrom=astigmatism, astigmatism_angle_deg=25.0),
    )
    series = replace(scheme.truth, y_tilt_deg=np.full(3, tilt))
    specimen = build_specimen("strong", (2000.0, 2000.0, 300.0), [], seed=seed)
    conditions = Conditions(ice_noise=True, b_factor_a2=150.0, layer_angstrom=100.0)
    return series, simulate_tilt_series(specimen, series, conditions=conditions, seed=seed + 1)


@pytest.mark.parametrize(("defocus", "tilt"), [(12000.0, 0.0), (40000.0, 0.0), (30000.0, 50.0)])
def test_strong_views_leave_no_bias(defocus: float, tilt: float) -> None:
    found = []
    # Counting noise and ice scatter u - v of one series by 33 Å: a bias shows in the mean of some.
    for seed in (1, 2, 3, 4):
        series, images = strong_views(defocus, 600.0, tilt, seed)
        spectra = [
            measure_spectra(torch.from_numpy(x), series, i, tilt_ctf.BAND) for i, x in enumerate(images)
        ]
        result = estimate_defocus(spectra, np.asarray(series.y_tilt_deg), series.optics, SearchRange())
        np.testing.assert_allclose(result.views.defocus_angstrom, defocus, atol=60)
        assert abs(result.views.defocus_angstrom.mean() - defocus) < 25
        found.append([np.ravel(one).mean() for one in result.principal])
    u, v, angle = np.mean(found, axis=0)
    np.testing.assert_allclose(u - v, 600, atol=40)
    np.testing.assert_allclose(angle, 25, atol=2.5)


def test_a_view_without_signal_follows_the_others() -> None:
    case = tilt_ctf.make_case(1, 320, views=9, exposure_e_per_a2=20.0)
    images = case.images.copy()
    rng = np.random.default_rng(0)
    images[5] = rng.poisson(images[5].mean(), images[5].shape)
    result = tilt_ctf.estimate_case(replace(case, images=images))
    others = np.delete(np.arange(9), 5)
    assert result.view_score[5] < 3 < result.view_score[others].min()
    assert abs(result.views.defocus_angstrom[5] - case.truth.mean_defocus_angstrom[5]) < 700
    assert result.views.error_angstrom[5] > 1.5 * np.median(result.views.error_angstrom[others])


def test_nothing_is_found_in_counted_electrons() -> None:
    for number in range(2):
        result = tilt_ctf.estimate_case(tilt_ctf.make_empty_case(number, 256))
        assert not result.is_found
        assert result.verdict == 0
        assert result.hand == 1


def test_rings_without_a_slope_do_not_tell_the_hand() -> None:
    result = tilt_ctf.estimate_case(tilt_ctf.make_flat_case(3, 320))
    assert result.is_found
    assert result.verdict == 0


def test_two_zeros_of_the_ctf_lie_in_the_band() -> None:
    optics = Optics(3.0, amplitude_contrast=0.1)
    for resolution in (5.0, 8.0, 20.0):
        defocus = lowest_visible_defocus(optics, resolution)
        second = zero_frequency(
            torch.tensor(defocus, dtype=torch.float64),
            voltage_kv=300.0,
            cs_mm=2.7,
            amplitude_contrast=0.1,
            order=2,
        )
        assert 1 / float(second) == pytest.approx(resolution, rel=1e-4)


def test_a_band_that_shows_no_rings_is_refused() -> None:
    series = make_tilt_scheme("coarse", Optics(10.0), (200, 200), max_tilt_deg=3.0).truth
    noise = np.random.default_rng(0).normal(size=(3, 200, 200)).astype(np.float32)
    band = Band(60.0, 22.0)
    spectra = [measure_spectra(torch.from_numpy(x), series, i, band) for i, x in enumerate(noise)]
    with pytest.raises(UserError, match=r"two zeros of the CTF only from 5\.\d µm .* up to 3\.0 µm"):
        estimate_defocus(spectra, np.zeros(3), series.optics, SearchRange(highest_angstrom=30000.0))
