"""`align`: particles aligned to the half maps of an average, or to a first reference."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from verglas.model import join_particles
from verglas.steps.align_references import list_maps, prepare_references, read_box
from verglas.steps.particle_classes import number_classes
from verglas.steps.series_particles import (
    BoxedTomograms,
    LossyIce,
    SeriesParticles,
    list_particle_items,
    list_series_particles,
    open_particles,
)
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value


def _as_tuple(value: Any) -> Any:
    """Take one path for a list of one."""
    return (value,) if isinstance(value, str | Path) else value


class AlignParams(Params):
    """Align particles, by their tilt images, to the half maps of an average or to a first reference."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[Path, Field(description="`particles.star` with poses and half sets")]
    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    tomograms: BoxedTomograms = None
    average: Annotated[
        tuple[Path, ...],
        BeforeValidator(_as_tuple),
        Field(
            description="job folders of `average`, one for each class; each half set is aligned to its own half map"
        ),
    ] = ()
    reference: Annotated[
        tuple[Path, ...],
        BeforeValidator(_as_tuple),
        Field(
            description="instead of `average`: MRC maps, dense bright, or atomic models for both half sets, one for "
            "each class"
        ),
    ] = ()
    lowpass: Annotated[float, Field(gt=0, description="finest detail of `reference` that is used, in Å")] = (
        60.0
    )
    particle_radius: Annotated[float, Field(gt=0, description="of the molecule, in Å")]
    mask: Annotated[
        Path | None,
        Field(description="MRC of the maps' size, 0 to 1, by which references are multiplied; else a sphere"),
    ] = None
    recentre: Annotated[
        bool, Field(description="bring the centre of mass of each reference to the middle of its box")
    ] = False
    symmetry: Annotated[
        str, Field(description="point group of the references, for which `turn` 180 needs fewer orientations")
    ] = "C1"
    resolution: Annotated[
        float | None,
        Field(gt=0, description="finest detail that is compared, in Å; that of the average when not given"),
    ] = None
    shared: Annotated[
        float,
        Field(gt=0, description="detail coarser than this, in Å, is taken from both half maps together"),
    ] = 40.0
    turn: Annotated[
        float | None,
        Field(
            ge=0,
            le=180,
            description="largest turn from the known orientation, in degrees; 180 is all; two steps when not given",
        ),
    ] = None
    turn_step: Annotated[
        float | None,
        Field(
            gt=0,
            le=45,
            description="between orientations on the grid, in degrees; follows the resolution when not given",
        ),
    ] = None
    angle_search: Annotated[
        tuple[float, float, float, float] | None,
        Field(
            description="instead of `turn` and `turn_step`: emClarity's range and step out of plane, then in plane"
        ),
    ] = None
    shift: Annotated[
        float | None,
        Field(ge=0, description="largest shift on the grid, in Å; follows the resolution when not given"),
    ] = None
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
    ice_thickness: LossyIce = 0.0
    ctf: Annotated[bool, Field(description="account for the CTF at each particle's own defocus")] = True

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if bool(self.average) == bool(self.reference):
            raise ValueError("expected one of `average` and `reference`, and not both")
        if self.angle_search is not None and (self.turn is not None or self.turn_step is not None):
            raise ValueError("expected `angle_search` or `turn` and `turn_step`, and not both")
        if self.rescore and not self.average:
            raise ValueError("`rescore` goes with `average`, whose half maps are independent")
        return self


def list_items(params: AlignParams) -> list[Item]:
    """One item a tilt series; its result depends on the maps too."""
    from verglas.ops.angles import emclarity_grid
    from verglas.ops.symmetry import symmetry_matrices

    symmetry_matrices(params.symmetry)
    if params.angle_search is not None:
        emclarity_grid(*params.angle_search)
    paths = list_maps(params)
    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    return [replace(item, inputs=(*item.inputs, *paths)) for item in list_particle_items(found)]


def run_item(item: Item, params: AlignParams, context: Context) -> ItemResult:
    """Align the particles of one series, each half set to its own references."""
    import torch

    from verglas.algo.averaging.alignment import align_particles
    from verglas.algo.averaging.transfer import TransferModel
    from verglas.io.relion_particles import write_particles
    from verglas.ops.rotation import angular_distance_deg, euler_to_matrices, matrices_to_euler

    one: SeriesParticles = item.record
    ready = prepare_references(params, context)
    model = TransferModel(ctf=params.ctf, ice_thickness_angstrom=params.ice_thickness)
    source = open_particles(one, ready.pixel_size_angstrom, ready.box, model, context)
    before = one.particles
    positions = torch.from_numpy(before.positions_angstrom.copy())
    rotations = euler_to_matrices(torch.from_numpy(before.angles_deg))
    new_positions, new_rotations = positions.clone(), rotations.clone()
    scores = torch.zeros(len(before), dtype=torch.float64)
    classes = torch.ones(len(before), dtype=torch.int64)
    for half, references in enumerate(ready.halves, 1):
        rows = torch.from_numpy(np.flatnonzero(before.half_set == half))
        if len(rows):
            poses, chosen = align_particles(source, positions[rows], rotations[rows], references)
            scores[rows], classes[rows] = poses.scores, chosen + 1
            # A pose that follows the other half's map would carry its noise into both.
            if not params.rescore:
                new_positions[rows], new_rotations[rows] = poses.positions_angstrom, poses.rotations
    after = replace(
        before,
        positions_angstrom=new_positions.numpy(),
        angles_deg=matrices_to_euler(new_rotations).numpy(),
        score=scores.numpy(),
    )
    count = len(ready.halves[0])
    if count > 1:
        after = number_classes(after, classes.numpy())
    path = f"particles/{item.name}.star"
    write_particles(context.folder / path, after, {item.name: one.series})
    values = {
        "particles": len(after),
        "score": float(scores.mean()),
        "turn_deg": float(angular_distance_deg(rotations, new_rotations).median()),
        "shift_angstrom": float((new_positions - positions).norm(dim=-1).median()),
        "finest_angstrom": ready.finest_angstrom,
        "step_deg": ready.step_deg,
        "orientations": ready.orientations,
        "classes": torch.bincount(classes - 1, minlength=count).tolist(),
    }
    return ItemResult((path,), values)


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
    first = next(iter(results.values())).values
    values = {
        "particles": Value(len(whole), "", "in both half sets"),
        "score": Value(_mean(results, "score", weights), "", "mean constrained correlation"),
        "turn": Value(_mean(results, "turn_deg", weights), "degrees", "by which the median particle turned"),
        "shift": Value(_mean(results, "shift_angstrom", weights), "Å", "by which it moved"),
        "compared to": Value(round(first["finest_angstrom"], 1), "Å", "finest detail"),
        "orientations": Value(
            first["orientations"], "", f"on the grid of each particle, {first['step_deg']:.1f} degrees apart"
        ),
    }
    if len(first["classes"]) > 1:
        counts = np.sum([result.values["classes"] for result in results.values()], axis=0)
        values["classes"] = Value(", ".join(map(str, counts)), "", "particles in each")
    return Summary(figures, values, [], ["particles.star"])


def _mean(results: dict[str, ItemResult], name: str, weights: list[int]) -> float:
    return round(float(np.average([result.values[name] for result in results.values()], weights=weights)), 4)


def estimate(items: list[Item], params: AlignParams) -> Estimate:
    """From the sizes of views and boxes, and rates measured on one core."""
    box = read_box(params)
    memory, seconds = 0, 0.0
    for item in items:
        one: SeriesParticles = item.record
        views = int(np.prod(one.series.image_shape)) * int(one.series.selected.sum())
        pixels = len(one.particles) * float(one.series.selected.sum()) * box**2
        memory = max(memory, 4 * views)
        seconds += pixels * 5e-7 + views / 5e7 + 2.0
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
