"""What the parts of a map look like in each particle image: slice, shift, transfer function."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verglas.model import ImageParticles
from verglas.ops.ctf import ctf_2d
from verglas.ops.fft import shift_transforms
from verglas.ops.projection import PaddedRfft, extract_slices, transform_volume
from verglas.ops.rotation import euler_to_matrices
from verglas.shapes import ImageRfft, Values, Volume

_BATCH_PIXELS = 1 << 22


@dataclass(frozen=True, eq=False)
class Reference:
    """Padded transforms of a map: of the part that is kept and of the part that is removed."""

    kept: PaddedRfft
    removed: PaddedRfft


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of each of b particles, as half transforms with the origin at index 0.

    Parameters
    ----------
    kept, removed
        `(b, n, n // 2 + 1)` images of the two parts.
    transfer
        `(b, n, n // 2 + 1)` transfer function.
    ramp
        `(b, n, n // 2 + 1)` phases of the shift.
    """

    kept: ImageRfft
    removed: ImageRfft
    transfer: Values
    ramp: ImageRfft


def make_reference(volume: Volume, remove: Volume) -> Reference:
    """Part a map by a mask and transform both parts.

    Parameters
    ----------
    volume
        `(n, n, n)` map, dense is bright.
    remove
        `(n, n, n)` from 0 to 1: how much of each voxel is removed.
    """
    removed = volume * remove
    return Reference(transform_volume(volume - removed), transform_volume(removed))


def split_batches(count: int, size: int) -> list[range]:
    """Part `count` particles of `size` pixels into batches that fit in memory."""
    step = max(1, _BATCH_PIXELS // size**2)
    return [range(start, min(count, start + step)) for start in range(0, count, step)]


def predict_images(
    particles: ImageParticles, references: Mapping[int, Reference], size: int, mtf: Values | None = None
) -> Prediction:
    """Predict the images of particles, each from the reference of its half set.

    Parameters
    ----------
    particles
        b of them.
    references
        By half set; particles of a half set that has none take the one of key 0.
    size
        Side n of the images, pixels.
    mtf
        `(n, n // 2 + 1)` of the detector; none is 1 everywhere.
    """
    first = next(iter(references.values()))
    device = first.kept.device
    rotations = euler_to_matrices(torch.from_numpy(particles.angles_deg)).to(device)
    parts = {name: first.kept.new_zeros(len(particles), size, size // 2 + 1) for name in ("kept", "removed")}
    halves = np.array([half if half in references else 0 for half in particles.half_set.tolist()])
    for half in np.unique(halves).tolist():
        rows = torch.from_numpy(np.flatnonzero(halves == half)).to(device)
        for name, images in parts.items():
            images[rows] = extract_slices(getattr(references[half], name), rotations[rows], size)
    transfer = transfer_functions(particles, size).to(device)
    if mtf is not None:
        transfer = transfer * mtf.to(transfer)
    ramp = _make_ramps(particles, size, device)
    change = transfer * ramp
    return Prediction(parts["kept"] * change, parts["removed"] * change, transfer, ramp)


def transfer_functions(particles: ImageParticles, size: int) -> Values:
    """Transfer function of each particle, squared where the images were multiplied by it.

    Returns
    -------
    Tensor
        `(b, n, n // 2 + 1)` float32.
    """
    result = torch.empty(len(particles), size, size // 2 + 1)
    for group in np.unique(particles.optics_group).tolist():
        rows = np.flatnonzero(particles.optics_group == group)
        optics = particles.optics[group]
        u, v, angle, phase, bfactor, scale = torch.from_numpy(particles.ctf[rows]).unbind(1)
        ctf = ctf_2d(
            (size, size),
            optics.pixel_size_angstrom,
            defocus_u_angstrom=u,
            defocus_v_angstrom=v,
            defocus_angle_deg=angle,
            voltage_kv=optics.voltage_kv,
            cs_mm=optics.cs_mm,
            amplitude_contrast=optics.amplitude_contrast,
            phase_shift_deg=phase,
            bfactor_a2=bfactor,
        )
        ctf = ctf * scale[:, None, None]
        result[torch.from_numpy(rows)] = (ctf.square() if particles.premultiplied[group] else ctf).float()
    return result


def _make_ramps(particles: ImageParticles, size: int, device: torch.device) -> Tensor:
    pixels = np.array(
        [particles.optics[group].pixel_size_angstrom for group in particles.optics_group.tolist()]
    )
    # RELION's origins move the image to the centre; the particle lies at their negative.
    shifts = torch.from_numpy(-particles.origins_angstrom[:, ::-1] / pixels[:, None]).to(device)
    ones = torch.ones(size, size // 2 + 1, dtype=torch.complex64, device=device)
    return shift_transforms(ones, (size, size), shifts)
