"""Templates, ready to be turned: sampled finer than the search, band-limited, with a mask."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import rescale_images
from verglas.ops.filters import apply_filter, bandpass_filter
from verglas.ops.fsc import randomise_phases
from verglas.ops.interpolation import affine_transform_volume
from verglas.ops.masks import soft_sphere_mask
from verglas.shapes import Rotations, Values, Volume

OVERSAMPLING = 2
"""Samples of a template a voxel of the search; cubic interpolation then loses nothing up to the search's Nyquist."""

_BATCH_VOXELS = 1 << 24


@dataclass(frozen=True, eq=False)
class Template:
    """A molecule to look for.

    Parameters
    ----------
    name
        Tells it from others.
    fine
        `(m, m, m)` its density, `OVERSAMPLING` samples a voxel, in the sign of the tomogram.
    mask
        `(m, m, m)` the same for the mask, 0 to 1; none is the ball of radius `radius`.
    radius
        Of the ball that holds mask or molecule, in voxels of the search.
    """

    name: str
    fine: Volume
    mask: Volume | None
    radius: float


def prepare_template(
    name: str,
    density: Volume,
    voxel_size_angstrom: float,
    *,
    search_voxel_angstrom: float,
    radius_angstrom: float,
    lowpass_angstrom: float,
    mask: Volume | None = None,
    invert: bool = True,
) -> Template:
    """Bring a map to the sampling of a search.

    Parameters
    ----------
    name
        Tells it from others.
    density
        `(z, y, x)` map whose centre `n // 2` is the molecule's origin.
    voxel_size_angstrom
        Of the map, Å.
    search_voxel_angstrom
        Of the tomogram that is searched.
    radius_angstrom
        Of the ball in which the template is compared.
    lowpass_angstrom
        Finest detail that is kept; at least two voxels of the search.
    mask
        `(z, y, x)` like the map, 0 to 1, within the ball; none is the ball itself.
    invert
        Turn bright matter dark, as it is in tomograms.

    Raises
    ------
    UserError
        When a size does not fit the others, or nothing is left within the ball.
    """
    if lowpass_angstrom < 2 * search_voxel_angstrom * (1 - 1e-2):
        raise UserError(
            f"`lowpass_angstrom` must be at least two voxels of the search, {2 * search_voxel_angstrom:g}; "
            f"got {lowpass_angstrom:g}"
        )
    radius = radius_angstrom / search_voxel_angstrom
    size = OVERSAMPLING * template_box(radius)
    fine_voxel = search_voxel_angstrom / OVERSAMPLING
    fine = _resample(density.float(), voxel_size_angstrom, fine_voxel, size, lowpass_angstrom)
    ball = soft_sphere_mask((size, size, size), OVERSAMPLING * radius, OVERSAMPLING * _EDGE_VOXELS)
    if float((fine * ball).std()) < 1e-6 * float(density.abs().max()):
        raise UserError(
            f"template {name!r} has no contrast within {radius_angstrom:g} Å of its centre; expected a molecule there"
        )
    fine_mask = None
    if mask is not None:
        if mask.shape != density.shape:
            raise UserError(
                f"the mask of {name!r} must have the template's shape {tuple(density.shape)}; got {tuple(mask.shape)}"
            )
        fine_mask = _resample(mask.float(), voxel_size_angstrom, fine_voxel, size, lowpass_angstrom)
        fine_mask = fine_mask.clamp(0, 1) * ball
        if not float(fine_mask.sum()) > 0:
            raise UserError(f"the mask of {name!r} is zero within {radius_angstrom:g} Å of its centre")
    return Template(name, -fine if invert else fine, fine_mask, radius)


_EDGE_VOXELS = 1.0


def template_box(radius: float) -> int:
    """Side in voxels of the box that holds a ball of `radius` voxels with its soft edge."""
    side = int(2 * (radius + _EDGE_VOXELS)) + 2
    return side + side % 2


def randomise_template(template: Template, seed: int) -> Template:
    """Return a template of the same power at every frequency, in the same mask, that resembles nothing.

    Its scores are those of the specimen's structure and noise by chance, which the scores of the template itself
    are compared with.
    """
    return Template(
        f"{template.name} randomised",
        randomise_phases(template.fine, 1, seed),
        template.mask,
        template.radius,
    )


def turn_templates(
    template: Template, rotations: Rotations, filters: Values, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Turn a template, filter it as the tomogram filters molecules, and cut it out with its mask.

    Parameters
    ----------
    template
        What is turned.
    rotations
        `(r, 3, 3)`.
    filters
        `(n, n, n // 2 + 1)` weights in the frame of the tomogram.
    device
        Where the work is done.

    Yields
    ------
    tuple
        `(b, n, n, n)` templates with mean 0 under the mask, multiplied by the mask and with
        Σ mask · template² = 1; and their masks, `(1, n, n, n)` where all are alike.
    """
    size = filters.shape[0]
    shape = (size, size, size)
    filters = filters.to(device)
    ball = soft_sphere_mask(shape, template.radius, _EDGE_VOXELS, device=torch.device(device))
    batch = max(1, _BATCH_VOXELS // (4 * size**3))
    for start in range(0, len(rotations), batch):
        part = rotations[start : start + batch].to(device) / OVERSAMPLING
        turned = affine_transform_volume(template.fine.to(device), part, order="cubic", out_shape=shape)
        turned = apply_filter(turned, filters, dims=3)
        masks = ball[None]
        if template.mask is not None:
            masks = affine_transform_volume(template.mask.to(device), part, out_shape=shape).clamp(0, 1)
        axes = (1, 2, 3)
        mass = masks.sum(axes, keepdim=True)
        turned = turned - (turned * masks).sum(axes, keepdim=True) / mass
        energy = (turned.square() * masks).sum(axes, keepdim=True)
        yield turned * masks / energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt(), masks


def _resample(volume: Tensor, voxel: float, new_voxel: float, size: int, lowpass_angstrom: float) -> Tensor:
    """Low-pass a volume, change its sampling about its centre, and cut or pad it to a cube."""
    # Four samples in the finest detail are enough for the spline.
    factor = max(1, math.ceil(4 * voxel / lowpass_angstrom - 1e-6))
    volume = rescale_images(volume, [factor * n for n in volume.shape])
    voxel = voxel / factor
    # The edge of the band is a fifth of its frequency wide.
    edge = 0.2 * max(volume.shape) * voxel / lowpass_angstrom
    band = bandpass_filter(volume.shape, voxel, lowpass_angstrom=lowpass_angstrom, edge_pixels=edge)
    scale = torch.eye(3, dtype=torch.float64, device=volume.device) * voxel / new_voxel
    volume = apply_filter(volume, band, dims=3)
    return affine_transform_volume(volume, scale, order="cubic", out_shape=(size, size, size))
