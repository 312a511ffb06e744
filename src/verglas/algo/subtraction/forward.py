"""How the parts of a map are seen in each particle image: pose, shift, transfer function, aberrations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.model import ImageParticles
from verglas.ops.aberrations import beam_tilt_phase, zernike_phase
from verglas.ops.ctf import defocus_form
from verglas.ops.fft import frequency_axes
from verglas.ops.kernels.parted_slices import Views
from verglas.ops.projection import transform_volume
from verglas.ops.rotation import euler_to_matrices
from verglas.shapes import Volume
from verglas.units import ANGSTROM_PER_MILLIMETRE

_NOTHING = 1e-7


@dataclass(frozen=True, eq=False)
class Reference:
    """Padded transforms of maps: of the part that is kept and of the part that is removed.

    Parameters
    ----------
    parts
        `(h, N, N, N // 2 + 1, 2)` kept and removed; beyond `reach` zero.
    halves
        h half sets that they are taken out of; 0 is everything.
    reach
        Shell of the image's transform up to which the maps hold anything.
    """

    parts: Complex[Tensor, "h padded padded padded_half 2"]
    halves: tuple[int, ...]
    reach: int


@dataclass(frozen=True, eq=False)
class OpticsTables:
    """Of g optics groups, as `Views` has them, with the magnification.

    Parameters
    ----------
    phases, factors, squares
        `(g, n, n // 2 + 1)`.
    magnification
        `(g, 2, 2)` frequencies of the image to those of the specimen.
    """

    phases: Float[Tensor, "g y kx"]
    factors: Complex[Tensor, "g y kx"]
    squares: Float[Tensor, "g y kx"]
    magnification: Float[Tensor, "g 2 2"]


def make_reference(volumes: Mapping[int, Volume], remove: Volume) -> Reference:
    """Part maps by a mask and transform both parts.

    Parameters
    ----------
    volumes
        `(n, n, n)` map of each half set, dense is bright.
    remove
        `(n, n, n)` from 0 to 1: how much of each voxel is removed.
    """
    size = len(remove)
    shape = (len(volumes), 2 * size, 2 * size, size + 1, 2)
    if remove.device.type == "cpu":
        # NumPy's arrays lie on large pages where torch's do not: slices jump about in them.
        parts = torch.from_numpy(np.empty(shape, np.complex64))
    else:
        parts = torch.empty(shape, dtype=torch.complex64, device=remove.device)
    for place, volume in enumerate(volumes.values()):
        removed = volume * remove
        both = (transform_volume(volume - removed), transform_volume(removed))
        torch.stack(both, dim=-1, out=parts[place])
    return Reference(parts, tuple(volumes), _find_reach(volumes, size))


def _find_reach(volumes: Mapping[int, Volume], size: int) -> int:
    """Shell beyond which the maps hold less than 1e-7 of their power."""
    from verglas.ops.statistics import fourier_shells

    reach = 1
    for volume in volumes.values():
        power = torch.fft.rfftn(volume).abs().square().reshape(-1).double()
        shells = fourier_shells((size,) * 3, volume.device).reshape(-1)
        sums = torch.bincount(shells, power)[1:]
        beyond = sums.flip(0).cumsum(0).flip(0)
        reach = max(reach, 1 + int((beyond > _NOTHING * beyond[0]).sum()))
    return min(reach, (size + 1) // 2)


def describe_optics(particles: ImageParticles, size: int, device: torch.device) -> OpticsTables:
    """Make what the particles of an optics group have in common, for images of `size` pixels."""
    phases, factors, squares, matrices = [], [], [], []
    for optics, extra in zip(particles.optics, particles.aberrations, strict=True):
        matrix = torch.tensor(extra.magnification, dtype=torch.float64)
        y, x = frequency_axes((size, size), optics.pixel_size_angstrom, dtype=torch.float64)
        u, v = (matrix[row, 0] * x + matrix[row, 1] * y for row in range(2))
        square = u.square() + v.square()
        cs = optics.cs_mm * ANGSTROM_PER_MILLIMETRE
        phase = -0.5 * math.pi * cs * optics.wavelength_angstrom**3 * square.square()
        # RELION adds its even terms to the negative of our phase.
        phases.append((phase - zernike_phase(extra.even, u, v, even=True)).float())
        shift = beam_tilt_phase(extra.beam_tilt_mrad, u, v, optics.cs_mm, optics.wavelength_angstrom)
        shift = shift + zernike_phase(extra.odd, u, v, even=False)
        loss = torch.ones_like(square)
        if extra.mtf is not None and extra.mtf_frequency is not None:
            place = torch.sqrt(x.square() + y.square()).numpy()
            loss = torch.from_numpy(np.interp(place, extra.mtf_frequency, extra.mtf))
        factors.append(torch.polar(loss, shift).to(torch.complex64))
        squares.append(square.float())
        matrices.append(matrix)
    tables = [torch.stack(one).to(device) for one in (phases, factors, squares, matrices)]
    return OpticsTables(*tables)


def describe_views(particles: ImageParticles, reference: Reference, tables: OpticsTables, size: int) -> Views:
    """Say how each particle is seen; those of a half set that has no map take that of all.

    Parameters
    ----------
    particles
        b of them.
    reference
        The maps.
    tables
        Of the particles' optics groups.
    size
        Side n of the images, pixels.
    """
    device = tables.phases.device
    group = torch.from_numpy(particles.optics_group)
    pixel = torch.tensor([one.pixel_size_angstrom for one in particles.optics], dtype=torch.float64)[group]
    length = torch.tensor([one.wavelength_angstrom for one in particles.optics], dtype=torch.float64)[group]
    amplitude = torch.tensor([one.amplitude_contrast for one in particles.optics], dtype=torch.float64)[group]
    magnification = tables.magnification.cpu()[group]
    turns = euler_to_matrices(torch.from_numpy(particles.angles_deg))[:, :2]
    axes = torch.einsum("bij,bik->bjk", magnification, turns)
    # RELION's origins move the image to the centre; the particle lies at their negative.
    shifts = size // 2 - torch.from_numpy(particles.origins_angstrom) / pixel[:, None]
    u, v, angle, plate, bfactor, scale = torch.from_numpy(particles.ctf).unbind(1)
    xx, xy, yy = defocus_form(u, v, angle).unbind(1)
    form = torch.stack([xx, xy / 2, xy / 2, yy], dim=1).reshape(-1, 2, 2)
    form = magnification.mT @ form @ magnification
    form = form * (math.pi * length / (size * pixel) ** 2)[:, None, None]
    start = torch.deg2rad(plate) + torch.asin(amplitude)
    waves = [form[:, 0, 0], 2 * form[:, 0, 1], form[:, 1, 1], start, bfactor / 4, scale]
    places = {half: row for row, half in enumerate(reference.halves)}
    part = torch.tensor([places.get(half, places.get(0, 0)) for half in particles.half_set.tolist()])
    squared = torch.tensor(particles.premultiplied)[group]
    return Views(
        part.to(device),
        axes.to(device),
        shifts.to(device),
        torch.stack(waves, dim=1).to(device),
        group.to(device),
        squared.to(device),
        tables.phases,
        tables.factors,
        tables.squares,
    )
