"""Dynamo's particle tables (`.tbl`).

Convention
----------
Places, columns 24 to 26, count from 1 in voxels of the tomogram; the shifts of columns 4 to 6 are added to them.
The angles tdrot, tilt and narot of columns 7 to 9 mean Rz(narot) Rx(tilt) Rz(tdrot), active, which takes the
specimen to the reference; like RELION's, but about x. Column 10 is the score, 20 the number of the tomogram.
Written tables have 35 columns and hold the half set as the number of the reference, column 34, where Dynamo's
adaptive filtering keeps it; it is not read from there, for it may be a class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from verglas.errors import FileFormatError
from verglas.files import write_text
from verglas.io.number_table import read_number_table
from verglas.model import Particles, Tomogram
from verglas.ops.geometry import axis_rotations
from verglas.ops.rotation import euler_to_matrices, matrices_to_euler

FloatArray = npt.NDArray[np.float64]

_KEPT_COLUMNS = {0: "vglDynamoTag", 21: "vglDynamoClass"}
_FEWEST, _WRITTEN = 26, 35


def read_dynamo_table(path: Path | str) -> FloatArray:
    """Read a table, `(n, 26 or more)`.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, ragged, has fewer than 26 columns or something that is no finite number.
    """
    table = read_number_table(path, "Dynamo table")
    if table.shape[1] < _FEWEST:
        raise FileFormatError(
            f"Dynamo table {str(path)!r} has {table.shape[1]} columns; expected at least {_FEWEST}"
        )
    return table


def particles_from_dynamo(table: FloatArray, tomograms: Sequence[Tomogram]) -> Particles:
    """Turn a table's rows into particles.

    Parameters
    ----------
    table
        What `read_dynamo_table` returns.
    tomograms
        That with number 1 first; where there is one only, all rows are of it.

    Raises
    ------
    FileFormatError
        When a row is of a tomogram that there is not.
    """
    numbers = table[:, 19].astype(int) if len(tomograms) > 1 else np.ones(len(table), dtype=int)
    unknown = numbers[(numbers < 1) | (numbers > len(tomograms))]
    if len(unknown):
        raise FileFormatError(
            f"a Dynamo table has particles of tomogram {unknown[0]}; expected numbers from 1 to {len(tomograms)}"
        )
    voxels = np.array([one.voxel_size_angstrom for one in tomograms])
    middles = np.array([[n // 2 for n in reversed(one.shape)] for one in tomograms])
    centres = np.array([one.centre_angstrom for one in tomograms])
    rows = numbers - 1
    places = table[:, 23:26] + table[:, 3:6] - 1 - middles[rows]
    tdrot, tilt, narot = torch.from_numpy(table[:, 6:9]).unbind(1)
    to_reference = axis_rotations(narot, "z") @ axis_rotations(tilt, "x") @ axis_rotations(tdrot, "z")
    return Particles(
        tomogram_names=np.array([one.name for one in tomograms])[rows],
        positions_angstrom=places * voxels[rows, None] + centres[rows],
        angles_deg=matrices_to_euler(to_reference.transpose(1, 2)).numpy(),
        half_set=np.zeros(len(table), dtype=np.int64),
        score=table[:, 9],
        extra=pd.DataFrame({label: table[:, column] for column, label in _KEPT_COLUMNS.items()}),
    )


def particles_to_dynamo(
    particles: Particles, tomograms: Sequence[Tomogram], rows: npt.NDArray[np.int64]
) -> FloatArray:
    """Turn particles into the `(n, 35)` rows of a table; places are whole voxels, shifts the rest.

    Parameters
    ----------
    particles
        Particles.
    tomograms
        That with number 1 first.
    rows
        `(n,)` which of them each particle lies in, from 0.
    """
    voxels = np.array([one.voxel_size_angstrom for one in tomograms])
    middles = np.array([[n // 2 for n in reversed(one.shape)] for one in tomograms])
    centres = np.array([one.centre_angstrom for one in tomograms])
    places = (particles.positions_angstrom - centres[rows]) / voxels[rows, None] + middles[rows] + 1
    # Rz(narot) Rx(tilt) Rz(tdrot) with Rx(t) = Rz(-90) Ry(t) Rz(90) is Rz(rot) Ry(tilt) Rz(psi).
    rot, tilt, psi = matrices_to_euler(euler_to_matrices(torch.from_numpy(particles.angles_deg))).numpy().T
    table = np.zeros((len(particles), _WRITTEN))
    table[:, 0] = np.arange(1, len(particles) + 1)
    table[:, 1] = table[:, 2] = 1
    table[:, 23:26] = np.rint(places)
    table[:, 3:6] = places - table[:, 23:26]
    table[:, 6:9] = np.stack([_fold(psi - 90), tilt, _fold(rot + 90)], axis=1)
    table[:, 9] = np.nan_to_num(particles.score)
    table[:, 19] = rows + 1
    table[:, 33] = particles.half_set
    for column, label in _KEPT_COLUMNS.items():
        if label in particles.extra:
            table[:, column] = particles.extra[label]
    return table


def _fold(angles_deg: FloatArray) -> FloatArray:
    return np.asarray((angles_deg + 180) % 360 - 180)


def write_dynamo_table(path: Path | str, table: FloatArray) -> None:
    """Write a table, blank-separated, whole numbers without a point."""
    write_text(path, "".join(" ".join(f"{value:.10g}" for value in row) + "\n" for row in table))


def write_dynamo_tomograms(path: Path | str, tomograms: Sequence[Tomogram]) -> None:
    """Write the list that tells the number of each tomogram from its file, for Dynamo's cropping."""
    lines = [f"{number} {one.path.absolute()}\n" for number, one in enumerate(tomograms, 1)]
    write_text(path, "".join(lines))
