"""Stacks of views: their headers, and one stack of many images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import ImageReference

if TYPE_CHECKING:
    from verglas.io.mrc import MrcHeader

FloatArray = npt.NDArray[np.float64]


def read_view_headers(images: Sequence[ImageReference]) -> list["MrcHeader"]:
    """Read the header of each image's file, each file once.

    Raises
    ------
    UserError
        When a section is not there, a file without a section holds more than one image, or the images are not of one
        size and type.
    """
    from verglas.io.mrc import read_mrc_header

    known: dict[Path, MrcHeader] = {}
    for image in images:
        if image.path not in known:
            known[image.path] = read_mrc_header(image.path)
        header, first = known[image.path], known[images[0].path]
        count = header.shape[0]
        if image.section is None and count != 1:
            raise UserError(
                f"image {str(image.path)!r} has {count} sections; expected one motion-corrected image"
            )
        if image.section is not None and image.section >= count:
            raise UserError(
                f"a view is section {image.section + 1} of stack {str(image.path)!r}, which has only {count}"
            )
        if (header.shape[1:], header.dtype) != (first.shape[1:], first.dtype):
            raise UserError(
                f"image {str(image.path)!r} has {header.shape[2]} x {header.shape[1]} pixels of {header.dtype.name}, "
                f"but {str(images[0].path)!r} has {first.shape[2]} x {first.shape[1]} of {first.dtype.name}; "
                "expected one size and type"
            )
    return [known[image.path] for image in images]


def write_view_stack(
    path: Path, images: Sequence[ImageReference], headers: Sequence["MrcHeader"], pixel_size_angstrom: float
) -> tuple[FloatArray, FloatArray]:
    """Write images as one stack in their order and type, with one at a time in memory.

    Parameters
    ----------
    path
        The stack.
    images, headers
        `(n,)` from :func:`read_view_headers`.
    pixel_size_angstrom
        For the header.

    Returns
    -------
    means, deviations
        `(n,)` mean and standard deviation of each image.

    Raises
    ------
    UserError
        When an image cannot be read, or holds values that are not finite.
    """
    from verglas.io.mrc import check_finite, create_mrc, read_sections

    _, height, width = headers[0].shape
    means, deviations = np.empty(len(images)), np.empty(len(images))
    with create_mrc(
        path,
        (len(images), height, width),
        voxel_size_angstrom=pixel_size_angstrom,
        dtype=headers[0].dtype.newbyteorder("="),
        is_stack=True,
    ) as writer:
        for row, (image, header) in enumerate(zip(images, headers, strict=True)):
            section = image.section or 0
            pixels = read_sections(image.path, header, section, section + 1)
            check_finite(pixels, f"section {section + 1} of {str(image.path)!r}")
            means[row], deviations[row] = pixels.mean(dtype=float), pixels.std(dtype=float)
            writer.write(pixels)
    return means, deviations
