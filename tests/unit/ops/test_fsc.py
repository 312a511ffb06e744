import math

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from verglas.errors import UserError
from verglas.ops import fsc
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.statistics import fourier_shells


def noisy_pair(shape=(24, 24, 24), noise=0.5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(shape, generator=generator, dtype=dtype)
    for axis in range(len(shape)):
        signal = signal + signal.roll(1, axis) + signal.roll(-1, axis)
    signal /= signal.std()
    return tuple(signal + noise * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))


def direct_fsc(a, b):
    """The definition, a shell at a time, over the half transform."""
    n = a.shape[0]
    first, second = np.fft.rfftn(a), np.fft.rfftn(b)
    k = [np.fft.fftfreq(n, 1 / n)] * (a.ndim - 1) + [np.fft.rfftfreq(n, 1 / n)]
    radius = np.sqrt(sum(g**2 for g in np.meshgrid(*k, indexing="ij")))
    out = []
    for s in range(n // 2 + 1):
        here = (radius >= s - 0.5) & (radius < s + 0.5)
        cross = (first[here] * second[here].conj()).real.sum()
        out.append(cross / math.sqrt((abs(first[here]) ** 2).sum() * (abs(second[here]) ** 2).sum()))
    return np.array(out)


@pytest.mark.parametrize("shape", [(12, 12, 12), (11, 11, 11), (16, 16)])
def test_curve_is_the_definition(shape):
    a, b = noisy_pair(shape)
    frequency, curve = fsc.fourier_shell_correlation(a, b, 2.0)
    np.testing.assert_allclose(frequency, np.arange(shape[0] // 2 + 1) / (2.0 * shape[0]))
    np.testing.assert_allclose(curve, direct_fsc(a.numpy(), b.numpy()), atol=1e-12)
    _, same = fsc.fourier_shell_correlation(a, 3 * a, 2.0)
    np.testing.assert_allclose(same, 1.0)


def test_shells_of_uneven_boxes_have_equal_resolution():
    # A plane wave of period 6 pixels along the short side lies in the shell of that resolution.
    wave = torch.cos(2 * math.pi * torch.arange(12.0) / 6)[:, None].expand(12, 24)
    noise = 0.05 * torch.randn(2, 12, 24, generator=torch.Generator().manual_seed(0))
    frequency, curve = fsc.fourier_shell_correlation(wave + noise[0], wave + noise[1], 1.0)
    assert len(frequency) == 13
    assert float(curve[4]) > 0.99
    assert float(frequency[1 + int(curve[1:].argmax())]) == pytest.approx(1 / 6)


@pytest.mark.relion
@pytest.mark.parametrize("size", [32, 64])
def test_curve_agrees_with_relion(tmp_path, relion, size):
    halves = noisy_pair((size,) * 3, noise=1.0)
    for name, half in zip("ab", halves, strict=True):
        with mrcfile.new(tmp_path / f"{name}.mrc") as mrc:
            mrc.set_data(half.numpy().astype(np.float32))
            mrc.voxel_size = 1.5
    relion_output = relion("relion_image_handler", "--i", "a.mrc", "--fsc", "b.mrc", "--angpix", 1.5)
    (tmp_path / "fsc.star").write_text(relion_output[relion_output.index("data_") :])
    theirs = starfile.read(tmp_path / "fsc.star")
    frequency, curve = fsc.fourier_shell_correlation(*(half.float() for half in halves), 1.5)
    assert len(theirs) == len(curve)
    np.testing.assert_allclose(curve, theirs["rlnFourierShellCorrelation"], atol=1e-3)
    # RELION writes 999 Å for the shell of the mean
    np.testing.assert_allclose(frequency[1:], theirs["rlnResolution"][1:], atol=1e-5)


def test_mask_is_multiplied_in():
    a, b = noisy_pair()
    mask = soft_sphere_mask((24, 24, 24), 6.0, 3.0).double()
    _, masked = fsc.fourier_shell_correlation(a, b, 1.0, mask)
    _, expected = fsc.fourier_shell_correlation(a * mask, b * mask, 1.0)
    torch.testing.assert_close(masked, expected)


def test_cone_axes_are_emclaritys():
    axes = fsc.cone_axes()
    assert axes.shape == (37, 3)
    torch.testing.assert_close(axes.norm(dim=-1), torch.ones(37))
    polar = torch.rad2deg(torch.acos(axes[:, 2].clamp(-1, 1))).round().int().tolist()
    assert sorted(polar) == [0] + 12 * [30] + 12 * [60] + 12 * [90]


def test_cones_see_the_resolution_of_their_direction():
    # b agrees with a along z only below shell 5, and everywhere else to Nyquist.
    n = 32
    generator = torch.Generator().manual_seed(5)
    a, c = (torch.randn(n, n, n, generator=generator, dtype=torch.float64) for _ in range(2))
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    kx = torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
    radius = torch.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + kx**2)
    steep = (k[:, None, None].abs() > 0.5 * radius) & (radius >= 5.5)
    b = torch.fft.irfftn(torch.where(steep, torch.fft.rfftn(c), torch.fft.rfftn(a)), s=(n,) * 3)
    axes = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    frequency, curves = fsc.conical_fsc(a, b, 1.0, axes, half_angle_deg=25.0)
    assert curves.shape == (3, 17)
    resolution = fsc.resolution_at(frequency, curves, 0.5)
    assert float(resolution[0]) == pytest.approx(n / 5.5, rel=0.1)
    assert resolution[1:].tolist() == [2.0, 2.0]
    # a cone that holds everything is the plain curve
    _, whole = fsc.conical_fsc(a, b, 1.0, axes[:1], half_angle_deg=90.0)
    torch.testing.assert_close(whole[0], fsc.fourier_shell_correlation(a, b, 1.0)[1])
    _, standard = fsc.conical_fsc(a, b, 1.0)
    assert standard.shape == (37, 17)


def test_cone_is_its_definition():
    a, b = noisy_pair((10, 10, 10))
    axis = np.array([1.0, 2.0, -0.5])
    _, curves = fsc.conical_fsc(a, b, 1.0, torch.tensor(axis)[None], half_angle_deg=40.0)
    k, kx = np.fft.fftfreq(10, 0.1), np.fft.rfftfreq(10, 0.1)
    z, y, x = np.meshgrid(k, k, kx, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    cosine = abs(x * axis[0] + y * axis[1] + z * axis[2]) / np.linalg.norm(axis)
    first, second = np.fft.rfftn(a.numpy()), np.fft.rfftn(b.numpy())
    for s in range(1, 6):
        here = (np.floor(radius + 0.5) == s) & (cosine >= math.cos(math.radians(40)) * radius)
        cross = (first[here] * second[here].conj()).real.sum()
        power = (abs(first[here]) ** 2).sum() * (abs(second[here]) ** 2).sum()
        assert float(curves[0, s]) == pytest.approx(cross / math.sqrt(power))


def test_resolution_is_read_by_linear_interpolation():
    frequency = torch.arange(6) / 60.0
    falling = torch.tensor([1.0, 0.9, 0.8, 0.3, 0.1, 0.6])
    # 0.5 lies at 2 + 0.3 / 0.5 shells
    assert float(fsc.resolution_at(frequency, falling, 0.5)) == pytest.approx(60 / 2.6)
    curves = torch.stack([torch.ones(6), torch.zeros(6), falling])
    assert fsc.resolution_at(frequency, curves, 0.5).tolist() == pytest.approx([12.0, math.inf, 60 / 2.6])


def test_random_phases_keep_amplitudes_and_the_inner_shells():
    a, _ = noisy_pair((17, 16, 15))
    random = fsc.randomise_phases(a, 4, seed=1)
    assert random.dtype == a.dtype
    before, after = torch.fft.rfftn(a), torch.fft.rfftn(random)
    torch.testing.assert_close(after.abs(), before.abs(), rtol=1e-9, atol=1e-9)
    shells = fourier_shells(tuple(a.shape))
    torch.testing.assert_close(after[shells < 4], before[shells < 4])
    cosine = torch.cos(torch.angle(after[shells >= 4]) - torch.angle(before[shells >= 4]))
    assert abs(float(cosine.mean())) < 0.06
    assert torch.equal(random, fsc.randomise_phases(a, 4, seed=1))
    assert not torch.equal(random, fsc.randomise_phases(a, 4, seed=2))


def test_correction_removes_what_the_mask_adds():
    # Independent noise in a tight mask correlates near the origin's shells by the mask alone.
    generator = torch.Generator().manual_seed(3)
    shape = (48, 48, 48)
    signal = torch.zeros(shape, dtype=torch.float64)
    spectrum = torch.fft.rfftn(torch.randn(shape, generator=generator, dtype=torch.float64))
    shells = fourier_shells(shape)
    signal = torch.fft.irfftn(torch.where(shells < 8, spectrum, 0), s=shape)
    halves = [5 * signal + torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    mask = soft_sphere_mask(shape, 9.0, 1.0).double()
    frequency, corrected, masked, random = fsc.phase_randomised_fsc(*halves, mask, 1.0, 48 / 7, seed=4)
    assert float(masked[3:6].min()) > 0.85
    torch.testing.assert_close(corrected[:9], masked[:9])
    expected = ((masked - random) / (1 - random))[9:].clamp(min=0)
    torch.testing.assert_close(corrected[9:], torch.where(random[9:] > masked[9:], 0.0, expected))
    assert float(corrected[9:14].mean()) < float(masked[9:14].mean())
    assert torch.equal(corrected, fsc.phase_randomised_fsc(*halves, mask, 1.0, 48 / 7, seed=4)[1])
    assert len(frequency) == 25


def test_information_curves_are_van_heels():
    counts = fsc.count_shell_pixels((32, 32, 32))
    assert counts[0] == 1
    assert counts[1] == 18
    assert float(counts.sum()) == pytest.approx(4 / 3 * math.pi * 16.5**3, rel=0.03)
    n = counts.double() / 2
    half_bit = fsc.information_threshold(counts.double())
    expected = (0.2071 + 1.9102 / n.sqrt()) / (1.2071 + 0.9102 / n.sqrt())
    torch.testing.assert_close(half_bit, expected, atol=2e-4, rtol=0)
    one_bit = fsc.information_threshold(counts.double(), bits=1.0)
    torch.testing.assert_close(
        one_bit, (0.5 + 2.4142 / n.sqrt()) / (1.5 + 1.4142 / n.sqrt()), atol=2e-4, rtol=0
    )
    symmetric = fsc.information_threshold(counts.double(), symmetry_order=4)
    assert bool((symmetric >= half_bit).all())
    image = fsc.count_shell_pixels((8, 8))
    assert image.tolist()[:3] == [1, 8, 12]


def test_dtype_follows_the_maps_and_bad_input_is_told():
    a, b = noisy_pair((8, 8, 8), dtype=torch.float32)
    frequency, curve = fsc.fourier_shell_correlation(a, b, 1.0)
    assert frequency.dtype == curve.dtype == torch.float32
    assert not fsc.fourier_shell_correlation(a, torch.zeros_like(a), 1.0)[1].any()
    with pytest.raises(UserError, match=r"equal shape; got \(8, 8, 8\), \(7, 8, 8\)"):
        fsc.fourier_shell_correlation(a, b[1:], 1.0)
    with pytest.raises(UserError, match="`pixel_size_angstrom` must be positive; got 0"):
        fsc.fourier_shell_correlation(a, b, 0.0)
    with pytest.raises(UserError, match="between 0 and 90"):
        fsc.conical_fsc(a, b, 1.0, half_angle_deg=0.0)
    with pytest.raises(UserError, match="none of which is zero"):
        fsc.conical_fsc(a, b, 1.0, torch.zeros(1, 3))
    with pytest.raises(UserError, match="must lie between 2 and 8; got 1"):
        fsc.phase_randomised_fsc(a, b, torch.ones_like(a), 1.0, 1.0)
    with pytest.raises(UserError, match="`bits`"):
        fsc.information_threshold(torch.ones(3), bits=0.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_follows_the_input(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    a, b = noisy_pair((8, 8, 8), dtype=torch.float32)
    there = [half.to(device) for half in (a, b)]
    mask = torch.ones(8, 8, 8)
    pairs = [
        (fsc.fourier_shell_correlation(*there, 1.0), fsc.fourier_shell_correlation(a, b, 1.0)),
        (fsc.conical_fsc(*there, 1.0), fsc.conical_fsc(a, b, 1.0)),
        (
            fsc.phase_randomised_fsc(*there, mask.to(device), 1.0, 4.0),
            fsc.phase_randomised_fsc(a, b, mask, 1.0, 4.0),
        ),
    ]
    for others, heres in pairs:
        for other, here in zip(others, heres, strict=True):
            assert other.device.type == device
            torch.testing.assert_close(other.cpu(), here, rtol=1e-3, atol=1e-4)
    assert fsc.resolution_at(*pairs[0][0], 0.5).device.type == device
