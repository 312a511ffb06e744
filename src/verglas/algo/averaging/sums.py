"""Particles inserted into Fourier volumes: for the averages, and one by one for their alignment."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.averaging.transfer import (
    Transfer,
    TransferModel,
    compute_factors,
    describe_phases,
    find_heights,
    measure_noise,
)
from verglas.algo.averaging.views import ParticleSlices, SeriesViews, cut_particles, cut_windows
from verglas.ops.fft import radial_frequency, rfft_crop
from verglas.ops.kernels.transfer_slices import move_and_weigh
from verglas.ops.projection import PaddedRfft, PaddedWeights, complete_planes, insert_slices, sum_permuted
from verglas.ops.statistics import fourier_shells
from verglas.ops.symmetry import split_group
from verglas.shapes import Rotations, Values, Vectors

OVERSAMPLING = 2
"""How many times finer than a box's own transform that of the sums is."""

_NOISE_PARTICLES = 100
_BATCH_PIXELS = 4_000_000


class ParticleSource(Protocol):
    """Where the slices of a series' particles come from."""

    @property
    def views(self) -> SeriesViews:
        """Geometry of the views, and their images where particles are cut from these."""

    @property
    def box(self) -> int:
        """Side n of the slices, even."""

    @property
    def noise(self) -> Float[Tensor, "views rings"]:
        """`(v, rings)` power."""

    def cut(self, positions_angstrom: Vectors, size: int) -> tuple[ParticleSlices, Transfer]:
        """Cut particles.

        Parameters
        ----------
        positions_angstrom
            `(p, 3)` xyz in the specimen, float64.
        size
            Side m up to which the transforms are kept.

        Returns
        -------
        slices
            `(p, v, m, m // 2 + 1)` c F, F the crop and c its transfer.
        squares
            `(p, v, m, m // 2 + 1)` c², zero where nothing is seen.
        """

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the slices."""

    @property
    def batch(self) -> int:
        """Particles that are cut at once."""


def batch_particles(views: int, box: int) -> int:
    """How many particles of that many views are cut at once."""
    return max(1, _BATCH_PIXELS // (views * box**2))


@dataclass(frozen=True, eq=False)
class SeriesSource:
    """Slices cut from the views themselves.

    Parameters
    ----------
    views
        The views.
    model
        What weakens the signal.
    box
        Side n of the crops, even.
    noise
        `(v, rings)` power.
    """

    views: SeriesViews
    model: TransferModel
    box: int
    noise: Float[Tensor, "views rings"]

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the crops."""
        return sum(self.views.pixel_size_angstrom) / 2

    @property
    def batch(self) -> int:
        """Particles that are cut at once."""
        return batch_particles(len(self.views.images), self.box)

    def cut(self, positions_angstrom: Vectors, size: int) -> tuple[ParticleSlices, Transfer]:
        """Cut particles from the views: `ParticleSource.cut`."""
        slices, shifts, seen = cut_windows(self.views, positions_angstrom, self.box)
        if size < self.box:
            slices = rfft_crop(slices, (self.box, self.box), (size, size)).contiguous()
        side = self.pixel_size_angstrom * self.box
        heights = find_heights(self.views, positions_angstrom)
        squares = move_and_weigh(
            slices,
            shifts / self.box,
            describe_phases(self.views, heights, side, self.model),
            compute_factors(self.views, size, side / size, self.model),
            seen,
        )
        return slices, squares


def open_source(
    views: SeriesViews, positions_angstrom: Vectors, box: int, model: TransferModel
) -> SeriesSource:
    """Measure the noise at some of the particles, spread over their list.

    Parameters
    ----------
    views
        The views.
    positions_angstrom
        `(p, 3)` of the particles, float64.
    box
        Side of the crops.
    model
        What weakens the signal.
    """
    step = max(1, len(positions_angstrom) // _NOISE_PARTICLES)
    slices, _ = cut_particles(views, positions_angstrom[::step][:_NOISE_PARTICLES], box)
    return SeriesSource(views, model, box, measure_noise(slices))


def weight_particles(
    source: ParticleSource, positions_angstrom: Vectors, size: int | None = None
) -> tuple[ParticleSlices, Transfer]:
    """Cut particles, with what least squares needs of each pixel.

    Parameters
    ----------
    source
        Of the slices.
    positions_angstrom
        `(p, 3)` xyz in the specimen, float64.
    size
        Side m up to which the transforms are kept; none keeps them whole.

    Returns
    -------
    slices
        `(p, v, m, m // 2 + 1)` c F / σ², F the crop, c its transfer, σ² the noise.
    weights
        `(p, v, m, m // 2 + 1)` c² / σ².
    """
    size = size or source.box
    slices, squares = source.cut(positions_angstrom, size)
    precision = 1 / source.noise[:, fourier_shells((size, size), slices.device)]
    return slices.mul_(precision), squares.mul_(precision)


def batches(count: int, size: int) -> Iterator[slice]:
    """Cut a list into parts of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def sum_particles(
    source: ParticleSource,
    positions_angstrom: Vectors,
    rotations: Rotations,
    symmetry: Rotations,
    quality: Values | None = None,
) -> tuple[PaddedRfft, PaddedWeights]:
    """Insert all particles into one Fourier volume.

    Parameters
    ----------
    source
        Of the slices.
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)` reference to specimen, float64.
    symmetry
        `(g, 3, 3)` operations of the point group, in the reference frame.
    quality
        `(p,)` a B-factor of each particle in Å², by which sums and weights decay as exp(-B s²): emClarity's weight
        by score; none is zero for all.

    Returns
    -------
    tuple
        `(N, N, N // 2 + 1)` sum and weight, N twice the box, their planes complete.
    """
    size, device = OVERSAMPLING * source.box, source.views.images.device
    shape = (size, size, size // 2 + 1)
    sums = torch.zeros(shape, dtype=torch.complex64, device=device)
    weights = torch.zeros(shape, device=device)
    turns = source.views.rotations
    inserted, permuted = split_group(symmetry)
    squares = radial_frequency((source.box,) * 2, source.pixel_size_angstrom, device=device) ** 2
    for part in batches(len(positions_angstrom), source.batch):
        slices, gains = weight_particles(source, positions_angstrom[part])
        if quality is not None:
            decay = torch.exp(-quality[part].to(gains)[:, None, None] * squares)[:, None]
            slices, gains = slices * decay, gains * decay
        for operation in inserted:
            poses = turns @ (rotations[part] @ operation)[:, None]
            insert_slices(slices, gains, poses.to(device), size, into=(sums, weights))
    return sum_permuted(complete_planes(sums), permuted), sum_permuted(complete_planes(weights), permuted)


def quality_bfactors(scores: Values, strength: float) -> Values:
    """B-factors of particles that score below the mean: (strength · (acos c - acos c̄))², c in degrees of arc.

    Equation 19 of the emClarity tutorial (Himes and Zhang 2018); particles at or above the mean have zero.

    Parameters
    ----------
    scores
        `(p,)` correlation coefficients.
    strength
        emClarity's `flgQualityWeight`, 5 by default there.
    """
    clipped = scores.clamp(-1, 1)
    below = clipped < clipped.mean()
    excess = torch.rad2deg(torch.acos(clipped) - math.acos(float(clipped.mean())))
    return torch.where(below, (strength * excess) ** 2, 0.0)
