"""cisTEM's STAR files of particles: a row for each view of each particle, in the order of a stack.

Convention
----------
Angles psi, theta and phi are RELION's psi, tilt and rot of the reference in the frame of the view. Defocus is
positive for underfocus, the phase shift is in radians, shifts are Å. `_cisTEMParticleGroup` numbers the particle that
a view belongs to. The way is out only: the rows hold no place in the specimen.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy.typing as npt
import pandas as pd

from verglas.errors import UserError
from verglas.io.star import write_star

_DEFAULTS: dict[str, float] = {
    "XShift": 0.0,
    "YShift": 0.0,
    "PhaseShift": 0.0,
    "Occupancy": 100.0,
    "LogP": 0.0,
    "Sigma": 10.0,
    "Score": 0.0,
    "ScoreChange": 0.0,
    "BeamTiltX": 0.0,
    "BeamTiltY": 0.0,
    "ImageShiftX": 0.0,
    "ImageShiftY": 0.0,
    "Best2DClass": 0,
    "BeamTiltGroup": 0,
}
_COLUMNS = (
    *("PositionInStack", "AnglePsi", "AngleTheta", "AnglePhi", "XShift", "YShift", "Defocus1", "Defocus2"),
    *("DefocusAngle", "PhaseShift", "Occupancy", "LogP", "Sigma", "Score", "ScoreChange", "PixelSize"),
    *("MicroscopeVoltagekV", "MicroscopeCsMM", "AmplitudeContrast", "BeamTiltX", "BeamTiltY", "ImageShiftX"),
    *("ImageShiftY", "Best2DClass", "BeamTiltGroup", "ParticleGroup", "AssignedSubset", "PreExposure"),
    *("TotalExposure",),
)
_PREFIX = "cisTEM"


def write_cistem(path: Path | str, columns: Mapping[str, npt.ArrayLike]) -> None:
    """Write a table of views.

    Parameters
    ----------
    path
        The file.
    columns
        Values by cisTEM's label without its prefix; those that are missing get cisTEM's defaults.

    Raises
    ------
    UserError
        When a column without a default is missing.
    """
    table = pd.DataFrame(dict(columns))
    for name in _COLUMNS:
        if name not in table:
            if name not in _DEFAULTS:
                raise UserError(
                    f"a table for cisTEM lacks {name!r}; expected it and the others without defaults"
                )
            table[name] = _DEFAULTS[name]
    write_star(path, {"": table[list(_COLUMNS)].add_prefix(_PREFIX)})
