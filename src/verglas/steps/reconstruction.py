"""From the views of a series to a volume on disk."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import AppliedWeights, Region, TiltSeries
from verglas.steps.sections import Sections
from verglas.steps.step import Context
from verglas.steps.used_views import read_views

if TYPE_CHECKING:
    import torch

    from verglas.algo.reconstruction.filtering import ViewFilter
    from verglas.algo.reconstruction.slabs import Slab
    from verglas.io.mrc import MrcWriter
    from verglas.ops.backprojection import VoxelGrid
    from verglas.steps.reconstruct import ReconstructParams

FloatArray = npt.NDArray[np.float64]
VolumeArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """What one volume is made of.

    Parameters
    ----------
    series
        The whole series.
    region
        The part of the specimen; none is all of it.
    particles_angstrom
        `(n, 3)` xyz of the particles in the whole specimen, Å; none when they are not known.
    """

    series: TiltSeries
    region: Region | None = None
    particles_angstrom: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """Some sections or rows of a volume, and of its halves.

    Parameters
    ----------
    first_section, first_row
        Where it begins.
    volumes
        `(z, y, x)` float32 of each subset of the views.
    """

    first_section: int
    first_row: int
    volumes: "list[torch.Tensor]"


def write_volumes(
    paths: Sequence[Path],
    part: Part,
    views: TiltSeries,
    grid: "VoxelGrid",
    params: "ReconstructParams",
    context: Context,
) -> tuple[Sections, AppliedWeights]:
    """Reconstruct into one file, or into the whole and its halves.

    Parameters
    ----------
    paths
        One, or three with `halves`.
    part
        What is reconstructed.
    views
        Its views, of `select_views`.
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
    AppliedWeights
        What the views were weighted with.

    Raises
    ------
    UserError
        As `read_views`.
    """
    import torch

    from verglas.algo.reconstruction.volume import split_views
    from verglas.io.mrc import create_mrc
    from verglas.runtime import choose_device

    device = choose_device(context.device)
    subsets = [torch.arange(len(views))]
    if params.halves:
        halves = split_views(len(views))
        views = views.take(torch.cat(halves).tolist())
        # A half in one piece need not be copied.
        subsets = [torch.arange(len(halves[0])), torch.arange(len(halves[0]), len(views))]
    images = (torch.from_numpy(view).to(device) for view in read_views(views))
    blocks, weights = compute_blocks(images, part, views, grid, params, subsets)
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
        for block in blocks:
            arrays = [volume.cpu().numpy() for volume in join_halves(block.volumes)]
            if pending:
                pending.result()
            pending = pool.submit(_write_block, writers, arrays, sections, block)
        if pending:
            pending.result()
    return sections, weights


def join_halves(volumes: "list[torch.Tensor]") -> "list[torch.Tensor]":
    """Return the whole, and where there are two halves also these; each stands for the whole range of tilts."""
    if len(volumes) == 1:
        return volumes
    first, second = volumes
    return [first + second, 2 * first, 2 * second]


def _write_block(
    writers: "list[MrcWriter]", arrays: list[VolumeArray], sections: Sections, block: Block
) -> None:
    for writer, array in zip(writers, arrays, strict=True):
        writer.write_rows(array)
    sections.add(block.first_section, block.first_row, arrays[0])


def compute_blocks(
    images: "Iterable[torch.Tensor]",
    part: Part,
    views: TiltSeries,
    grid: "VoxelGrid",
    params: "ReconstructParams",
    subsets: "list[torch.Tensor]",
) -> tuple[Iterator[Block], AppliedWeights]:
    """Reconstruct a volume block by block: rows of all sections, or with `ctf` 3d of one slab after the other.

    Parameters
    ----------
    images
        The views `(y, x)`, read before this returns.
    part
        What is reconstructed.
    views
        The record of the views, in their order.
    grid
        The voxels.
    params
        The weights.
    subsets
        Indices of the views that make each volume.

    Returns
    -------
    blocks
        In the order in which they are written.
    weights
        What the views are weighted with.
    """
    from verglas.algo.reconstruction.filtering import (
        filter_prepared,
        make_frames,
        prepare_views,
        view_factors,
    )
    from verglas.algo.reconstruction.slabs import reconstruct_slabs
    from verglas.algo.reconstruction.volume import reconstruct_blocks

    voxel = grid.voxel_size_angstrom
    options = make_filter(params, grid, part.particles_angstrom)
    prepared, deviations = prepare_views(images, views, voxel, normalise=params.normalise)
    slabs = make_slabs(part, views, grid, params)
    weights = AppliedWeights(
        weighting=params.weighting,
        ctf=params.ctf,
        dose_weighted=params.dose_weight,
        views=_find_rows(part.series, views),
        view_factors=view_factors(views, options).numpy(),
        view_deviations=deviations.numpy(),
        surfaces=() if params.ctf == "none" else tuple(slab.surface for slab in slabs),
        defocus_height_angstrom=options.defocus_height_angstrom,
    )
    if params.ctf == "3d":
        found = reconstruct_slabs(prepared, views, grid, options, slabs, subsets)
        return (Block(*block) for block in found), weights
    filtered = filter_prepared(prepared, views, voxel, options)
    rows = reconstruct_blocks(filtered, make_frames(views, voxel), grid, subsets)
    return (Block(0, start, volumes) for start, volumes in rows), weights


def _find_rows(series: TiltSeries, views: TiltSeries) -> npt.NDArray[np.int64]:
    """Rows of the series' table that the views are."""
    places = {image: row for row, image in enumerate(series.images)}
    return np.array([places[image] for image in views.images], dtype=np.int64)


def make_slabs(part: Part, views: TiltSeries, grid: "VoxelGrid", params: "ReconstructParams") -> "list[Slab]":
    """Cut the volume into slabs of one CTF; a single one without `ctf` 3d."""
    import torch

    from verglas.algo.reconstruction.slabs import Slab, choose_defocus_step, plan_slabs
    from verglas.algo.reconstruction.strips import LEVEL

    if params.ctf != "3d":
        return [Slab(0, grid.shape[0], LEVEL)]
    step = params.defocus_step or choose_defocus_step(views, grid.voxel_size_angstrom, params.resolution)
    places = None if part.particles_angstrom is None else torch.from_numpy(part.particles_angstrom)
    return plan_slabs(grid, step, places)


def make_grid(series: TiltSeries, params: "ReconstructParams", region: Region | None = None) -> "VoxelGrid":
    """Lay the voxels of the volume: those of a region, or what the parameters say, or the series' own extent.

    Raises
    ------
    UserError
        When there would be more than anybody can want.
    """
    from verglas.ops.backprojection import VoxelGrid

    voxel = params.pixel_size or series.pixel_size_angstrom
    depth, height, width = find_extent(series)
    centre = params.centre
    if region:
        width, height, depth = region.size_angstrom
        # On the voxels of the whole, so that a region is cut from the same volume.
        centre_x, centre_y, centre_z = (round(place / voxel) * voxel for place in region.centre_angstrom)
        centre = (centre_x, centre_y, centre_z)
    width, height = params.size or (width, height)
    z, y, x = (max(1, round(extent / voxel)) for extent in (params.thickness or depth, height, width))
    if z * y * x > _MOST_VOXELS:
        raise UserError(
            f"the volume of {series.name!r} would have {x} x {y} x {z} voxels; expected at most "
            f"{_MOST_VOXELS:.0e}: choose a larger `pixel_size` or a smaller `thickness` or `size`"
        )
    return VoxelGrid((z, y, x), voxel, centre)


def find_extent(series: TiltSeries) -> tuple[float, float, float]:
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


def make_filter(
    params: "ReconstructParams", grid: "VoxelGrid", particles_angstrom: FloatArray | None = None
) -> "ViewFilter":
    """Gather the weights of the views."""
    from verglas.algo.reconstruction.filtering import ViewFilter

    return ViewFilter(
        weighting=params.weighting,
        sirt_iterations=params.sirt_iterations,
        thickness_angstrom=grid.shape[0] * grid.voxel_size_angstrom,
        normalise=params.normalise,
        dose=params.dose_weight,
        ctf="multiply" if params.ctf == "3d" else params.ctf,
        ice_thickness_angstrom=params.ice_thickness,
        defocus_height_angstrom=_find_defocus_height(params, particles_angstrom),
    )


def _find_defocus_height(params: "ReconstructParams", particles_angstrom: FloatArray | None) -> float:
    if params.defocus_at == "centre" or particles_angstrom is None or not len(particles_angstrom):
        return 0.0
    return float(particles_angstrom[:, 2].mean())
