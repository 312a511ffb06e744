"""Poses refined to fractions of a degree and of a pixel: Gauss and Newton against every view of a particle.

For a reference f at a pose, data F_v with transfer c_v and noise σ_v², the slices f_v of f make

    S = Σ_v Σ_k Re(conj(c F / σ²) f_v)      E = Σ_v Σ_k c² / σ² |f_v|²      P = Σ_v Σ_k |F|² / σ²

The contrast is free, so that the likelihood depends on S / sqrt(E P): the constrained correlation, with the
sampling function of each particle exact (Himes and Zhang 2018, equations 33 and 34).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.averaging.sums import ParticleSource, weight_particles
from verglas.algo.averaging.transfer import Transfer
from verglas.algo.averaging.views import ParticleSlices
from verglas.ops.fft import rfft_crop
from verglas.ops.kernels import slice_fit
from verglas.ops.projection import PaddedRfft, transform_volume
from verglas.ops.rotation import rotation_vectors_to_matrices
from verglas.shapes import Rotations, Values, Vectors

_OVERSAMPLING = 2
# How far a particle may be expected from where the grid put it, standard deviations; one with little signal stays.
_TURN_DEG, _SHIFT_PX = 4.0, 1.0


@dataclass(frozen=True, eq=False)
class CutParticles:
    """Particles of a series, cut where they were expected.

    Parameters
    ----------
    source
        Of the slices.
    positions_angstrom
        `(p, 3)` xyz where they were cut, float64.
    slices
        `(p, v, m, m // 2 + 1)` c F / σ².
    weights
        `(p, v, m, m // 2 + 1)` c² / σ².
    """

    source: ParticleSource
    positions_angstrom: Vectors
    slices: ParticleSlices
    weights: Transfer

    def shifts_to(self, positions_angstrom: Vectors) -> Float[Tensor, "p v 2"]:
        """`(p, v, 2)` xy of a new place in each view from where the particle was cut, in sides of the box."""
        moved = positions_angstrom - self.positions_angstrom
        across = torch.einsum("vij,pj->pvi", self.source.views.matrices[:, :2, :3], moved)
        return across / (self.source.box * torch.tensor(self.source.views.pixel_size_angstrom))


def cut_weighted(source: ParticleSource, positions_angstrom: Vectors, size: int) -> CutParticles:
    """Cut particles once, to be looked at in many poses.

    Parameters
    ----------
    source
        Of the slices.
    positions_angstrom
        `(p, 3)` xyz in the specimen, float64.
    size
        Side m up to which the transforms are kept.
    """
    return CutParticles(
        source, positions_angstrom, *weight_particles(source, positions_angstrom, min(size, source.box))
    )


@dataclass(frozen=True, eq=False)
class SlicedReference:
    """A reference of which slices are read.

    Parameters
    ----------
    transform
        `(N, N, N // 2 + 1)` the inner part of its oversampled transform.
    reach
        Greatest radius that it serves, in pixels of the box's own transform.
    """

    transform: PaddedRfft
    reach: float


def slice_reference(volume: Float[Tensor, "z y x"], reach: float) -> SlicedReference:
    """Transform a masked reference for `refine_poses`.

    Parameters
    ----------
    volume
        `(n, n, n)`, zero near its borders.
    reach
        Greatest radius that will be read, in pixels of the box's own transform.
    """
    whole = transform_volume(volume, _OVERSAMPLING).to(torch.complex64)
    size = min(whole.shape[0], 2 * math.ceil(_OVERSAMPLING * reach) + 6)
    return SlicedReference(rfft_crop(whole, (whole.shape[0],) * 3, (size,) * 3).contiguous(), reach)


@dataclass(frozen=True, eq=False)
class Poses:
    """Where particles are, how they are turned, and how well that explains them.

    Parameters
    ----------
    positions_angstrom
        `(p, 3)` xyz in the specimen, float64.
    rotations
        `(p, 3, 3)` reference to specimen, float64.
    scores
        `(p,)` constrained correlation.
    """

    positions_angstrom: Vectors
    rotations: Rotations
    scores: Values

    def or_better(self, other: "Poses") -> "Poses":
        """Of each particle's two poses the one that scores more; this one when they score the same."""
        better = other.scores > self.scores
        return Poses(
            torch.where(better[:, None], other.positions_angstrom, self.positions_angstrom),
            torch.where(better[:, None, None], other.rotations, self.rotations),
            torch.where(better, other.scores, self.scores),
        )


def join_poses(parts: list[Poses]) -> Poses:
    """Put lists of poses one after the other."""
    return Poses(
        torch.cat([one.positions_angstrom for one in parts]),
        torch.cat([one.rotations for one in parts]),
        torch.cat([one.scores for one in parts]),
    )


def move_poses(
    positions_angstrom: Vectors,
    rotations: Rotations,
    turns: Rotations,
    shifts_px: Vectors,
    pixel_size_angstrom: float,
) -> tuple[Vectors, Rotations]:
    """Apply turns and shifts that were found in the frame of the reference: R T, and x + R t."""
    moved = positions_angstrom + (rotations @ shifts_px[..., None])[..., 0] * pixel_size_angstrom
    return moved, rotations @ turns


def refine_poses(
    cut: CutParticles,
    positions_angstrom: Vectors,
    rotations: Rotations,
    reference: SlicedReference,
    *,
    reach: float | None = None,
    rounds: int,
) -> Poses:
    """Take steps of Gauss and Newton, with the particle's contrast free, and keep the best of all poses on the way.

    Parameters
    ----------
    cut
        The particles.
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)` to begin with, float64.
    reference
        What they are compared with.
    reach
        Greatest radius that is compared, in pixels of the box's transform; that of the reference when not given.
    rounds
        Steps; with none the poses are only scored.
    """
    best: Poses | None = None
    for left_to_do in range(rounds, -1, -1):
        sums = slice_fit.fit_slices(
            reference.transform,
            cut.slices,
            cut.weights,
            cut.source.views.rotations @ rotations[:, None],
            cut.shifts_to(positions_angstrom),
            _OVERSAMPLING,
            (0.5, min(reach or reference.reach, reference.reach)),
        )
        scores = sums.right[:, 0] / (sums.left[:, 0, 0] * sums.power).clamp(min=1e-30).sqrt()
        poses = Poses(positions_angstrom, rotations, scores)
        best = best.or_better(poses) if best else poses
        if left_to_do:
            steps = _solve(sums.left, sums.right, cut.source.box)
            turns = rotation_vectors_to_matrices(torch.rad2deg(steps[:, :3]))
            positions_angstrom, rotations = move_poses(
                positions_angstrom,
                rotations,
                turns,
                steps[:, 3:] * cut.source.box,
                cut.source.pixel_size_angstrom,
            )
    assert best is not None  # there is at least one pass
    return best


def _solve(left: Tensor, right: Tensor, box: int) -> Float[Tensor, "p 6"]:
    """Solve for the steps (ω, t), radians and sides of the box.

    The first unknown is the contrast, which multiplies the others.
    """
    contrast = (right[:, 0] / left[:, 0, 0].clamp(min=1e-30)).clamp(min=1e-12)
    spread = [math.radians(_TURN_DEG)] * 3 + [_SHIFT_PX / box] * 3
    scale = torch.tensor([1.0, *spread], dtype=left.dtype)
    damped = left.clone()
    # A particle that no view shows stays where it is.
    damped[:, 0, 0] += (left[:, 0, 0] == 0).to(left)
    extra = 0.5 / (scale[1:] * contrast[:, None]) ** 2
    damped.diagonal(dim1=1, dim2=2)[:, 1:] += extra
    found = torch.linalg.solve(damped, right[..., None])[..., 0]
    steps = found[:, 1:] / found[:, :1].clamp(min=1e-12)
    limited: Tensor = steps.clamp(-2 * scale[1:], 2 * scale[1:])
    return limited
