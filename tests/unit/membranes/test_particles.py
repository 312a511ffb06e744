"""Particles of a class: noise of its own colour, what stands on membranes, and profiles, against plain truth."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.interpolate import BSpline

from verglas.algo.membranes.blocks import find_crowded
from verglas.algo.membranes.curves import Arc
from verglas.algo.membranes.noise import NoiseSums, make_whitener
from verglas.algo.membranes.particles import map_curves
from verglas.algo.membranes.profiles import Profile, count_splines, fit_profile
from verglas.algo.membranes.sets import ClassModel, Particle, fit_particle, learn_class, start_model

BOX = 96
ARC = Arc((BOX / 2 + 3.0, BOX / 2 - 2.0), 30.0, 0.0)
MAPS = map_curves([(ARC, None)], [24.0], BOX)
Y, X = np.mgrid[:BOX, :BOX]
DISTANCE = (Y - ARC.centre_yx[0]) * ARC.normal[0] + (X - ARC.centre_yx[1]) * ARC.normal[1]
ALONG = (Y - ARC.centre_yx[0]) * ARC.direction[0] + (X - ARC.centre_yx[1]) * ARC.direction[1]
GREY = np.exp(-0.5 * ((DISTANCE - 8) / 3) ** 2) + np.exp(-0.5 * ((DISTANCE + 8) / 3) ** 2)
RADIUS = np.hypot(*np.meshgrid(np.fft.rfftfreq(BOX), np.fft.fftfreq(BOX)))


def power_of(frequency: np.ndarray) -> np.ndarray:
    return 0.8 + 8 * np.exp(-((frequency / 0.06) ** 2))


def draw_noise(rng: np.random.Generator, *, coloured: bool) -> np.ndarray:
    white = rng.normal(size=(BOX, BOX))
    if not coloured:
        return white
    return np.asarray(np.fft.irfft2(np.fft.rfft2(white) * np.sqrt(power_of(RADIUS)), white.shape))


def measure_power(*, coloured: bool) -> np.ndarray:
    """Of the noise in a band, without a part of it, as membranes and what stands on them leave it."""
    rng = np.random.default_rng(2)
    pixels = np.flatnonzero(np.abs(DISTANCE) < 26)
    weight = ((pixels < 3000) | (pixels > 3900)).astype(float)
    sums = NoiseSums(BOX)
    for _ in range(40):
        sums.add(pixels, draw_noise(rng, coloured=coloured).ravel()[pixels], weight)
    return sums.solve()


def test_power_of_noise_is_measured_from_parts_of_images() -> None:
    told = measure_power(coloured=True)
    frequency = np.linspace(0, 0.5, len(told))
    every = power_of(np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256))))
    expected = power_of(frequency) / every.mean()
    chosen = frequency > 0.02
    np.testing.assert_allclose(told[chosen], expected[chosen], rtol=0.12)
    profile = start_model(MAPS, [(16.0, 3.0, 3.0)]).profiles[0].coefficients
    assert make_whitener(told, profile) is not None
    assert make_whitener(measure_power(coloured=False), profile) is None


def test_scales_in_coloured_noise_err_as_they_say_and_less_than_by_plain_squares() -> None:
    rng = np.random.default_rng(3)
    first = start_model(MAPS, [(16.0, 3.0, 3.0)])
    held = np.full((1, 3), 0.03)
    errors: dict[str, list[float]] = {"plain": [], "coloured": []}
    told = []
    power = measure_power(coloured=True)
    for _ in range(60):
        particle = Particle(GREY + 0.7 * draw_noise(rng, coloured=True), 0.0, (0.0, 0.0))
        for name, known in (("plain", None), ("coloured", power)):
            model = ClassModel(MAPS, first.profiles, held, known)
            fit = fit_particle(model, particle)[2]
            errors[name].append(fit.scales[0])
            if known is not None:
                told.append(fit.errors[0])
    scatter = {name: float(np.std(one)) for name, one in errors.items()}
    assert scatter["coloured"] < 0.97 * scatter["plain"]
    assert scatter["coloured"] == pytest.approx(float(np.mean(told)), rel=0.25)


def test_what_stands_on_every_membrane_does_not_make_it_stronger() -> None:
    """Too faint to be seen in one particle. Fits see noise and its opposite, so that only bias is left."""
    rng = np.random.default_rng(4)
    blob = 1 / (1 + np.exp((np.hypot(ALONG / 14, (DISTANCE - 8) / 14) - 1) * 8))
    noise = [2.5 * draw_noise(rng, coloured=False) for _ in range(40)]

    def give() -> Iterator[Particle]:
        return (Particle(GREY + blob + one, 0.0, (0.0, 0.0)) for one in noise)

    model = learn_class(start_model(MAPS, [(16.0, 3.0, 3.0)]), give)
    assert model.crowded is not None
    region = fit_particle(model, next(give()))[0]
    crowded = model.crowded.ravel()[region.blocks.index]
    assert crowded[blob.ravel()[region.pixels] > 0.6].mean() > 0.9
    assert crowded[np.abs(ALONG).ravel()[region.pixels] > 36].mean() < 0.1
    taken = np.zeros(BOX * BOX)
    for one in noise[:20]:
        for sign in (-1, 1):
            region, _, fit = fit_particle(model, Particle(GREY + blob + sign * one, 0.0, (0.0, 0.0)))
            taken[region.pixels] += fit.membrane / 40
    slope = float((taken * GREY.ravel()).sum() / (GREY**2).sum())
    assert slope == pytest.approx(1.0, abs=0.03)


def test_most_of_a_class_is_never_crowded() -> None:
    rng = np.random.default_rng(5)
    sums, counts = rng.normal(size=(1, 20, 10)), np.ones((1, 20, 10))
    assert find_crowded(sums, counts).mean() < 0.1
    sums[:, 3:6, 4:7] += 20
    assert find_crowded(sums, counts)[:, 3:6, 4:7].all()
    sums[:, ::3, ::3] += 50
    assert find_crowded(sums, counts).mean() < 0.6


def test_a_profile_is_its_splines() -> None:
    rng = np.random.default_rng(6)
    for count, spacing in ((9, 1.0), (40, 1.7)):
        profile = Profile(rng.normal(size=count), spacing)
        knots = (np.arange(count + 4) - (count + 3) / 2) * spacing
        spline = BSpline(knots, profile.coefficients, 3)
        x = np.linspace(-profile.half_width, profile.half_width, 301)[1:-1]
        value, slope = profile.evaluate_both(x)
        np.testing.assert_allclose(value, spline(x), atol=1e-12)
        np.testing.assert_allclose(slope, spline.derivative()(x), atol=1e-12)
        np.testing.assert_array_equal(value, profile.evaluate(x))
        assert not profile.evaluate(np.array([-9.0, 9.0]) * profile.half_width).any()


def test_smooth_profiles_are_no_weaker() -> None:
    """With noise and its opposite, what is left of the mean is what the smoothing does."""
    rng = np.random.default_rng(7)
    distance = rng.uniform(-24, 24, 6000)
    truth = np.exp(-0.5 * ((distance - 8) / 3) ** 2) + np.exp(-0.5 * ((distance + 8) / 3) ** 2)
    slopes = []
    for _ in range(6):
        noise = rng.normal(0, 3, len(distance))
        for sign in (-1, 1):
            found = fit_profile(distance, truth + sign * noise, np.ones(6000), 24.0, noise=3.0)
            assert len(found.coefficients) == count_splines(24.0)
            slopes.append((found.evaluate(distance) @ truth) / (truth @ truth))
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.02)
