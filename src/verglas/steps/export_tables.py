"""The tables that other programs want of particles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import Particles, Region, TiltSeries, Tomogram
from verglas.steps.tomogram_particles import find_tomograms

if TYPE_CHECKING:
    from verglas.steps.export import ExportParams

_Written = tuple[list[str], list[str]]


def write_tables(
    particles: Particles, series: Mapping[str, TiltSeries], params: "ExportParams", folder: Path
) -> _Written:
    """Write the tables of the format that is asked for.

    Parameters
    ----------
    particles
        Of all series, in the order of the series, with the columns of their images.
    series
        Tilt series of each name.
    params
        Of the step.
    folder
        The job folder.

    Returns
    -------
    tuple
        Paths of the tables below the folder, and sentences for the user.
    """
    from verglas.io.relion_subtomograms import write_extracted, write_relion3
    from verglas.steps.reconstruction import find_extent

    if params.format == "cistem":
        return [f"stacks/{name}.star" for name in series], []
    if params.format in ("dynamo", "emclarity"):
        write = _write_dynamo if params.format == "dynamo" else _write_emclarity
        return write(particles, series, params, folder)
    first = next(iter(series.values()))
    pixel = max(params.pixel_size or 0.0, first.pixel_size_angstrom)
    path = folder / "particles.star"
    if params.format in ("relion5", "relion5-3d"):
        assert params.box is not None  # the parameters saw to that
        write_extracted(
            path,
            particles,
            series,
            kind="2d" if params.format == "relion5" else "3d",
            box=params.box,
            pixel_size_angstrom=pixel,
            tilt_series=params.tilt_series,
        )
        return ["particles.star", "optimisation_set.star"], []
    extents = {name: find_extent(one) for name, one in series.items()}
    write_relion3(path, particles, series, extents, pixel_size_angstrom=pixel, box=params.box)
    unknown = [name for name, one in series.items() if one.volume_shape is None]
    told = f"the extent of {len(unknown)} specimens is not known, and was taken as that of its images"
    return ["particles.star"], [told] if unknown else []


def _write_dynamo(
    particles: Particles, series: Mapping[str, TiltSeries], params: "ExportParams", folder: Path
) -> _Written:
    from verglas.io.dynamo import particles_to_dynamo, write_dynamo_table, write_dynamo_tomograms
    from verglas.io.relion_tomograms import read_tomograms

    tomograms = read_tomograms(params.tilt_series)
    particles, rows, warnings = _place(particles, tomograms, params)
    write_dynamo_table(folder / "particles.tbl", particles_to_dynamo(particles, tomograms, rows))
    write_dynamo_tomograms(folder / "tomograms.doc", tomograms)
    return ["particles.tbl", "tomograms.doc"], warnings


def _write_emclarity(
    particles: Particles, series: Mapping[str, TiltSeries], params: "ExportParams", folder: Path
) -> _Written:
    """Motive lists and sub-regions, a pair for each tomogram, as `emClarity init` looks for them."""
    from verglas.io.emclarity import region_geometry, write_regions
    from verglas.io.emclarity_motives import particles_to_emclarity, write_motives
    from verglas.io.region_files import region_to_emclarity
    from verglas.io.relion_tomograms import read_tomograms

    tomograms = read_tomograms(params.tilt_series)
    particles, rows, warnings = _place(particles, tomograms, params)
    written: list[str] = []
    regions: dict[str, list[int]] = {name: [] for name in series}
    for row, one in enumerate(tomograms):
        if one.name in regions:
            regions[one.name].append(row)
    for name, mine in regions.items():
        height, pixel = series[name].image_shape[0], series[name].pixel_size_angstrom
        found = []
        for number, row in enumerate(mine, 1):
            one = tomograms[row]
            x, y, z = (size * one.voxel_size_angstrom for size in reversed(one.shape))
            region = Region(name, one.region or "whole", one.centre_angstrom, (x, y, z))
            found.append(region_to_emclarity(region, series[name], height))
            motives = particles_to_emclarity(
                particles.take(rows == row), region_geometry(found[-1], height), pixel_size_angstrom=pixel
            )
            motives[:, 1] = sampling = max(1, round(one.voxel_size_angstrom / pixel))
            written.append(f"convmap/{name}_{number}_bin{sampling}.csv")
            write_motives(folder / written[-1], motives)
        (folder / "recon").mkdir(parents=True, exist_ok=True)
        written.append(str(write_regions(folder / "recon", name, tuple(found)).relative_to(folder)))
    return written, warnings


def _place(
    particles: Particles, tomograms: Sequence[Tomogram], params: "ExportParams"
) -> tuple[Particles, npt.NDArray[np.int64], list[str]]:
    """Leave out what lies in no tomogram, and tell the tomogram of each of the others."""
    rows = find_tomograms(particles, tomograms)
    inside = rows >= 0
    if not inside.any():
        raise UserError(
            f"none of the {len(rows)} particles lies within a tomogram of {str(params.tilt_series)!r}; expected "
            f"positions in {', '.join(dict.fromkeys(one.name for one in tomograms))}"
        )
    told = f"{int((~inside).sum())} of {len(inside)} particles lie in no tomogram, and are left out"
    return particles.take(inside), rows[inside], [] if inside.all() else [told]
