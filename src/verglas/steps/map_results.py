"""What the steps that turn maps into maps share: items, reading, pictures, estimates."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.files import check_exists, check_name
from verglas.steps.sections import cut_sections
from verglas.steps.step import Context, Estimate, Figure, Item

FloatArray = npt.NDArray[np.float32]

LARGEST_BOX = 1024
"""Side of an average in pixels, at most."""
_LEAST_RADIUS = 1.5


def choose_box(particle_radius_angstrom: float, pixel_size_angstrom: float) -> int:
    """Side in pixels, even, of a box of four radii.

    Raises
    ------
    UserError
        When the radius is in other units than Å, by what it makes of the box.
    """
    radius, pixel = particle_radius_angstrom, pixel_size_angstrom
    box = 2 * math.ceil(2 * radius / pixel)
    if radius < _LEAST_RADIUS * pixel or box > LARGEST_BOX:
        raise UserError(
            f"a `particle_radius` of {radius:g} Å is {radius / pixel:g} pixels of {pixel:g} Å; expected from "
            f"{_LEAST_RADIUS:g} to {LARGEST_BOX // 4}"
        )
    return box


def list_maps(paths: Sequence[Path]) -> list[Item]:
    """One item a map, by the name of its file; the record is its path."""
    return [Item(check_name(path.stem, "map"), path, (check_exists(path, "map"),)) for path in paths]


def read_volume(path: Path, voxel_size_angstrom: float | None = None) -> tuple[FloatArray, float]:
    """Read a map and its voxel size.

    Raises
    ------
    UserError
        When it is no volume of finite values, or its voxel size is not known.
    """
    from verglas.io.mrc import check_finite, read_mrc, read_mrc_header

    if path.suffix.lower() in {".tif", ".tiff"}:
        return _read_tiff_volume(path, voxel_size_angstrom)
    header = read_mrc_header(path)
    voxel = voxel_size_angstrom or header.pixel_size_angstrom
    if not voxel:
        raise UserError(
            f"the header of {str(path)!r} tells no voxel size; expected one in Å, which "
            "`rescale --from-pixel-size` can give it"
        )
    if len(header.shape) != 3 or min(header.shape) < 2:
        raise UserError(f"{str(path)!r} has (z, y, x) = {header.shape}; expected a volume")
    return check_finite(read_mrc(path), f"map {str(path)!r}"), float(voxel)


def _read_tiff_volume(path: Path, voxel: float | None) -> tuple[FloatArray, float]:
    from verglas.io.movie import open_movie

    movie = open_movie(path)
    voxel = voxel or movie.pixel_size_angstrom
    if not voxel:
        raise UserError(f"{str(path)!r} tells no voxel size; expected one in Å, as `pixel_size`")
    return np.asarray(movie.frames(), dtype=np.float32), voxel


def read_mask(path: Path, shape: tuple[int, int, int]) -> FloatArray:
    """Read a mask.

    Raises
    ------
    UserError
        When it has another shape, values outside 0 to 1, or is 0 everywhere.
    """
    from verglas.io.mrc import check_finite, read_mrc

    mask = check_finite(read_mrc(path), f"mask {str(path)!r}")
    if mask.shape != shape or not mask.any() or mask.min() < 0 or mask.max() > 1:
        raise UserError(
            f"mask {str(path)!r} has shape {mask.shape} and values from {mask.min():g} to {mask.max():g}; expected "
            f"{shape}, values from 0 to 1 and not all 0"
        )
    return mask


def write_volume(context: Context, name: str, volume: FloatArray, voxel_size_angstrom: float) -> str:
    """Write a map below the job folder and return its relative path."""
    from verglas.io.mrc import write_mrc

    write_mrc(context.folder / name, volume, voxel_size_angstrom=voxel_size_angstrom)
    return name


def draw_maps(
    context: Context, name: str, volumes: Sequence[tuple[str, FloatArray]], voxel_size_angstrom: float
) -> str:
    """Draw central sections of some volumes of one shape side by side, unsmoothed."""
    from verglas.figures.comparison import draw_side_by_side

    columns = []
    for label, volume in volumes:
        # A thin slab, so that small maps show their detail.
        xy, xz, _ = cut_sections(volume, voxel_size_angstrom, thickness_angstrom=4 * voxel_size_angstrom)
        columns.append((label, xy, xz))
    draw_side_by_side(
        columns, voxel_size_angstrom, context.folder / name, lowpass_angstrom=2 * voxel_size_angstrom
    )
    return name


def tell_figures(names: Sequence[str], caption: str) -> list[Figure]:
    """One figure an item, with what to look for in it."""
    return [Figure(f"figures/{name}.png", f"{name}: {caption}") for name in names]


def estimate_maps(items: list[Item], copies: float, seconds_per_million: float) -> Estimate:
    """From the sizes of the files."""
    voxels = [item.record.stat().st_size / 4 if isinstance(item.record, Path) else 1e6 for item in items]
    return Estimate(
        (400 << 20) + int(4 * copies * max(voxels, default=0)),
        int(4 * sum(voxels)) + (len(items) << 20),
        2.0 * len(items) + seconds_per_million * math.fsum(voxels) / 1e6,
    )
