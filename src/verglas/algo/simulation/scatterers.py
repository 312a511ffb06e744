"""Matter as a sum of isotropic Gaussians, whose transform and projections are known exactly.

The potential of a set of scatterers at a point r is

    V(r) = Σ_i w_i (2π σ_i²)^(-3/2) exp(-|r - r_i|² / 2σ_i²)      in volts,

so that `w_i` (V·Å³) is the integral over the i-th Gaussian. Its Fourier transform is
`w_i exp(-2π² σ_i² k²) exp(-2πi k·r_i)` with k in 1/Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scatterers:
    """A set of Gaussians in one frame.

    Parameters
    ----------
    positions_angstrom
        `(n, 3)` xyz of the centres, Å.
    weights_v_a3
        `(n,)` integrals of the potential over each Gaussian, V·Å³; may be negative.
    sigmas_angstrom
        `(n,)` standard deviations, Å.
    """

    positions_angstrom: FloatArray
    weights_v_a3: FloatArray
    sigmas_angstrom: FloatArray

    def __post_init__(self) -> None:
        count = len(self.positions_angstrom)
        for name, shape in (
            ("positions_angstrom", (count, 3)),
            ("weights_v_a3", (count,)),
            ("sigmas_angstrom", (count,)),
        ):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape:
                raise UserError(f"`{name}` of scatterers must have shape {shape}; got {value.shape}")
            if not np.isfinite(value).all():
                raise UserError(
                    f"`{name}` of scatterers must be finite; {(~np.isfinite(value)).sum()} are not"
                )
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if count and not self.sigmas_angstrom.min() > 0:
            raise UserError(f"`sigmas_angstrom` must be positive; got {self.sigmas_angstrom.min()}")

    def __len__(self) -> int:
        return len(self.weights_v_a3)

    @property
    def total_v_a3(self) -> float:
        """Integral of the potential over all space, V·Å³."""
        return float(self.weights_v_a3.sum())

    @property
    def centre_angstrom(self) -> FloatArray:
        """`(3,)` xyz of the centre of |potential|."""
        weights = np.abs(self.weights_v_a3)
        return np.asarray(weights @ self.positions_angstrom / weights.sum())

    @property
    def radius_angstrom(self) -> float:
        """Radius about the origin of the frame that holds every Gaussian to two standard deviations."""
        reach = np.linalg.norm(self.positions_angstrom, axis=1) + 2 * self.sigmas_angstrom
        return float(reach.max(initial=0.0))


def join_scatterers(parts: Sequence[Scatterers]) -> Scatterers:
    """Put several sets, given in the same frame, into one."""
    return Scatterers(
        np.concatenate([np.empty((0, 3)), *(part.positions_angstrom for part in parts)]),
        np.concatenate([np.empty(0), *(part.weights_v_a3 for part in parts)]),
        np.concatenate([np.empty(0), *(part.sigmas_angstrom for part in parts)]),
    )


def move_scatterers(
    scatterers: Scatterers,
    rotation: FloatArray | None = None,
    translation_angstrom: npt.ArrayLike = (0.0, 0.0, 0.0),
) -> Scatterers:
    """Rotate about the origin by a `(3, 3)` matrix on columns of xyz, then translate."""
    positions = scatterers.positions_angstrom
    if rotation is not None:
        positions = positions @ np.asarray(rotation).T
    return Scatterers(
        positions + np.asarray(translation_angstrom), scatterers.weights_v_a3, scatterers.sigmas_angstrom
    )


def centre_scatterers(scatterers: Scatterers) -> Scatterers:
    """Bring the centre of |potential| to the origin."""
    return move_scatterers(scatterers, translation_angstrom=-scatterers.centre_angstrom)


def coarsen_scatterers(scatterers: Scatterers, spacing_angstrom: float) -> Scatterers:
    """Merge the Gaussians of each cell of a cubic grid into one.

    Each merged Gaussian keeps the integral, the centre and the mean squared radius of what it replaces, so
    the total and the first moments are exact; no standard deviation is left below 0.4 of the spacing, so
    that the result can be sampled at pixels of about the spacing. The result is a body of its own: whoever
    compares with the truth renders the truth from it too.

    Parameters
    ----------
    scatterers
        Gaussians whose weights all have one sign.
    spacing_angstrom
        Side of a cell; about the pixel size of the images to be made.

    Raises
    ------
    UserError
        When the spacing is not positive or weights of both signs are present.
    """
    if not spacing_angstrom > 0:
        raise UserError(f"`spacing_angstrom` must be positive; got {spacing_angstrom}")
    weights = scatterers.weights_v_a3
    if len(weights) == 0:
        return scatterers
    if weights.min() * weights.max() < 0:
        raise UserError("`scatterers` must have weights of one sign to be merged; got both signs")
    cells = np.floor(scatterers.positions_angstrom / spacing_angstrom).astype(np.int64)
    _, index = np.unique(cells, axis=0, return_inverse=True)
    index = index.reshape(-1)
    total = np.bincount(index, weights)
    safe = np.where(total == 0, 1.0, total)
    columns = scatterers.positions_angstrom.T
    centres = np.stack([np.bincount(index, weights * column) / safe for column in columns], axis=1)
    offsets = scatterers.positions_angstrom - centres[index]
    spread = scatterers.sigmas_angstrom**2 + (offsets**2).sum(axis=1) / 3
    variance = np.bincount(index, weights * spread) / safe
    sigmas = np.sqrt(np.maximum(variance, (0.4 * spacing_angstrom) ** 2))
    kept = total != 0
    return Scatterers(centres[kept], total[kept], sigmas[kept])
