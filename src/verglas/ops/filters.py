"""Filters by resolution, on the grid of half transforms.

Convention
----------
Resolutions are Å, and a filter is one half at its resolution. Filters are real and isotropic, `(y, x // 2 +
1)` or `(z, y, x // 2 + 1)`, so they do not move the content.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import radial_frequency
from verglas.shapes import Values


def bandpass_filter(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    *,
    lowpass_angstrom: float | None = None,
    highpass_angstrom: float | None = None,
    edge_pixels: float = 2.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Values:
    """Keep the frequencies between two resolutions, with raised-cosine edges.

    Parameters
    ----------
    shape
        Sizes of the images or volumes, yx or zyx.
    pixel_size_angstrom
        Å.
    lowpass_angstrom
        Resolution of the finest detail that is kept; none keeps all.
    highpass_angstrom
        Resolution of the coarsest that is kept; none keeps all.
    edge_pixels
        Width of each edge, centred on its resolution, in Fourier pixels of the longest axis (RELION's
        `--filter_edge_width`); 0 for a sharp edge.

    Returns
    -------
    Tensor
        `(..., y, x // 2 + 1)` between 0 and 1.

    Raises
    ------
    UserError
        When a resolution or the pixel size is not positive, they are in the wrong order, or the width is
        negative.
    """
    if not edge_pixels >= 0:
        raise UserError(f"`edge_pixels` must not be negative; got {edge_pixels}")
    frequency = radial_frequency(shape, pixel_size_angstrom, dtype=dtype, device=device)
    width = edge_pixels / (max(shape) * pixel_size_angstrom)
    band = torch.ones_like(frequency)
    if lowpass_angstrom is not None:
        band *= _fall(frequency, _cutoff("lowpass_angstrom", lowpass_angstrom), width)
    if highpass_angstrom is not None:
        cutoff = _cutoff("highpass_angstrom", highpass_angstrom)
        if lowpass_angstrom is not None and lowpass_angstrom >= highpass_angstrom:
            raise UserError(
                f"`lowpass_angstrom` must be below the high-pass at {highpass_angstrom}; got {lowpass_angstrom}"
            )
        band *= 1 - _fall(frequency, cutoff, width)
    return band


def gaussian_lowpass_filter(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    resolution_angstrom: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Values:
    """Gaussian of the frequency s that is one half at a resolution d: 2^(-s² d²).

    Parameters
    ----------
    shape
        Sizes of the images or volumes, yx or zyx.
    pixel_size_angstrom
        Å.
    resolution_angstrom
        d, Å. In real space this is a Gaussian of standard deviation 0.187 d.

    Returns
    -------
    Tensor
        `(..., y, x // 2 + 1)`.

    Raises
    ------
    UserError
        When the resolution or the pixel size is not positive.
    """
    cutoff = _cutoff("resolution_angstrom", resolution_angstrom)
    frequency = radial_frequency(shape, pixel_size_angstrom, dtype=dtype, device=device)
    return torch.exp2(-(frequency / cutoff).square())


def gaussian_highpass_filter(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    resolution_angstrom: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Values:
    """One minus `gaussian_lowpass_filter`; zero at zero frequency.

    Parameters
    ----------
    shape
        Sizes of the images or volumes, yx or zyx.
    pixel_size_angstrom
        Å.
    resolution_angstrom
        Å.

    Returns
    -------
    Tensor
        `(..., y, x // 2 + 1)`.
    """
    return 1 - gaussian_lowpass_filter(
        shape, pixel_size_angstrom, resolution_angstrom, dtype=dtype, device=device
    )


def bfactor_filter(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    bfactor_a2: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Values:
    """Decay exp(-B s² / 4); a negative B-factor sharpens.

    Parameters
    ----------
    shape
        Sizes of the images or volumes, yx or zyx.
    pixel_size_angstrom
        Å.
    bfactor_a2
        B, Å².

    Returns
    -------
    Tensor
        `(..., y, x // 2 + 1)`.
    """
    frequency = radial_frequency(shape, pixel_size_angstrom, dtype=dtype, device=device)
    return torch.exp(-bfactor_a2 / 4 * frequency.square())


def apply_filter(images: Values, filters: Values, *, dims: int) -> Values:
    """Multiply the transforms of images or volumes by filters.

    Parameters
    ----------
    images
        `(..., y, x)` or `(..., z, y, x)`.
    filters
        `(..., y, x // 2 + 1)` or `(..., z, y, x // 2 + 1)`; batch dimensions broadcast against those of
        `images`.
    dims
        2 for images, 3 for volumes.

    Returns
    -------
    Tensor
        Filtered images.

    Raises
    ------
    UserError
        When `dims` is neither, or the filters' grid is not that of the images.
    """
    if dims not in {2, 3}:
        raise UserError(f"`dims` must be 2 or 3; got {dims}")
    shape = tuple(images.shape[-dims:])
    expected = (*shape[:-1], shape[-1] // 2 + 1)
    if tuple(filters.shape[-dims:]) != expected:
        raise UserError(
            f"`filters` for images of shape {shape} must end in {expected}; got {tuple(filters.shape)}"
        )
    axes = tuple(range(-dims, 0))
    filtered: Tensor = torch.fft.irfftn(torch.fft.rfftn(images, dim=axes) * filters, s=shape, dim=axes)
    return filtered


def _cutoff(name: str, resolution_angstrom: float) -> float:
    if not (math.isfinite(resolution_angstrom) and resolution_angstrom > 0):
        raise UserError(f"`{name}` must be positive; got {resolution_angstrom}")
    return 1 / resolution_angstrom


def _fall(frequency: Tensor, cutoff: float, width: float) -> Tensor:
    """Half a period of a cosine from 1 to 0 about `cutoff`."""
    if width == 0:
        return (frequency <= cutoff).to(frequency.dtype)
    part = ((frequency - cutoff) / width + 0.5).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(math.pi * part)
