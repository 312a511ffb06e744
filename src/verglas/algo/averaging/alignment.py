"""Particles aligned to a reference: a grid around each known pose, then steps to the best one."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.averaging.reference import Band, choose_band, differentiate_reference, turn_reference
from verglas.algo.averaging.search import (
    BandParticles,
    Poses,
    insert_into_band,
    move_poses,
    refine_poses,
    score_grid,
    spread_shifts,
)
from verglas.algo.averaging.sums import ParticleSource, batches
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import local_rotations, so3_grid
from verglas.shapes import Rotations, Vectors

_BANK_BYTES = 400_000_000
_EDGE_PX = 4.0


@dataclass(frozen=True)
class SearchPlan:
    """How far and how finely poses are searched.

    Parameters
    ----------
    radius_angstrom
        Of the molecule; the reference is masked by a sphere of that radius.
    finest_angstrom
        Finest detail that is compared.
    turn_deg, step_deg
        Largest turn from the known orientation, and the distance of turns; none but the known one when `turn_deg` is
        0, all orientations at 180.
    shift_angstrom
        Largest shift on the grid.
    refine
        Whether the best pose of the grid is refined to fractions of a step.
    """

    radius_angstrom: float
    finest_angstrom: float
    turn_deg: float = 12.0
    step_deg: float = 4.0
    shift_angstrom: float = 20.0
    refine: bool = True

    @property
    def coarse_angstrom(self) -> float:
        """Detail that neighbours on the grid of turns still share: twice the arc between them."""
        return max(self.finest_angstrom, 2 * self.radius_angstrom * math.radians(self.step_deg))


@dataclass(frozen=True, eq=False)
class _Reference:
    """A masked reference and what the search needs of it."""

    volume: Float[Tensor, "z y x"]
    pixel_size_angstrom: float
    plan: SearchPlan
    turns: Rotations = field(init=False)
    shifts_px: Float[Tensor, "s 3"] = field(init=False)
    coarse: Band = field(init=False)
    fine: Band = field(init=False)

    def __post_init__(self) -> None:
        plan, box, pixel = self.plan, self.volume.shape[-1], self.pixel_size_angstrom
        turns = (
            so3_grid(plan.step_deg) if plan.turn_deg >= 180 else local_rotations(plan.turn_deg, plan.step_deg)
        )
        step = max(1.0, plan.coarse_angstrom / 4 / pixel)
        device = self.volume.device
        object.__setattr__(self, "turns", turns)
        object.__setattr__(self, "shifts_px", spread_shifts(plan.shift_angstrom / pixel, step).to(device))
        object.__setattr__(self, "coarse", choose_band(box, pixel, plan.coarse_angstrom, device=device))
        object.__setattr__(self, "fine", choose_band(box, pixel, plan.finest_angstrom, device=device))

    @property
    def reach_px(self) -> float:
        """How far from its middle a particle's density may lie."""
        return (self.plan.radius_angstrom + self.plan.shift_angstrom) / self.pixel_size_angstrom + _EDGE_PX


def align_particles(
    source: ParticleSource,
    positions_angstrom: Vectors,
    rotations: Rotations,
    reference: Float[Tensor, "z y x"],
    plan: SearchPlan,
) -> Poses:
    """Align the particles of a series to a reference.

    Where no better pose is found a particle keeps the one that it has; its score is that with this reference.

    Parameters
    ----------
    source
        Of the particles' slices.
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)` reference to specimen, float64.
    reference
        `(n, n, n)` of the source's box and pixel size, dense is bright.
    plan
        How far and how finely to search.

    Returns
    -------
    Poses
        With the constrained correlation on the band up to `finest_angstrom`.
    """
    box, pixel = source.box, source.pixel_size_angstrom
    mask = soft_sphere_mask((box,) * 3, plan.radius_angstrom / pixel, _EDGE_PX, device=reference.device)
    ready = _Reference(reference * mask, pixel, plan)
    basis = differentiate_reference(ready.volume, ready.fine)
    bank = _Bank(ready)
    found = []
    for part in batches(len(positions_angstrom), source.batch):
        known = positions_angstrom[part], rotations[part]
        start = bank.search(source, *known)
        rounds = 3 if plan.refine else 0
        better = refine_poses(source, *start, basis, ready.fine, ready.reach_px, rounds=rounds)
        kept = refine_poses(source, *known, basis, ready.fine, ready.reach_px, rounds=0)
        found.append(_choose_better(kept, better))
    return Poses(
        torch.cat([one.positions_angstrom for one in found]),
        torch.cat([one.rotations for one in found]),
        torch.cat([one.scores for one in found]),
    )


def _choose_better(first: Poses, second: Poses) -> Poses:
    better = second.scores > first.scores
    return Poses(
        torch.where(better[:, None], second.positions_angstrom, first.positions_angstrom),
        torch.where(better[:, None, None], second.rotations, first.rotations),
        torch.where(better, second.scores, first.scores),
    )


class _Bank:
    """The turned references, kept when they are few enough, else made again for every batch."""

    def __init__(self, reference: _Reference) -> None:
        self._reference = reference
        self._chunk = max(1, _BANK_BYTES // (8 * len(reference.coarse.index)))
        self._whole = self._make(slice(None)) if len(reference.turns) <= self._chunk else None

    def _make(self, part: slice) -> Tensor:
        one = self._reference
        return turn_reference(one.volume, one.turns[part], one.coarse)

    def search(
        self, source: ParticleSource, positions: Vectors, rotations: Rotations
    ) -> tuple[Vectors, Rotations]:
        """Best poses on the grid."""
        one = self._reference
        particles = insert_into_band(source, positions, rotations, one.coarse, one.reach_px)
        turns, shifts, scores = self._score(particles, source.box, slice(0, self._chunk))
        for part in list(batches(len(one.turns), self._chunk))[1:]:
            other = self._score(particles, source.box, part)
            better = other[2] > scores
            turns, shifts, scores = (
                torch.where(better, new, old) for new, old in zip(other, (turns, shifts, scores), strict=True)
            )
        found = one.shifts_px[shifts].double().cpu()
        return move_poses(positions, rotations, one.turns[turns], found, source.pixel_size_angstrom)

    def _score(self, particles: BandParticles, box: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        bank = self._make(part) if self._whole is None else self._whole[part]
        turns, shifts, scores = score_grid(
            particles, bank, self._reference.shifts_px, self._reference.coarse, box
        )
        return turns + part.start, shifts, scores
