"""Operations on micrographs, against their formulas written out once more and against plain cases."""

import numpy as np
import pytest
import torch

from verglas.algo.micrograph import operations
from verglas.algo.micrograph.recipe import Cutoff, Recipe, process_micrograph
from verglas.algo.micrograph.total_variation import denoise_variation
from verglas.benchmarks.preprocess import compare_with_formulas, make_micrograph
from verglas.errors import UserError
from verglas.ops.kernels import total_variation


def test_every_operation_follows_its_formula():
    figures = list(compare_with_formulas(64))
    assert len(figures) == 11
    assert [figure.name for figure in figures if not figure.holds] == []


def test_an_impulse_is_blurred_by_the_sigma_of_the_label_and_as_xmipp_by_less():
    image = torch.zeros(65, 65, dtype=torch.float64)
    image[32, 32] = 1
    offsets = torch.arange(65) - 32
    for as_xmipp, sigma in ((False, 4.0), (True, 4.0 / np.sqrt(2))):
        recipe = Recipe(gaussian=Cutoff(4.0), as_xmipp=as_xmipp)
        blurred = process_micrograph(image, 1.0, recipe).image
        variance = (blurred.sum(0) * offsets**2).sum() / blurred.sum()
        assert float(variance.sqrt()) == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize(("size", "factor"), [(130, 2.5), (131, 2.0), (128, 1.37)])
def test_downsampling_keeps_places_and_mean(size, factor):
    middle = torch.arange(size, dtype=torch.float64) - size // 2
    image = 5 + torch.exp(-((middle - 7)[:, None] ** 2 + (middle + 11) ** 2) / (2 * 6.0**2))
    small, true = operations.downsample(image, factor)
    assert true == pytest.approx(factor, rel=1e-4)
    there = (torch.arange(len(small), dtype=torch.float64) - len(small) // 2) * factor
    expected = 5 + torch.exp(-((there - 7)[:, None] ** 2 + (there + 11) ** 2) / (2 * 6.0**2))
    # Away from the borders, which wrap around.
    np.testing.assert_allclose(small[8:-8, 8:-8], expected[8:-8, 8:-8], atol=2e-3)


def test_as_xmipp_sizes_are_rounded_down_and_the_mean_is_kept():
    image = torch.from_numpy(make_micrograph(101)).double()
    small, told = operations.downsample(image, 2.5, as_xmipp=True)
    assert tuple(small.shape) == (40, 40)
    assert told == 2.5
    assert float(small.mean()) == pytest.approx(float(image.mean()), rel=1e-12)


def test_filters_pass_and_stop_waves():
    y, x = torch.meshgrid(*[torch.arange(100, dtype=torch.float64)] * 2, indexing="ij")
    slow, fast = torch.cos(2 * np.pi * 3 * y / 100), torch.cos(2 * np.pi * 40 * x / 100)
    image = 7 + slow + fast
    low = process_micrograph(image, 2.0, Recipe(lowpass=Cutoff(0.2))).image
    np.testing.assert_allclose(low, 7 + slow, atol=1e-12)
    # A cut-off of 20 Å at 2 Å a pixel is 0.1 a pixel.
    high = process_micrograph(image, 2.0, Recipe(highpass=Cutoff(20.0, is_angstrom=True))).image
    np.testing.assert_allclose(high, fast, atol=1e-12)


def test_denoising_keeps_edges_and_grey_levels():
    rng = np.random.default_rng(0)
    clean = np.full((96, 96), 900.0)
    clean[:, 48:] = 1100.0
    noisy = torch.from_numpy(clean + rng.normal(0, 30, clean.shape))
    smooth = denoise_variation(noisy, 50).numpy()
    assert np.abs(smooth - clean).std() < 0.4 * 30
    assert smooth[:, 50:].mean() - smooth[:, :46].mean() == pytest.approx(200, rel=0.05)
    unit = denoise_variation(noisy, 50, unit_scale=True)
    low, high = float(noisy.min()), float(noisy.max())
    np.testing.assert_allclose(unit.numpy() * (high - low) + low, smooth, rtol=1e-12)


def test_kernels_agree_with_plain_torch():
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.rand(70, 53, dtype=torch.float64, generator=generator) for _ in range(4)]
    model = total_variation.VariationModel(0.03, 0.2, 0.03, 1e-5)
    outs = [torch.zeros(70, 53, dtype=torch.float64) for _ in range(2)]
    found = total_variation.energy_gradient(arrays[0], arrays[1], model, *arrays[2:], outs[0])
    expected = total_variation.energy_gradient_reference(arrays[0], arrays[1], model, *arrays[2:], outs[1])
    assert found == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(*outs, atol=1e-13)
    # The gradient is that of the energy.
    step = torch.zeros_like(outs[0])
    step[30, 20] = 1e-6
    up, down = (
        total_variation.energy_gradient(arrays[0] + sign * step, arrays[1], model, *arrays[2:], outs[1])[0]
        for sign in (1, -1)
    )
    assert (up - down) / 2e-6 == pytest.approx(float(outs[0][30, 20]), rel=1e-5)


def test_a_block_of_bad_pixels_is_filled_from_its_rim():
    image = torch.ones(40, 40, dtype=torch.float64)
    image[10:20, 10:20] = 1e4
    repaired, count = operations.remove_bad_pixels(image, 3.0)
    assert count == 100
    assert (repaired == 1).all()


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (Recipe(logarithm=(1.0, 1.0, -5.0)), "have no logarithm"),
        (Recipe(crop=20), "expected at least 16 x 16"),
        (Recipe(downsample=5.0), "leave fewer than 16"),
        (Recipe(lowpass=Cutoff(1.0, is_angstrom=True)), "`lowpass` at 1 Å is 2 per pixel"),
    ],
)
def test_what_cannot_be_done_is_told(recipe, told):
    image = torch.from_numpy(make_micrograph(48))
    with pytest.raises(UserError, match=told):
        process_micrograph(image, 2.0, recipe)


def test_constant_images_are_refused():
    flat = torch.full((32, 32), 3.0)
    for recipe in (Recipe(normalise=True), Recipe(denoise=5)):
        with pytest.raises(UserError, match="expected one with contrast"):
            process_micrograph(flat, 1.0, recipe)
