"""Transforms: `rfftn`, backward norm, not shifted; the centre is `n // 2`; shifts move content forwards."""

import mrcfile
import pytest
import torch

from verglas.ops import fft


@pytest.mark.parametrize("size", [7, 8])
def test_frequencies_belong_to_unshifted_rfftn(size):
    place = torch.arange(size, dtype=torch.float64)
    for cycles in range(-(size - 1) // 2 + 1, size // 2 + 1):
        wave = torch.cos(2 * torch.pi * (cycles * place[:, None] + 2 * place) / size)
        transform = torch.fft.rfftn(wave)
        grid = fft.frequency_grid((size, size), dtype=torch.float64)
        peaks = grid[transform.abs() > 0.1 * transform.abs().max()]
        assert ((peaks - torch.tensor([cycles, 2], dtype=torch.float64) / size).abs().amin(0) < 1e-12).all()
        assert transform.abs().max().item() == pytest.approx(size**2 / 2)


@pytest.mark.parametrize("size", [7, 8])
def test_a_point_at_the_centre_has_no_phase_about_it(size):
    image = torch.zeros(size, size, dtype=torch.float64)
    image[size // 2, size // 2] = 1
    centred = fft.shift_transforms(
        torch.fft.rfftn(image), (size, size), torch.full((2,), -float(size // 2), dtype=torch.float64)
    )
    torch.testing.assert_close(centred, torch.ones_like(centred), atol=1e-12, rtol=0)


def test_shift_is_warps(shared_data):
    folder = shared_data / "formats" / "warp"
    original = torch.from_numpy(mrcfile.read(folder / "shift_reference.mrc").squeeze().copy())
    expected = torch.from_numpy(mrcfile.read(folder / "shift_shifted_2.5_3.3.mrc").squeeze().copy())
    # Warp's shift is x, y; ours yx.
    shifted = fft.fourier_shift(original, torch.tensor([3.3, 2.5]))
    torch.testing.assert_close(shifted, expected, atol=1e-6, rtol=0)


@pytest.mark.relion
@pytest.mark.parametrize("out", [12, 20, 26])
def test_rescaling_is_relions(relion, tmp_path, out):
    image = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    with mrcfile.new(tmp_path / "in.mrc", image.numpy()) as file:
        file.voxel_size = 1.0
    relion(
        "relion_image_handler", "--i", "in.mrc", "--o", "out.mrc", "--angpix", 1,
        "--rescale_angpix", 20 / out, "--new_box", out,
    )  # fmt: skip
    expected = torch.fft.rfftn(torch.from_numpy(mrcfile.read(tmp_path / "out.mrc").squeeze().copy()))
    result = torch.fft.rfftn(fft.rescale_images(image, (out, out)))
    # The programs differ at Nyquist, which RELION neither splits nor joins.
    below = fft.radial_frequency((out, out)) < 0.49 * min(out, 20) / out
    torch.testing.assert_close(result[below], expected[below], atol=1e-3, rtol=0)
