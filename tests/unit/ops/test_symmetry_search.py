"""Axes found again after a symmetric body was turned, shifted and covered with noise."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from verglas.errors import UserError
from verglas.ops.interpolation import affine_transform_volume
from verglas.ops.rotation import angular_distance_deg, random_rotations
from verglas.ops.symmetry import symmetrise_volume, symmetry_matrices
from verglas.ops.symmetry_search import find_symmetry_frame, move_to_frame

SIZE = 40


def make_body(group, seed):
    """A symmetric body turned by a random rotation and shifted."""
    base = gaussian_filter(np.random.default_rng(seed).normal(size=(SIZE,) * 3), 1.6)
    offset = np.arange(SIZE) - SIZE // 2
    radius = np.sqrt(sum(o**2 for o in np.meshgrid(offset, offset, offset, indexing="ij")))
    body = symmetrise_volume(
        torch.from_numpy((base * (radius < 14)).astype(np.float32)), group, order="cubic"
    )
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = random_rotations(1, torch.Generator().manual_seed(seed))[0]
    affine[:3, 3] = torch.tensor([1.3, -0.8, 1.1])
    moved = affine_transform_volume(body, affine, order="cubic")
    noise = torch.randn(moved.shape, generator=torch.Generator().manual_seed(1))
    return moved + 0.3 * moved.std() * noise, affine


@pytest.mark.parametrize("group", ["C5", "D2", "O"])
def test_axes_are_found(group):
    volume, affine = make_body(group, seed=3)
    frame = find_symmetry_frame(volume, group, step_deg=20.0)
    assert frame.correlation > 0.8
    left = frame.rotation @ affine[:3, :3]
    if group == "C5":
        assert abs(float(left[2, 2])) > np.cos(np.deg2rad(1.0))
        # Along the axis every place is as good, and the nearest is taken.
        assert abs(float(frame.rotation[2] @ frame.centre_voxels)) < 1e-6
        across = (frame.rotation @ (frame.centre_voxels - affine[:3, 3]))[:2]
        assert float(across.norm()) < 0.3
        return
    matrices = symmetry_matrices(group)
    turned = left @ matrices @ left.T
    assert max(min(float(angular_distance_deg(a, b)) for b in matrices) for a in turned) < 1.0
    again = move_to_frame(volume, frame)
    assert (
        float(torch.corrcoef(torch.stack([again.ravel(), symmetrise_volume(again, group).ravel()]))[0, 1])
        > 0.9
    )


def test_a_body_without_the_symmetry_tells_so():
    volume, _ = make_body("C1", seed=4)
    assert find_symmetry_frame(volume, "C4", step_deg=20.0).correlation < 0.5


def test_no_axes_are_refused():
    with pytest.raises(UserError, match="has no axes to find"):
        find_symmetry_frame(torch.randn(8, 8, 8), "C1")
    with pytest.raises(UserError, match="constant density"):
        find_symmetry_frame(torch.ones(8, 8, 8), "C2")
