"""Particle images of RELION's STAR and cryoSPARC's `.cs` files, and the same tables with other images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import FileFormatError
from verglas.files import check_exists
from verglas.io.cryosparc import particles_from_cs, read_cs, write_cs
from verglas.io.detector_mtf import read_mtf
from verglas.io.relion_tilt_series import find_file, project_path
from verglas.io.star import Block, get_numbers, get_table, read_star, require_columns, write_star
from verglas.model import Aberrations, ImageParticles, ImageReference, Optics

Records = npt.NDArray[np.void]

_OPTICS = ("rlnImagePixelSize", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_CTF = (
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnCtfBfactor",
    "rlnCtfScalefactor",
)
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_PRIORS = ("rlnOriginXPriorAngst", "rlnOriginYPriorAngst")


_CS_ABERRATIONS = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")


@dataclass(frozen=True, eq=False)
class ParticleTable:
    """A table of particle images, with the whole file that it came from.

    Parameters
    ----------
    particles
        What it says.
    names
        Images as the file names them: `000001@stack.mrcs`.
    source
        Blocks of the STAR file, or records of the `.cs` file.
    """

    particles: ImageParticles
    names: tuple[str, ...]
    source: dict[str, Block] | Records

    @property
    def unused(self) -> tuple[str, ...]:
        """Aberrations of a `.cs` file that are not zero and not known here."""
        if isinstance(self.source, dict):
            return ()
        names = self.source.dtype.names or ()
        return tuple(name for name in _CS_ABERRATIONS if name in names and self.source[name].any())

    def take(self, rows: Sequence[int]) -> Self:
        """Return the table of some rows."""
        index = list(rows)
        if isinstance(self.source, dict):
            particles = get_table(self.source, "particles", "particles").iloc[index].reset_index(drop=True)
            source: dict[str, Block] | Records = {**self.source, "particles": particles}
        else:
            source = self.source[index]
        return type(self)(self.particles.take(index), tuple(self.names[row] for row in index), source)


def read_image_particles(path: Path | str) -> ParticleTable:
    """Read a `particles.star` of RELION 3.1 or later, or a `.cs` file of cryoSPARC.

    Raises
    ------
    FileFormatError
        When labels are missing, or values of the optics are no numbers.
    """
    path = check_exists(path, "particles")
    if path.suffix == ".cs":
        records = read_cs(path)
        table = particles_from_cs(records)
        return _interpret(table, _group_optics(table, path), path, records)
    blocks = read_star(path)
    table = get_table(blocks, "particles", path)
    if "optics" not in blocks:
        return _interpret(table, _group_optics(table, path), path, blocks)
    optics = require_columns(get_table(blocks, "optics", path), ["rlnOpticsGroup", *_OPTICS], path, "optics")
    require_columns(table, ["rlnOpticsGroup"], path, "particles")
    places = {group: row for row, group in enumerate(optics["rlnOpticsGroup"].tolist())}
    try:
        groups = np.array([places[group] for group in table["rlnOpticsGroup"].tolist()], dtype=np.int64)
    except KeyError as error:
        raise FileFormatError(
            f"{str(path)!r} lists no optics group {error}, but has particles of it"
        ) from None
    return _interpret(table, (optics, groups), path, blocks)


def _group_optics(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Make optics groups of rows that each say their own."""
    require_columns(table, _OPTICS, path, "particles")
    distinct = table[list(_OPTICS)].drop_duplicates().reset_index(drop=True)
    places = {row: number for number, row in enumerate(distinct.itertuples(index=False, name=None))}
    rows = table[list(_OPTICS)].itertuples(index=False, name=None)
    return distinct, np.array([places[row] for row in rows], dtype=np.int64)


def _read_aberrations(optics: pd.DataFrame, path: Path) -> tuple[Aberrations, ...]:
    count = len(optics)

    def column(label: str, default: float) -> list[float]:
        return get_numbers(optics, label, path, "optics").tolist() if label in optics else [default] * count

    tilts = zip(column("rlnBeamTiltX", 0.0), column("rlnBeamTiltY", 0.0), strict=True)
    odd, even = (
        [_read_list(value, label, path) for value in optics[label]] if label in optics else [()] * count
        for label in ("rlnOddZernike", "rlnEvenZernike")
    )
    matrices = zip(*(column(label, float(label[-2] == label[-1])) for label in _MAGNIFICATION), strict=True)
    curves = [_read_curve(row, path) for _, row in optics.iterrows()]
    if "rlnBeamTiltX" in optics:
        # RELION then takes the two terms that a tilt makes from the tilt alone.
        odd = [tuple(0.0 if place in (3, 4) else one for place, one in enumerate(row)) for row in odd]
    return tuple(
        Aberrations(tilt, odd[row], even[row], ((a, b), (c, d)), *curves[row])
        for row, (tilt, (a, b, c, d)) in enumerate(zip(tilts, matrices, strict=True))
    )


def _read_list(value: Any, label: str, path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in str(value).strip("[]").replace(",", " ").split())
    except ValueError:
        raise FileFormatError(f"{str(path)!r} has {label} {value!r}; expected numbers in brackets") from None


def _read_curve(row: "pd.Series[Any]", path: Path) -> tuple[npt.NDArray[np.float64], ...]:
    """Read the detector's transfer function that a row of the optics table names, its frequencies in 1/Å."""
    name = str(row.get("rlnMtfFileName", "")).strip()
    if name in ("", "None", "none", "nan"):
        return ()
    original = float(row.get("rlnMicrographOriginalPixelSize", row["rlnImagePixelSize"]))
    frequency, values = read_mtf(find_file(name, path))
    return frequency / original, values


def _interpret(
    table: pd.DataFrame,
    grouped: tuple[pd.DataFrame, npt.NDArray[np.int64]],
    path: Path,
    source: dict[str, Block] | Records,
) -> ParticleTable:
    require_columns(table, ["rlnImageName", *_ANGLES, "rlnDefocusU"], path, "particles")
    if not len(table):
        raise FileFormatError(f"{str(path)!r} holds no particles; expected at least one")
    optics, groups = grouped
    names = tuple(str(name) for name in table["rlnImageName"])

    def column(label: str, default: float) -> npt.NDArray[np.float64]:
        return (
            get_numbers(table, label, path, "particles") if label in table else np.full(len(table), default)
        )

    defocus_u = column("rlnDefocusU", 0.0)
    ctf = [defocus_u, column(_CTF[1], 0.0) if _CTF[1] in table else defocus_u]
    ctf += [column(label, 1.0 if label == "rlnCtfScalefactor" else 0.0) for label in _CTF[2:]]
    numbers = [get_numbers(optics, label, path, "optics") for label in _OPTICS]
    multiplied = (
        optics["rlnCtfDataAreCtfPremultiplied"].astype(int).tolist()
        if "rlnCtfDataAreCtfPremultiplied" in optics
        else [0] * len(optics)
    )
    particles = ImageParticles(
        find_images(names, path),
        np.stack([column(label, 0.0) for label in _ANGLES], axis=1),
        np.stack([column(label, 0.0) for label in _ORIGINS], axis=1),
        np.stack(ctf, axis=1),
        column("rlnRandomSubset", 0.0).astype(np.int64),
        groups,
        tuple(Optics(*values) for values in zip(*(one.tolist() for one in numbers), strict=True)),
        tuple(bool(value) for value in multiplied),
        _read_aberrations(optics, path),
    )
    return ParticleTable(particles, names, source)


def find_images(names: Sequence[str], path: Path) -> tuple[ImageReference, ...]:
    """Turn `NUMBER@STACK`, as the table at `path` writes images, into references.

    Raises
    ------
    FileFormatError
        When a name is written otherwise.
    """
    found: dict[str, Path] = {}
    images = []
    for name in names:
        number, at, file = name.partition("@")
        if not at or not number.isdigit():
            raise FileFormatError(f"{str(path)!r} names the image {name!r}; expected NUMBER@STACK")
        if file not in found:
            found[file] = find_file(file, path)
        images.append(ImageReference(found[file], int(number) - 1))
    return tuple(images)


def write_star_particles(
    path: Path | str,
    table: ParticleTable,
    images: Sequence[ImageReference],
    columns: dict[str, npt.NDArray[Any]],
    *,
    box: int,
    centred: bool,
) -> None:
    """Write the STAR file again with other images, the old ones as `rlnImageOriginalName`.

    Parameters
    ----------
    path
        Where it goes.
    table
        What was read.
    images
        A new image for each row.
    columns
        More columns.
    box
        Side of the new images, pixels.
    centred
        Whether the particles lie in their middles now, so that their origins are 0 and priors on them void.
    """
    assert isinstance(table.source, dict)
    blocks = dict(table.source)
    rows = get_table(blocks, "particles", path).copy()
    rows["rlnImageOriginalName"] = list(table.names)
    # The working directory is asked for once a stack, not once an image.
    stacks = {path: project_path(path) for path in dict.fromkeys(image.path for image in images)}
    rows["rlnImageName"] = [f"{(image.section or 0) + 1:06d}@{stacks[image.path]}" for image in images]
    if centred:
        rows = rows.drop(columns=[label for label in _PRIORS if label in rows])
        for label in _ORIGINS:
            rows[label] = 0.0
    for label, values in columns.items():
        rows[label] = values
    if "optics" in blocks:
        optics = get_table(blocks, "optics", path).copy()
        optics["rlnImageSize"] = box
        blocks["optics"] = optics
    write_star(path, {**blocks, "particles": rows})


def write_cs_particles(
    path: Path | str, table: ParticleTable, images: Sequence[ImageReference], *, box: int, centred: bool
) -> None:
    """Write the `.cs` file again with other images; parameters as of `write_star_particles`."""
    assert not isinstance(table.source, dict)
    records = table.source.copy()
    fields = records.dtype.names or ()
    stacks = {path: project_path(path).encode() for path in dict.fromkeys(image.path for image in images)}
    paths = [stacks[image.path] for image in images]
    longest = max(len(one) for one in paths)
    kind = records.dtype["blob/path"]
    if kind.kind == "S" and kind.itemsize < longest:
        layout = [
            (name, f"S{longest}") if name == "blob/path" else (name, *_describe_field(records.dtype[name]))
            for name in fields
        ]
        wider = np.empty(len(records), dtype=layout)
        for name in fields:
            wider[name] = records[name]
        records = wider
    records["blob/path"] = paths
    records["blob/idx"] = [image.section for image in images]
    if "blob/shape" in fields:
        records["blob/shape"] = box
    if centred and "alignments3D/shift" in fields:
        records["alignments3D/shift"] = 0
    write_cs(path, records)


def _describe_field(kind: np.dtype[Any]) -> tuple[Any, ...]:
    return (kind.base, kind.shape) if kind.shape else (kind,)


def write_rows(table: ParticleTable, path: Path | str) -> None:
    """Write a table as it is."""
    if isinstance(table.source, dict):
        write_star(path, table.source)
    else:
        write_cs(path, table.source)
