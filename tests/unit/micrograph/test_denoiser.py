"""The denoiser: its linear filter against known spectra, its tiles, what it learns against the truth."""

import numpy as np
import pytest
import torch

from verglas.algo.micrograph import denoiser as denoiser_module
from verglas.algo.micrograph import denoiser_training
from verglas.algo.micrograph.denoiser import (
    SHELLS,
    denoise_image,
    make_denoiser,
    pack_denoiser,
    unpack_denoiser,
)
from verglas.algo.micrograph.denoiser_training import judge_denoiser, start_denoiser, train_denoiser
from verglas.algo.micrograph.recipe import Recipe, process_micrograph
from verglas.errors import UserError

PIXEL = 4.0


def make_halves(seed, size=320, height=1.0):
    """Discs of one size, sharp-edged, in noise of 1: the truth, and two halves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((size, size))
    for centre in rng.uniform(0, size, (size * size // 1500, 2)):
        truth[np.hypot(y - centre[0], x - centre[1]) < 8] -= height
    truth -= truth.mean()
    halves = [
        torch.from_numpy((truth + rng.standard_normal(truth.shape)).astype(np.float32)) for _ in range(2)
    ]
    return truth, (halves[0], halves[1])


@pytest.fixture
def random_denoiser():
    made = make_denoiser(torch.linspace(0.9, 0.1, SHELLS), 1.5, PIXEL, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for values in made.network.parameters():
            values += 0.05 * torch.randn(values.shape, generator=generator)
    return made


def test_the_linear_filter_is_the_share_of_the_signals_power():
    rng = np.random.default_rng(0)
    shape = (512, 512)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    # Power 4 exp(-(k / 0.1)²) beside noise of power 1.
    signal = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal(shape)) * 2 * np.exp(-((frequency / 0.1) ** 2) / 2), s=shape
    )
    pair = tuple(torch.from_numpy((signal + rng.standard_normal(shape)).astype(np.float32)) for _ in range(2))
    found = start_denoiser([pair], PIXEL, seed=0)
    power = 4 * np.exp(-((np.linspace(0, 0.5, SHELLS) / 0.1) ** 2))
    expected = power / (power + 1)
    assert np.abs(found.response.numpy() - expected)[2:].max() < 0.06
    filtered = np.fft.irfft2(
        np.fft.rfft2(pair[0].numpy()) * np.interp(frequency, np.linspace(0, 0.5, SHELLS), expected), s=shape
    )
    scale = np.diff(pair[0].numpy(), axis=1).std() / np.sqrt(2)
    assert found.gain * filtered.std() / scale == pytest.approx(1, abs=0.05)


def test_tiles_do_not_show(random_denoiser, monkeypatch):
    image = make_halves(3, size=300)[1][0][:, :270]
    whole = denoise_image(image, random_denoiser, PIXEL)
    monkeypatch.setattr(denoiser_module, "_TILE", 104)
    assert torch.allclose(denoise_image(image, random_denoiser, PIXEL), whole, atol=1e-5)
    assert (whole - image).std() > 0.1


def test_offset_scale_and_contrast_make_no_difference(random_denoiser):
    image = make_halves(4)[1][0].double()
    plain = denoise_image(image, random_denoiser, PIXEL)
    assert torch.allclose(denoise_image(100 + 7 * image, random_denoiser, PIXEL), 100 + 7 * plain, atol=1e-3)
    inverted = process_micrograph(image, PIXEL, Recipe(invert=True, denoiser=random_denoiser)).image
    assert torch.allclose(inverted, -plain, atol=1e-5)
    assert not torch.allclose(denoise_image(-image, random_denoiser, PIXEL), -plain, atol=1e-2)


def test_a_packed_denoiser_does_the_same(random_denoiser):
    image = make_halves(5, size=160)[1][0]
    packed = pack_denoiser(random_denoiser)
    again = unpack_denoiser(packed)
    assert torch.equal(denoise_image(image, again, PIXEL), denoise_image(image, random_denoiser, PIXEL))
    with pytest.raises(UserError, match=r"not those of a denoiser: expected 'gain'"):
        unpack_denoiser({name: value for name, value in packed.items() if name != "gain"})
    with pytest.raises(UserError, match=r"'last.bias' has shape none"):
        unpack_denoiser({name: value for name, value in packed.items() if name != "last.bias"})


def test_what_cannot_be_denoised_is_said(random_denoiser):
    image = make_halves(6, size=160)[1][0]
    with pytest.raises(UserError, match=r"pixels of 4 Å, and those of the image are 2.1 Å"):
        denoise_image(image, random_denoiser, 2.1)
    with pytest.raises(UserError, match="pixels are all 3 cannot"):
        denoise_image(torch.full((64, 64), 3.0), random_denoiser, PIXEL)
    noise = torch.randn((2, 128, 128), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="nothing in common"):
        start_denoiser([(noise[0], -noise[0])], PIXEL, seed=0)
    with pytest.raises(UserError, match="too small to learn from; expected at least 160 x 128"):
        train_denoiser(random_denoiser, [(image[:150], image[:150])], steps=1, rate=0.1, seed=0)


def test_it_learns_from_halves_alone_to_beat_the_best_linear_filter(monkeypatch):
    monkeypatch.setattr(denoiser_training, "CROP_PX", 64)
    cases = [make_halves(seed) for seed in (7, 8)]
    pairs = [pair for _, pair in cases]
    made = start_denoiser(pairs, PIXEL, seed=0)
    before = judge_denoiser(made, pairs)
    assert before.network == pytest.approx(before.linear, rel=1e-4)
    losses = train_denoiser(made, pairs, steps=60, rate=0.004, seed=0)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    after = judge_denoiser(made, pairs)
    # Against the truth, in what was held out, which the judge does not know.
    truth, pair = cases[0]
    held = slice(256, None)
    found = denoise_image(pair[0], made, PIXEL, is_half=True).numpy()
    left = np.sqrt(((found - truth)[held] ** 2).mean() / (truth[held] ** 2).mean())
    assert after.linear == pytest.approx(before.linear)
    assert after.network < 0.9 * after.linear
    assert after.network == pytest.approx(left, rel=0.15)
