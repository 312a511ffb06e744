"""Volumes, projections and transforms of the same Gaussians agree by three routes."""

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from verglas.algo.simulation.orientations import angles_along, pose_matrices, random_angles
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.render import (
    project_scatterers,
    project_scatterers_rfft,
    render_volume,
    transform_scatterers,
)
from verglas.algo.simulation.scatterers import Scatterers, move_scatterers
from verglas.errors import UserError

BODY = make_blob_phantom(60, 40.0, seed=5, sigma_angstrom=5.0)
POSE = pose_matrices([30.0, 50.0, -70.0])


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[j, i], matrix[i, j] = s, -s
    return matrix


def test_poses_undo_rz_ry_rz() -> None:
    expected = rotation(2, 70.0) @ rotation(1, -50.0) @ rotation(2, -30.0)
    np.testing.assert_allclose(POSE, expected, atol=1e-12)


def test_angles_along_a_direction_turn_z_into_it() -> None:
    rng = np.random.default_rng(0)
    directions = np.array([[0, 0, 1.0], [0, 0, -2], [3, 0, 0], [1, -1, 0.5]])
    found = pose_matrices(angles_along(directions, rng))[:, :, 2]
    expected = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_random_angles_are_uniform_over_rotations() -> None:
    matrices = pose_matrices(random_angles(20000, np.random.default_rng(1)))
    np.testing.assert_allclose(matrices.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose((matrices**2).mean(axis=0), 1 / 3, atol=0.02)


@pytest.mark.parametrize("sampling", ["point", "average"])
def test_sum_of_the_turned_volume_is_the_projection(sampling: str) -> None:
    volume = render_volume(move_scatterers(BODY, POSE), (48, 40, 44), 4.0, sampling=sampling)
    image = project_scatterers(BODY, POSE, (40, 44), 4.0, sampling=sampling)
    assert np.abs(volume.sum(axis=0) * 4.0 - image).max() < 1e-5 * image.max()


def test_nothing_is_lost() -> None:
    volume = render_volume(BODY, (48, 48, 48), 4.0)
    image = project_scatterers(BODY, POSE, (48, 49), 4.0)
    assert volume.sum(dtype=float) * 64 == pytest.approx(BODY.total_v_a3, rel=1e-5)
    assert image.sum() * 16 == pytest.approx(BODY.total_v_a3, rel=1e-5)


def test_transform_of_the_volume_is_the_direct_sum() -> None:
    n, voxel = 48, 4.0
    transform = np.fft.fftn(np.fft.ifftshift(render_volume(BODY, (n, n, n), voxel))) * voxel**3
    k = np.fft.fftfreq(n, voxel)
    index = np.random.default_rng(2).integers(-8, 9, (40, 3))
    frequencies = k[index[:, ::-1]]
    exact = transform_scatterers(BODY, frequencies)
    found = transform[tuple(index.T)]
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def test_transform_keeps_the_shape_of_the_frequencies() -> None:
    assert transform_scatterers(BODY, np.zeros((2, 3, 3))).shape == (2, 3)
    assert transform_scatterers(BODY, np.zeros((2, 3, 3)))[0, 0] == pytest.approx(BODY.total_v_a3)


@pytest.mark.parametrize("shape", [(48, 48), (47, 50)])
def test_central_section_is_the_drawn_projection(shape: tuple[int, int]) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = POSE
    matrix[:2, 3] = 5.0, -3.0
    drawn = project_scatterers(BODY, matrix, shape, 4.0, sampling="point")
    summed = np.fft.irfft2(project_scatterers_rfft(BODY, matrix, shape, 4.0), s=shape)
    assert np.abs(drawn - summed).max() < 1e-3 * drawn.max()


def test_a_gaussian_lands_where_the_matrix_says() -> None:
    one = Scatterers(np.array([[10.0, -20.0, 30.0]]), np.array([1.0]), np.array([6.0]))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(1, 40.0)
    matrix[:2, 3] = 3.0, 4.0
    image = project_scatterers(one, matrix, (32, 40), 5.0)
    y, x = np.mgrid[:32, :40]
    c, s = np.cos(np.deg2rad(40)), np.sin(np.deg2rad(40))
    assert (image * x).sum() / image.sum() == pytest.approx(20 + (10 * c + 30 * s + 3) / 5, abs=1e-4)
    assert (image * y).sum() / image.sum() == pytest.approx(16 + (-20 + 4) / 5, abs=1e-4)


def test_magnification_moves_and_widens() -> None:
    one = Scatterers(np.array([[20.0, 0.0, 0.0]]), np.array([2.0]), np.array([5.0]))
    image = project_scatterers(one, np.diag([1.1, 1.1, 1.0]), (33, 33), 4.0)
    x = np.arange(33)
    mean = (image * x).sum() / image.sum()
    assert mean == pytest.approx(16 + 22 / 4, abs=1e-4)
    variance = (image * (x - mean) ** 2).sum() / image.sum() * 16
    assert variance == pytest.approx((5 * 1.1) ** 2 + 16 / 12, rel=1e-3)
    # The projected potential of a point stays; its area grows.
    assert image.sum() * 16 == pytest.approx(2.0 * 1.21, rel=1e-5)


def test_what_lies_outside_is_cut_and_empty_bodies_are_dark() -> None:
    far = move_scatterers(BODY, translation_angstrom=(1e4, 0, 0))
    assert project_scatterers(far, np.eye(3), (16, 16), 4.0).max() == 0
    nothing = Scatterers(np.empty((0, 3)), np.empty(0), np.empty(0))
    assert render_volume(nothing, (4, 4, 4), 1.0).max() == 0
    assert project_scatterers(nothing, np.eye(3), (4, 4), 1.0).max() == 0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: render_volume(BODY, (4, 4), 1.0), "shape"),  # type: ignore[arg-type]
        (lambda: render_volume(BODY, (4, 4, 4), 0.0), "pixel or voxel"),
        (lambda: render_volume(BODY, (4, 4, 4), 1.0, sampling="best"), "sampling"),  # type: ignore[arg-type]
        (lambda: project_scatterers(BODY, np.eye(2), (4, 4), 1.0), "matrix"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        call()


@pytest.mark.relion
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (35.0, 65.0, -20.0), (-120.0, 100.0, 80.0)])
def test_relion_projects_the_truth_volume_to_our_image(
    angles: tuple[float, float, float], relion: Callable[..., str], tmp_path: Path
) -> None:
    volume = render_volume(BODY, (64, 64, 64), 3.0)
    with mrcfile.new(tmp_path / "map.mrc", data=volume) as file:
        file.voxel_size = 3.0
    options = ("--rot", angles[0], "--tilt", angles[1], "--psi", angles[2], "--angpix", 3.0)
    relion("relion_project", "--i", "map.mrc", "--o", "image.mrc", *options)
    theirs = np.asarray(mrcfile.read(tmp_path / "image.mrc")).reshape(64, 64) * 3.0
    ours = project_scatterers(BODY, pose_matrices(angles), (64, 64), 3.0, sampling="point")
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.9995
