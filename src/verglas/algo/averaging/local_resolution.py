"""How fine the detail is that two half maps share, place by place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import radial_frequency
from verglas.ops.filters import apply_filter

_BANDS = 30
_RELATIVE_WIDTH = 0.07
_LEAST_SHELLS = 0.75
_WINDOW_WAVES = 1.0


def measure_local_resolution(
    first: Float[Tensor, "z y x"],
    second: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    threshold: float = 0.143,
) -> Float[Tensor, "z y x"]:
    """Find where the local correlation of two half maps falls below a threshold, at every voxel.

    Both maps are filtered to one narrow band of frequencies after the other; the correlation of the two within a
    Gaussian window is the local Fourier shell correlation of that band, by Parseval's theorem (as the moving windows
    of Cardone et al. 2013, but all of them at once). The window's standard deviation is the wave length; the
    correlation of noise scatters by 0.07 in it.

    Parameters
    ----------
    first, second
        `(z, y, x)` unfiltered half maps.
    pixel_size_angstrom
        Of a voxel.
    threshold
        Of the correlation.

    Returns
    -------
    Tensor
        `(z, y, x)` resolution in Å, from Nyquist to a fifth of the shortest side.

    Raises
    ------
    UserError
        When shapes differ or the threshold does not lie between 0 and 1.
    """
    if first.shape != second.shape or first.ndim != 3 or not 0 < threshold < 1:
        raise UserError(
            "the half maps must be volumes of equal shape and the threshold lie between 0 and 1; got "
            f"{tuple(first.shape)}, {tuple(second.shape)} and {threshold}"
        )
    coarsest = min(first.shape) * pixel_size_angstrom / 5
    places = torch.linspace(1 / coarsest, 1 / (2 * pixel_size_angstrom), _BANDS).tolist()
    found = torch.full_like(first, places[0])
    open_still = torch.ones_like(first, dtype=torch.bool)
    before = torch.ones_like(first)
    for number, frequency in enumerate(places):
        now = correlate_locally(first, second, pixel_size_angstrom, frequency)
        part = ((before - threshold) / (before - now).clamp(min=1e-6)).clamp(0, 1)
        low = places[max(number - 1, 0)]
        crossing = low + part * (frequency - low)
        falls = open_still & (now < threshold)
        found = torch.where(
            falls, crossing, torch.where(open_still, torch.full_like(found, frequency), found)
        )
        open_still &= ~falls
        before = now
    return 1 / found


def correlate_locally(
    first: Float[Tensor, "z y x"],
    second: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    frequency_per_angstrom: float,
) -> Float[Tensor, "z y x"]:
    """Correlate two maps around one frequency, within a Gaussian window around each voxel.

    Parameters
    ----------
    first, second
        `(z, y, x)`.
    pixel_size_angstrom
        Of a voxel.
    frequency_per_angstrom
        Middle of the band, a Gaussian whose standard deviation is 0.07 of it, at least three quarters of a shell.
    """
    shape = tuple(first.shape)
    radius = radial_frequency(shape, pixel_size_angstrom, device=first.device)
    width = max(_RELATIVE_WIDTH * frequency_per_angstrom, _LEAST_SHELLS / (min(shape) * pixel_size_angstrom))
    # Of all bands of a width a Gaussian one blurs the least in space.
    band = torch.exp(-0.5 * ((radius - frequency_per_angstrom) / width) ** 2).to(first.dtype)
    spread = _WINDOW_WAVES / frequency_per_angstrom
    window = torch.exp(-2 * (math.pi * spread * radius) ** 2).to(first.dtype)
    one, other = (apply_filter(volume, band, dims=3) for volume in (first, second))
    cross, power, other_power = (
        apply_filter(product, window, dims=3) for product in (one * other, one * one, other * other)
    )
    # Filtering leaves rounding errors where there is no power at all.
    least = 1e-9 * (power * other_power).amax().clamp(min=1e-30)
    return cross / (power * other_power).clamp(min=least).sqrt()
