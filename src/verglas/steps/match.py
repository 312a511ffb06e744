"""`match`: find molecules in tomograms by templates."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.model import TiltSeries, Tomogram, join_particles
from verglas.steps.series_results import gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.matching.bank import Bank
    from verglas.algo.matching.template import Template
    from verglas.algo.matching.volume import SearchVolume
    from verglas.steps.match_inputs import Region

_Extent = Annotated[float, Field(gt=0)]


class MatchParams(Params):
    """Find molecules in tomograms: search templates over places and orientations, and pick the peaks."""

    model_config = ConfigDict(allow_inf_nan=False)

    tomograms: Annotated[Path, Field(description="`tomograms.star`")]
    template: Annotated[
        tuple[Path, ...],
        Field(
            min_length=1,
            description="maps (.mrc) about the molecule's centre, or atomic models (.pdb, .cif); several at once",
        ),
    ]
    mask: Annotated[
        Path | None,
        Field(description="map from 0 to 1 in the template's frame, turned with it; a ball when not given"),
    ] = None
    radius: Annotated[
        float | None, Field(gt=0, description="of the ball, in Å; measured on the templates when not given")
    ] = None
    particle_radius: Annotated[
        tuple[_Extent, _Extent, _Extent] | None,
        Field(
            description="semi-axes of the particle in Å, x, y and z in the template's frame, within which no other "
            "is picked; the ball's radius when not given"
        ),
    ] = None
    lowpass: Annotated[float, Field(gt=0, description="finest detail that is compared, in Å")] = 40.0
    highpass: Annotated[
        float | None, Field(gt=0, description="coarsest detail that is compared, in Å; all when not given")
    ] = None
    bfactor: Annotated[
        float, Field(ge=0, description="fall-off of the molecules' detail in the tomogram, in Å²")
    ] = 8000.0
    pixel_size: Annotated[
        float | None, Field(gt=0, description="voxel of the search in Å; half of `lowpass` when not given")
    ] = None
    angle_step: Annotated[
        float, Field(gt=0, le=90, description="between orientations spread evenly over all, in degrees")
    ] = 15.0
    angle_search: Annotated[
        tuple[float, float, float, float] | None,
        Field(
            description="emClarity's grid in place of that: range and step out of plane, range and step in plane"
        ),
    ] = None
    helical: Annotated[
        bool, Field(description="with `angle_search`: helices along the template's y axis")
    ] = False
    symmetry: Annotated[str, Field(description="point group of the templates: C1, C4, D7, T, O, I, I2")] = (
        "C1"
    )
    bright_template: Annotated[
        bool,
        Field(description="matter is bright in the templates and dark in the tomograms, so turn it over"),
    ] = True
    size: Annotated[
        tuple[_Extent, _Extent, _Extent] | None,
        Field(description="extent of the region that is searched in x, y, z in Å; all when not given"),
    ] = None
    centre: Annotated[
        tuple[float, float, float] | None,
        Field(description="x, y, z of the region's centre in Å from the specimen's"),
    ] = None
    whiten: Annotated[bool, Field(description="divide each frequency by the tomogram's power there")] = False
    background: Annotated[
        bool,
        Field(description="subtract what templates of random phases score at each place; doubles the work"),
    ] = False
    false_positives: Annotated[
        float, Field(gt=0, description="maxima of noise that may be among the picks of a tomogram")
    ] = 10.0
    both_hills: Annotated[
        bool,
        Field(description="keep also picks that form a hill of their own below a clear gap in the scores"),
    ] = False
    expected: Annotated[
        int | None,
        Field(ge=1, description="emClarity's rule in place of that: number of molecules that are expected"),
    ] = None
    max_picks: Annotated[int, Field(ge=1, description="picks of a tomogram at most")] = 10000
    neighbours: Annotated[
        tuple[float, float, int] | None,
        Field(
            description="keep lattices only: distance in Å, angle in degrees and number of the neighbours that a "
            "pick needs"
        ),
    ] = None
    refine: Annotated[bool, Field(description="refine position and orientation of each pick")] = True
    half_sets: Annotated[
        Literal["random", "tomogram"], Field(description="deal out single picks, or whole tomograms")
    ] = "random"
    memory: Annotated[float, Field(gt=0, description="that the search may take, in GB")] = 4.0
    seed: Annotated[int, Field(ge=0, description="chooses half sets and random phases")] = 0


def list_items(params: MatchParams) -> list[Item]:
    """One item a tomogram."""
    from verglas.files import check_exists
    from verglas.io.relion_tilt_series import read_tilt_series
    from verglas.io.relion_tomograms import read_tomograms
    from verglas.steps.match_inputs import is_model, name_template

    _check_params(params)
    files = [*params.template, *([params.mask] if params.mask else [])]
    for path in files:
        check_exists(path, "template" if path != params.mask else "mask")
        if path != params.mask:
            is_model(path)
    names = [name_template(path) for path in params.template]
    if len(set(names)) < len(names):
        raise UserError(f"templates must have different names; got {', '.join(names)}")
    series = read_tilt_series(params.tomograms)
    tomograms = sorted(read_tomograms(params.tomograms), key=lambda one: (one.name, one.region))
    # All regions of a tomogram fall into one half set when these follow tomograms.
    numbers = {name: i for i, name in enumerate(dict.fromkeys(one.name for one in tomograms))}
    return [
        Item(
            "_".join(filter(None, (one.name, one.region))),
            (one, series[one.name], numbers[one.name]),
            (one.path, *files),
        )
        for one in tomograms
    ]


def _check_params(params: MatchParams) -> None:
    from verglas.steps.match_inputs import is_model

    if params.mask and len(params.template) > 1:
        raise UserError(f"`mask` goes with one template; got {len(params.template)}")
    if params.mask and is_model(params.template[0]):
        raise UserError("`mask` goes with a map on the same grid; got an atomic model as `template`")
    if params.centre and not params.size:
        raise UserError("`centre` goes with `size`, the extent of the region")
    if params.helical and not params.angle_search:
        raise UserError("`helical` goes with `angle_search`, the ranges and steps of its angles")
    make_rotations(params)


def make_rotations(params: MatchParams) -> "torch.Tensor":
    """Lay the grid of orientations, `(r, 3, 3)` template to specimen."""
    from verglas.ops.angles import emclarity_grid, uniform_grid

    if params.angle_search is None:
        return uniform_grid(params.angle_step, params.symmetry)
    return emclarity_grid(*params.angle_search, symmetry=params.symmetry, helical=params.helical)


@dataclass(frozen=True, eq=False)
class Search:
    """All that is searched for, and where."""

    volume: "SearchVolume"
    templates: "list[Template]"
    rotations: "torch.Tensor"
    filters: "torch.Tensor"
    bank: "Bank"
    region: "Region"
    radius_angstrom: float


def run_item(item: Item, params: MatchParams, context: Context) -> ItemResult:
    """Search one tomogram, pick the peaks, and write and draw them."""
    from verglas.jobs import digest_record, fingerprint_file
    from verglas.runtime import choose_device
    from verglas.steps.match_outputs import draw_search, write_search
    from verglas.steps.match_picks import choose_picks, correct_background
    from verglas.steps.match_search import remove_blocks, search_volume

    tomogram, series, number = item.record
    device = choose_device(context.device)
    search = prepare_search(tomogram, series, params, device)
    # What the blocks depend on is in the name of their folder.
    key = digest_record([params, [fingerprint_file(path).digest for path in item.inputs]])
    blocks = context.folder / "blocks" / f"{item.name}_{key[:12]}"
    scores = search_volume(
        search.volume,
        search.bank,
        memory_bytes=int(params.memory * 1e9),
        threads=context.threads,
        device=device,
        folder=blocks,
    )
    scores = correct_background(scores, len(search.templates))
    picks = choose_picks(search, scores, tomogram, params, number)
    outputs = write_search(item.name, search, scores, picks, tomogram, series, context.folder)
    figures = draw_search(item.name, search, picks, tomogram, context.folder)
    remove_blocks([blocks])
    values = {
        "picks": len(picks.particles),
        "threshold": picks.thresholds[0],
        "deviation": scores.deviation,
        "expected_false": picks.expected_false,
        "maxima": sum(len(heights) for heights in picks.maxima),
        "orientations": len(search.rotations),
        "voxels": int(np.prod(scores.best.shape[1:])),
        "voxel_size_angstrom": search.volume.voxel_size_angstrom,
        "radius_angstrom": search.radius_angstrom,
        "best_score": float(picks.particles.score.max()) if len(picks.particles) else None,
        "basis": len(search.bank.templates.volumes),
    }
    return ItemResult((*outputs, *figures), values, picks.warnings)


def prepare_search(
    tomogram: Tomogram, series: TiltSeries, params: MatchParams, device: "torch.device"
) -> Search:
    """Read tomogram and templates and bring them to one sampling and band.

    Raises
    ------
    UserError
        When sizes do not fit each other, or there is nothing to compare.
    """
    import torch

    from verglas.algo.matching.bank import build_bank
    from verglas.algo.matching.sampling import sampling_weights
    from verglas.algo.matching.template import randomise_template, template_box
    from verglas.algo.matching.volume import prepare_volume
    from verglas.ops.filters import bfactor_filter
    from verglas.steps.match_inputs import (
        check_sampling,
        check_scale,
        lay_region,
        make_templates,
        measure_radius,
        read_correction,
        read_density,
        read_region,
    )

    check_sampling(tomogram, params)
    densities = [read_density(path, params.lowpass / 8) for path in params.template]
    mask = read_density(params.mask, 1.0) if params.mask else None
    radius = params.radius or max(measure_radius(one, params.bright_template) for one in densities)
    region = lay_region(tomogram, params.size, params.centre)
    check_scale(densities, radius, region, tomogram, params)
    volume = prepare_volume(
        torch.from_numpy(read_region(tomogram, region)),
        tomogram.voxel_size_angstrom,
        search_voxel_angstrom=params.pixel_size or params.lowpass / 2,
        lowpass_angstrom=params.lowpass,
        highpass_angstrom=params.highpass,
        whiten=params.whiten,
    )
    voxel = volume.voxel_size_angstrom
    size = template_box(radius / voxel)
    filters = volume.make_filter(size) * bfactor_filter((size, size, size), voxel, params.bfactor)
    ctf, dose_weighted = read_correction(tomogram)
    filters *= sampling_weights(series, size, voxel, dose_weighted=dose_weighted, ctf=ctf)
    templates = make_templates(
        densities,
        mask,
        voxel=voxel,
        radius_angstrom=radius,
        lowpass_angstrom=params.lowpass,
        invert=params.bright_template,
    )
    twins = [randomise_template(one, params.seed + i) for i, one in enumerate(templates)]
    wanted = templates + (twins if params.background else [])
    rotations = make_rotations(params)
    bank = build_bank(wanted, [rotations] * len(wanted), filters, device=device)
    return Search(volume, templates, rotations, filters, bank, region, radius)


def summarise(results: dict[str, ItemResult], params: MatchParams, folder: Path) -> Summary:
    """Write the table of all picks and the list of orientations."""
    from verglas.io.relion_particles import read_particles, write_particles
    from verglas.io.relion_tilt_series import read_tilt_series
    from verglas.steps.match_outputs import CAPTIONS, write_orientations

    series = read_tilt_series(params.tomograms)
    tables = [read_particles(folder / f"particles/{name}.star") for name in results]
    particles = join_particles(tables)
    write_particles(folder / "particles.star", particles, series)
    write_orientations(folder / "orientations.txt", make_rotations(params).numpy())
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name, result in results.items()
        for kind, caption in CAPTIONS.items()
        if f"figures/{name}_{kind}.png" in result.outputs
    ]
    found = [result.values for result in results.values()]
    values = {
        "picks": Value(len(particles), "", "molecules in all tomograms"),
        "expected false": Value(
            round(sum(value["expected_false"] for value in found), 1), "", "maxima of noise among them"
        ),
        "orientations": Value(found[0]["orientations"], "", "tried at each place"),
        "voxel size": Value(round(found[0]["voxel_size_angstrom"], 3), "Å", "of the search"),
        "radius": Value(round(found[0]["radius_angstrom"], 1), "Å", "of the ball that is compared"),
        "voxels": Value(round(sum(value["voxels"] for value in found) / 1e6, 2), "million", "searched"),
    }
    return Summary(figures, values, gather_warnings(results), ["particles.star", "orientations.txt"])


def estimate(items: list[Item], params: MatchParams) -> Estimate:
    """From the numbers of voxels and orientations, and rates measured on one core."""
    import torch

    from verglas.algo.matching.search import has_fast_bfloat16
    from verglas.steps.match_inputs import lay_region

    rate = 2e8 if has_fast_bfloat16(torch.device("cpu")) else 5e7
    rotations = len(make_rotations(params)) * len(params.template) * (1 + params.background)
    seconds, disk = 0.0, 0
    largest = 0
    for item in items:
        tomogram: Tomogram = item.record[0]
        region = float(np.prod(lay_region(tomogram, params.size, params.centre).shape))
        voxel = max(params.pixel_size or params.lowpass / 2, tomogram.voxel_size_angstrom)
        voxels = region * (tomogram.voxel_size_angstrom / voxel) ** 3
        seconds += voxels * rotations / rate + region / 2e7 + 20.0
        disk += int(8 * voxels * len(params.template)) + (2 << 20)
        largest = max(largest, int(4 * region))
    return Estimate(int(params.memory * 1e9) + 4 * largest + (600 << 20), disk, seconds)


MATCH_STEP = Step(
    name="match",
    params=MatchParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
