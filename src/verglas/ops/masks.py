"""Soft masks and tapers. Their edges fall from one to zero as half a cosine.

Sizes are in pixels. Coordinates count from index 0; the default centre is pixel `n // 2` of each axis.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from verglas.errors import UserError
from verglas.shapes import Image, Values


def soft_sphere_mask(
    shape: tuple[int, ...],
    radius: float,
    edge: float,
    centre: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "..."]:
    """Make a disc or ball: one up to `radius`, zero from `radius + edge` on.

    Parameters
    ----------
    shape
        `(y, x)` or `(z, y, x)`.
    radius
        Pixels.
    edge
        Width of the soft edge outside the radius, pixels.
    centre
        One coordinate an axis, in the order of `shape`.
    device
        Where the mask is made.

    Returns
    -------
    Tensor
        float32 of `shape`.

    Raises
    ------
    UserError
        When a size is negative or the centre does not fit the shape.
    """
    _check_sizes(radius=radius, edge=edge)
    offsets = _offsets(shape, centre, device)
    distance = torch.sqrt(sum((d**2 for d in offsets), torch.zeros((), device=device)))
    return _fall(distance - radius, edge)


def soft_ellipsoid_mask(
    shape: tuple[int, int, int],
    radii: Sequence[float],
    edge: float,
    centre: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "z y x"]:
    """Make an ellipsoid with its axes along those of the volume.

    The distance from its surface is the first-order one, exact for a ball.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    radii
        Half axes in the order of `shape`, pixels.
    edge
        Width of the soft edge outside, pixels.
    centre, device
        As in `soft_sphere_mask`.

    Raises
    ------
    UserError
        When a size is negative, a half axis is not positive, or the centre does not fit the shape.
    """
    if len(radii) != 3 or not min(radii) > 0:
        raise UserError(f"`radii` must be three positive half axes; got {tuple(radii)}")
    _check_sizes(edge=edge)
    offsets = _offsets(shape, centre, device)
    scaled, steep = (
        torch.sqrt(
            sum(
                ((d / r**power) ** 2 for d, r in zip(offsets, radii, strict=True)),
                torch.zeros((), device=device),
            )
        )
        for power in (1, 2)
    )
    return _fall(scaled * (scaled - 1) / steep.clamp(min=1e-9), edge)


def soft_cylinder_mask(
    shape: tuple[int, int, int],
    radius: float,
    height: float,
    edge: float,
    centre: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "z y x"]:
    """Make a cylinder about the z axis.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    radius, height
        Pixels; the cylinder reaches `height / 2` above and below its centre.
    edge
        Width of the soft edge outside, pixels.
    centre, device
        As in `soft_sphere_mask`.
    """
    _check_sizes(radius=radius, height=height, edge=edge)
    z, y, x = _offsets(shape, centre, device)
    beside = (torch.sqrt(y**2 + x**2) - radius).clamp(min=0)
    above = (z.abs() - height / 2).clamp(min=0)
    return _fall(torch.sqrt(beside**2 + above**2), edge)


def soft_box_mask(
    shape: tuple[int, ...],
    size: Sequence[float],
    edge: float,
    centre: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "..."]:
    """Make a rectangle or cuboid with rounded soft edges.

    Parameters
    ----------
    shape
        `(y, x)` or `(z, y, x)`.
    size
        Extent along each axis, in the order of `shape`, pixels.
    edge
        Width of the soft edge outside, pixels.
    centre, device
        As in `soft_sphere_mask`.
    """
    if len(size) != len(shape):
        raise UserError(f"`size` must have {len(shape)} extents; got {tuple(size)}")
    _check_sizes(edge=edge, **{f"size[{axis}]": extent for axis, extent in enumerate(size)})
    square = torch.zeros((), device=device)
    for offset, extent in zip(_offsets(shape, centre, device), size, strict=True):
        square = square + (offset.abs() - extent / 2).clamp(min=0) ** 2
    return _fall(torch.sqrt(square), edge)


def mask_from_density(
    volume: Values, threshold: float, extend: float = 0.0, edge: float = 0.0
) -> Float[Tensor, "..."]:
    """Mask what is at or above a threshold, grown and softened.

    Parameters
    ----------
    volume
        `(y, x)` or `(z, y, x)` density, larger inside.
    threshold
        Smallest density inside.
    extend
        Pixels nearer than this to the region join it; when negative, those nearer than this to the outside
        leave it.
    edge
        Width of the soft edge outside of that, pixels.

    Returns
    -------
    Tensor
        Mask of the volume's shape, dtype and device. Distances are Euclidean, between pixel centres; the
        rules are those of relion_mask_create.

    Raises
    ------
    UserError
        When nothing reaches the threshold.
    """
    _check_sizes(edge=edge)
    region = (volume >= threshold).cpu().numpy()
    if not region.any():
        raise UserError(
            f"`threshold` {threshold:g} is above the maximum {float(volume.max()):g} of the density; "
            "the mask would be empty"
        )
    if extend > 0:
        region |= distance_transform_edt(~region) < extend
    elif extend < 0 and not region.all():
        region = distance_transform_edt(region) >= -extend
    return _fall(torch.from_numpy(distance_transform_edt(~region)), edge).to(volume)


def edge_taper(
    shape: tuple[int, ...], width: float, device: torch.device | None = None
) -> Float[Tensor, "..."]:
    """Make a window that is one inside and falls to zero over `width` pixels at every border.

    Parameters
    ----------
    shape
        `(y, x)` or `(z, y, x)`.
    width
        Pixels, at most half of every side. The pixel outside the border would be the first zero.
    device
        Where the window is made.
    """
    _check_sizes(width=width)
    if 2 * width > min(shape):
        raise UserError(f"`width` must be at most half of the smallest side of {shape}; got {width}")
    window = torch.ones((), device=device)
    for axis, n in enumerate(shape):
        place = torch.arange(n, dtype=torch.float32, device=device)
        to_border = torch.minimum(place, n - 1 - place) + 1
        side = _fall(width + 1 - to_border, width + 1) if width else torch.ones_like(place)
        window = window * side.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return window


def taper_edges(images: Image, width: float) -> Image:
    """Blend images into their own mean towards the borders, so that they join without a step.

    Parameters
    ----------
    images
        `(..., y, x)`.
    width
        Pixels over which they are blended.
    """
    mean = images.mean((-2, -1), keepdim=True)
    window = edge_taper((images.shape[-2], images.shape[-1]), width, images.device).to(images.dtype)
    return mean + (images - mean) * window


def _fall(distance: Tensor, edge: float) -> Tensor:
    """One up to distance zero, half a cosine over `edge`, zero beyond."""
    if edge == 0:
        return (distance <= 0).to(distance.dtype)
    return 0.5 + 0.5 * torch.cos(math.pi * (distance / edge).clamp(0.0, 1.0))


def _offsets(
    shape: tuple[int, ...], centre: Sequence[float] | None, device: torch.device | None
) -> list[Tensor]:
    if len(shape) not in {2, 3} or min(shape) < 1:
        raise UserError(f"`shape` must be two or three positive sizes; got {shape}")
    if centre is None:
        centre = [n // 2 for n in shape]
    if len(centre) != len(shape):
        raise UserError(f"`centre` must have {len(shape)} coordinates; got {tuple(centre)}")
    return [
        (torch.arange(n, dtype=torch.float32, device=device) - c).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
        for axis, (n, c) in enumerate(zip(shape, centre, strict=True))
    ]


def _check_sizes(**sizes: float) -> None:
    for name, value in sizes.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"`{name}` must be zero or more pixels; got {value}")
