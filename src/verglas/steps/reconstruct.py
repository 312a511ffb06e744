"""`reconstruct`: tomograms from aligned tilt series."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import TiltSeries, Tomogram
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.reconstruction.filtering import ViewFilter
    from verglas.io.mrc import MrcWriter
    from verglas.ops.backprojection import VoxelGrid

SLAB_ANGSTROM = 200.0
"""Thickness of the sections drawn in the report."""


class ReconstructParams(Params):
    """Reconstruct tomograms from aligned tilt series by weighted back-projection."""

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    pixel_size: Annotated[
        float | None, Field(gt=0, description="voxel size in Å; that of the images when not given")
    ] = None
    thickness: Annotated[
        float | None,
        Field(gt=0, description="extent along the beam in Å; what the series says, or 3000, when not given"),
    ] = None
    size: Annotated[
        tuple[float, float] | None,
        Field(description="extent in x and y in Å; that of the images when not given"),
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

    series: TiltSeries = item.record.take(item.record.selected)
    grid = _make_grid(series, params)
    outputs = [f"tomograms/{item.name}.mrc"]
    if params.halves:
        if len(series) < 2:
            raise UserError(f"`halves` needs at least two views; {item.name!r} has {len(series)} selected")
        outputs += [f"tomograms/{item.name}_half{i}.mrc" for i in (1, 2)]
    sections = _write_volumes([context.folder / name for name in outputs], series, grid, params, context)
    table = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / table, item.record)
    figures = _draw(item.name, series, sections, context.folder, grid.voxel_size_angstrom)
    values = {
        "shape": list(grid.shape),
        "voxel_size_angstrom": grid.voxel_size_angstrom,
        "views": len(series),
        "left_out": len(item.record) - len(series),
    }
    return ItemResult((*outputs, table, *figures), values)


def _write_volumes(
    paths: list[Path], series: TiltSeries, grid: "VoxelGrid", params: ReconstructParams, context: Context
) -> "_Sections":
    """Reconstruct into one file, or into the whole and its halves, and return the central sections."""
    import torch

    from verglas.algo.reconstruction.filtering import filter_views, make_frames
    from verglas.algo.reconstruction.volume import reconstruct_blocks, split_views
    from verglas.io.mrc import create_mrc, read_image
    from verglas.runtime import choose_device

    device = choose_device(context.device)
    images = (torch.from_numpy(read_image(image)).to(device) for image in series.images)
    views = filter_views(images, series, grid.voxel_size_angstrom, _make_filter(params, grid))
    frames = make_frames(series, grid.voxel_size_angstrom)
    subsets = list(split_views(len(series))) if params.halves else [torch.arange(len(series))]
    sections = _Sections(grid.shape, grid.voxel_size_angstrom)
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
    writers: "list[MrcWriter]", volumes: list[npt.NDArray[np.float32]], sections: "_Sections", start: int
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
        grid = _make_grid(one, params)
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
    from verglas.algo.reconstruction.filtering import filtered_shape
    from verglas.algo.reconstruction.volume import BLOCK_BYTES

    memory, disk, seconds = 0, 0, 0.0
    for item in items:
        series: TiltSeries = item.record
        grid = _make_grid(series, params)
        voxels = int(np.prod(grid.shape))
        view = int(np.prod(filtered_shape(series, grid.voxel_size_angstrom)))
        raw = int(np.prod(series.image_shape))
        # A view is read, transformed and filtered with its margins while the filtered ones wait.
        memory = max(memory, 4 * (view * len(series) + 12 * raw) + 4 * BLOCK_BYTES)
        disk += voxels * (2 if params.float16 else 4) * (3 if params.halves else 1)
        seconds += voxels * len(series) / 2e9 + raw * len(series) / 2e7 + disk / 3e8
    return Estimate(memory + _PROCESS_BYTES, disk, seconds)


_PROCESS_BYTES = 350 << 20
_CAPTIONS = {
    "slices": "central sections 200 Å thick, smoothed to 60 Å for the eye; dark is dense",
    "views": "the views at both ends and in the middle of the tilt range, smoothed to 60 Å",
    "geometry": "the geometry that was used",
    "spectra": "rotational power spectra of the least exposed view and of the central section",
}


def _make_grid(series: TiltSeries, params: ReconstructParams) -> "VoxelGrid":
    from verglas.ops.backprojection import VoxelGrid

    pixel = series.pixel_size_angstrom
    voxel = params.pixel_size or pixel
    known = series.volume_shape[0] * pixel if series.volume_shape else 3000.0
    depth = params.thickness or known
    width, height = params.size or (series.image_shape[1] * pixel, series.image_shape[0] * pixel)
    z, y, x = (max(1, round(extent / voxel)) for extent in (depth, height, width))
    if z * y * x > _MOST_VOXELS:
        raise UserError(
            f"the volume of {series.name!r} would have {x} x {y} x {z} voxels; expected at most "
            f"{_MOST_VOXELS:.0e}: choose a larger `pixel_size` or a smaller `thickness` or `size`"
        )
    return VoxelGrid((z, y, x), voxel, params.centre)


_MOST_VOXELS = 10**11


def _make_filter(params: ReconstructParams, grid: "VoxelGrid") -> "ViewFilter":
    from verglas.algo.reconstruction.filtering import ViewFilter

    return ViewFilter(
        weighting=params.weighting,
        sirt_iterations=params.sirt_iterations,
        thickness_angstrom=grid.shape[0] * grid.voxel_size_angstrom,
        normalise=params.normalise,
        dose=params.dose_weight,
        ctf=params.ctf,
    )


class _Sections:
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


def _draw(name: str, series: TiltSeries, sections: _Sections, folder: Path, voxel: float) -> list[str]:
    from verglas.figures.tilt_series import draw_geometry, draw_power_spectra, draw_views
    from verglas.figures.tomogram import draw_orthogonal_slices
    from verglas.io.mrc import read_image

    paths = {kind: f"figures/{name}_{kind}.png" for kind in _CAPTIONS}
    draw_orthogonal_slices(sections.xy, sections.xz, sections.yz, voxel, folder / paths["slices"], title=name)
    tilts = np.asarray(series.y_tilt_deg)
    ends = list(dict.fromkeys([int(tilts.argmin()), int(np.abs(tilts).argmin()), int(tilts.argmax())]))
    views = [read_image(series.images[i]) for i in ends]
    pixel = series.pixel_size_angstrom
    draw_views(views, [f"{round(tilts[i], 1) + 0.0:+.1f}°" for i in ends], pixel, folder / paths["views"])
    draw_geometry(series, folder / paths["geometry"])
    first = read_image(series.images[int(series.pre_exposure_e_per_a2.argmin())])
    draw_power_spectra(
        [("least exposed view", first, pixel), ("central section", sections.xy, voxel)],
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
