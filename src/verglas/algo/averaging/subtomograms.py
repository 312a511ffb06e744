"""Particles as small volumes, for programs that refine such: made of the views of each, with what was counted there.

In the frame of the specimen, every particle is a Fourier volume of D = Σ c F / σ² with the weights W = Σ c² / σ²,
F the crop of a view, c its transfer and σ² the noise; and of M, the number of views that show a voxel. RELION 4
and 5 take D, W and M. RELION 3 takes a box X and a CTF volume C with X = C · reference + white noise; these are
D / √W and √W, which have the same likelihood.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.algo.averaging.sums import OVERSAMPLING, SeriesSource, batches, weight_particles
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.projection import complete_planes, crop_transform, insert_slices
from verglas.shapes import Vectors

_LEAST_SHARE = 1e-3
_EDGE_PX = 3.0
_MEASURED = 20

BoxWeights = Float[Tensor, "z y kx"]
"""`(n, n, n // 2 + 1)` real weights of the half transform of a box, origin at index 0."""


@dataclass(frozen=True, eq=False)
class Subtomogram:
    """One particle, upright in the specimen.

    Parameters
    ----------
    data
        `(n, n, n // 2 + 1)` D, origin at index 0.
    weights
        `(n, n, n // 2 + 1)` W.
    counts
        `(n, n, n // 2 + 1)` M.
    """

    data: Complex[Tensor, "z y kx"]
    weights: BoxWeights
    counts: BoxWeights

    def whiten(self) -> tuple[Float[Tensor, "z y x"], BoxWeights]:
        """Return the box X, centred on voxel `n // 2`, and its CTF volume C."""
        root = self.weights.sqrt()
        least = _LEAST_SHARE**0.5 * root.max()
        white = torch.where(root > least, self.data / root.clamp(min=1e-30), 0)
        return _to_box(white), torch.where(root > least, root, 0.0)

    def box(self) -> Float[Tensor, "z y x"]:
        """Return D in real space, centred on voxel `n // 2`."""
        return _to_box(self.data)


def _to_box(transform: Tensor) -> Float[Tensor, "z y x"]:
    volume: Tensor = torch.fft.fftshift(torch.fft.irfftn(transform, s=(transform.shape[0],) * 3))
    return volume


def make_subtomograms(source: SeriesSource, positions_angstrom: Vectors) -> Iterator[Subtomogram]:
    """Make the subtomogram of each particle, one after the other.

    Parameters
    ----------
    source
        Of the particles' slices.
    positions_angstrom
        `(p, 3)` xyz in the specimen, float64.
    """
    size, box = OVERSAMPLING * source.box, source.box
    turns = source.views.rotations.to(source.views.images.device)
    for part in batches(len(positions_angstrom), source.batch):
        slices, gains = weight_particles(source, positions_angstrom[part])
        for one, gain in zip(slices, gains, strict=True):
            seen = (gain.amax((-2, -1), keepdim=True) > 0).to(gain).expand_as(gain).contiguous()
            sums, weights = insert_slices(one, gain, turns, size)
            counts = insert_slices(torch.zeros_like(one), seen, turns, size)[1]
            halves = [_crop_half(half, box) for half in (sums, weights, counts)]
            real = [half.real.clamp(min=0) for half in halves[1:]]
            yield Subtomogram(halves[0], real[0], real[1])


def _crop_half(half: Tensor, box: int) -> Tensor:
    """Transform of what an oversampled one holds within the box, without the corners of Fourier space."""
    volume = crop_transform(complete_planes(half), box)
    transform: Tensor = torch.fft.rfftn(torch.fft.ifftshift(volume))
    axis = torch.fft.fftfreq(box, 1 / box, device=half.device)
    x = torch.arange(box // 2 + 1, device=half.device)
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + x**2).sqrt()
    transform *= radius < box / 2
    return transform


def measure_background(source: SeriesSource, positions_angstrom: Vectors) -> float:
    """Root mean square of X around some of the particles, which other programs want to be 1."""
    step = max(1, len(positions_angstrom) // _MEASURED)
    around = 1 - soft_sphere_mask((source.box,) * 3, 0.4 * source.box, _EDGE_PX)
    powers = [
        float((one.whiten()[0].cpu().square() * around).sum() / around.sum())
        for one in make_subtomograms(source, positions_angstrom[::step][:_MEASURED])
    ]
    known = [power for power in powers if power > 0]
    return float(torch.tensor(known).mean().sqrt()) if known else 1.0
