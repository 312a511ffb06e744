import math

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops import peaks


def gaussians(shape, centres, sigma=1.5, heights=None, dtype=torch.float64):
    grids = torch.meshgrid(*[torch.arange(n, dtype=dtype) for n in shape], indexing="ij")
    out = torch.zeros(shape, dtype=dtype)
    for centre, height in zip(centres, heights or [1.0] * len(centres), strict=True):
        square = sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True))
        out += height * torch.exp(-square / (2 * sigma**2))
    return out


@pytest.mark.parametrize("d", [2, 3])
def test_peaks_come_highest_first_and_keep_their_distance(d):
    centres = [(5, 5, 5)[:d], (5, 9, 5)[:d], (14, 6, 9)[:d], (3, 15, 12)[:d]]
    density = gaussians((18,) * d, centres, sigma=1.0, heights=[1.0, 0.9, 0.5, 0.2])
    found, heights = peaks.find_peaks(density, count=10, radius=2.0, threshold=0.1)
    assert found.tolist() == [list(c) for c in centres]
    torch.testing.assert_close(heights, density[tuple(found.T)])
    far, _ = peaks.find_peaks(density, count=10, radius=4.5, threshold=0.1)
    assert far.tolist() == [list(c) for c in (centres[0], *centres[2:])]
    # exactly `radius` apart is far enough
    assert len(peaks.find_peaks(density, count=10, radius=4.0, threshold=0.1)[0]) == 4
    assert peaks.find_peaks(density, count=2, radius=2.0)[0].tolist() == [list(c) for c in centres[:2]]
    assert peaks.find_peaks(density, count=3, radius=2.0, threshold=2.0)[0].shape == (0, d)


def test_peaks_agree_with_masking_one_after_another():
    values = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    found, _ = peaks.find_peaks(values, count=30, radius=4.0)
    y, x = np.mgrid[:40, :40]
    work = values.numpy().copy()
    local = peaks.find_peaks(values, count=1600, radius=0.0)[0].numpy()
    allowed = np.zeros((40, 40), bool)
    allowed[tuple(local.T)] = True
    work[~allowed] = -1
    for position in found.tolist():
        best = np.unravel_index(work.argmax(), work.shape)
        assert list(best) == position
        work[(y - best[0]) ** 2 + (x - best[1]) ** 2 < 16] = -1


def test_what_is_not_finite_is_no_peak():
    values = torch.zeros(9, 9)
    values[2, 2], values[6, 6], values[4, 4] = math.nan, math.inf, 1.0
    found, heights = peaks.find_peaks(values, count=1, radius=1.0)
    assert found.tolist() == [[4, 4]]
    assert heights.tolist() == [1.0]


def test_maximum_of_each_map_within_a_distance():
    maps = torch.stack(
        [gaussians((15, 16), [(4, 12), (7, 9)], heights=[1.0, 0.6]), gaussians((15, 16), [(7, 8)])]
    )
    positions, heights = peaks.find_maximum(maps)
    assert positions.tolist() == [[4, 12], [7, 8]]
    torch.testing.assert_close(heights, torch.ones(2).double(), atol=0.2, rtol=0)
    near, _ = peaks.find_maximum(maps, max_distance=2.0)
    assert near.tolist() == [[7, 9], [7, 8]]
    volume, _ = peaks.find_maximum(gaussians((8, 9, 10), [(1, 2, 3)]), dims=3)
    assert volume.tolist() == [1, 2, 3]


@pytest.mark.parametrize("d", [2, 3])
def test_parabola_finds_the_top_of_any_quadratic(d):
    generator = torch.Generator().manual_seed(2)
    root = torch.rand(d, d, generator=generator, dtype=torch.float64) - 0.5
    curvature = root @ root.T + 0.5 * torch.eye(d)
    top = 4 + 0.4 * (torch.rand(d, generator=generator, dtype=torch.float64) - 0.5)
    grid = torch.stack(torch.meshgrid(*[torch.arange(9.0, dtype=torch.float64)] * d, indexing="ij"), -1) - top
    values = 3.0 - torch.einsum("...i,ij,...j->...", grid, curvature, grid)
    position, height = peaks.refine_peaks(values, torch.full((1, d), 4))
    torch.testing.assert_close(position[0], top)
    torch.testing.assert_close(height[0], torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize(("method", "tolerance"), [("parabola", 0.04), ("centroid", 0.2), ("fourier", 2e-4)])
@pytest.mark.parametrize("d", [2, 3])
def test_refinement_finds_gaussians_between_pixels(method, tolerance, d):
    generator = torch.Generator().manual_seed(3)
    shape = (24, 25, 26)[:d]
    centres = 12 + torch.rand(2, 3, d, generator=generator, dtype=torch.float64) * 2 - 1
    maps = torch.stack([torch.stack([gaussians(shape, [c]) for c in row]) for row in centres])
    whole, _ = peaks.find_maximum(maps, d)
    positions, heights = peaks.refine_peaks(maps, whole, method)
    assert float((positions - centres).abs().max()) < tolerance
    assert float((whole - centres).abs().max()) > 0.2
    if method == "fourier":
        torch.testing.assert_close(heights, torch.ones(2, 3).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(12, 15), (9, 8, 10)])
def test_fourier_refinement_finds_an_exact_shift(shape):
    # A map moved by its Fourier phases has its interpolated top exactly there.
    d = len(shape)
    generator = torch.Generator().manual_seed(4)
    shift = torch.rand(d, generator=generator, dtype=torch.float64) - 0.5
    power = torch.fft.fftn(gaussians(shape, [[n // 2 for n in shape]], sigma=0.8)).abs()
    phase = torch.zeros(())
    for axis, n in enumerate(shape):
        k = torch.fft.fftfreq(n, dtype=torch.float64)
        power = torch.where((k.abs() == 0.5).reshape([-1 if a == axis else 1 for a in range(d)]), 0, power)
        phase = phase - 2 * math.pi * (k * (n // 2 + shift[axis])).reshape(
            [-1 if a == axis else 1 for a in range(d)]
        )
    values = torch.fft.ifftn(power * torch.exp(1j * phase)).real
    position, _ = peaks.refine_peaks(values, peaks.find_maximum(values, d)[0][None], "fourier")
    expected = torch.tensor([n // 2 for n in shape]) + shift
    torch.testing.assert_close(position[0], expected, atol=1e-9, rtol=0)


def test_several_peaks_of_each_map():
    centres = [(6.3, 7.8), (15.6, 4.2), (14.1, 16.4)]
    maps = torch.stack([gaussians((22, 22), centres)] * 2)
    found = torch.stack([peaks.find_peaks(m, 3, 3.0)[0] for m in maps])
    positions, heights = peaks.refine_peaks(maps, found, "fourier")
    assert positions.shape == (2, 3, 2)
    assert heights.shape == (2, 3)
    expected = torch.tensor(centres, dtype=torch.float64)
    nearest = (positions[0, :, None] - expected).norm(dim=-1).min(-1).values
    assert float(nearest.max()) < 1e-3


@pytest.mark.parametrize("method", ["parabola", "centroid", "fourier"])
def test_peaks_without_a_top_stay(method):
    flat = torch.zeros(8, 8)
    position, height = peaks.refine_peaks(flat, torch.tensor([[3, 4]]), method)
    assert position.tolist() == [[3.0, 4.0]]
    assert height.tolist() == [0.0]
    assert position.dtype == torch.float32
    corner = gaussians((8, 8), [(0, 0)]).float()
    position, _ = peaks.refine_peaks(corner, torch.tensor([[0, 0]]), method)
    assert float(position.abs().max()) <= 1.0


def test_bad_input_is_told():
    with pytest.raises(UserError, match="must be an image or a volume"):
        peaks.find_peaks(torch.zeros(3), 1, 1.0)
    with pytest.raises(UserError, match="`count` and `radius` must be zero or more; got -1"):
        peaks.find_peaks(torch.zeros(3, 3), -1, 1.0)
    with pytest.raises(UserError, match="do not fit maps"):
        peaks.refine_peaks(torch.zeros(2, 8, 8), torch.zeros(3, 1, 2, dtype=torch.long))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_follows_the_input(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    density = gaussians((16, 16), [(4.3, 5.2), (11.0, 9.4)]).float()
    found, heights = peaks.find_peaks(density.to(device), 2, 3.0)
    assert found.device.type == heights.device.type == device
    assert sorted(found.tolist()) == [[4, 5], [11, 9]]
    for method in ("parabola", "centroid", "fourier"):
        there, _ = peaks.refine_peaks(density.to(device), found, method)
        assert there.device.type == device
        here, _ = peaks.refine_peaks(density, found.cpu(), method)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
    assert peaks.find_maximum(density.to(device))[0].device.type == device
