"""Particles aligned to references: a grid around each known pose, then steps to the best one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verglas.algo.averaging.fitting import (
    CutParticles,
    Poses,
    SlicedReference,
    cut_weighted,
    join_poses,
    move_poses,
    refine_poses,
    slice_reference,
)
from verglas.algo.averaging.reference import turn_reference
from verglas.algo.averaging.search import BandParticles, insert_into_band, score_grid, spread_shifts
from verglas.algo.averaging.sums import ParticleSource, batches
from verglas.ops.angles import emclarity_grid
from verglas.ops.band import Band, choose_band
from verglas.ops.rotation import local_rotations, so3_grid
from verglas.ops.symmetry import symmetry_matrices
from verglas.shapes import Rotations, Vectors

_BANK_BYTES = 400_000_000
_EDGE_PX = 4.0
_FINEST_STEP_DEG, _COARSEST_STEP_DEG = 2.0, 6.0
_STEPS_EACH_WAY = 2
_COARSE_ROUNDS, _FINE_ROUNDS = 2, 3


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """How far and how finely poses are searched.

    Parameters
    ----------
    radius_angstrom
        Of the molecule.
    finest_angstrom
        Finest detail that is compared.
    turns
        `(r, 3, 3)` of the reference in its own frame that are tried at each known orientation.
    step_deg
        Between them.
    coarse_angstrom
        Finest detail that is compared on the grid: what neighbours on it still share.
    shift_angstrom
        Largest shift on the grid.
    refine
        Whether the best pose of the grid is refined to fractions of a step.
    """

    radius_angstrom: float
    finest_angstrom: float
    turns: Rotations
    step_deg: float
    coarse_angstrom: float
    shift_angstrom: float
    refine: bool = True


def plan_search(
    radius_angstrom: float,
    finest_angstrom: float,
    *,
    turn_deg: float | None = None,
    step_deg: float | None = None,
    shift_angstrom: float | None = None,
    grid_deg: tuple[float, float, float, float] | None = None,
    symmetry: str = "C1",
    refine: bool = True,
) -> SearchPlan:
    """Lay the grid of a search, by default one that follows the resolution.

    Without options the step is the angle at which the border of the molecule moves by the finest detail, between
    2 and 6 degrees, and the grid goes two steps each way; the grid is compared up to the detail of which neighbours
    differ by half a period, twice that; and shifts go half of it each way.

    Parameters
    ----------
    radius_angstrom
        Of the molecule.
    finest_angstrom
        Finest detail that is compared.
    turn_deg, step_deg
        Largest turn from the known orientation, and the distance of turns; none but the known one when `turn_deg`
        is 0, all orientations at 180.
    shift_angstrom
        Largest shift on the grid.
    grid_deg
        Instead of `turn_deg` and `step_deg`, emClarity's range and step out of plane, and range and step in plane.
    symmetry
        Point group of the reference, which needs fewer orientations when all are tried.
    refine
        Whether the best pose of the grid is refined.
    """
    if grid_deg is not None:
        step = max(grid_deg[1], grid_deg[3])
        turns = emclarity_grid(*grid_deg)
        # The pose that is known belongs to every search.
        turns = torch.cat([torch.eye(3, dtype=torch.float64)[None], turns])
    else:
        natural = math.degrees(finest_angstrom / radius_angstrom)
        step = step_deg or min(max(natural, _FINEST_STEP_DEG), _COARSEST_STEP_DEG)
        reach = _STEPS_EACH_WAY * step if turn_deg is None else turn_deg
        turns = _spread_everywhere(step, symmetry) if reach >= 180 else local_rotations(reach, step)
    coarse = max(finest_angstrom, 2 * radius_angstrom * math.radians(step))
    shift = coarse / 2 if shift_angstrom is None else shift_angstrom
    return SearchPlan(radius_angstrom, finest_angstrom, turns, step, coarse, shift, refine)


def _spread_everywhere(step_deg: float, symmetry: str) -> Rotations:
    group = symmetry_matrices(symmetry)
    return so3_grid(step_deg, group if len(group) > 1 else None)


@dataclass(frozen=True, eq=False)
class Reference:
    """A masked map and what the search needs of it, made once for all series.

    Parameters
    ----------
    volume
        `(n, n, n)`, dense is bright, zero outside the molecule.
    pixel_size_angstrom
        Of a voxel.
    plan
        How it is searched with.
    """

    volume: Float[Tensor, "z y x"]
    pixel_size_angstrom: float
    plan: SearchPlan
    shifts_px: Float[Tensor, "s 3"] = field(init=False)
    coarse: Band = field(init=False)
    slices: SlicedReference = field(init=False)
    _bank: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plan, box, pixel = self.plan, self.volume.shape[-1], self.pixel_size_angstrom
        device = self.volume.device
        step = max(1.0, plan.coarse_angstrom / 4 / pixel)
        object.__setattr__(self, "shifts_px", spread_shifts(plan.shift_angstrom / pixel, step).to(device))
        object.__setattr__(self, "coarse", choose_band(box, pixel, plan.coarse_angstrom, device=device))
        object.__setattr__(
            self, "slices", slice_reference(self.volume, min(box * pixel / plan.finest_angstrom, box / 2 - 1))
        )
        whole = self._turn(slice(None)) if len(plan.turns) <= self._chunk else None
        object.__setattr__(self, "_bank", whole)

    @property
    def _chunk(self) -> int:
        return max(1, _BANK_BYTES // (8 * len(self.coarse.index)))

    @property
    def coarse_reach(self) -> float:
        """Radius of the coarse band, in pixels of the box's transform."""
        return self.volume.shape[-1] * self.pixel_size_angstrom / self.plan.coarse_angstrom

    def _turn(self, part: slice) -> Tensor:
        return turn_reference(self.volume, self.plan.turns[part], self.coarse)

    def search(self, cut: CutParticles, rotations: Rotations) -> tuple[Vectors, Rotations]:
        """Best poses on the grid around where the particles were cut."""
        plan, pixel = self.plan, self.pixel_size_angstrom
        reach_px = (plan.radius_angstrom + plan.shift_angstrom) / pixel + _EDGE_PX
        particles = insert_into_band(cut, rotations, self.coarse, reach_px)
        turns, shifts, scores = self._score(particles, cut.source.box, slice(0, self._chunk))
        for part in list(batches(len(plan.turns), self._chunk))[1:]:
            other = self._score(particles, cut.source.box, part)
            better = other[2] > scores
            turns, shifts, scores = (
                torch.where(better, new, old) for new, old in zip(other, (turns, shifts, scores), strict=True)
            )
        found = self.shifts_px[shifts].double().cpu()
        return move_poses(cut.positions_angstrom, rotations, plan.turns[turns], found, pixel)

    def _score(self, particles: BandParticles, box: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        # A bank that is too large to keep is made again for every batch.
        bank = self._turn(part) if self._bank is None else self._bank[part]
        turns, shifts, scores = score_grid(particles, bank, self.shifts_px, self.coarse, box)
        return turns + part.start, shifts, scores


def align_particles(
    source: ParticleSource, positions_angstrom: Vectors, rotations: Rotations, references: Sequence[Reference]
) -> tuple[Poses, Int[Tensor, " p"]]:
    """Align the particles of a series, each to the reference that explains it best.

    Where no better pose is found a particle keeps the one that it has; its score is that with this reference.

    Parameters
    ----------
    source
        Of the particles' slices.
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)` reference to specimen, float64.
    references
        One or more, of the source's box and pixel size.

    Returns
    -------
    poses
        With the constrained correlation on the band up to `finest_angstrom`.
    chosen
        `(p,)` index of the reference.
    """
    size = 2 * math.ceil(max(one.slices.reach for one in references) + 1)
    found, chosen = [], []
    for part in batches(len(positions_angstrom), source.batch):
        cut = cut_weighted(source, positions_angstrom[part], size)
        each = [_align_to(cut, rotations[part], reference) for reference in references]
        best = torch.stack([poses.scores for poses in each]).argmax(0)
        rows = torch.arange(len(best))
        found.append(
            Poses(
                torch.stack([poses.positions_angstrom for poses in each])[best, rows],
                torch.stack([poses.rotations for poses in each])[best, rows],
                torch.stack([poses.scores for poses in each])[best, rows],
            )
        )
        chosen.append(best)
    return join_poses(found), torch.cat(chosen)


def _align_to(cut: CutParticles, rotations: Rotations, reference: Reference) -> Poses:
    kept = refine_poses(cut, cut.positions_angstrom, rotations, reference.slices, rounds=0)
    positions, turned = reference.search(cut, rotations)
    if not reference.plan.refine:
        return kept.or_better(refine_poses(cut, positions, turned, reference.slices, rounds=0))
    # Fine detail has many maxima; coarse detail leads to the right one.
    near = refine_poses(
        cut, positions, turned, reference.slices, reach=reference.coarse_reach, rounds=_COARSE_ROUNDS
    )
    better = refine_poses(cut, near.positions_angstrom, near.rotations, reference.slices, rounds=_FINE_ROUNDS)
    return kept.or_better(better)
