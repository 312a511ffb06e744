"""Statistics that outliers do not spoil, outliers replaced, and spectra.

`dims` is the number of trailing axes that make up one map: 2 for images, 3 for volumes. What comes before is
batch.
"""

import math

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
    if size < 1 or size % 2 != 1:
        raise UserError(f"`size` of a box must be an odd number of pixels; got {size}")
    finite = images.isfinite()
    middle = torch.where(finite, images, torch.nan).flatten(-2).nanmedian(-1).values[..., None, None]
    filled = torch.where(finite, images, middle)
    clipped = (clip_outliers(filled, limit_sd) - middle).double()
    pixels = torch.ones(images.shape[-2:], dtype=torch.float64, device=images.device)
    surroundings = _sum_boxes(clipped, size // 2).div_(_sum_boxes(pixels, size // 2))
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


def _sum_boxes(images: Tensor, reach: int) -> Tensor:
    """Sum a box of 2 `reach` + 1 pixels around every pixel; outside of the images is nothing."""
    for axis in (-2, -1):
        n = images.shape[axis]
        # Differences of running sums: as fast for any side.
        sums = pad(images.movedim(axis, -1), (reach + 1, reach)).cumsum(-1)
        images = (sums[..., 2 * reach + 1 :] - sums[..., :n]).movedim(-1, axis)
    return images


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
