"""Crowded tomograms with known contents, and what a search makes of them.

Ribosome, proteasome and one of the decoys are atomic models where `VERGLAS_SHARED_DATA` has them, else solids of
about their shapes; the figures say which.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from verglas.algo.simulation.atoms import scatterers_from_atoms
from verglas.algo.simulation.phantoms import MACROMOLECULE_V, make_demo_ribosome
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import (
    Scatterers,
    centre_scatterers,
    coarsen_scatterers,
    join_scatterers,
    move_scatterers,
)
from verglas.algo.simulation.solids import fill_solid
from verglas.algo.simulation.specimen import Population, Species, Specimen, build_specimen
from verglas.algo.simulation.surroundings import surround_specimen, visible_extent
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.benchmarks.harness import Figure
from verglas.io.atoms import read_atoms
from verglas.io.mrc import create_mrc, write_mrc
from verglas.io.relion_particles import read_particles
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import ImageReference, Optics, Particles, TiltSeries
from verglas.ops.rotation import angular_distance_deg, euler_to_matrices
from verglas.ops.symmetry import symmetry_matrices
from verglas.ops.symmetry_search import find_symmetry_frame
from verglas.steps.match import MATCH_STEP, MatchParams
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.step import RunOptions, run_step

FloatArray = npt.NDArray[np.float64]

_PIXEL = 10.0
_EDGE_ANGSTROM = 180.0


@dataclass(frozen=True)
class _Level:
    """e/Å² of each of 41 views, the thickness in Å, and the share of the volume that small proteins fill."""

    exposure: float
    thickness: float = 1500.0
    filled: float = 0.0


_LEVELS = {
    "clean": _Level(12.0),
    "good": _Level(3.0),
    "poor": _Level(1.0),
    # With ribosomes and decoys some 200 g of protein a litre, as in the cells of which lamellae are milled.
    "in a cell": _Level(3.0, thickness=2000.0, filled=0.2),
}


@dataclass(frozen=True)
class _Target:
    """What is searched for: species, symmetry, band and step, Å and degrees, and the F1 that is asked for."""

    name: str
    symmetry: str
    lowpass: float
    step: float
    wanted: float


_TARGETS = (_Target("ribosome", "C1", 40.0, 15.0, 0.95), _Target("proteasome", "D7", 30.0, 12.0, 0.8))


_MANY_FALSE = 30.0
"""Enough to be counted."""


def find_in_crowd(quick: bool) -> Iterator[Figure]:
    """Search crowded tomograms of several noise levels; the quick case is a small one with ribosomes only."""
    levels = {"good": _LEVELS["good"]} if quick else _LEVELS
    cast = _make_cast(None if quick else _find_models())
    for name, level in levels.items():
        with tempfile.TemporaryDirectory(prefix="verglas-crowd-") as scratch:
            folder = Path(scratch)
            truth, size = _make_crowd(folder, cast, level, quick)
            for target in _TARGETS[:1] if quick else _TARGETS:
                yield from _judge(folder, truth, size, target, name, cast.kind)


@dataclass(frozen=True, eq=False)
class _Cast:
    """Species of a crowd, the two targets first, and what they are made of."""

    species: tuple[Species, ...]
    kind: str


_DATA = "VERGLAS_SHARED_DATA"
_MODELS = {"ribosome": "4v5d.cif.gz", "proteasome": "3j9i.pdb.gz", "ball": "6z6u.pdb.gz"}
_SPACING = 8.0
"""Å between the Gaussians that atoms are merged into, for images of 10 Å a pixel."""


def _find_models() -> Path | None:
    folder = Path(os.environ.get(_DATA, "../shared/data")) / "models"
    return folder if all((folder / name).exists() for name in _MODELS.values()) else None


def _make_cast(models: Path | None) -> _Cast:
    """Make a 70S ribosome, a 20S proteasome, a hollow ball like ferritin, a thick disc, and a rod."""
    solids = {
        "ribosome": make_demo_ribosome(),
        "proteasome": make_proteasome(10.0),
        **_make_decoys(10.0),
    }
    if models is None:
        return _Cast(tuple(Species(name, body) for name, body in solids.items()), "solids")
    bodies = {name: _read_body(models / file) for name, file in _MODELS.items()}
    barrel = bodies["proteasome"]
    density = torch.from_numpy(render_volume(barrel, (40, 40, 40), 6.0))
    # Templates with symmetry have their axes as the group's.
    bodies["proteasome"] = move_scatterers(barrel, find_symmetry_frame(density, "D7").rotation.numpy())
    return _Cast(tuple(Species(name, body) for name, body in (solids | bodies).items()), "atomic models")


def _read_body(path: Path) -> Scatterers:
    atoms = read_atoms(path)
    body = scatterers_from_atoms(
        atoms.positions_angstrom, atoms.atomic_numbers, atoms.b_factors_a2, atoms.occupancies
    )
    return centre_scatterers(coarsen_scatterers(body, _SPACING))


def make_proteasome(spacing_angstrom: float) -> Scatterers:
    """Build a barrel of four rings of seven, 150 Å long and 115 Å wide, hollow, with its axis along z."""

    def inside(points: FloatArray) -> npt.NDArray[np.bool_]:
        radius, angle = np.hypot(points[:, 0], points[:, 1]), np.arctan2(points[:, 1], points[:, 0])
        height = np.abs(points[:, 2])
        cavity = np.where(height < 20, 27.0, np.where(height < 38, 12.0, np.where(height < 62, 24.0, 8.0)))
        # The halves are mirrored by two-folds across the axis, so their lobes turn opposite ways.
        lobes = 54.0 + 4.0 * np.cos(7 * (angle + np.sign(points[:, 2]) * 0.1))
        return np.asarray((height < 75) & (radius < lobes) & (radius > cavity))

    return fill_solid(inside, (60.0, 60.0, 78.0), spacing_angstrom, MACROMOLECULE_V)


def _make_decoys(spacing: float) -> dict[str, Scatterers]:
    """Make a hollow ball like ferritin, a thick disc, and a rod."""

    def ball(points: FloatArray) -> npt.NDArray[np.bool_]:
        radius = np.linalg.norm(points, axis=1)
        return np.asarray((radius < 62) & (radius > 38))

    def disc(points: FloatArray) -> npt.NDArray[np.bool_]:
        return np.asarray((np.hypot(points[:, 0], points[:, 1]) < 75) & (np.abs(points[:, 2]) < 30))

    def rod(points: FloatArray) -> npt.NDArray[np.bool_]:
        return np.asarray((np.hypot(points[:, 0], points[:, 1]) < 25) & (np.abs(points[:, 2]) < 110))

    shapes = {"ball": (ball, 65.0), "disc": (disc, 78.0), "rod": (rod, 112.0)}
    return {
        name: fill_solid(inside, half, spacing, MACROMOLECULE_V) for name, (inside, half) in shapes.items()
    }


def _fill(specimen: Specimen, share: float) -> Specimen:
    """Put globular proteins of about 300 kDa anywhere but in the other molecules; they may touch each other."""
    radius, rng = 45.0, np.random.default_rng(1)
    extent = np.array(specimen.extent_angstrom)
    count = round(share * extent.prod() / (4 / 3 * np.pi * radius**3))
    places = (rng.random((count, 3)) - 0.5) * (extent - [0, 0, 2 * radius])
    reach = {species.name: species.scatterers.radius_angstrom for species in specimen.species}
    particles = specimen.particles
    for name, others in particles.extra.groupby("vglSpecies"):
        tree = cKDTree(particles.positions_angstrom[others.index])
        places = places[tree.query(places)[0] > 0.75 * reach[str(name)] + radius]

    def inside(points: FloatArray) -> npt.NDArray[np.bool_]:
        return np.asarray(np.linalg.norm(points, axis=1) < radius)

    body = fill_solid(inside, (radius, radius, radius), _PIXEL, MACROMOLECULE_V)
    proteins = [move_scatterers(body, translation_angstrom=place) for place in places]
    return replace(specimen, membranes=join_scatterers([specimen.membranes, *proteins]))


def _make_crowd(
    folder: Path, cast: _Cast, level: _Level, quick: bool
) -> tuple[Particles, tuple[float, float, float]]:
    """Write series, tomograms and templates; return the true molecules and the sides of the field, xyz."""
    side, thickness, share = (128, 800.0, 0.07) if quick else (320, level.thickness, 1.0)
    tilts = np.arange(-60.0, 61.0, 5.0 if quick else 3.0)
    counts = np.argsort(np.argsort(np.abs(tilts), kind="stable"))
    series = TiltSeries(
        name="crowd",
        optics=Optics(_PIXEL),
        image_shape=(side, side),
        images=tuple(ImageReference(folder / "crowd.mrc", i) for i in range(len(tilts))),
        nominal_tilt_deg=tilts,
        y_tilt_deg=tilts,
        exposure_e_per_a2=np.full(len(tilts), level.exposure),
        pre_exposure_e_per_a2=np.asarray(counts * level.exposure, dtype=float),
        defocus_u_angstrom=np.full(len(tilts), 30000.0),
        defocus_v_angstrom=np.full(len(tilts), 30000.0),
    )
    population = [
        Population(species, max(1, round(share * count)))
        for species, count in zip(cast.species, (90, 60, 60, 60, 60), strict=True)
    ]
    field = (side * _PIXEL, side * _PIXEL, thickness)
    gold = {"bead_count": 2 if quick else 10}
    vesicles = [] if quick else [300.0]
    inner = build_specimen("crowd", field, population, seed=1, vesicle_radii_angstrom=vesicles, **gold)
    whole = surround_specimen(inner, population, visible_extent(series, field[:2], thickness), seed=1, **gold)
    whole = _fill(whole, level.filled)
    images = simulate_tilt_series(whole, series, conditions=Conditions(ice_noise=True), seed=1)
    with create_mrc(folder / "crowd.mrc", images.shape, voxel_size_angstrom=_PIXEL, is_stack=True) as writer:
        writer.write(images)
    write_tilt_series(folder, [series])
    for species in cast.species[: len(_TARGETS)]:
        density = render_volume(species.scatterers, (60, 60, 60), 6.0)
        write_mrc(folder / f"{species.name}.mrc", density, voxel_size_angstrom=6.0)
    return inner.particles, field


def _search(folder: Path, depth: float, target: _Target, **choices: float | bool) -> tuple[Particles, float]:
    """Search one species; return the picks and how many of them are false by the program's own word."""
    quiet = RunOptions(quiet=True, device="cpu")
    tomograms = folder / f"tomo_{target.name}"
    reconstruct = ReconstructParams(
        tilt_series=folder / "tilt_series.star", pixel_size=target.lowpass / 2, thickness=depth + 300
    )
    params = MatchParams(
        tomograms=tomograms / "tomograms.star",
        template=(folder / f"{target.name}.mrc",),
        lowpass=target.lowpass,
        angle_step=target.step,
        symmetry=target.symmetry,
    ).model_copy(update=choices)
    found = folder / "_".join(["match", target.name, *choices])
    run_step(RECONSTRUCT_STEP, reconstruct, tomograms, options=quiet)
    run_step(MATCH_STEP, params, found, options=quiet)
    values = json.loads((found / "items/crowd.json").read_text())["values"]
    return read_particles(found / "particles.star"), float(values["expected_false"])


def _judge(
    folder: Path, truth: Particles, size: tuple[float, float, float], target: _Target, level: str, kind: str
) -> Iterator[Figure]:
    """Search one species and compare the picks with the truth."""
    particles, stated = _search(folder, size[2], target)
    molecules = truth.take(truth.extra["vglSpecies"].to_numpy() == target.name)
    right, precision, recall, angles = _compare(particles, molecules, size, target.symmetry)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    realistic = level == "in a cell"
    name = f"match.{target.name}.{level.replace(' ', '_')}"
    yield Figure(
        f"{name}.f1",
        f1,
        f"precision {precision:.2f}, recall {recall:.2f}, {right} right; {kind}",
        target=f"at least {target.wanted}" if realistic else "",
        holds=f1 >= target.wanted if realistic else None,
    )
    yield _count_false(name, particles, right, stated)
    if realistic:
        many, stated = _search(
            folder, size[2], target, false_positives=_MANY_FALSE, both_hills=True, refine=False
        )
        right = _compare(many, molecules, size, target.symmetry)[0]
        yield _count_false(f"{name}.all_hills", many, right, stated)
    error = float(np.median(angles)) if len(angles) else None
    yield Figure(
        f"{name}.angle",
        error,
        "degrees, median after refinement",
        target="at most 3",
        holds=None if error is None else error <= 3,
    )


def _count_false(name: str, particles: Particles, right: int, stated: float) -> Figure:
    wrong = len(particles) - right
    return Figure(
        f"{name}.false_picks",
        wrong,
        f"of {len(particles)} picks",
        target="within a factor of 2 of what was stated",
        holds=stated / 2 <= max(wrong, 1) <= 2 * max(stated, 1),
        peer="stated",
        peer_value=stated,
    )


def _compare(
    particles: Particles, truth: Particles, size: tuple[float, float, float], symmetry: str
) -> tuple[int, float, float, FloatArray]:
    """Right picks, precision, recall among molecules clear of the edges, and the right ones' errors in degrees."""
    limit = np.array(size[:2]) / 2 - _EDGE_ANGSTROM
    clear: npt.NDArray[np.bool_] = np.all(np.abs(truth.positions_angstrom[:, :2]) < limit, axis=1)
    distance = np.linalg.norm(particles.positions_angstrom[:, None] - truth.positions_angstrom[None], axis=2)
    rows, columns = linear_sum_assignment(np.minimum(distance, 100.0))
    near = distance[rows, columns] < 60.0
    rows, columns = rows[near], columns[near]
    found, true = (
        euler_to_matrices(torch.from_numpy(one))
        for one in (particles.angles_deg[rows], truth.angles_deg[columns])
    )
    group = symmetry_matrices(symmetry)
    errors = [float(angular_distance_deg(a, b @ group).min()) for a, b in zip(found, true, strict=True)]
    right = len(rows)
    precision = right / max(len(particles), 1)
    recall = float(clear[columns].sum() / max(clear.sum(), 1))
    return right, precision, recall, np.array(errors)
