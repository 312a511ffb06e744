"""cryoSPARC's `.cs` tables: numpy records, kept exactly, and their meaning in RELION's labels.

Convention
----------
`alignments3D/pose` is a rotation vector in radians that takes the specimen onto the reference, and
`alignments2D/pose` the same about the beam alone. Shifts have RELION's sign and count in pixels of the
`psize_A` beside them. Class numbers and half sets count from 0, RELION's from 1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from verglas.errors import FileFormatError
from verglas.files import atomic_path, check_exists
from verglas.ops.rotation import matrices_to_euler, rotation_vectors_to_matrices

_CTF_LABELS = {
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
    "ctf/df1_A": "rlnDefocusU",
    "ctf/df2_A": "rlnDefocusV",
    "ctf/scale": "rlnCtfScalefactor",
    "ctf/bfactor": "rlnCtfBfactor",
    "blob/psize_A": "rlnImagePixelSize",
}
_CTF_ANGLE_LABELS = {"ctf/df_angle_rad": "rlnDefocusAngle", "ctf/phase_shift_rad": "rlnPhaseShift"}


def read_cs(path: Path | str) -> npt.NDArray[np.void]:
    """Read a `.cs` file as a structured array, a row a particle.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is not a table of numpy records.
    """
    path = check_exists(path, ".cs file")
    try:
        with path.open("rb") as file:
            records = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError):
        raise FileFormatError(f"{str(path)!r} is not a .cs file of numpy records") from None
    if records.dtype.names is None or records.ndim != 1:
        raise FileFormatError(f"{str(path)!r} holds an array of {records.dtype}; expected a table of records")
    return records


def write_cs(path: Path | str, records: npt.NDArray[np.void]) -> None:
    """Write a structured array as a `.cs` file, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array(file, records, allow_pickle=False)


def particles_from_cs(records: npt.NDArray[np.void]) -> pd.DataFrame:
    """Say in RELION's labels what a `.cs` table says of images, poses, shifts and CTF.

    Poses come from `alignments3D` where there is one, else from `alignments2D`; fields that are missing leave
    their labels out. Positions in the micrograph are in its pixels, counted from the first.

    Parameters
    ----------
    records
        What `read_cs` returns.

    Returns
    -------
    DataFrame
        A row a particle; angles in degrees, defocus and origins in Å.
    """
    names = set(records.dtype.names or ())
    columns: dict[str, Any] = {}
    if {"blob/path", "blob/idx"} <= names:
        paths = np.char.lstrip(_texts(records["blob/path"]), ">")
        numbers = np.char.zfill((records["blob/idx"].astype(np.int64) + 1).astype(str), 6)
        columns["rlnImageName"] = np.char.add(np.char.add(numbers, "@"), paths)
    if "location/micrograph_path" in names:
        columns["rlnMicrographName"] = np.char.lstrip(_texts(records["location/micrograph_path"]), ">")
    columns |= {label: records[name].astype(float) for name, label in _CTF_LABELS.items() if name in names}
    columns |= {
        label: np.rad2deg(records[name].astype(float))
        for name, label in _CTF_ANGLE_LABELS.items()
        if name in names
    }
    if {"location/center_x_frac", "location/center_y_frac", "location/micrograph_shape"} <= names:
        shape = records["location/micrograph_shape"].astype(float)
        columns["rlnCoordinateX"] = records["location/center_x_frac"].astype(float) * shape[:, 1]
        columns["rlnCoordinateY"] = records["location/center_y_frac"].astype(float) * shape[:, 0]
    group = next((name for name in ("alignments3D", "alignments2D") if f"{name}/pose" in names), None)
    if group is not None:
        columns |= _convert_alignments(records, group, names)
    return pd.DataFrame(columns, index=range(len(records)))


def _convert_alignments(records: npt.NDArray[np.void], group: str, names: set[str]) -> dict[str, Any]:
    pose = records[f"{group}/pose"].astype(float)
    columns: dict[str, Any] = {}
    if pose.ndim == 2:
        matrices = rotation_vectors_to_matrices(torch.from_numpy(np.rad2deg(-pose)))
        angles = matrices_to_euler(matrices).numpy()
        columns |= dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles.T, strict=True))
    else:
        columns["rlnAnglePsi"] = np.rad2deg(pose)
    if {f"{group}/shift", f"{group}/psize_A"} <= names:
        shift = records[f"{group}/shift"].astype(float) * records[f"{group}/psize_A"].astype(float)[:, None]
        columns |= {"rlnOriginXAngst": shift[:, 0], "rlnOriginYAngst": shift[:, 1]}
    if f"{group}/class" in names:
        columns["rlnClassNumber"] = records[f"{group}/class"].astype(np.int64) + 1
    # A 2-D classification has no half sets; its split is 0 throughout.
    if group == "alignments3D" and "alignments3D/split" in names:
        columns["rlnRandomSubset"] = records["alignments3D/split"].astype(np.int64) + 1
    return columns


def _texts(values: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(np.str_)
