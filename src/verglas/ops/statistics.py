"""Statistics that outliers do not spoil, local and radial ones, and noise of a given spectrum.

`dims` is the number of trailing axes that make up one map: 2 for images, 3 for volumes. What comes before is
batch.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from verglas.errors import UserError
from verglas.shapes import Image, Values

_SD_PER_MAD = 1.482602218505602  # of a normal distribution


def robust_mean_sd(values: Values, dims: int = 2) -> tuple[Values, Values]:
    """Median, and standard deviation from the median absolute deviation, of each map.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    dims
        Number of trailing axes of a map.

    Returns
    -------
    tuple
        `(...)` median and 1.4826 MAD, which is the standard deviation where values are normal.
    """
    flat = _flatten(values, dims)
    centre = _median(flat)
    return centre, _SD_PER_MAD * _median((flat - centre[..., None]).abs())


def clip_outliers(values: Values, limit_sd: float, dims: int = 2) -> Values:
    """Clip each map to its median plus and minus so many robust standard deviations.

    Where most pixels of a map are alike, as where hardly any counted an electron, the plain standard deviation stands
    in.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    limit_sd
        Positive.
    dims
        Number of trailing axes of a map.
    """
    _check_positive(limit_sd=limit_sd)
    centre, robust = (v.reshape(*v.shape, *[1] * dims) for v in robust_mean_sd(values, dims))
    if not (robust > 0).all():
        plain = values.std(dim=tuple(range(-dims, 0)), correction=0, keepdim=True)
        robust = torch.where(robust > 0, robust, plain)
    return torch.minimum(torch.maximum(values, centre - limit_sd * robust), centre + limit_sd * robust)


def winsorise(values: Values, fraction: float, dims: int = 2) -> Values:
    """Clip the lowest and the highest part of each map to the values that bound them.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    fraction
        Of the pixels, clipped at either end; 0 to less than 0.5.
    dims
        Number of trailing axes of a map.
    """
    if not 0 <= fraction < 0.5:
        raise UserError(f"`fraction` must be at least 0 and less than 0.5; got {fraction}")
    flat = _flatten(values, dims)
    count = flat.shape[-1]
    cut = math.floor(fraction * count)
    low = flat.kthvalue(cut + 1, dim=-1).values
    high = flat.kthvalue(count - cut, dim=-1).values
    shape = (*low.shape, *[1] * dims)
    return torch.minimum(torch.maximum(values, low.reshape(shape)), high.reshape(shape))


def local_mean_sd(
    values: Values,
    size: float,
    window: Literal["box", "gaussian"] = "box",
    dims: int = 2,
    weights: Values | None = None,
) -> tuple[Values, Values]:
    """Mean and standard deviation in a window around every pixel.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    size
        Pixels: the odd side of a box, or the σ of a Gaussian, which is cut at 4 σ.
    window
        Its shape.
    dims
        Number of trailing axes of a map.
    weights
        Weight of each pixel, 0 or more, of a shape that broadcasts; none is one everywhere. What lies outside
        the map has no weight.

    Returns
    -------
    tuple
        Mean and standard deviation of the shape of `values`; where nothing in the window has weight, those of
        the whole map.

    Raises
    ------
    UserError
        When the size does not fit the window.
    """
    profile = _window_profile(size, window).to(values.device)
    axes = tuple(range(-dims, 0))
    whole = torch.ones(values.shape[-dims:], dtype=torch.float64, device=values.device)
    mass = whole if weights is None else whole * weights
    total = mass.sum(axes, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    centre = (mass * values).sum(axes, keepdim=True) / total
    # Squares of small numbers, in double precision: a window beside a hot pixel keeps its digits.
    shifted = values.double() - centre
    weighted = mass * shifted
    variance = (weighted * shifted).sum(axes, keepdim=True) / total
    around = _convolve(mass, profile, dims)
    known = around > 1e-9 * profile.sum() ** dims
    around = torch.where(known, around, 1.0)
    mean = torch.where(known, _convolve(weighted, profile, dims) / around, 0.0)
    square = _convolve(weighted.mul_(shifted), profile, dims) / around
    sd = torch.where(known, (square - mean**2).clamp(min=0), variance).sqrt()
    return (mean + centre).to(values.dtype), sd.to(values.dtype)


def replace_outliers(
    images: Image, limit_sd: float = 6.0, size: int = 11, seed: int = 0
) -> tuple[Image, Bool[Tensor, "... y x"]]:
    """Replace hot and dead pixels by noise like that around them.

    A pixel is an outlier when it is not finite, or farther from the mean of its surroundings than `limit_sd`
    robust standard deviations of all such differences. It gets a normal random number with the mean and
    standard deviation of the other pixels in the box.

    Parameters
    ----------
    images
        `(..., y, x)`.
    limit_sd
        Positive.
    size
        Odd side of the box, pixels.
    seed
        The same seed gives the same numbers on every device.

    Returns
    -------
    tuple
        The images, and which pixels were replaced.
    """
    profile = _window_profile(float(size), "box").to(images.device)
    finite = images.isfinite()
    middle = torch.where(finite, images, torch.nan).flatten(-2).nanmedian(-1).values[..., None, None]
    filled = torch.where(finite, images, middle)
    clipped = (clip_outliers(filled, limit_sd) - middle).double()
    pixels = torch.ones(images.shape[-2:], dtype=torch.float64, device=images.device)
    surroundings = _convolve(clipped, profile, 2).div_(_convolve(pixels, profile, 2))
    difference = (filled - middle - surroundings).to(images.dtype)
    centre, sd = (v[..., None, None] for v in robust_mean_sd(difference))
    outlier = ((difference - centre).abs() > limit_sd * sd) | ~finite
    rows = outlier.reshape(-1, *images.shape[-2:]).nonzero()
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(len(rows), generator=generator, dtype=torch.float64).to(images)
    maps, usable = (m.reshape(-1, *images.shape[-2:]) for m in (filled, ~outlier))
    parts = [_noise_around(maps, usable, part, size // 2) for part in torch.split(rows, 65536)]
    clean = images.clone()
    if parts:
        mean, deviation = (torch.cat(part) for part in zip(*parts, strict=True))
        clean[outlier] = mean + deviation * normal
    return clean, outlier


def _noise_around(maps: Tensor, usable: Tensor, places: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the usable pixels around some places, or of all where there are none."""
    steps = torch.arange(-reach, reach + 1, device=maps.device)
    height, width = maps.shape[1:]
    index, y, x = places.T[:, :, None, None]
    y, x = y + steps[:, None], x + steps
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    weights = usable[index, y, x] & inside
    alone = ~weights.any((-2, -1))
    count = weights.sum((-2, -1)).clamp(min=1)
    values = torch.where(weights, maps[index, y, x], 0.0)
    mean = values.sum((-2, -1)) / count
    spread = torch.where(weights, values - mean[:, None, None], 0.0)
    sd = ((spread**2).sum((-2, -1)) / count).sqrt()
    if bool(alone.any()):
        mean_all, sd_all = robust_mean_sd(maps)
        mean = torch.where(alone, mean_all[places[:, 0]], mean)
        sd = torch.where(alone, sd_all[places[:, 0]], sd)
    return mean, sd


def radial_average(values: Values, dims: int = 2) -> Float[Tensor, "... shells"]:
    """Average each map over rings or shells about its centre `n // 2`.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    dims
        Number of trailing axes of a map.

    Returns
    -------
    Tensor
        `(..., shells)`: shell s holds the pixels whose distance rounds to s, for s from 0 to half the shortest
        side.
    """
    shape = values.shape[-dims:]
    square = torch.zeros((), device=values.device)
    for axis, n in enumerate(shape):
        offset = torch.arange(n, device=values.device, dtype=torch.float32) - n // 2
        square = square + offset.reshape([-1 if i == axis else 1 for i in range(dims)]) ** 2
    shells = torch.floor(torch.sqrt(square) + 0.5).long()
    return _average_shells(values, shells, torch.ones(shape).to(values), min(shape) // 2 + 1)


def power_spectrum(
    values: Values, pixel_size_angstrom: float, dims: int = 2
) -> tuple[Float[Tensor, " shells"], Float[Tensor, "... shells"]]:
    """Rotational average of the power of each map.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    pixel_size_angstrom
        Side of a pixel, Å.
    dims
        Number of trailing axes of a map.

    Returns
    -------
    tuple
        `(shells,)` frequency in 1/Å from 0 to Nyquist of the longest side, and `(..., shells)` mean of
        |F|² / pixels, so that white noise has its variance everywhere.
    """
    _check_positive(pixel_size_angstrom=pixel_size_angstrom)
    shape = tuple(values.shape[-dims:])
    transform: Tensor = torch.fft.rfftn(values, dim=tuple(range(-dims, 0)))
    power = (transform.real**2 + transform.imag**2) / math.prod(shape)
    twice = torch.full((power.shape[-1],), 2.0, dtype=power.dtype, device=power.device)
    twice[0] = 1.0
    if shape[-1] % 2 == 0:
        twice[-1] = 1.0
    count = max(shape) // 2 + 1
    shells = fourier_shells(shape, values.device)
    frequency = torch.arange(count, dtype=values.dtype, device=values.device)
    average = _average_shells(power, shells, twice.expand(power.shape[-dims:]), count)
    return frequency / (max(shape) * pixel_size_angstrom), average


def noise_with_spectrum(power: Float[Tensor, " shells"], shape: tuple[int, ...], seed: int) -> Values:
    """Make normal noise of a given power spectrum.

    Parameters
    ----------
    power
        `(shells,)` as `power_spectrum` gives it, at frequencies equally spaced from 0 to Nyquist; linear
        between. The last value holds beyond Nyquist.
    shape
        `(y, x)` or `(z, y, x)`.
    seed
        The same seed gives the same noise on every device.

    Returns
    -------
    Tensor
        Noise of `shape`, of the spectrum's dtype and device.
    """
    if not bool((power >= 0).all()):
        raise UserError(f"`power` must not be negative; its minimum is {float(power.min()):g}")
    white = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = (2 * _fourier_radius(shape, power.device) * (len(power) - 1)).clamp(max=len(power) - 1)
    low = place.floor().long().clamp(max=max(len(power) - 2, 0))
    high = (low + 1).clamp(max=len(power) - 1)
    amplitude = (power[low] + (place - low) * (power[high] - power[low])).sqrt()
    transform: Tensor = torch.fft.rfftn(white.to(power.device))
    noise: Tensor = torch.fft.irfftn(transform * amplitude, s=shape)
    return noise.to(power.dtype)


def fourier_shells(shape: tuple[int, ...], device: torch.device | None = None) -> Int[Tensor, "... kx"]:
    """Shell of each pixel of a half transform: its frequency times the longest side, rounded half up.

    Parameters
    ----------
    shape
        `(y, x)` or `(z, y, x)` of the map.
    device
        Where the result is made.

    Returns
    -------
    Tensor
        `(y, x // 2 + 1)` or `(z, y, x // 2 + 1)`.
    """
    return torch.floor(_fourier_radius(shape, device) * max(shape) + 0.5).long()


def _fourier_radius(shape: tuple[int, ...], device: torch.device | None) -> Tensor:
    """Cycles per pixel of each pixel of the half transform."""
    square = torch.zeros((), device=device)
    for axis, n in enumerate(shape):
        k: Tensor = (torch.fft.rfftfreq if axis == len(shape) - 1 else torch.fft.fftfreq)(n, device=device)
        square = square + k.reshape([-1 if i == axis else 1 for i in range(len(shape))]) ** 2
    return torch.sqrt(square)


def _average_shells(values: Tensor, shells: Tensor, weights: Tensor, count: int) -> Tensor:
    batch = values.shape[: values.ndim - shells.ndim]
    inside = shells.reshape(-1) < count
    index = shells.reshape(-1)[inside]
    weight = weights.reshape(-1)[inside].double()
    flat = values.reshape(*batch, -1)[..., inside].double() * weight
    sums = flat.new_zeros(*batch, count).index_add_(-1, index, flat)
    totals = weight.new_zeros(count).index_add_(0, index, weight)
    return (sums / totals.clamp(min=1)).to(values.dtype)


def _convolve(values: Tensor, profile: Tensor, dims: int) -> Tensor:
    """Convolve maps with a separable symmetric window; outside of them is nothing."""
    reach = len(profile) // 2
    for axis in range(-dims, 0):
        n = values.shape[axis]
        lines = values.movedim(axis, -1)
        if bool((profile == profile[0]).all()):
            # Differences of running sums: as fast for any side.
            sums = pad(lines, (reach + 1, reach)).cumsum(-1)
            lines = profile[0] * (sums[..., 2 * reach + 1 :] - sums[..., :n])
        else:
            # Loads for a fifth of a second, and few ask for this window.
            from scipy.fft import next_fast_len

            size = next_fast_len(n + reach, real=True)
            kernel = torch.zeros(size, dtype=profile.dtype, device=profile.device)
            kernel.index_add_(0, torch.arange(-reach, reach + 1, device=profile.device) % size, profile)
            transform: Tensor = torch.fft.rfft(lines, n=size) * torch.fft.rfft(kernel)
            lines = torch.fft.irfft(transform, n=size)[..., :n]
        values = lines.movedim(-1, axis)
    return values


def _window_profile(size: float, window: str) -> Tensor:
    _check_positive(size=size)
    if window == "gaussian":
        reach = math.ceil(4 * size)
        return torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / size) ** 2)
    if window != "box":
        raise UserError(f"`window` must be box or gaussian; got {window!r}")
    if size % 2 != 1:
        raise UserError(f"`size` of a box must be an odd number of pixels; got {size:g}")
    return torch.ones(int(size), dtype=torch.float64)


def _median(flat: Tensor) -> Tensor:
    """Mean of the two middle values along the last axis; torch's own is the lower one."""
    count = flat.shape[-1]
    lower = flat.median(-1).values
    if count % 2:
        return lower
    above = flat > lower[..., None]
    upper = torch.where(above, flat, torch.inf).amin(-1)
    return torch.where(above.sum(-1) < count // 2, lower, (lower + upper) / 2)


def _flatten(values: Tensor, dims: int) -> Tensor:
    flat = values.flatten(-dims)
    if flat.shape[-1] == 0:
        raise UserError(f"a map needs at least one pixel; got shape {tuple(values.shape)}")
    return flat


def _check_positive(**sizes: float) -> None:
    for name, value in sizes.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"`{name}` must be positive; got {value}")
