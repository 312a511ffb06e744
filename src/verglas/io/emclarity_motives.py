"""emClarity's motive lists (`.csv`), and their conventions.

A motive's triple e1, e2, e3 (degrees) means R = Rz(e1) Rx(e2) Rz(e3), active, which takes the reference to the
tomogram, like R = Rz(rot) Ry(tilt) Rz(psi) here; Rx(b) = Rz(-90) Ry(b) Rz(90), so rot = e1 - 90, tilt = e2,
psi = e3 + 90. Its place is counted from 1 in unbinned pixels from the lower left corner of its sub-region.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import UserError
from verglas.files import write_text
from verglas.io.number_table import read_number_table
from verglas.model import Particles

FloatArray = npt.NDArray[np.float64]

_KEPT_MOTIVE_COLUMNS = {
    1: "vglEmclaritySampling",
    2: "vglEmclarityRemoved",
    3: "vglEmclarityParticleId",
    4: "vglEmclarityColumn5",
    5: "vglEmclarityColumn6",
    7: "vglEmclarityPcaFlag",
    8: "vglEmclarityCtfGroup",
    9: "vglEmclaritySnrSubset",
    25: "vglEmclarityClass",
}
_GROUPS = 9
_TO_ZYZ = np.array([-90.0, 0.0, 90.0])


def read_motives(path: Path | str) -> FloatArray:
    """Read a motive list.

    Returns
    -------
    ndarray
        `(n, 26)`, or 26 columns for each of several peaks, or the `(n, 6)` x y z e1 e2 e3 that emClarity
        imports.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing or ragged, or a line has another number of values.
    """
    return read_number_table(path, "emClarity motive list", {6, *(26 * peaks for peaks in range(1, 21))})


def write_motives(path: Path | str, motives: npt.ArrayLike) -> None:
    """Write a motive list, blank-separated, whole numbers without a point."""
    rows = np.asarray(motives, dtype=float)
    write_text(path, "".join(" ".join(f"{value:.10g}" for value in row) + "\n" for row in rows))


def particles_from_emclarity(
    motives: FloatArray, geometry: FloatArray, *, pixel_size_angstrom: float, tomogram_name: str
) -> Particles:
    """Turn motives of one sub-region into particles of its tilt series.

    Motives that emClarity left out (-9999 in columns 3 or 26) are among them, with that in `extra`. Of
    several peaks the first is taken. Where the matrix of a motive says otherwise than its triple, the matrix
    is right.

    Parameters
    ----------
    motives
        `(n, 26 or more)`, or `(n, 6)`.
    geometry
        `(2, 3)` of the sub-region: `region_geometry`.
    pixel_size_angstrom
        Of the unbinned images.
    tomogram_name
        Name of the tilt series.

    Raises
    ------
    UserError
        When a half set is neither 1 nor 2.
    """
    count = len(motives)
    is_short = motives.shape[1] == 6
    xyz, triples = (motives[:, :3], motives[:, 3:]) if is_short else (motives[:, 10:13], motives[:, 13:16])
    centre = np.floor(geometry[0] / 2) + 1
    halves = np.zeros(count) if is_short else motives[:, 6]
    if not np.isin(halves, (0, 1, 2)).all():
        raise UserError(f"the motives of {tomogram_name!r} have a half set other than 1 and 2")
    if not is_short:
        matrices = motives[:, 16:25].reshape(-1, 3, 3).transpose(0, 2, 1)
        differs = np.abs(matrices - _matrices_zxz(triples)).max(axis=(1, 2), initial=0.0) > 1e-3
        is_rotation = (
            np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0) < 1e-2
        )
        right = (differs & is_rotation)[:, None]
        triples = np.where(right, _triples_zxz(matrices), triples)
    kept = {} if is_short else {label: motives[:, i] for i, label in _KEPT_MOTIVE_COLUMNS.items()}
    return Particles(
        tomogram_names=np.full(count, tomogram_name),
        positions_angstrom=(xyz - centre + geometry[1]) * pixel_size_angstrom,
        angles_deg=triples + _TO_ZYZ,
        half_set=halves.astype(np.int64),
        score=np.full(count, np.nan) if is_short else motives[:, 0],
        extra=pd.DataFrame(kept),
    )


def particles_to_emclarity(
    particles: Particles, geometry: FloatArray, *, pixel_size_angstrom: float
) -> FloatArray:
    """Turn particles of one tilt series into the `(n, 26)` motives of a sub-region.

    Columns that the particles do not have get what emClarity's template search writes; a half set that is not
    assigned becomes 1.

    Parameters
    ----------
    particles
        Particles of one tilt series.
    geometry
        `(2, 3)` of the sub-region: `region_geometry`.
    pixel_size_angstrom
        Of the unbinned images.
    """
    count = len(particles)
    triples = particles.angles_deg - _TO_ZYZ
    centre = np.floor(geometry[0] / 2) + 1
    xyz = particles.positions_angstrom / pixel_size_angstrom - geometry[1] + centre
    group = np.clip(np.ceil(xyz[:, 0] / geometry[0, 0] * _GROUPS), 1, _GROUPS)
    defaults: dict[int, npt.ArrayLike] = {1: 1, 2: 0, 3: np.arange(1, count + 1), 4: 1, 5: 1, 7: 1, 8: group}
    motives = np.zeros((count, 26))
    motives[:, 0] = np.nan_to_num(particles.score)
    motives[:, 6] = np.where(particles.half_set == 0, 1, particles.half_set)
    motives[:, 10:13], motives[:, 13:16] = xyz, triples
    motives[:, 16:25] = _matrices_zxz(triples).transpose(0, 2, 1).reshape(count, 9)
    for column, label in _KEPT_MOTIVE_COLUMNS.items():
        has = label in particles.extra
        motives[:, column] = particles.extra[label] if has else defaults.get(column, float(column == 25))
    return motives


def _matrices_zxz(triples_deg: FloatArray) -> FloatArray:
    """`(n, 3, 3)` Rz(e1) Rx(e2) Rz(e3)."""
    (c1, c2, c3), (s1, s2, s3) = np.cos(np.deg2rad(triples_deg)).T, np.sin(np.deg2rad(triples_deg)).T
    rows = [
        [c1 * c3 - s1 * c2 * s3, -c1 * s3 - s1 * c2 * c3, s1 * s2],
        [s1 * c3 + c1 * c2 * s3, -s1 * s3 + c1 * c2 * c3, -c1 * s2],
        [s2 * s3, s2 * c3, c2],
    ]
    return np.array(rows).transpose(2, 0, 1)


def _triples_zxz(matrices: FloatArray) -> FloatArray:
    """`(n, 3)` e1, e2, e3 in degrees; e3 is 0 where the axis stays along z."""
    sine = np.hypot(matrices[:, 2, 0], matrices[:, 2, 1])
    is_upright = sine < 1e-6
    upright = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    e1 = np.where(is_upright, upright, np.arctan2(matrices[:, 0, 2], -matrices[:, 1, 2]))
    e3 = np.where(is_upright, 0.0, np.arctan2(matrices[:, 2, 0], matrices[:, 2, 1]))
    return np.asarray(np.rad2deg(np.stack([e1, np.arctan2(sine, matrices[:, 2, 2]), e3], axis=1)))
