"""`simulate`: tilt series with known truth.

What the job folder holds
-------------------------
=================================  =================================================================
`stacks/<name>.mrc`                electrons per pixel in each view, sorted by tilt angle
`tilt_series.star`                 what the microscope knows: stage angles, nominal axis and defocus
`truth/tilt_series.star`           the geometry and defocus that the images really have
`truth/particles.star`             place and angles of every molecule in the field of view
`truth/volumes/<name>.mrc`         potential above that of ice in V, so matter is positive; the images
                                   have it dark
`truth/references/<species>.mrc`   the same of one molecule in the frame that the angles refer to
`truth/specimens/<name>.json`      centres and radii of the vesicles and gold beads, xyz in Å
=================================  =================================================================
"""

import json
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_name, write_text
from verglas.model import ImageReference, Optics, TiltSeries, join_particles
from verglas.steps.sections import SLAB_ANGSTROM
from verglas.steps.series_results import PROCESS_BYTES, describe_series, draw_series
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.simulation.specimen import Population, Species, Specimen
    from verglas.algo.simulation.tilt_scheme import Misalignment, TiltScheme

FloatArray = npt.NDArray[np.float32]


class SimulateParams(Params):
    """Simulate tilt series of molecules, vesicles and gold in ice, with the truth beside them.

    The tables in the folder say what a microscope would know; those in its folder `truth` say what is true.
    """

    name: Annotated[str, Field(description="of the series, which get _01, _02 and so on behind it")] = "TS"
    count: Annotated[int, Field(ge=1, le=9999, description="number of series")] = 1
    seed: Annotated[int, Field(ge=0, description="chooses everything that is random")] = 0
    image_size: Annotated[
        tuple[int, int], Field(description="width and height of the images in pixels, 32 or more each")
    ] = (512, 512)
    pixel_size: Annotated[float, Field(gt=0, le=100, description="of the images in Å")] = 10.0
    thickness: Annotated[float, Field(gt=0, description="of the ice in Å")] = 1500.0
    max_tilt: Annotated[float, Field(ge=0, le=75, description="highest tilt in degrees, to both sides")] = (
        60.0
    )
    tilt_step: Annotated[float, Field(gt=0, le=90, description="between views, in degrees")] = 3.0
    exposure: Annotated[float, Field(gt=0, description="of each view in e/Å²")] = 3.0
    defocus: Annotated[float, Field(description="in Å, positive for underfocus")] = 30000.0
    defocus_spread: Annotated[
        float, Field(ge=0, description="by how much series differ in defocus from that, up or down, in Å")
    ] = 0.0
    axis_angle: Annotated[float, Field(description="of the tilt axis in the images, in degrees")] = 85.0
    misalignment: Annotated[
        float,
        Field(
            ge=0,
            le=5,
            description="how far the truth departs from what the microscope knows; at 1 the specimen wanders by "
            "some 100 Å, the axis is off by 1 and the slab by 1.5 degrees, defoci by 500 Å; 0 is a perfect stage",
        ),
    ] = 1.0
    model: Annotated[
        Path | None,
        Field(
            description="atoms of the molecules, .pdb or .cif, also .gz; a made-up ribosome when not given"
        ),
    ] = None
    copies: Annotated[int, Field(ge=0, description="molecules in the field of view")] = 60
    vesicles: Annotated[int, Field(ge=0, description="in the field of view")] = 1
    vesicle_radius: Annotated[float, Field(gt=37, description="of the middle of the membrane, in Å")] = 400.0
    gold: Annotated[int, Field(ge=0, description="beads in the field of view")] = 12
    gold_diameter: Annotated[float, Field(gt=0, description="of the beads in Å")] = 100.0
    carbon_edge: Annotated[
        float | None,
        Field(
            description="lay a carbon film under the ice, from this x of the specimen on, in Å from the middle; no "
            "film when not given"
        ),
    ] = None
    noise: Annotated[
        bool, Field(description="count electrons and show the structure of the ice; else expected counts")
    ] = True
    truth_voxel_size: Annotated[
        float | None, Field(gt=0, description="of the true volumes in Å; that of the images when not given")
    ] = None


def list_items(params: SimulateParams) -> list[Item]:
    """One item a tilt series, with a seed of its own."""
    if min(params.image_size) < 32 or max(params.image_size) > 16384:
        raise UserError(f"`image_size` must be 32 to 16384 pixels each way; got {params.image_size}")
    if np.prod(truth_shape(params), dtype=float) > _MOST_VOXELS:
        raise UserError(
            f"the true volume would have {truth_shape(params)} voxels; expected at most {_MOST_VOXELS:.0e}: choose a "
            "larger `truth_voxel_size`"
        )
    check_name(params.name)
    width = max(2, len(str(params.count)))
    names = [f"{params.name}_{number:0{width}d}" for number in range(1, params.count + 1)]
    inputs = (params.model,) if params.model else ()
    return [Item(name, _seed_of(name, params), inputs) for name in names]


def run_item(item: Item, params: SimulateParams, context: Context) -> ItemResult:
    """Simulate one series, and write it with its truth."""
    from verglas.io.mrc import write_mrc
    from verglas.io.relion_particles import write_particles
    from verglas.io.relion_tilt_series import write_one_tilt_series

    name = item.name
    stack = f"stacks/{name}.mrc"
    made = make_series(name, params, context.folder / stack, workers=context.threads)
    write_mrc(context.folder / stack, made.images, voxel_size_angstrom=params.pixel_size, is_stack=True)
    tables = [f"tilt_series/{name}.star", f"truth/tilt_series/{name}.star", f"truth/particles/{name}.star"]
    write_one_tilt_series(context.folder / tables[0], made.scheme.nominal)
    write_one_tilt_series(context.folder / tables[1], made.scheme.truth)
    write_particles(context.folder / tables[2], made.field.particles, {name: made.scheme.truth})
    about = f"truth/specimens/{name}.json"
    write_text(context.folder / about, json.dumps(_describe_specimen(made.field), indent=1) + "\n")
    volume = f"truth/volumes/{name}.mrc"
    write_mrc(
        context.folder / volume, made.density, voxel_size_angstrom=made.voxel_size_angstrom, label=_LABEL
    )
    figures = draw_series(made.scheme.truth, context.folder)
    figures["truth"] = _draw_truth(made, context.folder)
    values = describe_series(made.scheme.truth) | {
        "copies": len(made.field.particles),
        "vesicles": len(made.field.vesicles_angstrom),
        "beads": len(made.field.beads_angstrom),
        "electrons_per_pixel": round(float(made.images.mean(dtype=np.float64)), 2),
    }
    return ItemResult((stack, *tables, about, volume, *figures.values()), values)


def summarise(results: dict[str, ItemResult], params: SimulateParams, folder: Path) -> Summary:
    """Write the indices of the series, the table of all particles and the references."""
    from verglas.io.relion_particles import read_particles, write_particles
    from verglas.io.relion_tilt_series import read_one_tilt_series, write_tilt_series_index

    series: dict[str, TiltSeries] = {}
    for table in ("tilt_series", "truth/tilt_series"):
        stars = {name: folder / table / f"{name}.star" for name in results}
        series = {name: read_one_tilt_series(star) for name, star in stars.items()}
        entries = [(series[name], star) for name, star in stars.items()]
        write_tilt_series_index(folder / f"{table}.star", entries)
    particles = join_particles([read_particles(folder / f"truth/particles/{name}.star") for name in results])
    write_particles(folder / "truth/particles.star", particles, series)
    references = _write_references(params, folder)
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in _CAPTIONS.items()
    ]
    found = [result.values for result in results.values()]
    drawn = {
        "tilt series": Value(len(results), "", "each with a truth of its own"),
        "views": Value(sum(value["views"] for value in found), "", "in all series together"),
        "pixel size": Value(params.pixel_size, "Å", "side of a pixel of the images"),
        "molecules": Value(len(particles), "", "in the fields of view, listed in truth/particles.star"),
        "gold beads": Value(sum(value["beads"] for value in found), "", "in the fields of view"),
        "exposure": Value(round(found[0]["exposure_e_per_a2"], 1), "e/Å²", "of a whole series"),
        "largest shift": Value(
            round(max(value["largest_shift_angstrom"] for value in found), 1),
            "Å",
            "of the specimen's centre in a view, which the microscope does not know",
        ),
    }
    tables = ["tilt_series.star", "truth/tilt_series.star", "truth/particles.star", *references]
    return Summary(figures, drawn, [], tables)


_CAPTIONS = {
    "truth": f"the specimen across the beam (above) and along it (below): central sections {SLAB_ANGSTROM:.0f} Å "
    "thick, and all of it; smoothed to 60 Å, with matter dark as in a tomogram",
    "views": "the views at both ends and in the middle of the tilt range, smoothed to 60 Å",
    "geometry": "the true geometry and defocus; what the microscope knows has no shifts and one defocus",
}


def estimate(items: list[Item], params: SimulateParams) -> Estimate:
    """From the numbers of pixels and of Gaussians, and rates measured on one core."""
    from verglas.algo.simulation.surroundings import visible_extent

    width, height = params.image_size
    scheme = plan_series("estimate", 0, params, Path("estimate.mrc"))
    extent = visible_extent(scheme.truth, _field_of(params)[:2], params.thickness)
    views = len(scheme.truth)
    share = extent[0] * extent[1] / (width * height * params.pixel_size**2)
    gaussians = params.copies * share * (5000 if params.model is None else 10000)
    voxels = int(np.prod(truth_shape(params)))
    seconds = views * (gaussians * _SECONDS_A_GAUSSIAN + width * height * _SECONDS_A_PIXEL) + voxels / 5e7
    disk = 4 * (views * width * height + voxels)
    memory = PROCESS_BYTES + 4 * views * width * height + 3 * 4 * voxels + (600 << 20)
    return Estimate(memory, disk * len(items), (seconds + 3.0) * len(items))


_SECONDS_A_GAUSSIAN = 2.5e-7
_SECONDS_A_PIXEL = 1e-6
_MOST_VOXELS = 4 * 10**9
_LABEL = "verglas: potential in V"


@dataclass(frozen=True, eq=False)
class MadeSeries:
    """A series in memory.

    Parameters
    ----------
    scheme
        The nominal and the true record.
    field
        What is in the field of view, with every place and angle.
    images
        `(n, y, x)` electrons per pixel.
    density
        `(z, y, x)` potential above that of ice, V.
    voxel_size_angstrom
        Side of a voxel of the density, Å.
    """

    scheme: "TiltScheme"
    field: "Specimen"
    images: FloatArray
    density: FloatArray
    voxel_size_angstrom: float


def make_series(name: str, params: SimulateParams, stack: Path, *, workers: int | None = None) -> MadeSeries:
    """Simulate one series, whose records say that its images are in `stack`, on `workers` threads."""
    from verglas.algo.simulation.tilt_series import simulate_tilt_series
    from verglas.algo.simulation.truth import render_specimen
    from verglas.algo.simulation.views import Conditions

    seed = _seed_of(name, params)
    scheme = plan_series(name, seed, params, stack)
    field, whole = build_scene(name, seed, params, scheme.truth)
    conditions = Conditions(noise=params.noise, ice_noise=params.noise)
    images = simulate_tilt_series(whole, scheme.truth, conditions=conditions, seed=seed, workers=workers)
    voxel = params.truth_voxel_size or params.pixel_size
    return MadeSeries(scheme, field, images, render_specimen(whole, truth_shape(params), voxel), voxel)


def _seed_of(name: str, params: SimulateParams) -> int:
    """Give a series a seed that does not depend on how many there are."""
    return zlib.crc32(f"{params.seed} {name}".encode())


def plan_series(name: str, seed: int, params: SimulateParams, stack: Path) -> "TiltScheme":
    """Make the nominal and the true record of a series whose images are in `stack`."""
    from verglas.algo.simulation.tilt_scheme import make_tilt_scheme

    width, height = params.image_size
    scheme = make_tilt_scheme(
        name,
        Optics(params.pixel_size, amplitude_contrast=0.07),
        (height, width),
        max_tilt_deg=params.max_tilt,
        step_deg=params.tilt_step,
        exposure_e_per_a2=params.exposure,
        defocus_angstrom=params.defocus + params.defocus_spread * np.random.default_rng(seed).uniform(-1, 1),
        axis_angle_deg=params.axis_angle,
        volume_shape=_volume_of(params),
        misalignment=_misalign(params.misalignment),
        seed=seed,
    )
    # A path that does not depend on where the user stands.
    path = stack.absolute()

    def place(series: TiltSeries) -> TiltSeries:
        return series.map_images(lambda image: ImageReference(path, image.section))

    return replace(scheme, nominal=place(scheme.nominal), truth=place(scheme.truth))


def build_scene(
    name: str, seed: int, params: SimulateParams, series: TiltSeries
) -> tuple["Specimen", "Specimen"]:
    """Fill the field of view, and continue it as far as the tilted views see.

    Returns
    -------
    field, whole
        The truth within the field of view, and what the views are made of.
    """
    from verglas.algo.simulation.specimen import add_absorber, build_specimen
    from verglas.algo.simulation.supports import make_carbon_edge
    from verglas.algo.simulation.surroundings import surround_specimen, visible_extent

    populations = _populate(params)
    gold: dict[str, Any] = {
        "bead_count": params.gold,
        "bead_diameter_angstrom": params.gold_diameter,
        "grain_angstrom": params.pixel_size,
    }
    extent = _field_of(params)
    radii = [params.vesicle_radius] * params.vesicles
    field = build_specimen(name, extent, populations, seed=seed, vesicle_radii_angstrom=radii, **gold)
    visible = visible_extent(series, extent[:2], params.thickness)
    whole = surround_specimen(field, populations, visible, seed=seed, **gold)
    if params.carbon_edge is None:
        return field, whole
    carbon = make_carbon_edge(
        visible, params.carbon_edge, seed=seed, grain_angstrom=max(20.0, 2 * params.pixel_size)
    )
    return add_absorber(field, carbon), add_absorber(whole, carbon)


def truth_shape(params: SimulateParams) -> tuple[int, int, int]:
    """`(z, y, x)` voxels of the true volumes, which are those of a tomogram of the same voxel size."""
    voxel = params.truth_voxel_size or params.pixel_size
    z, y, x = (max(1, round(size * params.pixel_size / voxel)) for size in _volume_of(params))
    return z, y, x


def _volume_of(params: SimulateParams) -> tuple[int, int, int]:
    """`(z, y, x)` of the field of view in pixels, with some room above and below the ice."""
    width, height = params.image_size
    # With the tilt axis along the images' x, the specimen's x is their y.
    if abs(math.sin(math.radians(params.axis_angle))) > math.sqrt(0.5):
        width, height = height, width
    return 2 * round(0.6 * params.thickness / params.pixel_size) or 2, height, width


def _field_of(params: SimulateParams) -> tuple[float, float, float]:
    """Sides of the field of view and thickness of the ice, xyz, Å."""
    _, height, width = _volume_of(params)
    return width * params.pixel_size, height * params.pixel_size, params.thickness


def _misalign(scale: float) -> "Misalignment":
    """Errors of a stage, times `scale`."""
    from verglas.algo.simulation.tilt_scheme import Misalignment

    return Misalignment(
        shift_angstrom=20 * scale,
        drift_angstrom=12 * scale,
        tilt_deg=0.1 * scale,
        tilt_offset_deg=1.5 * scale,
        axis_error_deg=1.0 * scale,
        x_tilt_deg=0.5 * scale,
        defocus_angstrom=500 * scale,
        astigmatism_angstrom=300 * scale,
        astigmatism_angle_deg=30.0,
    )


def _populate(params: SimulateParams) -> list["Population"]:
    from verglas.algo.simulation.specimen import Population

    return [Population(make_species(params), params.copies)] if params.copies else []


def make_species(params: SimulateParams) -> "Species":
    """Make the molecule in the frame that the angles refer to."""
    from verglas.algo.simulation.atoms import scatterers_from_atoms
    from verglas.algo.simulation.phantoms import make_demo_ribosome
    from verglas.algo.simulation.scatterers import centre_scatterers, coarsen_scatterers
    from verglas.algo.simulation.specimen import Species
    from verglas.io.atoms import read_atoms

    if params.model is None:
        return Species("ribosome", make_demo_ribosome())
    atoms = read_atoms(params.model)
    body = scatterers_from_atoms(
        atoms.positions_angstrom, atoms.atomic_numbers, atoms.b_factors_a2, atoms.occupancies
    )
    name = check_name(params.model.name.split(".")[0], "model")
    # Sampled at pixels, finer Gaussians are not told apart.
    return Species(name, centre_scatterers(coarsen_scatterers(body, params.pixel_size)))


def _write_references(params: SimulateParams, folder: Path) -> list[str]:
    """Write the density of each molecule in its own frame, in a box that holds it with room to spare."""
    from verglas.algo.simulation.render import render_volume
    from verglas.io.mrc import write_mrc

    voxel = params.truth_voxel_size or params.pixel_size
    paths = []
    for population in _populate(params):
        species = population.species
        box = 2 * round(1.25 * species.scatterers.radius_angstrom / voxel) + 2
        density = render_volume(species.scatterers, (box, box, box), voxel, sampling="average")
        paths.append(f"truth/references/{species.name}.mrc")
        write_mrc(folder / paths[-1], density, voxel_size_angstrom=voxel, label=_LABEL)
    return paths


def _describe_specimen(field: "Specimen") -> dict[str, Any]:
    def tabulate(balls: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
        return [
            {"centre_angstrom": np.round(ball[:3], 3).tolist(), "radius_angstrom": float(ball[3])}
            for ball in balls
        ]

    return {
        "extent_angstrom": list(field.extent_angstrom),
        "vesicles": tabulate(field.vesicles_angstrom),
        "beads": tabulate(field.beads_angstrom),
    }


def _draw_truth(made: MadeSeries, folder: Path) -> str:
    from verglas.figures.comparison import draw_side_by_side
    from verglas.steps.sections import cut_sections

    path, matter = f"figures/{made.field.name}_truth.png", -made.density
    xy, xz, _ = cut_sections(matter, made.voxel_size_angstrom)
    columns = [("central sections", xy, xz), ("all of it", matter.mean(axis=0), matter.mean(axis=1))]
    draw_side_by_side(columns, made.voxel_size_angstrom, folder / path)
    return path


SIMULATE_STEP = Step(
    name="simulate",
    params=SimulateParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
