"""The weights that the views of a tomogram carry, as JSON beside it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verglas.errors import FileFormatError
from verglas.files import check_exists, write_text
from verglas.model import AppliedWeights, DefocusSurface


def write_weights(path: Path | str, weights: AppliedWeights) -> None:
    """Write the weights of one tomogram."""
    record = asdict(weights)
    for name in _ARRAYS:
        record[name] = getattr(weights, name).tolist()
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_weights(path: Path | str) -> AppliedWeights:
    """Read the weights of one tomogram.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing or does not hold what :func:`write_weights` wrote.
    """
    path = check_exists(path, "weights of a tomogram")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["surfaces"] = tuple(
            DefocusSurface(**{**one, "coefficients": tuple(map(float, one["coefficients"]))})
            for one in record["surfaces"]
        )
        for name, kind in _ARRAYS.items():
            record[name] = np.asarray(record[name], dtype=kind)
        return AppliedWeights(**record)
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"weights of a tomogram {str(path)!r} cannot be read: {error}") from error


_ARRAYS = {"views": np.int64, "view_factors": np.float64, "view_deviations": np.float64}
