"""The local field of a tilt series, as JSON beside its STAR file."""

import json
from pathlib import Path

import numpy as np

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists, write_text
from verglas.model import LocalField


def write_local_field(path: Path | str, field: LocalField) -> None:
    """Write the field of one series."""
    record = {
        "low_angstrom": list(field.low_angstrom),
        "high_angstrom": list(field.high_angstrom),
        # A thousandth of an Å is far below what anybody measures.
        "shifts_angstrom": np.round(field.shifts_angstrom, 3).tolist(),
    }
    write_text(path, json.dumps(record) + "\n")


def read_local_field(path: Path | str) -> LocalField:
    """Read the field of one series.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing or does not hold what :func:`write_local_field` wrote.
    """
    path = check_exists(path, "local field of a tilt series")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        (low_x, low_y), (high_x, high_y) = record["low_angstrom"], record["high_angstrom"]
        shifts = np.asarray(record["shifts_angstrom"], dtype=float)
        return LocalField((float(low_x), float(low_y)), (float(high_x), float(high_y)), shifts)
    except (ValueError, TypeError, KeyError, UserError) as error:
        raise FileFormatError(f"local field {str(path)!r} cannot be read: {error}") from error
