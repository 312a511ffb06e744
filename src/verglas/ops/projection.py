"""Projection of volumes along the beam, and its transpose: by central slices and along rays.

The beam is z of the specimen frame. A projection is the sum of the rotated volume along z; its centre, pixel
`n // 2`, is the projection of the volume's centre.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from verglas.errors import UserError
from verglas.ops.kernels import fourier_slice
from verglas.shapes import Affines, Image, ImageRfft, Rotations

# A volume, its padded transform and the images differ in size, so they may not share the names of their axes.
PaddedRfft = Complex[Tensor, "padded padded padded_half"]
"""`(N, N, N // 2 + 1)` half transform of a padded volume, origin at index 0."""

PaddedWeights = Float[Tensor, "padded padded padded_half"]
"""`(N, N, N // 2 + 1)` weights that go with a padded transform."""

Projections = Float[Tensor, "... v u"]
"""`(..., y, x)` images made from a volume."""


def project_volume(
    volume: Float[Tensor, "z y x"], rotations: Rotations, oversampling: float = 2.0
) -> Projections:
    """Sum a rotated volume along z, by central slices of its transform.

    Parameters
    ----------
    volume
        `(n, n, n)` volume in the reference frame.
    rotations
        `(..., 3, 3)` matrices that take the reference frame to the specimen frame.
    oversampling
        How many times finer than the volume's own transform the sampled one is.

    Returns
    -------
    Tensor
        `(..., n, n)` projections, without the frequencies at and beyond Nyquist.
    """
    size = volume.shape[-1]
    return slices_to_images(extract_slices(transform_volume(volume, oversampling), rotations, size), size)


def transform_volume(volume: Float[Tensor, "z y x"], oversampling: float = 2.0) -> PaddedRfft:
    """Transform a volume for `extract_slices`: corrected for the interpolation, padded, centred on index 0.

    Trilinear interpolation of a transform of side N multiplies the volume by the product over its axes of
    sinc²(d / N), d voxels from the centre; the volume is divided by that beforehand.

    Parameters
    ----------
    volume
        `(n, n, n)`.
    oversampling
        N / n, rounded up to an even N.

    Returns
    -------
    Tensor
        `(N, N, N // 2 + 1)`.

    Raises
    ------
    UserError
        When the volume is not a cube or `oversampling` is below one.
    """
    size = volume.shape[-1]
    if len(set(volume.shape)) != 1:
        raise UserError(f"`volume` must be a cube; got {tuple(volume.shape)}")
    padded = _padded_size(size, oversampling)
    before = padded // 2 - size // 2
    after = padded - size - before
    corrected = pad(volume / _interpolation_loss(size, padded, volume), (before, after) * 3)
    transform: Tensor = torch.fft.rfftn(torch.fft.ifftshift(corrected))
    # Every slice reads the origin on the grid, where nothing is lost: the mean needs no correction.
    transform[0, 0, 0] = volume.sum()
    return transform


def extract_slices(volume_rfft: PaddedRfft, rotations: Rotations, image_size: int) -> ImageRfft:
    """Read central slices across z from what `transform_volume` made.

    Differentiable in the volume and the rotations.

    Parameters
    ----------
    volume_rfft
        `(N, N, N // 2 + 1)`, N even.
    rotations
        `(..., 3, 3)` reference to specimen.
    image_size
        Side n of the images; N / n need not be a whole number.

    Returns
    -------
    Tensor
        `(..., n, n // 2 + 1)` half transforms with the origin at index 0; zero at and beyond Nyquist.
    """
    _check_transform(volume_rfft)
    matrices = rotations.to(volume_rfft.real.dtype).reshape(-1, 3, 3)
    slices = fourier_slice.extract(volume_rfft, matrices, image_size)
    return slices.reshape(*rotations.shape[:-2], *slices.shape[1:])


def slices_to_images(slices: ImageRfft, size: int) -> Projections:
    """Turn half transforms with the origin at index 0 into images centred on pixel `n // 2`.

    Parameters
    ----------
    slices
        `(..., n, n // 2 + 1)`.
    size
        Side n.
    """
    if not slices.numel():  # MKL refuses empty batches
        return slices.real.new_zeros(*slices.shape[:-2], size, size)
    images: Tensor = torch.fft.fftshift(torch.fft.irfft2(slices, s=(size, size)), dim=(-2, -1))
    return images


def images_to_slices(images: Image) -> ImageRfft:
    """Turn images centred on pixel `n // 2` into half transforms with the origin at index 0.

    Parameters
    ----------
    images
        `(..., n, n)`.

    Returns
    -------
    Tensor
        `(..., n, n // 2 + 1)`.
    """
    slices: Tensor = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    return slices


def insert_slices(
    slices: ImageRfft,
    weights: Float[Tensor, "... y kx"],
    rotations: Rotations,
    volume_size: int,
    into: tuple[PaddedRfft, PaddedWeights] | None = None,
) -> tuple[PaddedRfft, PaddedWeights]:
    """Add slices to a Fourier volume with trilinear weights: the transpose of `extract_slices`.

    A voxel of the sum and of the weight are Σ t·s and Σ t·w over the pixels near it, t being the trilinear
    weight. For least squares against images with transfer function c and noise variance v, pass
    s = c·image / v and w = c² / v. Of the planes kx = 0 and N / 2 the results hold each contribution at one
    of its two mates; `reconstruct_from_slices` completes them, so that partial sums may be added up before.

    Parameters
    ----------
    slices
        `(..., n, n // 2 + 1)` half transforms with the origin at index 0.
    weights
        `(..., n, n // 2 + 1)` weight of each pixel.
    rotations
        `(..., 3, 3)` reference to specimen.
    volume_size
        Side N of the volume, even.
    into
        Sum and weight of an earlier call, to be added to in place.

    Returns
    -------
    tuple
        `(N, N, N // 2 + 1)` complex sum and real weight.

    Raises
    ------
    UserError
        When N is odd or the batch dimensions differ.
    """
    if volume_size % 2:
        raise UserError(f"`volume_size` must be even; got {volume_size}")
    if slices.shape[:-2] != rotations.shape[:-2]:
        raise UserError(
            f"`slices` and `rotations` must have the same batch; got {tuple(slices.shape[:-2])} and "
            f"{tuple(rotations.shape[:-2])}"
        )
    shape = (volume_size, volume_size, volume_size // 2 + 1)
    sums, totals = into or (slices.new_zeros(shape), weights.new_zeros(shape))
    if sums.shape != shape or totals.shape != shape:
        raise UserError(f"`into` must have shape {shape}; got {tuple(sums.shape)} and {tuple(totals.shape)}")
    fourier_slice.insert(
        slices.reshape(1, -1, *slices.shape[-2:]),
        weights.reshape(1, -1, *weights.shape[-2:]),
        rotations.to(weights.dtype).reshape(1, -1, 3, 3),
        sums[None],
        totals[None],
    )
    return sums, totals


def insert_slices_apart(
    slices: Complex[Tensor, "p s y kx"],
    weights: Float[Tensor, "p s y kx"],
    rotations: Float[Tensor, "p s 3 3"],
    volume_size: int,
) -> tuple[Complex[Tensor, "p padded padded padded_half"], Float[Tensor, "p padded padded padded_half"]]:
    """Do what `insert_slices` does for p volumes at once, each of slices of its own.

    Parameters
    ----------
    slices, weights
        `(p, s, n, n // 2 + 1)`.
    rotations
        `(p, s, 3, 3)`.
    volume_size
        Side N of the volumes, even.

    Returns
    -------
    tuple
        `(p, N, N, N // 2 + 1)` complex sums and real weights.

    Raises
    ------
    UserError
        When N is odd.
    """
    if volume_size % 2:
        raise UserError(f"`volume_size` must be even; got {volume_size}")
    shape = (len(slices), volume_size, volume_size, volume_size // 2 + 1)
    sums, totals = slices.new_zeros(shape), weights.new_zeros(shape)
    fourier_slice.insert(slices, weights, rotations.to(weights.dtype), sums, totals)
    return sums, totals


def reconstruct_from_slices(
    sums: PaddedRfft, weights: PaddedWeights, size: int, floor: float = 1e-3
) -> Float[Tensor, "z y x"]:
    """Divide what `insert_slices` summed by its weights and return to real space.

    Parameters
    ----------
    sums, weights
        `(N, N, N // 2 + 1)` from `insert_slices`.
    size
        Side n of the volume, at most N.
    floor
        Weights below this fraction of the mean of those above zero are raised to it, so that barely sampled
        voxels fade instead of blowing up; zero asks for the plain quotient wherever there is any weight.

    Returns
    -------
    Tensor
        `(n, n, n)` volume centred on voxel `n // 2`, corrected for the trilinear weights.
    """
    _check_transform(sums)
    padded = sums.shape[0]
    if not size <= padded:
        raise UserError(f"`size` must be at most the {padded} of the transform; got {size}")
    sums, weights = complete_planes(sums), complete_planes(weights)
    sampled = weights[weights > 0]
    least = floor * float(sampled.mean()) if len(sampled) else 1.0
    least = max(least, torch.finfo(weights.dtype).tiny)
    return crop_transform(sums / weights.clamp(min=least), size)


def crop_transform(transform: PaddedRfft | PaddedWeights, size: int) -> Float[Tensor, "z y x"]:
    """Return to real space what slices were inserted into with trilinear weights, cropped and corrected for them.

    Parameters
    ----------
    transform
        `(N, N, N // 2 + 1)`, its planes complete.
    size
        Side n of the volume, at most N.

    Returns
    -------
    Tensor
        `(n, n, n)` volume centred on voxel `n // 2`.
    """
    padded = transform.shape[0]
    volume: Tensor = torch.fft.fftshift(torch.fft.irfftn(transform, s=(padded,) * 3))
    start = padded // 2 - size // 2
    part = slice(start, start + size)
    volume = volume[part, part, part]
    return volume / _interpolation_loss(size, padded, volume)


def complete_planes(
    half: Float[Tensor, "... padded padded padded_half"] | Complex[Tensor, "... padded padded padded_half"],
) -> Float[Tensor, "... padded padded padded_half"] | Complex[Tensor, "... padded padded padded_half"]:
    """Add to each voxel of the planes kx = 0 and N / 2 of half volumes the conjugate of its Friedel mate.

    Both lie in these two planes, but `insert_slices` adds to one of them only.
    """
    planes = half[..., :: half.shape[-1] - 1]
    mates = planes.flip((-3, -2)).roll((1, 1), (-3, -2)).conj()
    whole = planes + mates
    return torch.cat([whole[..., :1], half[..., 1:-1], whole[..., 1:]], dim=-1)


def sum_permuted(
    half: Float[Tensor, "padded padded padded_half"] | Complex[Tensor, "padded padded padded_half"],
    permutations: Rotations,
) -> Float[Tensor, "padded padded padded_half"] | Complex[Tensor, "padded padded padded_half"]:
    """Add up a half volume seen from turns that permute and flip its axes: at k the values at P k.

    Parameters
    ----------
    half
        `(N, N, N // 2 + 1)` with complete planes, origin at index 0.
    permutations
        `(p, 3, 3)` on columns of xyz, of entries -1, 0 and 1.
    """
    size, device = half.shape[0], half.device
    axis = torch.fft.fftfreq(size, 1 / size, device=device).long()
    z, y = axis[:, None, None], axis[:, None]
    x = torch.arange(half.shape[-1], device=device)
    total = torch.zeros_like(half)
    for matrix in permutations.round().long().tolist():
        px, py, pz = (row[0] * x + row[1] * y + row[2] * z for row in matrix)
        mirrored = px < 0
        sign = torch.where(mirrored, -1, 1)
        read = half[(pz * sign) % size, (py * sign) % size, px * sign]
        total += torch.where(mirrored, read.conj(), read) if half.is_complex() else read
    return total


def project_volume_realspace(
    volume: Float[Tensor, "z y x"], matrices: Affines, image_shape: tuple[int, int]
) -> Projections:
    """Sum a volume of any shape along the beam, with trilinear interpolation and a step of one pixel.

    Outside the volume there is nothing. Use it to reproject slabs; differentiable in volume and matrices.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    matrices
        `(..., 4, 4)` from voxels xyz, counted from the volume's centre, to pixels xy, counted from the
        image's centre, and depth along the beam: `verglas.ops.geometry.projection_matrices` with its shifts
        in pixels.
    image_shape
        `(y, x)` of the images.

    Returns
    -------
    Tensor
        `(..., y, x)`.

    Raises
    ------
    UserError
        When a matrix has no inverse.
    """
    flat = matrices.to(volume).reshape(-1, 4, 4)
    if bool((torch.linalg.det(flat.detach()[:, :3, :3]).abs() < 1e-6).any()):
        raise UserError("`matrices` must have inverses; at least one is singular")
    images = [_project_rays(volume, matrix, image_shape) for matrix in flat]
    stack = torch.stack(images) if images else volume.new_zeros(0, *image_shape)
    return stack.reshape(*matrices.shape[:-2], *image_shape)


def _project_rays(volume: Tensor, matrix: Tensor, image_shape: tuple[int, int]) -> Tensor:
    shape = torch.tensor(volume.shape[::-1], dtype=volume.dtype, device=volume.device)
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=volume.device)] * 3).to(shape) * (
        shape + 2
    )
    reach = int(((corners @ matrix[2, :3]) + matrix[2, 3]).detach().abs().max().ceil())
    y, x = (torch.arange(n, device=volume.device, dtype=volume.dtype) - n // 2 for n in image_shape)
    inverse = torch.linalg.inv(matrix)
    # grid_sample counts voxels from -1 to 1 between the centres of the outermost ones.
    to_grid = 2 / (shape - 1).clamp(min=1)
    first = (
        x[None, :, None] * inverse[:3, 0]
        + y[:, None, None] * inverse[:3, 1]
        + inverse[:3, 3]
        + torch.div(shape, 2, rounding_mode="floor")
    ) * to_grid - 1
    step = inverse[:3, 2] * to_grid
    image = volume.new_zeros(image_shape)
    for depth in range(-reach, reach + 1):
        places = (first + depth * step)[None, None]
        image = image + grid_sample(volume[None, None], places, align_corners=True)[0, 0, 0]
    return image


def _interpolation_loss(size: int, padded: int, like: Tensor) -> Tensor:
    """Product over the axes of sinc²(d / N), which trilinear interpolation of a transform multiplies by."""
    distance = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    loss = torch.sinc(distance / padded) ** 2
    return loss[:, None, None] * loss[:, None] * loss


def _padded_size(size: int, oversampling: float) -> int:
    if not (math.isfinite(oversampling) and oversampling >= 1):
        raise UserError(f"`oversampling` must be at least 1; got {oversampling}")
    return 2 * math.ceil(oversampling * size / 2)


def _check_transform(volume_rfft: Tensor) -> None:
    shape = tuple(volume_rfft.shape)
    if len(shape) != 3 or shape[0] != shape[1] or shape[0] % 2 or shape[2] != shape[0] // 2 + 1:
        raise UserError(f"the transform of a volume must have shape (N, N, N // 2 + 1), N even; got {shape}")
