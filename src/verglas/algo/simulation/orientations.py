"""Poses as matrices, written out, and directions as poses.

Convention
----------
RELION's rot, tilt and psi turn the specimen back onto the reference: specimen to reference is Rz(rot) ·
Ry(tilt) · Rz(psi), active and right-handed. A body is therefore put in place by the transposed matrix,
Rz(-psi) Ry(-tilt) Rz(-rot); the tests hold this against relion_project.
"""

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.scatterers import FloatArray


def pose_matrices(angles_deg: npt.ArrayLike) -> FloatArray:
    """`(..., 3, 3)` matrices that take the reference frame to the specimen frame.

    Parameters
    ----------
    angles_deg
        `(..., 3)` rot, tilt, psi as RELION writes them.
    """
    rot, tilt, psi = np.moveaxis(np.deg2rad(np.asarray(angles_deg, dtype=np.float64)), -1, 0)
    ca, sa, cb, sb, cg, sg = np.cos(rot), np.sin(rot), np.cos(tilt), np.sin(tilt), np.cos(psi), np.sin(psi)
    rows = [
        [ca * cb * cg - sa * sg, sa * cb * cg + ca * sg, -sb * cg],
        [-ca * cb * sg - sa * cg, -sa * cb * sg + ca * cg, sb * sg],
        [ca * sb, sa * sb, cb],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def random_angles(count: int, rng: np.random.Generator) -> FloatArray:
    """`(count, 3)` rot, tilt, psi in degrees, uniform over all rotations."""
    rot, psi = rng.uniform(-180, 180, (2, count))
    return np.stack([rot, np.rad2deg(np.arccos(rng.uniform(-1, 1, count))), psi], axis=1)


def angles_along(directions: npt.ArrayLike, rng: np.random.Generator) -> FloatArray:
    """`(n, 3)` angles that point the reference's z along `(n, 3)` directions, with a random turn about it."""
    d = np.asarray(directions, dtype=np.float64)
    d = d / np.linalg.norm(d, axis=1, keepdims=True)
    psi = np.rad2deg(np.arctan2(d[:, 1], -d[:, 0]))
    tilt = np.rad2deg(np.arccos(np.clip(d[:, 2], -1, 1)))
    return np.stack([rng.uniform(-180, 180, len(d)), tilt, psi], axis=1)
