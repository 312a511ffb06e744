import mrcfile
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from verglas.errors import UserError
from verglas.ops import statistics


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(8, 9), (7, 9)])
def test_median_and_mad_are_scipys(shape):
    values = normal(2, 3, *shape)
    centre, sd = statistics.robust_mean_sd(values)
    flat = values.numpy().reshape(2, 3, -1)
    np.testing.assert_allclose(centre, np.median(flat, axis=-1))
    np.testing.assert_allclose(sd, stats.median_abs_deviation(flat, axis=-1, scale="normal"), rtol=1e-7)
    volume, _ = statistics.robust_mean_sd(values, dims=3)
    assert volume.shape == (2,)


def test_outliers_do_not_move_robust_statistics():
    values = 5 + 2 * normal(200, 200, dtype=torch.float32)
    values[:20] = 1e6
    centre, sd = statistics.robust_mean_sd(values)
    assert float(centre) == pytest.approx(5, abs=0.4)
    assert float(sd) == pytest.approx(2, abs=0.4)
    clipped = statistics.clip_outliers(values, 3.0)
    assert float(clipped.max()) == pytest.approx(float(centre + 3 * sd))
    torch.testing.assert_close(
        clipped[50:], values[50:].clamp(float(centre - 3 * sd), float(centre + 3 * sd))
    )


def test_outliers_among_few_counts_are_clipped_and_counts_are_left():
    values = torch.poisson(torch.full((100, 100), 0.3), generator=torch.Generator().manual_seed(1))
    assert float(values.median()) == 0
    hot = values.clone()
    hot[3, 4] = 50
    clipped = statistics.clip_outliers(hot, 5.0)
    assert float(clipped[3, 4]) < 5
    assert (clipped == values).double().mean() > 0.995


def test_hot_pixels_become_noise():
    ramp = torch.linspace(0, 50, 128).expand(2, 128, 128)
    images = ramp + normal(2, 128, 128, dtype=torch.float32)
    hot = torch.zeros(2, 128, 128, dtype=torch.bool)
    hot[0, 10, 20] = hot[0, 11, 20] = hot[1, 0, 127] = hot[1, 70, 64] = True
    spoiled = torch.where(hot, 45800.0, images)
    spoiled[1, 70, 64] = -30.0
    spoiled[0, 11, 20] = torch.nan
    clean, outlier = statistics.replace_outliers(spoiled)
    assert torch.equal(outlier, hot)
    assert torch.equal(clean[~hot], images[~hot])
    assert float((clean - ramp)[hot].abs().max()) < 5
    assert clean.dtype == torch.float32
    alone = torch.full((9, 9), torch.nan)
    alone[8] = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.5, 1.0, -1.0, 1.0, -1.0])
    filled, _ = statistics.replace_outliers(alone, size=3)
    assert bool((filled.abs() < 8).all())
    again, _ = statistics.replace_outliers(spoiled)
    assert torch.equal(clean, again)
    other, _ = statistics.replace_outliers(spoiled, seed=1)
    assert not torch.equal(clean, other)


def test_hot_pixels_of_a_real_micrograph(shared_data):
    path = shared_data / "micrograph_epu" / "fei-extended.mrc"
    with mrcfile.mmap(path, permissive=True) as mrc:
        image = torch.from_numpy(np.asarray(mrc.data[:1000, :1000], dtype=np.float32))
    clean, outlier = statistics.replace_outliers(image)
    assert 0 < int(outlier.sum()) < 1e-3 * image.numel()
    centre, sd = statistics.robust_mean_sd(clean)
    assert float((clean - centre).abs().max() / sd) < 12
    assert torch.equal(clean[~outlier], image[~outlier])


@pytest.mark.parametrize("shape", [(10, 14), (9, 9), (6, 8, 7)])
def test_power_spectrum_is_the_mean_over_the_whole_transform(shape):
    values = normal(2, *shape)
    dims = len(shape)
    frequency, power = statistics.power_spectrum(values, 2.0, dims)
    longest = max(shape)
    np.testing.assert_allclose(frequency, np.arange(longest // 2 + 1) / (2.0 * longest))
    k = np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")
    shells = np.floor(np.sqrt(sum(g**2 for g in k)) * longest + 0.5).astype(int)
    for ours, part in zip(power, values.numpy(), strict=True):
        full = abs(np.fft.fftn(part)) ** 2 / part.size
        expected = ndimage.mean(full, shells, np.arange(longest // 2 + 1))
        np.testing.assert_allclose(ours, np.nan_to_num(expected), rtol=1e-9)


def test_bad_input_is_told():
    image = torch.zeros(4, 4)
    with pytest.raises(UserError, match="at least one pixel"):
        statistics.robust_mean_sd(torch.zeros(0, 4))
    with pytest.raises(UserError, match="`limit_sd` must be positive; got 0"):
        statistics.clip_outliers(image, 0.0)
    with pytest.raises(UserError, match="must be an odd number of pixels; got 4"):
        statistics.replace_outliers(image, size=4)
    with pytest.raises(UserError, match="`pixel_size_angstrom` must be positive"):
        statistics.power_spectrum(image, -1.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_follows_the_input(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    images = normal(2, 16, 16, dtype=torch.float32)
    images[0, 3, 4] = 1e4
    there = images.to(device)
    calls = [
        lambda v: statistics.robust_mean_sd(v),
        lambda v: (statistics.clip_outliers(v, 3.0),),
        lambda v: statistics.replace_outliers(v),
        lambda v: statistics.power_spectrum(v, 1.0),
    ]
    for call in calls:
        for here, other in zip(call(images), call(there), strict=True):
            assert other.device.type == device
            torch.testing.assert_close(other.cpu(), here, rtol=1e-4, atol=1e-4)
