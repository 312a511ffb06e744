"""A simulated series with particles near their true poses, for the steps that cut particles."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from verglas.benchmarks.cases import disturb_particles
from verglas.io.relion_particles import read_particles, write_particles
from verglas.model import Particles
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)


@dataclass(frozen=True)
class Ribosomes:
    """Paths of a series, its tomogram and its particles, and the true particles."""

    series: Path
    tomograms: Path
    reference: Path
    particles: Path
    near: Path
    truth: Particles
    pixel: float = 14.0
    radius: float = 150.0


@pytest.fixture(scope="session")
def ribosomes(tmp_path_factory) -> Ribosomes:
    folder = tmp_path_factory.mktemp("ribosomes")
    params = SimulateParams(
        image_size=(160, 160),
        pixel_size=14.0,
        thickness=900.0,
        tilt_step=6.0,
        copies=26,
        vesicles=0,
        gold=0,
        seed=5,
        truth_voxel_size=14.0,
    )
    assert not run_step(SIMULATE_STEP, params, folder / "sim", options=QUIET).failed
    series = folder / "sim/truth/tilt_series.star"
    whole = ReconstructParams(tilt_series=series, ctf="3d", thickness=1200.0)
    assert not run_step(RECONSTRUCT_STEP, whole, folder / "rec", options=QUIET).failed
    truth = read_particles(folder / "sim/truth/particles.star")
    truth = truth.take(np.abs(truth.positions_angstrom[:, :2]).max(axis=1) < 900)
    truth = replace(truth, half_set=1 + np.arange(len(truth)) % 2, score=np.linspace(0.1, 0.9, len(truth)))
    write_particles(folder / "true.star", truth)
    write_particles(folder / "near.star", disturb_particles(truth))
    reference = next((folder / "sim/truth/references").glob("*.mrc"))
    return Ribosomes(
        series, folder / "rec/tomograms.star", reference, folder / "true.star", folder / "near.star", truth
    )
