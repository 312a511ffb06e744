import numpy as np
import pytest
import torch
from scipy.signal import resample

from verglas.errors import UserError
from verglas.ops import fft


def test_frequencies_match_numpy():
    grid = fft.frequency_grid((6, 5), 2.0, dtype=torch.float64)
    y, x = np.meshgrid(np.fft.fftfreq(6, 2.0), np.fft.rfftfreq(5, 2.0), indexing="ij")
    y[3] *= -1  # Nyquist is positive
    np.testing.assert_allclose(grid.numpy(), np.stack([y, x], axis=-1))
    full = fft.radial_frequency((4, 5, 6), 2.0, rfft=False, dtype=torch.float64)
    z, y, x = np.meshgrid(*(np.fft.fftfreq(n, 2.0) for n in (4, 5, 6)), indexing="ij")
    np.testing.assert_allclose(full.numpy(), np.sqrt(x * x + y * y + z * z))


@pytest.mark.parametrize(("shape", "pixel"), [((4, 0), 1.0), ((4, 4), 0.0), ((4, 4), float("nan"))])
def test_frequencies_refuse_nonsense(shape, pixel):
    with pytest.raises(UserError, match="must"):
        fft.radial_frequency(shape, pixel)


def test_fast_size_is_even_and_smooth():
    assert [fft.fast_size(n) for n in (1, 2, 3, 11, 13, 97, 127, 1023, 4097)] == [
        2, 2, 4, 12, 14, 98, 128, 1024, 4116,
    ]  # fmt: skip
    with pytest.raises(UserError, match="size"):
        fft.fast_size(0)


def _waves(size, dims, generator):
    """Real waves below a band of 4 cycles, as a function of the place measured from the centre."""
    terms = [
        (generator.normal(), generator.uniform(0, 6), generator.integers(-4, 5, size=dims)) for _ in range(9)
    ]

    def sample(shape):
        axes = np.meshgrid(*((np.arange(n) - n // 2) / n for n in shape), indexing="ij")
        return sum(
            a * np.cos(2 * np.pi * sum(k * u for k, u in zip(ks, axes, strict=True)) + p)
            for a, p, ks in terms
        )

    return sample


@pytest.mark.parametrize(
    ("shape", "out"),
    [((24, 20), (12, 10)), ((25, 20), (12, 11)), ((24, 21), (11, 13)), ((13, 12), (24, 25)),
     ((12, 9), (9, 12)), ((12, 16, 15), (10, 9, 12)), ((16, 16), (16, 10))],
)  # fmt: skip
def test_rescale_samples_the_same_function_about_the_centre(shape, out):
    sample = _waves(None, len(shape), np.random.default_rng(1))
    images = torch.from_numpy(np.stack([sample(shape)] * 2))
    result = fft.rescale_images(images, out)
    np.testing.assert_allclose(result[1].numpy(), sample(out), atol=1e-12)


def test_rescale_treats_nyquist_as_scipy_does():
    image = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for out in ((10, 8), (20, 18)):
        expected = resample(resample(image.numpy(), out[0], axis=0), out[1], axis=1)
        np.testing.assert_allclose(fft.rescale_images(image, out).numpy(), expected, atol=1e-12)
    larger = fft.rescale_images(image, (24, 30))
    torch.testing.assert_close(fft.rescale_images(larger, (16, 12)), image)
    torch.testing.assert_close(larger.mean(), image.mean())


@pytest.mark.parametrize(
    ("shape", "out"), [((16, 12), (10, 8)), ((8, 10, 12), (6, 10, 4)), ((9, 12), (7, 10))]
)
def test_transform_crop_and_pad_agree_with_rescaling(shape, out):
    image = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = tuple(range(-len(shape), 0))
    ratio = np.prod(out) / np.prod(shape)
    cropped = fft.rfft_crop(torch.fft.rfftn(image, dim=axes), shape, out) * ratio
    small = torch.fft.irfftn(cropped, s=out, dim=axes)
    torch.testing.assert_close(torch.fft.rfftn(small, dim=axes), cropped)
    padded = fft.rfft_pad(torch.fft.rfftn(small, dim=axes), out, shape) / ratio
    large = torch.fft.irfftn(padded, s=shape, dim=axes)
    torch.testing.assert_close(fft.rfft_crop(torch.fft.rfftn(large, dim=axes), shape, out) * ratio, cropped)
    if all(n % 2 == 0 for n in (*shape, *out)):
        torch.testing.assert_close(small, fft.rescale_images(image, out))
        torch.testing.assert_close(large, fft.rescale_images(small, shape))


def test_transform_sizes_are_checked():
    transforms = torch.zeros(8, 5, dtype=torch.complex64)
    with pytest.raises(UserError, match="must end in"):
        fft.rfft_crop(transforms, (8, 6), (4, 4))
    with pytest.raises(UserError, match="must not exceed"):
        fft.rfft_crop(transforms, (8, 8), (4, 10))
    with pytest.raises(UserError, match="must not be below"):
        fft.rfft_pad(transforms, (8, 8), (4, 10))
    with pytest.raises(UserError, match="2 positive sizes"):
        fft.rfft_pad(transforms, (8, 8), (8,))


def test_whole_shifts_are_rolls():
    images = torch.randn(2, 7, 8)
    shifted = fft.fourier_shift(images, torch.tensor([[2.0, -3.0], [0.0, 1.0]]))
    torch.testing.assert_close(shifted[0], images[0].roll((2, -3), (0, 1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[1], images[1].roll(1, 1), atol=1e-5, rtol=0)
    volume = torch.randn(5, 6, 7, dtype=torch.float64)
    shifted = fft.fourier_shift(volume, torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(shifted, volume.roll((1, -2, 3), (0, 1, 2)))
    assert fft.fourier_shift(volume.float(), torch.zeros(3)).dtype == torch.float32


def test_fractional_shift_moves_a_gaussian():
    y, x = torch.meshgrid(torch.arange(32.0) - 16, torch.arange(32.0) - 16, indexing="ij")
    image = torch.exp(-(y**2 + x**2) / 8)
    expected = torch.exp(-((y - 1.25) ** 2 + (x + 2.6) ** 2) / 8)
    torch.testing.assert_close(
        fft.fourier_shift(image, torch.tensor([1.25, -2.6])), expected, atol=1e-5, rtol=0
    )


def test_shift_needs_a_component_for_each_axis():
    with pytest.raises(UserError, match="a component for each"):
        fft.shift_transforms(torch.zeros(4, 3, dtype=torch.complex64), (4, 4), torch.zeros(3))


@pytest.mark.parametrize(("small", "large"), [(4, 7), (5, 8), (5, 9), (4, 4)])
def test_centres_stay_when_padding_and_cropping(small, large):
    image = torch.zeros(2, small, small + 1)
    image[:, small // 2, (small + 1) // 2] = 1
    padded = fft.pad_centred(image, (large, large + 2), value=0.5)
    assert padded[0, large // 2, (large + 2) // 2] == 1
    assert padded.sum() == 2 + 0.5 * 2 * (large * (large + 2) - small * (small + 1))
    torch.testing.assert_close(fft.crop_centred(padded, (small, small + 1)), image)


def test_padding_does_not_crop_and_cropping_does_not_pad():
    with pytest.raises(UserError, match="must not be below"):
        fft.pad_centred(torch.zeros(4, 4), (3, 5))
    with pytest.raises(UserError, match="must not exceed"):
        fft.crop_centred(torch.zeros(4, 4), (3, 5))
    with pytest.raises(UserError, match="positive sizes"):
        fft.rescale_images(torch.zeros(4, 4), (3, 0))


def test_one_axis_crops_and_pads_too():
    line = torch.randn(2, 12, dtype=torch.float64)
    cropped = fft.rfft_crop(torch.fft.rfft(line), (12,), (8,)) * (8 / 12)
    torch.testing.assert_close(torch.fft.irfft(cropped), fft.rescale_images(line, (8,)))
    padded = fft.rfft_pad(torch.fft.rfft(line), (12,), (18,)) * 1.5
    torch.testing.assert_close(torch.fft.irfft(padded, n=18), fft.rescale_images(line, (18,)))
