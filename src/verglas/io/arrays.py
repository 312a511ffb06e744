"""Arrays by name in NumPy's `.npz`, which holds arrays and no code."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.files import atomic_path, check_exists

Arrays = dict[str, npt.NDArray[np.generic]]


def read_arrays(path: Path | str, what: str) -> Arrays:
    """Read arrays by name.

    Parameters
    ----------
    path
        The file.
    what
        What they are, for errors.

    Raises
    ------
    FileFormatError
        When the file is no `.npz`, or holds Python objects.
    """
    path = check_exists(path, what)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{str(path)!r} does not hold {what} as .npz: {error}") from error


def write_arrays(path: Path | str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write arrays by name; the same arrays give the same bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(sorted(arrays.items())))
