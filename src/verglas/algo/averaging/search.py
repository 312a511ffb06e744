"""Which turn and shift of a reference explains each particle best, on a grid: products of matrices.

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

from verglas.algo.averaging.fitting import CutParticles
from verglas.ops.band import Band, BandValues
from verglas.ops.fft import radial_frequency
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.projection import complete_planes, insert_slices_apart
from verglas.shapes import Rotations, Values

_TABLE_ENTRIES = 8_000_000


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


def insert_into_band(cut: CutParticles, rotations: Rotations, band: Band, radius_px: float) -> BandParticles:
    """Insert each particle into a Fourier volume of its own, and keep what lies near its middle and within the band.

    Parameters
    ----------
    cut
        The particles.
    rotations
        `(p, 3, 3)`, float64.
    band
        Of a box of the source's side.
    radius_px
        What lies farther from the middle is masked, pixels of the box.
    """
    box, size = cut.source.box, band.size
    slices, gains = cut.slices, cut.weights
    if size < gains.shape[-2]:
        slices, gains = _crop_pixels(slices, size), _crop_pixels(gains, size)
    power = (slices.abs().square() / gains.clamp(min=1e-30) * _ring_within(band, slices)).sum((-3, -2, -1))
    poses = (cut.source.views.rotations @ rotations[:, None]).to(slices.device)
    sums, totals = insert_slices_apart(slices, gains, poses, size)
    window = _window(size, radius_px * size / box, slices.device)
    near = torch.fft.irfftn(complete_planes(sums), s=(size,) * 3, dim=(-3, -2, -1)) * window
    data = torch.fft.rfftn(near, dim=(-3, -2, -1)).flatten(1)[:, band.index]
    return BandParticles(data, complete_planes(totals).flatten(1)[:, band.index], power)


def _crop_pixels(transforms: Tensor, size: int) -> Tensor:
    """Keep the low frequencies of half transforms; what lies at the new Nyquist is not used."""
    rows = torch.cat([torch.arange(size // 2), torch.arange(-(size // 2), 0)])
    return transforms[..., rows, : size // 2 + 1]


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
    norms = (energies * particles.power[:, None]).clamp(min=1e-30).rsqrt()
    # Data are shifted back; that is less work than to shift all references.
    angles = (2 * math.pi / box) * (shifts_px.to(band.places_xyz) @ band.places_xyz.T)
    phases = torch.polar(torch.ones_like(angles), angles)
    count = len(phases)
    # As many particles at once as keep the table of scores small: each pass reads the whole bank.
    together = max(1, _TABLE_ENTRIES // (count * max(len(bank), counted.shape[1])))
    rows, scores = [], []
    for data, norm in zip(torch.split(particles.data, together), torch.split(norms, together), strict=True):
        moved = torch.view_as_real(data[:, None] * phases).reshape(len(data) * count, -1)
        table = (counted @ moved.T).reshape(len(bank), len(data), count) * norm.T[..., None]
        best, row = table.transpose(0, 1).reshape(len(data), -1).max(1)
        rows.append(row)
        scores.append(best)
    found = torch.cat(rows).cpu()
    return found // count, found % count, torch.cat(scores).double().cpu()


def spread_shifts(radius_px: float, step_px: float) -> Float[Tensor, "s 3"]:
    """Shifts xyz on a cubic lattice within a ball, the nearest first."""
    reach = math.floor(radius_px / step_px + 1e-9)
    line = torch.arange(-reach, reach + 1, dtype=torch.float32) * step_px
    shifts = torch.cartesian_prod(line, line, line)
    lengths = shifts.norm(dim=-1)
    order = lengths.argsort(stable=True)
    return shifts[order[lengths[order] <= radius_px * (1 + 1e-6)]]
