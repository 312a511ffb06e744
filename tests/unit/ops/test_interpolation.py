import numpy as np
import pytest
import torch
from scipy import ndimage

from verglas.errors import UserError
from verglas.ops.geometry import axis_rotations
from verglas.ops.interpolation import affine_transform_images, affine_transform_volume, rotate_volume
from verglas.ops.kernels import interpolate
from verglas.ops.rotation import random_rotations


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def _scipy_read(volume, inverse, out_shape, order, fill):
    """Read with scipy, whose mirror mode is the same continuation, and blank what lies outside."""
    places = (
        np.einsum("ij,j...->i...", inverse[:, :3], np.indices(out_shape)) + inverse[:, 3, None, None, None]
    )
    values = ndimage.map_coordinates(volume, places, order=order, mode="mirror")
    sizes = np.array(volume.shape)[:, None, None, None]
    return np.where(((places >= -0.5) & (places < sizes - 0.5)).all(0), values, fill)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(9, 10, 11), (1, 12, 7), (2, 3, 5)])
def test_kernels_agree_with_each_other_and_scipy(generator, order, shape):
    volumes = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    inverse = torch.cat(
        [random_rotations(2, generator) * 0.8, torch.rand(2, 3, 1, generator=generator) * 6], dim=-1
    )
    if shape[0] == 1:
        inverse[:, 0] = 0
    out_shape = (shape[0], 8, 9)
    samples = volumes
    if order == 3:
        samples = interpolate.spline_coefficients(volumes, 3)
        torch.testing.assert_close(samples, interpolate.spline_coefficients_reference(volumes, 3))
    kernel = interpolate.sample_affine(samples, inverse, out_shape, order == 3, -2.0)
    reference = interpolate.sample_affine_reference(samples, inverse, out_shape, order == 3, -2.0)
    torch.testing.assert_close(kernel, reference)
    for volume, affine, result in zip(volumes, inverse, kernel, strict=True):
        expected = _scipy_read(volume.numpy(), affine.numpy(), out_shape, order, -2.0)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)
    single = interpolate.sample_affine(samples.float(), inverse, out_shape, order == 3, -2.0)
    torch.testing.assert_close(single, kernel.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("shape", [(9, 10, 11), (1, 12, 7)])
def test_cuda_kernel_agrees(generator, cubic, shape):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    volumes = torch.randn(2, *shape, generator=generator)
    inverse = torch.cat(
        [random_rotations(2, generator) * 0.8, torch.rand(2, 3, 1, generator=generator) * 6], dim=-1
    )
    if shape[0] == 1:
        inverse[:, 0] = 0
    expected = interpolate.sample_affine_reference(volumes, inverse, (5, 8, 9), cubic, -2.0)
    result = interpolate.sample_affine(volumes.cuda(), inverse.cuda(), (5, 8, 9), cubic, -2.0)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        interpolate.spline_coefficients(volumes.cuda(), 3).cpu(),
        interpolate.spline_coefficients(volumes, 3),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_quarter_turn_moves_x_to_y(order):
    volume = torch.zeros(5, 6, 7)
    volume[3, 3, 5] = 1  # xyz (2, 0, 1) from the centre
    turned = rotate_volume(volume, axis_rotations(torch.tensor(90.0), "z"), order=order)
    expected = torch.zeros(5, 6, 7)
    expected[3, 5, 3] = 1  # xyz (0, 2, 1)
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def _blobs(points, shape):
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) - n // 2 for n in shape), indexing="ij")
    grid = torch.stack([x, y, z], dim=-1)
    return sum(torch.exp(-(grid - point).square().sum(-1) / 8) for point in points)


@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 34, 35)])
def test_rotation_is_active_about_the_centre(generator, shape):
    points = torch.tensor([[5.0, 1, -3], [-4, 3, 2], [0, -5, 4]], dtype=torch.float64)
    rotations = random_rotations(2, generator)
    turned = rotate_volume(_blobs(points, shape), rotations, order="cubic")
    for rotation, result in zip(rotations, turned, strict=True):
        torch.testing.assert_close(result, _blobs(points @ rotation.mT, shape), atol=2e-3, rtol=0)


def test_affine_stretches_shifts_and_resizes():
    points = torch.tensor([[5.0, 1, -3], [-4, 3, 2]], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([1.5, -2.0, 0.25])
    moved = affine_transform_volume(
        _blobs(points, (32, 32, 32)), matrix, order="cubic", out_shape=(31, 30, 33)
    )
    torch.testing.assert_close(moved, _blobs(points + matrix[:3, 3], (31, 30, 33)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_images_move_as_sections_of_volumes_do(generator, order):
    images = torch.randn(2, 1, 11, 12, generator=generator)
    matrices = torch.tensor(
        [[[1.1, 0.2, 1.0], [-0.3, 0.9, 2.0], [0, 0, 1]], [[0.8, 0, 0], [0, 1, 0], [0, 0, 1]]]
    )
    moved = affine_transform_images(images, matrices, order=order, fill=1.0)
    assert moved.shape == (2, 2, 11, 12)
    embedded = torch.eye(4).repeat(2, 1, 1)
    embedded[:, :2, :2], embedded[:, :2, 3] = matrices[:, :2, :2], matrices[:, :2, 2]
    volumes = images[..., None, :, :].expand(-1, -1, 3, -1, -1)
    expected = affine_transform_volume(volumes, embedded, order=order, fill=1.0)
    torch.testing.assert_close(moved, expected[..., 1, :, :], atol=1e-5, rtol=1e-5)
    linear_part = affine_transform_images(images, matrices[1, :2, :2], order=order)
    torch.testing.assert_close(linear_part, affine_transform_images(images, matrices[1], order=order))


def test_fill_is_only_outside():
    volume = torch.ones(4, 4, 4, dtype=torch.float64)
    half = affine_transform_volume(volume, torch.eye(3) * 0.5, fill=9.0)
    assert half.unique().tolist() == [1.0, 9.0]
    assert (half[1:3, 1:3, 1:3] == 1).all()
    assert (half[0] == 9).all()


@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_gradients(generator, order):
    volume = torch.randn(4, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    matrix = (
        torch.eye(3, dtype=torch.float64) * 1.03 + 0.1 * torch.randn(3, 3, generator=generator)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, m: affine_transform_volume(v, m, order=order), (volume, matrix))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    volume = torch.rand(4, 4, 4).to(dtype)
    result = rotate_volume(volume, torch.eye(3), order="cubic")
    assert result.dtype == dtype
    torch.testing.assert_close(result, volume, atol=5e-3 if dtype == torch.float16 else 1e-6, rtol=0)


def test_bad_input_is_named():
    volume = torch.zeros(4, 4, 4)
    with pytest.raises(UserError, match="order"):
        rotate_volume(volume, torch.eye(3), order="nearest")
    with pytest.raises(UserError, match="inverse"):
        affine_transform_volume(volume, torch.zeros(3, 3))
    with pytest.raises(UserError, match="must end in"):
        affine_transform_volume(volume, torch.eye(2))
    with pytest.raises(UserError, match="out_shape"):
        affine_transform_volume(volume, torch.eye(3), out_shape=(4, 0, 4))
