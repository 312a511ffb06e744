"""A part of a specimen that is worked on alone."""

import math
from dataclasses import dataclass

from verglas.errors import UserError


@dataclass(frozen=True)
class Region:
    """A box in the frame of the specimen.

    Parameters
    ----------
    tomogram_name
        Name of the tilt series.
    name
        Of the region within it; series and region together name files.
    centre_angstrom
        xyz of the middle, Å from the specimen's centre.
    size_angstrom
        xyz extents, Å.
    """

    tomogram_name: str
    name: str
    centre_angstrom: tuple[float, float, float]
    size_angstrom: tuple[float, float, float]

    def __post_init__(self) -> None:
        values = (*self.centre_angstrom, *self.size_angstrom)
        if len(values) != 6 or not all(map(math.isfinite, values)) or min(self.size_angstrom) <= 0:
            raise UserError(
                f"region {self.name!r} of {self.tomogram_name!r} has the size {self.size_angstrom} and the centre "
                f"{self.centre_angstrom}; expected positive extents and finite places along x, y and z"
            )

    @property
    def limits_angstrom(self) -> tuple[tuple[float, float], ...]:
        """Lower and upper limit along x, y and z, Å from the specimen's centre."""
        return tuple(
            (centre - size / 2, centre + size / 2)
            for centre, size in zip(self.centre_angstrom, self.size_angstrom, strict=True)
        )
