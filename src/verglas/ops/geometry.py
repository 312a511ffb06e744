"""The one place where tilt geometry becomes matrices.

Convention
----------
Matrices act on homogeneous column vectors of xyz in Å. The specimen frame has its origin at the tomogram's
centre; the image frame has its origin at the image's centre (pixel `n // 2`). Rotations are active and
right-handed. This is RELION 5's `rlnTomoXTilt/YTilt/ZRot/XShiftAngst/YShiftAngst`.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verglas.shapes import Affines, Rotations, Values


def axis_rotations(angles_deg: Values, axis: str) -> Rotations:
    """Active right-handed rotations about x, y or z.

    Parameters
    ----------
    angles_deg
        `(...)` angles.
    axis
        "x", "y" or "z".

    Returns
    -------
    Tensor
        `(..., 3, 3)` matrices acting on column vectors of xyz.
    """
    if axis not in {"x", "y", "z"}:
        raise ValueError(f"`axis` must be x, y or z; got {axis!r}")
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    radians = torch.deg2rad(angles_deg)
    matrices = torch.eye(3, dtype=angles_deg.dtype, device=angles_deg.device).repeat(*angles_deg.shape, 1, 1)
    matrices[..., i, i] = matrices[..., j, j] = radians.cos()
    matrices[..., j, i] = radians.sin()
    matrices[..., i, j] = -radians.sin()
    return matrices


def projection_matrices(
    *,
    x_tilt_deg: Values,
    y_tilt_deg: Values,
    z_rot_deg: Values,
    x_shift_angstrom: Values,
    y_shift_angstrom: Values,
    magnification: Tensor | None = None,
) -> Affines:
    """Matrices that take specimen points to image points, for each view.

    Rows 0 and 1 of the product give the place in the image, row 2 the depth along the beam, all in Å from the
    respective centre.

    Parameters
    ----------
    x_tilt_deg, y_tilt_deg, z_rot_deg
        `(n,)` rotations, applied in this order.
    x_shift_angstrom, y_shift_angstrom
        `(n,)` place of the specimen's centre in the image.
    magnification
        `(n, 2, 2)` in-plane matrix applied after the rotations; none is the identity.

    Returns
    -------
    Tensor
        `(n, 4, 4)`.
    """
    rotations = (
        axis_rotations(z_rot_deg, "z") @ axis_rotations(y_tilt_deg, "y") @ axis_rotations(x_tilt_deg, "x")
    )
    if magnification is not None:
        rotations = torch.cat([magnification @ rotations[..., :2, :], rotations[..., 2:, :]], dim=-2)
    matrices = rotations.new_zeros(*rotations.shape[:-2], 4, 4)
    matrices[..., 3, 3] = 1.0
    matrices[..., :3, :3] = rotations
    matrices[..., 0, 3] = x_shift_angstrom
    matrices[..., 1, 3] = y_shift_angstrom
    return matrices


def series_matrices(geometry: Mapping[str, npt.NDArray[np.float64]]) -> Affines:
    """Make the matrices of :func:`projection_matrices` of the arrays of `TiltSeries.geometry`.

    Returns
    -------
    Tensor
        `(n, 4, 4)` float64.
    """
    return projection_matrices(**{name: torch.tensor(values) for name, values in geometry.items()})
