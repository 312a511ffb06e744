import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops import correlation


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(a, b, shift):
    """Pearson correlation of a with b moved by `shift`."""
    moved = np.roll(b.numpy(), shift, axis=tuple(range(b.ndim)))
    return np.corrcoef(a.numpy().ravel(), moved.ravel())[0, 1]


@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (5, 6, 7), (6, 5, 4)])
def test_every_shift_has_its_correlation_coefficient(shape):
    a, b = random(*shape), random(*shape, seed=1)
    scores = correlation.cross_correlate(a, b, len(shape))
    for index in np.ndindex(*shape):
        shift = [i - n // 2 for i, n in zip(index, shape, strict=True)]
        assert float(scores[index]) == pytest.approx(direct(a, b, shift), abs=1e-12)


@pytest.mark.parametrize("correlate", [correlation.cross_correlate, correlation.phase_correlate])
@pytest.mark.parametrize("shape", [(16, 21), (9, 10, 12)])
def test_peak_tells_how_the_first_is_moved(correlate, shape):
    b = random(*shape)
    shift = (3, -4, 2)[: len(shape)]
    scores = correlate(b.roll(shift, tuple(range(len(shape)))), b, len(shape))
    peak = np.unravel_index(int(scores.argmax()), shape)
    assert [int(p) - n // 2 for p, n in zip(peak, shape, strict=True)] == list(shift)
    assert float(scores.max()) == pytest.approx(1.0)


def test_weights_filter_both_maps():
    a, b = random(12, 14), random(12, 14, seed=1)
    weights = random(12, 8, seed=2)
    ky = (-torch.arange(12)) % 12
    for column in (0, 7):  # a filter of a real map has the symmetry of its transform
        weights[:, column] = (weights[:, column] + weights[ky, column]) / 2

    def filtered(m):
        return torch.fft.irfft2(torch.fft.rfft2(m) * weights.sqrt(), s=(12, 14))

    expected = correlation.cross_correlate(filtered(a), filtered(b))
    torch.testing.assert_close(correlation.cross_correlate(a, b, weights=weights), expected)
    same = correlation.phase_correlate(a, a, weights=weights)
    assert float(same[6, 7]) == pytest.approx(1.0)


def test_phase_correlation_ignores_amplitudes():
    a = random(16, 16)
    blurred = torch.fft.irfft2(torch.fft.rfft2(a) * torch.linspace(1, 0.01, 9), s=(16, 16))
    scores = correlation.phase_correlate(blurred, a)
    assert float(scores[8, 8]) == pytest.approx(1.0)
    assert float(scores.flatten().sort().values[-2]) < 1e-10


@pytest.mark.parametrize(("shape", "small"), [((10, 9), (4, 5)), ((8, 7, 9), (3, 4, 3))])
def test_local_scores_are_weighted_pearson_coefficients(shape, small):
    dims = len(shape)
    density = random(*shape) + torch.linspace(0, 5, shape[-1])
    template, mask = random(*small, seed=1), random(*small, seed=2)
    mask[(0,) * dims] = 0
    scores = correlation.local_correlate(density, template, mask, dims)
    assert scores.shape == shape
    for index in np.ndindex(*shape):
        roll = [n // 2 - i for i, n in zip(index, small, strict=True)]
        part = density.roll(roll, tuple(range(dims)))[tuple(slice(0, n) for n in small)].numpy()
        w, t = mask.numpy(), template.numpy()
        pm, tm = np.average(part, weights=w), np.average(t, weights=w)
        expected = (w * (part - pm) * (t - tm)).sum() / np.sqrt(
            (w * (part - pm) ** 2).sum() * (w * (t - tm) ** 2).sum()
        )
        assert float(scores[index]) == pytest.approx(expected, abs=1e-9)


def test_local_scores_find_a_faint_copy_beside_gold():
    density = 0.01 * random(40, 40, 40, dtype=torch.float32)
    template, mask = random(9, 9, 9, seed=1, dtype=torch.float32), torch.ones(9, 9, 9)
    density[10:19, 20:29, 5:14] += 0.05 * template
    density[25:30, 25:30, 25:30] += 2.0
    scores = correlation.local_correlate(density, template, mask)
    assert np.unravel_index(int(scores.argmax()), (40, 40, 40)) == (14, 24, 9)
    batch = correlation.local_correlate(
        density[None, 5:25, 15:35, :20], torch.stack([template, -template]), mask
    )
    assert batch.shape == (2, 20, 20, 20)
    torch.testing.assert_close(batch[0], -batch[1])
    assert float(batch[0].max()) > 0.95
    assert not correlation.local_correlate(torch.ones(12, 12, 12), template, mask).any()


def test_batches_dtype_and_bad_input():
    a = random(2, 3, 8, 8, dtype=torch.float32)
    scores = correlation.cross_correlate(a, a[:, :1])
    assert scores.shape == (2, 3, 8, 8)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[:, 0, 4, 4], torch.ones(2))
    assert not correlation.cross_correlate(a, torch.ones(8, 8)).any()
    assert not correlation.phase_correlate(a, torch.ones(8, 8)).any()
    with pytest.raises(UserError, match="must have 2 equal sizes"):
        correlation.cross_correlate(a, a[..., 1:])
    with pytest.raises(UserError, match="must have one shape that fits into"):
        correlation.local_correlate(random(4, 4, 4), random(5, 4, 4), random(5, 4, 4))
    with pytest.raises(UserError, match="it is empty"):
        correlation.local_correlate(random(4, 4, 4), random(3, 3, 3), torch.zeros(3, 3, 3).double())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_follows_the_input(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    a, b = random(9, 10, dtype=torch.float32), random(9, 10, seed=1, dtype=torch.float32)
    for function in (correlation.cross_correlate, correlation.phase_correlate):
        out = function(a.to(device), b.to(device))
        assert out.device.type == device
        torch.testing.assert_close(out.cpu(), function(a, b), rtol=1e-4, atol=1e-5)
    small = (b[:4, :5], torch.ones(4, 5))
    out = correlation.local_correlate(a.to(device), *[m.to(device) for m in small], dims=2)
    torch.testing.assert_close(
        out.cpu(), correlation.local_correlate(a, *small, dims=2), rtol=1e-4, atol=1e-5
    )
