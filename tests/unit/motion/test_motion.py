"""Motion, gain and sums against spots that were moved one by one, direct sums and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.unit.motion.cases import make_bad_camera, make_movie, make_truth
from verglas.algo.motion.bands import band_shape, read_band
from verglas.algo.motion.defects import choose_sources, find_defects
from verglas.algo.motion.estimate import Settings, estimate_motion
from verglas.algo.motion.field import fit_polynomial, shifts_on_axes
from verglas.algo.motion.gain import check_gain, turn_gain
from verglas.algo.motion.likelihood import align, limit_grid, make_grid, measure_powers, score_shifts
from verglas.algo.motion.sums import FrameSums, block_shifts, weight_by_exposure, weight_plainly
from verglas.algo.simulation.detector import make_camera
from verglas.errors import UserError
from verglas.model import MotionModel
from verglas.ops.dose import exposure_filter, power_normalised_weights
from verglas.ops.kernels.halve import halve_image, halve_reference
from verglas.ops.kernels.warp import add_displaced, count_blocks, displace_reference, read_from

PIXEL = 1.5


def estimate(frames, grid):
    shape = frames.shape[1:]
    low = band_shape(shape, PIXEL)
    bands = torch.stack([read_band(lambda top, bottom, f=f: f[top:bottom], shape, low) for f in frames])
    return estimate_motion(bands, low, shape, Settings(grid, PIXEL))


def error_pixels(model, truth):
    line = np.linspace(0.1, 0.9, 7)
    found = shifts_on_axes(model, None, line, line)
    x, y = np.meshgrid(line - 0.5, line - 0.5)
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    wanted = np.stack([truth.shifts_at(i, places)[:, ::-1] for i in range(len(truth))])
    difference = (found.reshape(wanted.shape) - wanted) / PIXEL
    difference -= difference.mean(0)
    return float(np.sqrt((difference**2).sum(-1).mean()))


def test_motion_that_varies_over_the_image_is_found():
    truth = make_truth(12, PIXEL)
    frames = make_movie((400, 480), truth, PIXEL)
    whole = error_pixels(estimate(frames, (1, 1, 12)).model, truth)
    local = error_pixels(estimate(frames, (4, 4, 4)).model, truth)
    # Without the local part it cannot be better than what varies; with it, a tenth of a pixel.
    assert whole > 0.4
    assert local < 0.12


def test_a_still_movie_is_found_still():
    truth = make_truth(6, PIXEL, drift=0.0, local=0.0)
    found = estimate(make_movie((384, 384), truth, PIXEL), (3, 3, 3))
    # What is left is noise: it falls with the side of the image.
    assert error_pixels(found.model, truth) < 0.12


def test_a_pattern_of_the_camera_does_not_hold_the_frames(monkeypatch):
    truth = make_truth(12, PIXEL, drift=3.0, local=0.0)
    camera = make_camera((256, 256), seed=7, gain_spread=0.2, hot_fraction=0.0, dead_fraction=0.0)
    frames = make_movie((256, 256), truth, PIXEL, camera=camera, density=1 / 1000)
    error = error_pixels(estimate(frames, (1, 1, 12)).model, truth)
    monkeypatch.setattr("verglas.algo.motion.estimate.weaken_pattern", lambda *_: 0.0)
    held = error_pixels(estimate(frames, (1, 1, 12)).model, truth)
    # The pattern of this camera holds them nearly where they are.
    assert held > 0.8
    assert error < 0.55 * held


def test_noise_alone_moves_little():
    frames = np.random.default_rng(0).poisson(2.0, (6, 256, 256)).astype(np.uint16)
    model = estimate(frames, (3, 3, 3)).model
    assert np.isfinite(model.trajectory_angstrom).all()
    assert np.isfinite(model.grid_angstrom).all()


def test_one_frame_has_no_motion():
    model = estimate(np.ones((1, 64, 64), np.uint16), (4, 4, 5)).model
    assert not model.is_local
    assert not model.trajectory_angstrom.any()


def test_few_nodes_in_time_make_the_way_smooth():
    truth = make_truth(10, PIXEL, local=0.0)
    model = estimate(make_movie((256, 256), truth, PIXEL), (1, 1, 4)).model
    assert error_pixels(model, truth) < 0.2
    # A natural spline through four nodes has no curvature at its ends.
    bend = np.diff(model.trajectory_angstrom, n=2, axis=0)
    assert np.abs(bend[0]).max() < np.abs(bend).max()


def test_gradient_and_information_are_those_of_the_likelihood():
    generator = torch.Generator().manual_seed(0)
    transforms = torch.fft.rfft2(torch.randn(3, 24, 32, generator=generator)).to(torch.complex128)
    grid = make_grid((24, 32), (2.0, 2.0), 0.2)
    weights = torch.where(grid.usable, torch.rand(24, 17, generator=generator), 0.0).double()
    shifts = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.1]], dtype=torch.float64, requires_grad=True)

    def likelihood(shifts):
        total = 0
        for one, (y, x) in zip(transforms, shifts, strict=True):
            phase = 2 * np.pi * (grid.y[:, None].double() * y + grid.x.double() * x)
            total = total + one * torch.exp(1j * phase)
        return (weights * total.abs() ** 2).sum()

    (slope,) = torch.autograd.grad(likelihood(shifts), shifts)
    gradient, information = score_shifts(transforms, grid, weights, shifts.detach())
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-5 * float(slope.abs().max()))
    hessian = torch.autograd.functional.hessian(likelihood, shifts.detach())
    mixed = sum(hessian[i, :, j] for i in range(3) for j in range(3) if i != j) / 6
    torch.testing.assert_close(information, 0.5 * (mixed + mixed.T), rtol=1e-4, atol=1e-3)


def test_sums_of_aligned_transforms_are_those_of_plain_torch():
    generator = torch.Generator().manual_seed(3)
    transforms = torch.fft.rfft2(torch.randn(4, 150, 40, generator=generator))
    grid = make_grid((150, 40), (2.0, 2.0), 0.2)
    shifts = 5 * torch.randn(4, 2, generator=generator, dtype=torch.float64)
    aligned = align(transforms, grid, shifts)
    own = (aligned.abs() ** 2).sum(0).double()
    common = aligned.sum(0).abs().double() ** 2 - own
    powers = measure_powers(transforms, grid, shifts)
    for found, wanted, count in zip(powers, (own, common), (4, 12), strict=True):
        expected = torch.bincount(grid.rings[grid.usable], wanted[grid.usable], minlength=len(found)) / count
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    # Some of the rows and columns, as the frequencies that tell most are.
    low, rows, columns = limit_grid(grid, 0.1)
    weights = torch.where(low.usable, 1.0, 0.0)
    gradient, information = score_shifts(transforms, low, weights, shifts, rows)
    whole = score_shifts(transforms[:, rows, :columns], low, weights, shifts)
    torch.testing.assert_close(gradient, whole[0])
    torch.testing.assert_close(information, whole[1])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_halved_image_is_that_of_plain_torch_and_has_the_same_low_frequencies(dtype):
    rng = np.random.default_rng(5)
    # The same all along the edges, which a transform takes for neighbours.
    image = np.pad(rng.poisson(6.0, (194, 252)), 4, constant_values=6).astype(dtype)
    gain = np.pad(rng.normal(1.0, 0.1, (194, 252)), 4, constant_values=1).astype(np.float32)
    corrected = torch.from_numpy(image * gain).float()

    def read_rows(top, bottom):
        return image[top:bottom]

    halved = halve_image(read_rows, image.shape, gain)
    torch.testing.assert_close(halved, halve_reference(corrected), rtol=1e-5, atol=1e-5)
    low = (64, 80)
    band = read_band(read_rows, image.shape, low, gain)
    whole = torch.fft.rfft2(corrected)[np.r_[0:32, 202 - 32 : 202], :41] * (64 * 80 / (202 * 260))
    inside = (torch.fft.fftfreq(64).abs()[:, None] < 0.4) & (torch.fft.rfftfreq(80) < 0.4)
    inside[0, 0] = False
    # Nearly all of what comes in from higher frequencies was smoothed away.
    rms = (band - whole)[inside].abs().square().mean().sqrt()
    assert float(rms) < 0.01 * float(whole[inside].abs().square().mean().sqrt())


def test_polynomial_is_the_spline_where_it_can_be():
    generator = np.random.default_rng(2)
    nodes = np.zeros((2, 3, 3, 3))
    # Linear in time and over the image: both say the same.
    time, y, x = np.meshgrid([0, 0.5, 1], [0, 0.5, 1], [0, 0.5, 1], indexing="ij")
    slopes = generator.normal(0, 3, (2, 2))
    for c in range(2):
        nodes[c] = time * (slopes[c, 0] * (y - 0.5) + slopes[c, 1] * (x - 0.5))
    coefficients, error = fit_polynomial(MotionModel(np.zeros((9, 2)), nodes))
    assert error < 1e-9
    table = coefficients.reshape(2, 6, 3)  # x and y component; 1, x, x², y, y², xy; z, z², z³
    expected = np.zeros((2, 6, 3))
    for component, c in ((0, 1), (1, 0)):
        expected[component, 3, 0] = slopes[c, 0] / 8
        expected[component, 1, 0] = slopes[c, 1] / 8
    np.testing.assert_allclose(table, expected, atol=1e-9)


@pytest.mark.parametrize(("turns", "flip"), [(0, "none"), (1, "none"), (2, "y"), (3, "x")])
def test_gain_in_a_wrong_orientation_is_told(turns, flip):
    camera = make_bad_camera((192, 192))
    truth = make_truth(8, PIXEL)
    mean = make_movie((192, 192), truth, PIXEL, camera=camera).mean(0, dtype=np.float32)
    check = check_gain(mean, turn_gain(camera.gain, turns, flip))
    assert check.is_wrong == ((turns, flip) != (0, "none"))
    restored = turn_gain(turn_gain(camera.gain, turns, flip), *check.best)
    np.testing.assert_array_equal(restored, camera.gain)


def test_gain_of_another_size_is_refused():
    with pytest.raises(UserError, match="one size"):
        check_gain(np.ones((8, 8), np.float32), np.ones((8, 9), np.float32))


def test_hot_and_dead_pixels_are_found_and_mended_from_good_ones():
    camera = make_bad_camera((256, 256))
    total = make_movie((256, 256), make_truth(10, PIXEL), PIXEL, counts=10, camera=camera).sum(
        0, dtype=np.float32
    )
    bad = find_defects(total * camera.gain)
    wrong = camera.hot | camera.dead
    assert wrong.sum() > 15
    assert bad[wrong].mean() > 0.95
    assert (bad & ~wrong).sum() < 5
    places, sources = choose_sources(bad)
    np.testing.assert_array_equal(np.sort(places), np.flatnonzero(bad))
    assert not bad.ravel()[sources].any()


@pytest.mark.parametrize("shape", [(70, 133), (16, 16), (200, 97)])
def test_kernel_and_plain_torch_displace_alike(shape):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(shape, generator=generator)
    shifts = 4 * torch.randn(*count_blocks(shape), 2, generator=generator)
    sums = torch.zeros(2, *shape)
    add_displaced(read_from([image]), shifts[None], torch.tensor([[1.0, -0.5]]), sums)
    expected = displace_reference(image, shifts)
    torch.testing.assert_close(sums[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sums[1], -0.5 * expected, atol=1e-5, rtol=1e-5)
    counts, gain = torch.randint(0, 9, shape, generator=generator), torch.rand(shape, generator=generator)
    sums.zero_()
    integers = counts.numpy().astype(np.uint8)
    add_displaced(lambda _, top, bottom: integers[top:bottom], shifts[None], torch.ones(1, 2), sums, gain)
    torch.testing.assert_close(sums[1], displace_reference(counts * gain, shifts), atol=1e-5, rtol=1e-5)


def test_displaced_image_is_the_spline_of_scipy():
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(96, 96)), 1.5).astype(np.float32)
    model = MotionModel(np.array([[2.3, -4.6]]), np.zeros((2, 1, 1, 1)))
    sums = torch.zeros(1, 96, 96)
    shifts = block_shifts(model, 0, (96, 96), 1.0)
    add_displaced(read_from([torch.from_numpy(image)]), shifts[None], torch.ones(1, 1), sums)
    expected = ndimage.shift(image, (-2.3, 4.6), order=5, mode="nearest")
    middle = (slice(10, -10), slice(10, -10))
    assert np.abs(sums[0].numpy() - expected)[middle].max() < 0.01 * image.std()


def test_sums_weighted_by_exposure_are_those_of_filtered_frames():
    rng = np.random.default_rng(4)
    frames = torch.from_numpy(rng.normal(5, 1, (7, 64, 80)).astype(np.float32))
    still = MotionModel(np.zeros((7, 2)), np.zeros((2, 1, 1, 1)))
    weighting = weight_by_exposure(7, PIXEL, 1.5, 2.0)
    assert weighting.factors.shape[1] < 7
    sums = FrameSums(still, (64, 80), PIXEL, weighting, even=True)
    sums.add(range(7), read_from(list(frames)))
    torch.testing.assert_close(sums.plain(), frames.sum(0), atol=2e-2, rtol=1e-3)
    torch.testing.assert_close(sums.even(), frames[1::2].sum(0))
    filters = exposure_filter((64, 80), PIXEL, 2.0 + 1.5 * torch.arange(1, 8, dtype=torch.float64))
    weights = np.sqrt(7) * power_normalised_weights(filters)
    expected = torch.fft.irfft2((weights * torch.fft.rfft2(frames.double())).sum(0), s=(64, 80))
    assert float((sums.weighted() - expected).abs().max()) < 0.02 * float(expected.std())
    assert float(sums.weighted().mean()) == pytest.approx(float(frames.sum(0).mean()), rel=1e-3)


def test_plain_weights_add_frames():
    assert weight_plainly(3).curves is None
    sums = FrameSums(MotionModel(np.zeros((3, 2)), np.zeros((2, 1, 1, 1))), (32, 32), 1.0, weight_plainly(3))
    sums.add(range(3), read_from([torch.full((32, 32), float(i)) for i in range(3)]))
    torch.testing.assert_close(sums.weighted(), torch.full((32, 32), 3.0))
