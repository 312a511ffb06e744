"""Data that several benchmarks share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from verglas.io.mrc import create_mrc
from verglas.io.relion_particles import write_particles
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import ImageReference, Optics, Particles, TiltSeries
from verglas.ops.rotation import (
    euler_to_matrices,
    matrices_to_euler,
    random_rotations,
    rotation_vectors_to_matrices,
)
from verglas.shapes import Rotations, Vectors

PIXEL_ANGSTROM = 10.0


def size_of_case(quick: bool) -> tuple[tuple[int, int], int]:
    """`(y, x)` of the views and voxels along the beam: a binned in-cell series, or a sixteenth of it."""
    return ((252, 260), 100) if quick else ((630, 652), 260)


def make_noise(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Noise `(n, y, x)` with a spectrum that falls towards Nyquist, as a camera's does."""
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return np.asarray(gaussian_filter(noise, (0, 0.6, 0.6)))


def write_noise_series(folder: Path, shape: tuple[int, int], *, views: int = 41) -> tuple[Path, Path]:
    """Write a stack of smooth noise and the `tilt_series.star` of a plausible alignment.

    Returns
    -------
    tuple
        The STAR file and the stack.
    """
    tilts = np.linspace(-60.0, 60.0, views)
    noise = make_noise((views, *shape))
    stack = folder / "noise.mrc"
    with create_mrc(stack, (views, *shape), voxel_size_angstrom=PIXEL_ANGSTROM, is_stack=True) as writer:
        writer.write(40 + noise)
    series = TiltSeries(
        name="noise",
        optics=Optics(PIXEL_ANGSTROM),
        image_shape=shape,
        images=tuple(ImageReference(stack, i) for i in range(views)),
        nominal_tilt_deg=tilts,
        z_rot_deg=np.full(views, -4.3),
        x_shift_angstrom=80 * np.sin(tilts),
        y_shift_angstrom=20 * np.cos(tilts),
        pre_exposure_e_per_a2=np.argsort(np.argsort(np.abs(tilts), kind="stable")).astype(float) * 3,
    )
    return write_tilt_series(folder, [series]), stack


def write_noise_particles(
    folder: Path, *, views: int, side: int, particles: int, seed: int = 0
) -> tuple[Path, Path]:
    """Write views of white noise with a CTF to correct, and particles that are nowhere.

    Parameters
    ----------
    folder
        Where files go.
    views, side
        How many views, and their side in pixels.
    particles
        How many; their half sets alternate.
    seed
        Of all that is random.

    Returns
    -------
    tuple
        `tilt_series.star` and `particles.star`.
    """
    rng = np.random.default_rng(seed)
    stack = folder / "noise.mrc"
    with create_mrc(stack, (views, side, side), voxel_size_angstrom=PIXEL_ANGSTROM, is_stack=True) as writer:
        for _ in range(views):
            writer.write(40 + rng.standard_normal((1, side, side), dtype=np.float32))
    tilts = np.linspace(-60.0, 60.0, views)
    series = TiltSeries(
        name="noise",
        optics=Optics(PIXEL_ANGSTROM),
        image_shape=(side, side),
        images=tuple(ImageReference(stack, row) for row in range(views)),
        nominal_tilt_deg=tilts,
        y_tilt_deg=tilts,
        z_rot_deg=np.full(views, 85.0),
        exposure_e_per_a2=np.full(views, 3.0),
        pre_exposure_e_per_a2=np.argsort(np.argsort(np.abs(tilts), kind="stable")).astype(float) * 3,
        defocus_u_angstrom=np.full(views, 30000.0),
        defocus_v_angstrom=np.full(views, 30000.0),
    )
    # So far from the middle that nearly every view holds nearly all of every particle.
    reach = 0.38 * side * PIXEL_ANGSTROM
    angles = matrices_to_euler(random_rotations(particles, torch.Generator().manual_seed(seed)))
    table = Particles(
        tomogram_names=np.full(particles, "noise"),
        positions_angstrom=rng.uniform(-1, 1, (particles, 3)) * [reach, reach, 500.0],
        angles_deg=angles.numpy(),
        half_set=1 + np.arange(particles) % 2,
        score=np.full(particles, np.nan),
    )
    write_particles(folder / "particles.star", table)
    return write_tilt_series(folder, [series]), folder / "particles.star"


def filter_rows(views: npt.NDArray[np.float32], tilt_deg: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Weight aligned views `(n, y, x)` with Radon's ramp along x in plain numpy, zero-padded to twice the size."""
    size = views.shape[2]
    steps = np.deg2rad(np.gradient(tilt_deg))
    ramp = np.abs(np.fft.rfftfreq(2 * size)) * steps[:, None, None]
    filtered = np.fft.irfft(np.fft.rfft(views, 2 * size, axis=2) * ramp, axis=2)
    return np.ascontiguousarray(filtered[:, :, :size], dtype=np.float32)


def disturb_poses(
    positions_angstrom: Vectors, rotations: Rotations, turn_deg: float, shift_angstrom: float, seed: int = 0
) -> tuple[Vectors, Rotations]:
    """Turn about each axis and move along each, by normal deviates of these standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    turns, moves = (
        size * torch.randn(len(positions_angstrom), 3, generator=generator, dtype=torch.float64)
        for size in (turn_deg, shift_angstrom)
    )
    return positions_angstrom + moves, rotations @ rotation_vectors_to_matrices(turns)


def disturb_particles(particles: Particles, turn_deg: float = 4.0, shift_angstrom: float = 6.0) -> Particles:
    """Do the same to a table."""
    positions, rotations = disturb_poses(
        torch.from_numpy(particles.positions_angstrom),
        euler_to_matrices(torch.from_numpy(particles.angles_deg)),
        turn_deg,
        shift_angstrom,
    )
    return replace(
        particles, positions_angstrom=positions.numpy(), angles_deg=matrices_to_euler(rotations).numpy()
    )
