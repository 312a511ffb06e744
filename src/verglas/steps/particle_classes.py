"""The class of each particle, in RELION's column."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import UserError
from verglas.model import Particles

_LABEL = "rlnClassNumber"


def number_classes(particles: Particles, numbers: npt.NDArray[np.int64]) -> Particles:
    """Write the class of each particle, from 1."""
    extra = particles.extra if len(particles.extra) else pd.DataFrame(index=range(len(particles)))
    return replace(particles, extra=extra.assign(**{_LABEL: numbers}))


def take_class(particles: Particles, number: int) -> Particles:
    """Keep the particles of one class.

    Raises
    ------
    UserError
        When no particle has a class, or none has this one.
    """
    if _LABEL not in particles.extra:
        raise UserError(f"the particles have no {_LABEL}; expected it for class {number}")
    numbers = particles.extra[_LABEL].to_numpy(dtype=np.int64)
    if number not in numbers:
        raise UserError(f"no particle is of class {number}; expected one of {np.unique(numbers).tolist()}")
    return particles.take(numbers == number)
