"""`average`: the average of particles from their tilt images, in two halves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.model import Particles
from verglas.steps.half_curves import CURVES_CAPTION, draw_curves, write_curves
from verglas.steps.map_results import read_mask
from verglas.steps.series_particles import (
    SeriesParticles,
    list_particle_items,
    list_series_particles,
    open_particles,
)
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.averaging.halves import Curves, HalfSums


class AverageParams(Params):
    """Average particles from their tilt images: two half maps, their correlation, and a Wiener-filtered map."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[
        Path, Field(description="`particles.star` with poses and half sets; positions are in the specimen")
    ]
    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    tomograms: Annotated[
        Path | None,
        Field(
            description="`tomograms.star` of `reconstruct --ctf 3d`: cut particles from these as boxes "
            "instead of from the tilt images"
        ),
    ] = None
    pixel_size: Annotated[
        float | None, Field(gt=0, description="of the map, in Å; that of the images when not given")
    ] = None
    particle_radius: Annotated[float, Field(gt=0, description="of the molecule, in Å; outside is masked")]
    box: Annotated[
        int | None,
        Field(
            ge=16, le=1024, multiple_of=2, description="side of the map in pixels; four radii when not given"
        ),
    ] = None
    symmetry: Annotated[str, Field(description="point group: C1, C4, D7, T, O, I, I2")] = "C1"
    mask: Annotated[
        Path | None,
        Field(description="MRC of the map's size, 0 to 1, for the correlation; else a soft sphere"),
    ] = None
    score_weight: Annotated[
        float,
        Field(ge=0, description="how strongly particles that score below the mean lose detail; 0 does not"),
    ] = 0.0
    bfactor: Annotated[float, Field(description="sharpening of the final map, in Å²; positive sharpens")] = (
        0.0
    )
    ice_thickness: Annotated[
        float,
        Field(
            ge=0,
            description="count the electrons that lose energy in ice this thick, in Å, as lost; 0 does not",
        ),
    ] = 0.0
    ctf: Annotated[bool, Field(description="correct the CTF at each particle's own defocus")] = True


def list_items(params: AverageParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.ops.symmetry import symmetry_matrices

    symmetry_matrices(params.symmetry)
    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    _choose_size(params, next(iter(found.values())))
    return list_particle_items(found)


def _choose_size(params: AverageParams, one: SeriesParticles) -> tuple[float, int]:
    """Choose the pixel size and the box of the map."""
    pixel = max(params.pixel_size or 0.0, one.pixel_size_angstrom)
    box = params.box or 2 * int(np.ceil(2 * params.particle_radius / pixel))
    if box * pixel < 2.5 * params.particle_radius:
        raise UserError(
            f"a box of {box} pixels of {pixel:g} Å is {box * pixel:g} Å wide; expected at least "
            f"{2.5 * params.particle_radius:g} Å for a `particle_radius` of {params.particle_radius:g} Å"
        )
    return pixel, max(box, 16)


def run_item(item: Item, params: AverageParams, context: Context) -> ItemResult:
    """Sum the particles of one series, by half sets."""
    import torch

    from verglas.algo.averaging.sums import quality_bfactors, sum_particles
    from verglas.algo.averaging.transfer import TransferModel
    from verglas.io.arrays import write_arrays
    from verglas.ops.rotation import euler_to_matrices
    from verglas.ops.symmetry import symmetry_matrices

    one: SeriesParticles = item.record
    pixel, box = _choose_size(params, one)
    model = TransferModel(ctf=params.ctf, ice_thickness_angstrom=params.ice_thickness)
    source = open_particles(one, pixel, box, model, context)
    symmetry = symmetry_matrices(params.symmetry).double()
    arrays: dict[str, Any] = {}
    for half in (1, 2):
        mine = one.particles.take(one.particles.half_set == half)
        scores = torch.from_numpy(np.nan_to_num(mine.score, nan=1.0))
        quality = quality_bfactors(scores, params.score_weight) if params.score_weight and len(mine) else None
        sums, weights = sum_particles(
            source,
            torch.from_numpy(mine.positions_angstrom),
            euler_to_matrices(torch.from_numpy(mine.angles_deg)),
            symmetry,
            quality,
        )
        arrays |= {f"sums{half}": sums.cpu().numpy(), f"weights{half}": weights.cpu().numpy()}
    path = f"sums/{item.name}.npz"
    write_arrays(context.folder / path, arrays)
    counts = [int((one.particles.half_set == half).sum()) for half in (1, 2)]
    return ItemResult((path,), {"particles": sum(counts), "half1": counts[0], "half2": counts[1]})


def summarise(results: dict[str, ItemResult], params: AverageParams, folder: Path) -> Summary:
    """Add up the sums, correlate the halves, filter, write the maps and draw them."""
    import torch

    from verglas.algo.averaging.halves import correlate_halves, filter_average, reconstruct_half
    from verglas.io.mrc import write_mrc
    from verglas.ops.symmetry import symmetry_matrices

    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    used = [found[name] for name in results]
    pixel, box = _choose_size(params, used[0])
    halves = _add_up(results, folder)
    maps = {f"half{number}": reconstruct_half(half, box) for number, half in enumerate(halves, 1)}
    mask = _make_mask(params, box, pixel)
    curves = correlate_halves(
        maps["half1"],
        maps["half2"],
        pixel,
        mask,
        symmetry_order=len(symmetry_matrices(params.symmetry)),
        diameter_fraction=min(1.0, 2 * params.particle_radius / (box * pixel)),
    )
    for number, half in enumerate(halves, 1):
        maps[f"half{number}_filtered"] = filter_average(half, curves, box, pixel, whole=False)
    maps["average"] = filter_average(
        halves[0] + halves[1], curves, box, pixel, whole=True, bfactor_a2=params.bfactor
    )
    maps["mask"] = mask
    for name, volume in maps.items():
        write_mrc(
            folder / f"maps/{name}.mrc", volume.to(torch.float32).cpu().numpy(), voxel_size_angstrom=pixel
        )
    write_curves(curves, folder / "fsc.star")
    figures = _draw(maps["average"].cpu().numpy(), curves, [one.particles for one in used], pixel, folder)
    return _describe(results, curves, figures)


def _add_up(results: dict[str, ItemResult], folder: Path) -> "tuple[HalfSums, HalfSums]":
    import torch

    from verglas.algo.averaging.halves import HalfSums
    from verglas.io.arrays import read_arrays

    totals: dict[str, torch.Tensor] = {}
    for result in results.values():
        for name, array in read_arrays(folder / result.outputs[0], "Fourier sums").items():
            tensor = torch.from_numpy(array)
            totals[name] = totals[name] + tensor if name in totals else tensor
    first, second = (HalfSums(totals[f"sums{half}"], totals[f"weights{half}"]) for half in (1, 2))
    return first, second


def _make_mask(params: AverageParams, box: int, pixel: float) -> "torch.Tensor":
    import torch

    from verglas.ops.masks import soft_sphere_mask

    if params.mask is not None:
        return torch.from_numpy(read_mask(params.mask, (box, box, box)))
    radius = params.particle_radius / pixel
    return soft_sphere_mask((box,) * 3, radius, max(3.0, 0.2 * radius))


_CAPTIONS = {
    "average": "sections across z of the filtered average, from below to above, and its projections; dense is bright",
    "fsc": CURVES_CAPTION,
    "directions": "from where the particles are seen; gaps show as streaks in the map",
    "scores": "scores of the particles of each series",
}


def _draw(
    average: "np.ndarray[Any, Any]", curves: "Curves", particles: list[Particles], pixel: float, folder: Path
) -> list[Figure]:
    from verglas.figures.averages import draw_directions, draw_map, draw_scores

    draw_map(average, pixel, folder / "figures/average.png")
    draw_curves(curves, folder / "figures/fsc.png")
    draw_directions(np.concatenate([one.angles_deg for one in particles]), folder / "figures/directions.png")
    drawn = ["average", "fsc", "directions"]
    known = [(str(one.tomogram_names[0]), one.score[np.isfinite(one.score)]) for one in particles]
    if any(len(values) for _, values in known):
        draw_scores(known, folder / "figures/scores.png", label="score")
        drawn.append("scores")
    return [Figure(f"figures/{kind}.png", _CAPTIONS[kind]) for kind in drawn]


def _describe(results: dict[str, ItemResult], curves: "Curves", figures: list[Figure]) -> Summary:
    count = sum(result.values["particles"] for result in results.values())
    values = {
        "particles": Value(count, "", "in both half sets"),
        "resolution": Value(
            round(curves.resolution(), 2), "Å", "where the corrected correlation falls to 0.143"
        ),
        "resolution at 0.5": Value(round(curves.resolution(0.5), 2), "Å", "where it falls to 0.5"),
    }
    return Summary(figures, values, [], ["fsc.star"])


def estimate(items: list[Item], params: AverageParams) -> Estimate:
    """From the sizes of views and boxes, and rates measured on one core."""
    from verglas.ops.symmetry import symmetry_matrices

    memory, disk, seconds = 0, 0, 0.0
    operations = len(symmetry_matrices(params.symmetry))
    for item in items:
        one: SeriesParticles = item.record
        _, box = _choose_size(params, one)
        sums = 12 * (2 * box) ** 2 * (box + 1)
        views = int(np.prod(one.series.image_shape)) * int(one.series.selected.sum())
        pixels = len(one.particles) * float(one.series.selected.sum()) * box**2
        memory = max(memory, 4 * views + 3 * sums)
        disk += 2 * sums
        seconds += pixels * (1.5e-7 + 2.5e-7 * operations) + views / 5e7 + 1.0
    return Estimate(memory + _PROCESS_BYTES, disk, seconds + 5.0)


_PROCESS_BYTES = 800 << 20

AVERAGE_STEP = Step(
    name="average",
    params=AverageParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
