"""What fills a disc is what a Gaussian field would be there, by dense algebra and by the field's own covariance."""

import numpy as np
import pytest

from tests.unit.fiducials.fields import covariance, draw_field, scatter_places
from verglas.algo.fiducials.compare import compare_spectra, deviation_of
from verglas.algo.fiducials.erase import _continue_field, erase_discs, mask_discs
from verglas.algo.fiducials.halo import choose_radius, measure_halos

SHAPE = (260, 300)
RADIUS = 7.0


@pytest.fixture(scope="module")
def filled():
    """Fields with black discs, and what became of them."""
    runs = []
    for seed in range(8):
        truth = draw_field(SHAPE, seed)
        places = scatter_places(SHAPE, 25, seed, 3.2 * RADIUS)
        spoilt = truth.copy()
        spoilt[mask_discs(SHAPE, places, RADIUS)] = -50.0
        image, masked = erase_discs(spoilt.astype(np.float32), places, RADIUS, seed)
        runs.append((truth, image, masked, places))
    return runs


def test_the_mean_is_that_of_dense_algebra():
    rng = np.random.default_rng(0)
    size = 20
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    apart = [np.abs(np.subtract.outer(a.ravel(), a.ravel())) for a in (y, x)]
    # The tile's opposite sides touch, as in the solver.
    wrapped = np.hypot(*(np.minimum(one, size - one) for one in apart))
    matrix = np.exp(-((wrapped / 3.0) ** 2)) + 0.2 * (wrapped == 0)
    power = np.fft.rfft2(matrix[0].reshape(size, size)).real
    known = np.hypot(y - 10, x - 9) > 4.5
    values = np.where(known, rng.standard_normal((size, size)), 0.0)
    k, u = known.ravel(), ~known.ravel()
    expected = matrix[np.ix_(u, k)] @ np.linalg.solve(matrix[np.ix_(k, k)], values.ravel()[k])
    found = _continue_field(values, known, power)
    np.testing.assert_allclose(found.ravel()[u], expected, atol=3e-3)
    assert not found[known].any()


def test_pixels_outside_stay_as_they_are_and_all_inside_change(filled):
    for truth, image, masked, places in filled:
        np.testing.assert_array_equal(image[~masked], truth.astype(np.float32)[~masked])
        assert (image[masked] > -20).all()
        expected = np.zeros(SHAPE, bool)
        y, x = np.indices(SHAPE)
        for place in places:
            expected |= np.hypot(x - 150 - place[0], y - 130 - place[1]) <= RADIUS
        np.testing.assert_array_equal(masked, expected)


@pytest.mark.parametrize("step", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["inside", "across"])
def test_differences_scatter_as_the_covariance_says(filled, step, kind):
    """Inside the discs, and over their edge: a halo, an edge or a wrong spectrum would change them."""
    squares = []
    for _, image, masked, _ in filled:
        for one, other, a, b in (
            (image[:, step:], image[:, :-step], masked[:, step:], masked[:, :-step]),
            (image[step:], image[:-step], masked[step:], masked[:-step]),
        ):
            squares.append((one - other)[(a & b) if kind == "inside" else (a != b)] ** 2)
    squares = np.concatenate(squares)
    expected = 2 * (covariance(0) - covariance(step))
    assert squares.mean() == pytest.approx(expected, rel=0.06)


def test_the_filled_values_have_the_fields_variance_and_mean(filled):
    values = np.concatenate([image[masked] for _, image, masked, _ in filled])
    assert values.var() == pytest.approx(covariance(0), rel=0.06)
    errors = np.concatenate([(image - truth)[masked] for truth, image, masked, _ in filled])
    assert abs(errors.mean()) < 0.05


def test_the_slow_background_is_continued(filled):
    """The mean over a disc follows the truth far better than that of independent noise would."""
    found, true = [], []
    for truth, image, _, places in filled:
        for place in places:
            disc = mask_discs(SHAPE, place[None], RADIUS)
            found.append(image[disc].mean())
            true.append(truth[disc].mean())
    assert np.corrcoef(found, true)[0, 1] > 0.6


def test_the_same_seed_gives_the_same_and_another_does_not():
    image = draw_field((96, 96), 3).astype(np.float32)
    places = np.array([[3.2, -4.0], [-20.0, 11.5]])
    first, masked = erase_discs(image, places, 6.0, 5)
    again, _ = erase_discs(image, places, 6.0, 5)
    other, _ = erase_discs(image, places, 6.0, 6)
    np.testing.assert_array_equal(first, again)
    assert np.std((first - other)[masked]) > 0.5


def test_discs_touch_reach_over_the_border_and_lie_outside():
    truth = draw_field((120, 130), 4)
    places = np.array([[0.0, 0.0], [7.0, 3.0], [-64.0, -10.0], [64.5, 59.5], [500.0, 0.0]])
    spoilt = truth.copy()
    spoilt[mask_discs((120, 130), places, 6.0)] = -1000.0
    image, masked = erase_discs(spoilt.astype(np.float32), places, 6.0, 0)
    assert masked[60, 65]
    assert masked[50, 1]
    assert image.min() > -15
    assert np.abs(image[masked]).std() < 3


@pytest.mark.parametrize("places", [np.empty((0, 2)), np.array([[400.0, 0.0]])])
def test_nothing_to_erase_changes_nothing(places):
    image = draw_field((64, 64), 5).astype(np.float32)
    same, masked = erase_discs(image, places, 5.0, 0)
    np.testing.assert_array_equal(same, image)
    assert not masked.any()


def test_an_image_that_is_gold_all_over_is_filled_with_finite_noise():
    image = draw_field((64, 64), 6).astype(np.float32)
    filled, masked = erase_discs(image, np.array([[0.0, 0.0]]), 60.0, 0)
    assert masked.all()
    assert np.isfinite(filled).all()


def test_a_slope_goes_on_through_a_disc():
    slope = np.add.outer(0.5 * np.arange(100.0), -0.2 * np.arange(100.0))
    image = (slope + 0.3 * np.random.default_rng(0).standard_normal((100, 100))).astype(np.float32)
    spoilt = image.copy()
    places = np.array([[5.0, -3.0]])
    disc = mask_discs((100, 100), places, 8.0)
    spoilt[disc] = -100.0
    filled, _ = erase_discs(spoilt, places, 8.0, 0)
    rest = (filled - slope)[disc]
    assert abs(rest.mean()) < 0.2
    assert rest.std() == pytest.approx(0.3, rel=0.2)


def test_spectra_of_discs_and_neighbours_agree_and_a_wrong_fill_shows():
    runs = []
    for seed in range(4):
        truth = draw_field(SHAPE, 10 + seed).astype(np.float32)
        places = scatter_places(SHAPE, 20, seed, 3.2 * RADIUS)
        image, masked = erase_discs(truth, places, RADIUS, seed)
        flat = image.copy()
        flat[masked] = np.random.default_rng(seed).normal(0, image.std(), int(masked.sum()))
        runs.append((image, flat, masked, places))
    for index, most, least in ((0, 0.2, 0.0), (1, 9.0, 0.5)):
        pairs = [compare_spectra(run[index], run[2], run[3], RADIUS) for run in runs]
        filled, around = (
            np.concatenate([getattr(p, n) for p in pairs]).mean(0) for n in ("filled", "neighbours")
        )
        deviation = np.abs(filled / around - 1)
        assert least <= deviation.max() <= most
    one, error = deviation_of(pairs[0])
    assert one.shape == error.shape == pairs[0].frequencies.shape


def test_the_radius_reaches_as_far_as_the_fringes():
    radius = 5.0
    places = scatter_places((300, 300), 30, 0, 36.0)
    y, x = np.indices((300, 300)) - 150
    plain = draw_field((300, 300), 20)
    ringed = plain.copy()
    for place in places:
        distance = np.hypot(x - place[0], y - place[1])
        plain[distance < radius] -= 20
        ringed[distance < radius] -= 20
        ringed[(distance >= radius) & (distance < 9.0)] += 1.5
    for image, low, high in ((plain, 6.0, 7.5), (ringed, 9.0, 11.5)):
        halos = measure_halos(image.astype(np.float32), places, radius)
        assert len(halos) == 30
        assert low <= choose_radius([halos], radius) <= high


def test_too_few_beads_get_the_usual_radius():
    assert choose_radius([], 10.0) == pytest.approx(20.0)
    assert choose_radius([np.empty((0, 8))], 10.0) == pytest.approx(20.0)
