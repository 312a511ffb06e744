"""`export`: particles for other programs, as their tables and, where they want them, images."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
from verglas.model import Particles, join_particles
from verglas.steps.export_images import IMAGE_FORMATS, write_images
from verglas.steps.export_tables import write_tables
from verglas.steps.series_particles import (
    SeriesParticles,
    list_particle_items,
    list_series_particles,
    open_series,
)
from verglas.steps.series_results import gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value


class ExportParams(Params):
    """Export particles to RELION, Warp and M, Dynamo, emClarity or cisTEM."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[
        Path, Field(description="`particles.star` with poses; positions are in the specimen")
    ]
    tilt_series: Annotated[
        Path,
        Field(
            description="`tilt_series.star` of the aligned series; for dynamo and emclarity the `tomograms.star` "
            "that their coordinates count in"
        ),
    ]
    format: Annotated[
        Literal["relion5", "relion5-3d", "relion3", "warp", "dynamo", "emclarity", "cistem"],
        Field(
            description="relion5: stacks of each particle's views; relion5-3d: pseudo-subtomograms with their "
            "weights; relion3: boxes with CTF volumes; warp: a table for M; dynamo: a table; emclarity: motive "
            "lists; cistem: a stack of all views and its table"
        ),
    ]
    box: Annotated[
        int | None,
        Field(
            ge=16, le=1024, multiple_of=2, description="side of the images in pixels, where there are images"
        ),
    ] = None
    pixel_size: Annotated[
        float | None,
        Field(gt=0, description="of the images, in Å; that of the tilt images when not given"),
    ] = None

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if self.format in IMAGE_FORMATS and self.box is None:
            raise ValueError(f"`format` {self.format} writes images; expected a `box`")
        if self.format not in IMAGE_FORMATS and (self.box or self.pixel_size):
            raise ValueError(
                f"`format` {self.format} writes no images; expected no `box` and no `pixel_size`"
            )
        return self


def list_items(params: ExportParams) -> list[Item]:
    """One item a tilt series."""
    if params.format in ("dynamo", "emclarity"):
        from verglas.io.relion_tomograms import read_tomograms

        read_tomograms(params.tilt_series)
    found = list_series_particles(params.tilt_series, params.particles, need_halves=False)
    items = list_particle_items(found)
    return items if params.format in IMAGE_FORMATS else [Item(one.name, one.record) for one in items]


def choose_pixel(params: ExportParams, one: SeriesParticles) -> float:
    """Pixel size of the images, never finer than that of the views."""
    return max(params.pixel_size or 0.0, one.series.pixel_size_angstrom)


def run_item(item: Item, params: ExportParams, context: Context) -> ItemResult:
    """Write the images of one series, and its part of the table."""
    import torch

    from verglas.algo.averaging.transfer import TransferModel
    from verglas.algo.averaging.views import tell_seen
    from verglas.io.relion_particles import write_particles

    one: SeriesParticles = item.record
    outputs: list[str] = []
    images = 0
    warnings: tuple[str, ...] = ()
    if params.box is not None:
        pixel = choose_pixel(params, one)
        source = open_series(one, pixel, params.box, TransferModel(), context)
        seen = tell_seen(source.views, torch.from_numpy(one.particles.positions_angstrom), params.box).any(1)
        if not seen.any():
            raise UserError(
                f"no view of {item.name!r} shows any of its particles; expected positions in Å within it"
            )
        if not seen.all():
            warnings = (f"{int((~seen).sum())} of {len(seen)} particles lie in no view, and are left out",)
        one = replace(one, particles=one.particles.take(seen.numpy()))
        columns, outputs, images = write_images(source, one, params.format, context.folder, pixel)
        one = replace(one, particles=_add_columns(one.particles, columns))
    table = f"particles/{item.name}.star"
    write_particles(context.folder / table, one.particles, {item.name: one.series})
    return ItemResult((table, *outputs), {"particles": len(one.particles), "images": images}, warnings)


def _add_columns(particles: Particles, columns: dict[str, list[Any]]) -> Particles:
    """Put columns beside those that are there, in place of those of the same name."""
    import pandas as pd

    kept = particles.extra.drop(columns=list(columns), errors="ignore").reset_index(drop=True)
    return replace(particles, extra=pd.concat([kept, pd.DataFrame(columns)], axis=1))


def summarise(results: dict[str, ItemResult], params: ExportParams, folder: Path) -> Summary:
    """Write the table of the other program, and draw where the particles are seen from."""
    from verglas.figures.averages import draw_directions
    from verglas.io.relion_particles import read_particles
    from verglas.io.relion_tilt_series import read_tilt_series

    whole = join_particles([read_particles(folder / result.outputs[0]) for result in results.values()])
    every = read_tilt_series(params.tilt_series)
    series = {name: every[name] for name in results}
    tables, warnings = write_tables(whole, series, params, folder)
    draw_directions(whole.angles_deg, folder / "figures/directions.png")
    values = {
        "particles": Value(len(whole), "", f"in {len(results)} tilt series"),
        "images": Value(sum(result.values["images"] for result in results.values()), "", "files of images"),
    }
    figures = [Figure("figures/directions.png", "from where the particles are seen")]
    return Summary(figures, values, [*gather_warnings(results), *warnings], tables)


def estimate(items: list[Item], params: ExportParams) -> Estimate:
    """From the sizes of the images."""
    memory, disk, seconds = 0, 0, 1.0
    for item in items:
        one: SeriesParticles = item.record
        views = float(one.series.selected.sum())
        if params.box is not None:
            pixels = params.box**2 * (views if params.format in ("relion5", "cistem") else 3.0 * params.box)
            disk += int(4 * pixels * len(one.particles))
            memory = max(memory, int(4 * np.prod(one.series.image_shape) * views + 160 * params.box**3))
            seconds += len(one.particles) * (views * params.box**2 * 2e-7 + params.box**3 * 1e-6 + 0.02)
        disk += 400 * len(one.particles)
    return Estimate((700 << 20) + memory, disk, seconds)


EXPORT_STEP = Step(
    name="export",
    params=ExportParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
