"""Dynamo's particle tables (`.tbl`).

Convention
----------
Places, columns 24 to 26, count from 1 in voxels of the tomogram; the shifts of columns 4 to 6 are added to them.
The angles tdrot, tilt and narot of columns 7 to 9 mean Rz(narot) Rx(tilt) Rz(tdrot), active, which takes the
specimen to the reference; like RELION's, but about x. Column 10 is the score, 20 the number of the tomogram.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from verglas.errors import FileFormatError
from verglas.io.number_table import read_number_table
from verglas.model import Particles, Tomogram
from verglas.ops.geometry import axis_rotations
from verglas.ops.rotation import matrices_to_euler

FloatArray = npt.NDArray[np.float64]

_KEPT_COLUMNS = {0: "vglDynamoTag", 21: "vglDynamoClass"}
_FEWEST = 26


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
