"""Uniform solids with known Fourier transforms, and solids filled with Gaussians.

The transforms are those of a solid of potential 1 V centred on the origin, in V·Å³, with k in 1/Å.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import j1

from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.errors import UserError


def ellipsoid_transform(frequencies: npt.ArrayLike, semi_axes_angstrom: npt.ArrayLike) -> FloatArray:
    """Transform of an ellipsoid with its axes along x, y and z.

    3 V (sin q - q cos q) / q³ with q = 2π |(a kx, b ky, c kz)| and V the volume; a sphere has three equal
    axes.

    Parameters
    ----------
    frequencies
        `(..., 3)` xyz, 1/Å.
    semi_axes_angstrom
        `(3,)` or one value, Å.
    """
    axes = np.broadcast_to(np.asarray(semi_axes_angstrom, dtype=np.float64), (3,))
    q = 2 * np.pi * np.linalg.norm(np.asarray(frequencies) * axes, axis=-1)
    # Below 0.01 the difference cancels in floating point; the series is exact to 1e-10 there.
    safe = np.where(q < 1e-2, 1.0, q)
    shape = np.where(q < 1e-2, 1 - q**2 / 10, 3 * (np.sin(safe) - safe * np.cos(safe)) / safe**3)
    return np.asarray(4 / 3 * np.pi * axes.prod() * shape)


def shell_transform(
    frequencies: npt.ArrayLike, inner_radius_angstrom: float, outer_radius_angstrom: float
) -> FloatArray:
    """Transform of a spherical shell: the outer ball less the inner one."""
    if not 0 <= inner_radius_angstrom < outer_radius_angstrom:
        raise UserError(
            f"a shell needs 0 <= inner < outer radius; "
            f"got {inner_radius_angstrom} and {outer_radius_angstrom}"
        )
    return ellipsoid_transform(frequencies, outer_radius_angstrom) - ellipsoid_transform(
        frequencies, inner_radius_angstrom
    )


def cylinder_transform(
    frequencies: npt.ArrayLike, radius_angstrom: float, length_angstrom: float
) -> FloatArray:
    """Transform of a cylinder along z: π r² L · 2 J1(q)/q · sinc(kz L), q = 2π r sqrt(kx² + ky²)."""
    k = np.asarray(frequencies, dtype=np.float64)
    q = 2 * np.pi * radius_angstrom * np.hypot(k[..., 0], k[..., 1])
    safe = np.where(q < 1e-4, 1.0, q)
    disc = np.where(q < 1e-4, 1 - q**2 / 8, 2 * j1(safe) / safe)
    return np.asarray(
        np.pi * radius_angstrom**2 * length_angstrom * disc * np.sinc(k[..., 2] * length_angstrom)
    )


def fill_solid(
    inside: Callable[[FloatArray], npt.NDArray[np.bool_]],
    half_extent_angstrom: npt.ArrayLike,
    spacing_angstrom: float,
    potential_v: float,
) -> Scatterers:
    """Fill a solid with Gaussians on a cubic grid, σ = 0.6 of the spacing, which is flat inside to 0.5 %.

    Each Gaussian carries the share of its cell that lies inside, from 4 x 4 x 4 points; the edge is about one
    spacing wide.

    Parameters
    ----------
    inside
        Takes `(n, 3)` xyz in Å and says which lie in the solid.
    half_extent_angstrom
        `(3,)` or one value: half sides of a box about the origin that holds the solid.
    spacing_angstrom
        Distance of the Gaussians.
    potential_v
        Potential inside, V.
    """
    if not spacing_angstrom > 0:
        raise UserError(f"`spacing_angstrom` must be positive; got {spacing_angstrom}")
    half = np.broadcast_to(np.asarray(half_extent_angstrom, dtype=np.float64), (3,))
    counts = np.ceil(half / spacing_angstrom).astype(int)
    axes = [np.arange(-n, n + 1) * spacing_angstrom for n in counts]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    share = np.zeros(len(centres))
    steps = (np.arange(4) - 1.5) / 4 * spacing_angstrom
    for offset in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3):
        share += inside(centres + offset)
    share /= 64
    kept = share > 0
    return Scatterers(
        centres[kept],
        share[kept] * potential_v * spacing_angstrom**3,
        np.full(int(kept.sum()), 0.6 * spacing_angstrom),
    )


def fill_ball(radius_angstrom: float, spacing_angstrom: float, potential_v: float) -> Scatterers:
    """Fill a ball about the origin with Gaussians whose integral is exactly 4/3 π r³ times the potential."""
    ball = fill_solid(
        lambda points: np.linalg.norm(points, axis=1) <= radius_angstrom,
        radius_angstrom,
        spacing_angstrom,
        potential_v,
    )
    exact = 4 / 3 * np.pi * radius_angstrom**3 * potential_v
    return Scatterers(
        ball.positions_angstrom, ball.weights_v_a3 * exact / ball.total_v_a3, ball.sigmas_angstrom
    )
