"""Molecules in simulated tilt series, from disturbed poses to maps."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from verglas.io.relion_particles import read_particles, write_particles
from verglas.ops.rotation import euler_to_matrices, matrices_to_euler, rotation_vectors_to_matrices
from verglas.steps.align import ALIGN_STEP, AlignParams
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.particles import PARTICLES_STEP, ParticlesParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step


@dataclass(frozen=True)
class Case:
    """A molecule, how it is imaged, and how it is averaged.

    Parameters
    ----------
    simulation
        Series and molecules.
    symmetry
        Point group.
    radius_angstrom
        Of the molecule.
    box
        Side of the maps, pixels.
    cycles
        Of align and average after the first average.
    match_step_deg, match_voxel_angstrom
        Of the search that the start poses would come from: orientations are off by up to half a step about each
        axis, places by up to half a voxel along each.
    """

    simulation: SimulateParams
    symmetry: str
    radius_angstrom: float
    box: int
    cycles: int
    match_step_deg: float = 12.0
    match_voxel_angstrom: float = 20.0


def simulate_case(case: Case, folder: Path, options: RunOptions) -> Path:
    """Simulate the series and write `start/particles.star`: disturbed poses in half sets.

    Returns
    -------
    Path
        The table.
    """
    run_step(SIMULATE_STEP, case.simulation, folder / "simulate", options=options)
    truth = read_particles(folder / "simulate/truth/particles.star")
    rng = np.random.default_rng(case.simulation.seed)
    turns = rng.uniform(-0.5, 0.5, (len(truth), 3)) * case.match_step_deg
    shifts = rng.uniform(-0.5, 0.5, (len(truth), 3)) * case.match_voxel_angstrom
    rotations = euler_to_matrices(torch.from_numpy(truth.angles_deg))
    disturbed = rotations @ rotation_vectors_to_matrices(torch.from_numpy(turns))
    start = replace(
        truth,
        positions_angstrom=truth.positions_angstrom + shifts,
        angles_deg=matrices_to_euler(disturbed).numpy(),
    )
    write_particles(folder / "start.star", start)
    run_step(
        PARTICLES_STEP,
        ParticlesParams(particles=(folder / "start.star",)),
        folder / "particles",
        options=options,
    )
    return folder / "particles/particles.star"


def average_and_align(
    case: Case, start: Path, folder: Path, options: RunOptions
) -> Iterator[tuple[Path, Path]]:
    """Run the cycles.

    Yields
    ------
    tuple
        Particles and the job folder of their average, for the start and each cycle.
    """
    series = folder / "simulate/truth/tilt_series.star"
    particles = start
    for cycle in range(case.cycles + 1):
        if cycle:
            align = AlignParams(
                particles=particles,
                tilt_series=series,
                average=(folder / f"average{cycle - 1}",),
                particle_radius=case.radius_angstrom,
                ice_thickness=case.simulation.thickness,
            )
            run_step(ALIGN_STEP, align, folder / f"align{cycle}", options=options)
            particles = folder / f"align{cycle}/particles.star"
        average = AverageParams(
            particles=particles,
            tilt_series=series,
            particle_radius=case.radius_angstrom,
            box=case.box,
            symmetry=case.symmetry,
            ice_thickness=case.simulation.thickness,
        )
        run_step(AVERAGE_STEP, average, folder / f"average{cycle}", options=options)
        yield particles, folder / f"average{cycle}"
