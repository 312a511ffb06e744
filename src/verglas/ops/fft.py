"""Fourier grids, shifts and changes of size.

Convention
----------
Half transforms are `rfftn`, norm "backward", with the origin at index 0. Frequencies are cycles an Å when a
pixel size is given and cycles a pixel otherwise. The Nyquist frequency of an even size is positive on every
axis, as in RELION and Warp. Sizes change about the centre pixel `n // 2`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex
from torch import Tensor
from torch.nn.functional import pad

from verglas.errors import UserError
from verglas.shapes import Values

# The sizes of input and output differ, so they may not share the names of their axes.
Spectrum = Complex[Tensor, "..."]
"""Half transforms of any number of dimensions."""


def frequency_axes(
    shape: Sequence[int],
    pixel_size_angstrom: float = 1.0,
    *,
    rfft: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, ...]:
    """Frequencies along each axis, shaped to broadcast against each other.

    Parameters
    ----------
    shape
        Sizes of the image or volume in real space, zyx.
    pixel_size_angstrom
        Å; 1 gives cycles a pixel.
    rfft
        Whether the last axis is that of a half transform.

    Returns
    -------
    tuple of Tensor
        One for each axis, zyx; each has as many dimensions as `shape`, all but one of size 1.

    Raises
    ------
    UserError
        When a size or the pixel size is not positive.
    """
    if len(shape) == 0 or min(shape) < 1:
        raise UserError(f"`shape` must hold positive sizes; got {tuple(shape)}")
    if not (math.isfinite(pixel_size_angstrom) and pixel_size_angstrom > 0):
        raise UserError(f"`pixel_size_angstrom` must be positive; got {pixel_size_angstrom}")
    axes = []
    for axis, size in enumerate(shape):
        half = rfft and axis == len(shape) - 1
        make = torch.fft.rfftfreq if half else torch.fft.fftfreq
        frequencies = make(size, pixel_size_angstrom, dtype=dtype, device=device)
        if size % 2 == 0:
            frequencies[size // 2].abs_()
        axes.append(frequencies.reshape([-1 if other == axis else 1 for other in range(len(shape))]))
    return tuple(axes)


def frequency_grid(
    shape: Sequence[int],
    pixel_size_angstrom: float = 1.0,
    *,
    rfft: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Values:
    """Frequency vectors on the grid of a transform.

    Parameters
    ----------
    shape
        Sizes of the image or volume in real space, zyx.
    pixel_size_angstrom
        Å; 1 gives cycles a pixel.
    rfft
        Whether the last axis is that of a half transform.

    Returns
    -------
    Tensor
        `(..., d)` with one dimension for each of the d sizes; components zyx.
    """
    axes = frequency_axes(shape, pixel_size_angstrom, rfft=rfft, dtype=dtype, device=device)
    sizes = [axis.numel() for axis in axes]
    return torch.stack([axis.expand(sizes) for axis in axes], dim=-1)


def radial_frequency(
    shape: Sequence[int],
    pixel_size_angstrom: float = 1.0,
    *,
    rfft: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Values:
    """Lengths of the frequency vectors on the grid of a transform.

    Parameters
    ----------
    shape
        Sizes of the image or volume in real space, zyx.
    pixel_size_angstrom
        Å; 1 gives cycles a pixel.
    rfft
        Whether the last axis is that of a half transform.

    Returns
    -------
    Tensor
        One dimension for each size.
    """
    axes = frequency_axes(shape, pixel_size_angstrom, rfft=rfft, dtype=dtype, device=device)
    squares = axes[0].square()
    for axis in axes[1:]:
        squares = squares + axis.square()
    return squares.sqrt_()


def fast_size(size: int) -> int:
    """Smallest even number from `size` on that has no prime factor above 7, a length that FFTs are fast at.

    Raises
    ------
    UserError
        When `size` is not positive.
    """
    if size < 1:
        raise UserError(f"`size` must be positive; got {size}")
    candidate = size + size % 2
    while not _is_smooth(candidate):
        candidate += 2
    return candidate


def _is_smooth(number: int) -> bool:
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number == 1


def rescale_images(images: Values, out_shape: Sequence[int]) -> Values:
    """Change the sampling of images or volumes by cropping or padding their transforms.

    The field of view stays, the pixel size becomes `n / m` times the old one, and the centre `n // 2` goes to
    the centre `m // 2`, by a phase ramp where a size is odd. Values are interpolated, so the mean is kept
    (the transform is scaled by the ratio of the sizes). Axes are done one by one, which keeps temporaries
    small.

    The Nyquist frequency of an even size is split evenly between both signs when padding, and both signs are
    joined when cropping. Between even sizes, padding and cropping back is therefore exact.

    Parameters
    ----------
    images
        `(..., n)` images, volumes or stacks of them.
    out_shape
        Sizes m of the last axes, zyx or yx.

    Returns
    -------
    Tensor
        `(..., m)`.

    Raises
    ------
    UserError
        When `out_shape` does not hold positive sizes, one for each of the last axes.
    """
    _check_out_shape(images, out_shape)
    dims = len(out_shape)
    # From the last axis, whose lines are contiguous, so that what follows already has fewer of them.
    for axis in range(-1, -dims - 1, -1):
        images = _resample_axis(images, axis, out_shape[axis])
    return images


def _resample_axis(images: Tensor, axis: int, out_size: int) -> Tensor:
    size = images.shape[axis]
    if size == out_size:
        return images
    transform = torch.fft.rfft(images, dim=axis, norm="forward")
    transform = transform.narrow(axis, 0, min(size, out_size) // 2 + 1)
    shift = out_size // 2 - (size // 2) * out_size / size
    if shift:
        frequencies = torch.arange(transform.shape[axis], dtype=images.dtype, device=images.device) / out_size
        ramp = torch.polar(torch.ones_like(frequencies), -2 * math.pi * shift * frequencies)
        transform = transform * ramp.reshape([-1] + [1] * (-axis - 1))
    if min(size, out_size) % 2 == 0:
        transform = transform.clone()
        transform.select(axis, -1).mul_(2.0 if out_size < size else 0.5)
    resampled: Tensor = torch.fft.irfft(transform, n=out_size, dim=axis, norm="forward")
    return resampled


def rfft_crop(transforms: Spectrum, shape: Sequence[int], out_shape: Sequence[int]) -> Spectrum:
    """Keep the low frequencies of half transforms.

    Pixel 0, not the centre, stays where it was, and coefficients are kept: multiply by the ratio of the
    numbers of pixels for images with the same mean. At an even new size both signs of Nyquist are joined.

    Parameters
    ----------
    transforms
        `(..., n // 2 + 1)` half transforms.
    shape
        Sizes n in real space, zyx or yx.
    out_shape
        Sizes m, none above n.

    Returns
    -------
    Tensor
        `(..., m // 2 + 1)`.

    Raises
    ------
    UserError
        When the sizes do not fit each other.
    """
    _check_transform(transforms, shape, out_shape)
    if any(m > n for n, m in zip(shape, out_shape, strict=True)):
        raise UserError(f"`out_shape` must not exceed the shape {tuple(shape)}; got {tuple(out_shape)}")
    transforms = transforms.narrow(-1, 0, out_shape[-1] // 2 + 1)
    for axis in range(-len(shape), -1):
        size, out_size = shape[axis], out_shape[axis]
        if size == out_size:
            continue
        low = transforms.narrow(axis, 0, (out_size + 1) // 2)
        high = transforms.narrow(axis, size - out_size // 2, out_size // 2)
        joined = torch.cat([low, high], dim=axis)
        if out_size % 2 == 0:
            joined.select(axis, out_size // 2).add_(transforms.select(axis, out_size // 2))
        transforms = joined
    if out_shape[-1] < shape[-1] and out_shape[-1] % 2 == 0:
        transforms = transforms.clone()
        column = transforms[..., -1]
        mate = column.conj()
        for axis in range(-len(shape) + 1, 0):
            mate = mate.flip(axis).roll(1, axis)
        column += mate.resolve_conj().clone()
    return transforms


def rfft_pad(transforms: Spectrum, shape: Sequence[int], out_shape: Sequence[int]) -> Spectrum:
    """Put half transforms into larger ones, zero at the frequencies that were not there.

    Pixel 0, not the centre, stays where it was, and coefficients are kept: multiply by the ratio of the
    numbers of pixels for images with the same mean. Nyquist of an even old size is split between both signs.

    Parameters
    ----------
    transforms
        `(..., n // 2 + 1)` half transforms.
    shape
        Sizes n in real space, zyx or yx.
    out_shape
        Sizes m, none below n.

    Returns
    -------
    Tensor
        `(..., m // 2 + 1)`.

    Raises
    ------
    UserError
        When the sizes do not fit each other.
    """
    _check_transform(transforms, shape, out_shape)
    if any(m < n for n, m in zip(shape, out_shape, strict=True)):
        raise UserError(f"`out_shape` must not be below the shape {tuple(shape)}; got {tuple(out_shape)}")
    for axis in range(-len(shape), -1):
        size, out_size = shape[axis], out_shape[axis]
        if size == out_size:
            continue
        sizes = list(transforms.shape)
        sizes[axis] = out_size
        padded = transforms.new_zeros(sizes)
        low, high = (size + 1) // 2, size // 2
        padded.narrow(axis, 0, low).copy_(transforms.narrow(axis, 0, low))
        padded.narrow(axis, out_size - high, high).copy_(transforms.narrow(axis, size - high, high))
        if size % 2 == 0:
            nyquist = transforms.select(axis, high) / 2
            padded.select(axis, high).copy_(nyquist)
            padded.select(axis, out_size - high).copy_(nyquist)
        transforms = padded
    if shape[-1] != out_shape[-1]:
        columns = transforms.shape[-1]
        transforms = pad(transforms, (0, out_shape[-1] // 2 + 1 - columns))
        if shape[-1] % 2 == 0:
            transforms[..., columns - 1] /= 2
    return transforms


def fourier_shift(images: Values, shifts: Values) -> Values:
    """Move the content of images or volumes, also by parts of a pixel; what leaves comes back opposite.

    Parameters
    ----------
    images
        `(..., y, x)` or `(..., z, y, x)`.
    shifts
        `(..., 2)` yx or `(..., 3)` zyx, pixels; positive moves content to larger indices. Its length chooses
        between images and volumes; its batch dimensions broadcast against those of `images`.

    Returns
    -------
    Tensor
        The shifted images.
    """
    dims = shifts.shape[-1]
    shape = images.shape[-dims:]
    axes = tuple(range(-dims, 0))
    transforms = shift_transforms(torch.fft.rfftn(images, dim=axes), shape, shifts)
    shifted: Tensor = torch.fft.irfftn(transforms, s=shape, dim=axes)
    return shifted


def shift_transforms(transforms: Spectrum, shape: Sequence[int], shifts: Values) -> Spectrum:
    """Multiply half transforms by the phase ramps that shift their images.

    Parameters
    ----------
    transforms
        `(..., n // 2 + 1)` half transforms.
    shape
        Sizes n in real space, zyx or yx.
    shifts
        `(..., d)` zyx or yx, pixels; positive moves content to larger indices.

    Returns
    -------
    Tensor
        Half transforms, batch dimensions broadcast.

    Raises
    ------
    UserError
        When `shifts` has not one component for each size.
    """
    if shifts.shape[-1] != len(shape) or len(shape) not in {2, 3}:
        raise UserError(
            f"`shifts` must have a component for each of 2 or 3 sizes {tuple(shape)}; got {shifts.shape[-1]}"
        )
    dtype = transforms.real.dtype
    for axis, frequencies in enumerate(frequency_axes(shape, dtype=torch.float64, device=transforms.device)):
        angles = -2 * math.pi * shifts[..., axis, *[None] * len(shape)].double() * frequencies
        transforms = transforms * torch.complex(angles.cos().to(dtype), angles.sin().to(dtype))
    return transforms


def pad_centred(images: Values, out_shape: Sequence[int], value: float = 0.0) -> Values:
    """Surround images or volumes with `value`; the centre `n // 2` goes to the centre `m // 2`.

    Parameters
    ----------
    images
        `(..., n)`.
    out_shape
        Sizes m of the last axes, none below n.
    value
        What the new pixels hold.

    Raises
    ------
    UserError
        When a size is below the images'.
    """
    _check_out_shape(images, out_shape)
    widths: list[int] = []
    for size, out_size in zip(images.shape[: -len(out_shape) - 1 : -1], reversed(out_shape), strict=True):
        if out_size < size:
            raise UserError(
                f"`out_shape` must not be below the images' sizes {tuple(images.shape[-len(out_shape) :])}; "
                f"got {tuple(out_shape)}"
            )
        before = out_size // 2 - size // 2
        widths += [before, out_size - size - before]
    return pad(images, widths, value=value)


def crop_centred(images: Values, out_shape: Sequence[int]) -> Values:
    """Cut the middle out of images or volumes, as a view; the centre `n // 2` goes to the centre `m // 2`.

    Parameters
    ----------
    images
        `(..., n)`.
    out_shape
        Sizes m of the last axes, none above n.

    Raises
    ------
    UserError
        When a size is above the images'.
    """
    _check_out_shape(images, out_shape)
    for axis in range(-len(out_shape), 0):
        size, out_size = images.shape[axis], out_shape[axis]
        if out_size > size:
            raise UserError(
                f"`out_shape` must not exceed the images' sizes {tuple(images.shape[-len(out_shape) :])}; "
                f"got {tuple(out_shape)}"
            )
        images = images.narrow(axis, size // 2 - out_size // 2, out_size)
    return images


def _check_out_shape(images: Tensor, out_shape: Sequence[int]) -> None:
    if not 0 < len(out_shape) <= images.ndim or min(out_shape) < 1:
        raise UserError(
            f"`out_shape` must hold positive sizes for the last of the axes {tuple(images.shape)}; "
            f"got {tuple(out_shape)}"
        )


def _check_transform(transforms: Tensor, shape: Sequence[int], out_shape: Sequence[int]) -> None:
    expected = (*shape[:-1], shape[-1] // 2 + 1)
    if tuple(transforms.shape[-len(shape) :]) != expected:
        raise UserError(
            f"`transforms` of images of shape {tuple(shape)} must end in {expected}; "
            f"got {tuple(transforms.shape)}"
        )
    if len(out_shape) != len(shape) or min(out_shape) < 1:
        raise UserError(f"`out_shape` must hold {len(shape)} positive sizes; got {tuple(out_shape)}")
