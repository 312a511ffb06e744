import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops.angles import emclarity_grid, uniform_grid
from verglas.ops.rotation import angular_distance_deg, random_rotations
from verglas.ops.symmetry import symmetry_matrices


def rotation(axis, degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def farthest(grid, group):
    """Largest distance of random orientations from a grid, whichever of its equals is nearest."""
    matrices = random_rotations(150, torch.Generator().manual_seed(1))
    worst = torch.full((len(matrices),), 360.0)
    for element in symmetry_matrices(group):
        nearest = [angular_distance_deg(matrix @ element, grid).min() for matrix in matrices]
        worst = torch.minimum(worst, torch.stack(nearest).float())
    return float(worst.max())


@pytest.mark.parametrize("group", ["C1", "C4", "D2", "T", "O", "I", "I1"])
def test_emclarity_grid_leaves_no_orientation_out(group):
    grid = emclarity_grid(180, 15, 180, 15, symmetry=group)
    assert farthest(grid, group) < 15
    # About as many as the volume of the asymmetric unit asks for: 8 π² / step³ over the order of the group. A cone
    # about a two-fold is a poor outline of a sixtieth of the sphere.
    expected = 8 * np.pi**2 / np.deg2rad(15) ** 3 / len(symmetry_matrices(group))
    assert expected < len(grid) < (4 if group.startswith("I") else 2.2) * expected


@pytest.mark.parametrize("group", ["C1", "D7", "O"])
def test_uniform_grid_leaves_no_orientation_out(group):
    assert farthest(uniform_grid(15, group), group) < 0.9 * 15


def test_emclarity_angles_mean_zxz():
    grid = emclarity_grid(30, 30, 20, 20).numpy()
    # At the pole one direction; at 30 degrees twelve steps of 30 / sin 30 = 60 degrees make six.
    assert len(grid) == 3 * (1 + 6)
    expected = [
        rotation("z", phi) @ rotation("x", 30) @ rotation("z", psi - phi)
        for phi in range(0, 360, 60)
        for psi in (-20, 0, 20)
    ]
    np.testing.assert_allclose(grid[3:], expected, atol=1e-12)
    np.testing.assert_allclose(grid[:3], [rotation("z", psi) for psi in (-20, 0, 20)], atol=1e-12)


def test_a_negative_range_looks_at_both_poles():
    axes = emclarity_grid(-30, 15, 0, 0).numpy()[:, 2, 2]
    tips = np.unique(np.rad2deg(np.arccos(axes.clip(-1, 1))).round(3))
    np.testing.assert_allclose(tips, [0, 15, 30, 150, 165, 180], atol=1e-3)


def test_helices_lie_in_the_plane():
    grid = emclarity_grid(10, 10, 180, 90, helical=True).numpy()
    assert len(grid) == 36 * 3 * 4
    expected = rotation("z", 10) @ rotation("x", -10) @ rotation("y", 90)
    assert np.abs(grid - expected).max(axis=(1, 2)).min() < 1e-12
    assert np.abs(grid[:, 2, 1]).max() <= np.sin(np.deg2rad(10)) + 1e-12


@pytest.mark.parametrize("bad", [(200, 10, 0, 0), (10, 0, 0, 0), (0, 0, -5, 5), (10, -1, 0, 0)])
def test_ranges_out_of_bounds_are_refused(bad):
    with pytest.raises(UserError, match="plane must range"):
        emclarity_grid(*bad)


def test_unknown_symmetry_is_refused():
    with pytest.raises(UserError, match="must be C1"):
        emclarity_grid(10, 10, 0, 0, symmetry="X3")
