import re

import mrcfile
import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops.symmetry import symmetrise_volume, symmetry_matrices

ORDERS = {
    "C1": 1,
    "C5": 5,
    "c4": 4,
    "D1": 2,
    "D3": 6,
    "D7": 14,
    "T": 12,
    "O": 24,
    "I": 60,
    "i1": 60,
    "I3": 60,
    "I4": 60,
}


@pytest.mark.parametrize(("group", "order"), ORDERS.items())
def test_matrices_are_a_group_of_rotations(group, order):
    matrices = symmetry_matrices(group)
    assert matrices.shape == (order, 3, 3)
    torch.testing.assert_close(matrices[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(order, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(order, dtype=torch.float64))
    products = (matrices[:, None] @ matrices[None]).reshape(-1, 1, 9)
    distances = torch.cdist(products.squeeze(1), matrices.reshape(-1, 9))
    assert distances.amin(1).max() < 1e-6
    assert ((distances < 1e-3).sum(1) == 1).all()


@pytest.mark.relion
@pytest.mark.parametrize("group", ["C1", "C5", "D3", "D4", "T", "O", "I", "I1", "I2", "I3", "I4"])
def test_orientations_are_relions(relion, group):
    text = relion("relion_refine", "--sym", group, "--print_symmetry_ops")
    rows = re.findall(r"^\s+(-?[\d.e-]+)\s+(-?[\d.e-]+)\s+(-?[\d.e-]+)\s*$", text, flags=re.MULTILINE)
    expected = torch.tensor(np.array(rows, dtype=float).reshape(-1, 9))
    matrices = symmetry_matrices(group)
    assert len(expected) == len(matrices)
    assert torch.cdist(expected, matrices.reshape(-1, 9)).amin(1).max() < 3e-4


@pytest.mark.parametrize("group", ["", "C0", "C", "D-1", "S4", "I5", "H", "C2v", "C1000"])
def test_other_groups_are_refused(group):
    with pytest.raises(UserError, match="`group` must be"):
        symmetry_matrices(group)


def _asymmetric_map():
    z, y, x = np.mgrid[:32, :32, :32] - 16.0
    points = [(6, 1, -3), (-4, 5, 2), (0, -6, 5)]
    return sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 12) for a, b, c in points).astype(
        np.float32
    )


@pytest.mark.parametrize("group", ["C3", "D2", "O"])
def test_symmetrised_map_is_symmetric(group):
    volume = torch.from_numpy(_asymmetric_map())
    result = symmetrise_volume(volume, group, order="cubic")
    assert result.sum().item() == pytest.approx(volume.sum().item(), rel=1e-3)
    torch.testing.assert_close(symmetrise_volume(result, group, order="cubic"), result, atol=3e-3, rtol=0)
    assert (result - volume).abs().max() > 0.1


@pytest.mark.relion
@pytest.mark.parametrize("group", ["C3", "D3", "T", "I1"])
def test_symmetrised_map_is_relions(relion, tmp_path, group):
    volume = _asymmetric_map()
    with mrcfile.new(tmp_path / "in.mrc", volume) as file:
        file.voxel_size = 1.0
    relion("relion_image_handler", "--i", "in.mrc", "--o", "out.mrc", "--sym", group)
    expected = torch.from_numpy(mrcfile.read(tmp_path / "out.mrc").copy())
    result = symmetrise_volume(torch.from_numpy(volume), group)
    torch.testing.assert_close(result, expected, atol=2e-3 * expected.max().item(), rtol=0)
