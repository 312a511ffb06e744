"""A specimen: molecules, membranes, gold and films in a slab of ice.

What each field of the truth means
----------------------------------
==================  ===================================================================================
particles           one row a molecule, in solution and in membranes: xyz of the reference's origin from
                    the specimen's centre, and rot, tilt, psi that turn the reference into place;
                    `extra["vglSpecies"]` is the species' name, `extra["vglVesicle"]` the row of its
                    vesicle or -1
species             the bodies the rows refer to; `render_volume` of one is the exact reference
vesicles_angstrom   (n, 4) xyz of the centre and radius of the mid-surface, between the two leaflets
beads_angstrom      (n, 4) xyz of the centre and radius of the gold beads
membranes           the Gaussians of all leaflets, in the specimen frame
films               Gaussians that radiation does not change (grain), in the specimen frame
absorbers           gold and carbon: they shift the phase and take electrons away
==================  ===================================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from verglas.algo.simulation.membranes import LEAFLET_DISTANCE_ANGSTROM, make_vesicle
from verglas.algo.simulation.orientations import angles_along, random_angles
from verglas.algo.simulation.placement import place_balls
from verglas.algo.simulation.scatterers import (
    FloatArray,
    Scatterers,
    join_scatterers,
    move_scatterers,
)
from verglas.algo.simulation.supports import Absorber, make_gold
from verglas.errors import UserError
from verglas.model import Particles

_NOTHING = Scatterers(np.empty((0, 3)), np.empty(0), np.empty(0))


@dataclass(frozen=True, eq=False)
class Species:
    """One kind of molecule: a name and a body centred on its own origin."""

    name: str
    scatterers: Scatterers


@dataclass(frozen=True, eq=False)
class Population:
    """How many of a species, and whether they sit in membranes with their z axis along the outward normal."""

    species: Species
    count: int
    in_membrane: bool = False


@dataclass(frozen=True, eq=False)
class Specimen:
    """Everything in the slab, known exactly; the module's table says what each field means.

    Parameters
    ----------
    name
        Names the tilt series or micrograph, and fills the particles' `tomogram_names`.
    extent_angstrom
        Sides along x, y and z; z is the thickness of the ice, normal to the slab.
    """

    name: str
    extent_angstrom: tuple[float, float, float]
    species: tuple[Species, ...]
    particles: Particles
    membranes: Scatterers = _NOTHING
    vesicles_angstrom: FloatArray = field(default_factory=lambda: np.empty((0, 4)))
    absorbers: tuple[Absorber, ...] = ()
    beads_angstrom: FloatArray = field(default_factory=lambda: np.empty((0, 4)))
    films: tuple[Scatterers, ...] = ()

    def rows_of(self, species: Species) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Rows of `particles` that are of this species."""
        return np.flatnonzero(self.particles.extra["vglSpecies"].to_numpy() == species.name)


_Placed = tuple[Population, FloatArray, FloatArray, FloatArray]
"""A population, its places and angles, and the vesicle of each or -1."""


def build_specimen(
    name: str,
    extent_angstrom: tuple[float, float, float],
    populations: Sequence[Population],
    *,
    seed: int,
    vesicle_radii_angstrom: Sequence[float] = (),
    bead_count: int = 0,
    bead_diameter_angstrom: float = 100.0,
    grain_angstrom: float = 10.0,
) -> Specimen:
    """Fill a slab at random without overlap.

    Vesicles are placed first, then gold, then membrane proteins, then the molecules in solution, each kept
    apart by the balls that hold the bodies to two standard deviations.

    Parameters
    ----------
    name
        Name of the specimen.
    extent_angstrom
        Sides along x, y, z (the thickness). Tilted views look further in x than the image is wide.
    populations
        What to place.
    seed
        Chooses all places and angles.
    vesicle_radii_angstrom
        Radius of the mid-surface of each vesicle.
    bead_count, bead_diameter_angstrom
        Gold beads.
    grain_angstrom
        Distance of the Gaussians of membranes and gold: about the pixel size of the images.

    Raises
    ------
    UserError
        When the contents do not fit, a count is negative, a name comes twice, or membrane proteins have no
        vesicle.
    """
    _check_populations(populations, vesicle_radii_angstrom)
    rng = np.random.default_rng([seed, 1])
    half = LEAFLET_DISTANCE_ANGSTROM / 2 + 8.0
    radii = np.asarray(vesicle_radii_angstrom, dtype=np.float64)
    centres = place_balls(radii + half, extent_angstrom, rng)
    vesicles = np.column_stack([centres, radii])
    shells = np.column_stack([centres, radii - half, radii + half])
    beads = np.full((bead_count, 4), bead_diameter_angstrom / 2)
    beads[:, :3] = place_balls(beads[:, 3], extent_angstrom, rng, shells=shells)
    tables = _place_molecules(populations, extent_angstrom, vesicles, shells, beads, rng)
    leaflets = [
        move_scatterers(make_vesicle(radius, grain_angstrom), translation_angstrom=centre)
        for centre, radius in zip(centres, radii, strict=True)
    ]
    return Specimen(
        name=name,
        extent_angstrom=extent_angstrom,
        species=tuple(population.species for population in populations),
        particles=_make_particles(name, tables),
        membranes=join_scatterers(leaflets),
        vesicles_angstrom=vesicles,
        absorbers=(make_gold(beads, grain_angstrom),) if bead_count else (),
        beads_angstrom=beads,
    )


def add_absorber(specimen: Specimen, absorber: Absorber) -> Specimen:
    """Return the specimen with one more thing that absorbs, such as a carbon film."""
    return replace(specimen, absorbers=(*specimen.absorbers, absorber))


def arrange_copies(
    name: str,
    species: Species,
    positions_angstrom: FloatArray,
    angles_deg: FloatArray,
    thickness_angstrom: float = 0.0,
) -> Specimen:
    """Put copies of one species at given places and angles.

    Parameters
    ----------
    name
        Name of the specimen.
    species
        The body.
    positions_angstrom, angles_deg
        `(n, 3)` xyz from the centre, and rot, tilt, psi.
    thickness_angstrom
        Of the ice around them; without ice nothing is lost to it.
    """
    table = (Population(species, len(positions_angstrom)), positions_angstrom, angles_deg)
    owners = np.full(len(positions_angstrom), -1.0)
    particles = _make_particles(name, [(*table, owners)])
    return Specimen(name, (0.0, 0.0, thickness_angstrom), (species,), particles)


def _check_populations(populations: Sequence[Population], vesicles: Sequence[float]) -> None:
    names = [population.species.name for population in populations]
    if len(set(names)) < len(names):
        raise UserError(f"`populations` must have different names; got {names}")
    for population in populations:
        if population.count < 0:
            raise UserError(
                f"the count of {population.species.name!r} must not be negative; got {population.count}"
            )
        if population.in_membrane and population.count and not len(vesicles):
            raise UserError(f"{population.species.name!r} sits in membranes; expected at least one vesicle")


def _place_molecules(
    populations: Sequence[Population],
    extent: tuple[float, float, float],
    vesicles: FloatArray,
    shells: FloatArray,
    beads: FloatArray,
    rng: np.random.Generator,
) -> list[_Placed]:
    """Place membrane proteins, then the molecules in solution."""
    balls = beads
    tables: list[_Placed] = []
    for population in populations:
        if population.in_membrane:
            radius = population.species.scatterers.radius_angstrom
            places, owners = _place_in_membranes(
                population.count, radius, vesicles, shells, balls, extent[2], rng
            )
            angles = angles_along(places - vesicles[owners, :3], rng)
            tables.append((population, places, angles, owners.astype(np.float64)))
            balls = np.vstack([balls, np.column_stack([places, np.full(len(places), radius)])])
    free = [population for population in populations if not population.in_membrane]
    sizes = np.repeat([p.species.scatterers.radius_angstrom for p in free], [p.count for p in free])
    places = place_balls(sizes, extent, rng, obstacles=balls, shells=shells)
    stops = np.cumsum([0, *(p.count for p in free)])
    for population, start, stop in zip(free, stops[:-1], stops[1:], strict=True):
        angles = random_angles(population.count, rng)
        tables.append((population, places[start:stop], angles, np.full(population.count, -1.0)))
    return tables


def _place_in_membranes(
    count: int,
    radius: float,
    vesicles: FloatArray,
    shells: FloatArray,
    balls: FloatArray,
    thickness: float,
    rng: np.random.Generator,
) -> tuple[FloatArray, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Places on the mid-surfaces, by area, free of balls, other vesicles and the faces of the slab."""
    taken = balls
    places = np.empty((count, 3))
    owners = np.empty(count, dtype=np.intp)
    area = vesicles[:, 3] ** 2 / (vesicles[:, 3] ** 2).sum() if count else np.empty(0)
    for i in range(count):
        for _ in range(2000):
            owner = int(rng.choice(len(vesicles), p=area))
            direction = rng.normal(size=3)
            place = vesicles[owner, :3] + direction / np.linalg.norm(direction) * vesicles[owner, 3]
            gap = np.linalg.norm(taken[:, :3] - place, axis=1) - taken[:, 3]
            others = np.delete(shells, owner, axis=0)
            distance = np.linalg.norm(others[:, :3] - place, axis=1)
            touches = (others[:, 3] - radius < distance) & (distance < others[:, 4] + radius)
            if (
                gap.min(initial=np.inf) >= radius
                and not touches.any()
                and abs(place[2]) + radius <= thickness / 2
            ):
                break
        else:
            raise UserError(
                f"only {i} of {count} membrane proteins found a place; expected fewer or larger vesicles"
            )
        places[i], owners[i] = place, owner
        taken = np.vstack([taken, [*place, radius]])
    return places, owners


def _make_particles(name: str, tables: Sequence[_Placed]) -> Particles:
    count = sum(len(places) for _, places, _, _ in tables)
    nothing = np.empty((0, 3))
    species = np.repeat([t[0].species.name for t in tables], [len(t[1]) for t in tables]).astype(object)
    return Particles(
        tomogram_names=np.full(count, name),
        positions_angstrom=np.concatenate([nothing, *(t[1] for t in tables)]),
        angles_deg=np.concatenate([nothing, *(t[2] for t in tables)]),
        half_set=np.zeros(count, dtype=np.int64),
        score=np.full(count, np.nan),
        extra=pd.DataFrame(
            {
                "vglSpecies": species,
                "vglVesicle": np.concatenate([np.empty(0), *(t[3] for t in tables)]).astype(np.int64),
            }
        ),
    )
