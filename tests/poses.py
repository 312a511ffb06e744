"""Poses beside the true ones, as a search leaves them."""

from dataclasses import replace

import torch

from verglas.model import Particles
from verglas.ops.rotation import euler_to_matrices, matrices_to_euler, rotation_vectors_to_matrices


def disturb_poses(positions, rotations, turn_deg, shift_angstrom, seed=0):
    """Turn about each axis and move along each, by normal deviates of these standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    turns, moves = (
        size * torch.randn(len(positions), 3, generator=generator, dtype=torch.float64)
        for size in (turn_deg, shift_angstrom)
    )
    return positions + moves, rotations @ rotation_vectors_to_matrices(turns)


def disturb_particles(particles: Particles, turn_deg=4.0, shift_angstrom=6.0) -> Particles:
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
