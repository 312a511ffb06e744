"""AreTomo's alignment (`.aln` of versions 1.2 to 3), CTF table and metrics; and their geometry.

A specimen point p appears, in pixels from index n // 2 of the raw image, at

    Rz(ROT) Ry(TILT) p + (TX, TY)

so z_rot is ROT, y_tilt TILT and the shift (TX, TY). This is what AreTomo writes as `.xf` for IMOD:
A = Rz(-ROT), d = -A (TX, TY). Local shifts of patches stay in the record.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.files import write_text
from verglas.io.number_table import format_number, parse_rows, read_text
from verglas.model import ImageReference, Optics, TiltSeries

FloatArray = npt.NDArray[np.float64]

_TITLE = "# AreTomo Alignment / Priims bprmMn"
_COLUMNS = "# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT"
_LOCAL = "# Local Alignment"
_CTF_COLUMNS = (
    "# Columns: #1 micrograph number; #2 - defocus 1 [A]; #3 - defocus 2; #4 - azimuth of astigmatism; "
    "#5 - additional phase shift [radian]; #6 - cross correlation; #7 - spacing (in Angstroms) up to which "
    "CTF rings were fit successfully"
)


@dataclass(frozen=True, eq=False)
class AretomoAlignment:
    """What is in an `.aln`.

    Parameters
    ----------
    header
        Lines before the table, as they are: RawSize, NumPatches, DarkFrame, AlphaOffset and the like.
    views
        `(n, 10)` SEC, ROT, GMAG, TX, TY, SMEAN, SFIT, SCALE, BASE, TILT; angles in degrees, shifts in pixels
        of the raw images.
    local
        `(views * patches, 7)` view, patch, x and y of the patch, shift of x and y, whether it is trusted;
        none where the file has no such part.
    """

    header: tuple[str, ...]
    views: FloatArray
    local: FloatArray | None = None

    def numbers(self, name: str) -> list[tuple[float, ...]]:
        """Numbers of every header line `# name = ...`, such as `DarkFrame` or `RawSize`.

        Raises
        ------
        FileFormatError
            When one is not finite numbers.
        """
        found = []
        for line in self.header:
            key, equals, rest = line.lstrip("# ").partition("=")
            if equals and key.strip() == name:
                found.append(tuple(parse_rows([(1, rest)], name, "header entry")[0]))
        return found

    @property
    def raw_size(self) -> tuple[int, int, int] | None:
        """Size xyz of the raw stack; None in files of version 1.2."""
        sizes = self.numbers("RawSize")
        return (
            (int(sizes[0][0]), int(sizes[0][1]), int(sizes[0][2])) if sizes and len(sizes[0]) == 3 else None
        )

    @property
    def dark_frames(self) -> FloatArray:
        """`(m, 3)` views left out: number in the order of the angles, section, and tilt angle in degrees."""
        return np.array(self.numbers("DarkFrame")).reshape(-1, 3)

    @property
    def sections(self) -> npt.NDArray[np.int64]:
        """`(n,)` section of each view in the raw stack, from 0; SEC counts from 1 in AreTomo 3 only."""
        numbers = self.views[:, 0].astype(np.int64)
        return numbers - 1 if self.numbers("AlphaOffset") and numbers.min() > 0 else numbers


@dataclass(frozen=True, eq=False)
class AretomoCtf:
    """What is in a `_CTF.txt`.

    Parameters
    ----------
    header
        Comment lines, as they are.
    views
        `(n, 7 or 8)` number, defocus 1 and 2 in Å, azimuth in degrees, phase shift in radians, score,
        resolution in Å and, in later versions, the hand of the defocus.
    """

    header: tuple[str, ...]
    views: FloatArray


def read_aln(path: Path | str) -> AretomoAlignment:
    """Read an `.aln`.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is not an alignment of AreTomo, is cut short, or holds something that is no finite number.
    """
    lines = list(enumerate(read_text(path, "AreTomo alignment").splitlines(), start=1))
    where = f"AreTomo alignment {str(path)!r}"
    if not lines or not lines[0][1].startswith("# AreTomo"):
        raise FileFormatError(f"{where} does not begin with '# AreTomo Alignment'")
    names = next((i for i, (_, line) in enumerate(lines) if line.startswith("# SEC")), None)
    if names is None:
        raise FileFormatError(f"{where} has no line '# SEC ...'; it is cut short")
    end = next((i for i, (_, line) in enumerate(lines) if line.startswith(_LOCAL)), len(lines))
    views = parse_rows(lines[names + 1 : end], path, "AreTomo alignment", {10})
    header = tuple(line for _, line in lines[:names])
    local = None
    if end < len(lines):
        rest = [line for line in lines[end + 1 :] if line[1].strip()]
        local = parse_rows(rest, path, "AreTomo alignment", {7}) if rest else np.empty((0, 7))
    alignment = AretomoAlignment(header, views, local)
    sizes = alignment.numbers("RawSize")
    if any(len(size) != 3 or min(size) < 1 for size in sizes):
        raise FileFormatError(f"{where} has the RawSize {sizes[0]}; expected three positive sizes")
    if any(len(dark) != 3 for dark in alignment.numbers("DarkFrame")):
        raise FileFormatError(f"{where} has a DarkFrame that is not three numbers")
    if not np.isin(views[:, 0], np.arange(100_000)).all():
        raise FileFormatError(f"{where} has a SEC that is not a whole number from 0 up")
    return alignment


def write_aln(path: Path | str, alignment: AretomoAlignment) -> None:
    """Write an `.aln`."""
    lines = [*alignment.header, _COLUMNS]
    lines += map(_view_line, alignment.views)
    if alignment.local is not None:
        lines.append(_LOCAL)
        lines += [
            "{:4.0f} {:3.0f} {:8.2f}  {:8.2f}  {:8.2f}  {:8.2f}  {:4.1f}".format(*row)
            for row in alignment.local
        ]
    write_text(path, "\n".join(lines) + "\n")


def read_aretomo_ctf(path: Path | str) -> AretomoCtf:
    """Read a `_CTF.txt`, of AreTomo or CTFFIND.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, or a line is not 7 or 8 finite numbers.
    """
    lines = list(enumerate(read_text(path, "CTF table").splitlines(), start=1))
    rows = [line for line in lines if not line[1].startswith("#")]
    return AretomoCtf(
        tuple(line for _, line in lines if line.startswith("#")), parse_rows(rows, path, "CTF table", {7, 8})
    )


def write_aretomo_ctf(path: Path | str, ctf: AretomoCtf) -> None:
    """Write a `_CTF.txt`."""
    form = "{:4.0f}  {:9.2f} {:9.2f} {:9.2f} {:9.2f} {:9.4f} {:9.4f}"
    lines = [form.format(*row) + "".join(f" {value:4.0f}" for value in row[7:]) for row in ctf.views]
    write_text(path, "\n".join([*ctf.header, *lines]) + "\n")


def tilt_series_from_aretomo(
    alignment: AretomoAlignment,
    *,
    name: str,
    stack: Path,
    optics: Optics,
    image_shape: tuple[int, int] | None = None,
    ctf: AretomoCtf | None = None,
) -> TiltSeries:
    """Turn AreTomo's alignment into our geometry; see the module's text.

    The series has the views that AreTomo aligned, in its order; dark frames are not among them.

    Parameters
    ----------
    alignment
        The `.aln`.
    name
        Name of the series.
    stack
        The raw stack, whose sections SEC counts.
    optics
        With the pixel size of the raw stack.
    image_shape
        `(y, x)` of the raw images; needed for files of version 1.2, which do not tell it.
    ctf
        CTF table with a line for each of the views.

    Raises
    ------
    UserError
        When the size is unknown, GMAG is not 1, or the CTF table has another number of lines.
    """
    size = alignment.raw_size
    if image_shape is None and size is None:
        raise UserError(
            f"`image_shape` of tilt series {name!r} must be given; its alignment does not tell it"
        )
    shape = image_shape if image_shape is not None or size is None else (size[1], size[0])
    assert shape is not None
    views = alignment.views
    if (np.abs(views[:, 2] - 1) > 1e-5).any():
        raise UserError(
            f"the alignment of tilt series {name!r} has a GMAG other than 1, which AreTomo never writes"
        )
    if ctf is not None and len(ctf.views) != len(views):
        raise UserError(
            f"the CTF table of tilt series {name!r} has {len(ctf.views)} lines; expected {len(views)}, one "
            "for each aligned view"
        )
    fit = np.full((len(views), 7), np.nan) if ctf is None else ctf.views
    return TiltSeries(
        name=name,
        optics=optics,
        image_shape=shape,
        images=tuple(ImageReference(stack, int(section)) for section in alignment.sections),
        nominal_tilt_deg=views[:, 9],
        z_rot_deg=views[:, 1],
        x_shift_angstrom=views[:, 3] * optics.pixel_size_angstrom,
        y_shift_angstrom=views[:, 4] * optics.pixel_size_angstrom,
        defocus_u_angstrom=fit[:, 1],
        defocus_v_angstrom=fit[:, 2],
        defocus_angle_deg=np.nan_to_num(fit[:, 3]),
        phase_shift_deg=np.rad2deg(np.nan_to_num(fit[:, 4])),
    )


def tilt_series_to_aretomo(series: TiltSeries) -> tuple[AretomoAlignment, AretomoCtf | None]:
    """Turn our geometry into an alignment of AreTomo 3; views that are not selected become dark frames.

    Returns
    -------
    alignment, ctf
        The `.aln`, and the CTF table when the defocus of every selected view is known.

    Raises
    ------
    UserError
        When the series has an x tilt or a magnification, or no selected view.
    """
    if np.abs(series.x_tilt_deg).max() > 1e-4 or np.abs(series.magnification - np.eye(2)).max() > 1e-4:
        raise UserError(
            f"tilt series {series.name!r} has x tilts or magnifications, which AreTomo does not know"
        )
    if not series.selected.any():
        raise UserError(f"tilt series {series.name!r} has no selected view; expected at least one")
    assert series.y_tilt_deg is not None
    numbers = (
        np.array([i if image.section is None else image.section for i, image in enumerate(series.images)]) + 1
    )
    height, width = series.image_shape
    header = [
        _TITLE,
        f"# RawSize = {width} {height} {max(len(series), int(numbers.max()))}",
        "# NumPatches = 0",
    ]
    rank = np.argsort(np.argsort(series.y_tilt_deg, kind="stable"), kind="stable")
    header += [
        f"# DarkFrame =  {rank[i]:4d} {numbers[i]:4d} {series.y_tilt_deg[i]:8.2f}"
        for i in np.flatnonzero(~series.selected)
    ]
    header += ["# AlphaOffset =     0.00", "# BetaOffset =     0.00"]
    used = series.take(series.selected)
    assert used.y_tilt_deg is not None
    ones = np.ones((len(used), 3))
    shifts = np.stack([used.x_shift_angstrom, used.y_shift_angstrom], axis=1) / used.pixel_size_angstrom
    views = np.column_stack(
        [
            numbers[series.selected],
            used.z_rot_deg,
            ones[:, 0],
            shifts,
            ones,
            np.zeros(len(used)),
            used.y_tilt_deg,
        ]
    )
    return AretomoAlignment(tuple(header), views), _ctf_table(used)


def _view_line(row: FloatArray) -> str:
    # Blanks part the columns, so a value that needs more decimals may take them.
    forms = ((9, 4), (9, 5), (9, 3), (9, 3), (7, 2), (7, 2), (7, 2), (7, 2), (8, 2))
    values = (format_number(value, *form) for value, form in zip(row[1:], forms, strict=True))
    return "  ".join([f"{row[0]:5.0f}", *values])


def _ctf_table(series: TiltSeries) -> AretomoCtf | None:
    if not np.isfinite(series.mean_defocus_angstrom).all():
        return None
    columns = [
        np.arange(1, len(series) + 1),
        series.defocus_u_angstrom,
        series.defocus_v_angstrom,
        series.defocus_angle_deg,
        np.deg2rad(series.phase_shift_deg),
        np.zeros((len(series), 2)),
    ]
    return AretomoCtf((_CTF_COLUMNS,), np.column_stack(columns))
