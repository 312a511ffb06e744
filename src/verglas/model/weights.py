"""What a reconstruction did to its views, for those who have to divide by it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DefocusSurface:
    """The height at which the CTF of a slab of a tomogram was taken.

    z(x, y) = c0 + c1 x + c2 y + c3 x² + c4 xy + c5 y², held between the faces of the slab.

    Parameters
    ----------
    low_angstrom, high_angstrom
        Faces of the slab along z, Å from the specimen's centre.
    coefficients
        The six c, of Å; five zeros after the first make a plane.
    particles
        How many particles the surface was fitted to; 0 is the middle of the slab.
    """

    low_angstrom: float
    high_angstrom: float
    coefficients: tuple[float, float, float, float, float, float]
    particles: int = 0

    @property
    def is_plane(self) -> bool:
        """Whether the height is the same everywhere."""
        return not any(self.coefficients[1:])


@dataclass(frozen=True, eq=False)
class AppliedWeights:
    """The weights that the views of a tomogram carry.

    A view's transform was multiplied by the weighting across the tilt axis, by `view_factors`, by 1 /
    `view_deviations`, by exp(-N / (2 Ne)) for its pre-exposure N when `dose_weighted` (Grant and Grigorieff
    2015), and by the CTF (or its sign) at the defocus that its own record gives, plus the depth of the
    surface of the voxel's slab along the beam, less that of the plane z = `defocus_height_angstrom`.

    Parameters
    ----------
    weighting
        "ramp", "exact" or "sirt".
    ctf
        "none", "flip", "multiply" or "3d", which multiplies.
    dose_weighted
        Whether frequencies were weighted by the exposure before each view.
    views
        `(n,)` the rows of the series' table that were used.
    view_factors
        `(n,)` the share of the electrons that lost no energy, against the view with the most.
    view_deviations
        `(n,)` what each view was divided by: its standard deviation, or 1.
    surfaces
        Where the CTF was taken, a slab each, from low to high; empty without correction.
    defocus_height_angstrom
        Height of the matter that the defoci of the series are those of, Å from the specimen's centre.
    """

    weighting: str
    ctf: str
    dose_weighted: bool
    views: npt.NDArray[np.int64]
    view_factors: FloatArray
    view_deviations: FloatArray
    surfaces: tuple[DefocusSurface, ...] = ()
    defocus_height_angstrom: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.views)
        for name in ("view_factors", "view_deviations"):
            if getattr(self, name).shape != (count,):
                raise UserError(
                    f"`{name}` must have {count} values, one a view; got {getattr(self, name).shape}"
                )
