"""Rotations: Euler angles, quaternions, rotation vectors, and grids of orientations.

Convention
----------
Matrices act on column vectors of xyz and take the reference frame to the specimen frame. RELION's rot, tilt
and psi turn the specimen back onto the reference (`tests/conventions/test_euler.py` asks relion_project):

    specimen to reference = Rz(rot) Ry(tilt) Rz(psi)
    reference to specimen = Rz(-psi) Ry(-tilt) Rz(-rot)

with active, right-handed Rz and Ry. The beam is z of the specimen frame, so rot and tilt are the direction of
view in the reference frame. A symmetric reference sees `matrix` and `matrix @ symmetry` alike.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.geometry import axis_rotations
from verglas.shapes import Rotations, Values, Vectors

Quaternions = Float[Tensor, "... 4"]
"""`(..., 4)` unit quaternions w, x, y, z; a quaternion and its negative are one rotation."""


def euler_to_matrices(angles_deg: Vectors) -> Rotations:
    """Turn RELION's rot, tilt, psi into matrices that take the reference frame to the specimen frame.

    Parameters
    ----------
    angles_deg
        `(..., 3)` rot, tilt, psi.

    Returns
    -------
    Tensor
        `(..., 3, 3)`.
    """
    rot, tilt, psi = angles_deg.unbind(-1)
    return axis_rotations(-psi, "z") @ axis_rotations(-tilt, "y") @ axis_rotations(-rot, "z")


def matrices_to_euler(matrices: Rotations) -> Vectors:
    """Turn matrices that take the reference frame to the specimen frame into RELION's rot, tilt, psi.

    Parameters
    ----------
    matrices
        `(..., 3, 3)`.

    Returns
    -------
    Tensor
        `(..., 3)` angles, degrees: rot and psi from -180 to 180, tilt from 0 to 180. Where the tilt is 0 or
        180, rot and psi turn about one axis; rot is then 0.
    """
    inverse = matrices.mT
    sine = torch.hypot(inverse[..., 0, 2], inverse[..., 1, 2])
    tilt = torch.atan2(sine, inverse[..., 2, 2])
    rot = torch.atan2(inverse[..., 1, 2], inverse[..., 0, 2])
    # Below this sine the two columns that hold rot and psi are rounding errors.
    rot = torch.where(sine < 8 * torch.finfo(matrices.dtype).eps, 0.0, rot)
    # With rot known, psi follows from a rotation that is well defined at every tilt.
    in_plane_x = -rot.sin() * inverse[..., 0, 0] + rot.cos() * inverse[..., 1, 0]
    in_plane_y = -rot.sin() * inverse[..., 0, 1] + rot.cos() * inverse[..., 1, 1]
    psi = torch.atan2(in_plane_x, in_plane_y)
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1))


def quaternions_to_matrices(quaternions: Quaternions) -> Rotations:
    """Turn quaternions w, x, y, z, of any length but zero, into `(..., 3, 3)` matrices."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrices_to_quaternions(matrices: Rotations) -> Quaternions:
    """Turn `(..., 3, 3)` matrices into unit quaternions w, x, y, z with w >= 0."""
    m = matrices
    traces = m.diagonal(dim1=-2, dim2=-1)
    # Row i of this symmetric matrix is 4 q_i q, so the row of the largest component loses no digits.
    w = 1 + traces.sum(-1)
    squares = [w, *((1 - traces.sum(-1) + 2 * traces[..., i]) for i in range(3))]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = [
        [squares[0], wx, wy, wz],
        [wx, squares[1], xy, xz],
        [wy, xy, squares[2], yz],
        [wz, xz, yz, squares[3]],
    ]
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = outer.take_along_dim(largest[..., None, None], dim=-2).squeeze(-2)
    quaternions = torch.nn.functional.normalize(row, dim=-1)
    return torch.where(quaternions[..., :1] < 0, -quaternions, quaternions)


def rotation_vectors_to_matrices(vectors_deg: Vectors) -> Rotations:
    """Turn rotation vectors into matrices; differentiable, also at zero.

    Parameters
    ----------
    vectors_deg
        `(..., 3)` axes xyz times angles in degrees.

    Returns
    -------
    Tensor
        `(..., 3, 3)`.
    """
    x, y, z = torch.deg2rad(vectors_deg).unbind(-1)
    zero = torch.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    generators = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    matrices: Tensor = torch.linalg.matrix_exp(generators)
    return matrices


def matrices_to_rotation_vectors(matrices: Rotations) -> Vectors:
    """Turn `(..., 3, 3)` matrices into `(..., 3)` axes xyz times angles in degrees, 0 to 180."""
    quaternions = matrices_to_quaternions(matrices)
    sine = quaternions[..., 1:].norm(dim=-1, keepdim=True)
    angles = 2 * torch.atan2(sine, quaternions[..., :1])
    # The ratio goes to 2 as both vanish.
    ratio = torch.where(sine > 0, angles / sine.clamp_min(torch.finfo(sine.dtype).tiny), 2.0)
    return torch.rad2deg(ratio * quaternions[..., 1:])


def angular_distance_deg(first: Rotations, second: Rotations) -> Values:
    """Angle of the rotation between two orientations, 0 to 180 degrees; accurate for small angles.

    Parameters
    ----------
    first, second
        `(..., 3, 3)` matrices whose batch dimensions broadcast.

    Returns
    -------
    Tensor
        `(...)` angles.
    """
    # |A - B| = 2 sqrt(2) sin(angle / 2) keeps the digits that the arc cosine of the trace would lose.
    sine = torch.linalg.matrix_norm(first - second) / math.sqrt(8)
    cosine = (1 + (first * second).sum((-2, -1))).clamp_min(0).sqrt() / 2
    return torch.rad2deg(2 * torch.atan2(sine, cosine))


def random_rotations(count: int, generator: torch.Generator) -> Rotations:
    """Draw rotations uniformly (from normalised normal quaternions; Shoemake 1992).

    Parameters
    ----------
    count
        How many.
    generator
        Where the randomness comes from; its device is that of the result.

    Returns
    -------
    Tensor
        `(count, 3, 3)` float64.
    """
    quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64, device=generator.device)
    return quaternions_to_matrices(quaternions)


def so3_grid(step_deg: float, symmetry: Rotations | None = None) -> Rotations:
    """Spread orientations evenly over all rotations.

    Directions of view lie on rings of equal tilt, `step_deg` apart along and across; each has in-plane angles
    `step_deg` apart. No rotation is farther than 0.87 `step_deg` (half the diagonal of a cube) from the grid,
    apart from symmetry.

    Parameters
    ----------
    step_deg
        Distance of neighbours, above 0 and up to 90 degrees.
    symmetry
        `(k, 3, 3)` point group of the reference. Views that a symmetric reference cannot tell apart are left
        out, but for those within half a diagonal of the border of the asymmetric unit, which keeps the
        coverage.

    Returns
    -------
    Tensor
        `(n, 3, 3)` float64, the identity first when there is no symmetry.

    Raises
    ------
    UserError
        When `step_deg` is out of range.
    """
    if not 0 < step_deg <= 90:
        raise UserError(f"`step_deg` must be above 0 and at most 90; got {step_deg}")
    rings = math.ceil(180 / step_deg)
    directions = []
    for ring in range(rings + 1):
        tilt = 180 * ring / rings
        count = max(1, math.ceil(360 * math.sin(math.radians(tilt)) / step_deg - 1e-9))
        # Half a step on every other ring, so that neighbouring rings mesh.
        rots = (torch.arange(count, dtype=torch.float64) + ring % 2 / 2) * 360 / count
        directions.append(torch.stack([rots, torch.full_like(rots, tilt)], dim=-1))
    views = torch.cat(directions)
    if symmetry is not None:
        views = views[_in_asymmetric_unit(views, symmetry.double(), margin_deg=step_deg / math.sqrt(2))]
    count = math.ceil(360 / step_deg)
    psi = torch.arange(count, dtype=torch.float64) * 360 / count
    angles = torch.cat(
        [views[:, None].expand(-1, count, -1), psi[None, :, None].expand(len(views), -1, 1)], dim=-1
    )
    return euler_to_matrices(angles.reshape(-1, 3))


def _in_asymmetric_unit(views: Tensor, symmetry: Tensor, margin_deg: float) -> Tensor:
    """Tell which views lie at most `margin_deg` outside the part of the sphere nearest to one point."""
    rot, tilt = torch.deg2rad(views).unbind(-1)
    directions = torch.stack([tilt.sin() * rot.cos(), tilt.sin() * rot.sin(), tilt.cos()], dim=-1)
    # A direction on no axis of any point group, so that its images are all different.
    point = torch.tensor([0.36, 0.19, 0.91], dtype=torch.float64, device=symmetry.device)
    images = symmetry @ point
    others = images[(images - point).norm(dim=-1) > 1e-6]
    normals = torch.nn.functional.normalize(point - others, dim=-1).to(directions.device)
    return (directions @ normals.mT >= -math.sin(math.radians(margin_deg))).all(-1)


def local_rotations(radius_deg: float, step_deg: float) -> Rotations:
    """Spread small rotations evenly over a ball, for a search around known orientations.

    Rotation vectors lie on a cubic lattice. Multiply a known orientation from the left for rotations in the
    specimen frame, from the right for the reference frame.

    Parameters
    ----------
    radius_deg
        Largest angle, 0 to 180 degrees.
    step_deg
        Distance of neighbours, positive.

    Returns
    -------
    Tensor
        `(n, 3, 3)` float64 in order of their angle, the identity first.

    Raises
    ------
    UserError
        When an argument is out of range.
    """
    if not 0 <= radius_deg <= 180:
        raise UserError(f"`radius_deg` must lie between 0 and 180; got {radius_deg}")
    if not (math.isfinite(step_deg) and step_deg > 0):
        raise UserError(f"`step_deg` must be positive; got {step_deg}")
    reach = math.floor(radius_deg / step_deg + 1e-9)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64) * step_deg
    vectors = torch.cartesian_prod(line, line, line)
    angles = vectors.norm(dim=-1)
    order = angles.argsort(stable=True)
    return rotation_vectors_to_matrices(vectors[order[angles[order] <= radius_deg * (1 + 1e-9)]])
