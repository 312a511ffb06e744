"""Poses held against the truth, whatever frames specimen and map have; and an average beside its molecule."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.io.relion_particles import read_particles, write_particles
from verglas.model import Particles
from verglas.ops.rotation import (
    euler_to_matrices,
    matrices_to_euler,
    random_rotations,
    rotation_vectors_to_matrices,
)
from verglas.ops.symmetry import symmetry_matrices
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.compare_average import COMPARE_AVERAGE_STEP, CompareAverageParams, compare_poses
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    return Particles(
        np.repeat(["A", "B"], 30),
        np.concatenate([rng.permutation(4 * 4 * 4)[:30] for _ in "AB"])[:, None] // [1, 4, 16] % 4 * 300.0
        - 450,
        matrices_to_euler(random_rotations(60, torch.Generator().manual_seed(1))).numpy(),
        np.ones(60),
        np.ones(60),
    )


def turn(degrees):
    return rotation_vectors_to_matrices(torch.tensor(degrees, dtype=torch.float64))


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_frames_of_specimen_and_map_are_fitted(truth, symmetry):
    generator = torch.Generator().manual_seed(2)
    specimen, reference, shift = (
        turn([1.0, -0.5, 1.5]),
        turn([3.0, 2.0, -1.0]),
        torch.tensor([4.0, -3.0, 2.0]),
    )
    if symmetry != "C1":
        shift = torch.zeros(3)
    group = symmetry_matrices(symmetry).double()
    chosen = group[torch.randint(len(group), (60,), generator=generator)]
    small = turn((0.5 * torch.randn(60, 3, generator=generator)).tolist())
    right = euler_to_matrices(torch.from_numpy(truth.angles_deg))
    # x_map = G x + s is the molecule in the frame of the map.
    mine = specimen @ right @ chosen @ reference.mT @ small
    places = (
        torch.from_numpy(truth.positions_angstrom)
        - ((right @ chosen @ reference.mT) @ shift.double()[:, None])[..., 0]
    )
    found = replace(
        truth,
        angles_deg=matrices_to_euler(mine).numpy(),
        positions_angstrom=(places @ specimen.mT + torch.tensor([20.0, -15.0, 40.0])).numpy(),
    )
    errors = compare_poses(found, truth, symmetry)
    assert errors.wrong == 0
    assert float(errors.angles_deg.median()) == pytest.approx(0.5 * 1.54, rel=0.3)
    assert float(errors.distances_angstrom.median()) < 0.5
    if symmetry == "C1":
        assert float((errors.turn - reference).abs().max()) < 0.01
        assert float((errors.shift_angstrom - shift).abs().max()) < 0.5


def test_particles_of_elsewhere_are_refused(truth):
    lost = replace(truth, positions_angstrom=truth.positions_angstrom + 1e5)
    with pytest.raises(UserError, match="fewer than 4 of 60 particles lie near a molecule"):
        compare_poses(lost, truth, "C1")


def test_an_average_of_true_poses_is_the_molecule(tmp_path):
    simulate = SimulateParams(
        image_size=(128, 128), pixel_size=20.0, thickness=800.0, tilt_step=10.0, exposure=12.0,
        copies=16, vesicles=0, gold=0, seed=3,
    )  # fmt: skip
    assert not run_step(SIMULATE_STEP, simulate, tmp_path / "simulate", options=QUIET).failed
    table = read_particles(tmp_path / "simulate/truth/particles.star")
    write_particles(tmp_path / "true.star", replace(table, half_set=1 + np.arange(len(table)) % 2))
    average = AverageParams(
        particles=tmp_path / "true.star",
        tilt_series=tmp_path / "simulate/truth/tilt_series.star",
        particle_radius=150.0,
    )
    assert not run_step(AVERAGE_STEP, average, tmp_path / "average", options=QUIET).failed
    params = CompareAverageParams(
        average=tmp_path / "average", particles=tmp_path / "true.star", simulation=tmp_path / "simulate"
    )
    report = run_step(COMPARE_AVERAGE_STEP, params, tmp_path / "compare", options=QUIET)
    assert not report.failed
    values = json.loads((tmp_path / "compare/items/average.json").read_text())["values"]
    assert values["particles"] == len(table)
    assert values["turn_deg"] < 0.05
    assert 40 <= values["truth_angstrom"] < 80
    assert (tmp_path / "compare/figures/map.png").stat().st_size > 5000
