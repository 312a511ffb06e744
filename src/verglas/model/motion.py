"""How a specimen moved during an exposure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MotionModel:
    """Displacements of the specimen in the frames of a movie, from where it is in the first of them.

    At x, y (shares of the image's width and height, 0 to 1) the specimen of frame f lies

        trajectory[f] + S(f / (n - 1), y, x)

    away from its place in the average; S is the natural cubic spline of `grid_angstrom` (`verglas.ops.splines`).
    Correcting the movie takes this away again.

    Parameters
    ----------
    trajectory_angstrom
        `(n, 2)` yx of the whole image in each of the n frames that are used.
    grid_angstrom
        `(2, t, y, x)` nodes of the motion that varies over the image, y and x component, on a grid that spans
        time and image; zero at the first node of time.
    first_frame
        Frame of the movie, from 0, that the first row is.
    """

    trajectory_angstrom: FloatArray
    grid_angstrom: FloatArray
    first_frame: int = 0

    def __post_init__(self) -> None:
        trajectory, grid = self.trajectory_angstrom, self.grid_angstrom
        if trajectory.ndim != 2 or trajectory.shape[1] != 2 or grid.ndim != 4 or grid.shape[0] != 2:
            raise UserError(
                f"a motion needs a trajectory (n, 2) and a grid (2, t, y, x); got {trajectory.shape} and {grid.shape}"
            )

    def __len__(self) -> int:
        return len(self.trajectory_angstrom)

    @property
    def is_local(self) -> bool:
        """Whether the motion varies over the image."""
        return bool(self.grid_angstrom.any())
