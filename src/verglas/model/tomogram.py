"""A reconstructed volume and where it lies in the specimen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tomogram:
    """A volume on disk.

    Parameters
    ----------
    name
        Name of the tilt series it was made from.
    path
        The MRC file.
    shape
        `(z, y, x)` voxels.
    voxel_size_angstrom
        Side of a voxel, Å.
    centre_angstrom
        xyz of the volume's centre voxel (`n // 2`) in the specimen frame, Å; not zero for a region.
    half_paths
        The two half tomograms made from separate views or frames, when there are any.
    region
        Name of the part of the specimen that it shows; empty when it shows all.
    weights_path
        JSON of the weights that its views carry, when they are known.
    """

    name: str
    path: Path
    shape: tuple[int, int, int]
    voxel_size_angstrom: float
    centre_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)
    half_paths: tuple[Path, Path] | None = None
    region: str = ""
    weights_path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UserError(
                f"`shape` of tomogram {self.name!r} must be three positive sizes; got {self.shape}"
            )
        if not self.voxel_size_angstrom > 0:
            raise UserError(
                f"`voxel_size_angstrom` of {self.name!r} must be positive; got {self.voxel_size_angstrom}"
            )

    def locate(self, positions_angstrom: FloatArray) -> FloatArray:
        """Find places `(n, 3)` xyz of the specimen in the volume: xyz voxels from 0."""
        middle = np.array([n // 2 for n in reversed(self.shape)])
        offsets = positions_angstrom - np.array(self.centre_angstrom)
        return np.asarray(offsets / self.voxel_size_angstrom + middle)

    def find_margins(self, positions_angstrom: FloatArray) -> FloatArray:
        """Find how far places `(n, 3)` lie from the nearest face, `(n,)` Å; negative outside."""
        voxels = self.locate(positions_angstrom)
        margins = np.minimum(voxels, np.array(self.shape[::-1]) - 1 - voxels).min(axis=1)
        return np.asarray(margins * self.voxel_size_angstrom)
