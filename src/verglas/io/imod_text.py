"""IMOD's text files: `.xf`, `.tlt` and its like, `.local`, command files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.files import write_text
from verglas.io.number_table import format_number, parse_rows, read_number_table, read_text

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImodCommand:
    """A command file (`newst.com`, `tilt.com`), line by line.

    Parameters
    ----------
    lines
        The file's lines without their ends.
    """

    lines: tuple[str, ...]

    def values(self, name: str) -> tuple[str, ...] | None:
        """Words after the entry `name`, parted by blanks or commas, or None where the entry is missing.

        As in IMOD, case does not matter and an entry that comes again replaces the one before.
        """
        found = None
        for line in self.lines:
            words = line.replace(",", " ").split()
            if words and words[0].lower() == name.lower():
                found = tuple(words[1:])
        return found

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Numbers of an entry; those that it leaves out are taken from `default`.

        Raises
        ------
        FileFormatError
            When a word is not a finite number.
        """
        words = self.values(name) or ()
        try:
            given = tuple(float(word) for word in words[: len(default)])
        except ValueError:
            given = (np.nan,)
        if not np.isfinite(given).all():
            raise FileFormatError(f"entry {name} has the value {' '.join(words)!r}; expected finite numbers")
        return given + default[len(given) :]


@dataclass(frozen=True, eq=False)
class ImodLocal:
    """Local alignments, as `tiltalign` writes and `tilt` reads them.

    Parameters
    ----------
    start_px, step_px
        xy of the centre of the first area in the aligned image, and from area to area; whole pixels.
    tilt_deg
        `(areas_y, areas_x, n)` added to the tilt angles.
    transforms
        `(areas_y, areas_x, n, 2, 3)` `.xf` lines about the centre of each area.
    x_tilt_deg
        `(areas_y, areas_x, n)` added to the x-axis tilts, when there are any.
    z_factors
        `(areas_y, areas_x, n, 2)` shift of x and y a pixel of z, when there are any.
    pixel_size
        Pixel size of the aligned images that the areas refer to, in the file's unit; 0 when unknown.
    """

    start_px: tuple[int, int]
    step_px: tuple[int, int]
    tilt_deg: FloatArray
    transforms: FloatArray
    x_tilt_deg: FloatArray | None = None
    z_factors: FloatArray | None = None
    pixel_size: float = 0.0


def read_xf(path: Path | str) -> FloatArray:
    """Read linear transforms.

    Returns
    -------
    ndarray
        `(n, 2, 3)`: A and, as last column, d in pixels.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, or a line is not six finite numbers.
    """
    table = read_number_table(path, "transform file", {6})
    return np.concatenate([table[:, :4].reshape(-1, 2, 2), table[:, 4:, None]], axis=2)


def write_xf(path: Path | str, transforms: npt.ArrayLike) -> None:
    """Write `(n, 2, 3)` linear transforms."""
    write_text(path, "".join(map(_xf_line, np.asarray(transforms, dtype=float))))


def read_tlt(path: Path | str) -> FloatArray:
    """Read the angles of a `.tlt`, `.rawtlt` or `.xtilt`, in degrees.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, or a line is not one finite number.
    """
    return read_number_table(path, "angle file", {1})[:, 0]


def write_tlt(path: Path | str, angles_deg: npt.ArrayLike) -> None:
    """Write a `.tlt`, `.rawtlt` or `.xtilt`."""
    write_text(
        path, "".join(f"{format_number(angle, 7, 2)}\n" for angle in np.asarray(angles_deg, dtype=float))
    )


def read_local(path: Path | str) -> ImodLocal:
    """Read local alignments; the number of views follows from the number of values.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, or is not a whole number of views for every area.
    """
    first, _, rest = read_text(path, "local alignment file").lstrip().partition("\n")
    where = f"local alignment file {str(path)!r}"
    head = parse_rows([(1, first)], path, "local alignment file", {6, 7, 8, 9})[0]
    areas_x, areas_y, *corner = (round(value) for value in head[:6])
    has_x_tilt, pixel_size, has_z_factors = np.pad(head[6:], (0, 9 - len(head)))
    if min(areas_x, areas_y) < 1:
        raise FileFormatError(f"{where} has {areas_x} x {areas_y} areas; expected at least one")
    values = parse_rows(((2 + i, word) for i, word in enumerate(rest.split())), path, "local alignment file")[
        :, 0
    ]
    per_view = 7 + (has_x_tilt > 0) + 2 * (has_z_factors > 0)
    count, left_over = divmod(len(values), areas_x * areas_y * per_view)
    if left_over or count == 0:
        raise FileFormatError(
            f"{where} has {len(values)} values after its first line; expected a multiple of {per_view} "
            f"for each of {areas_x} x {areas_y} areas"
        )
    blocks = values.reshape(areas_y, areas_x, count * per_view)
    widths = [count, count * (has_x_tilt > 0), 2 * count * (has_z_factors > 0)]
    tilt, x_tilt, z_factors, lines = np.split(blocks, np.cumsum(widths), axis=2)
    table = lines.reshape(areas_y, areas_x, count, 6)
    matrices = table[..., :4].reshape(areas_y, areas_x, count, 2, 2)
    return ImodLocal(
        start_px=(corner[0], corner[1]),
        step_px=(corner[2], corner[3]),
        tilt_deg=tilt,
        transforms=np.concatenate([matrices, table[..., 4:, None]], axis=-1),
        x_tilt_deg=x_tilt if has_x_tilt > 0 else None,
        z_factors=z_factors.reshape(areas_y, areas_x, count, 2) if has_z_factors > 0 else None,
        pixel_size=float(pixel_size),
    )


def write_local(path: Path | str, local: ImodLocal) -> None:
    """Write local alignments."""
    areas_y, areas_x = local.tilt_deg.shape[:2]
    flags = (
        f"{int(local.x_tilt_deg is not None):4d}{local.pixel_size:12.5f}{int(local.z_factors is not None):4d}"
    )
    text = ["".join(f"{n:7d}" for n in (areas_x, areas_y, *local.start_px, *local.step_px)) + flags + "\n"]
    for area in np.ndindex(areas_y, areas_x):
        text.append(_rows(local.tilt_deg[area], 2))
        if local.x_tilt_deg is not None:
            text.append(_rows(local.x_tilt_deg[area], 2))
        if local.z_factors is not None:
            text.append(_rows(local.z_factors[area].ravel(), 6))
        text += map(_xf_line, local.transforms[area])
    write_text(path, "".join(text))


def read_command(path: Path | str) -> ImodCommand:
    """Read a command file."""
    return ImodCommand(tuple(read_text(path, "command file").splitlines()))


def write_command(path: Path | str, command: ImodCommand) -> None:
    """Write a command file."""
    write_text(path, "".join(f"{line}\n" for line in command.lines))


def _xf_line(transform: FloatArray) -> str:
    matrix = [format_number(value, 11, 7) for value in transform[:, :2].ravel()]
    shift = [format_number(value, 11, 3) for value in transform[:, 2]]
    return "".join(f" {word}" for word in (*matrix, *shift)) + "\n"


def _rows(values: FloatArray, decimals: int) -> str:
    words = [format_number(value, 8, decimals) for value in values]
    return "".join(" ".join(words[i : i + 10]) + "\n" for i in range(0, len(words), 10))
