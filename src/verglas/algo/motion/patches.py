"""Overlapping patches of low-band frames, as transforms."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.ops.fft import fast_size

ALONG = 6
"""Patches along the shorter side."""

_TAPER = 0.25
_SMALLEST = 48


@dataclass(frozen=True)
class Layout:
    """Where patches lie.

    Parameters
    ----------
    size
        Side of a patch in pixels of the low-band frames.
    corners
        yx of the first pixel of each.
    shape
        `(y, x)` of the low-band frames.
    """

    size: int
    corners: tuple[tuple[int, int], ...]
    shape: tuple[int, int]

    @property
    def centres(self) -> Float[Tensor, "p 2"]:
        """`(p, 2)` yx of the middles as shares of the frame."""
        middle = torch.tensor(self.corners, dtype=torch.float64) + self.size / 2
        return middle / torch.tensor(self.shape, dtype=torch.float64)


def lay_patches(shape: tuple[int, int]) -> Layout:
    """Spread patches over frames so that the tapers of neighbours add up to about one."""
    short = min(shape)
    size = fast_size(max(_SMALLEST, math.ceil(short / (ALONG - _TAPER * (ALONG - 1)))))
    size = min(size, short - short % 2)
    corners = [_spread(length, size) for length in shape]
    return Layout(size, tuple((y, x) for y in corners[0] for x in corners[1]), shape)


def _spread(length: int, size: int) -> list[int]:
    count = max(1, math.ceil((length - size) / (size * (1 - _TAPER)) - 1e-6) + 1)
    return [round(i * (length - size) / max(count - 1, 1)) for i in range(count)]


def make_taper(size: int) -> Float[Tensor, "size size"]:
    """One in the middle, with raised-cosine edges."""
    edge = max(1, round(_TAPER * size))
    ramp = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(edge) + 0.5) / edge)
    line = torch.ones(size)
    line[:edge], line[size - edge :] = ramp, ramp.flip(0)
    return line[:, None] * line[None]


def cut_patch(frames: Float[Tensor, "n y x"], layout: Layout, number: int) -> Complex[Tensor, "n h w"]:
    """Cut one patch out of all frames, and transform it."""
    y, x = layout.corners[number]
    part = frames[:, y : y + layout.size, x : x + layout.size]
    part = (part - part.mean((1, 2), keepdim=True)) * make_taper(layout.size).to(part)
    spectra: Tensor = torch.fft.rfft2(part)
    return spectra
