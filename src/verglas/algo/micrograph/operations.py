"""The operations on a micrograph, one function each.

Each does what the label in Xmipp's protocol says. Where its program does something else, `as_xmipp` does that.
"""

import math

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import crop_centred, radial_frequency, rescale_images
from verglas.ops.kernels.median_repair import repair_pixels
from verglas.shapes import Values

SIZE_TOLERANCE = 1e-4
"""By how much the new pixel size may miss the one that was asked for, as a part of it."""


def crop_borders(image: Values, border: int) -> Values:
    """Cut `border` pixels off each side of a `(y, x)` image.

    Raises
    ------
    UserError
        When fewer than 16 pixels would be left of a side.
    """
    y, x = image.shape[-2:]
    if min(y, x) - 2 * border < 16:
        raise UserError(
            f"a border of {border} pixels on each side leaves {max(0, y - 2 * border)} x {max(0, x - 2 * border)} "
            f"of an image of {y} x {x}; expected at least 16 x 16"
        )
    return image[..., border : y - border, border : x - border]


def take_logarithm(image: Values, a: float, b: float, c: float) -> Values:
    """Turn the grey levels x of a film into a - b ln(x + c).

    Raises
    ------
    UserError
        When x + c is not positive somewhere.
    """
    shifted = image + c
    if float(shifted.min()) <= 0:
        count = int((shifted <= 0).count_nonzero())
        raise UserError(
            f"{count} pixels have no logarithm: the lowest is {float(image.min()):g}, and {c:g} is added; expected "
            f"more than {-c:g} everywhere"
        )
    return shifted.log_().mul_(-b).add_(a)


def remove_bad_pixels(image: Values, limit_sd: float) -> tuple[Values, int]:
    """Replace pixels far from the mean by the median of the good ones among the 5 x 5 around each.

    Parameters
    ----------
    image
        `(y, x)`.
    limit_sd
        In standard deviations of the whole image.

    Returns
    -------
    tuple
        The image, and how many pixels were replaced.

    Raises
    ------
    UserError
        When no pixel is good.
    """
    mean = image.mean()
    centred = image - mean
    limit = limit_sd * float(centred.square().mean().sqrt())
    is_bad = centred.abs_() > limit
    count = int(is_bad.count_nonzero())
    if not count:
        return image, 0
    repaired = image.cpu().numpy().copy()
    if repair_pixels(repaired, is_bad.cpu().numpy().copy()):
        raise UserError(f"all pixels are farther than {limit_sd:g} standard deviations from their mean")
    return torch.from_numpy(repaired).to(image.device), count


def plan_sizes(size: int, factor: float) -> tuple[int, int]:
    """Choose how many of `size` pixels to keep, and how many those become, so that `factor` is met to 0.01 %.

    Raises
    ------
    UserError
        When fewer than 16 pixels would be left.
    """
    for new in range(math.floor(size / factor), 15, -1):
        kept = round(new * factor)
        if kept <= size and abs(kept / (new * factor) - 1) <= SIZE_TOLERANCE:
            return kept, new
    raise UserError(f"{size} pixels downsampled by {factor:g} leave fewer than 16; expected a smaller factor")


def downsample(image: Values, factor: float, *, as_xmipp: bool = False) -> tuple[Values, float]:
    """Make pixels larger by cropping the transform.

    The borders are first cut, by a few pixels, to sizes of which `factor` makes whole numbers. The centre
    `n // 2` stays the centre, and the mean stays what it is.

    Parameters
    ----------
    image
        `(y, x)`.
    factor
        Of the pixel size, above 1; need not be whole.
    as_xmipp
        Keep the whole image and round the new size down, so that the true factor differs from the one that is
        told, and between the axes; pixel 0 stays where it is; one sign of the Nyquist frequency is dropped.

    Returns
    -------
    tuple
        The image and the true factor, the mean of both axes.

    Raises
    ------
    UserError
        When the factor is not above 1, or fewer than 16 pixels would be left.
    """
    if not (math.isfinite(factor) and factor > 1):
        raise UserError(f"`factor` must be above 1; got {factor}")
    if as_xmipp:
        new = tuple(math.floor(size / factor) for size in image.shape)
        return _crop_as_xmipp(image, new), factor
    sizes = [plan_sizes(size, factor) for size in image.shape]
    kept = crop_centred(image, [old for old, _ in sizes])
    result = rescale_images(kept, [new for _, new in sizes])
    return result, math.sqrt(math.prod(old / new for old, new in sizes))


def _crop_as_xmipp(image: Tensor, new: tuple[int, ...]) -> Tensor:
    y, x = new
    transform = torch.fft.rfft2(image, norm="forward")[:, : x // 2 + 1]
    low = y // 2 + 1
    rows = torch.cat([transform[:low], transform[transform.shape[0] - (y - low) :]])
    cropped: Tensor = torch.fft.irfft2(rows, s=new, norm="forward")
    return cropped


def gaussian_transfer(shape: tuple[int, int], sigma_px: float, *, as_xmipp: bool = False) -> Values:
    """Transfer function of a Gaussian of standard deviation `sigma_px` in real space: exp(-2 π² σ² f²).

    Xmipp's is exp(-π² σ² f²), which is that of σ / √2.
    """
    square = radial_frequency(shape, dtype=torch.float64).square_()
    return torch.exp(-(1 if as_xmipp else 2) * (math.pi * sigma_px) ** 2 * square)


def highpass_transfer(shape: tuple[int, int], cutoff: float, width: float) -> Values:
    """Make a transfer function: 1 above `cutoff`, and a raised cosine of `width` below it down to 0, in 1/pixel."""
    frequency = radial_frequency(shape, dtype=torch.float64)
    return _raised_cosine((cutoff - frequency) / width)


def lowpass_transfer(shape: tuple[int, int], cutoff: float, width: float) -> Values:
    """Make a transfer function: 1 below `cutoff`, and a raised cosine of `width` above it down to 0, in 1/pixel."""
    frequency = radial_frequency(shape, dtype=torch.float64)
    return _raised_cosine((frequency - cutoff) / width)


def _raised_cosine(place: Tensor) -> Tensor:
    """Return 1 up to 0, 0 from 1 on."""
    return (1 + torch.cos(math.pi * place.clamp(0, 1))) / 2


def filter_image(image: Values, transfer: Values) -> Values:
    """Multiply the transform of a `(y, x)` image by `(y, x // 2 + 1)`; the image wraps around."""
    mean = image.mean()
    transform = torch.fft.rfft2(image - mean)
    transform *= transfer.to(device=image.device, dtype=image.dtype)
    filtered: Tensor = torch.fft.irfft2(transform, s=tuple(image.shape))
    return filtered.add_(mean * float(transfer[0, 0]))


def normalise(image: Values) -> Values:
    """Bring the mean to 0 and the standard deviation to 1.

    Raises
    ------
    UserError
        When all pixels are equal.
    """
    centred = image - image.mean()
    sd = float(centred.square().mean().sqrt())
    if not sd > 1e-12 * float(image.abs().max()):
        raise UserError(
            "an image whose pixels are all equal cannot be normalised; expected one with contrast"
        )
    return centred.div_(sd)
