"""Plain tables of numbers, a row a line: what IMOD, AreTomo and emClarity keep most of their metadata in."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.files import check_exists

FloatArray = npt.NDArray[np.float64]


def read_text(path: Path | str, what: str) -> str:
    """Text of a file.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is not text.
    """
    raw = check_exists(path, what).read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise FileFormatError(f"{what} {str(path)!r} is a binary file; expected text")
    return text


def read_number_table(path: Path | str, what: str, columns: Iterable[int] | None = None) -> FloatArray:
    """Read blank-separated numbers; empty lines count for nothing.

    Parameters
    ----------
    path
        The file.
    what
        What an error calls it.
    columns
        Numbers of columns that the format allows; any when not given.

    Returns
    -------
    ndarray
        `(rows, columns)`, all finite, at least one row.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is empty, ragged, has another number of columns, or holds something that is no finite number.
    """
    lines = read_text(path, what).splitlines()
    return parse_rows(enumerate(lines, start=1), path, what, columns)


def parse_rows(
    lines: Iterable[tuple[int, str]], path: Path | str, what: str, columns: Iterable[int] | None = None
) -> FloatArray:
    """Turn numbered lines into a table; see `read_number_table`."""
    allowed = None if columns is None else tuple(columns)
    where = f"{what} {str(path)!r}"
    rows: list[list[str]] = []
    for number, line in lines:
        fields = line.split()
        if not fields:
            continue
        expected = (len(rows[0]),) if rows else allowed
        if expected is not None and len(fields) not in expected:
            counts = " or ".join(map(str, expected))
            raise FileFormatError(f"{where} has {len(fields)} values in line {number}; expected {counts}")
        _check_numbers(fields, number, where)
        rows.append(fields)
    if not rows:
        raise FileFormatError(f"{where} holds no numbers")
    return np.array(rows, dtype=np.float64)


def _check_numbers(fields: list[str], number: int, where: str) -> None:
    for field in fields:
        try:
            is_finite = np.isfinite(float(field))
        except ValueError:
            is_finite = False
        if not is_finite:
            raise FileFormatError(f"{where} has {field[:40]!r} in line {number}; expected a finite number")


def format_number(value: float, width: int, decimals: int) -> str:
    """Write a number with the format's own decimals where they hold it, else with as many as it takes."""
    text = f"{value:{width}.{decimals}f}"
    return text if abs(float(text) - value) <= 1e-9 else repr(float(value)).rjust(width)
