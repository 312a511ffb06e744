"""`average`: the average of particles from their tilt images, in two halves."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.average_figures import draw_average
from verglas.steps.average_maps import (
    AverageMaps,
    MapSize,
    average_all,
    average_halves,
    list_average_files,
    read_average,
    read_registration,
)
from verglas.steps.half_curves import (
    LOCAL_CAPTION,
    draw_curves,
    map_local_resolution,
    tell_resolution,
    write_curves,
)
from verglas.steps.series_particles import (
    BoxedTomograms,
    LossyIce,
    SeriesParticles,
    list_particle_items,
    list_series_particles,
    open_particles,
)
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.averaging.halves import HalfSums


class AverageParams(Params):
    """Average particles from their tilt images: two half maps, their correlation, and a Wiener-filtered map."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[
        Path, Field(description="`particles.star` with poses and half sets; positions are in the specimen")
    ]
    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    tomograms: BoxedTomograms = None
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
        Literal["sphere", "molecule"] | Path,
        Field(
            description="for the correlation: a soft `sphere` of the radius, the `molecule` as it is found in the "
            "map, or an MRC of the map's size, 0 to 1"
        ),
    ] = "sphere"
    score_weight: Annotated[
        float,
        Field(ge=0, description="how strongly particles that score below the mean lose detail; 0 does not"),
    ] = 0.0
    final: Annotated[
        Path | None,
        Field(
            description="job folder of `average` of the same particles: make one map of all, the second half set "
            "moved onto the first, with the mask, correlation and filter of that job"
        ),
    ] = None
    bfactor: Annotated[
        tuple[float, ...],
        Field(description="one more map for each, sharpened by so many Å²; positive sharpens"),
    ] = ()
    mtf: Annotated[
        Path | None,
        Field(
            description="STAR of the detector's transfer function, as RELION's; sharpened maps are divided by it"
        ),
    ] = None
    mtf_pixel_size: Annotated[
        float | None,
        Field(gt=0, description="of the detector's pixels, in Å; that of the images when not given"),
    ] = None
    ice_thickness: LossyIce = 0.0
    ctf: Annotated[bool, Field(description="correct the CTF at each particle's own defocus")] = True


def list_items(params: AverageParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.ops.symmetry import symmetry_matrices

    symmetry_matrices(params.symmetry)
    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    _choose_size(params, next(iter(found.values())))
    items = list_particle_items(found)
    if params.mtf is not None:
        check_exists(params.mtf, "transfer function")
    if params.final is None:
        return items
    if params.mask != "sphere":
        raise UserError(f"`mask` {str(params.mask)!r} cannot be given with `final`, whose mask is taken")
    paths = list_average_files(params.final)
    return [replace(item, inputs=(*item.inputs, *paths)) for item in items]


def _choose_size(params: AverageParams, one: SeriesParticles) -> tuple[float, int]:
    """Choose the pixel size and the box of the map; a final one has those of the half maps before it."""
    if params.final is not None:
        from verglas.io.mrc_header import read_mrc_header

        header = read_mrc_header(list_average_files(params.final)[0])
        return float(header.pixel_size_angstrom or one.pixel_size_angstrom), header.shape[0]
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

    from verglas.algo.averaging.registration import move_particles
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
    registration = None if params.final is None else read_registration(params.final)
    arrays: dict[str, Any] = {}
    for half in (1, 2):
        mine = one.particles.take(one.particles.half_set == half)
        scores = torch.from_numpy(np.nan_to_num(mine.score, nan=1.0))
        quality = quality_bfactors(scores, params.score_weight) if params.score_weight and len(mine) else None
        positions = torch.from_numpy(mine.positions_angstrom)
        rotations = euler_to_matrices(torch.from_numpy(mine.angles_deg))
        if registration is not None and half == 2:
            positions, rotations = move_particles(positions, rotations, registration)
        sums, weights = sum_particles(source, positions, rotations, symmetry, quality)
        arrays |= {f"sums{half}": sums.cpu().numpy(), f"weights{half}": weights.cpu().numpy()}
    path = f"sums/{item.name}.npz"
    write_arrays(context.folder / path, arrays)
    counts = [int((one.particles.half_set == half).sum()) for half in (1, 2)]
    return ItemResult((path,), {"particles": sum(counts), "half1": counts[0], "half2": counts[1]})


def summarise(results: dict[str, ItemResult], params: AverageParams, folder: Path) -> Summary:
    """Add up the sums, correlate the halves, filter, write the maps and draw them."""
    from verglas.ops.symmetry import symmetry_matrices

    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    used = [found[name] for name in results]
    pixel, box = _choose_size(params, used[0])
    size = MapSize(box, pixel, params.particle_radius)
    halves = _add_up(results, folder)
    if params.final is None:
        made = average_halves(halves, size, params.mask, symmetry_matrices(params.symmetry))
    else:
        made = average_all(halves, size, read_average(params.final))
    _write_maps(made.maps | _sharpen(made.maps["average"], params, used[0], pixel), pixel, folder)
    write_curves(made.curves, folder, made.describe())
    draw_curves(made.curves, folder)
    figures = draw_average(
        {name: made.maps[name].cpu().numpy() for name in ("half1", "half2", "average", "mask")},
        (halves[0] + halves[1]).weights,
        [one.particles for one in used],
        pixel,
        folder,
    )
    if params.final is not None:
        _, picture = map_local_resolution(made.compared, made.maps["mask"], pixel, folder)
        figures.append(Figure(picture, LOCAL_CAPTION))
    return _describe(results, params, made, figures)


def _sharpen(
    average: "torch.Tensor", params: AverageParams, one: SeriesParticles, pixel: float
) -> "dict[str, torch.Tensor]":
    """One map for each B-factor."""
    import torch

    from verglas.algo.averaging.halves import sharpen_map
    from verglas.io.detector_mtf import read_mtf

    transfer = None
    if params.mtf is not None:
        detector = params.mtf_pixel_size or one.series.pixel_size_angstrom
        places, values = (torch.from_numpy(array) for array in read_mtf(params.mtf))
        transfer = (places / detector, values)
    bfactors = params.bfactor or ((0.0,) if transfer else ())
    return {f"average_b{value:g}": sharpen_map(average, pixel, value, transfer) for value in bfactors}


def _write_maps(maps: "dict[str, torch.Tensor]", pixel: float, folder: Path) -> None:
    import torch

    from verglas.io.mrc import write_mrc

    # An earlier run, of fewer series, may have moved a half map that now stays: nobody may take that one for it.
    if "half2_registered" not in maps:
        (folder / "maps/half2_registered.mrc").unlink(missing_ok=True)
    for name, volume in maps.items():
        array = volume.to(torch.float32).cpu().numpy()
        write_mrc(folder / f"maps/{name}.mrc", array, voxel_size_angstrom=pixel)


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


def _describe(
    results: dict[str, ItemResult], params: AverageParams, made: AverageMaps, figures: list[Figure]
) -> Summary:
    count = sum(result.values["particles"] for result in results.values())
    moved = made.registration.displacement_angstrom(params.particle_radius)
    values = {
        "particles": Value(count, "", "in both half sets"),
        **tell_resolution(made.curves),
        "registration": Value(
            round(moved, 2), "Å", "by which the second half map's rim was moved onto the first's"
        ),
        "mask": Value(
            round(made.curves.solvent_factor, 2), "", "its volume over that of the molecule found in it"
        ),
    }
    return Summary(figures, values, made.warnings, ["fsc.star"])


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
