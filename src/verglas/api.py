"""The notebook facade: a line here does what a command does, on the same parameters.

Everything that is not a path or an array takes and gives the records of `verglas.model`. Names are reached as
`verglas.reconstruct` and so on; nothing heavy is loaded before it is called.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import ImageReference, Particles, TiltSeries

if TYPE_CHECKING:
    from verglas.steps.reconstruct import ReconstructParams

FloatArray = npt.NDArray[np.float32]

__all__ = [
    "Map",
    "SimulatedSeries",
    "import_tilt_series",
    "read_map",
    "read_tilt_series",
    "reconstruct",
    "simulate_tilt_series",
    "write_map",
]


@dataclass(frozen=True, eq=False)
class Map:
    """A volume in memory.

    Parameters
    ----------
    values
        `(z, y, x)` densities.
    voxel_size_angstrom
        Side of a voxel, Å.
    centre_angstrom
        xyz of the centre voxel (`n // 2`) in the specimen frame, Å.
    """

    values: FloatArray
    voxel_size_angstrom: float
    centre_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class SimulatedSeries:
    """A tilt series with its truth.

    Parameters
    ----------
    images
        `(n, y, x)` electrons per pixel.
    series
        What the microscope knows. The images are in no file; give them to `reconstruct` beside the record.
    truth
        The geometry and defocus that the images really have.
    particles
        Place and angles of every molecule in the field of view.
    density
        Potential of the specimen above that of ice, V; matter is positive here and dark in images.
    """

    images: FloatArray
    series: TiltSeries
    truth: TiltSeries
    particles: Particles
    density: Map


def read_tilt_series(path: Path | str) -> dict[str, TiltSeries]:
    """Read the tilt series of a `tilt_series.star`, by name.

    Raises
    ------
    UserError
        When the file is missing or does not hold what RELION's format promises.
    """
    from verglas.io.relion_tilt_series import read_tilt_series as read

    return read(path)


def import_tilt_series(
    inputs: Sequence[Path | str] | Path | str, out: Path | str, *, workers: int = 1, **parameters: Any
) -> dict[str, TiltSeries]:
    """Import tilt series as `verglas import` does, in the job folder `out`.

    Parameters
    ----------
    inputs
        Files or folders of Warp, IMOD, AreTomo, RELION, SerialEM or emClarity.
    out
        The job folder. Run again, only what is missing is done.
    workers
        Series done at the same time.
    **parameters
        Further fields of `ImportParams`, such as `stack` and `pixel_size`.

    Returns
    -------
    dict
        The series by name, as `tilt_series.star` in the folder has them.

    Raises
    ------
    UserError
        When a series cannot be imported; the message names the first.
    """
    from verglas.steps.import_series import IMPORT_STEP, ImportParams
    from verglas.steps.step import RunOptions, run_step

    paths = (inputs,) if isinstance(inputs, Path | str) else tuple(inputs)
    params = ImportParams(inputs=tuple(Path(path) for path in paths), **parameters)
    report = run_step(IMPORT_STEP, params, out, options=RunOptions(workers=workers, quiet=True))
    for name, error in report.failed.items():
        raise UserError(f"{len(report.failed)} tilt series could not be imported, first {name!r}: {error}")
    return read_tilt_series(Path(out) / "tilt_series.star")


def reconstruct(
    series: TiltSeries,
    images: npt.ArrayLike | None = None,
    *,
    pixel_size: float | None = None,
    device: str = "auto",
    **parameters: Any,
) -> Map:
    """Reconstruct the tomogram of an aligned series in memory; `verglas reconstruct` does it on disk.

    Parameters
    ----------
    series
        The record; views that are not selected are left out.
    images
        `(n, y, x)` views, a row each of the record; none reads them from the record's files.
    pixel_size
        Side of a voxel, Å; that of the images when none.
    device
        auto, cpu, cuda or cuda:N.
    **parameters
        Further fields of `ReconstructParams`, such as `ctf`, `weighting`, `thickness` and `size`.

    Raises
    ------
    UserError
        When images and record do not match, or a parameter only makes sense for files.
    """
    import torch

    from verglas.runtime import choose_device
    from verglas.steps.reconstruct import ReconstructParams
    from verglas.steps.reconstruction import Part, compute_blocks, make_grid
    from verglas.steps.used_views import read_views, select_views

    for name in sorted({"halves", "float16", "tilt_series", "particles", "regions"} & set(parameters)):
        raise UserError(f"`{name}` is about files; expected it at `verglas reconstruct`, not here")
    params = ReconstructParams(tilt_series=Path(series.name), pixel_size=pixel_size, **parameters)
    grid = make_grid(series, params)
    used = select_views(series, params)
    views = read_views(used) if images is None else _take_views(series, np.asarray(images), params)
    target = choose_device(device)
    tensors = (torch.from_numpy(view).to(target) for view in views)
    blocks, _ = compute_blocks(tensors, Part(series), used, grid, params, [torch.arange(len(used))])
    volume = np.empty(grid.shape, np.float32)
    for block in blocks:
        (values,) = block.volumes
        along_z = slice(block.first_section, block.first_section + values.shape[0])
        volume[along_z, block.first_row : block.first_row + values.shape[1]] = values.cpu().numpy()
    return Map(volume, grid.voxel_size_angstrom, grid.centre_angstrom)


def _take_views(
    series: TiltSeries, stack: npt.NDArray[Any], params: "ReconstructParams"
) -> Iterator[FloatArray]:
    """Take those of the images that are used, in the order in which they are."""
    from verglas.steps.used_views import select_views

    if stack.shape != (len(series), *series.image_shape):
        raise UserError(
            f"`images` must be {(len(series), *series.image_shape)}, as the record of {series.name!r} says; "
            f"got {stack.shape}"
        )
    rows = tuple(ImageReference(Path(series.name), row) for row in range(len(series)))
    for image in select_views(replace(series, images=rows), params).images:
        yield np.array(stack[image.section], np.float32)


def simulate_tilt_series(name: str = "TS_01", *, seed: int = 0, **parameters: Any) -> SimulatedSeries:
    """Simulate a tilt series with known truth in memory; `verglas simulate` does it on disk.

    Parameters
    ----------
    name
        Of the series.
    seed
        Chooses everything that is random. A series of the same name and seed is the same on disk.
    **parameters
        Further fields of `SimulateParams`, such as `image_size`, `pixel_size` and `copies`.

    Raises
    ------
    UserError
        When the contents do not fit in the ice.
    """
    from verglas.steps.simulate import SimulateParams, make_series

    scene = make_series(name, SimulateParams(seed=seed, **parameters), Path(f"{name}.mrc"))
    return SimulatedSeries(
        scene.images,
        scene.scheme.nominal,
        scene.scheme.truth,
        scene.field.particles,
        Map(scene.density, scene.voxel_size_angstrom),
    )


def read_map(path: Path | str, voxel_size_angstrom: float | None = None) -> Map:
    """Read a volume from an MRC file.

    Parameters
    ----------
    path
        The MRC file.
    voxel_size_angstrom
        Side of a voxel, Å; that of the header when none.

    Raises
    ------
    UserError
        When the file is no MRC volume, or its voxel size is unknown.
    """
    from verglas.io.mrc import read_mrc, read_mrc_header

    voxel = voxel_size_angstrom or read_mrc_header(path).pixel_size_angstrom
    if not voxel:
        raise UserError(f"the header of {str(path)!r} tells no voxel size; expected `voxel_size_angstrom`")
    return Map(read_mrc(path), float(voxel))


def write_map(path: Path | str, volume: Map) -> None:
    """Write a volume as an MRC file, float32."""
    from verglas.io.mrc import write_mrc

    write_mrc(path, volume.values, voxel_size_angstrom=volume.voxel_size_angstrom)
