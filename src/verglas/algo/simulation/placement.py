"""Balls in a slab, crowded and without overlap."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from verglas.algo.simulation.scatterers import FloatArray
from verglas.errors import UserError

Array = npt.NDArray[Any]


def place_balls(
    radii_angstrom: npt.ArrayLike,
    extent_angstrom: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    obstacles: FloatArray | None = None,
    shells: FloatArray | None = None,
    attempts: int = 2000,
) -> FloatArray:
    """Place balls one after another at random where they touch nothing, the largest first.

    Centres lie anywhere within the extent in x and y; in z the whole ball does.

    Parameters
    ----------
    radii_angstrom
        `(n,)` radii.
    extent_angstrom
        Sides of the slab along x, y and z, centred on the origin.
    rng
        Source of randomness.
    obstacles
        `(m, 4)` balls already there: xyz and radius.
    shells
        `(k, 5)` spherical shells already there: xyz, inner and outer radius; balls may lie inside the hollow.
    attempts
        Random places tried for each ball.

    Returns
    -------
    ndarray
        `(n, 3)` xyz of the centres, in the order of the radii.

    Raises
    ------
    UserError
        When a ball is thicker than the slab, or finds no free place.
    """
    radii = np.asarray(radii_angstrom, dtype=np.float64)
    if len(radii) == 0:
        return np.empty((0, 3))
    if 2 * radii.max() > extent_angstrom[2]:
        raise UserError(
            f"the slab is {extent_angstrom[2]:g} Å thick; "
            f"expected at least {2 * radii.max():g} Å for its contents"
        )
    fixed = np.empty((0, 4)) if obstacles is None else np.asarray(obstacles, dtype=np.float64)
    hollow = np.empty((0, 5)) if shells is None else np.asarray(shells, dtype=np.float64)
    order = np.argsort(-radii, kind="stable")
    placed = np.empty((len(radii), 3))
    count = _place(
        radii[order], np.array(extent_angstrom, dtype=np.float64), fixed, hollow, attempts, rng, placed
    )
    if count < len(radii):
        raise UserError(
            f"only {count} of {len(radii)} objects found a place in {attempts} attempts each; "
            f"expected fewer objects or a larger specimen"
        )
    result = np.empty_like(placed)
    result[order] = placed
    return result


@njit(cache=True, nogil=True)
def _place(
    radii: Array, extent: Array, fixed: Array, shells: Array, attempts: int, rng: Any, placed: Array
) -> int:
    """Random sequential addition with linked lists per cell; returns how many were placed."""
    total = len(fixed) + len(radii)
    balls = np.empty((total, 4))
    largest = radii[0]
    for i in range(len(fixed)):
        largest = max(largest, fixed[i, 3])
    # Cells hold any two neighbours that touch; no more than about 130 along an axis keep the lists small.
    side = max(2.0 * largest, extent.max() / 128.0)
    low = np.empty(3)
    cells = np.empty(3, dtype=np.int64)
    for axis in range(3):
        low[axis] = -0.5 * extent[axis] - side
        cells[axis] = math.ceil((extent[axis] + 2.0 * side) / side)
    heads = np.full((cells[2], cells[1], cells[0]), -1, dtype=np.int64)
    nexts = np.full(total, -1, dtype=np.int64)
    count = 0
    for i in range(total):
        found = False
        if i < len(fixed):
            x, y, z, r = fixed[i]
            found = True
        else:
            x, y, z, r = 0.0, 0.0, 0.0, radii[i - len(fixed)]
            for _ in range(attempts):
                x = (rng.random() - 0.5) * extent[0]
                y = (rng.random() - 0.5) * extent[1]
                z = (rng.random() - 0.5) * (extent[2] - 2.0 * r)
                if _is_free(x, y, z, r, balls, heads, nexts, cells, low, side, shells):
                    found = True
                    break
        if not found:
            return count
        balls[i, 0], balls[i, 1], balls[i, 2], balls[i, 3] = x, y, z, r
        # Obstacles outside of the slab are kept in the cell nearest to them, one step from all they can
        # touch.
        a = min(max(int((x - low[0]) / side), 0), cells[0] - 1)
        b = min(max(int((y - low[1]) / side), 0), cells[1] - 1)
        c = min(max(int((z - low[2]) / side), 0), cells[2] - 1)
        nexts[i] = heads[c, b, a]
        heads[c, b, a] = i
        if i >= len(fixed):
            placed[count, 0], placed[count, 1], placed[count, 2] = x, y, z
            count += 1
    return count


@njit(cache=True, nogil=True)
def _is_free(
    x: float,
    y: float,
    z: float,
    r: float,
    balls: Array,
    heads: Array,
    nexts: Array,
    cells: Array,
    low: Array,
    side: float,
    shells: Array,
) -> bool:
    for s in range(len(shells)):
        dx, dy, dz = x - shells[s, 0], y - shells[s, 1], z - shells[s, 2]
        distance = math.sqrt(dx * dx + dy * dy + dz * dz)
        if shells[s, 3] - r < distance < shells[s, 4] + r:
            return False
    a, b, c = int((x - low[0]) / side), int((y - low[1]) / side), int((z - low[2]) / side)
    for k in range(max(c - 1, 0), min(c + 2, cells[2])):
        for j in range(max(b - 1, 0), min(b + 2, cells[1])):
            for i in range(max(a - 1, 0), min(a + 2, cells[0])):
                other = heads[k, j, i]
                while other >= 0:
                    dx, dy, dz = x - balls[other, 0], y - balls[other, 1], z - balls[other, 2]
                    reach = r + balls[other, 3]
                    if dx * dx + dy * dy + dz * dz < reach * reach:
                        return False
                    other = nexts[other]
    return True
