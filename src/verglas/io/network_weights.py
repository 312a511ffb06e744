"""Weights of networks: NumPy's `.npz`, which holds arrays and no code."""

import zipfile
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.files import atomic_path, check_exists

Weights = dict[str, npt.NDArray[np.generic]]


def read_weights(path: Path | str) -> Weights:
    """Read arrays by name.

    Raises
    ------
    FileFormatError
        When the file is no `.npz`, or holds Python objects.
    """
    path = check_exists(path, "weights")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{str(path)!r} does not hold weights of a network as .npz: {error}") from error


def write_weights(path: Path | str, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write arrays by name; the same arrays give the same bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(sorted(weights.items())))


def read_shipped_weights(name: str) -> Weights:
    """Read the weights of that name that come with verglas."""
    with as_file(files("verglas") / "weights" / f"{name}.npz") as path:
        return read_weights(path)
