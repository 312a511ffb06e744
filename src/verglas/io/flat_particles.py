"""Particles of a 2-D classification: in-plane pose, class, where they came from; of RELION's STAR and `.cs` files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import FileFormatError
from verglas.files import check_exists
from verglas.io.cryosparc import particles_from_cs, read_cs
from verglas.io.image_particles import ParticleTable, find_images, write_cs_particles, write_star_particles
from verglas.io.mrc_header import read_mrc_header
from verglas.io.relion_tilt_series import find_file
from verglas.io.star import get_numbers, get_table, read_star, require_columns
from verglas.model import Aberrations, ImageParticles, ImageReference, Optics

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FlatParticles:
    """A table of particles in the plane.

    Parameters
    ----------
    table
        The whole file with what `model.ImageParticles` holds; angles but psi are 0 where the file has none.
    class_number
        `(n,)` from 1.
    micrographs
        n paths; none where the table does not say.
    coordinates_xy
        `(n, 2)` of the particles in their micrographs, in their pixels; none likewise.
    originals
        n images before a subtraction; none likewise.
    has_ctf
        Whether the table has a defocus.
    """

    table: ParticleTable
    class_number: npt.NDArray[np.int64]
    micrographs: tuple[Path, ...] | None
    coordinates_xy: FloatArray | None
    originals: tuple[ImageReference, ...] | None
    has_ctf: bool


def read_flat_particles(path: Path | str) -> FlatParticles:
    """Read a `particles.star` of RELION (3.1 and later, or as pyem writes it for 3.0), or a `.cs` file of cryoSPARC.

    Raises
    ------
    FileFormatError
        When labels are missing.
    """
    path = check_exists(path, "particles")
    if path.suffix == ".cs":
        source: Any = read_cs(path)
        rows, optics = particles_from_cs(source), None
    else:
        source = read_star(path)
        name = "particles" if "particles" in source else next(iter(source), "particles")
        rows = get_table(source, name, path)
        source = {**{key: block for key, block in source.items() if key != name}, "particles": rows}
        optics = get_table(source, "optics", path) if "optics" in source else None
    require_columns(rows, ["rlnImageName"], path, "particles")
    if not len(rows):
        raise FileFormatError(f"{str(path)!r} holds no particles; expected at least one")
    filled = _fill(rows, optics, path)

    def column(label: str, default: float = 0.0) -> FloatArray:
        if label not in filled:
            return np.full(len(filled), default)
        return get_numbers(filled, label, path, "particles")

    names = tuple(str(one) for one in filled["rlnImageName"])
    images = find_images(names, path)
    pixel = column("rlnImagePixelSize")
    if not (pixel > 0).all():
        pixel = np.full(
            len(filled), read_mrc_header(check_exists(images[0].path, "stack")).pixel_size_angstrom or 1.0
        )
    origins = _read_origins(filled, path, pixel)
    groups, optics_records = _group(filled, pixel)
    defocus = column("rlnDefocusU")
    ctf = np.stack(
        [
            defocus,
            column("rlnDefocusV") if "rlnDefocusV" in filled else defocus,
            column("rlnDefocusAngle"),
            column("rlnPhaseShift"),
            column("rlnCtfBfactor"),
            column("rlnCtfScalefactor", 1.0),
        ],
        axis=1,
    )
    angles = np.stack([column(f"rlnAngle{one}") for one in ("Rot", "Tilt", "Psi")], axis=1)
    count = len(names)
    particles = ImageParticles(
        images,
        angles,
        origins,
        ctf,
        np.zeros(count, np.int64),
        groups,
        optics_records,
        (False,) * len(optics_records),
        (Aberrations(),) * len(optics_records),
    )
    has_places = {"rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY"} <= set(filled)
    return FlatParticles(
        ParticleTable(particles, names, source),
        column("rlnClassNumber", 1.0).astype(np.int64),
        tuple(find_file(str(one), path) for one in filled["rlnMicrographName"]) if has_places else None,
        np.stack([column("rlnCoordinateX"), column("rlnCoordinateY")], axis=1) if has_places else None,
        find_images([str(one) for one in filled["rlnImageOriginalName"]], path)
        if "rlnImageOriginalName" in filled
        else None,
        "rlnDefocusU" in filled,
    )


def _fill(rows: pd.DataFrame, optics: pd.DataFrame | None, path: Path) -> pd.DataFrame:
    """Put what the optics groups say into every row."""
    if optics is None:
        filled = rows.copy()
        if "rlnImagePixelSize" not in filled and {"rlnDetectorPixelSize", "rlnMagnification"} <= set(filled):
            sizes = get_numbers(filled, "rlnDetectorPixelSize", path, "particles")
            filled["rlnImagePixelSize"] = (
                1e4 * sizes / get_numbers(filled, "rlnMagnification", path, "particles")
            )
        return filled
    require_columns(rows, ["rlnOpticsGroup"], path, "particles")
    wanted = [
        "rlnOpticsGroup",
        "rlnImagePixelSize",
        "rlnVoltage",
        "rlnSphericalAberration",
        "rlnAmplitudeContrast",
    ]
    known = optics[
        [label for label in wanted if label in optics and (label == "rlnOpticsGroup" or label not in rows)]
    ]
    return rows.merge(known, on="rlnOpticsGroup", how="left", validate="many_to_one")


def _read_origins(rows: pd.DataFrame, path: Path, pixel: FloatArray) -> FloatArray:
    columns = []
    for axis in "XY":
        if f"rlnOrigin{axis}Angst" in rows:
            columns.append(get_numbers(rows, f"rlnOrigin{axis}Angst", path, "particles"))
        elif f"rlnOrigin{axis}" in rows:
            columns.append(get_numbers(rows, f"rlnOrigin{axis}", path, "particles") * pixel)
        else:
            columns.append(np.zeros(len(rows)))
    return np.stack(columns, axis=1)


def _group(rows: pd.DataFrame, pixel: FloatArray) -> tuple[npt.NDArray[np.int64], tuple[Optics, ...]]:
    defaults = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    values = [pixel]
    values += [
        rows[label].to_numpy(dtype=float) if label in rows else np.full(len(rows), default)
        for label, default in defaults.items()
    ]
    distinct, groups = np.unique(np.stack(values, axis=1), axis=0, return_inverse=True)
    return groups.astype(np.int64).reshape(-1), tuple(Optics(*row) for row in distinct.tolist())


def write_flat_particles(
    path: Path | str,
    particles: FlatParticles,
    images: Sequence[ImageReference],
    columns: dict[str, npt.NDArray[Any]],
    *,
    box: int,
) -> None:
    """Write the table again with other images, as STAR or `.cs` as it came; columns are for STAR alone."""
    if isinstance(particles.table.source, dict):
        write_star_particles(path, particles.table, images, columns, box=box, centred=False)
    else:
        write_cs_particles(path, particles.table, images, box=box, centred=False)
