"""`export series`: the alignment and CTF of tilt series for other programs.

`verglas import` reads each of these back. The other programs find images by their section in a stack, so where the
images of a series are not one stack in the order of the views, one is written where the program looks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from verglas.files import check_exists
from verglas.model import ImageReference, TiltSeries
from verglas.steps.series_results import gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value


class ExportSeriesParams(Params):
    """Export the alignment and CTF of tilt series to Warp, IMOD, AreTomo or emClarity."""

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    format: Annotated[
        Literal["warp", "imod", "aretomo", "emclarity"],
        Field(
            description="warp: .xml; imod: a folder as of etomo; aretomo: .aln and _CTF.txt; emclarity: _ctf.tlt"
        ),
    ]
    originals: Annotated[
        Path | None,
        Field(
            description="folder of Warp's NAME.xml that the series came from: what `import` does not read of them "
            "is kept"
        ),
    ] = None

    @model_validator(mode="after")
    def _check_originals(self) -> Self:
        if self.originals is not None and self.format != "warp":
            raise ValueError(f"`originals` are of Warp; expected none for `format` {self.format}")
        return self


@dataclass(frozen=True)
class SeriesRecord:
    """What one series is exported from: its record, and for Warp the document that it came from."""

    series: TiltSeries
    original: Path | None = None


def list_items(params: ExportSeriesParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.io.relion_tilt_series import read_tilt_series

    items = []
    for name, series in read_tilt_series(params.tilt_series).items():
        original = None
        if params.originals is not None:
            original = check_exists(params.originals / f"{name}.xml", f"original of series {name!r}")
        images = dict.fromkeys(image.path for image in series.images)
        record = SeriesRecord(series, original)
        items.append(Item(name, record, (*([original] if original else ()), *images)))
    return items


def run_item(item: Item, params: ExportSeriesParams, context: Context) -> ItemResult:
    """Write the files of one series, and a stack of its images where they are not one in the order of the views."""
    from verglas.figures.tilt_series import draw_geometry

    record: SeriesRecord = item.record
    series, stacks = _stack_images(record.series, context.folder / _STACKS[params.format].format(item.name))
    warnings = [
        f"the images are not one stack in the order of the views, and were stacked in {_STACKS[params.format]!r}"
        for _ in stacks
    ]
    if series.local is not None and params.format != "imod":
        warnings.append(f"the local alignment cannot be told to {params.format}, and is left out")
    written = _WRITERS[params.format](replace(record, series=series), context.folder)
    figure = f"figures/{item.name}_geometry.png"
    draw_geometry(series, context.folder / figure)
    outputs = [str(path.relative_to(context.folder)) for path in (*written, *stacks)]
    values = {"views": len(series), "left_out": int((~series.selected).sum()), "files": len(written)}
    return ItemResult((*outputs, figure), values, tuple(warnings))


_STACKS = {
    "warp": "tiltstack/{0}/{0}.st",
    "imod": "{0}/{0}.st",
    "aretomo": "{0}.st",
    "emclarity": "fixedStacks/{0}.fixed",
}


def _stack_images(series: TiltSeries, path: Path) -> tuple[TiltSeries, list[Path]]:
    """Stack the images, unless they are one stack in the order of the views: the other programs count in stacks."""
    from verglas.steps.view_stack import read_view_headers, write_view_stack

    headers = read_view_headers(series.images)
    first = series.images[0].path
    if headers[0].shape[0] == len(series) and series.images == _sections(first, len(series)):
        return series, []
    write_view_stack(path, series.images, headers, series.pixel_size_angstrom)
    return replace(series, images=_sections(path, len(series))), [path]


def _sections(stack: Path, count: int) -> tuple[ImageReference, ...]:
    return tuple(ImageReference(stack, row) for row in range(count))


def _write_warp(record: SeriesRecord, folder: Path) -> list[Path]:
    from verglas.io.warp import read_warp_xml, tilt_series_to_warp, write_warp_xml

    base = None if record.original is None else read_warp_xml(record.original)
    path = folder / f"{record.series.name}.xml"
    write_warp_xml(path, tilt_series_to_warp(record.series, base))
    return [path]


def _write_imod(record: SeriesRecord, folder: Path) -> list[Path]:
    from verglas.io.imod import tilt_series_to_imod, write_imod_folder, write_tlt

    name = record.series.name
    write_tlt(raw := folder / name / f"{name}.rawtlt", record.series.nominal_tilt_deg)
    return [raw, *write_imod_folder(folder / name, name, tilt_series_to_imod(record.series))]


def _write_aretomo(record: SeriesRecord, folder: Path) -> list[Path]:
    from verglas.io.aretomo import tilt_series_to_aretomo, write_aln, write_aretomo_ctf

    alignment, ctf = tilt_series_to_aretomo(record.series)
    path = folder / f"{record.series.name}.aln"
    write_aln(path, alignment)
    if ctf is None:
        return [path]
    table = folder / f"{record.series.name}_CTF.txt"
    write_aretomo_ctf(table, ctf)
    return [path, table]


def _write_emclarity(record: SeriesRecord, folder: Path) -> list[Path]:
    from verglas.io.emclarity import tilt_series_to_emclarity, write_ctf_table

    path = folder / f"fixedStacks/ctf/{record.series.name}_ali1_ctf.tlt"
    write_ctf_table(path, tilt_series_to_emclarity(record.series))
    return [path]


_WRITERS: dict[str, Callable[[SeriesRecord, Path], list[Path]]] = {
    "warp": _write_warp,
    "imod": _write_imod,
    "aretomo": _write_aretomo,
    "emclarity": _write_emclarity,
}


def summarise(results: dict[str, ItemResult], params: ExportSeriesParams, folder: Path) -> Summary:
    """Count the series and their files."""
    values = {
        "tilt series": Value(len(results), "", f"for {params.format}"),
        "views": Value(sum(one.values["views"] for one in results.values()), "", "in all series together"),
        "left out": Value(
            sum(one.values["left_out"] for one in results.values()), "views", "that are not selected"
        ),
        "files": Value(sum(one.values["files"] for one in results.values()), "", "of alignments and CTFs"),
    }
    figures = [
        Figure(f"figures/{name}_geometry.png", f"{name}: what was exported of each view") for name in results
    ]
    return Summary(figures, values, gather_warnings(results))


def estimate(items: list[Item], params: ExportSeriesParams) -> Estimate:
    """From the size of the images, as if all had to be stacked."""
    sizes = [4 * int(np.prod(item.record.series.image_shape)) for item in items]
    disk = sum(size * len(item.record.series) for size, item in zip(sizes, items, strict=True))
    return Estimate((400 << 20) + 5 * max(sizes, default=0), disk, len(items) + disk / 1.5e8)


EXPORT_SERIES_STEP = Step("export series", ExportSeriesParams, list_items, run_item, summarise, estimate)
"""The alignment and CTF of tilt series for other programs."""
