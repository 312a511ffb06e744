"""Particles: where they are, how they are turned, what is known of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Particles:
    """A table of particles as arrays, a row a particle.

    Parameters
    ----------
    tomogram_names
        `(n,)` name of the tilt series or tomogram of each particle.
    positions_angstrom
        `(n, 3)` xyz from the tomogram's centre (RELION 5's centred coordinates), refined origin included.
    angles_deg
        `(n, 3)` rot, tilt, psi as RELION writes them. `verglas.ops.rotation.euler_to_matrices` turns them into the
        matrices that take the reference frame to the specimen frame.
    half_set
        `(n,)` 1 or 2, or 0 where not assigned.
    score
        `(n,)` figure of merit, NaN where unknown.
    extra
        Columns of the file that have no field here, kept for writing back.
    """

    tomogram_names: npt.NDArray[np.str_]
    positions_angstrom: FloatArray
    angles_deg: FloatArray
    half_set: npt.NDArray[np.int64]
    score: FloatArray
    extra: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        count = len(self.tomogram_names)
        for name, dtype, shape in (
            ("positions_angstrom", float, (count, 3)),
            ("angles_deg", float, (count, 3)),
            ("half_set", np.int64, (count,)),
            ("score", float, (count,)),
        ):
            value = np.asarray(getattr(self, name), dtype=dtype)
            if value.shape != shape:
                raise UserError(f"`{name}` must have shape {shape}; got {value.shape}")
            if name != "score" and not np.isfinite(value).all():
                row = int(np.argwhere(~np.isfinite(value))[0][0])
                raise UserError(f"`{name}` must be finite; particle {row + 1} is not")
            object.__setattr__(self, name, value)
        if len(self.extra) not in {0, count}:
            raise UserError(f"`extra` must have {count} rows; got {len(self.extra)}")

    def __len__(self) -> int:
        return len(self.tomogram_names)

    def take(self, rows: Any) -> Self:
        """Return the particles of these rows, in this order."""
        index = np.arange(len(self))[np.asarray(rows)]
        return type(self)(
            tomogram_names=self.tomogram_names[index],
            positions_angstrom=self.positions_angstrom[index],
            angles_deg=self.angles_deg[index],
            half_set=self.half_set[index],
            score=self.score[index],
            extra=self.extra.iloc[index].reset_index(drop=True) if len(self.extra) else self.extra,
        )


def join_particles(parts: Sequence[Particles]) -> Particles:
    """Put the rows of several tables one after the other; extra columns that some lack are empty there."""
    extra = pd.concat([part.extra for part in parts], ignore_index=True)
    return Particles(
        tomogram_names=np.concatenate([part.tomogram_names for part in parts]),
        positions_angstrom=np.concatenate([part.positions_angstrom for part in parts]),
        angles_deg=np.concatenate([part.angles_deg for part in parts]),
        half_set=np.concatenate([part.half_set for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        # Of tables one of which has no extra column at all the rows could not be told apart.
        extra=extra if len(extra) == sum(map(len, parts)) else pd.DataFrame(),
    )
