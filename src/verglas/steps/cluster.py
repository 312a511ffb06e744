"""`cluster`: classes of particles by where `pca` found them to lie."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.particle_classes import number_classes
from verglas.steps.particle_voxels import PLACES, Places, read_places, read_voxels
from verglas.steps.pca import AGREED
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

_RESTARTS = 64
_SURE = 0.9
_CLASSES_FIGURE = "figures/classes.png"
_PLACES_FIGURE = "figures/places.png"


class ClusterParams(Params):
    """Sort particles into classes by where they lie among their principal components."""

    model_config = ConfigDict(allow_inf_nan=False)

    pca: Annotated[Path, Field(description="job folder of `pca`")]
    classes: Annotated[int, Field(ge=2, le=64, description="how many")]
    components: Annotated[
        tuple[int, ...],
        Field(
            description="numbers of the components that count; those on which the half sets agree when not given"
        ),
    ] = ()
    seed: Annotated[int, Field(ge=0, description="of the particles that the classes begin with")] = 0


def list_items(params: ClusterParams) -> list[Item]:
    """One item."""
    places = read_places(params.pca)
    _choose_components(params, places)
    paths = [
        check_exists(params.pca / name, "file of `pca`")
        for name in (PLACES, "particles.star", *places.voxels)
    ]
    return [Item("classes", params.pca, tuple(paths))]


def _choose_components(params: ClusterParams, places: Places) -> list[int]:
    """Return their indices, from 0."""
    count = len(places.agreement)
    wrong = [number for number in params.components if not 1 <= number <= count]
    if wrong:
        raise UserError(f"`components` holds {wrong[0]}; expected numbers from 1 to {count}")
    chosen = (
        sorted({number - 1 for number in params.components})
        or np.flatnonzero(places.agreement >= AGREED).tolist()
    )
    if not chosen:
        raise UserError(
            f"the half sets agree on none of the {count} components of {str(params.pca)!r}; expected `components` "
            "by which to sort all the same"
        )
    return chosen


def run_item(item: Item, params: ClusterParams, context: Context) -> ItemResult:
    """Sort the particles, average each class, write and draw them."""
    from verglas.algo.classification.clusters import average_clusters, find_clusters
    from verglas.figures.classification import draw_places
    from verglas.io.relion_particles import read_particles, write_particles

    places = read_places(params.pca)
    chosen = _choose_components(params, places)
    found = find_clusters(
        places.coordinates.take(chosen), params.classes, restarts=_RESTARTS, seed=params.seed
    )
    table = read_particles(params.pca / "particles.star")
    numbered = number_classes(table, found.numbers.numpy() + 1)
    extra = numbered.extra.assign(vglClassProbability=found.probabilities.numpy())
    write_particles(context.folder / "particles.star", replace(numbered, extra=extra))
    voxels = read_voxels([params.pca / name for name in places.voxels])
    averages = average_clusters(voxels, found.numbers, params.classes, places.band)
    counts = np.bincount(found.numbers.numpy(), minlength=params.classes).tolist()
    outputs = ["particles.star", *_write_averages(context, averages.numpy(), counts, places)]
    shares = table.extra[[f"vglComponent{one + 1}" for one in chosen]].to_numpy(dtype=np.float64)
    draw_places(shares, [one + 1 for one in chosen], found.numbers.numpy(), context.folder / _PLACES_FIGURE)
    values = {
        "counts": counts,
        "sure": float((found.probabilities > _SURE).double().mean()),
        "components": [one + 1 for one in chosen],
    }
    return ItemResult((*outputs, _PLACES_FIGURE), values)


def _write_averages(
    context: Context, averages: npt.NDArray[np.float32], counts: list[int], places: Places
) -> list[str]:
    from verglas.figures.averages import draw_sections
    from verglas.io.mrc import write_mrc

    names = [f"maps/class_{number}.mrc" for number in range(1, len(averages) + 1)]
    for name, volume in zip(names, averages, strict=True):
        write_mrc(context.folder / name, volume, voxel_size_angstrom=places.voxel_size_angstrom)
    labelled = [
        (f"class {number}, {count} particles", volume)
        for number, (count, volume) in enumerate(zip(counts, averages, strict=True), 1)
    ]
    draw_sections(
        labelled, places.band.mask.numpy(), places.voxel_size_angstrom, context.folder / _CLASSES_FIGURE
    )
    return [*names, _CLASSES_FIGURE]


def summarise(results: dict[str, ItemResult], params: ClusterParams, folder: Path) -> Summary:
    """Say how large the classes are."""
    told = results["classes"].values
    used = ", ".join(map(str, told["components"]))
    values = {
        "classes": Value(", ".join(map(str, told["counts"])), "", "particles in each, the largest first"),
        "components": Value(used, "", "by which they were sorted"),
        "sure": Value(
            round(100 * told["sure"]), "%", "of the particles belong to their class with 90 % or more"
        ),
    }
    figures = [
        Figure(_CLASSES_FIGURE, "average of each class, not filtered, with the outline of what may differ"),
        Figure(_PLACES_FIGURE, "where the particles of each class lie, in percent of the mean map"),
    ]
    return Summary(figures, values, [], ["particles.star"])


def estimate(items: list[Item], params: ClusterParams) -> Estimate:
    """From the files that are read."""
    size = sum(path.stat().st_size for item in items for path in item.inputs)
    return Estimate((700 << 20) + size, 1 << 20, 5.0 + size / 2e8)


CLUSTER_STEP = Step(
    name="cluster",
    params=ClusterParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
