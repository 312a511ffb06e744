import math

import mrcfile
import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops import projection
from verglas.ops.geometry import axis_rotations
from verglas.ops.kernels import fourier_slice

ANGLES = torch.tensor(
    [[0.0, 0.0, 0.0], [30.0, 50.0, 70.0], [110.0, 25.0, -40.0], [-77.0, 130.0, 12.0]], dtype=torch.float64
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


def matrices(angles):
    """Reference to specimen for RELION's rot, tilt, psi: its Euler_angles2matrix."""
    turns = zip((-angles).flip(1).unbind(1), "zyz", strict=True)
    psi, tilt, rot = (axis_rotations(angle, axis) for angle, axis in turns)
    return psi @ tilt @ rot


def random_angles(count, seed):
    uniform = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.stack(
        [360 * uniform[:, 0], torch.rad2deg(torch.acos(2 * uniform[:, 1] - 1)), 360 * uniform[:, 2]], 1
    )


class Blobs:
    """Gaussians, whose projections are known."""

    def __init__(self, count=6, sigma=2.0, extent=20.0, seed=3):
        generator = torch.Generator().manual_seed(seed)
        self.centres = (torch.rand(count, 3, dtype=torch.float64, generator=generator) - 0.5) * extent
        self.heights = torch.rand(count, dtype=torch.float64, generator=generator) + 0.5
        self.sigma = sigma

    def volume(self, shape):
        z, y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
        out = torch.zeros(shape, dtype=torch.float64)
        for (cx, cy, cz), height in zip(self.centres, self.heights, strict=True):
            square = (z - cz)[:, None, None] ** 2 + (y - cy)[:, None] ** 2 + (x - cx) ** 2
            out += height * torch.exp(-square / (2 * self.sigma**2))
        return out

    def image(self, rotation, shape, shift=(0.0, 0.0)):
        y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
        out = torch.zeros(shape, dtype=torch.float64)
        for centre, height in zip(self.centres, self.heights, strict=True):
            px, py, _ = rotation @ centre
            square = (y - py - shift[1])[:, None] ** 2 + (x - px - shift[0]) ** 2
            out += height * math.sqrt(2 * math.pi) * self.sigma * torch.exp(-square / (2 * self.sigma**2))
        return out


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.mark.parametrize("size", [48, 47])
def test_projections_of_gaussians_are_gaussians(size):
    blobs = Blobs()
    rotations = matrices(ANGLES)
    images = projection.project_volume(blobs.volume((size,) * 3), rotations)
    truth = torch.stack([blobs.image(rotation, (size, size)) for rotation in rotations])
    assert images.shape == (4, size, size)
    error = ((images - truth) ** 2).mean((1, 2)).sqrt() / (truth**2).mean((1, 2)).sqrt()
    # Unturned, the slice falls on the grid and loses nothing to the interpolation that is corrected for.
    assert float(error[0]) < 0.05
    assert float(error[1:].max()) < 0.02
    torch.testing.assert_close(images.sum((1, 2)), truth.sum((1, 2)), rtol=1e-3, atol=0)
    # where the mass lies is exact: the interpolation loss is even about the centre
    y, x = (torch.arange(size, dtype=torch.float64) - size // 2,) * 2
    single = projection.project_volume(Blobs(count=1, extent=6.0).volume((size,) * 3), rotations)
    centre = Blobs(count=1, extent=6.0).centres[0]
    for image, rotation in zip(single, rotations, strict=True):
        px, py, _ = rotation @ centre
        window = (image - image.median()).clamp(min=0.05 * float(image.max())) - 0.05 * float(image.max())
        assert float((window.sum(0) * x).sum() / window.sum()) == pytest.approx(float(px), abs=0.02)
        assert float((window.sum(1) * y).sum() / window.sum()) == pytest.approx(float(py), abs=0.02)


def test_finer_sampling_converges_on_the_truth():
    blobs, rotations = Blobs(), matrices(ANGLES)
    truth = torch.stack([blobs.image(rotation, (48, 48)) for rotation in rotations])
    errors = [
        float((projection.project_volume(blobs.volume((48,) * 3), rotations, factor) - truth).abs().max())
        for factor in (1.0, 2.0, 4.0)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_batch_dimensions_dtype_and_device(device):
    volume = Blobs().volume((16,) * 3).float().to(device)
    rotations = matrices(ANGLES).float().to(device)
    images = projection.project_volume(volume, rotations.reshape(2, 2, 3, 3))
    assert images.shape == (2, 2, 16, 16)
    assert images.dtype == torch.float32
    assert images.device.type == device.type
    single = projection.project_volume(volume, rotations[1])
    torch.testing.assert_close(single, images[0, 1])
    assert projection.project_volume(volume, rotations[:0]).shape == (0, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "volume_size"), [(9, 12), (10, 20), (8, 8)])
def test_kernels_agree_with_the_reference(device, dtype, size, volume_size):
    generator = torch.Generator().manual_seed(1)
    rotations = matrices(random_angles(7, 5)).to(device, dtype)
    volume = torch.fft.rfftn(torch.rand((volume_size,) * 3, generator=generator, dtype=dtype)).to(device)
    images = torch.rand((7, size, size), generator=generator, dtype=dtype)
    slices = torch.fft.rfft2(images).to(device)
    weights = torch.rand(slices.shape, generator=generator, dtype=dtype).to(device)
    tolerance = {"atol": 2e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-11, "rtol": 1e-11}
    torch.testing.assert_close(
        fourier_slice.extract(volume, rotations, size),
        fourier_slice.extract_reference(volume, rotations, size),
        **tolerance,
    )
    ours, reference = ((torch.zeros_like(volume), torch.zeros_like(volume.real)) for _ in range(2))
    fourier_slice.insert(slices[None], weights[None], rotations[None], *(one[None] for one in ours))
    fourier_slice.insert_reference(slices, weights, rotations, *reference)
    torch.testing.assert_close(ours[0], reference[0], **tolerance)
    torch.testing.assert_close(ours[1], reference[1], **tolerance)


def test_insertion_is_bitwise_the_same_for_any_number_of_threads():
    import numba

    rotations = matrices(random_angles(20, 5)).float()
    slices = torch.fft.rfft2(torch.rand((20, 16, 16), generator=torch.Generator().manual_seed(1)))
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = projection.insert_slices(slices, slices.abs(), rotations, 32)
    finally:
        numba.set_num_threads(before)
    many = projection.insert_slices(slices, slices.abs(), rotations, 32)
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])


def test_insertion_is_the_transpose_of_extraction():
    generator = torch.Generator().manual_seed(2)
    size, padded = 9, 18
    rotations = matrices(random_angles(5, 7))
    volume = torch.rand((padded,) * 3, generator=generator, dtype=torch.float64)
    images = torch.rand((5, size, size), generator=generator, dtype=torch.float64)
    projected = projection.slices_to_images(
        projection.extract_slices(torch.fft.rfftn(torch.fft.ifftshift(volume)), rotations, size), size
    )
    slices = projection.images_to_slices(images)
    sums, _ = projection.insert_slices(slices, torch.ones_like(slices.real), rotations, padded)
    back = torch.fft.fftshift(torch.fft.irfftn(projection.complete_planes(sums), s=(padded,) * 3))
    # both inner products, with Parseval's factors of the two sizes
    assert float((projected * images).sum()) == pytest.approx(
        float((volume * back).sum()) * padded**3 / size**2, rel=1e-10
    )


def test_gradients_reach_volume_and_rotations():
    volume = Blobs(count=2, extent=4.0).volume((5,) * 3).requires_grad_()
    angles = ANGLES[1:2].clone().requires_grad_()

    def project(volume, angles):
        return projection.project_volume(volume, matrices(angles))

    assert torch.autograd.gradcheck(project, (volume, angles), atol=1e-4)


def test_many_projections_reconstruct_the_volume():
    blobs, size = Blobs(sigma=1.5, extent=10.0), 24
    rotations = matrices(random_angles(400, 11))
    images = torch.stack([blobs.image(rotation, (2 * size, 2 * size)) for rotation in rotations])
    slices = projection.images_to_slices(images)
    ones = torch.ones_like(slices.real)
    half = projection.insert_slices(slices[:200], ones[:200], rotations[:200], 2 * size)
    sums, weights = projection.insert_slices(slices[200:], ones[200:], rotations[200:], 2 * size, into=half)
    assert sums is half[0]
    volume = projection.reconstruct_from_slices(sums, weights, size)
    truth = blobs.volume((size,) * 3)
    assert volume.shape == (size,) * 3
    assert correlation(volume, truth) > 0.995
    assert float((volume * truth).sum() / (truth**2).sum()) == pytest.approx(1.0, abs=0.03)


def write_map(path, data, voxel_size=2.0):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.asarray(data, dtype=np.float32))
        mrc.voxel_size = voxel_size


def write_star(path, angles, images="", size=32):
    head = (
        "data_optics\n\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n"
        "_rlnAmplitudeContrast\n_rlnImagePixelSize\n_rlnImageSize\n_rlnImageDimensionality\n"
        f"group1 1 300 2.7 0.1 2.0 {size} 2\n\ndata_particles\n\nloop_\n"
        "_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n_rlnOpticsGroup\n_rlnOriginXAngst\n_rlnOriginYAngst\n"
    )
    head += "_rlnImageName\n" if images else ""
    rows = [
        f"{a[0]:.6f} {a[1]:.6f} {a[2]:.6f} 1 0 0" + (f" {i + 1:06d}@{images}" if images else "")
        for i, a in enumerate(angles.tolist())
    ]
    path.write_text(head + "\n".join(rows) + "\n")


@pytest.mark.relion
def test_projections_agree_with_relion(tmp_path, relion):
    volume = Blobs(sigma=1.2, extent=16.0).volume((32,) * 3)
    angles = torch.cat([ANGLES, random_angles(6, 3)])
    write_map(tmp_path / "map.mrc", volume)
    write_star(tmp_path / "angles.star", angles)
    relion(
        "relion_project", "--i", "map.mrc", "--o", "proj", "--ang", "angles.star", "--angpix", 2, "--pad", 2
    )
    theirs = mrcfile.read(tmp_path / "proj.mrcs")
    ours = projection.project_volume(volume, matrices(angles)).numpy()
    grid = np.arange(32) - 16
    inside = grid[:, None] ** 2 + grid**2 < 15**2
    for mine, other in zip(ours, theirs, strict=True):
        assert correlation(mine[inside], other[inside]) > 0.999
        assert np.dot(mine[inside], other[inside]) / np.dot(mine[inside], mine[inside]) == pytest.approx(
            1, abs=0.01
        )


@pytest.mark.relion
def test_reconstruction_agrees_with_relion(tmp_path, relion):
    blobs, size = Blobs(sigma=1.5, extent=14.0), 32
    angles = random_angles(600, 13)
    rotations = matrices(angles)
    images = torch.stack([blobs.image(rotation, (size, size)) for rotation in rotations])
    write_map(tmp_path / "images.mrcs", images)
    write_star(tmp_path / "particles.star", angles, "images.mrcs")
    relion("relion_reconstruct", "--i", "particles.star", "--o", "out.mrc", "--angpix", 2)
    theirs = mrcfile.read(tmp_path / "out.mrc")
    wide = torch.nn.functional.pad(images, (size // 2,) * 4)
    slices = projection.images_to_slices(wide)
    volume = projection.reconstruct_from_slices(
        *projection.insert_slices(slices, torch.ones_like(slices.real), rotations, 2 * size), size
    ).numpy()
    truth = blobs.volume((size,) * 3).numpy()
    grid = np.arange(size) - size // 2
    inside = grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2 < 14**2
    assert correlation(volume[inside], theirs[inside]) > 0.99
    # ours is at least as near to the truth, up to a little
    assert correlation(volume[inside], truth[inside]) > correlation(theirs[inside], truth[inside]) - 1e-3


def affine(rotation, shift=(0.0, 0.0)):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation
    matrix[0, 3], matrix[1, 3] = shift
    return matrix


def test_ray_sums_without_rotation_are_plain_sums():
    volume = torch.rand(5, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = projection.project_volume_realspace(volume, affine(torch.eye(3, dtype=torch.float64)), (7, 8))
    torch.testing.assert_close(images, volume.sum(0))
    moved = projection.project_volume_realspace(
        volume, affine(torch.eye(3, dtype=torch.float64), (1.0, -2.0)), (7, 8)
    )
    torch.testing.assert_close(moved[:5, 1:], volume.sum(0)[2:, :-1])
    assert float(moved[5:].abs().max()) < 1e-12
    assert float(moved[:, 0].abs().max()) < 1e-12
    # a quarter turn about x sends y to z
    quarter = affine(axis_rotations(torch.tensor(90.0, dtype=torch.float64), "x"))
    turned = projection.project_volume_realspace(volume, quarter, (5, 8))
    torch.testing.assert_close(turned, volume.sum(1).flip(0), atol=1e-9, rtol=1e-9)


def test_ray_sums_of_a_slab_agree_with_gaussians():
    blobs = Blobs(sigma=3.0, extent=24.0)
    blobs.centres[:, 2] *= 0.3
    rotations = matrices(ANGLES)[1:]
    shift = (3.5, -2.25)
    stack = torch.stack([affine(rotation, shift) for rotation in rotations])
    images = projection.project_volume_realspace(blobs.volume((32, 48, 52)), stack, (60, 64))
    truth = torch.stack([blobs.image(rotation, (60, 64), shift) for rotation in rotations])
    assert images.shape == (3, 60, 64)
    assert float((images - truth).abs().max() / truth.max()) < 0.03
    assert float(images.sum() / truth.sum()) == pytest.approx(1.0, abs=2e-3)


def test_ray_sums_keep_dtype_device_and_gradient(device):
    volume = torch.rand(4, 5, 6).to(device).requires_grad_()
    images = projection.project_volume_realspace(volume, torch.eye(4, device=device)[None, None], (5, 6))
    assert images.shape == (1, 1, 5, 6)
    assert images.dtype == torch.float32
    images.sum().backward()
    torch.testing.assert_close(volume.grad, torch.ones_like(volume))
    assert projection.project_volume_realspace(
        volume, torch.eye(4, device=device)[None][:0], (5, 6)
    ).shape == (
        0,
        5,
        6,
    )


def test_bad_input_is_told():
    rotations = matrices(ANGLES)
    cube = torch.zeros((4,) * 3)
    with pytest.raises(UserError, match="must be a cube; got \\(4, 4, 5\\)"):
        projection.project_volume(torch.zeros(4, 4, 5), rotations.float())
    with pytest.raises(UserError, match="`oversampling` must be at least 1"):
        projection.project_volume(cube, rotations.float(), 0.5)
    with pytest.raises(UserError, match="N even"):
        projection.extract_slices(torch.zeros(5, 5, 3, dtype=torch.complex64), rotations.float(), 5)
    slices = torch.zeros(3, 4, 3, dtype=torch.complex64)
    with pytest.raises(UserError, match="same batch; got \\(3,\\) and \\(4,\\)"):
        projection.insert_slices(slices, slices.real, rotations.float(), 8)
    with pytest.raises(UserError, match="`volume_size` must be even; got 7"):
        projection.insert_slices(slices, slices.real, rotations[:3].float(), 7)
    with pytest.raises(UserError, match="`into` must have shape"):
        projection.insert_slices(
            slices,
            slices.real,
            rotations[:3].float(),
            8,
            into=(torch.zeros(2, 2, 2) * 1j, torch.zeros(2, 2, 2)),
        )
    sums = torch.zeros(8, 8, 5, dtype=torch.complex64)
    with pytest.raises(UserError, match="`size` must be at most the 8"):
        projection.reconstruct_from_slices(sums, sums.real, 10)
    with pytest.raises(UserError, match="singular"):
        projection.project_volume_realspace(cube, torch.zeros(4, 4), (4, 4))
