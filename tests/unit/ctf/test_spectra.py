"""Spectra of tiles: frequencies, heights, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from verglas.algo.ctf import tiles
from verglas.algo.ctf.spectra import measure_spectra
from verglas.algo.ctf.tiles import SECTORS, Band
from verglas.errors import UserError
from verglas.model import ImageReference, Optics, TiltSeries


def series_of(size: int = 400, tilt: float = 0.0, **changes: object) -> TiltSeries:
    base = TiltSeries("TS", Optics(3.0), (size, size), (ImageReference(Path("a.mrc"), 0),), np.array([tilt]))
    return replace(base, **changes)  # type: ignore[arg-type]


def test_rings_and_sectors_stand_for_the_frequency_they_are_given():
    # Rings of whole coefficients are off by up to 100 Å of defocus, and not alike in all directions.
    size, band = 256, Band(highest_angstrom=6.6)
    padded = tiles._padded(size)
    y, x = np.fft.fftfreq(padded, 3.0)[:, None], np.fft.rfftfreq(padded, 3.0)
    square = torch.from_numpy(x**2 + y**2)[None]
    found, counts = tiles._average_polar(square, size, 3.0, band)
    frequency = tiles._frequency_bins(size, 3.0, band) / (padded * 3.0)
    error = (found[0] / frequency**2 - 1) * 40000
    assert found.shape == (1, SECTORS, len(frequency))
    assert np.abs(error.mean(axis=1)).max() < 5
    assert np.abs(np.ptp(error.mean(axis=1))) < 3
    # A ring of width one holds 2πr coefficients, half of them in a half transform.
    expected = np.pi * frequency * padded * 3.0
    np.testing.assert_allclose(counts.sum(axis=0)[20:-1], expected[20:-1], rtol=0.04)


def test_heights_follow_the_tilt_by_trigonometry():
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32))
    band = Band(highest_angstrom=6.6, tile_angstrom=300.0, lowest_angstrom=60.0)
    # A plane point (X, Y, 0) turned by t about y comes to X cos t at the height -X sin t.
    found = measure_spectra(noise, series_of(tilt=40.0), 0, band).depth_angstrom
    reach = (400 - 100) / 2 * 3.0 * np.tan(np.deg2rad(40))
    np.testing.assert_allclose([found.min(), found.max()], [-reach, reach], atol=60)
    turned = series_of(tilt=40.0, z_rot_deg=np.array([90.0]), y_shift_angstrom=np.array([120.0]))
    shifted = measure_spectra(noise, turned, 0, band).depth_angstrom
    # The axis lies along -x, so y falls; the specimen's centre is 120 Å along it.
    offset = 120 * np.tan(np.deg2rad(40))
    np.testing.assert_allclose([shifted.min(), shifted.max()], [-reach + offset, reach + offset], atol=60)


def test_white_noise_is_white_and_its_scatter_is_what_the_samples_say():
    noise = np.random.default_rng(1).normal(size=(12, 400, 400)).astype(np.float32)
    band = Band(highest_angstrom=6.6)
    views = [measure_spectra(torch.from_numpy(image), series_of(), 0, band) for image in noise]
    power = np.stack([view.power[0] for view in views])
    smooth = power.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(power.mean(axis=(0, 2)), smooth, rtol=0.02)
    # Means of n exponential numbers over a wide band scatter by 1 / sqrt(n).
    wide = (power * views[0].samples[0]).sum(axis=2) / views[0].samples[0].sum(axis=1)
    scatter = wide.std(axis=0).mean() / smooth
    assert scatter == pytest.approx(1 / np.sqrt(views[0].samples[0].sum(axis=1).mean()), rel=0.25)


def test_what_cannot_be_measured_is_refused_in_a_sentence():
    flat = torch.full((400, 400), 7.0)
    with pytest.raises(UserError, match=r"view 1 of 'TS' is blank"):
        measure_spectra(flat, series_of(), 0, Band(highest_angstrom=6.6))
    with pytest.raises(UserError, match=r"beyond the Nyquist resolution of 6 Å"):
        measure_spectra(flat, series_of(), 0, Band(highest_angstrom=5.0))
    with pytest.raises(UserError, match=r"less than one tile"):
        measure_spectra(flat[:160, :160], series_of(160), 0, Band(highest_angstrom=6.6))
    with pytest.raises(UserError, match="begin at a lower resolution"):
        Band(5.0, 30.0)
    with pytest.raises(UserError, match="four times as large"):
        Band(30.0, 5.0, 100.0)
