"""What lies beside the field of view: tilted views see it, and the truth does not list it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from verglas.algo.simulation.membranes import LEAFLET_DISTANCE_ANGSTROM
from verglas.algo.simulation.orientations import random_angles
from verglas.algo.simulation.placement import place_balls
from verglas.algo.simulation.scatterers import FloatArray
from verglas.algo.simulation.specimen import Population, Specimen
from verglas.algo.simulation.supports import make_gold
from verglas.errors import UserError
from verglas.model import Particles, TiltSeries, join_particles


def visible_extent(
    series: TiltSeries, field_angstrom: tuple[float, float], thickness_angstrom: float
) -> tuple[float, float, float]:
    """Sides of the slab, along x, y and z, that any view of a series sees a part of; Å.

    Parameters
    ----------
    series
        The geometry.
    field_angstrom
        Sides along x and y that the slab has at least.
    thickness_angstrom
        Of the slab.
    """
    height, width = (size * series.pixel_size_angstrom for size in series.image_shape)
    reach = 2 * np.hypot(series.x_shift_angstrom, series.y_shift_angstrom)
    axis, lean = np.deg2rad(series.z_rot_deg), np.deg2rad(series.x_tilt_deg)
    tilt = np.deg2rad(np.asarray(series.y_tilt_deg))
    # The image's sides along and across the tilt axis. A point of the slab lies at y cos(lean) - z sin(lean) along
    # it, and at x cos(tilt) + (y sin(lean) + z cos(lean)) sin(tilt) across; both are solved for y and x.
    along = width * abs(np.sin(axis)) + height * abs(np.cos(axis)) + reach
    across = width * abs(np.cos(axis)) + height * abs(np.sin(axis)) + reach
    y = (along + thickness_angstrom * abs(np.sin(lean))) / np.cos(lean)
    depth = y * abs(np.sin(lean)) + thickness_angstrom * np.cos(lean)
    x = (across + depth * abs(np.sin(tilt))) / np.cos(tilt)
    return max(float(x.max()), field_angstrom[0]), max(float(y.max()), field_angstrom[1]), thickness_angstrom


def surround_specimen(
    specimen: Specimen,
    populations: Sequence[Population],
    extent_angstrom: tuple[float, float, float],
    *,
    seed: int,
    bead_count: int = 0,
    bead_diameter_angstrom: float = 100.0,
    grain_angstrom: float = 10.0,
) -> Specimen:
    """Continue a slab beyond its sides with molecules and gold as dense as within.

    The molecules of the specimen stay the first rows of the result's particles, and its beads the first beads.

    Parameters
    ----------
    specimen
        The field of view.
    populations
        Molecules in solution that it holds, with the counts it holds.
    extent_angstrom
        Sides of the whole slab.
    seed
        Chooses the places and angles.
    bead_count, bead_diameter_angstrom, grain_angstrom
        Gold as in the specimen.

    Raises
    ------
    UserError
        When the slab is smaller than the specimen, or its contents do not fit.
    """
    inner = specimen.extent_angstrom
    if any(whole < part - 1e-6 for whole, part in zip(extent_angstrom, inner, strict=True)):
        raise UserError(
            f"`extent_angstrom` must be at least that of the specimen, {inner}; got {extent_angstrom}"
        )
    rng = np.random.default_rng([seed, 10])
    share = extent_angstrom[0] * extent_angstrom[1] / (inner[0] * inner[1])
    vesicles = specimen.vesicles_angstrom
    half = LEAFLET_DISTANCE_ANGSTROM / 2 + 8.0
    shells = np.column_stack([vesicles[:, :3], vesicles[:, 3] - half, vesicles[:, 3] + half])
    radius = {species.name: species.scatterers.radius_angstrom for species in specimen.species}
    names = specimen.particles.extra["vglSpecies"]
    taken = np.vstack(
        [
            specimen.beads_angstrom,
            np.column_stack([specimen.particles.positions_angstrom, [radius[name] for name in names]]),
        ]
    )
    counts = [math.ceil(bead_count * share), *(math.ceil(p.count * share) for p in populations)]
    radii = np.repeat([bead_diameter_angstrom / 2, *(radius[p.species.name] for p in populations)], counts)
    kinds = np.repeat(np.arange(len(counts)), counts)
    places = place_balls(radii, extent_angstrom, rng, obstacles=taken, shells=shells)
    outside = (np.abs(places[:, :2]) > np.array(inner[:2]) / 2).any(axis=1)
    places, kinds = places[outside], kinds[outside]
    gold = places[kinds == 0]
    beads = np.vstack(
        [specimen.beads_angstrom, np.column_stack([gold, np.full(len(gold), bead_diameter_angstrom / 2)])]
    )
    molecules = [specimen.particles]
    for kind, population in enumerate(populations, start=1):
        found = places[kinds == kind]
        molecules.append(_make_molecules(specimen.name, population, found, random_angles(len(found), rng)))
    return replace(
        specimen,
        extent_angstrom=extent_angstrom,
        particles=join_particles(molecules),
        absorbers=(make_gold(beads, grain_angstrom),) if len(beads) else (),
        beads_angstrom=beads,
    )


def _make_molecules(name: str, population: Population, places: FloatArray, angles: FloatArray) -> Particles:
    count = len(places)
    return Particles(
        tomogram_names=np.full(count, name),
        positions_angstrom=places,
        angles_deg=angles,
        half_set=np.zeros(count, dtype=np.int64),
        score=np.full(count, np.nan),
        extra=pd.DataFrame(
            {
                "vglSpecies": np.full(count, population.species.name, dtype=object),
                "vglVesicle": np.full(count, -1, dtype=np.int64),
            }
        ),
    )
