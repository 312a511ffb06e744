"""RELION 5's `tomograms.star`: the tilt series' index with the reconstructed volume of each."""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists, check_name
from verglas.io.relion_tilt_series import find_file, project_path, tabulate_index
from verglas.io.star import get_table, read_star, require_columns, write_star
from verglas.model import TiltSeries, Tomogram

_HALF_LABELS = ("rlnTomoReconstructedTomogramHalf1", "rlnTomoReconstructedTomogramHalf2")
_SIZE_LABELS = ("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ")
_SHAPE_LABELS = ("vglTomoShapeX", "vglTomoShapeY", "vglTomoShapeZ")
_REGION_LABEL = "vglRegionName"
_WEIGHTS_LABEL = "vglTomoWeights"
_CENTRE_LABELS = ("vglTomoCentreXAngst", "vglTomoCentreYAngst", "vglTomoCentreZAngst")


def read_tomograms(path: Path | str) -> list[Tomogram]:
    """Read the reconstructed volumes of a `tomograms.star`; series that have none are left out.

    RELION gives the specimen's size in pixels of the tilt images and the binning. The shape of the volume is
    taken from its own header where the file is here, because programs round it differently.

    Raises
    ------
    FileFormatError
        When the block `global` or one of its labels is missing.
    """
    path = check_exists(path, "tomograms STAR file")
    required = ["rlnTomoName", "rlnTomoReconstructedTomogram", "rlnTomoTiltSeriesPixelSize"]
    index = get_table(read_star(path), "global", path)
    if "rlnTomoReconstructedTomogram" not in index:
        raise FileFormatError(
            f"{str(path)!r} lists no tomograms: it lacks rlnTomoReconstructedTomogram; expected a "
            "`tomograms.star`, as `reconstruct` writes it"
        )
    index = require_columns(index, required, path, "global")
    return [
        _build_tomogram({str(label): value for label, value in row.items()}, path)
        for row in index.to_dict("records")
        if row["rlnTomoReconstructedTomogram"]
    ]


def write_tomograms(
    path: Path | str, tomograms: Iterable[Tomogram], entries: Iterable[tuple[TiltSeries, Path | str]]
) -> None:
    """Write `tomograms.star`, which is also an index of the tilt series.

    Parameters
    ----------
    path
        The file.
    tomograms
        One row each. Several regions of one series share its name.
    entries
        Each tilt series with the path of its STAR file.

    Raises
    ------
    UserError
        When a tomogram's tilt series is not among the entries.
    """
    entries = list(entries)
    by_name = {
        series.name: (series, row) for (series, _), row in zip(entries, tabulate_index(entries), strict=True)
    }
    rows: list[dict[str, Any]] = []
    for tomogram in tomograms:
        if tomogram.name not in by_name:
            raise UserError(f"tomogram {tomogram.name!r} has no tilt series; expected one of that name")
        series, row = by_name[tomogram.name]
        rows.append(row | _tabulate_tomogram(tomogram, series))
    write_star(path, {"global": pd.DataFrame(rows)})


def _build_tomogram(row: dict[str, Any], path: Path) -> Tomogram:
    name = check_name(str(row["rlnTomoName"]), "rlnTomoName")
    pixel_size = float(row["rlnTomoTiltSeriesPixelSize"])
    voxel_size = float(
        row.get("vglTomoVoxelSize", pixel_size * float(row.get("rlnTomoTomogramBinning", 1.0)))
    )
    volume_path = find_file(str(row["rlnTomoReconstructedTomogram"]), path)
    if all(label in row for label in _SHAPE_LABELS):
        x, y, z = (int(row[label]) for label in _SHAPE_LABELS)
        shape = (z, y, x)
    else:
        shape = _read_volume_shape(volume_path) or _infer_shape(row, pixel_size / voxel_size, path, name)
    halves = [str(row.get(label) or "") for label in _HALF_LABELS]
    weights = str(row.get(_WEIGHTS_LABEL) or "")
    x_centre, y_centre, z_centre = (float(row.get(label, 0.0)) for label in _CENTRE_LABELS)
    return Tomogram(
        name=name,
        path=volume_path,
        shape=shape,
        voxel_size_angstrom=voxel_size,
        centre_angstrom=(x_centre, y_centre, z_centre),
        half_paths=(find_file(halves[0], path), find_file(halves[1], path)) if all(halves) else None,
        region=str(row.get(_REGION_LABEL) or ""),
        weights_path=find_file(weights, path) if weights else None,
    )


def _read_volume_shape(path: Path) -> tuple[int, int, int] | None:
    try:
        with path.open("rb") as file:
            header = file.read(1024)
    except OSError:
        return None
    if len(header) < 1024 or header[208:211] != b"MAP":
        return None
    x, y, z = struct.unpack("<3i" if header[212] == 0x44 else ">3i", header[:12])
    return (z, y, x)


def _infer_shape(row: dict[str, Any], scale: float, path: Path, name: str) -> tuple[int, int, int]:
    if not all(label in row for label in _SIZE_LABELS):
        raise FileFormatError(f"tomogram {name!r} of {str(path)!r} lacks rlnTomoSizeX, Y and Z")
    # RELION cuts the fraction off.
    x, y, z = (int(int(row[label]) * scale + 1e-6) for label in _SIZE_LABELS)
    return (z, y, x)


def _tabulate_tomogram(tomogram: Tomogram, series: TiltSeries) -> dict[str, Any]:
    binning = tomogram.voxel_size_angstrom / series.pixel_size_angstrom
    row: dict[str, Any] = {
        "rlnTomoTomogramBinning": binning,
        "rlnTomoReconstructedTomogram": project_path(tomogram.path),
    }
    if tomogram.half_paths is not None:
        row |= dict(zip(_HALF_LABELS, map(project_path, tomogram.half_paths), strict=True))
    if series.volume_shape is None:
        # The smallest specimen around its own centre that holds the volume.
        extents = (
            round((n + 2 * abs(centre) / tomogram.voxel_size_angstrom) * binning)
            for n, centre in zip(reversed(tomogram.shape), tomogram.centre_angstrom, strict=True)
        )
        row |= dict(zip(_SIZE_LABELS, extents, strict=True))
    row |= dict(zip(_SHAPE_LABELS, reversed(tomogram.shape), strict=True))
    row["vglTomoVoxelSize"] = tomogram.voxel_size_angstrom
    row |= dict(zip(_CENTRE_LABELS, tomogram.centre_angstrom, strict=True))
    if tomogram.region:
        row[_REGION_LABEL] = tomogram.region
    if tomogram.weights_path is not None:
        row[_WEIGHTS_LABEL] = project_path(tomogram.weights_path)
    return row
