"""What does not move with the specimen: a pattern of the camera that a gain reference left.

Frames as they lie share it, and it pulls every shift towards nothing. Such a pattern is nearly white, and what the
specimen scatters falls off, so the highest frequencies tell its power. The mean of the frames as they lie, in
which the pattern is, is weakened in each frame until no more than chance and specimen is left of it.
"""

import torch
from jaxtyping import Complex
from torch import Tensor

from verglas.algo.motion.likelihood import Grid

_HIGH = 0.8
_LEAST_SD = 4.0


def weaken_pattern(bands: Complex[Tensor, "n h w"], grid: Grid) -> float:
    """Take the mean pattern off frames, as far as its power says, in place.

    With the mean multiplied by g, two frames share the power g² M - N / n of what is left, where M is the power of
    the mean and N that of the noise of a frame; g² = 1 - P / M makes the part of the pattern, P, nothing.

    Parameters
    ----------
    bands
        `(n, h, w)` half transforms, changed in place.
    grid
        Of the transforms.

    Returns
    -------
    float
        Power of the pattern over that of a frame at high frequencies; 0 when none stands out of chance, and then
        nothing is changed.
    """
    count = len(bands)
    mean = bands.mean(0)
    rings = grid.rings[grid.usable]
    size = int(grid.rings.max()) + 1
    number = torch.bincount(rings, minlength=size).double()

    def add_up(values: Tensor) -> Tensor:
        return torch.bincount(rings, values[grid.usable].double().cpu(), minlength=size)

    of_mean = add_up(mean.real**2 + mean.imag**2)
    own = add_up(sum((band.real**2 + band.imag**2 for band in bands), torch.zeros_like(mean.real)) / count)
    last = int(torch.nonzero(number)[-1])
    high = slice(int(_HIGH * last), last + 1)
    noise = float(own[high].sum() / number[high].sum())
    pattern = (float(of_mean[high].sum() / number[high].sum()) - noise / count) * count / (count - 1)
    chance = noise / count / float(number[high].sum()) ** 0.5
    if pattern < _LEAST_SD * chance:
        return 0.0
    power = of_mean / number.clamp(min=1)
    kept = (
        (1 - pattern / power.clamp(min=pattern)).clamp(min=noise / count / (pattern + noise / count)).sqrt()
    )
    bands -= ((1 - kept).float().to(bands.device)[grid.rings.to(bands.device)] * mean)[None]
    return pattern / noise
