"""`align`: particles aligned to the half maps of an average, or to a first reference."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
from verglas.model import join_particles
from verglas.steps.map_results import read_volume
from verglas.steps.series_particles import (
    SeriesParticles,
    list_particle_items,
    list_series_particles,
    open_particles,
)
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch


class AlignParams(Params):
    """Align particles, by their tilt images, to the half maps of an average or to a first reference."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[Path, Field(description="`particles.star` with poses and half sets")]
    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    average: Annotated[
        Path | None,
        Field(description="job folder of `average`; each half set is aligned to its own half map"),
    ] = None
    reference: Annotated[
        Path | None, Field(description="instead of `average`: an MRC map for both half sets, dense bright")
    ] = None
    lowpass: Annotated[float, Field(gt=0, description="finest detail of `reference` that is used, in Å")] = (
        60.0
    )
    particle_radius: Annotated[float, Field(gt=0, description="of the molecule, in Å")]
    resolution: Annotated[
        float | None,
        Field(gt=0, description="finest detail that is compared, in Å; that of the average when not given"),
    ] = None
    shared: Annotated[
        float,
        Field(gt=0, description="detail coarser than this, in Å, is taken from both half maps together"),
    ] = 40.0
    turn: Annotated[
        float,
        Field(ge=0, le=180, description="largest turn from the known orientation, in degrees; 180 is all"),
    ] = 12.0
    turn_step: Annotated[
        float, Field(gt=0, le=45, description="between orientations on the grid, in degrees")
    ] = 4.0
    shift: Annotated[float, Field(ge=0, description="largest shift on the grid, in Å")] = 20.0
    refine: Annotated[
        bool, Field(description="refine the best pose to fractions of a degree and of a pixel")
    ] = True
    rescore: Annotated[
        bool,
        Field(
            description="only score each particle, at the best pose found, against the half map of the other half "
            "set, to which it has given nothing and of which nothing is shared; all poses stay as they are"
        ),
    ] = False
    ice_thickness: Annotated[
        float,
        Field(
            ge=0,
            description="count the electrons that lose energy in ice this thick, in Å, as lost; 0 does not",
        ),
    ] = 0.0
    ctf: Annotated[bool, Field(description="account for the CTF at each particle's own defocus")] = True

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if (self.average is None) == (self.reference is None):
            raise ValueError("expected one of `average` and `reference`, and not both")
        if self.rescore and self.average is None:
            raise ValueError("`rescore` goes with `average`, whose half maps are independent")
        return self


def list_items(params: AlignParams) -> list[Item]:
    """One item a tilt series; its result depends on the maps too."""
    paths = _list_maps(params)
    found = list_series_particles(params.tilt_series, params.particles)
    return [replace(item, inputs=(*item.inputs, *paths)) for item in list_particle_items(found)]


def _list_maps(params: AlignParams) -> tuple[Path, ...]:
    from verglas.files import check_exists

    if params.reference is not None:
        return (check_exists(params.reference, "reference"),)
    assert params.average is not None  # `_check_references` saw to that
    names = ("maps/half1_filtered.mrc", "maps/half2_filtered.mrc", "fsc.star")
    return tuple(check_exists(params.average / name, "file of the average") for name in names)


def run_item(item: Item, params: AlignParams, context: Context) -> ItemResult:
    """Align the particles of one series, each half set to its own reference."""
    import torch

    from verglas.algo.averaging.alignment import SearchPlan, align_particles
    from verglas.algo.averaging.transfer import TransferModel
    from verglas.io.relion_particles import write_particles
    from verglas.ops.rotation import angular_distance_deg, euler_to_matrices, matrices_to_euler
    from verglas.runtime import choose_device

    one: SeriesParticles = item.record
    references, pixel, finest = _read_references(params)
    box = references[0].shape[-1]
    plan = SearchPlan(
        radius_angstrom=params.particle_radius,
        finest_angstrom=finest,
        turn_deg=params.turn,
        step_deg=params.turn_step,
        shift_angstrom=params.shift,
        refine=params.refine,
    )
    model = TransferModel(ctf=params.ctf, ice_thickness_angstrom=params.ice_thickness)
    source = open_particles(one, pixel, box, model, context)
    device = choose_device(context.device)
    before = one.particles
    positions = torch.from_numpy(before.positions_angstrom.copy())
    rotations = euler_to_matrices(torch.from_numpy(before.angles_deg))
    new_positions, new_rotations = positions.clone(), rotations.clone()
    scores = torch.zeros(len(before), dtype=torch.float64)
    for half, reference in enumerate(references, 1):
        served = 3 - half if params.rescore else half
        rows = torch.from_numpy(np.flatnonzero(before.half_set == served))
        if not len(rows):
            continue
        poses = align_particles(source, positions[rows], rotations[rows], reference.to(device), plan)
        scores[rows] = poses.scores
        # A pose that follows the other half's map would carry its noise into both.
        if not params.rescore:
            new_positions[rows], new_rotations[rows] = poses.positions_angstrom, poses.rotations
    after = replace(
        before,
        positions_angstrom=new_positions.numpy(),
        angles_deg=matrices_to_euler(new_rotations).numpy(),
        score=scores.numpy(),
    )
    path = f"particles/{item.name}.star"
    write_particles(context.folder / path, after, {item.name: one.series})
    values = {
        "particles": len(after),
        "score": float(scores.mean()),
        "turn_deg": float(angular_distance_deg(rotations, new_rotations).median()),
        "shift_angstrom": float((new_positions - positions).norm(dim=-1).median()),
        "finest_angstrom": finest,
    }
    return ItemResult((path,), values)


def _read_references(params: AlignParams) -> "tuple[list[torch.Tensor], float, float]":
    """Read the maps of the half sets, their pixel size, and the finest detail to compare."""
    import torch

    from verglas.algo.averaging.reference import share_low_resolution
    from verglas.ops.filters import apply_filter, gaussian_lowpass_filter

    paths = _list_maps(params)
    maps = {path: read_volume(path) for path in paths if path.suffix == ".mrc"}
    pixel = maps[paths[0]][1]
    volumes = [torch.from_numpy(volume) for volume, _ in maps.values()]
    for path, volume in zip(maps, volumes, strict=True):
        size = volume.shape[-1]
        if tuple(volume.shape) != (size,) * 3 or size % 2:
            raise UserError(
                f"{str(path)!r} has shape {tuple(volume.shape)}; expected a cube with an even side"
            )
        if size * pixel < 2.5 * params.particle_radius:
            raise UserError(
                f"{str(path)!r} is {size * pixel:g} Å wide; expected at least {2.5 * params.particle_radius:g} Å "
                f"for a `particle_radius` of {params.particle_radius:g} Å"
            )
    if params.reference is not None:
        low = apply_filter(
            volumes[0], gaussian_lowpass_filter(tuple(volumes[0].shape), pixel, params.lowpass), dims=3
        )
        return [low, low], pixel, params.resolution or params.lowpass
    halves = (volumes[0], volumes[1])
    if not params.rescore:
        halves = share_low_resolution(*halves, pixel, params.shared)
    return [*halves], pixel, params.resolution or _read_resolution(paths[2])


def _read_resolution(path: Path) -> float:
    """Where the corrected correlation falls to 0.143."""
    import torch

    from verglas.io.star import read_table
    from verglas.ops.fsc import resolution_at

    table = read_table(path, "fsc", required=("rlnResolution", "rlnFourierShellCorrelationCorrected"))
    frequency, curve = (
        torch.tensor(table[label].to_numpy(dtype=float))
        for label in ("rlnResolution", "rlnFourierShellCorrelationCorrected")
    )
    found = float(resolution_at(frequency, curve, 0.143))
    return found if np.isfinite(found) else float(1 / frequency[2])


def summarise(results: dict[str, ItemResult], params: AlignParams, folder: Path) -> Summary:
    """Join the particles of all series, and draw their scores and directions."""
    from verglas.figures.averages import draw_directions, draw_scores
    from verglas.io.relion_particles import read_particles, write_particles
    from verglas.io.relion_tilt_series import read_tilt_series

    tables = [read_particles(folder / result.outputs[0]) for result in results.values()]
    whole = join_particles(tables)
    series = {name: one for name, one in read_tilt_series(params.tilt_series).items() if name in results}
    write_particles(folder / "particles.star", whole, series)
    draw_scores(
        [(name, table.score) for name, table in zip(results, tables, strict=True)],
        folder / "figures/scores.png",
        label="constrained correlation",
    )
    draw_directions(whole.angles_deg, folder / "figures/directions.png")
    figures = [
        Figure("figures/scores.png", "correlation of each particle with its reference, by series"),
        Figure("figures/directions.png", "from where the particles are seen"),
    ]
    weights = [result.values["particles"] for result in results.values()]
    values = {
        "particles": Value(len(whole), "", "in both half sets"),
        "score": Value(_mean(results, "score", weights), "", "mean constrained correlation"),
        "turn": Value(_mean(results, "turn_deg", weights), "degrees", "by which the median particle turned"),
        "shift": Value(_mean(results, "shift_angstrom", weights), "Å", "by which it moved"),
        "compared to": Value(
            round(next(iter(results.values())).values["finest_angstrom"], 1), "Å", "finest detail"
        ),
    }
    return Summary(figures, values, [], ["particles.star"])


def _mean(results: dict[str, ItemResult], name: str, weights: list[int]) -> float:
    return round(float(np.average([result.values[name] for result in results.values()], weights=weights)), 4)


def estimate(items: list[Item], params: AlignParams) -> Estimate:
    """From the sizes of views and boxes, and rates measured on one core."""
    references, _, _ = _read_references(params)
    box = references[0].shape[-1]
    memory, seconds = 0, 0.0
    for item in items:
        one: SeriesParticles = item.record
        views = int(np.prod(one.series.image_shape)) * int(one.series.selected.sum())
        pixels = len(one.particles) * float(one.series.selected.sum()) * box**2
        memory = max(memory, 4 * views)
        seconds += pixels * 1.2e-6 + views / 5e7 + 2.0
    return Estimate(memory + _PROCESS_BYTES, sum(300 * len(item.record.particles) for item in items), seconds)


_PROCESS_BYTES = 1600 << 20

ALIGN_STEP = Step(
    name="align",
    params=AlignParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
