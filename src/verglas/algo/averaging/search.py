"""Which turn and shift of a reference explains each particle best: a grid by matrix products, then Gauss and Newton.

A particle is inserted, from all its views, into a small Fourier volume D in the frame of the reference, with weights
W = Σ c² / σ². Against a reference f turned by R and shifted by t its likelihood depends on

    S = Σ Re(conj(D) f_R e^(-2πi k·t))      E = Σ W |f_R|²

and the constrained correlation is S / sqrt(E P), P the power of the particle's crops over the noise (Himes and
Zhang 2018, equations 33 and 34, with the sampling function of each particle). As all particles lie in the same
frame, the turned references are shared, and the scores of all turns and shifts of a particle are one product of
matrices.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verglas.algo.averaging.reference import Band, BandValues
from verglas.algo.averaging.sums import ParticleSource, weight_particles
from verglas.ops.fft import radial_frequency
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.projection import complete_planes, insert_slices_apart
from verglas.ops.rotation import rotation_vectors_to_matrices
from verglas.shapes import Rotations, Values, Vectors

_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class BandParticles:
    """Particles in the frame of the reference, within a band.

    Parameters
    ----------
    data
        `(p, k)` D.
    weights
        `(p, k)` W.
    power
        `(p,)` P.
    """

    data: BandValues
    weights: Float[Tensor, "p k"]
    power: Float[Tensor, " p"]


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


def insert_into_band(
    source: ParticleSource,
    positions_angstrom: Vectors,
    rotations: Rotations,
    band: Band,
    radius_px: float,
) -> BandParticles:
    """Insert each particle into a Fourier volume of its own, and keep what lies near its middle and within the band.

    Parameters
    ----------
    source
        Of the slices.
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)`, float64.
    band
        Of a box of the source's side.
    radius_px
        What lies farther from the middle is masked, pixels of the source.
    """
    box, size = source.box, band.size
    slices, gains = weight_particles(source, positions_angstrom, size)
    power = (slices.abs().square() / gains.clamp(min=1e-30) * _ring_within(band, slices)).sum((-3, -2, -1))
    poses = (source.views.rotations @ rotations[:, None]).to(slices.device)
    sums, totals = insert_slices_apart(slices, gains, poses, size)
    window = _window(size, radius_px * size / box, slices.device)
    near = torch.fft.irfftn(complete_planes(sums), s=(size,) * 3, dim=(-3, -2, -1)) * window
    data = torch.fft.rfftn(near, dim=(-3, -2, -1)).flatten(1)[:, band.index]
    return BandParticles(data, complete_planes(totals).flatten(1)[:, band.index], power)


def _ring_within(band: Band, like: Tensor) -> Float[Tensor, "y kx"]:
    """1 where a pixel of the slices lies within the band, else 0."""
    reach = band.places_xyz.norm(dim=-1)
    radius = radial_frequency((band.size,) * 2, 1 / band.size, device=like.device)
    within: Tensor = ((radius <= reach.max()) & (radius >= reach.min())).to(like.real.dtype)
    return within


def _window(size: int, radius_px: float, device: torch.device) -> Tensor:
    """Sphere over what trilinear insertion loses, origin at index 0."""
    radius = min(radius_px, size / 2 - 2)
    sphere = soft_sphere_mask((size,) * 3, radius, 2.0, device=device)
    line = torch.sinc((torch.arange(size, device=device) - size // 2) / size) ** 2
    window: Tensor = torch.fft.ifftshift(sphere / (line[:, None, None] * line[:, None] * line))
    return window


def score_grid(
    particles: BandParticles, bank: BandValues, shifts_px: Float[Tensor, "s 3"], band: Band, box: int
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Values]:
    """Find the best turn and shift of each particle on a grid.

    Parameters
    ----------
    particles
        Within the band.
    bank
        `(r, k)` of `turn_reference`.
    shifts_px
        `(s, 3)` xyz, pixels of the box.
    band
        The band.
    box
        Side of the box, pixels.

    Returns
    -------
    tuple
        `(p,)` index of the turn, index of the shift, and S / sqrt(E P).
    """
    counted = torch.view_as_real(bank * band.counts).reshape(len(bank), -1)
    energies = particles.weights @ (bank.abs().square() * band.counts).T
    # Data are shifted back; that is less work than to shift all references.
    angles = (2 * math.pi / box) * (shifts_px.to(band.places_xyz) @ band.places_xyz.T)
    phases = torch.polar(torch.ones_like(angles), angles)
    turns, shifts, scores = [], [], []
    for row in range(len(particles.data)):
        moved = torch.view_as_real(particles.data[row] * phases).reshape(len(phases), -1)
        overlap = counted @ moved.T
        score = overlap / (energies[row] * particles.power[row]).clamp(min=1e-30).sqrt()[:, None]
        best = int(score.argmax())
        turns.append(best // len(phases))
        shifts.append(best % len(phases))
        scores.append(score.reshape(-1)[best])
    return torch.tensor(turns), torch.tensor(shifts), torch.stack(scores).double().cpu()


def spread_shifts(radius_px: float, step_px: float) -> Float[Tensor, "s 3"]:
    """Shifts xyz on a cubic lattice within a ball, the nearest first."""
    reach = math.floor(radius_px / step_px + 1e-9)
    line = torch.arange(-reach, reach + 1, dtype=torch.float32) * step_px
    shifts = torch.cartesian_prod(line, line, line)
    lengths = shifts.norm(dim=-1)
    order = lengths.argsort(stable=True)
    return shifts[order[lengths[order] <= radius_px * (1 + 1e-6)]]


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


@dataclass(frozen=True)
class Prior:
    """How far a particle may be expected from where the grid put it: standard deviations."""

    turn_deg: float = 4.0
    shift_px: float = 1.0


def refine_poses(
    source: ParticleSource,
    positions_angstrom: Vectors,
    rotations: Rotations,
    basis: BandValues,
    band: Band,
    radius_px: float,
    prior: Prior = Prior(),
    rounds: int = _ROUNDS,
) -> Poses:
    """Refine poses to fractions of a degree and of a pixel by Gauss and Newton, with the particle's contrast free.

    Parameters
    ----------
    source
        Of the slices.
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)`, float64.
    basis
        `(7, k)` of `differentiate_reference`.
    band, radius_px
        As in `insert_into_band`.
    prior
        Keeps particles with little signal where they are.
    rounds
        Steps; of what each of them gave the best is kept.

    Returns
    -------
    Poses
        With scores on the band.
    """
    products = _multiply_basis(basis, band)
    conjugate = basis.conj() * band.counts
    best = Poses(
        positions_angstrom, rotations, torch.full((len(rotations),), -torch.inf, dtype=torch.float64)
    )
    for _ in range(rounds + 1):
        particles = insert_into_band(source, positions_angstrom, rotations, band, radius_px)
        right = (particles.data @ conjugate.T).real.double().cpu()
        left = _fold(particles.weights @ products.T).double().cpu()
        scores = right[:, 0] / (left[:, 0, 0] * particles.power.double().cpu()).clamp(min=1e-30).sqrt()
        better = scores > best.scores
        best = Poses(
            torch.where(better[:, None], positions_angstrom, best.positions_angstrom),
            torch.where(better[:, None, None], rotations, best.rotations),
            torch.where(better, scores, best.scores),
        )
        steps = _solve(left, right, prior)
        turns = rotation_vectors_to_matrices(torch.rad2deg(steps[:, :3]))
        positions_angstrom, rotations = move_poses(
            positions_angstrom, rotations, turns, steps[:, 3:], source.pixel_size_angstrom
        )
    return best


_PAIRS = torch.triu_indices(7, 7)


def _multiply_basis(basis: BandValues, band: Band) -> Float[Tensor, "28 k"]:
    first, second = basis[_PAIRS[0]], basis[_PAIRS[1]]
    products: Tensor = (first.real * second.real + first.imag * second.imag) * band.counts
    return products


def _fold(pairs: Float[Tensor, "p 28"]) -> Float[Tensor, "p 7 7"]:
    matrix = pairs.new_zeros(len(pairs), 7, 7)
    matrix[:, _PAIRS[0], _PAIRS[1]] = pairs
    matrix[:, _PAIRS[1], _PAIRS[0]] = pairs
    return matrix


def _solve(left: Tensor, right: Tensor, prior: Prior) -> Float[Tensor, "p 6"]:
    """Solve for the steps (ω, t) of all particles; the first unknown is the contrast, which multiplies the others."""
    contrast = (right[:, 0] / left[:, 0, 0].clamp(min=1e-30)).clamp(min=1e-12)
    scale = torch.tensor([1.0, *[math.radians(prior.turn_deg)] * 3, *[prior.shift_px] * 3], dtype=left.dtype)
    damped = left.clone()
    # A particle that no view shows stays where it is.
    damped[:, 0, 0] += (left[:, 0, 0] == 0).to(left)
    extra = 0.5 / (scale[1:] * contrast[:, None]) ** 2
    damped.diagonal(dim1=1, dim2=2)[:, 1:] += extra
    found = torch.linalg.solve(damped, right[..., None])[..., 0]
    steps = found[:, 1:] / found[:, :1].clamp(min=1e-12)
    limited: Tensor = steps.clamp(-2 * scale[1:], 2 * scale[1:])
    return limited
