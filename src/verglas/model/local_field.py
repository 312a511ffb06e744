"""Shifts of parts of the specimen, which the geometry of a tilt series does not know."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalField:
    """A smooth field of shifts over the specimen, one for each view of a series.

    A point (x, y, z) of the specimen appears s(x, y) away from where the geometry of the view shows it: what lies
    above each other moves together, as IMOD has it. s is a natural cubic spline through evenly spaced nodes;
    beyond the outermost nodes its value there holds.

    Parameters
    ----------
    low_angstrom, high_angstrom
        xy of the first and of the last node.
    shifts_angstrom
        `(n, nodes_y, nodes_x, 2)` xy of the image.

    Raises
    ------
    UserError
        When there is no node, a shift is not finite, or the last node does not lie beyond the first.
    """

    low_angstrom: tuple[float, float]
    high_angstrom: tuple[float, float]
    shifts_angstrom: FloatArray

    def __post_init__(self) -> None:
        shifts = np.array(self.shifts_angstrom, dtype=float)
        if shifts.ndim != 4 or shifts.shape[3] != 2 or 0 in shifts.shape:
            raise UserError(f"`shifts_angstrom` must be (n, nodes_y, nodes_x, 2); got {shifts.shape}")
        if not np.isfinite(shifts).all():
            raise UserError("`shifts_angstrom` of a local field must be finite; at least one is not")
        if not all(low < high for low, high in zip(self.low_angstrom, self.high_angstrom, strict=True)):
            raise UserError(
                f"the nodes of a local field reach from {self.low_angstrom} to {self.high_angstrom}; expected the "
                "second above the first"
            )
        shifts.setflags(write=False)
        object.__setattr__(self, "shifts_angstrom", shifts)

    def __len__(self) -> int:
        return len(self.shifts_angstrom)

    def take(self, rows: npt.NDArray[np.intp]) -> Self:
        """Return the field of these views only."""
        return type(self)(self.low_angstrom, self.high_angstrom, self.shifts_angstrom[rows])
