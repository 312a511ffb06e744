"""Volumes at another voxel size, by cropping or padding their transforms."""

import math
from collections.abc import Sequence

from verglas.errors import UserError
from verglas.ops.fft import crop_centred, pad_centred, rescale_images
from verglas.shapes import Values, Volume

TOLERANCE = 1e-4
"""By how much the new voxel size may miss the one that was asked for, as a part of it."""

_FARTHEST = 512


def change_voxel_size(
    volume: Volume,
    voxel_size_angstrom: float,
    new_voxel_size_angstrom: float,
    out_shape: Sequence[int] | None = None,
) -> Values:
    """Resample a volume.

    The transform of a box of n voxels can be cropped or padded to whole numbers m of them, which makes voxels
    n / m times as large. The box is first padded with the mean of its faces to a size where that is the new
    voxel size to 0.01 %.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    voxel_size_angstrom, new_voxel_size_angstrom
        Å.
    out_shape
        Sizes zyx of the result, cut or padded about the centre; none keeps the field of view.

    Returns
    -------
    Tensor
        `(z, y, x)`; values are interpolated and the centre `n // 2` stays the centre.

    Raises
    ------
    UserError
        When a voxel size is not positive, or the result would have no voxels.
    """
    for name, value in (("voxel_size", voxel_size_angstrom), ("new_voxel_size", new_voxel_size_angstrom)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"`{name}_angstrom` must be positive; got {value}")
    ratio = voxel_size_angstrom / new_voxel_size_angstrom
    shape = tuple(out_shape or (max(1, round(size * ratio)) for size in volume.shape))
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"`out_shape` must be three positive sizes; got {shape}")
    sizes = [_choose_sizes(size, ratio) for size in volume.shape]
    border = mean_of_faces(volume)
    padded = pad_centred(volume, [old for old, _ in sizes], border)
    resampled = rescale_images(padded, [new for _, new in sizes])
    larger = [max(new, want) for (_, new), want in zip(sizes, shape, strict=True)]
    return crop_centred(pad_centred(resampled, larger, border), shape).contiguous()


def _choose_sizes(size: int, ratio: float) -> tuple[int, int]:
    """Smallest size to pad to, and what it becomes, that meet the ratio; else the best of many."""
    best, least = (size, max(1, round(size * ratio))), math.inf
    for padded in range(size, size + _FARTHEST):
        new = max(1, round(padded * ratio))
        error = abs(new / (padded * ratio) - 1)
        if error < least:
            best, least = (padded, new), error
        if error <= TOLERANCE:
            break
    return best


def mean_of_faces(volume: Volume) -> float:
    """Mean of the outermost voxels of a `(z, y, x)` volume: what may stand beyond them."""
    faces = [volume.select(axis, place).mean() for axis in range(3) for place in (0, -1)]
    return float(sum(faces[1:], faces[0]) / 6)
