"""`compare average`: an average of simulated molecules, and their poses, beside the truth."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import Particles
from verglas.steps.map_results import read_volume
from verglas.steps.simulate import SimulateParams, make_species
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.shapes import Rotations, Vectors

_LIMITS_ANGSTROM = (120.0, 90.0, 60.0)
_OUTLIER_DEG = 15.0


class CompareAverageParams(Params):
    """Compare an average of simulated molecules, and their poses, with the truth."""

    average: Annotated[Path, Field(description="job folder of `average`")]
    particles: Annotated[Path, Field(description="`particles.star` that it was made from")]
    simulation: Annotated[Path, Field(description="job folder of `simulate`")]


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """What is left when the frames of specimens and of the map are brought onto the true ones.

    Parameters
    ----------
    turn, shift_angstrom
        `(3, 3)` and `(3,)` xyz that take the true molecule into the frame of the map.
    angles_deg, distances_angstrom
        `(p,)` of each particle that lies near a molecule.
    wrong
        How many lie near none.
    """

    turn: "Rotations"
    shift_angstrom: "Vectors"
    angles_deg: "torch.Tensor"
    distances_angstrom: "torch.Tensor"
    wrong: int


@dataclass(frozen=True, eq=False)
class AverageErrors:
    """Poses and map beside the truth.

    Parameters
    ----------
    poses
        Of the particles.
    average, truth
        `(n, n, n)` the filtered map, and the molecule in its frame.
    pixel_size_angstrom
        Of both.
    frequency, correlation
        `(s,)` 1/Å, and the correlation of the unfiltered map with the truth, within the map's mask: a filter cuts
        some directions off before others, and behind it a mask leaves nothing of what was there.
    truth_angstrom
        Where it falls to 0.5.
    half_maps_angstrom
        Where that of the half maps falls to 0.143.
    """

    poses: PoseErrors
    average: "torch.Tensor"
    truth: "torch.Tensor"
    pixel_size_angstrom: float
    frequency: "torch.Tensor"
    correlation: "torch.Tensor"
    truth_angstrom: float
    half_maps_angstrom: float


def list_items(params: CompareAverageParams) -> list[Item]:
    """One item: the average."""
    paths = (
        check_exists(params.particles, "table of particles"),
        *(
            check_exists(params.average / name, "file of the average")
            for name in (*_MAPS, *_HALVES, "fsc.star", "job.json")
        ),
        *(check_exists(params.simulation / name, "file of the simulation") for name in ("job.json", _TRUTH)),
    )
    return [Item("average", None, paths)]


_MAPS = ("maps/average.mrc", "maps/mask.mrc")
_HALVES = ("maps/half1.mrc", "maps/half2.mrc")
_TRUTH = "truth/particles.star"


def judge_average(simulation: Path, particles: Path, average: Path) -> AverageErrors:
    """Hold an average and the poses that it was made from against the truth.

    Parameters
    ----------
    simulation
        Job folder of `simulate`.
    particles
        Table of particles.
    average
        Job folder of `average`.
    """
    import torch

    from verglas.algo.simulation.render import render_volume
    from verglas.algo.simulation.scatterers import move_scatterers
    from verglas.io.relion_particles import read_particles
    from verglas.io.star import read_table
    from verglas.ops.fsc import fourier_shell_correlation, resolution_at

    symmetry = str(_read_params(average)["symmetry"])
    poses = compare_poses(read_particles(particles), read_particles(simulation / _TRUTH), symmetry)
    made = SimulateParams.model_validate(_read_params(simulation))
    body = make_species(made).scatterers
    (volume, pixel), (mask, _) = (read_volume(average / name) for name in _MAPS)
    moved = move_scatterers(body, poses.turn.numpy(), poses.shift_angstrom.numpy())
    size = volume.shape[0]
    truth = torch.from_numpy(render_volume(moved, (size,) * 3, pixel, sampling="average"))
    first, second = (torch.from_numpy(read_volume(average / name)[0]) for name in _HALVES)
    frequency, curve = fourier_shell_correlation((first + second) / 2, truth, pixel, torch.from_numpy(mask))
    label = "rlnFourierShellCorrelationCorrected"
    table = read_table(average / "fsc.star", "fsc", required=("rlnResolution", label))
    halves = torch.tensor(table[label].to_numpy(dtype=float)).to(frequency)
    return AverageErrors(
        poses,
        torch.from_numpy(volume),
        truth,
        pixel,
        frequency,
        curve,
        float(resolution_at(frequency, curve, 0.5)),
        float(resolution_at(frequency, halves, 0.143)),
    )


def _read_params(job: Path) -> dict[str, object]:
    params: dict[str, object] = json.loads((job / "job.json").read_text(encoding="utf-8"))["params"]
    return params


def compare_poses(found: Particles, truth: Particles, symmetry: str) -> PoseErrors:
    """Pair particles with molecules, fit the frame of each specimen and that of the map, and tell what is left.

    Parameters
    ----------
    found, truth
        Particles, and the molecules of the same series.
    symmetry
        Point group of the molecule.

    Raises
    ------
    UserError
        When hardly any particle lies near a molecule.
    """
    import torch

    from verglas.ops.rotation import euler_to_matrices

    turned = euler_to_matrices(torch.from_numpy(found.angles_deg))
    errors = _fit_frames(found, truth, symmetry)
    for _ in range(2):
        # Where the map lies off its middle, particles lie off their molecules, each in its own direction, which
        # disturbs the fit of the specimen's frame: again without that.
        total = errors.shift_angstrom
        moved = found.positions_angstrom + (turned @ total[:, None])[..., 0].numpy()
        errors = _fit_frames(replace(found, positions_angstrom=moved), truth, symmetry)
        errors = replace(errors, shift_angstrom=total + errors.shift_angstrom)
    return errors


def _fit_frames(found: Particles, truth: Particles, symmetry: str) -> PoseErrors:
    import torch

    from verglas.ops.rotation import angular_distance_deg, euler_to_matrices
    from verglas.ops.symmetry import symmetry_matrices

    pairs = [
        _bring_home(found.take(found.tomogram_names == name), truth.take(truth.tomogram_names == name))
        for name in np.unique(found.tomogram_names).tolist()
    ]
    if sum(len(pair.mine) for pair in pairs) < _FEWEST:
        raise UserError(
            f"fewer than {_FEWEST} of {len(found)} particles lie near a molecule of the simulation; expected the "
            "particles of its tilt series"
        )
    frames = torch.cat([torch.from_numpy(pair.turn).expand(len(pair.mine), 3, 3) for pair in pairs])
    right = euler_to_matrices(torch.from_numpy(np.concatenate([pair.true.angles_deg for pair in pairs])))
    mine = frames.mT @ euler_to_matrices(
        torch.from_numpy(np.concatenate([pair.mine.angles_deg for pair in pairs]))
    )
    mean = torch.eye(3, dtype=torch.float64)
    group = symmetry_matrices(symmetry).double()
    for _ in range(3):
        # Of the equivalent true orientations the one nearest to what was found.
        choices = right[:, None] @ group
        nearest = angular_distance_deg(choices @ mean.mT, mine[:, None]).argmin(1)
        relative = mine.mT @ choices[torch.arange(len(choices)), nearest]
        near = angular_distance_deg(relative, mean) < _OUTLIER_DEG
        if near.any():
            u, _, v = torch.linalg.svd(relative[near].mean(0))
            mean = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.det(u @ v))]).double()) @ v
    offsets = torch.from_numpy(np.concatenate([pair.offsets for pair in pairs]))
    local = (mine.mT @ offsets[..., None])[..., 0]
    # An axis of symmetry holds the map in its place.
    shift = (
        local[near].median(0).values if symmetry.upper() == "C1" and near.any() else torch.zeros(3).double()
    )
    return PoseErrors(
        mean,
        shift,
        angular_distance_deg(relative, mean),
        (local - shift).norm(dim=-1),
        len(found) - len(mine),
    )


_FEWEST = 4


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Particles of a specimen with their molecules, and the turn of its frame against the true one.

    `offsets` is where the molecule lies from the particle, in the true frame, Å.
    """

    mine: Particles
    true: Particles
    turn: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.float64]


def _bring_home(found: Particles, truth: Particles) -> _Pairs:
    """Fit a turn and a shift of the specimen by its particles, the nearest of which are taken for the same."""
    from scipy.spatial import cKDTree

    turn, shift = np.eye(3), np.zeros(3)
    tree = cKDTree(truth.positions_angstrom)
    for limit in _LIMITS_ANGSTROM:
        home = (found.positions_angstrom - shift) @ turn
        distances, nearest = map(np.asarray, tree.query(home))
        rows = np.flatnonzero(distances < limit)
        others = nearest[rows]
        if len(rows) >= _FEWEST:
            a, b = truth.positions_angstrom[others], found.positions_angstrom[rows]
            u, _, v = np.linalg.svd((b - b.mean(0)).T @ (a - a.mean(0)))
            turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v
            shift = b.mean(0) - a.mean(0) @ turn.T
    home = (found.positions_angstrom[rows] - shift) @ turn
    return _Pairs(found.take(rows), truth.take(others), turn, truth.positions_angstrom[others] - home)


def run_item(item: Item, params: CompareAverageParams, context: Context) -> ItemResult:
    """Judge the average, and draw it beside the truth."""
    from verglas.figures.comparison import draw_correlations, draw_side_by_side
    from verglas.ops.filters import apply_filter, gaussian_lowpass_filter

    one = judge_average(params.simulation, params.particles, params.average)
    shape = tuple(one.truth.shape)
    smooth = gaussian_lowpass_filter(
        shape, one.pixel_size_angstrom, max(one.truth_angstrom, 2 * one.pixel_size_angstrom)
    )
    middle = shape[0] // 2
    columns = [
        (label, volume.numpy()[middle], volume.numpy()[:, middle])
        for label, volume in (
            ("truth", one.truth),
            ("truth at the map's resolution", apply_filter(one.truth, smooth, dims=3)),
            ("average", one.average),
        )
    ]
    draw_side_by_side(
        columns,
        one.pixel_size_angstrom,
        context.folder / _FIGURES["map"],
        lowpass_angstrom=2 * one.pixel_size_angstrom,
    )
    draw_correlations(
        one.frequency.numpy(),
        [("average and truth", one.correlation.numpy())],
        context.folder / _FIGURES["fsc"],
    )
    values = {
        "turn_deg": float(one.poses.angles_deg.median()),
        "shift_angstrom": float(one.poses.distances_angstrom.median()),
        "particles": len(one.poses.angles_deg),
        "wrong": one.poses.wrong,
        "truth_angstrom": one.truth_angstrom,
        "half_maps_angstrom": one.half_maps_angstrom,
    }
    return ItemResult(tuple(_FIGURES.values()), values)


_FIGURES = {"map": "figures/map.png", "fsc": "figures/fsc.png"}


def summarise(results: dict[str, ItemResult], params: CompareAverageParams, folder: Path) -> Summary:
    """Tell how far poses and map are from the truth."""
    found = results["average"].values
    figures = [
        Figure(_FIGURES["map"], "central sections of the molecule and of its average; dense is bright"),
        Figure(
            _FIGURES["fsc"], "Fourier shell correlation of the average with the truth, within the map's mask"
        ),
    ]
    values = {
        "resolution": Value(
            round(found["truth_angstrom"], 1), "Å", "where the correlation with the truth falls to 0.5"
        ),
        "resolution of the halves": Value(
            round(found["half_maps_angstrom"], 1),
            "Å",
            "where theirs falls to 0.143, which should be the same",
        ),
        "particles": Value(found["particles"], "", f"near a molecule, and {found['wrong']} near none"),
        "turn": Value(round(found["turn_deg"], 2), "degrees", "between the median particle and its molecule"),
        "shift": Value(round(found["shift_angstrom"], 1), "Å", "between them"),
    }
    return Summary(figures, values)


def estimate(items: list[Item], params: CompareAverageParams) -> Estimate:
    """From the number of voxels."""
    from verglas.io.mrc import read_mrc_header

    voxels = int(np.prod(read_mrc_header(params.average / _MAPS[0]).shape))
    return Estimate((400 << 20) + 60 * voxels, 1 << 20, 5.0 + voxels / 1e6)


COMPARE_AVERAGE_STEP = Step(
    name="compare average",
    params=CompareAverageParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
