"""Molecules in simulated tilt series, from disturbed poses to maps, held against the truth."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import move_scatterers
from verglas.io.mrc import read_mrc
from verglas.io.relion_particles import read_particles, write_particles
from verglas.io.star import read_table
from verglas.model import Particles
from verglas.ops.fsc import fourier_shell_correlation, resolution_at
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import (
    angular_distance_deg,
    euler_to_matrices,
    matrices_to_euler,
    rotation_vectors_to_matrices,
)
from verglas.ops.symmetry import symmetry_matrices
from verglas.shapes import Rotations, Vectors
from verglas.steps.align import ALIGN_STEP, AlignParams
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.particles import PARTICLES_STEP, ParticlesParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams, make_species
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


@dataclass(frozen=True)
class Verdict:
    """How far poses and map are from the truth, degrees and Å; the curves' values are resolutions in Å."""

    turn_deg: float
    shift_angstrom: float
    half_maps: float
    truth: float


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


def judge_cycle(case: Case, folder: Path, particles: Path, average: Path) -> Verdict:
    """Hold poses and maps against the truth, in the frame into which the maps have drifted as a whole."""
    truth = read_particles(folder / "simulate/truth/particles.star")
    turn, shift, angles, distances = compare_poses(read_particles(particles), truth, case.symmetry)
    pixel = case.simulation.pixel_size
    molecule = move_scatterers(make_species(case.simulation).scatterers, turn.numpy(), shift.numpy())
    expected = torch.from_numpy(render_volume(molecule, (case.box,) * 3, pixel, sampling="average"))
    radius = case.radius_angstrom / pixel
    mask = soft_sphere_mask((case.box,) * 3, radius, max(3.0, 0.2 * radius))
    found = torch.from_numpy(np.array(read_mrc(average / "maps/average.mrc")))
    frequency, curve = fourier_shell_correlation(found, expected, pixel, mask)
    table = read_table(
        average / "fsc.star", "fsc", required=("rlnResolution", "rlnFourierShellCorrelationCorrected")
    )
    halves = torch.tensor(table["rlnFourierShellCorrelationCorrected"].to_numpy(dtype=float))
    return Verdict(
        float(angles.median()),
        float(distances.median()),
        float(resolution_at(frequency, halves.to(frequency), 0.143)),
        float(resolution_at(frequency, curve, 0.5)),
    )


def compare_poses(
    found: Particles, truth: Particles, symmetry: str
) -> tuple[Rotations, Vectors, torch.Tensor, torch.Tensor]:
    """Fit the turn G and shift s of the whole frame, p = p' + R' s and R = R' Gᵀ, and what is left of each particle.

    Returns
    -------
    turn, shift, angles, distances
        `(3, 3)` and `(3,)` that take the true molecule into the frame of the maps; `(p,)` degrees and Å.
    """
    near_found, rows = _pair(found, truth)
    found = found.take(near_found)
    right = euler_to_matrices(torch.from_numpy(truth.angles_deg[rows]))
    mine = euler_to_matrices(torch.from_numpy(found.angles_deg))
    group = symmetry_matrices(symmetry).double()
    mean = torch.eye(3, dtype=torch.float64)
    for _ in range(3):
        # Of the equivalent true orientations the one nearest to what was found.
        choices = right[:, None] @ group
        nearest = angular_distance_deg(choices @ mean.mT, mine[:, None]).argmin(1)
        equal = choices[torch.arange(len(choices)), nearest]
        relative = mine.mT @ equal
        near = angular_distance_deg(relative, mean) < _OUTLIER_DEG
        u, _, v = torch.linalg.svd(relative[near].mean(0))
        mean = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.det(u @ v))]).double()) @ v
    angles = angular_distance_deg(relative, mean)
    moved = torch.from_numpy(truth.positions_angstrom[rows] - found.positions_angstrom)
    local = (mine.mT @ moved[..., None])[..., 0]
    shift = local[near].median(0).values if symmetry == "C1" else torch.zeros(3, dtype=torch.float64)
    distances = (local - shift).norm(dim=-1)
    return mean, shift, angles, distances


_OUTLIER_DEG = 15.0
_NEAR_ANGSTROM = 60.0


def _pair(found: Particles, truth: Particles) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of the particles that lie near a true one, and the rows of those."""
    mine, theirs = [], []
    for name in np.unique(truth.tomogram_names).tolist():
        true_rows = np.flatnonzero(truth.tomogram_names == name)
        rows = np.flatnonzero(found.tomogram_names == name)
        tree = cKDTree(truth.positions_angstrom[true_rows])
        distances, nearest = map(np.asarray, tree.query(found.positions_angstrom[rows]))
        near = distances < _NEAR_ANGSTROM
        mine.append(rows[near])
        theirs.append(true_rows[nearest[near]])
    return np.concatenate(mine), np.concatenate(theirs)
