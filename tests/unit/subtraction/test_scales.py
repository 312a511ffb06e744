"""Scales of a set, windows that do not wrap around, and masks that cut."""

import numpy as np
import pytest
import torch

from verglas.algo.subtraction.scales import (
    ShellSums,
    compare_whole,
    count_pixels,
    find_left,
    fit_scales,
    fit_set,
    measure_agreement,
)
from verglas.algo.subtraction.verdict import find_mask_shift, weigh_maps
from verglas.algo.subtraction.windows import cut_windows

SIZE, COUNT = 32, 400


@pytest.fixture(scope="module")
def case():
    """Images that are scaled models, weaker from shell 8 on, in noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    models = rng.normal(size=(COUNT, SIZE, SIZE)) * np.exp(-(x**2 + y**2) / (2 * 4.0**2))
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)) * SIZE
    gain = np.where(frequency < 8, 1.0, 0.5)
    weak = np.fft.ifft2(np.fft.fft2(models) * gain).real
    scale = rng.uniform(0.5, 1.5, COUNT)
    images = scale[:, None, None] * weak + rng.normal(0, 0.5, models.shape)
    return sum_plane(images, models), scale


def sum_plane(images, models):
    """Sums over rings of the whole plane; zero frequency and what lies beyond Nyquist left out."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)) * SIZE
    shells = np.floor(frequency + 0.5).astype(int)
    members = (shells[..., None] == np.arange(SIZE // 2)) & (shells[..., None] > 0)
    one, other = (np.fft.fft2(stack) for stack in (images, models))
    sums = [
        np.einsum("nyx,yxs->ns", product.real, members)
        for product in (one * other.conj(), other * other.conj(), one * one.conj())
    ]
    return ShellSums(*sums, members.sum((0, 1)).astype(float))


def test_pixels_are_those_of_the_whole_plane(case):
    np.testing.assert_array_equal(count_pixels(SIZE), case[0].pixels)


def test_gain_prior_and_scales_are_found(case):
    sums, scale = case
    fit = fit_set(sums)
    assert fit.mean == pytest.approx(1.0, abs=0.03)
    assert fit.deviation == pytest.approx(scale.std(), rel=0.1)
    np.testing.assert_allclose(fit.gain[2:7], 1.0, atol=0.06)
    np.testing.assert_allclose(fit.gain[10:15], 0.5, atol=0.06)
    np.testing.assert_allclose(fit.noise[1:15] / SIZE**2, 0.25, rtol=0.1)
    scales = fit_scales(sums, fit)
    # The errors that are told are those that are made.
    assert np.std((scales.plain - scale) / scales.error) == pytest.approx(1.0, rel=0.12)
    assert np.std(scales.expected - scale) < np.std(scales.plain - scale)


def test_without_information_the_prior_rules():
    rng = np.random.default_rng(1)
    models = rng.normal(size=(200, SIZE, SIZE))
    sums = sum_plane(models + rng.normal(0, 400, models.shape), models)
    scales = fit_scales(sums, fit_set(sums, by_frequency=False))
    assert scales.plain.std() > 5
    assert scales.expected.std() < 0.3 * scales.plain.std()


def test_what_is_left_and_the_agreement_with_the_map_are_those_that_were_made():
    rng = np.random.default_rng(2)
    # Kept and removed part overlap; noise of power 1; the images hold 1 of the kept and 1.3 of the removed part.
    kept, removed = rng.normal(size=(2, 50, 400))
    removed += 0.5 * kept
    images = kept + 1.3 * removed + rng.normal(size=kept.shape)
    pairs = (
        (images, images),
        (images, kept),
        (images, removed),
        (kept, kept),
        (kept, removed),
        (removed, removed),
    )
    products = np.stack([np.stack([0 * a[:, 0], (a * b).sum(1)], axis=1) for a, b in pairs], axis=1)
    ones = np.ones(2)
    left, error = find_left(products, np.full(50, 0.9), ones, ones)
    assert left.mean() == pytest.approx(0.4, abs=0.03)
    assert np.std((left - 0.4) / error) == pytest.approx(1.0, rel=0.25)
    whole = compare_whole(np.pad(products, ((0, 0), (0, 0), (0, SIZE // 2 - 2))), SIZE)
    ones = np.ones(SIZE // 2)
    expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(images, kept + removed, strict=True)])
    assert measure_agreement(whole, ones, ones).mean() == pytest.approx(expected, abs=0.02)


def test_windows_follow_a_point_and_do_not_wrap_around():
    y, x = torch.meshgrid(*[torch.arange(64, dtype=torch.float32) - 32] * 2, indexing="ij")
    centres = torch.tensor([[5.3, -7.6], [0.0, 25.25]])
    spots = torch.stack([torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8) for cy, cx in centres])
    windows, outside = cut_windows(spots, centres, 32)
    expected = torch.exp(-(y**2 + x**2) / 8)[16:48, 16:48]
    np.testing.assert_allclose(windows[0], expected, atol=1e-4)
    assert outside[0] == 0
    # The window about column 57 holds 7 columns to its right, and no more of the image.
    assert outside[1] == pytest.approx(9 / 32)
    np.testing.assert_allclose(windows[1][:, :22], expected[:, :22], atol=5e-3)
    assert float(windows[1][:, 24:].abs().max()) < 0.01


def make_halves():
    z, y, x = np.mgrid[:32, :32, :32] - 16.0
    left = (z**2 + y**2 + (x + 6) ** 2 < 5**2).astype(float)
    right = (z**2 + y**2 + (x - 6) ** 2 < 5**2).astype(float)
    return left, right, (z**2 + y**2 + (x - 6) ** 2 < 6.5**2).astype(float)


def test_maps_are_weighed_in_noise():
    left, right, mask = (torch.from_numpy(one) for one in make_halves())
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, (32, 32, 32)))
    before, after = 3 * (left + right) + noise, 3 * (0.9 * left + 0.2 * right) + noise
    balance = weigh_maps(before, after, left + right, mask)
    assert balance.left == pytest.approx(0.2, abs=0.02)
    assert balance.kept == pytest.approx(0.9, abs=0.02)


def test_a_shifted_mask_is_found_and_one_that_fits_is_not():
    left, right, mask = make_halves()
    _, cut = find_mask_shift(left + right, mask)
    assert cut > 0.6
    shift, cut = find_mask_shift(left + right, np.roll(mask, 4, axis=1))
    assert cut < 0.4
    assert shift[1] <= -3
