"""The low frequencies of frames, which are all that alignment needs."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.ops.fft import fast_size

HIGHEST = 0.25
FINEST_ANGSTROM = 5.0


def band_shape(shape: tuple[int, int], pixel_size_angstrom: float) -> tuple[int, int]:
    """Size of the images that hold the frequencies up to 1/5 Å, or 0.25 of the sampling where that is less."""
    share = min(HIGHEST, pixel_size_angstrom / FINEST_ANGSTROM) * 2
    return _fit(shape[0], share), _fit(shape[1], share)


def _fit(size: int, share: float) -> int:
    wanted = fast_size(max(16, round(size * share)))
    return min(wanted, size)


def transform_band(frame: Float[Tensor, "y x"], shape: tuple[int, int]) -> Complex[Tensor, "h kx"]:
    """Half transform of a frame, cropped to that of a smaller image, with the mean taken out.

    Columns are transformed only where they are kept, which saves most of them. Values are those of an image with
    the same mean.
    """
    height, width = frame.shape
    columns = torch.fft.fft(torch.fft.rfft(frame, dim=1)[:, : shape[1] // 2 + 1], dim=0)
    columns[0, 0] = 0
    low, high = (shape[0] + 1) // 2, shape[0] // 2
    band = torch.cat([columns[:low], columns[height - high :]]) if shape[0] < height else columns
    # Frequencies of Nyquist are left as they are: no weight is given to them.
    return band * (shape[0] * shape[1] / (height * width))
