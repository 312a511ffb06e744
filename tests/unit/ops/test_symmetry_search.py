"""Axes found again after a symmetric body was turned, shifted and covered with noise."""

import gemmi
import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from verglas.errors import UserError
from verglas.io.mrc import read_mrc
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
    frame = find_symmetry_frame(volume, group)
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


def read_alphas(path):
    """Xyz of the C-alpha atoms, Å."""
    model = gemmi.read_structure(str(path))[0]
    atoms = (atom for chain in model for residue in chain for atom in residue)
    return np.array([list(atom.pos) for atom in atoms if atom.name == "CA"])


def measure_atoms(atoms, frame, group, voxel):
    """Largest distance, over the group, of the turned atoms from the nearest ones; root mean square, Å."""
    rotation, centre = frame.rotation.numpy(), frame.centre_voxels.numpy() * voxel
    turns = [rotation.T @ matrix @ rotation for matrix in symmetry_matrices(group).numpy()]
    tree = cKDTree(atoms)
    return max(np.sqrt((tree.query((atoms - centre) @ turn.T + centre)[0] ** 2).mean()) for turn in turns[1:])


def test_the_axis_of_haemoglobin_carries_its_atoms_onto_each_other(shared_data):
    """A real map, which has false two-folds too, turned and shifted by scipy."""
    voxel, shift = 1.05, np.array([2.0, -1.5, 1.0])
    turn = Rotation.from_euler("ZYZ", (50, 70, 20), degrees=True).as_matrix()
    volume = read_mrc(shared_data / "maps/emd_3488.mrc")
    # scipy reads the input at `matrix @ output + offset`, zyx.
    matrix = turn.T[::-1, ::-1]
    offset = 50 - matrix @ (50 + shift[::-1])
    moved = affine_transform(volume, matrix, offset, order=3).astype(np.float32)
    frame = find_symmetry_frame(torch.from_numpy(moved), "C2")
    assert frame.correlation > 0.85
    atoms = (read_alphas(shared_data / "maps/5ni1_updated.cif.gz") - 50 * voxel) @ turn.T + shift * voxel
    assert measure_atoms(atoms, frame, "C2", voxel) < 0.5


def test_the_axes_of_a_proteasome_carry_its_atoms_onto_each_other(shared_data):
    voxel, size = 6.0, 44
    turn = Rotation.from_euler("ZYZ", (-35, 110, 80), degrees=True).as_matrix()
    atoms = read_alphas(shared_data / "models/3j9i.pdb.gz")
    atoms = (atoms - atoms.mean(0)) @ turn.T + (7.0, -4.0, 5.0)
    counts, _ = np.histogramdd(atoms[:, ::-1] / voxel + size // 2, [np.arange(size + 1) - 0.5] * 3)
    density = torch.from_numpy(gaussian_filter(counts, 1.0).astype(np.float32))
    frame = find_symmetry_frame(density, "D7")
    assert frame.correlation > 0.9
    assert measure_atoms(atoms, frame, "D7", voxel) < 2.0


def test_a_body_without_the_symmetry_tells_so():
    volume, _ = make_body("C1", seed=4)
    assert find_symmetry_frame(volume, "C4").correlation < 0.5


def test_no_axes_are_refused():
    with pytest.raises(UserError, match="has no axes to find"):
        find_symmetry_frame(torch.randn(8, 8, 8), "C1")
    with pytest.raises(UserError, match="constant density"):
        find_symmetry_frame(torch.ones(8, 8, 8), "C2")
