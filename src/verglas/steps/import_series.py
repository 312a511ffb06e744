"""`import`: tilt series with the alignment and CTF that other programs found."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.steps.import_formats import (
    ImportedSeries,
    SeriesSource,
    find_source_stack,
    find_sources,
    read_source,
)
from verglas.steps.recording import find_mdoc
from verglas.steps.series_results import (
    PIXEL_TOLERANCE,
    choose_pixel_size,
    describe_series,
    draw_series,
    estimate_drawing,
    summarise_series,
)
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary


class ImportParams(Params):
    """Import tilt series with the alignment and CTF of Warp, IMOD, AreTomo, RELION, SerialEM or emClarity."""

    inputs: Annotated[
        tuple[Path, ...],
        Field(
            description="Warp's .xml, IMOD's .xf or a folder of etomo, AreTomo's .aln, RELION's tilt_series.star, "
            "SerialEM's .mdoc of a series, emClarity's _ctf.tlt; several at once, mixed as you like"
        ),
    ]
    stack: Annotated[
        Path | None,
        Field(
            description="the images of one series, or the folder of all: NAME.st, .mrc, .mrcs or .stack.mrc; "
            "beside the input when not given"
        ),
    ] = None
    pixel_size: Annotated[
        float | None, Field(gt=0, description="of the images, in Å; that of their header when not given")
    ] = None
    voltage: Annotated[float, Field(gt=0, description="in kV, where the format does not say it")] = 300.0
    cs: Annotated[
        float, Field(ge=0, description="spherical aberration in mm, where the format does not say it")
    ] = 2.7
    amplitude_contrast: Annotated[
        float, Field(ge=0, le=1, description="as a fraction, where the format does not say it")
    ] = 0.1
    exposure: Annotated[
        float | None,
        Field(
            gt=0,
            description="e/Å² a view, where the format does not say it; taken as dose-symmetric from the lowest "
            "tilt outward unless there is an mdoc",
        ),
    ] = None
    defocus: Annotated[
        float | None,
        Field(
            gt=0,
            description="nominal underfocus in µm, where the format does not say it: for images too coarse for `ctf`",
        ),
    ] = None
    mdoc: Annotated[
        Path | None,
        Field(
            description="SerialEM's mdoc of one series, or the folder of all, for order and exposure of the views"
        ),
    ] = None
    flip_hand: Annotated[
        bool, Field(description="mirror the specimen in z: tilts, x tilts and the defocus' hand change sign")
    ] = False


def list_items(params: ImportParams) -> list[Item]:
    """One item a tilt series."""
    for name in ("stack", "mdoc"):
        if (path := getattr(params, name)) is not None:
            check_exists(path, f"`{name}`")
    sources = [source for path in params.inputs for source in find_sources(path)]
    for name in ("stack", "mdoc"):
        path = getattr(params, name)
        if path is not None and path.is_file() and len(sources) > 1:
            raise UserError(
                f"`{name}` is the file {str(path)!r}, but the inputs list {len(sources)} series; expected a folder"
            )
    items = []
    for source in sources:
        stack, mdoc = find_source_stack(source, params.stack), params.mdoc
        if mdoc is not None and mdoc.is_dir():
            mdoc = find_mdoc(source.name, mdoc)
        source = replace(source, stack=stack, mdoc=mdoc)
        images = () if source.series is None or stack else tuple(image.path for image in source.series.images)
        inputs = (*source.files, *([stack] if stack else ()), *([mdoc] if mdoc else ()), *images)
        items.append(Item(source.name, source, tuple(dict.fromkeys(inputs))))
    return items


def run_item(item: Item, params: ImportParams, context: Context) -> ItemResult:
    """Write the tables of one series and draw it; of its images only those drawn are read."""
    from verglas.io.mrc import read_mrc_header
    from verglas.io.relion_tilt_series import write_one_tilt_series

    source: SeriesSource = item.record
    if source.stack is None and (source.format != "relion" or params.stack is not None):
        beside = params.stack or (source.path if source.path.is_dir() else source.path.parent)
        raise UserError(
            f"no stack of series {source.name!r} was found in {str(beside)!r}; expected {source.name}.st, .mrc, "
            ".mrcs or .stack.mrc there, or another file or folder as `stack`"
        )
    header = read_mrc_header(source.stack) if source.stack else None
    warnings: list[str] = []

    def optics_of(recorded: float | None) -> Optics:
        where = f"the images of series {source.name!r}"
        size, told = choose_pixel_size(
            params.pixel_size, header.pixel_size_angstrom if header else None, recorded, where
        )
        warnings.extend(told)
        return Optics(size, params.voltage, params.cs, params.amplitude_contrast)

    imported = read_source(source, header, optics_of)
    series, told = _set_exposures(imported, source, params)
    series = _set_defocus(series, params.defocus)
    warnings += [*imported.warnings, *told, *_check_geometry(series, source)]
    if params.flip_hand:
        series = _flip_hand(series)
    # A path that does not depend on where the user stands.
    series = series.map_images(lambda image: ImageReference(Path(os.path.abspath(image.path)), image.section))
    star = f"tilt_series/{item.name}.star"
    write_one_tilt_series(context.folder / star, series)
    figures = draw_series(series, context.folder)
    return ItemResult((star, *figures.values()), describe_series(series), tuple(warnings))


def summarise(results: dict[str, ItemResult], params: ImportParams, folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    return summarise_series(results, folder, _CAPTIONS)


def estimate(items: list[Item], params: ImportParams) -> Estimate:
    """From the size of the largest image."""
    from verglas.io.mrc import read_mrc_header

    largest = 0
    for item in items:
        if item.record.stack is not None:
            _, y, x = read_mrc_header(item.record.stack).shape
            largest = max(largest, 4 * x * y)
    return estimate_drawing(items, largest)


_CAPTIONS = {
    "views": "the views at both ends and in the middle of the tilt range, smoothed to 60 Å",
    "geometry": "shift, exposure and defocus over the tilt; a jump is a view that went wrong",
}


def _set_exposures(
    imported: ImportedSeries, source: SeriesSource, params: ImportParams
) -> tuple[TiltSeries, list[str]]:
    """Give the views their exposures: those of the mdoc, else of the format, else those that the user says."""
    from verglas.algo.tilt_alignment.exposures import (
        accumulate_exposures,
        infer_exposures,
        order_dose_symmetric,
    )

    series = imported.series
    if params.mdoc is not None or source.format == "mdoc":
        return _record_exposures(imported, source, params)
    if series.pre_exposure_e_per_a2.any():
        exposure = series.exposure_e_per_a2
        if np.isnan(exposure).any():
            exposure = infer_exposures(series.pre_exposure_e_per_a2)
        median = float(np.median(exposure))
        told = []
        if params.exposure and not abs(median / params.exposure - 1) < 0.05:
            told = [
                f"`exposure` is not used, because {source.format} has exposures ({median:.3g} e/Å² a view)"
            ]
        return replace(series, exposure_e_per_a2=exposure), told
    if params.exposure is None:
        return series, ["the exposures are unknown, so views cannot be weighted by them; expected `exposure`"]
    recorded = imported.recorded_deg
    before = accumulate_exposures(order_dose_symmetric(recorded), np.full(len(recorded), params.exposure))
    rows = [int(np.abs(recorded - tilt).argmin()) for tilt in imported.stage_deg]
    told = ["the order of the views is taken as dose-symmetric from the lowest tilt; `mdoc` would tell it"]
    exposure = np.full(len(series), params.exposure)
    return replace(series, pre_exposure_e_per_a2=before[rows], exposure_e_per_a2=exposure), told


def _set_defocus(series: TiltSeries, defocus_um: float | None) -> TiltSeries:
    """Give views without defocus the one that the user says."""
    if defocus_um is None:
        return series
    u, v = (
        np.where(np.isnan(known), 1e4 * defocus_um, known)
        for known in (series.defocus_u_angstrom, series.defocus_v_angstrom)
    )
    return replace(series, defocus_u_angstrom=u, defocus_v_angstrom=v)


def _record_exposures(
    imported: ImportedSeries, source: SeriesSource, params: ImportParams
) -> tuple[TiltSeries, list[str]]:
    from verglas.algo.tilt_alignment.exposures import accumulate_exposures, match_views
    from verglas.steps.recording import read_recording

    path = source.mdoc or (source.path if source.format == "mdoc" else None)
    if path is None:
        raise UserError(f"folder {str(params.mdoc)!r} has no mdoc of series {source.name!r}")
    recording = read_recording([path])
    rows = match_views(imported.stage_deg, recording.tilt_deg)
    told = []
    if source.format == "mdoc" and recording.axis_deg is None:
        told = ["the mdoc does not tell the tilt axis, which is taken as 0 degrees"]
    exposure = recording.exposure_e_per_a2
    if params.exposure is not None:
        if np.isfinite(exposure).all() and abs(np.median(exposure) / params.exposure - 1) > 0.05:
            told += [
                f"`exposure` is not used, because the mdoc has exposures ({np.median(exposure):.3g} e/Å² a view)"
            ]
        exposure = np.where(np.isnan(exposure), params.exposure, exposure)
    if np.isnan(exposure).any():
        told += ["the mdoc does not tell the exposures, so views cannot be weighted; expected `exposure`"]
        return imported.series, told
    before = accumulate_exposures(recording.order, exposure)
    return replace(
        imported.series, pre_exposure_e_per_a2=before[rows], exposure_e_per_a2=exposure[rows]
    ), told


def _check_geometry(series: TiltSeries, source: SeriesSource) -> list[str]:
    """Sentences on what can hardly be."""
    told = []
    pixel = series.pixel_size_angstrom
    if source.format == "warp":
        from verglas.io.warp import read_warp_xml

        movies = float(read_warp_xml(source.path).ctf.get("PixelSize", "0"))
        if pixel < movies * (1 - PIXEL_TOLERANCE):
            told.append(
                f"the pixel size is {pixel:g} Å, finer than the {movies:g} Å of the movies in Warp's XML"
            )
    height, width = (size * pixel / 2 for size in series.image_shape)
    outside = (np.abs(series.x_shift_angstrom) > width) | (np.abs(series.y_shift_angstrom) > height)
    if outside.any():
        told.append(
            f"the specimen's centre lies outside of {int(outside.sum())} views; is {pixel:g} Å the pixel size?"
        )
    return told


def _flip_hand(series: TiltSeries) -> TiltSeries:
    """Mirror the specimen in z: the same images of the mirrored specimen, with the same defocus everywhere."""
    assert series.y_tilt_deg is not None
    return replace(
        series,
        nominal_tilt_deg=0.0 - series.nominal_tilt_deg,
        x_tilt_deg=0.0 - series.x_tilt_deg,
        y_tilt_deg=0.0 - series.y_tilt_deg,
        hand=-series.hand,
    )


IMPORT_STEP = Step(
    name="import",
    params=ImportParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
