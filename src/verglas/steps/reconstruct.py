"""`reconstruct`: tomograms from aligned tilt series."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.model import TiltSeries, Tomogram
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.reconstruction.filtering import ViewFilter
    from verglas.io.mrc import MrcWriter
    from verglas.ops.backprojection import VoxelGrid

SLAB_ANGSTROM = 200.0
"""Thickness of the sections drawn in the report."""


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
    weighting: Annotated[
        Literal["ramp", "exact", "sirt"],
        Field(description="ramp (Radon), exact (Harauz and van Heel), or what rounds of SIRT would give"),
    ] = "ramp"
    sirt_iterations: Annotated[int, Field(ge=1, le=10000, description="rounds for `sirt`")] = 20
    ctf: Annotated[
        Literal["none", "flip", "multiply"],
        Field(description="correct the CTF in strips across the tilt axis: flip phases or multiply"),
    ] = "none"
    dose_weight: Annotated[bool, Field(description="weight frequencies by the exposure before each view")] = (
        True
    )
    normalise: Annotated[
        bool, Field(description="bring every view to mean 0 and standard deviation 1 first")
    ] = True
    ice_thickness: Annotated[
        float | None,
        Field(
            gt=0,
            description="weight the views by what passes ice of this thickness in Å without loss and by their share "
            "of the exposure; emClarity takes 750; no weights when not given",
        ),
    ] = None
    halves: Annotated[
        bool, Field(description="also write two half tomograms, each from every other view")
    ] = False
    float16: Annotated[bool, Field(description="write half precision (MRC mode 12)")] = False


def list_items(params: ReconstructParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.io.relion_tilt_series import read_tilt_series

    series = read_tilt_series(params.tilt_series)
    return [
        Item(name, one, tuple(dict.fromkeys(image.path for image in one.images)))
        for name, one in series.items()
    ]


def run_item(item: Item, params: ReconstructParams, context: Context) -> ItemResult:
    """Reconstruct one series into `tomograms/`, and draw it."""
    from verglas.io.relion_tilt_series import write_one_tilt_series

    series = select_views(item.record, params)
    grid = make_grid(item.record, params)
    outputs = [f"tomograms/{item.name}.mrc"]
    if params.halves:
        outputs += [f"tomograms/{item.name}_half{i}.mrc" for i in (1, 2)]
    sections = write_volumes([context.folder / name for name in outputs], series, grid, params, context)
    table = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / table, item.record)
    figures = _draw(item.name, series, sections, context.folder, grid.voxel_size_angstrom)
    values = {
        "shape": list(grid.shape),
        "voxel_size_angstrom": grid.voxel_size_angstrom,
        "views": len(series),
        "left_out": len(item.record) - len(series),
    }
    return ItemResult((*outputs, table, *figures), values, _warn_of_sampling(series, grid))


def select_views(series: TiltSeries, params: ReconstructParams) -> TiltSeries:
    """Keep the selected views, in the order of their tilts.

    Raises
    ------
    UserError
        When there are too few, or one of them cannot be used.
    """
    from verglas.ops.backprojection import MAX_TILT_DEG

    used = series.take(series.selected) if series.selected.any() else None
    if used is None or len(used) < 1 + params.halves:
        need = "at least two for `halves`" if params.halves else "at least one"
        raise UserError(
            f"{len(used) if used else 0} of the {len(series)} views of {series.name!r} are selected; "
            f"expected {need}"
        )
    # Taken in order of tilt, every other view is half of the views at any angle.
    used = used.take(np.argsort(np.asarray(used.y_tilt_deg), kind="stable"))
    tilts = np.abs(np.asarray(used.y_tilt_deg))
    steepest = int(tilts.argmax())
    if tilts[steepest] > MAX_TILT_DEG:
        raise UserError(
            f"{_name_view(used, steepest)} is too steep to be back-projected; expected at most "
            f"{MAX_TILT_DEG:g}°, or that it is not selected"
        )
    unknown = np.flatnonzero(~np.isfinite(used.mean_defocus_angstrom))
    if params.ctf != "none" and len(unknown):
        raise UserError(
            f"{_name_view(used, unknown[0])} has no defocus; expected one for `ctf` {params.ctf!r}"
        )
    return used


def read_views(series: TiltSeries) -> Iterator[npt.NDArray[np.float32]]:
    """Read the views `(y, x)`, one after the other.

    Raises
    ------
    UserError
        When one cannot be read, is of another size than the record says, or holds values that are not finite.
    """
    from verglas.io.mrc import check_finite, read_image

    for row, image in enumerate(series.images):
        view = check_finite(read_image(image), _name_view(series, row))
        if view.shape != series.image_shape:
            raise UserError(
                f"{_name_view(series, row)} has (y, x) = {view.shape}; expected {series.image_shape}, as its "
                "record says"
            )
        yield view


def _name_view(series: TiltSeries, row: int) -> str:
    image, tilt = series.images[row], np.asarray(series.y_tilt_deg)[row]
    place = (
        f"{image.path.name}" if image.section is None else f"section {image.section + 1} of {image.path.name}"
    )
    return f"the view of {series.name!r} at {round(tilt, 1) + 0.0:+.1f}° ({place})"


def _warn_of_sampling(series: TiltSeries, grid: "VoxelGrid") -> tuple[str, ...]:
    voxel, pixel = grid.voxel_size_angstrom, series.pixel_size_angstrom
    if voxel > 0.99 * pixel:
        return ()
    return (f"voxels of {voxel:g} Å are finer than the images' pixels of {pixel:g} Å, and show nothing more",)


def write_volumes(
    paths: list[Path], series: TiltSeries, grid: "VoxelGrid", params: ReconstructParams, context: Context
) -> "Sections":
    """Reconstruct into one file, or into the whole and its halves.

    Parameters
    ----------
    paths
        One, or three with `halves`.
    series
        The views of :func:`select_views`.
    grid
        The voxels.
    params
        The weights.
    context
        Where it runs.

    Returns
    -------
    Sections
        The central sections of the whole.

    Raises
    ------
    UserError
        As :func:`read_views`.
    """
    import torch

    from verglas.algo.reconstruction.filtering import filter_views, make_frames
    from verglas.algo.reconstruction.volume import reconstruct_blocks, split_views
    from verglas.io.mrc import create_mrc
    from verglas.runtime import choose_device

    device = choose_device(context.device)
    subsets = [torch.arange(len(series))]
    if params.halves:
        halves = split_views(len(series))
        series = series.take(torch.cat(halves).tolist())
        # A half in one piece need not be copied.
        subsets = [torch.arange(len(halves[0])), torch.arange(len(halves[0]), len(series))]
    images = (torch.from_numpy(view).to(device) for view in read_views(series))
    views = filter_views(images, series, grid.voxel_size_angstrom, make_filter(params, grid))
    frames = make_frames(series, grid.voxel_size_angstrom)
    sections = Sections(grid.shape, grid.voxel_size_angstrom)
    dtype = np.float16 if params.float16 else np.float32
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                create_mrc(path, grid.shape, voxel_size_angstrom=grid.voxel_size_angstrom, dtype=dtype)
            )
            for path in paths
        ]
        # One block is written while the next is made.
        pool = stack.enter_context(ThreadPoolExecutor(1))
        pending: Future[None] | None = None
        for start, blocks in reconstruct_blocks(views, frames, grid, subsets):
            # Each half stands for the whole range of tilts, so it counts double.
            volumes = [blocks[0] + blocks[1], 2 * blocks[0], 2 * blocks[1]] if params.halves else blocks
            if pending:
                pending.result()
            arrays = [volume.cpu().numpy() for volume in volumes]
            pending = pool.submit(_write_block, writers, arrays, sections, start)
        if pending:
            pending.result()
    return sections


def _write_block(
    writers: "list[MrcWriter]", volumes: list[npt.NDArray[np.float32]], sections: "Sections", start: int
) -> None:
    for writer, volume in zip(writers, volumes, strict=True):
        writer.write_rows(volume)
    sections.add(start, volumes[0])


def summarise(results: dict[str, ItemResult], params: ReconstructParams, folder: Path) -> Summary:
    """Write `tomograms.star` and gather the figures."""
    from verglas.io.relion_tilt_series import read_tilt_series
    from verglas.io.relion_tomograms import write_tomograms

    series = read_tilt_series(params.tilt_series)
    tomograms, figures = [], []
    for name, result in results.items():
        one = series[name]
        grid = make_grid(one, params)
        volumes = [folder / output for output in result.outputs if output.endswith(".mrc")]
        halves = (volumes[1], volumes[2]) if len(volumes) == 3 else None
        tomograms.append(
            Tomogram(name, volumes[0], grid.shape, grid.voxel_size_angstrom, grid.centre_angstrom, halves)
        )
        figures += [
            Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}") for kind, caption in _CAPTIONS.items()
        ]
    entries = [(series[name], folder / f"tilt_series/{name}.star") for name in results]
    write_tomograms(folder / "tomograms.star", tomograms, entries)
    voxels = sum(int(np.prod(tomogram.shape)) for tomogram in tomograms)
    left_out = sum(result.values["left_out"] for result in results.values())
    values = {
        "tomograms": Value(len(tomograms), "", "volumes reconstructed"),
        "voxel size": Value(tomograms[0].voxel_size_angstrom, "Å", "side of a voxel"),
        "voxels": Value(round(voxels / 1e6, 1), "million", "in all volumes together"),
        "views": Value(sum(result.values["views"] for result in results.values()), "", "summed"),
    }
    warnings = [f"{left_out} views were left out, because they are not selected"] if left_out else []
    return Summary(figures, values, warnings, ["tomograms.star"])


def estimate(items: list[Item], params: ReconstructParams) -> Estimate:
    """From the sizes of the views and volumes, and rates measured on one core."""
    memory, disk, seconds = 0, 0, 0.0
    for item in items:
        series: TiltSeries = item.record
        grid = make_grid(series, params)
        written = int(np.prod(grid.shape)) * (2 if params.float16 else 4) * (3 if params.halves else 1)
        updates = float(np.prod(grid.shape)) * series.selected.sum()
        pixels = float(np.prod(series.image_shape)) * series.selected.sum()
        memory = max(memory, _estimate_memory(series, grid, params))
        disk += written
        # The last is for the pictures.
        seconds += updates / 2e9 + pixels / 2e7 + written / 3e8 + 2.0
    return Estimate(memory + _PROCESS_BYTES, disk, seconds)


def _estimate_memory(series: TiltSeries, grid: "VoxelGrid", params: ReconstructParams) -> int:
    from verglas.algo.reconstruction.filtering import filtered_shape, make_frames
    from verglas.algo.reconstruction.volume import block_rows
    from verglas.ops.backprojection import MAX_TILT_DEG, lay_rows

    usable = series.selected & (np.abs(np.asarray(series.y_tilt_deg)) <= MAX_TILT_DEG)
    if not usable.any():
        return 0
    used = series.take(usable)
    view = int(np.prod(filtered_shape(used, grid.voxel_size_angstrom)))
    raw = int(np.prod(used.image_shape))
    block = grid.rows(0, block_rows(grid, 1 + params.halves))
    _, _, shape = lay_rows(make_frames(used, grid.voxel_size_angstrom), block)
    rows = int(np.prod(shape)) * len(used)
    # A block is summed while the one before is written, and halves are added up and doubled.
    blocks = int(np.prod(block.shape)) * (8 if params.halves else 2)
    # One view is read and brought to size, then extended and filtered, while the filtered ones wait.
    filtering = _READING * raw + (_FILTERING if params.ctf == "none" else _CORRECTING) * view
    return 4 * (view * len(used) + max(filtering, rows + blocks))


_PROCESS_BYTES = 600 << 20
# Images in memory at once, as measured: of the size of a view as it was read, and as it is filtered.
_READING, _FILTERING, _CORRECTING = 4, 10, 24
_CAPTIONS = {
    "slices": "central sections 200 Å thick, smoothed to 60 Å for the eye; dark is dense",
    "views": "the views at both ends and in the middle of the tilt range, smoothed to 60 Å; the dashed line is "
    "the tilt axis through the specimen's centre",
    "geometry": "the geometry that was used",
    "spectra": "rotational power spectra of the least exposed view and of the central section",
}


def make_grid(series: TiltSeries, params: ReconstructParams) -> "VoxelGrid":
    """Lay the voxels of the volume: where the parameters say nothing by the series' own extent.

    Raises
    ------
    UserError
        When there would be more than anybody can want.
    """
    from verglas.ops.backprojection import VoxelGrid

    voxel = params.pixel_size or series.pixel_size_angstrom
    known_depth, *known_size = _find_extent(series)
    height, width = reversed(params.size) if params.size else known_size
    z, y, x = (max(1, round(extent / voxel)) for extent in (params.thickness or known_depth, height, width))
    if z * y * x > _MOST_VOXELS:
        raise UserError(
            f"the volume of {series.name!r} would have {x} x {y} x {z} voxels; expected at most "
            f"{_MOST_VOXELS:.0e}: choose a larger `pixel_size` or a smaller `thickness` or `size`"
        )
    return VoxelGrid((z, y, x), voxel, params.centre)


def _find_extent(series: TiltSeries) -> tuple[float, float, float]:
    """Find the `(z, y, x)` extent of a series' specimen in Å: what it says, or what its images show."""
    pixel = series.pixel_size_angstrom
    if series.volume_shape:
        z, y, x = series.volume_shape
        return z * pixel, y * pixel, x * pixel
    height, width = series.image_shape
    # With the tilt axis along the images' x, the specimen's x is their y.
    if abs(np.sin(np.deg2rad(series.z_rot_deg)).mean()) > np.sqrt(0.5):
        height, width = width, height
    return _THICKNESS_ANGSTROM, height * pixel, width * pixel


_THICKNESS_ANGSTROM = 3000.0
_MOST_VOXELS = 10**11


def make_filter(params: ReconstructParams, grid: "VoxelGrid") -> "ViewFilter":
    """Gather the weights of the views."""
    from verglas.algo.reconstruction.filtering import ViewFilter

    return ViewFilter(
        weighting=params.weighting,
        sirt_iterations=params.sirt_iterations,
        thickness_angstrom=grid.shape[0] * grid.voxel_size_angstrom,
        normalise=params.normalise,
        dose=params.dose_weight,
        ctf=params.ctf,
        ice_thickness_angstrom=params.ice_thickness,
    )


class Sections:
    """Central sections of a volume, gathered from its blocks as they pass."""

    def __init__(self, shape: tuple[int, int, int], voxel_size_angstrom: float) -> None:
        z, y, x = shape
        half = max(1, round(SLAB_ANGSTROM / voxel_size_angstrom / 2))
        self._bounds = [(max(0, n // 2 - half), min(n, n // 2 + half)) for n in shape]
        self.xy = np.zeros((y, x), np.float32)
        self.xz = np.zeros((z, x), np.float32)
        self.yz = np.zeros((y, z), np.float32)

    def add(self, start: int, block: npt.NDArray[np.float32]) -> None:
        """Take what a block `(z, rows, x)` that begins at row `start` adds to the sections."""
        (z0, z1), (y0, y1), (x0, x1) = self._bounds
        stop = start + block.shape[1]
        self.xy[start:stop] = block[z0:z1].mean(axis=0)
        self.yz[start:stop] = block[:, :, x0:x1].mean(axis=2).T
        if min(stop, y1) > max(start, y0):
            rows = block[:, max(start, y0) - start : min(stop, y1) - start]
            self.xz += rows.sum(axis=1) / (y1 - y0)


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
