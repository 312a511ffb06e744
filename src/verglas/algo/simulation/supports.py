"""Gold beads, carbon and grainy films."""

from dataclasses import dataclass

import numpy as np

from verglas.algo.simulation.scatterers import FloatArray, Scatterers, join_scatterers, move_scatterers
from verglas.algo.simulation.solids import fill_ball
from verglas.errors import UserError

GOLD_V = 25.0
"""Potential of gold (29.9 V for independent atoms at 0.059 per Å³) above that of ice."""

GOLD_FREE_PATH_ANGSTROM = 200.0
"""Length of gold after which 1/e of the electrons still lands in the image (aperture and energy filter)."""

CARBON_V = 5.0
"""Potential of amorphous carbon above that of ice, V."""

CARBON_FREE_PATH_ANGSTROM = 1800.0
"""Inelastic mean free path in amorphous carbon at 300 kV."""


@dataclass(frozen=True, eq=False)
class Absorber:
    """Matter that shifts the phase and takes electrons away.

    Parameters
    ----------
    scatterers
        In the specimen frame.
    potential_v
        Potential of the bulk: the projected potential over this is the length of matter on the beam's way.
    mean_free_path_angstrom
        Length after which 1/e of the electrons is left.
    """

    scatterers: Scatterers
    potential_v: float
    mean_free_path_angstrom: float


def make_gold(beads_angstrom: FloatArray, grain_angstrom: float = 10.0) -> Absorber:
    """Make gold balls.

    Parameters
    ----------
    beads_angstrom
        `(n, 4)` xyz of the centres and radii, Å.
    grain_angstrom
        Distance of the Gaussians that fill a ball; its edge is about that wide.
    """
    parts = []
    for radius in np.unique(beads_angstrom[:, 3]):
        ball = fill_ball(float(radius), min(grain_angstrom, float(radius) / 2), GOLD_V)
        parts += [
            move_scatterers(ball, translation_angstrom=bead[:3])
            for bead in beads_angstrom[beads_angstrom[:, 3] == radius]
        ]
    return Absorber(join_scatterers(parts), GOLD_V, GOLD_FREE_PATH_ANGSTROM)


def make_carbon_edge(
    extent_angstrom: tuple[float, float, float],
    edge_angstrom: float,
    *,
    seed: int,
    edge_angle_deg: float = 0.0,
    thickness_angstrom: float = 150.0,
    grain_angstrom: float = 20.0,
) -> Absorber:
    """Make the edge of a carbon film that lies under the slab.

    Parameters
    ----------
    extent_angstrom
        Sides of the specimen along x, y, z; the film's upper face is the slab's lower one.
    edge_angstrom
        Where the edge crosses: the film lies where x cos(angle) + y sin(angle) is above this.
    seed
        Chooses the texture: Gaussians of 0.5 to 1.5 times the mean, a quarter of a grain off their lattice.
    edge_angle_deg
        Direction of the edge's normal, from x.
    thickness_angstrom
        Of the film.
    grain_angstrom
        Size of the texture; about two pixels of the images.
    """
    if not (thickness_angstrom > 0 and grain_angstrom > 0):
        raise UserError(
            f"a film needs a positive thickness and grain; got {thickness_angstrom} and {grain_angstrom}"
        )
    rng = np.random.default_rng([seed, 2])
    layers = max(1, round(thickness_angstrom / grain_angstrom))
    step = thickness_angstrom / layers
    x = np.arange(-extent_angstrom[0] / 2, extent_angstrom[0] / 2, grain_angstrom)
    y = np.arange(-extent_angstrom[1] / 2, extent_angstrom[1] / 2, grain_angstrom)
    z = -extent_angstrom[2] / 2 - (np.arange(layers) + 0.5) * step
    places = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    places += rng.normal(0, 0.25 * grain_angstrom, places.shape)
    angle = np.deg2rad(edge_angle_deg)
    places = places[places[:, 0] * np.cos(angle) + places[:, 1] * np.sin(angle) > edge_angstrom]
    weights = CARBON_V * grain_angstrom**2 * step * rng.uniform(0.5, 1.5, len(places))
    film = Scatterers(places, weights, np.full(len(places), 0.6 * grain_angstrom))
    return Absorber(film, CARBON_V, CARBON_FREE_PATH_ANGSTROM)


def make_amorphous_film(
    extent_angstrom: tuple[float, float, float],
    pixel_size_angstrom: float,
    strength_v_a2: float = 120.0,
    *,
    seed: int,
) -> Scatterers:
    """Make a thin grainy film in the plane z = 0 that shows Thon rings: random points of both signs.

    The projected potential has a flat power spectrum of `strength²` (V²·Å⁴ per unit of area) up to the
    fall-off of the points' σ of half a pixel.

    Parameters
    ----------
    extent_angstrom
        Sides along x, y and z; points are spread over z too.
    pixel_size_angstrom
        Of the images: there is one point on every four pixels.
    strength_v_a2
        Square root of the spectral density, V·Å². 10 nm of carbon has about 120.
    seed
        Chooses the points.
    """
    rng = np.random.default_rng([seed, 3])
    area = extent_angstrom[0] * extent_angstrom[1]
    count = max(1, round(area / (4 * pixel_size_angstrom**2)))
    places = rng.uniform(-0.5, 0.5, (count, 3)) * np.asarray(extent_angstrom)
    weights = rng.normal(0, strength_v_a2 * np.sqrt(area / count), count)
    return Scatterers(places, weights, np.full(count, 0.5 * pixel_size_angstrom))
