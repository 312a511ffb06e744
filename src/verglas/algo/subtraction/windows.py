"""Images moved and cut anew, so that another point of the reference lies in their centre; nothing wraps around."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from verglas.ops.fft import fourier_shift
from verglas.shapes import Image, Values

FloatArray = npt.NDArray[np.float64]

_MARGIN = 16


def cut_windows(images: Image, centres: Values, box: int) -> tuple[Image, FloatArray]:
    """Cut a window about a point of each image, to parts of a pixel.

    The whole pixels are moved by indexing and the rest by the phases of the image's transform, mirrored at its
    borders by 16 pixels.

    Parameters
    ----------
    images
        `(b, y, x)`.
    centres
        `(b, 2)` yx in pixels from the centre `n // 2` of each: what comes to the centre of the window.
    box
        Side of the windows, pixels.

    Returns
    -------
    tuple
        `(b, box, box)`, and `(b,)` the share of each window that lies outside of its image and holds the mean of the
        image's border.
    """
    whole = torch.round(centres)
    margin = min(_MARGIN, min(images.shape[-2:]) - 1)
    wide = pad(images[:, None], (margin,) * 4, mode="reflect")[:, 0]
    moved = fourier_shift(wide, -(centres - whole).to(images))[
        :, margin : margin + images.shape[-2], margin : margin + images.shape[-1]
    ]
    windows, outside = [], []
    for image, (row, column) in zip(moved, whole.long().tolist(), strict=True):
        y, x = image.shape
        border = torch.cat([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]).mean()
        window = torch.full((box, box), float(border), dtype=image.dtype, device=image.device)
        top, left = y // 2 + row - box // 2, x // 2 + column - box // 2
        y0, y1, x0, x1 = max(top, 0), min(top + box, y), max(left, 0), min(left + box, x)
        if y1 > y0 and x1 > x0:
            window[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
        windows.append(window)
        outside.append(1 - max(0, y1 - y0) * max(0, x1 - x0) / box**2)
    return torch.stack(windows), np.array(outside)
