"""Ribosomes of which some lack a part, in simulated tilt series, their poses off as a first alignment leaves them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from verglas.algo.simulation.phantoms import make_demo_ribosome
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Population, Species, build_specimen
from verglas.algo.simulation.surroundings import surround_specimen, visible_extent
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.benchmarks.cases import disturb_particles
from verglas.io.mrc import create_mrc
from verglas.io.relion_particles import write_particles
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import ImageReference, Optics, Particles, TiltSeries, join_particles

RADIUS_ANGSTROM = 140.0
_MARGIN_ANGSTROM = 150.0


@dataclass(frozen=True)
class Mixture:
    """What is simulated.

    Parameters
    ----------
    lacking
        `small subunit`, `stalk` or `nothing`: what half of the molecules lack.
    series, copies
        Series, and molecules of each kind in each.
    side, pixel_size_angstrom
        Of the images.
    thickness_angstrom
        Of the ice.
    tilt_step_deg
        Between views, of 1 e/Å² a degree.
    turn_deg, shift_angstrom
        Standard deviations by which poses are off, about each axis and along each.
    """

    lacking: str
    series: int = 2
    copies: int = 40
    side: int = 256
    pixel_size_angstrom: float = 10.0
    thickness_angstrom: float = 1200.0
    tilt_step_deg: float = 3.0
    turn_deg: float = 4.0
    shift_angstrom: float = 6.0


def write_mixture(folder: Path, mixture: Mixture) -> Particles:
    """Write `tilt_series.star` and `particles.star`; `vglSpecies` of the particles is `whole` or `part`."""
    whole = make_demo_ribosome()
    species = (Species("whole", whole), Species("part", _remove(whole, mixture.lacking)))
    made = [_make_series(folder, number, species, mixture) for number in range(1, mixture.series + 1)]
    series = [one for one, _ in made]
    write_tilt_series(folder, series)
    true = join_particles([table for _, table in made])
    particles = disturb_particles(true, mixture.turn_deg, mixture.shift_angstrom)
    write_particles(folder / "particles.star", particles, {one.name: one for one in series})
    return particles


def _remove(whole: Scatterers, lacking: str) -> Scatterers:
    x, y, _ = whole.positions_angstrom.T
    kept = {"small subunit": x > -22, "stalk": y <= 75, "nothing": np.full(len(whole), True)}[lacking]
    return Scatterers(whole.positions_angstrom[kept], whole.weights_v_a3[kept], whole.sigmas_angstrom[kept])


def _make_series(
    folder: Path, number: int, species: tuple[Species, Species], mixture: Mixture
) -> tuple[TiltSeries, Particles]:
    name, side = f"mix_{number}", mixture.side
    tilts = np.arange(-60.0, 60.1, mixture.tilt_step_deg)
    order = np.argsort(np.argsort(np.abs(tilts), kind="stable"))
    series = TiltSeries(
        name=name,
        optics=Optics(mixture.pixel_size_angstrom),
        image_shape=(side, side),
        images=tuple(ImageReference(folder / f"{name}.mrc", row) for row in range(len(tilts))),
        nominal_tilt_deg=tilts,
        y_tilt_deg=tilts,
        exposure_e_per_a2=np.full(len(tilts), mixture.tilt_step_deg),
        pre_exposure_e_per_a2=np.asarray(order * mixture.tilt_step_deg, dtype=float),
        defocus_u_angstrom=np.full(len(tilts), 27000.0 + 3000 * number),
        defocus_v_angstrom=np.full(len(tilts), 27000.0 + 3000 * number),
    )
    extent = side * mixture.pixel_size_angstrom
    population = [Population(one, mixture.copies) for one in species]
    inner = build_specimen(
        name,
        (extent, extent, mixture.thickness_angstrom),
        population,
        seed=number,
        vesicle_radii_angstrom=[],
        bead_count=0,
    )
    reach = visible_extent(series, (extent, extent), mixture.thickness_angstrom)
    specimen = surround_specimen(inner, population, reach, seed=number, bead_count=0)
    images = simulate_tilt_series(specimen, series, conditions=Conditions(ice_noise=True), seed=number)
    with create_mrc(
        folder / f"{name}.mrc", images.shape, voxel_size_angstrom=mixture.pixel_size_angstrom, is_stack=True
    ) as writer:
        writer.write(images)
    table = inner.particles
    within = np.abs(table.positions_angstrom[:, :2]).max(axis=1) < extent / 2 - _MARGIN_ANGSTROM
    table = table.take(within)
    return series, replace(table, half_set=1 + np.arange(len(table)) % 2)
