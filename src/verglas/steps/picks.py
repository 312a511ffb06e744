"""`picks`: take over the picks of other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.files import check_exists, check_name
from verglas.model import Particles, Tomogram, join_particles
from verglas.steps.series_results import PIXEL_TOLERANCE, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import pandas as pd

FloatArray = npt.NDArray[np.float64]

_SUFFIXES = (".star", ".csv", ".txt", ".tbl", ".mod", ".cs")
_RING_ANGSTROM = 120.0


class PicksParams(Params):
    """Import picks of other programs: RELION, emClarity, Dynamo, IMOD and cryoSPARC."""

    model_config = ConfigDict(allow_inf_nan=False)

    tomograms: Annotated[Path, Field(description="`tomograms.star`")]
    picks: Annotated[
        tuple[Path, ...],
        Field(
            min_length=1,
            description="files: RELION's .star, emClarity's .csv, Dynamo's .tbl, IMOD's .mod, points as .txt, "
            "cryoSPARC's .cs",
        ),
    ]
    tomogram: Annotated[
        str | None,
        Field(description="that all picks are of; by the names in the files, or of them, when not given"),
    ] = None
    pixel_size: Annotated[
        float | None,
        Field(
            gt=0, description="of the pixels that a STAR file counts in, in Å; what it says when not given"
        ),
    ] = None


def list_items(params: PicksParams) -> list[Item]:
    """One item a file."""
    from verglas.io.relion_tomograms import read_tomograms

    tomograms = read_tomograms(params.tomograms)
    names = list(dict.fromkeys(one.name for one in tomograms))
    if params.tomogram is not None and params.tomogram not in names:
        raise UserError(
            f"there is no tomogram {params.tomogram!r} in {str(params.tomograms)!r}; expected one of "
            f"{', '.join(names)}"
        )
    items: dict[str, Item] = {}
    for path in params.picks:
        check_exists(path, "picks")
        if path.suffix.lower() not in _SUFFIXES:
            raise UserError(f"picks {str(path)!r} must be one of {', '.join(_SUFFIXES)}")
        name = check_name(path.stem, "picks")
        if name in items:
            raise UserError(f"files of picks must have different names; got {name!r} twice")
        items[name] = Item(name, (path, tuple(tomograms)), (path,))
    return list(items.values())


def run_item(item: Item, params: PicksParams, context: Context) -> ItemResult:
    """Read one file, and write and draw its picks."""
    from verglas.io.relion_particles import write_particles
    from verglas.io.relion_tilt_series import read_tilt_series

    path, tomograms = item.record
    particles, warnings = read_picks(path, tomograms, params)
    known = {one.name: one for one in tomograms}
    unknown = sorted(set(particles.tomogram_names.tolist()) - set(known))
    if unknown:
        raise UserError(
            f"{str(path)!r} has picks of {unknown[0]!r}, which {str(params.tomograms)!r} does not have; expected "
            f"one of {', '.join(known)}"
        )
    outside = _count_outside(particles, tomograms)
    if len(particles) and outside == len(particles):
        raise UserError(
            f"all {outside} picks of {str(path)!r} lie outside their tomograms; expected coordinates in their pixels"
        )
    if outside:
        warnings.append(f"{outside} of {len(particles)} picks of {path.name!r} lie outside their tomograms")
    table = f"particles/{item.name}.star"
    write_particles(context.folder / table, particles, read_tilt_series(params.tomograms))
    figure = _draw(item.name, particles, tomograms, context.folder)
    values = {"picks": len(particles), "outside": outside}
    return ItemResult((table, *([figure] if figure else [])), values, tuple(warnings))


def read_picks(
    path: Path, tomograms: tuple[Tomogram, ...], params: PicksParams
) -> tuple[Particles, list[str]]:
    """Read a file of any of the programs, by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".star":
        from verglas.io.relion_particles import read_particles

        frames = {one.name: one for one in tomograms if not one.region}
        return read_particles(path, frames, params.pixel_size), []
    if suffix == ".tbl":
        from verglas.io.dynamo import particles_from_dynamo, read_dynamo_table

        chosen = tomograms if params.tomogram is None else (_choose_tomogram(path, tomograms, params),)
        return particles_from_dynamo(read_dynamo_table(path), chosen), []
    if suffix == ".cs":
        return _read_cryosparc(path, tomograms, params)
    tomogram = _choose_tomogram(path, tomograms, params)
    if suffix == ".mod":
        return _read_model(path, tomogram), []
    if suffix == ".txt":
        from verglas.io.emclarity import read_points

        return _make_particles(tomogram, _to_angstrom(read_points(path) - _HALF_PIXEL, tomogram)), []
    return _read_motives(path, tomogram, params), []


# IMOD's pixel i is centred at i + 0.5 in x and y.
_HALF_PIXEL = np.array([0.5, 0.5, 0.0])


def _choose_tomogram(path: Path, tomograms: tuple[Tomogram, ...], params: PicksParams) -> Tomogram:
    """Find the tomogram that a file without names is of."""
    if params.tomogram is not None:
        return next(one for one in tomograms if one.name == params.tomogram)
    if len(tomograms) == 1:
        return tomograms[0]
    fitting = [one for one in tomograms if path.stem.startswith(one.name)]
    if not fitting:
        raise UserError(
            f"{str(path)!r} does not say which tomogram its picks are of; expected a file named after it, or "
            "`tomogram`"
        )
    return max(fitting, key=lambda one: len(one.name))


def _read_model(path: Path, tomogram: Tomogram) -> Particles:
    from verglas.io.imod_model import list_points, read_imod_model

    model = read_imod_model(path)
    points, _ = list_points(model)
    ratios = np.array(tomogram.shape[::-1]) / np.array(model.image_size)
    if np.ptp(ratios) > 2 * PIXEL_TOLERANCE * ratios.mean():
        raise UserError(
            f"model {str(path)!r} was drawn on an image of (x, y, z) = {model.image_size}; expected the shape of "
            f"tomogram {tomogram.name!r}, {tomogram.shape[::-1]}, or one in proportion"
        )
    return _make_particles(
        tomogram, _to_angstrom((points.astype(float) - _HALF_PIXEL) * float(ratios.mean()), tomogram)
    )


def _read_motives(path: Path, tomogram: Tomogram, params: PicksParams) -> Particles:
    from verglas.io.emclarity_motives import particles_from_emclarity, read_motives
    from verglas.io.relion_tilt_series import read_tilt_series

    pixel = read_tilt_series(params.tomograms)[tomogram.name].pixel_size_angstrom
    return particles_from_emclarity(
        read_motives(path),
        emclarity_geometry(tomogram, pixel),
        pixel_size_angstrom=pixel,
        tomogram_name=tomogram.name,
    )


def emclarity_geometry(tomogram: Tomogram, pixel_size_angstrom: float) -> FloatArray:
    """Tell size and origin of a tomogram as emClarity counts those of a sub-region, `(2, 3)` unbinned pixels."""
    size = np.array(tomogram.shape[::-1]) * tomogram.voxel_size_angstrom / pixel_size_angstrom
    return np.array([np.rint(size), np.array(tomogram.centre_angstrom) / pixel_size_angstrom])


def _read_cryosparc(
    path: Path, tomograms: tuple[Tomogram, ...], params: PicksParams
) -> tuple[Particles, list[str]]:
    """Read picks in images: their places in x and y, at the height of the tomogram's centre."""
    from verglas.io.cryosparc import particles_from_cs, read_cs

    records = read_cs(path)
    table = particles_from_cs(records)
    labels = ("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")
    missing = [label for label in labels if label not in table]
    if missing:
        raise UserError(
            f"{str(path)!r} holds no places of particles in micrographs; expected `location` fields"
        )
    stems = [Path(str(name)).stem for name in table["rlnMicrographName"]]
    owners = {stem: _find_owner(stem, path, tomograms, params) for stem in dict.fromkeys(stems)}
    chosen = [owners[stem] for stem in stems]
    # Places are shares of the image's width and height, whatever its binning.
    shape = records["location/micrograph_shape"].astype(float)[:, ::-1]
    shares = table[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(dtype=float) / shape
    sizes = np.array([one.shape[:0:-1] for one in chosen], dtype=float).reshape(-1, 2)
    voxels = np.array([one.voxel_size_angstrom for one in chosen])[:, None]
    centres = np.array([one.centre_angstrom for one in chosen]).reshape(-1, 3)
    places = centres.copy()
    places[:, :2] += (shares * sizes - sizes // 2) * voxels
    particles = _make_particles(None, places, [one.name for one in chosen], table)
    return particles, [f"picks of {path.name!r} have no height and lie at that of the tomogram's centre"]


def _find_owner(stem: str, path: Path, tomograms: tuple[Tomogram, ...], params: PicksParams) -> Tomogram:
    named = [one for one in tomograms if one.name in stem]
    return max(named, key=lambda one: len(one.name)) if named else _choose_tomogram(path, tomograms, params)


def _make_particles(
    tomogram: Tomogram | None,
    places: FloatArray,
    names: list[str] | None = None,
    table: "pd.DataFrame | None" = None,
) -> Particles:
    """Particles at places in Å, with what a table in RELION's labels says of their poses."""
    import pandas as pd

    def column(label: str) -> Any:
        return np.zeros(len(places)) if table is None or label not in table else table[label].to_numpy()

    return Particles(
        tomogram_names=np.array(names if tomogram is None else [tomogram.name] * len(places), dtype=np.str_),
        positions_angstrom=places,
        angles_deg=np.stack([column(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1),
        half_set=column("rlnRandomSubset").astype(np.int64),
        score=np.full(len(places), np.nan),
        extra=pd.DataFrame(),
    )


def _to_angstrom(voxels: FloatArray, tomogram: Tomogram) -> FloatArray:
    """Turn `(n, 3)` xyz voxels, from 0, into places in the specimen."""
    middle = np.array([n // 2 for n in reversed(tomogram.shape)])
    return np.asarray((voxels - middle) * tomogram.voxel_size_angstrom + np.array(tomogram.centre_angstrom))


def _count_outside(particles: Particles, tomograms: tuple[Tomogram, ...]) -> int:
    inside = np.zeros(len(particles), dtype=bool)
    for one in tomograms:
        offsets = particles.positions_angstrom - np.array(one.centre_angstrom)
        half = np.array(one.shape[::-1]) * one.voxel_size_angstrom / 2
        inside |= (particles.tomogram_names == one.name) & (np.abs(offsets) <= half).all(axis=1)
    return int((~inside).sum())


def _draw(name: str, particles: Particles, tomograms: tuple[Tomogram, ...], folder: Path) -> str:
    """Draw the tomogram with the most picks, where its file is there."""
    from verglas.figures.matching import draw_picks
    from verglas.io.mrc import read_mrc

    counts = [int((particles.tomogram_names == one.name).sum()) for one in tomograms]
    tomogram = tomograms[int(np.argmax(counts))]
    if not max(counts) or not tomogram.path.exists():
        return ""
    places = particles.positions_angstrom[particles.tomogram_names == tomogram.name]
    middle = np.array([n // 2 for n in reversed(tomogram.shape)])
    voxels = (places - np.array(tomogram.centre_angstrom)) / tomogram.voxel_size_angstrom + middle
    path = f"figures/{name}_picks.png"
    draw_picks(
        read_mrc(tomogram.path),
        voxels,
        tomogram.voxel_size_angstrom,
        _RING_ANGSTROM,
        folder / path,
        title=tomogram.name,
    )
    return path


def summarise(results: dict[str, ItemResult], params: PicksParams, folder: Path) -> Summary:
    """Write the table of all picks."""
    from verglas.io.relion_particles import read_particles, write_particles
    from verglas.io.relion_tilt_series import read_tilt_series

    particles = join_particles([read_particles(folder / f"particles/{name}.star") for name in results])
    write_particles(folder / "particles.star", particles, read_tilt_series(params.tomograms))
    figures = [
        Figure(path, f"{name}: sections 200 Å thick with the picks in them; dark is dense")
        for name, result in results.items()
        for path in result.outputs
        if path.endswith(".png")
    ]
    outside = sum(result.values["outside"] for result in results.values())
    values = {
        "picks": Value(len(particles), "", "in all files"),
        "outside": Value(outside, "", "of them lie outside their tomograms"),
        "tomograms": Value(len(set(particles.tomogram_names.tolist())), "", "have picks"),
    }
    return Summary(figures, values, gather_warnings(results), ["particles.star"])


def estimate(items: list[Item], params: PicksParams) -> Estimate:
    """From the sizes of the files."""
    size = sum(item.inputs[0].stat().st_size for item in items)
    return Estimate(600 << 20, size + (1 << 20), 5.0 + size / 1e7)


PICKS_STEP = Step(
    name="picks",
    params=PicksParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
