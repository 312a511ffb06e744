"""Euler angles: RELION's rot, tilt, psi; `euler_to_matrices` takes the reference frame to the specimen frame."""

import mrcfile
import pytest
import torch

from verglas.ops.rotation import euler_to_matrices

ANGLES = [(30.0, 50.0, 70.0), (-120.0, 15.0, 0.0), (0.0, 95.0, -40.0), (45.0, 0.0, 10.0)]
POINTS = torch.tensor([[10.0, 2, -5], [-6, 8, 3], [1, -12, 9], [4, 5, 12]], dtype=torch.float64)
WEIGHTS = [1.0, 0.7, 1.3, 0.5]
SIZE = 48


def _blobs(points, dims):
    """Gaussians at xyz from the centre `n // 2`, as a volume or as its projection along z."""
    axis = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    grid = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij")[::-1], dim=-1)
    return sum(
        w * torch.exp(-(grid - p[:dims]).square().sum(-1) / 8) for w, p in zip(WEIGHTS, points, strict=True)
    )


@pytest.fixture
def reference_map(tmp_path):
    with mrcfile.new(tmp_path / "map.mrc", _blobs(POINTS, 3).float().numpy()) as file:
        file.voxel_size = 1.0


def _correlation(first, second):
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten().double()]))[0, 1].item()


@pytest.mark.relion
@pytest.mark.usefixtures("reference_map")
@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("dims", [2, 3])
def test_matrix_is_what_relion_project_does(relion, tmp_path, angles, dims):
    rot, tilt, psi = angles
    relion(
        "relion_project", "--i", "map.mrc", "--o", "out.mrc", "--angpix", 1,
        "--rot", rot, "--tilt", tilt, "--psi", psi, *(["--3d_rot"] if dims == 3 else []),
    )  # fmt: skip
    image = torch.from_numpy(mrcfile.read(tmp_path / "out.mrc").squeeze().copy())
    matrix = euler_to_matrices(torch.tensor(angles, dtype=torch.float64))
    assert _correlation(_blobs(POINTS @ matrix.mT, dims), image) > 0.999
    assert _correlation(_blobs(POINTS @ matrix, dims), image) < 0.8


def test_rot_and_tilt_are_the_direction_of_view():
    matrix = euler_to_matrices(torch.tensor([90.0, 30.0, 77.0], dtype=torch.float64))
    view = matrix.mT @ torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert view.tolist() == pytest.approx([0, 0.5, 3**0.5 / 2])


def test_rot_turns_the_reference_backwards():
    matrix = euler_to_matrices(torch.tensor([90.0, 0.0, 0.0], dtype=torch.float64))
    assert (matrix @ torch.tensor([1.0, 0, 0], dtype=torch.float64)).tolist() == pytest.approx([0, -1, 0])
