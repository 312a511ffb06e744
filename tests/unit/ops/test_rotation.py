import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from verglas.errors import UserError
from verglas.ops import rotation
from verglas.ops.symmetry import symmetry_matrices


@pytest.fixture
def matrices():
    return rotation.random_rotations(200, torch.Generator().manual_seed(5))


def _special_matrices():
    angles = torch.tensor(
        [[0, 0, 0], [10, 0, 20], [10, 180, 20], [90, 90, -90], [180, 1e-6, 3], [-30, 179.99999, 0]],
        dtype=torch.float64,
    )
    return rotation.euler_to_matrices(angles)


def test_euler_angles_are_the_inverse_of_scipys(matrices):
    angles = rotation.matrices_to_euler(matrices)
    expected = Rotation.from_euler("ZYZ", angles.numpy(), degrees=True).inv().as_matrix()
    np.testing.assert_allclose(matrices.numpy(), expected, atol=1e-12)
    assert ((angles[:, 1] >= 0) & (angles[:, 1] <= 180)).all()


def test_euler_angles_survive_the_poles():
    special = _special_matrices()
    angles = rotation.matrices_to_euler(special)
    assert angles[1].tolist() == pytest.approx([0, 0, 30])
    assert angles[2].tolist() == pytest.approx([0, 180, 10])
    torch.testing.assert_close(rotation.euler_to_matrices(angles), special, atol=1e-12, rtol=0)
    single = rotation.matrices_to_euler(special.float())
    assert rotation.angular_distance_deg(rotation.euler_to_matrices(single), special.float()).max() < 1e-3


def test_quaternions_and_vectors_match_scipy(matrices):
    matrices = torch.cat([matrices, _special_matrices()])
    turns = torch.tensor([[180.0, 0, 0], [0, 180, 0], [0, 0, 180], [1e-9, 0, 0]], dtype=torch.float64)
    matrices = torch.cat([matrices, rotation.rotation_vectors_to_matrices(turns)])
    oracle = Rotation.from_matrix(matrices.numpy())
    quaternions = rotation.matrices_to_quaternions(matrices)
    np.testing.assert_allclose(
        Rotation.from_quat(quaternions.numpy(), scalar_first=True).as_matrix(), matrices.numpy(), atol=1e-12
    )
    torch.testing.assert_close(rotation.quaternions_to_matrices(3 * quaternions), matrices)
    vectors = rotation.matrices_to_rotation_vectors(matrices)
    np.testing.assert_allclose(vectors[:200].numpy(), np.rad2deg(oracle.as_rotvec())[:200], atol=1e-9)
    torch.testing.assert_close(rotation.rotation_vectors_to_matrices(vectors), matrices, atol=1e-9, rtol=0)
    assert vectors[-1].tolist() == pytest.approx([1e-9, 0, 0])


def test_rotation_vectors_have_gradients_at_zero():
    vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation.rotation_vectors_to_matrices, vector)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 90.0, 179.99999, 180.0])
def test_angular_distance_is_accurate_everywhere(matrices, angle):
    step = rotation.rotation_vectors_to_matrices(
        torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64) * angle
    )
    distances = rotation.angular_distance_deg(matrices, matrices @ step)
    torch.testing.assert_close(
        distances, torch.full_like(distances, angle), atol=1e-8 if angle <= 90 else 5e-6, rtol=0
    )


def test_random_rotations_are_uniform_and_repeatable(matrices):
    again = rotation.random_rotations(200, torch.Generator().manual_seed(5))
    torch.testing.assert_close(again, matrices, atol=0, rtol=0)
    many = rotation.random_rotations(20000, torch.Generator().manual_seed(1))
    assert many.mean(0).abs().max() < 0.02
    angles = torch.deg2rad(rotation.angular_distance_deg(many, torch.eye(3, dtype=torch.float64)))
    # The angle of a uniform rotation has the distribution (a - sin a) / pi.
    for angle in (1.0, 2.0, 3.0):
        assert (angles < angle).double().mean().item() == pytest.approx(
            (angle - math.sin(angle)) / math.pi, abs=0.015
        )


def _farthest(probes, grid, symmetry):
    best = torch.full((len(probes),), 180.0, dtype=torch.float64)
    for element in symmetry:
        best = torch.minimum(
            best, rotation.angular_distance_deg((probes @ element)[:, None], grid[None]).amin(1)
        )
    return best.max().item()


@pytest.mark.parametrize(
    ("step", "group"), [(15.0, "C1"), (40.0, "C1"), (15.0, "C3"), (12.0, "O"), (10.0, "I")]
)
def test_grid_covers_all_rotations(step, group):
    symmetry = symmetry_matrices(group)
    grid = rotation.so3_grid(step, None if group == "C1" else symmetry)
    probes = rotation.random_rotations(200, torch.Generator().manual_seed(2))
    assert _farthest(probes, grid, symmetry) <= 0.87 * step
    full = len(rotation.so3_grid(step))
    assert full / len(symmetry) <= len(grid) < full * min(1, 3.5 / len(symmetry)) + (group == "C1")


def test_grid_is_even():
    grid = rotation.so3_grid(15.0)
    ideal = 8 * math.pi**2 / math.radians(15.0) ** 3
    assert len(grid) == pytest.approx(ideal, rel=0.1)
    torch.testing.assert_close(grid[0], torch.eye(3, dtype=torch.float64))


def test_local_rotations_fill_a_ball():
    local = rotation.local_rotations(6.0, 2.0)
    identity = torch.eye(3, dtype=torch.float64)
    angles = rotation.angular_distance_deg(local, identity)
    assert len(local) == 123  # whole vectors of length up to 3
    assert angles[0] == 0
    assert (angles.diff() > -1e-9).all()
    assert angles[-1].item() == pytest.approx(6.0)
    assert len(rotation.local_rotations(0.0, 2.0)) == 1


@pytest.mark.parametrize("step", [0.0, -1.0, 91.0, float("nan")])
def test_grids_refuse_nonsense(step):
    with pytest.raises(UserError, match="step_deg"):
        rotation.so3_grid(step)
    if not step > 0:
        with pytest.raises(UserError, match="step_deg"):
            rotation.local_rotations(5.0, step)
    with pytest.raises(UserError, match="radius_deg"):
        rotation.local_rotations(181.0, 1.0)
