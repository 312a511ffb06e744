"""Modulation transfer functions of detectors, as the STAR files that RELION's users keep."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.io.star import get_numbers, read_star

_PLACE, _VALUE = "rlnResolutionInversePixel", "rlnMtfValue"


def read_mtf(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Read frequencies in 1/pixel of the detector, increasing, and the function's values.

    Raises
    ------
    FileFormatError
        When no table of the file has both columns, or their values are none of a transfer function.
    """
    import pandas as pd

    for name, block in read_star(path).items():
        if isinstance(block, pd.DataFrame) and {_PLACE, _VALUE} <= set(block.columns):
            places, values = (get_numbers(block, label, path, name) for label in (_PLACE, _VALUE))
            if len(places) < 2 or (np.diff(places) <= 0).any() or (values < 0).any():
                raise FileFormatError(
                    f"the transfer function of {str(path)!r} must have increasing frequencies and no negative values"
                )
            return places, values
    raise FileFormatError(f"{str(path)!r} has no table with {_PLACE} and {_VALUE}")
