"""Averages of blocks of pixels."""

from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.shapes import Image


def bin_images(images: Image, factor: int) -> Float[Tensor, "... y2 x2"]:
    """Average blocks of `factor` x `factor` pixels; what is left over at the far edges is dropped.

    The centre of the result lies at `factor (m // 2) + (factor - 1) / 2` in pixels of `images` along an axis
    that is left with m pixels; `binned_centre_step` tells how far that is from the centre of `images`.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Side of a block.

    Raises
    ------
    UserError
        When `factor` is below one or above a side of the images.
    """
    y, x = images.shape[-2:]
    if not 1 <= factor <= min(y, x):
        raise UserError(
            f"`factor` must be from 1 to {min(y, x)}, the shorter side of the images; got {factor}"
        )
    rows, columns = y // factor, x // factor
    whole = images[..., : rows * factor, : columns * factor]
    return whole.reshape(*images.shape[:-2], rows, factor, columns, factor).mean(dim=(-3, -1))


def binned_centre_step(size: int, factor: int) -> float:
    """Pixels from the centre `size // 2` of an axis to the centre of its block averages."""
    return factor * (size // factor // 2) + (factor - 1) / 2 - size // 2
