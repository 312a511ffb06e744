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
        low, high = (tuple(map(float, record[name])) for name in ("low_angstrom", "high_angstrom"))
        if not len(low) == len(high) == 2:
            raise ValueError("`low_angstrom` and `high_angstrom` must have two numbers")
        return LocalField(
            (low[0], low[1]), (high[0], high[1]), np.asarray(record["shifts_angstrom"], dtype=float)
        )
    except (ValueError, TypeError, KeyError, UserError) as error:
        raise FileFormatError(f"local field {str(path)!r} cannot be read: {error}") from error
