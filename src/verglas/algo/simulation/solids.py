"""Uniform solids filled with Gaussians."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.errors import UserError


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
