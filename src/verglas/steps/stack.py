"""`stack`: tilt series sorted by tilt angle, from SerialEM's mdocs and images."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.steps.recording import Recording, group_mdocs, read_recording
from verglas.steps.series_results import (
    PROCESS_BYTES,
    choose_pixel_size,
    describe_series,
    draw_series,
    summarise_series,
)
from verglas.steps.stack_images import HALVES, ImagesByName, find_halves, find_images, plain_name
from verglas.steps.stack_knowledge import add_knowledge
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value
from verglas.steps.view_stack import read_view_headers, write_view_stack

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.views import ViewCheck
    from verglas.io.mrc import MrcHeader

FloatArray = npt.NDArray[np.float64]

SAME_TILT_DEG = 0.1
"""Views closer than this are two of the same tilt."""


class StackParams(Params):
    """Stack tilt series from SerialEM's mdocs, sorted by tilt angle, with bad views marked."""

    mdocs: Annotated[
        tuple[Path, ...],
        Field(description="mdocs of series, or of single views named SERIES_NUMBER_TILT, or folders of them"),
    ]
    images: Annotated[
        Path | None,
        Field(
            description="the stack of one series, or the folder of all: stacks NAME.st, .mrc or .mrcs, or motion-"
            "corrected images named after the movies; beside the mdocs when not given"
        ),
    ] = None
    odd_even: Annotated[
        bool,
        Field(
            description="also stack the sums of odd and even frames, in the folders `odd` and `even` that motion "
            "wrote beside the folder of the images"
        ),
    ] = False
    defocus: Annotated[
        Path | None,
        Field(description="`micrographs_ctf.star` of the images, whose defocus goes into the table"),
    ] = None
    selection: Annotated[
        Path | None,
        Field(description="`selection.star` of the images; views that it leaves out are not selected"),
    ] = None
    pixel_size: Annotated[
        float | None,
        Field(gt=0, description="of the images, in Å; that of their header or else the mdoc when not given"),
    ] = None
    exposure: Annotated[
        float | None, Field(gt=0, description="of each view, in e/Å²; that of the mdoc when not given")
    ] = None
    axis_angle: Annotated[
        float | None,
        Field(
            ge=-360,
            le=360,
            description="of the tilt axis in the image, in degrees; the mdoc's when not given, which may be wrong",
        ),
    ] = None
    voltage: Annotated[float, Field(gt=0, description="in kV, where the mdoc does not say it")] = 300.0
    cs: Annotated[float, Field(ge=0, description="spherical aberration in mm")] = 2.7
    amplitude_contrast: Annotated[float, Field(ge=0, le=1, description="as a fraction")] = 0.1


@dataclass(frozen=True)
class StackSource:
    """What one stack is made from.

    Parameters
    ----------
    name
        Of the series.
    recording
        What SerialEM noted; none when it cannot be used.
    images
        One for each view of the recording.
    halves
        The sums of odd and of even frames, in the same order; empty when they are not asked for.
    problem
        Why the series cannot be stacked.
    """

    name: str
    recording: Recording | None = None
    images: tuple[ImageReference, ...] = ()
    halves: tuple[tuple[ImageReference, ...], ...] = ()
    problem: str = ""


def list_items(params: StackParams) -> list[Item]:
    """One item a tilt series. What is wrong with one is its item's error, and does not stop the others."""
    groups = group_mdocs([mdoc for path in params.mdocs for mdoc in _expand(path)])
    if params.images is not None:
        check_exists(params.images, "`images`")
        if params.images.is_file() and len(groups) > 1:
            raise UserError(
                f"`images` is the file {str(params.images)!r}, but the mdocs are of {len(groups)} series; "
                "expected a folder"
            )
    folders: dict[Path, ImagesByName] = {}
    items = []
    for name, mdocs in groups.items():
        place = params.images or mdocs[0].parent
        try:
            recording = read_recording(mdocs)
            images = find_images(name, recording, place, folders)
            halves = find_halves(name, recording, place, folders) if params.odd_even else ()
            source = StackSource(name, recording, images, halves)
        except UserError as error:
            source = StackSource(name, problem=str(error))
        used = [image.path for part in (source.images, *source.halves) for image in part]
        items.append(Item(name, source, (*mdocs, *dict.fromkeys(used))))
    return items


def run_item(item: Item, params: StackParams, context: Context) -> ItemResult:
    """Write the stack and the tables of one series, look for bad views, and draw it."""
    from verglas.algo.tilt_alignment.views import find_bad_views
    from verglas.io.imod import write_tlt
    from verglas.io.relion_tilt_series import write_one_tilt_series
    from verglas.io.warp import write_tomostar

    source: StackSource = item.record
    if source.problem or source.recording is None:
        raise UserError(source.problem)
    rows = _sort_views(source.recording)
    images, headers = _sort_images(source.images, rows)
    optics, warnings = _make_optics(source, headers[0], params)
    stack = context.folder / f"stacks/{item.name}.st"
    means, deviations = write_view_stack(stack, images, headers, optics.pixel_size_angstrom)
    tilts = source.recording.tilt_deg[rows]
    check = find_bad_views(means, deviations, tilts)
    series, told = _make_series(source, rows, Path(os.path.abspath(stack)), optics, headers[0], params)
    series = replace(series, selected=~check.bad)
    warnings += [*told, *_tell_faults(check, tilts)]
    names = [plain_name(name or "") for name in source.recording.frame_names]
    series, more = add_knowledge(series, [names[row] for row in rows], params.defocus, params.selection)
    warnings += more
    series, half_paths = _write_halves(series, source, rows, headers[0], optics, context.folder)
    outputs = {
        "stack": f"stacks/{item.name}.st",
        "angles": f"stacks/{item.name}.rawtlt",
        "tomostar": f"stacks/{item.name}.tomostar",
        "star": f"tilt_series/{item.name}.star",
    }
    write_tlt(context.folder / outputs["angles"], tilts)
    write_tomostar(context.folder / outputs["tomostar"], _name_movies(series, source.recording, rows))
    write_one_tilt_series(context.folder / outputs["star"], series)
    figures = _draw(series, means, deviations, check, context.folder)
    values = describe_series(series) | {
        "level_at_deg": check.tilt_offset_deg,
        "thickness_mean_free_paths": check.thickness_ratio,
    }
    return ItemResult((*outputs.values(), *half_paths, *figures.values()), values, tuple(warnings))


def summarise(results: dict[str, ItemResult], params: StackParams, folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    ratios = [result.values["thickness_mean_free_paths"] for result in results.values()]
    known = [ratio for ratio in ratios if ratio is not None]
    more = {}
    if known:
        more["thickness"] = Value(
            round(float(np.median(known)), 2),
            "mean free paths",
            "median of the series, from the fall of the intensity if all views had the same exposure",
        )
    return summarise_series(results, folder, _CAPTIONS, more)


def estimate(items: list[Item], params: StackParams) -> Estimate:
    """From the size of the images, and the rate of one disk."""
    from verglas.io.mrc import read_mrc_header

    largest, disk = 0, 0
    for item in items:
        if item.record.images:
            header = read_mrc_header(item.record.images[0].path)
            pixels = header.shape[1] * header.shape[2]
            largest = max(largest, pixels)
            disk += pixels * header.dtype.itemsize * len(item.record.images)
    # One image, and its deviations from the mean in double precision.
    return Estimate(PROCESS_BYTES + 20 * largest, disk, len(items) * 3.0 + disk / 1.5e8)


_CAPTIONS = {
    "intensities": "mean and contrast over the tilt; views far below the law are marked and not selected",
    "views": "the views at both ends and in the middle of the tilt range and those that are not selected, "
    "smoothed to 60 Å",
    "geometry": "exposure over the tilt",
}


def _expand(path: Path) -> list[Path]:
    check_exists(path, "mdoc")
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("[!.]*.mdoc"))
    if not found:
        raise UserError(f"folder {str(path)!r} has no mdocs; expected files that end in .mdoc")
    return found


def _write_halves(
    series: TiltSeries,
    source: StackSource,
    rows: npt.NDArray[np.intp],
    header: "MrcHeader",
    optics: Optics,
    folder: Path,
) -> tuple[TiltSeries, list[str]]:
    """Stack odd and even sums, and name them in the table as RELION does."""
    from verglas.io.relion_tilt_series import project_path

    paths, extra = [], series.extra.copy()
    for word, images in zip(HALVES, source.halves, strict=False):
        path = f"stacks/{source.name}_{word}.st"
        ordered, headers = _sort_images(images, rows)
        if headers[0].shape[1:] != header.shape[1:]:
            raise UserError(
                f"the {word} sums of series {source.name!r} have {headers[0].shape[2]} x {headers[0].shape[1]} "
                f"pixels; expected {header.shape[2]} x {header.shape[1]} as the images have"
            )
        write_view_stack(folder / path, ordered, headers, optics.pixel_size_angstrom)
        stack = project_path((folder / path).absolute())
        extra[f"rlnMicrographName{word.title()}"] = [f"{i + 1:06d}@{stack}" for i in range(len(rows))]
        paths.append(path)
    return replace(series, extra=extra), paths


def _sort_views(recording: Recording) -> npt.NDArray[np.intp]:
    """Rows of the recording by rising tilt."""
    rows = np.argsort(recording.tilt_deg, kind="stable")
    steps = np.diff(recording.tilt_deg[rows])
    if len(steps) and steps.min() < SAME_TILT_DEG:
        first, second = rows[int(steps.argmin())], rows[int(steps.argmin()) + 1]
        raise UserError(
            f"views {first + 1} and {second + 1} of the mdoc are both at {recording.tilt_deg[first]:g} degrees; "
            "expected each tilt once, so take the worse one out of the mdoc"
        )
    return rows


def _sort_images(
    images: tuple[ImageReference, ...], rows: npt.NDArray[np.intp]
) -> tuple[list[ImageReference], list["MrcHeader"]]:
    """Bring the images of a recording to this order, and read their headers."""
    from verglas.io.mrc import read_mrc_header

    for path in dict.fromkeys(image.path for image in images if image.section is not None):
        if (count := read_mrc_header(path).shape[0]) != len(images):
            raise UserError(
                f"stack {str(path)!r} has {count} sections, but the mdoc has {len(images)} views; expected as many"
            )
    ordered = [images[row] for row in rows]
    return ordered, read_view_headers(ordered)


def _make_optics(source: StackSource, header: "MrcHeader", params: StackParams) -> tuple[Optics, list[str]]:
    assert source.recording is not None
    where = f"the images of series {source.name!r}"
    recorded = source.recording.pixel_size_angstrom
    size, warnings = choose_pixel_size(params.pixel_size, header.pixel_size_angstrom, recorded, where)
    voltage = source.recording.voltage_kv or params.voltage
    return Optics(size, voltage, params.cs, params.amplitude_contrast), warnings


def _make_series(
    source: StackSource,
    rows: npt.NDArray[np.intp],
    stack: Path,
    optics: Optics,
    header: "MrcHeader",
    params: StackParams,
) -> tuple[TiltSeries, list[str]]:
    """Make the series of the stack, whose sections are the views in the order of `rows`."""
    import pandas as pd

    from verglas.algo.tilt_alignment.exposures import accumulate_exposures

    recording = source.recording
    assert recording is not None
    warnings = []
    axis = recording.axis_deg if params.axis_angle is None else params.axis_angle
    if axis is None:
        warnings.append(
            "the mdoc does not tell the tilt axis, which is taken as 0 degrees; expected `axis_angle`"
        )
    exposure = recording.exposure_e_per_a2
    if params.exposure is not None:
        exposure = np.full(len(recording), params.exposure)
    changes: dict[str, Any] = {}
    if np.isfinite(exposure).all():
        # Before the selection: also what a bad view took out of the specimen is gone.
        before = accumulate_exposures(recording.order, exposure)
        changes = {"pre_exposure_e_per_a2": before[rows], "exposure_e_per_a2": exposure[rows]}
    else:
        warnings.append(
            "the mdoc does not tell the exposures, so views cannot be weighted; expected `exposure`"
        )
    series = TiltSeries(
        name=source.name,
        optics=optics,
        image_shape=(header.shape[1], header.shape[2]),
        images=tuple(ImageReference(stack, section) for section in range(len(rows))),
        nominal_tilt_deg=recording.tilt_deg[rows],
        z_rot_deg=np.full(len(rows), axis or 0.0),
        extra=pd.DataFrame({"rlnTomoTiltMovieIndex": recording.order[rows] + 1}),
        **changes,
    )
    return series, warnings


def _name_movies(series: TiltSeries, recording: Recording, rows: npt.NDArray[np.intp]) -> TiltSeries:
    """Name the movies instead of the sections, because Warp starts from them."""
    names = [recording.frame_names[row] for row in rows]
    if any(name is None for name in names):
        return series
    return replace(series, images=tuple(ImageReference(Path(str(name))) for name in names))


def _tell_faults(check: "ViewCheck", tilts: FloatArray) -> list[str]:
    bad = np.flatnonzero(check.bad)
    if not len(bad):
        return []
    views = ", ".join(f"{tilts[row]:+.1f}° ({check.faults[row]})" for row in bad)
    return [f"{len(bad)} of {len(tilts)} views are not selected: {views}"]


def _draw(
    series: TiltSeries, means: FloatArray, deviations: FloatArray, check: "ViewCheck", folder: Path
) -> dict[str, str]:
    from verglas.figures.intensities import draw_intensities

    path = f"figures/{series.name}_intensities.png"
    tilts = np.asarray(series.y_tilt_deg)
    draw_intensities(tilts, means, deviations, check.expected_mean, check.faults, folder / path)
    marks = [(int(row), check.faults[row]) for row in np.flatnonzero(check.bad)]
    return {"intensities": path, **draw_series(series, folder, marks)}


STACK_STEP = Step(
    name="stack",
    params=StackParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
