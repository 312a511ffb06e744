"""Scores, positions and orientations against plain numpy on molecules drawn by direct sums."""

import numpy as np
import pytest
import torch

from tests.unit.matching.cases import VOXEL, draw_molecules
from verglas.algo.matching.bank import build_bank
from verglas.algo.matching.refinement import refine_picks
from verglas.algo.matching.search import cut_block, plan_blocks, search_block
from verglas.algo.matching.template import prepare_template, template_box
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import move_scatterers
from verglas.ops.rotation import angular_distance_deg, random_rotations, rotation_vectors_to_matrices

RADIUS = 120.0
SIZE = template_box(RADIUS / VOXEL)


def make_smooth_molecule():
    # Nothing beyond 40 Å, so that the low-pass of the template changes nothing.
    return make_blob_phantom(30, 70.0, seed=5, sigma_angstrom=22.0)


@pytest.fixture(scope="module")
def template():
    density = torch.from_numpy(render_volume(make_smooth_molecule(), (60, 60, 60), 5.0))
    return prepare_template(
        "smooth", density, 5.0, search_voxel_angstrom=VOXEL, radius_angstrom=RADIUS, lowpass_angstrom=40.0
    )


def correlate_directly(volume, matrix, place):
    """Pearson's coefficient of the turned molecule and the volume under a ball with a raised-cosine edge."""
    turned = -render_volume(move_scatterers(make_smooth_molecule(), matrix), (SIZE,) * 3, VOXEL)
    axes = np.meshgrid(*[np.arange(SIZE) - SIZE // 2] * 3, indexing="ij")
    beyond = np.sqrt(sum(axis**2 for axis in axes)) - RADIUS / VOXEL
    weight = np.where(beyond <= 0, 1.0, 0.5 + 0.5 * np.cos(np.pi * np.clip(beyond, 0, 1))).ravel()
    corner = [p - SIZE // 2 for p in place]
    box = volume[tuple(slice(c, c + SIZE) for c in corner)].astype(float).ravel()
    first, second = (v - np.average(v, weights=weight) for v in (turned.astype(float).ravel(), box))
    return (weight * first * second).sum() / np.sqrt((weight * first**2).sum() * (weight * second**2).sum())


def test_scores_are_those_of_plain_numpy(template):
    rng = np.random.default_rng(0)
    matrices = random_rotations(4, torch.Generator().manual_seed(4))
    shape = (24, 26, 28)
    volume = draw_molecules(shape, [(12, 12, 13)], matrices[:1].numpy(), noise=0.7)
    bank = build_bank([template], [matrices], torch.ones(SIZE, SIZE, SIZE // 2 + 1), kept=1.0)
    (block,) = plan_blocks(shape, bank, 1 << 30)
    found = search_block(cut_block(volume, block, SIZE), bank, floor=1e-6, half=False)
    places = np.stack([rng.integers(SIZE // 2, n - SIZE // 2, 25) for n in shape], axis=1)
    for place in [(12, 12, 13), *map(tuple, places)]:
        direct = [correlate_directly(volume.numpy(), matrix.numpy(), place) for matrix in matrices]
        assert float(found.best[0][place]) == pytest.approx(max(direct), abs=0.01)
        runner_up = np.sort(direct)[-2]
        if max(direct) - runner_up > 0.02:
            assert int(found.orientation[0][place]) == int(np.argmax(direct))


def test_refinement_finds_position_and_orientation(template):
    """From the nearest grid point, 10 degrees and half a voxel off, to within a degree and a tenth of a voxel."""
    truth = random_rotations(6, torch.Generator().manual_seed(7))
    places = np.array([[14, 14, 14], [14, 14, 40], [14, 40, 14], [14, 40, 40], [40, 14, 14], [40, 40, 40]])
    offsets = np.random.default_rng(1).uniform(-0.5, 0.5, places.shape)
    body = make_smooth_molecule()
    shape = (56, 56, 56)
    volume = np.zeros(shape, np.float32)
    for place, matrix in zip(places + offsets, truth.numpy(), strict=True):
        volume -= render_volume(move_scatterers(body, matrix, ((place - 28) * VOXEL)[::-1]), shape, VOXEL)
    volume += 0.3 * volume.std() * np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    axis = np.random.default_rng(3).standard_normal((6, 3))
    turns = rotation_vectors_to_matrices(
        torch.from_numpy(10 * axis / np.linalg.norm(axis, axis=1, keepdims=True))
    )
    start = turns @ truth
    found = refine_picks(
        torch.from_numpy(volume),
        template,
        torch.from_numpy(places),
        start,
        torch.ones(SIZE, SIZE, SIZE // 2 + 1),
        step_deg=15.0,
        floor=1e-9,
    )
    errors = torch.stack(
        [angular_distance_deg(a, b[None])[0] for a, b in zip(found.matrices, truth, strict=True)]
    )
    # Half the voxels' shift alone would pass for a turn of five degrees.
    assert float(errors.max()) < 1
    assert np.abs(found.places.numpy() - places - offsets).max() < 0.1
    assert float(found.scores.min()) > 0.7
