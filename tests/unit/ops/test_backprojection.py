"""Back-projection: kernels against each other, filters against their definitions."""

import math

import numpy as np
import pytest
import torch

from verglas.ops.backprojection import (
    ViewFrames,
    VoxelGrid,
    angular_steps,
    backproject,
    exact_filter,
    ramp_filter,
    sirt_filter,
    spline_response,
)
from verglas.ops.kernels.backproject import backproject_rows, backproject_rows_reference
from verglas.ops.kernels.resample import resample_rows, resample_rows_reference


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 12, 2, 40, generator=generator)
    shears = torch.rand(5, 6, dtype=torch.float64, generator=generator)
    # Some voxels lie before, some beyond the rows.
    spread = torch.tensor([3, 1, 0.3, 8, 0.3, 1.2], dtype=torch.float64)
    return rows, shears * spread - spread / 2


@pytest.mark.parametrize("seed", range(3))
def test_backprojection_kernels_agree(seed: int) -> None:
    rows, shears = random_case(seed)
    start = torch.randn(14, 11, 33)
    volume, expected = start.clone(), start.clone()
    backproject_rows(rows, shears, volume)
    backproject_rows_reference(rows, shears, expected)
    torch.testing.assert_close(volume, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_triton_kernels_agree() -> None:
    rows, shears = random_case(0)
    expected = torch.zeros(14, 11, 33)
    backproject_rows_reference(rows, shears, expected)
    volume = torch.zeros(14, 11, 33, device="cuda")
    backproject_rows(rows.cuda(), shears.cuda(), volume)
    torch.testing.assert_close(volume.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_resampling_kernels_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 40, 50, generator=generator)
    frames = torch.rand(3, 6, dtype=torch.float64, generator=generator)
    frames = frames * torch.tensor([5, 1, 0.4, 5, 0.4, 1], dtype=torch.float64)
    shape = (20, 2, 30)
    result, expected = resample_rows(images, frames, shape), resample_rows_reference(images, frames, shape)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sample", [resample_rows, resample_rows_reference])
def test_views_reach_to_their_outermost_pixels_and_no_farther(sample):
    # A row a sample, half a pixel apart, from one pixel before the image to one beyond it.
    frames = torch.tensor([[-1.0, 0.5, 0.0, -1.0, 0.0, 0.5]], dtype=torch.float64)
    rows = sample(torch.ones(1, 7, 9), frames, (17, 1, 21))[0, :, 0]
    expected = torch.zeros(17, 21)
    expected[2:15, 2:19] = 1
    torch.testing.assert_close(rows, expected)


def test_resampling_restores_the_pixels_it_was_made_from() -> None:
    image = torch.randn(24, 30, generator=torch.Generator().manual_seed(0))
    fy = torch.fft.fftfreq(24)[:, None]
    fx = torch.fft.rfftfreq(30)
    coefficients = torch.fft.irfft2(torch.fft.rfft2(image) / spline_response(fy, fx), s=(24, 30))
    frames = torch.tensor([[2.0, 1, 0, 3, 0, 1]], dtype=torch.float64)
    rows = resample_rows(coefficients[None], frames, (18, 1, 22))
    torch.testing.assert_close(rows[0, :, 0], image[2:20, 3:25], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "shears", "volume"),
    [
        (torch.zeros(2, 3, 2, 9), torch.zeros(3, 6, dtype=torch.float64), torch.zeros(2, 2, 2)),
        (torch.zeros(2, 3, 2, 9), torch.zeros(2, 6), torch.zeros(2, 2, 2)),
        (
            torch.zeros(2, 9, 2, 3).transpose(1, 3),
            torch.zeros(2, 6, dtype=torch.float64),
            torch.zeros(2, 2, 2),
        ),
    ],
)
def test_bad_rows_are_refused(rows: torch.Tensor, shears: torch.Tensor, volume: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        backproject_rows(rows, shears, volume)


def test_angular_steps_cover_the_range() -> None:
    steps = angular_steps(torch.tensor([0.0, 3.0, -3.0, 9.0], dtype=torch.float64))
    np.testing.assert_allclose(np.rad2deg(steps.numpy()), [3.0, 4.5, 3.0, 6.0])
    shared = angular_steps(torch.tensor([0.0, 2.0, 2.0, 4.0], dtype=torch.float64))
    np.testing.assert_allclose(np.rad2deg(shared.numpy()), [2.0, 1.0, 1.0, 2.0])
    assert angular_steps(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(math.radians(1))


def test_exact_filter_is_the_ramp_between_overlap_and_gap() -> None:
    tilts = torch.arange(-60.0, 61.0, 2.0, dtype=torch.float64)
    step, diameter = math.radians(2.0), 10.0
    # Views 2° apart overlap up to 1 / (D step) = 2.9 cycles a voxel, so the whole band is crowded.
    # At 0.1 the overlap would reach beyond the last tilts.
    frequency = torch.tensor([0.15, 0.2, 0.3])
    exact = exact_filter(frequency, tilts, 30, diameter)
    np.testing.assert_allclose(exact.numpy(), ramp_filter(frequency, step).numpy(), rtol=0.05)
    alone = exact_filter(torch.tensor([0.4]), torch.tensor([0.0, 60.0], dtype=torch.float64), 0, diameter)
    assert alone.item() == pytest.approx(1 / diameter)


def test_sirt_filter_goes_from_plain_sum_to_ramp() -> None:
    frequency = torch.linspace(0.01, 0.5, 20)
    once = sirt_filter(frequency, 0.05, 1, 0.01)
    np.testing.assert_allclose(once.numpy(), np.full(20, 0.01 * 0.05), rtol=1e-5)
    many = sirt_filter(frequency, 0.05, 5000, 0.01)
    np.testing.assert_allclose(many.numpy(), ramp_filter(frequency, 0.05).numpy(), rtol=1e-5)


def test_steep_views_are_refused() -> None:
    frames = ViewFrames(
        x_tilt_deg=torch.zeros(1, dtype=torch.float64),
        y_tilt_deg=torch.tensor([85.0], dtype=torch.float64),
        in_plane=torch.eye(2, dtype=torch.float64)[None],
        shift_angstrom=torch.zeros(1, 2, dtype=torch.float64),
        pixel_size_angstrom=(1.0, 1.0),
        centre_pixel=(4, 4),
    )
    with pytest.raises(ValueError, match="85"):
        backproject(torch.zeros(1, 8, 8), frames, VoxelGrid((4, 8, 8), 1.0))
