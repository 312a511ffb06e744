"""The low frequencies of frames, which are all that alignment needs."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.ops.fft import fast_size
from verglas.ops.kernels.halve import ORDER, halve_image

HIGHEST = 0.2
FINEST_ANGSTROM = 7.0

_ROWS = 256
_COLUMNS = 64


def band_shape(shape: tuple[int, int], pixel_size_angstrom: float) -> tuple[int, int]:
    """Size of the images that hold the frequencies up to 1/7 Å, or 0.2 of the sampling where that is less."""
    share = min(HIGHEST, pixel_size_angstrom / FINEST_ANGSTROM) * 2
    return _fit(shape[0], share), _fit(shape[1], share)


def _fit(size: int, share: float) -> int:
    wanted = fast_size(max(16, round(size * share)))
    return min(wanted, size)


def read_band(
    read_rows: Callable[[int, int], npt.NDArray[np.generic]],
    frame_shape: tuple[int, int],
    shape: tuple[int, int],
    gain: npt.NDArray[np.float32] | None = None,
) -> Complex[Tensor, "h kx"]:
    """Half transform of a frame, cropped to that of a smaller image, with the mean taken out.

    Values are those of an image with the same mean, but for a hundredth that comes in from higher frequencies when a
    frame is halved on the way.

    Parameters
    ----------
    read_rows
        `(top, bottom)` to rows of the frame: integers or float32.
    frame_shape, shape
        `(y, x)` of the frame, and of the smaller image.
    gain
        `(y, x)` that the frame is multiplied by.
    """
    # The size of the smaller image is rounded up.
    small = all(low <= 2.1 * HIGHEST * full for full, low in zip(frame_shape, shape, strict=True))
    if not small or any(size % 2 for size in frame_shape):
        frame = torch.from_numpy(read_rows(0, frame_shape[0]).astype(np.float32))
        return transform_band(frame if gain is None else frame * torch.from_numpy(gain), shape)
    band = transform_band(halve_image(read_rows, frame_shape, gain), shape)
    # Undo the smoothing, and the half pixel by which pixels of the halved image lie further on.
    axes = (
        torch.fft.fftfreq(shape[0], frame_shape[0] / shape[0], dtype=torch.float64),
        torch.fft.rfftfreq(shape[1], frame_shape[1] / shape[1], dtype=torch.float64),
    )
    undo_y, undo_x = (
        (torch.exp(-1j * torch.pi * axis) / torch.cos(torch.pi * axis) ** ORDER).to(band.dtype)
        for axis in axes
    )
    band *= undo_y[:, None]
    band *= undo_x
    return band


def transform_band(frame: Float[Tensor, "y x"], shape: tuple[int, int]) -> Complex[Tensor, "h kx"]:
    """Half transform of an image in memory, cropped to that of a smaller image, with the mean taken out.

    Columns are transformed only where they are kept, which saves most of them.
    """
    height, width = frame.shape
    columns = torch.empty(height, shape[1] // 2 + 1, dtype=torch.complex64)
    # In parts: what is not kept takes no memory.
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        columns[rows] = torch.fft.rfft(frame[rows], dim=1)[:, : columns.shape[1]]
    for left in range(0, columns.shape[1], _COLUMNS):
        part = columns[:, left : left + _COLUMNS]
        part[:] = torch.fft.fft(part, dim=0)
    columns[0, 0] = 0
    low, high = (shape[0] + 1) // 2, shape[0] // 2
    band = torch.cat([columns[:low], columns[height - high :]]) if shape[0] < height else columns
    # Frequencies of Nyquist are left as they are: no weight is given to them.
    band *= shape[0] * shape[1] / (height * width)
    return band
