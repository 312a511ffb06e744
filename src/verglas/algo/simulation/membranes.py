"""Vesicles: two leaflets of head groups on concentric spheres."""

import numpy as np

from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.errors import UserError

LEAFLET_DISTANCE_ANGSTROM = 37.0
"""Distance of the two densities of head groups (see also real class averages: 35 to 40 Å)."""

LEAFLET_SIGMA_ANGSTROM = 6.0
"""Spread of the head groups along the normal."""

HEADGROUP_V = 3.0
"""Peak potential of a leaflet above ice, V."""

CORE_V = -0.6
"""Potential between the leaflets: the lipid tails scatter a little less than ice."""


def make_vesicle(radius_angstrom: float, grain_angstrom: float = 10.0) -> Scatterers:
    """Build a spherical bilayer about the origin.

    The radial profile is two Gaussians of σ = 6 Å at ±18.5 Å from the mid-surface, and a shallow broad one of
    tails between them. Each layer is a lattice of Gaussians that is even on the sphere; where the grain is
    coarser than the leaflet, the Gaussians widen and keep the layer's integral.

    Parameters
    ----------
    radius_angstrom
        Radius of the mid-surface.
    grain_angstrom
        Distance of neighbouring Gaussians; about the pixel size of the images.

    Raises
    ------
    UserError
        When the radius leaves no hollow.
    """
    if not radius_angstrom > LEAFLET_DISTANCE_ANGSTROM:
        raise UserError(
            f"`radius_angstrom` of a vesicle must exceed {LEAFLET_DISTANCE_ANGSTROM:g}; got {radius_angstrom}"
        )
    half = LEAFLET_DISTANCE_ANGSTROM / 2
    positions, weights, sigmas = [], [], []
    for shift, sigma, peak in (
        (-half, LEAFLET_SIGMA_ANGSTROM, HEADGROUP_V),
        (half, LEAFLET_SIGMA_ANGSTROM, HEADGROUP_V),
        (0.0, 8.0, CORE_V),
    ):
        # Lattices coarser than 1.6 σ would show as ripples.
        wide = max(sigma, grain_angstrom / 1.6)
        area = 4 * np.pi * (radius_angstrom + shift) ** 2
        points = spread_on_sphere(int(np.ceil(area / grain_angstrom**2)))
        positions.append(points * (radius_angstrom + shift))
        weights.append(np.full(len(points), peak * np.sqrt(2 * np.pi) * sigma * area / len(points)))
        sigmas.append(np.full(len(points), wide))
    return Scatterers(np.concatenate(positions), np.concatenate(weights), np.concatenate(sigmas))


def spread_on_sphere(count: int) -> FloatArray:
    """`(count, 3)` unit vectors that share a sphere evenly (Fibonacci lattice)."""
    index = np.arange(count) + 0.5
    z = 1 - 2 * index / count
    turn = np.pi * (1 + np.sqrt(5.0)) * index
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)
