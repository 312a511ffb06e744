"""Tilt series: geometry by trigonometry, defocus by depth, loss, damage, seeds, and the two records."""

import numpy as np
import pytest
from scipy.optimize import brentq

from verglas.algo.simulation.imaging import interaction_constant
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.render import project_scatterers_rfft
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Population, Species, arrange_copies, build_specimen
from verglas.algo.simulation.supports import make_gold
from verglas.algo.simulation.tilt_scheme import Misalignment, make_tilt_scheme, order_views
from verglas.algo.simulation.tilt_series import make_views, simulate_tilt_series
from verglas.algo.simulation.views import Conditions, View, expect_view, layer_height
from verglas.errors import UserError
from verglas.model import Optics, TiltSeries

PLAIN = Conditions(ctf=False, damage=False, noise=False, mean_free_path_angstrom=np.inf)


def blob(sigma: float, weight: float = 1e5) -> Species:
    return Species("blob", Scatterers(np.zeros((1, 3)), np.array([weight]), np.array([sigma])))


def centroid(image: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(image.shape)
    return float((image * x).sum() / image.sum()), float((image * y).sum() / image.sum())


def series_of(**changes: object) -> TiltSeries:
    options: dict[str, object] = {"max_tilt_deg": 60.0, "step_deg": 20.0} | changes
    optics = Optics(8.0, amplitude_contrast=0.1)
    return make_tilt_scheme("TS", optics, (70, 81), **options).truth  # type: ignore[arg-type]


def test_a_point_lands_where_trigonometry_says() -> None:
    place = np.array([[60.0, -35.0, 90.0]])
    specimen = arrange_copies("TS", blob(12.0), place, np.array([[10.0, 20.0, 30.0]]))
    truth = series_of(
        axis_angle_deg=-4.3,
        seed=3,
        misalignment=Misalignment(
            shift_angstrom=20.0,
            drift_angstrom=3.0,
            tilt_deg=0.5,
            tilt_offset_deg=2.0,
            axis_error_deg=1.5,
            axis_deg=0.2,
            x_tilt_deg=1.2,
            magnification_drift=0.02,
        ),
    )
    stack = simulate_tilt_series(specimen, truth, conditions=PLAIN)
    for i in range(len(truth)):
        a, b, c = np.deg2rad([truth.x_tilt_deg[i], truth.y_tilt_deg[i], truth.z_rot_deg[i]])
        x, y, z = place[0]
        y, z = y * np.cos(a) - z * np.sin(a), y * np.sin(a) + z * np.cos(a)
        x = x * np.cos(b) + z * np.sin(b)
        x, y = x * np.cos(c) - y * np.sin(c), x * np.sin(c) + y * np.cos(c)
        m = truth.magnification[i, 0, 0]
        x, y = m * x + truth.x_shift_angstrom[i], m * y + truth.y_shift_angstrom[i]
        found = centroid(3.0 * 64 - stack[i].astype(float))
        np.testing.assert_allclose(found, (40 + x / 8, 35 + y / 8), atol=2e-3)


def first_zero(defocus: float, optics: Optics) -> float:
    """First k where 2π/λ (λ²k²Δf/2 - λ⁴k⁴Cs/4) + asin(Q) = π."""
    wavelength, cs = optics.wavelength_angstrom, optics.cs_mm * 1e7

    def phase(k: float) -> float:
        return (
            np.pi * wavelength * defocus * k**2
            - np.pi / 2 * cs * wavelength**3 * k**4
            + np.arcsin(optics.amplitude_contrast)
            - np.pi
        )

    return float(brentq(phase, 1e-3, 0.12))


@pytest.mark.parametrize(("hand", "depth"), [(1, 4000.0), (1, -4000.0), (-1, 4000.0)])
@pytest.mark.parametrize("own_depth", [True, False])
def test_depth_moves_the_first_zero(hand: int, depth: float, own_depth: bool) -> None:
    optics = Optics(3.0)
    species = blob(2.0)
    specimen = arrange_copies("TS", species, np.array([[0.0, 0.0, depth]]), np.zeros((1, 3)))
    if own_depth:
        # The same point as part of a film, whose Gaussians are sorted one by one.
        film = Scatterers(np.array([[0.0, 0.0, depth]]), np.array([1e5]), np.array([2.0]))
        empty = arrange_copies("TS", species, np.empty((0, 3)), np.empty((0, 3)))
        specimen = type(empty)("TS", empty.extent_angstrom, empty.species, empty.particles, films=(film,))
    view = View(np.eye(4), 12000.0, 12000.0, hand=hand)
    # So fine a layer that the depth is not rounded.
    conditions = Conditions(damage=False, noise=False, layer_angstrom=1.0)
    image = expect_view(specimen, view, (256, 256), optics, conditions)
    row = np.fft.rfft2(np.fft.ifftshift(image.astype(float) - 1))[0].real
    k = np.fft.rfftfreq(256, 3.0)
    i = int(np.flatnonzero((row[1:-1] < 0) & (row[2:] >= 0))[0]) + 1
    found = k[i] + (k[i + 1] - k[i]) * row[i] / (row[i] - row[i + 1])
    assert found == pytest.approx(first_zero(12000.0 + hand * depth, optics), rel=3e-3)


def test_a_view_is_the_analytic_projection_times_the_transfer() -> None:
    optics = Optics(4.0, cs_mm=2.7, amplitude_contrast=0.07)
    body = make_blob_phantom(40, 40.0, seed=8, sigma_angstrom=4.0)
    specimen = arrange_copies("x", Species("x", body), np.zeros((1, 3)), np.zeros((1, 3)))
    view = View(np.eye(4), 9000.0, 8400.0, 30.0)
    image = expect_view(specimen, view, (96, 96), optics, Conditions(damage=False))
    # The same on a larger box, so that nothing wraps round, with the formula written out once more.
    n = 192
    k_x, k_y = np.fft.rfftfreq(n, 4.0)[None], np.fft.fftfreq(n, 4.0)[:, None]
    square, angle = k_x**2 + k_y**2, np.arctan2(k_y, k_x)
    wavelength = 0.0196875
    defocus = 8700 + 300 * np.cos(2 * (angle - np.pi / 6))
    phase = np.pi * wavelength * defocus * square - np.pi / 2 * 2.7e7 * wavelength**3 * square**2
    spectrum = project_scatterers_rfft(body, np.eye(3), (n, n), 4.0) * np.sin(phase + np.arcsin(0.07))
    expected = 1 - 2 * interaction_constant(300.0) * np.fft.irfft2(spectrum, s=(n, n))[48:144, 48:144]
    assert expected.std() > 0.005
    assert np.abs(image - expected).max() < 0.01 * expected.std()


def test_layers_hardly_err() -> None:
    optics = Optics(3.0)
    species = Species("x", make_blob_phantom(30, 40.0, seed=1, sigma_angstrom=2.0))
    rng = np.random.default_rng(0)
    places = rng.uniform(-100, 100, (8, 3)) * [1, 1, 15]
    specimen = arrange_copies("x", species, places, np.zeros((8, 3)))
    view = View(np.eye(4), 15000.0, 15000.0)
    fine = expect_view(specimen, view, (96, 96), optics, Conditions(damage=False, layer_angstrom=2.0))
    usual = expect_view(specimen, view, (96, 96), optics, Conditions(damage=False))
    flat = expect_view(specimen, view, (96, 96), optics, Conditions(damage=False, layer_angstrom=1e6))
    assert layer_height(optics) == pytest.approx(8 * 0.05 * 9 / (np.pi * 0.019687), rel=1e-3)
    assert (usual - fine).std() < 0.02 * fine.std()
    assert (flat - fine).std() > 0.2 * fine.std()


def test_empty_ice_counts_what_is_left_of_the_beam() -> None:
    specimen = arrange_copies("TS", blob(5.0), np.empty((0, 3)), np.empty((0, 3)), 1500.0)
    truth = series_of(step_deg=60.0, exposure_e_per_a2=2.0)
    stack = simulate_tilt_series(specimen, truth, seed=1)
    for view, cosine in zip(stack, (0.5, 1.0, 0.5), strict=True):
        mean = 2.0 * 64 * np.exp(-1500 / 3500 / cosine)
        assert view.mean() == pytest.approx(mean, rel=5e-3)
        assert view.var() == pytest.approx(mean, rel=0.06)
    assert stack.dtype == np.float32
    assert stack.shape == (3, 70, 81)


def test_damage_fades_molecules_but_not_gold() -> None:
    specimen = arrange_copies("TS", blob(6.0), np.zeros((1, 3)), np.zeros((1, 3)))
    optics = Optics(4.0)
    late = View(np.eye(4), 0.0, 0.0, pre_exposure_e_per_a2=90.0, exposure_e_per_a2=3.0)
    conditions = Conditions(ctf=False, noise=False)
    unfading = Conditions(ctf=False, damage=False)
    unhurt = 1 - expect_view(specimen, late, (64, 64), optics, unfading).astype(float)
    hurt = 1 - expect_view(specimen, late, (64, 64), optics, conditions).astype(float)
    ratio = (np.fft.rfft2(hurt) / np.fft.rfft2(unhurt))[0, 4].real
    k = 4 / (64 * 4.0)
    # The padded image has other frequencies; at its centre both describe the same smooth curve.
    critical = 0.245 * k**-1.665 + 2.81
    assert ratio == pytest.approx(np.exp(-91.5 / 2 / critical), rel=0.02)
    gold = type(specimen)(
        "TS",
        specimen.extent_angstrom,
        (),
        specimen.particles,
        absorbers=(make_gold(np.array([[0.0, 0, 0, 50]]), 5.0),),
    )
    images = [expect_view(gold, late, (64, 64), optics, Conditions(damage=on)) for on in (True, False)]
    np.testing.assert_array_equal(*images)
    assert images[0].min() >= 0.02
    assert images[0][32, 32] < 0.7


def test_noise_is_the_seeds_and_not_the_threads() -> None:
    species = Species("x", make_blob_phantom(20, 40.0, seed=1))
    specimen = build_specimen("TS", (700.0, 600.0, 300.0), [Population(species, 8)], seed=2)
    truth = series_of()
    conditions = Conditions(ice_noise=True)
    one = simulate_tilt_series(specimen, truth, conditions=conditions, seed=5, workers=1)
    two = simulate_tilt_series(specimen, truth, conditions=conditions, seed=5, workers=3)
    other = simulate_tilt_series(specimen, truth, conditions=conditions, seed=6, workers=1)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one, np.rint(one))


@pytest.mark.parametrize("hand", [1, -1])
def test_rings_of_tilted_ice_have_the_defocus_of_their_place(hand: int) -> None:
    optics, size, tilt = Optics(3.0, amplitude_contrast=0.1), 512, np.deg2rad(55.0)
    ice = build_specimen("ice", (1500.0, 1500.0, 300.0), [], seed=1)
    turn = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    view = View(matrix, 20000.0, 20000.0, hand=hand)
    conditions = Conditions(ice_noise=True, noise=False, layer_angstrom=100.0)
    rng = np.random.default_rng(4)
    images = [expect_view(ice, view, (size, size), optics, conditions, rng) for _ in range(4)]
    width = 128
    window = np.outer(np.hanning(size), np.hanning(width))
    k = np.hypot(np.fft.fftfreq(size, 3.0)[:, None], np.fft.rfftfreq(width, 3.0))
    band = (k > 1 / 25) & (k < 1 / 9)
    tried = np.arange(17000, 23001, 50.0)
    for left in (0, size - width):
        power = sum(
            np.abs(np.fft.rfft2((i - i.mean())[:, left : left + width] * window)) ** 2 for i in images
        )
        flat = power[band] - power[band].mean()
        scores = []
        for defocus in tried:
            phase = np.pi * optics.wavelength_angstrom * defocus * k[band] ** 2 + np.arcsin(0.1)
            phase -= np.pi / 2 * 2.7e7 * optics.wavelength_angstrom**3 * k[band] ** 4
            scores.append((flat * -np.cos(2 * phase)).sum())
        # A point (X, 0, 0) comes to X cos(tilt) at the height -X sin(tilt).
        place = (left + width / 2 - size / 2) * 3.0
        expected = 20000 - hand * place * np.tan(tilt)
        assert tried[int(np.argmax(scores))] == pytest.approx(expected, abs=150)


def test_mtf_and_b_factor_take_fine_detail_away() -> None:
    specimen = arrange_copies("TS", blob(5.0), np.zeros((1, 3)), np.zeros((1, 3)))
    optics = Optics(4.0)
    scheme = make_tilt_scheme("TS", optics, (64, 64), max_tilt_deg=0.0)
    assert len(scheme.truth) == 1
    plain = simulate_tilt_series(specimen, scheme.truth, conditions=PLAIN)[0]
    soft = simulate_tilt_series(
        specimen,
        scheme.truth,
        conditions=Conditions(
            ctf=False,
            damage=False,
            noise=False,
            b_factor_a2=300.0,
            mtf_frequencies_per_pixel=np.array([0.0, 0.5]),
            mtf_values=np.array([1.0, 0.5]),
        ),
    )[0]
    ratio = np.fft.rfft2(soft - soft.mean())[0, 8] / np.fft.rfft2(plain - plain.mean())[0, 8]
    k = 8 / 64 / 4.0
    assert ratio.real == pytest.approx(np.exp(-300 / 4 * k**2) * (1 - 8 / 64), rel=2e-3)


def test_dose_symmetric_order_by_hand() -> None:
    scheme = make_tilt_scheme("TS", Optics(10.0), (8, 8), max_tilt_deg=6.0, exposure_e_per_a2=2.5)
    # Taken: 0, 3, -3, -6, 6.
    np.testing.assert_array_equal(scheme.nominal.nominal_tilt_deg, [-6, -3, 0, 3, 6])
    assert scheme.acquisition_order == (3, 2, 0, 1, 4)
    np.testing.assert_allclose(scheme.nominal.pre_exposure_e_per_a2, [7.5, 5.0, 0.0, 2.5, 10.0])


def test_other_orders_by_hand() -> None:
    np.testing.assert_array_equal(order_views(2, "bidirectional"), [4, 3, 0, 1, 2])
    np.testing.assert_array_equal(order_views(2, "continuous"), [0, 1, 2, 3, 4])
    with pytest.raises(UserError, match="order"):
        order_views(2, "random")  # type: ignore[arg-type]


def test_nominal_knows_nothing_of_the_errors() -> None:
    errors = Misalignment(
        shift_angstrom=30.0,
        axis_error_deg=2.0,
        tilt_offset_deg=5.0,
        magnification_drift=0.01,
        defocus_angstrom=300.0,
        astigmatism_angstrom=500.0,
        astigmatism_angle_deg=20.0,
    )
    options = {"axis_angle_deg": 85.0, "defocus_angstrom": 25000.0, "misalignment": errors}
    scheme = make_tilt_scheme("TS", Optics(10.0), (8, 8), seed=1, **options)  # type: ignore[arg-type]
    nominal, truth = scheme.nominal, scheme.truth
    assert len(nominal) == 41
    assert (nominal.z_rot_deg == 85.0).all()
    assert (nominal.x_shift_angstrom == 0).all()
    assert (nominal.defocus_u_angstrom == 25000.0).all()
    np.testing.assert_array_equal(truth.nominal_tilt_deg, nominal.nominal_tilt_deg)
    np.testing.assert_allclose(truth.y_tilt_deg - nominal.y_tilt_deg, 5.0)
    np.testing.assert_allclose(truth.z_rot_deg, 87.0)
    np.testing.assert_allclose(truth.defocus_u_angstrom - truth.defocus_v_angstrom, 500.0)
    assert truth.x_shift_angstrom.std() == pytest.approx(30.0, rel=0.35)
    assert truth.mean_defocus_angstrom.std() == pytest.approx(300.0, rel=0.35)
    assert truth.magnification[np.argmax(scheme.acquisition_order), 1, 1] == pytest.approx(1.01)
    again = make_tilt_scheme("TS", Optics(10.0), (8, 8), seed=1, **options).truth  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.x_shift_angstrom, truth.x_shift_angstrom)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UserError, match="scheme"):
        make_tilt_scheme("TS", Optics(10.0), (8, 8), step_deg=0.0)
    truth = series_of()
    unknown = TiltSeries("TS", truth.optics, (8, 8), truth.images, truth.nominal_tilt_deg)
    with pytest.raises(UserError, match="defocus_u_angstrom"):
        make_views(unknown)
    narrow = arrange_copies("TS", blob(0.3), np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(UserError, match="coarsened"):
        simulate_tilt_series(narrow, truth, conditions=PLAIN, workers=1)
    ice = arrange_copies("TS", blob(8.0), np.zeros((1, 3)), np.zeros((1, 3)), 100.0)
    with pytest.raises(UserError, match="randomness"):
        expect_view(ice, make_views(truth)[0], (16, 16), truth.optics, Conditions(ice_noise=True))
    for options in ({"mean_free_path_angstrom": 0.0}, {"layer_angstrom": 0.0}, {"mtf_values": np.ones(2)}):
        with pytest.raises(UserError):
            Conditions(**options)  # type: ignore[arg-type]
