"""Particles as single images: pose, shift, transfer function and half set of each."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model.optics import Optics
from verglas.model.tilt_series import ImageReference

FloatArray = npt.NDArray[np.float64]

CTF_COLUMNS = (
    "defocus_u_angstrom",
    "defocus_v_angstrom",
    "defocus_angle_deg",
    "phase_shift_deg",
    "bfactor_a2",
    "ctf_scale",
)
"""Columns of `ImageParticles.ctf`."""


@dataclass(frozen=True, eq=False)
class Aberrations:
    """What images of an optics group have beyond defocus and spherical aberration.

    Parameters
    ----------
    beam_tilt_mrad
        xy, as RELION's `rlnBeamTiltX/Y`.
    odd, even
        Coefficients of RELION's `rlnOddZernike` and `rlnEvenZernike`: radians, polynomials of the frequency in 1/Å.
    magnification
        `(2, 2)` RELION's `rlnMagMat`: image frequencies xy to those of the specimen.
    mtf_frequency, mtf
        `(m,)` 1/Å, increasing, and the detector's transfer function there; none is 1.
    """

    beam_tilt_mrad: tuple[float, float] = (0.0, 0.0)
    odd: tuple[float, ...] = ()
    even: tuple[float, ...] = ()
    magnification: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    mtf_frequency: FloatArray | None = None
    mtf: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class ImageParticles:
    """A table of particle images as arrays, a row a particle.

    Parameters
    ----------
    images
        n references.
    angles_deg
        `(n, 3)` rot, tilt, psi as RELION writes them.
    origins_angstrom
        `(n, 2)` xy by which the image must be moved to centre the particle, as RELION's `rlnOriginX/YAngst`.
    ctf
        `(n, 6)`; the columns are `CTF_COLUMNS`.
    half_set
        `(n,)` 1 or 2, or 0 where not assigned.
    optics_group
        `(n,)` index into `optics`.
    optics
        Of each group.
    premultiplied
        Whether the images of each group were multiplied by their transfer function.
    aberrations
        Of each group.
    """

    images: tuple[ImageReference, ...]
    angles_deg: FloatArray
    origins_angstrom: FloatArray
    ctf: FloatArray
    half_set: npt.NDArray[np.int64]
    optics_group: npt.NDArray[np.int64]
    optics: tuple[Optics, ...]
    premultiplied: tuple[bool, ...]
    aberrations: tuple[Aberrations, ...]

    def __post_init__(self) -> None:
        count = len(self.images)
        shapes = {"angles_deg": 3, "origins_angstrom": 2, "ctf": len(CTF_COLUMNS)}
        for name, columns in shapes.items():
            values = np.asarray(getattr(self, name), dtype=float)
            if values.shape != (count, columns):
                raise UserError(f"`{name}` must have shape {(count, columns)}; got {values.shape}")
            if not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                raise UserError(f"`{name}` must be finite; particle {row + 1} is not")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Any) -> Self:
        """Return the particles of these rows, in this order."""
        index = np.arange(len(self))[np.asarray(rows)]
        return type(self)(
            tuple(self.images[row] for row in index.tolist()),
            self.angles_deg[index],
            self.origins_angstrom[index],
            self.ctf[index],
            self.half_set[index],
            self.optics_group[index],
            self.optics,
            self.premultiplied,
            self.aberrations,
        )
