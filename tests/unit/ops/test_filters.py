import math

import mrcfile
import pytest
import torch

from verglas.errors import UserError
from verglas.ops import filters
from verglas.ops.fft import radial_frequency


def test_band_keeps_waves_inside_and_stops_waves_outside():
    x = torch.arange(64, dtype=torch.float64).expand(64, 64)
    band = filters.bandpass_filter(
        (64, 64), 2.0, lowpass_angstrom=8.0, highpass_angstrom=32.0, dtype=torch.float64
    )
    for cycles, gain in [(0, 0.0), (2, 0.0), (4, 0.5), (8, 1.0), (16, 0.5), (20, 0.0)]:
        wave = torch.cos(2 * math.pi * cycles * x / 64 + 0.3)
        torch.testing.assert_close(filters.apply_filter(wave, band, dims=2), gain * wave)


def test_sharp_edge_and_open_band():
    sharp = filters.bandpass_filter((8, 8), 1.0, lowpass_angstrom=4.0, edge_pixels=0.0)
    assert sharp[0].tolist() == [1, 1, 1, 0, 0]
    assert (filters.bandpass_filter((8, 9, 7), 1.0) == 1).all()


@pytest.mark.relion
@pytest.mark.parametrize(
    ("option", "name"), [("--lowpass", "lowpass_angstrom"), ("--highpass", "highpass_angstrom")]
)
def test_band_is_relions(relion, tmp_path, option, name):
    volume = torch.randn(20, 20, 20, generator=torch.Generator().manual_seed(0))
    with mrcfile.new(tmp_path / "in.mrc", volume.numpy()) as file:
        file.voxel_size = 2.0
    relion(
        "relion_image_handler",
        "--i",
        "in.mrc",
        "--o",
        "out.mrc",
        "--angpix",
        2,
        option,
        8,
        "--filter_edge_width",
        4,
    )
    expected = torch.from_numpy(mrcfile.read(tmp_path / "out.mrc").copy())
    band = filters.bandpass_filter(volume.shape, 2.0, edge_pixels=4.0, **{name: 8.0})
    torch.testing.assert_close(filters.apply_filter(volume, band, dims=3), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.relion
def test_bfactor_is_relions(relion, tmp_path):
    volume = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    with mrcfile.new(tmp_path / "in.mrc", volume.numpy()) as file:
        file.voxel_size = 2.0
    relion("relion_image_handler", "--i", "in.mrc", "--o", "out.mrc", "--angpix", 2, "--bfactor", 80)
    expected = torch.from_numpy(mrcfile.read(tmp_path / "out.mrc").copy())
    # RELION also removes what lies beyond Nyquist in the corners.
    decay = filters.bfactor_filter(volume.shape, 2.0, 80.0) * (radial_frequency(volume.shape, 2.0) < 0.2499)
    inner = torch.fft.rfftn(expected) * (radial_frequency(volume.shape, 2.0) < 0.2499)
    torch.testing.assert_close(torch.fft.rfftn(volume) * decay, inner, atol=1e-3, rtol=1e-4)


def test_gaussian_is_a_gaussian_in_real_space():
    delta = torch.zeros(64, 64, dtype=torch.float64)
    delta[32, 32] = 1
    low = filters.gaussian_lowpass_filter((64, 64), 2.0, 24.0, dtype=torch.float64)
    assert low[0, 0] == 1
    blurred = filters.apply_filter(delta, low, dims=2)
    sigma = math.sqrt(math.log(2) / 2) / math.pi * 24.0
    assert sigma / 24 == pytest.approx(0.187, abs=5e-4)
    axis = (torch.arange(64, dtype=torch.float64) - 32) * 2
    expected = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2)) * 4 / (2 * math.pi * sigma**2)
    torch.testing.assert_close(blurred, expected, atol=1e-6, rtol=0)
    high = filters.gaussian_highpass_filter((64, 64), 2.0, 24.0, dtype=torch.float64)
    torch.testing.assert_close(filters.apply_filter(delta, high, dims=2), delta - blurred)


def test_filters_batch_and_keep_dtype():
    images = torch.randn(3, 9, 8)
    low = torch.stack([filters.gaussian_lowpass_filter((9, 8), 1.0, d) for d in (4.0, 8.0, 16.0)])
    result = filters.apply_filter(images, low, dims=2)
    assert result.dtype == torch.float32
    assert result.shape == (3, 9, 8)
    torch.testing.assert_close(result[1], filters.apply_filter(images[1], low[1], dims=2))


def test_bad_input_is_named():
    with pytest.raises(UserError, match="lowpass_angstrom"):
        filters.bandpass_filter((8, 8), 1.0, lowpass_angstrom=0.0)
    with pytest.raises(UserError, match="lowpass_angstrom"):
        filters.bandpass_filter((8, 8), 1.0, lowpass_angstrom=20.0, highpass_angstrom=10.0)
    with pytest.raises(UserError, match="edge_pixels"):
        filters.bandpass_filter((8, 8), 1.0, lowpass_angstrom=4.0, edge_pixels=-1.0)
    with pytest.raises(UserError, match="resolution_angstrom"):
        filters.gaussian_lowpass_filter((8, 8), 1.0, -4.0)
    with pytest.raises(UserError, match="dims"):
        filters.apply_filter(torch.zeros(8, 8), torch.zeros(8, 5), dims=1)
    with pytest.raises(UserError, match="must end in"):
        filters.apply_filter(torch.zeros(8, 8), torch.zeros(8, 8), dims=2)
