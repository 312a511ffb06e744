"""`reconstruct`: tomograms from aligned tilt series."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
from verglas.model import AppliedWeights, TiltSeries, Tomogram
from verglas.steps.reconstruction import Part, make_grid, make_slabs, write_volumes
from verglas.steps.sections import Sections
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value
from verglas.steps.used_views import select_views

if TYPE_CHECKING:
    from verglas.ops.backprojection import VoxelGrid

_Extent = Annotated[float, Field(gt=0)]


class ReconstructParams(Params):
    """Reconstruct tomograms from aligned tilt series by weighted back-projection."""

    model_config = ConfigDict(allow_inf_nan=False)

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    pixel_size: Annotated[
        float | None, Field(gt=0, description="voxel size in Å; that of the images when not given")
    ] = None
    thickness: Annotated[
        float | None,
        Field(gt=0, description="extent along the beam in Å; what the series says, or 3000, when not given"),
    ] = None
    size: Annotated[
        tuple[_Extent, _Extent] | None,
        Field(
            description="extent in x and y in Å; what the series says, or that of the images, when not given"
        ),
    ] = None
    centre: Annotated[
        tuple[float, float, float],
        Field(description="x, y, z of the volume's centre in Å from the specimen's; to cut a region"),
    ] = (0.0, 0.0, 0.0)
    regions: Annotated[
        Path | None,
        Field(description="`regions.star`: reconstruct these parts, each into a volume of its own"),
    ] = None
    weighting: Annotated[
        Literal["ramp", "exact", "sirt"],
        Field(description="ramp (Radon), exact (Harauz and van Heel), or what rounds of SIRT would give"),
    ] = "ramp"
    sirt_iterations: Annotated[int, Field(ge=1, le=10000, description="rounds for `sirt`")] = 20
    ctf: Annotated[
        Literal["none", "flip", "multiply", "3d"],
        Field(
            description="correct the CTF in strips across the tilt axis: flip phases or multiply; 3d multiplies in "
            "slabs along the beam"
        ),
    ] = "none"
    resolution: Annotated[
        float | None,
        Field(gt=0, description="finest detail in Å that `ctf` 3d must keep; 2.5 voxels when not given"),
    ] = None
    defocus_step: Annotated[
        float | None,
        Field(gt=0, description="thickness of the slabs of `ctf` 3d in Å; by `resolution` when not given"),
    ] = None
    particles: Annotated[
        Path | None,
        Field(
            description="`particles.star`: `ctf` 3d corrects each slab along the surface on which these lie"
        ),
    ] = None
    defocus_at: Annotated[
        Literal["particles", "centre"],
        Field(
            description="what the views' defocus is that of: the mean height of `particles`, or the specimen's centre"
        ),
    ] = "particles"
    ice_thickness: Annotated[
        float,
        Field(
            ge=0,
            description="weight views by the electrons that lose no energy in ice this thick, in Å, and by their "
            "share of the exposure; 0 does not",
        ),
    ] = 0.0
    dose_weight: Annotated[bool, Field(description="weight frequencies by the exposure before each view")] = (
        True
    )
    normalise: Annotated[
        bool, Field(description="bring every view to mean 0 and standard deviation 1 first")
    ] = True
    halves: Annotated[
        bool, Field(description="also write two half tomograms, each from every other view")
    ] = False
    float16: Annotated[bool, Field(description="write half precision (MRC mode 12)")] = False

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.ctf != "3d":
            for name in ("resolution", "defocus_step", "particles"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` is for `ctf` 3d; got `ctf` {self.ctf}")
        if self.regions and (self.size or self.thickness or any(self.centre)):
            raise ValueError(
                "`regions` have extents of their own; expected no `size`, `thickness` or `centre`"
            )
        return self


def list_items(params: ReconstructParams) -> list[Item]:
    """One item a tilt series, or a region of one."""
    from verglas.io.relion_tilt_series import read_tilt_series

    series = read_tilt_series(params.tilt_series)
    places = _read_places(params, series)
    if params.regions is None:
        parts = {name: Part(one, particles_angstrom=places.get(name)) for name, one in series.items()}
    else:
        from verglas.io.regions import read_regions

        parts = {}
        for region in read_regions(params.regions):
            one = series.get(region.tomogram_name)
            if one is None:
                raise UserError(
                    f"region {region.name!r} is one of {region.tomogram_name!r}, which "
                    f"{str(params.tilt_series)!r} does not have; expected one of {', '.join(series)}"
                )
            parts[f"{one.name}_{region.name}"] = Part(one, region, places.get(one.name))
    return [
        Item(name, part, tuple(dict.fromkeys(image.path for image in part.series.images)))
        for name, part in parts.items()
    ]


def _read_places(
    params: ReconstructParams, series: dict[str, TiltSeries]
) -> dict[str, "np.ndarray[tuple[int, int], np.dtype[np.float64]]"]:
    """`(n, 3)` places of the particles in each series."""
    if params.particles is None:
        return {}
    from verglas.io.relion_particles import read_particles

    particles = read_particles(params.particles, series)
    return {
        name: particles.positions_angstrom[particles.tomogram_names == name]
        for name in np.unique(particles.tomogram_names).tolist()
    }


def run_item(item: Item, params: ReconstructParams, context: Context) -> ItemResult:
    """Reconstruct one series or region into `tomograms/`, and draw it."""
    from verglas.io.relion_tilt_series import write_one_tilt_series
    from verglas.io.weights import write_weights

    part: Part = item.record
    views = select_views(part.series, params)
    grid = make_grid(part.series, params, part.region)
    outputs = [f"tomograms/{item.name}.mrc"]
    if params.halves:
        outputs += [f"tomograms/{item.name}_half{i}.mrc" for i in (1, 2)]
    paths = [context.folder / name for name in outputs]
    sections, weights = write_volumes(paths, part, views, grid, params, context)
    tables = [f"tilt_series/{part.series.name}.star", f"weights/{item.name}.json"]
    write_one_tilt_series(context.folder / tables[0], part.series)
    write_weights(context.folder / tables[1], weights)
    figures = _draw(item.name, views, sections, context.folder, grid.voxel_size_angstrom)
    values = {
        "shape": list(grid.shape),
        "voxel_size_angstrom": grid.voxel_size_angstrom,
        "views": len(views),
        "left_out": len(part.series) - len(views),
        "slabs": len(weights.surfaces),
    }
    warnings = _warn_of_sampling(views, grid) + _warn_of_surfaces(weights, part)
    return ItemResult((*outputs, *tables, *figures), values, warnings)


def _warn_of_surfaces(weights: AppliedWeights, part: Part) -> tuple[str, ...]:
    if part.particles_angstrom is None or any(surface.particles for surface in weights.surfaces):
        return ()
    return ("no particle lies within the volume, so its slabs were corrected for their middles",)


def _warn_of_sampling(series: TiltSeries, grid: "VoxelGrid") -> tuple[str, ...]:
    voxel, pixel = grid.voxel_size_angstrom, series.pixel_size_angstrom
    if voxel > 0.99 * pixel:
        return ()
    return (f"voxels of {voxel:g} Å are finer than the images' pixels of {pixel:g} Å, and show nothing more",)


def summarise(results: dict[str, ItemResult], params: ReconstructParams, folder: Path) -> Summary:
    """Write `tomograms.star` and gather the figures."""
    from verglas.io.relion_tomograms import write_tomograms

    parts: dict[str, Part] = {item.name: item.record for item in list_items(params) if item.name in results}
    tomograms = [
        _describe_tomogram(name, parts[name], result, params, folder) for name, result in results.items()
    ]
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in _CAPTIONS.items()
    ]
    series = {part.series.name: part.series for part in parts.values()}
    entries = [(one, folder / f"tilt_series/{name}.star") for name, one in series.items()]
    write_tomograms(folder / "tomograms.star", tomograms, entries)
    voxels = sum(int(np.prod(tomogram.shape)) for tomogram in tomograms)
    left_out = sum(result.values["left_out"] for result in results.values())
    values = {
        "tomograms": Value(len(tomograms), "", "volumes reconstructed"),
        "voxel size": Value(tomograms[0].voxel_size_angstrom, "Å", "side of a voxel"),
        "voxels": Value(round(voxels / 1e6, 1), "million", "in all volumes together"),
        "views": Value(sum(result.values["views"] for result in results.values()), "", "summed"),
    }
    if params.ctf == "3d":
        slabs = sum(result.values["slabs"] for result in results.values())
        values["slabs"] = Value(slabs, "", "in all volumes, each with the CTF of its own height")
    warnings = [f"{left_out} views were left out, because they are not selected"] if left_out else []
    return Summary(figures, values, warnings, ["tomograms.star"])


def _describe_tomogram(
    name: str, part: Part, result: ItemResult, params: ReconstructParams, folder: Path
) -> Tomogram:
    grid = make_grid(part.series, params, part.region)
    volumes = [folder / output for output in result.outputs if output.endswith(".mrc")]
    return Tomogram(
        part.series.name,
        volumes[0],
        grid.shape,
        grid.voxel_size_angstrom,
        grid.centre_angstrom,
        (volumes[1], volumes[2]) if len(volumes) == 3 else None,
        part.region.name if part.region else "",
        folder / f"weights/{name}.json",
    )


def estimate(items: list[Item], params: ReconstructParams) -> Estimate:
    """From the sizes of the views and volumes, and rates measured on one core."""
    memory, disk, seconds = 0, 0, 0.0
    for item in items:
        part: Part = item.record
        series = part.series
        grid = make_grid(series, params, part.region)
        written = int(np.prod(grid.shape)) * (2 if params.float16 else 4) * (3 if params.halves else 1)
        updates = float(np.prod(grid.shape)) * series.selected.sum()
        pixels = float(np.prod(series.image_shape)) * series.selected.sum()
        memory = max(memory, _estimate_memory(part, grid, params))
        disk += written
        # The last is for the pictures.
        seconds += updates / 2e9 + pixels / 2e7 + written / 3e8 + 2.0 + _estimate_strips(part, grid, params)
    return Estimate(memory + _PROCESS_BYTES, disk, seconds)


def _usable(series: TiltSeries) -> TiltSeries | None:
    from verglas.ops.backprojection import MAX_TILT_DEG

    usable = series.selected & (np.abs(np.asarray(series.y_tilt_deg)) <= MAX_TILT_DEG)
    return series.take(usable) if usable.any() else None


def _estimate_strips(part: Part, grid: "VoxelGrid", params: ReconstructParams) -> float:
    """Seconds for the corrections in strips: a transform of the extended view for each."""
    from verglas.algo.reconstruction.filtering import filtered_shape
    from verglas.algo.reconstruction.strips import strip_step

    views = _usable(part.series)
    if params.ctf == "none" or views is None:
        return 0.0
    height, width = filtered_shape(views, grid.voxel_size_angstrom)
    scale = part.series.image_shape[1] * views.pixel_size_angstrom
    ramps = scale * np.abs(np.tan(np.deg2rad(np.asarray(views.y_tilt_deg))))
    strips = (ramps / strip_step(views, grid.voxel_size_angstrom) + 1.5).sum()
    return float(strips * len(make_slabs(part, views, grid, params)) * 2.25 * height * width / _STRIP_PIXELS)


def _estimate_memory(part: Part, grid: "VoxelGrid", params: ReconstructParams) -> int:
    from verglas.algo.reconstruction.filtering import filtered_shape, make_frames
    from verglas.algo.reconstruction.volume import block_rows
    from verglas.ops.backprojection import lay_rows

    used = _usable(part.series)
    if used is None:
        return 0
    view = int(np.prod(filtered_shape(used, grid.voxel_size_angstrom)))
    raw = int(np.prod(used.image_shape))
    slab = max(make_slabs(part, used, grid, params), key=lambda one: one.stop - one.start)
    sections = grid.sections(slab.start, slab.stop)
    block = sections.rows(0, block_rows(sections, 1 + params.halves))
    _, _, shape = lay_rows(make_frames(used, grid.voxel_size_angstrom), block)
    rows = int(np.prod(shape)) * len(used)
    # A block is summed while the one before is written, and halves are added up and doubled.
    blocks = int(np.prod(block.shape)) * (8 if params.halves else 2)
    # One view is read and brought to size, then extended and filtered, while the others wait; corrected for one
    # slab they are kept beside those that are not.
    filtering = _READING * raw + (_FILTERING if params.ctf == "none" else _CORRECTING) * view
    kept = (2 if params.ctf == "3d" else 1) * len(used) * view
    return 4 * (kept + max(filtering, rows + blocks))


_PROCESS_BYTES = 600 << 20
# Images in memory at once, as measured: of the size of a view as it was read, and as it is filtered.
_READING, _FILTERING, _CORRECTING = 4, 10, 24
# Pixels of an extended view that are corrected in a second.
_STRIP_PIXELS = 2e7
_CAPTIONS = {
    "slices": "central sections 200 Å thick, smoothed to 60 Å for the eye; dark is dense",
    "views": "the views at both ends and in the middle of the tilt range, smoothed to 60 Å; the dashed line is "
    "the tilt axis through the specimen's centre",
    "geometry": "the geometry that was used",
    "spectra": "rotational power spectra of the least exposed view and of the central section",
}


def _draw(name: str, series: TiltSeries, sections: Sections, folder: Path, voxel: float) -> list[str]:
    from verglas.figures.tilt_series import draw_geometry, draw_power_spectra, draw_views
    from verglas.figures.tomogram import draw_orthogonal_slices
    from verglas.io.mrc import read_image
    from verglas.steps.series_results import shrink

    paths = {kind: f"figures/{name}_{kind}.png" for kind in _CAPTIONS}
    draw_orthogonal_slices(sections.xy, sections.xz, sections.yz, voxel, folder / paths["slices"], title=name)
    tilts = np.asarray(series.y_tilt_deg)
    ends = list(dict.fromkeys([int(tilts.argmin()), int(np.abs(tilts).argmin()), int(tilts.argmax())]))
    small = [shrink(read_image(series.images[i]), series.pixel_size_angstrom) for i in ends]
    draw_views(
        [view for view, _ in small],
        # Adding 0 takes the sign off a zero.
        [f"{round(tilts[i], 1) + 0.0:+.1f}°" for i in ends],
        small[0][1],
        folder / paths["views"],
        tilt_axes=[
            (series.x_shift_angstrom[i], series.y_shift_angstrom[i], series.z_rot_deg[i]) for i in ends
        ],
    )
    draw_geometry(series, folder / paths["geometry"])
    first = read_image(series.images[int(series.pre_exposure_e_per_a2.argmin())])
    draw_power_spectra(
        [
            ("least exposed view", first, series.pixel_size_angstrom),
            ("central section", sections.xy, voxel),
        ],
        folder / paths["spectra"],
        title=name,
    )
    return list(paths.values())


RECONSTRUCT_STEP = Step(
    name="reconstruct",
    params=ReconstructParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
