"""Turning, moving and stretching images and volumes.

Convention
----------
A matrix moves content: what lay at p comes to lie at `matrix @ p`, with p in pixels from the centre `n // 2`,
xyz (xy for images). The result at q is therefore the input at `matrix⁻¹ @ q`. Inputs reach half a pixel
beyond their outer pixels; outside, the result is `fill`. "linear" blends the nearest pixels and smooths;
"cubic" is the interpolating cubic B-spline, which keeps all but the highest frequencies. Both are
differentiable in the input and the matrix.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.kernels import interpolate
from verglas.shapes import Image, Rotations, Values, Volume

# Results may differ from inputs in size and batch, so they do not share the names of axes.
Resampled = Float[Tensor, "..."]
"""Images or volumes of the output's size."""


def rotate_volume(
    volumes: Volume, rotations: Rotations, order: str = "linear", fill: float = 0.0
) -> Resampled:
    """Rotate volumes about their centres: what lay along v comes to lie along `rotation @ v`.

    Parameters
    ----------
    volumes
        `(..., z, y, x)`.
    rotations
        `(..., 3, 3)`; batch dimensions broadcast against those of `volumes`.
    order
        "linear" or "cubic".
    fill
        What lies outside.

    Returns
    -------
    Tensor
        `(..., z, y, x)`.
    """
    return affine_transform_volume(volumes, rotations, order=order, fill=fill)


def affine_transform_volume(
    volumes: Volume,
    matrices: Values,
    *,
    order: str = "linear",
    fill: float = 0.0,
    out_shape: tuple[int, int, int] | None = None,
) -> Resampled:
    """Move the content of volumes by affine maps.

    Parameters
    ----------
    volumes
        `(..., z, y, x)`.
    matrices
        `(..., 3, 3)`, or `(..., 4, 4)` on homogeneous vectors with shifts in voxels; see the module's
        convention. Batch dimensions broadcast against those of `volumes`.
    order
        "linear" or "cubic".
    fill
        What lies outside.
    out_shape
        Sizes zyx of each result when not those of the input; centres `n // 2` go onto each other.

    Returns
    -------
    Tensor
        `(..., z, y, x)`.

    Raises
    ------
    UserError
        When a matrix has no inverse or another shape, or `order` is unknown.
    """
    inverse = _invert_matrices(matrices, 3)
    return _transform(volumes, inverse, order, fill, out_shape or volumes.shape[-3:])


def affine_transform_images(
    images: Image,
    matrices: Values,
    *,
    order: str = "linear",
    fill: float = 0.0,
    out_shape: tuple[int, int] | None = None,
) -> Resampled:
    """Move the content of images by affine maps.

    Parameters
    ----------
    images
        `(..., y, x)`.
    matrices
        `(..., 2, 2)`, or `(..., 3, 3)` on homogeneous vectors with shifts in pixels; they act on xy.
        Batch dimensions broadcast against those of `images`.
    order
        "linear" or "cubic".
    fill
        What lies outside.
    out_shape
        Sizes yx of each result when not those of the input; centres `n // 2` go onto each other.

    Returns
    -------
    Tensor
        `(..., y, x)`.

    Raises
    ------
    UserError
        When a matrix has no inverse or another shape, or `order` is unknown.
    """
    inverse = _invert_matrices(matrices, 2)
    # An image is a volume of one section, read at section 0 everywhere.
    inverse = torch.nn.functional.pad(inverse, (0, 0, 0, 1))
    inverse = torch.cat([inverse[..., :2], torch.zeros_like(inverse[..., :1]), inverse[..., 2:]], dim=-1)
    result = _transform(images[..., None, :, :], inverse, order, fill, (1, *(out_shape or images.shape[-2:])))
    return result.squeeze(-3)


def _invert_matrices(matrices: Tensor, dims: int) -> Tensor:
    """Return `(..., d, d + 1)` float64 inverses, the last column their shift."""
    size = matrices.shape[-1]
    if size not in {dims, dims + 1} or matrices.ndim < 2 or matrices.shape[-2] != size:
        raise UserError(
            f"`matrices` must end in {(dims, dims)} or {(dims + 1, dims + 1)}; got {tuple(matrices.shape)}"
        )
    inverse, failures = torch.linalg.inv_ex(matrices.double())
    if bool(failures.any()):
        raise UserError("`matrices` must have an inverse; at least one of them has none")
    if size == dims:
        return torch.nn.functional.pad(inverse, (0, 1))
    top: Tensor = inverse[..., :dims, :]
    return top


def _transform(volumes: Tensor, inverse: Tensor, order: str, fill: float, out_shape: Sequence[int]) -> Tensor:
    if order not in {"linear", "cubic"}:
        raise UserError(f"`order` must be linear or cubic; got {order!r}")
    if min(out_shape) < 1:
        raise UserError(f"`out_shape` must hold positive sizes; got {tuple(out_shape)}")
    depth, height, width = out_shape
    shape = volumes.shape[-3:]
    # Torch's own function loads a library of symbols first, which takes half a second.
    batch = np.broadcast_shapes(tuple(volumes.shape[:-3]), tuple(inverse.shape[:-2]))
    cubic = order == "cubic"
    if cubic:
        volumes = interpolate.spline_coefficients(volumes, dims=3)
    # One volume for many maps is read in place, not copied for each.
    volumes = volumes if volumes.numel() == shape.numel() else volumes.expand(*batch, *shape)
    # From xyz about the centres to zyx from the first voxel.
    matrix = inverse[..., :3].flip(-1, -2)
    middle_in, middle_out = (matrix.new_tensor([n // 2 for n in sizes]) for sizes in (shape, out_shape))
    start = inverse[..., 3].flip(-1) + middle_in - matrix @ middle_out
    maps = torch.cat([matrix, start[..., None]], dim=-1).expand(*batch, 3, 4).reshape(-1, 3, 4)
    result = interpolate.sample_affine(
        volumes.reshape(-1, *shape), maps.to(volumes.device), (depth, height, width), cubic, fill
    )
    return result.reshape(*batch, *out_shape)
