"""`particles`: half sets assigned for life, duplicates and poor scores removed."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.model import Particles, join_particles
from verglas.steps.particle_classes import take_class
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

FloatArray = npt.NDArray[np.float64]


_SAME_PLACE_ANGSTROM = 1.0


class ParticlesParams(Params):
    """Assign half sets to particles, and remove duplicates and poor ones."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[
        tuple[Path, ...], Field(min_length=1, description="one or more `particles.star`, joined")
    ]
    tilt_series: Annotated[
        Path | None, Field(description="`tilt_series.star`, needed for coordinates that count from a corner")
    ] = None
    halves: Annotated[
        Literal["keep", "random", "tomogram"],
        Field(
            description="half sets: keep those that are there and assign the rest at random; assign all at random; "
            "or whole tomograms"
        ),
    ] = "keep"
    seed: Annotated[int, Field(ge=0, description="chooses the random half sets")] = 0
    distance: Annotated[
        float,
        Field(ge=0, description="of two particles nearer than this, in Å, the one that scores less goes"),
    ] = 0.0
    least_score: Annotated[float | None, Field(description="particles that score less are removed")] = None
    best: Annotated[int | None, Field(ge=2, description="keep this many of the highest score")] = None
    class_number: Annotated[
        int | None,
        Field(ge=1, description="keep the particles of this class, as `align` or `cluster` found them"),
    ] = None
    orientations: Annotated[
        Literal["keep", "random"],
        Field(description="keep them, or draw them at random for a first average without a reference"),
    ] = "keep"


def list_items(params: ParticlesParams) -> list[Item]:
    """One item a tomogram."""
    table = _read_all(params)
    names = np.unique(table.tomogram_names).tolist()
    if not names:
        files = ", ".join(repr(str(path)) for path in params.particles)
        raise UserError(f"no particle of {files} is left; expected at least two")
    flat = next(
        (name for name in names if "/" in name or name.endswith((".mrc", ".mrcs", ".tif", ".tiff"))), None
    )
    if flat:
        raise UserError(
            f"the particles lie in micrographs or volumes (rlnMicrographName {flat!r}); expected particles of tilt "
            "series, with the name of theirs (rlnTomoName)"
        )
    return [Item(name, table.take(table.tomogram_names == name), params.particles) for name in names]


def _read_all(params: ParticlesParams) -> Particles:
    from verglas.io.relion_particles import read_particles
    from verglas.io.relion_tilt_series import read_tilt_series

    series = read_tilt_series(params.tilt_series) if params.tilt_series else None
    table = join_particles([read_particles(path, series) for path in params.particles])
    table = replace(table, half_set=_assign_halves(table, params))
    if params.class_number is not None:
        table = take_class(table, params.class_number)
    if params.orientations == "random":
        table = _turn_at_random(table, params.seed)
    kept = np.ones(len(table), dtype=np.bool_)
    if params.least_score is not None:
        kept &= table.score >= params.least_score
    if params.distance:
        kept &= find_distinct(table, params.distance, kept)
    if params.best is not None and kept.sum() > params.best:
        rows = np.flatnonzero(kept)
        order = np.argsort(-np.nan_to_num(table.score[rows], nan=-np.inf), kind="stable")
        kept[rows[order[params.best :]]] = False
    return table.take(kept)


def _assign_halves(table: Particles, params: ParticlesParams) -> npt.NDArray[np.int64]:
    """Half sets of equal size; the same particles and seed always give the same."""
    halves = table.half_set.copy()
    if params.halves == "tomogram":
        names, codes, counts = np.unique(table.tomogram_names, return_inverse=True, return_counts=True)
        if len(names) < 2:
            raise UserError(
                f"the particles lie in {len(names)} tomogram; expected at least two for `halves` tomogram"
            )
        sizes, half_of = [0, 0], np.zeros(len(names), dtype=np.int64)
        for code in np.argsort(-counts, kind="stable"):
            smaller = int(sizes[1] < sizes[0])
            half_of[code] = smaller + 1
            sizes[smaller] += int(counts[code])
        return half_of[codes]
    rows = np.arange(len(table)) if params.halves == "random" else np.flatnonzero(halves == 0)
    rng = np.random.default_rng(params.seed)
    halves[rng.permutation(rows)] = 1 + np.arange(len(rows)) % 2
    return halves


def _turn_at_random(table: Particles, seed: int) -> Particles:
    """Give particles orientations drawn evenly from all; what is known of their scores no longer holds."""
    import torch

    from verglas.ops.rotation import matrices_to_euler, random_rotations

    turns = random_rotations(len(table), torch.Generator().manual_seed(seed))
    return replace(table, angles_deg=matrices_to_euler(turns).numpy(), score=np.full(len(table), np.nan))


def find_distinct(
    table: Particles, distance_angstrom: float, among: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Tell which particles have no better one within a distance in their tomogram.

    The best of all is taken first, and all that lie near it leave; then the best of the rest.

    Parameters
    ----------
    table
        All particles.
    distance_angstrom
        Å.
    among
        `(n,)` which of them take part.
    """
    from scipy.spatial import cKDTree

    kept = among.copy()
    for name in np.unique(table.tomogram_names).tolist():
        rows = np.flatnonzero(among & (table.tomogram_names == name))
        if len(rows) < 2:
            continue
        near = cKDTree(table.positions_angstrom[rows]).query_ball_point(
            table.positions_angstrom[rows], distance_angstrom
        )
        order = np.argsort(-np.nan_to_num(table.score[rows], nan=-np.inf), kind="stable")
        for one in order:
            if kept[rows[one]]:
                others = np.asarray(near[one])
                kept[rows[others[others != one]]] = False
    return kept


def run_item(item: Item, params: ParticlesParams, context: Context) -> ItemResult:
    """Write the particles of one tomogram."""
    from verglas.io.relion_particles import write_particles

    table: Particles = item.record
    path = f"particles/{item.name}.star"
    write_particles(context.folder / path, table)
    counts = [int((table.half_set == half).sum()) for half in (1, 2)]
    return ItemResult((path,), {"particles": len(table), "half1": counts[0], "half2": counts[1]})


def summarise(results: dict[str, ItemResult], params: ParticlesParams, folder: Path) -> Summary:
    """Join the tables and draw where the particles are seen from."""
    from verglas.figures.averages import draw_directions, draw_scores
    from verglas.io.relion_particles import read_particles, write_particles

    tables = [read_particles(folder / result.outputs[0]) for result in results.values()]
    whole = join_particles(tables)
    write_particles(folder / "particles.star", whole)
    draw_directions(whole.angles_deg, folder / "figures/directions.png")
    figures = [Figure("figures/directions.png", "from where the particles are seen")]
    scored = [(name, one.score[np.isfinite(one.score)]) for name, one in zip(results, tables, strict=True)]
    if any(len(values) for _, values in scored):
        draw_scores(scored, folder / "figures/scores.png", label="score")
        figures.append(Figure("figures/scores.png", "scores of the particles of each tomogram"))
    values = {
        "particles": Value(len(whole), "", "that are kept"),
        "half sets": Value(
            f"{(whole.half_set == 1).sum()} and {(whole.half_set == 2).sum()}", "", "particles in each"
        ),
    }
    return Summary(figures, values, _find_doubles(whole), ["particles.star"])


def _find_doubles(table: Particles) -> list[str]:
    """Warn of particles that are there twice: they would stand in both half sets, or count double."""
    count = len(table) - int(
        find_distinct(table, _SAME_PLACE_ANGSTROM, np.ones(len(table), dtype=np.bool_)).sum()
    )
    if not count:
        return []
    return [
        f"{count} of {len(table)} particles lie within {_SAME_PLACE_ANGSTROM:g} Å of another; `distance` removes such"
    ]


def estimate(items: list[Item], params: ParticlesParams) -> Estimate:
    """Tables only."""
    count = sum(len(item.record) for item in items)
    return Estimate((300 << 20) + 2000 * count, 400 * count, 2.0 + 1e-5 * count)


PARTICLES_STEP = Step(
    name="particles",
    params=ParticlesParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
