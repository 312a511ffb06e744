"""Weights of networks: those that come with verglas, and the user's own."""

from importlib.resources import as_file, files
from pathlib import Path

from verglas.io.arrays import Arrays, read_arrays, write_arrays

Weights = Arrays

write_weights = write_arrays


def read_weights(path: Path | str) -> Weights:
    """Read arrays by name.

    Raises
    ------
    FileFormatError
        When the file is no `.npz`, or holds Python objects.
    """
    return read_arrays(path, "weights of a network")


def read_shipped_weights(name: str) -> Weights:
    """Read the weights of that name that come with verglas."""
    with as_file(files("verglas") / "weights" / f"{name}.npz") as path:
        return read_weights(path)
