"""`ctf`: defocus and astigmatism of micrographs, movies and tilt series.

What the job folder holds
-------------------------
==================================  ============================================================================
`tilt_series.star`, `tilt_series/`  for tilt series
`micrographs_ctf.star`              for images, as RELION's CtfFind writes it
`ctf/<name>.json`                   of an image: the defocus over x, y and time, and all curves
`ctf/<name>.ctf`                    of an image: its power spectrum, MRC, the model in the left half
`figures/`                          what was fitted
==================================  ============================================================================
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import TiltSeries
from verglas.steps.ctf_images import estimate_images, list_images, run_image, summarise_images
from verglas.steps.ctf_series import (
    estimate_series,
    list_series,
    run_series,
    summarise_ctf_series,
)
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary


class CtfParams(Params):
    """Estimate defocus and astigmatism of micrographs, movies and aligned tilt series, and the hand of these."""

    inputs: Annotated[
        tuple[Path, ...],
        Field(
            min_length=1,
            description="`tilt_series.star` of aligned series, or images: `micrographs.star`, micrographs, movies "
            "(MRC, TIFF, EER), folders of them",
        ),
    ]
    lowest_defocus: Annotated[float, Field(gt=0, description="begin of the search in µm of underfocus")] = 0.3
    highest_defocus: Annotated[float, Field(gt=0, description="end of the search in µm of underfocus")] = 5.0
    view_range: Annotated[
        float, Field(gt=0, description="series: how far a view's defocus may be from the mean, in µm")
    ] = 0.5
    lowest_resolution: Annotated[float, Field(gt=0, description="where the fitted band begins, in Å")] = 30.0
    highest_resolution: Annotated[
        float | None,
        Field(gt=0, description="where it ends, in Å; 5, or 2.2 pixels where that is more, when not given"),
    ] = None
    tile: Annotated[float, Field(gt=0, description="side of the tiles whose spectra are averaged, in Å")] = (
        512.0
    )
    images_aligned: Annotated[
        bool,
        Field(
            description="series: the images were shifted and turned already, so no shift and no axis angle is right"
        ),
    ] = False
    aligned_stack: Annotated[
        bool,
        Field(
            description="series: also write the aligned stack and its sampling mask, which emClarity's table goes "
            "with"
        ),
    ] = False
    ice_thickness: Annotated[
        float | None,
        Field(
            gt=0,
            description="series: weight the views of the aligned stack by what passes ice of this thickness in Å and "
            "by their share of the exposure; emClarity takes 750; no weights when not given",
        ),
    ] = None
    grid: Annotated[
        str, Field(description="images: nodes of the defocus along x, y and time; 1x1x1 is one defocus")
    ] = "2x2x1"
    spectra: Annotated[
        Literal["average", "frames"],
        Field(
            description="images: spectra of the average (Warp's movie sum), or the sum of those of a movie's frames"
        ),
    ] = "average"
    gain: Annotated[
        Path | None, Field(description="movies: reference that frames are multiplied by, MRC or TIFF")
    ] = None
    eer_frames: Annotated[
        int | None, Field(ge=1, description="movies: raw frames of an EER movie that make one")
    ] = None
    eer_upsampling: Annotated[
        Literal[1, 2, 4], Field(description="movies: pixels along the side of an EER camera's")
    ] = 1
    find_phase_shift: Annotated[
        bool, Field(description="images: also find the phase shift of a phase plate")
    ] = False
    phase_shift: Annotated[
        float, Field(ge=0, lt=180, description="images: phase shift in degrees, where it is known")
    ] = 0.0
    pixel_size: Annotated[
        float | None,
        Field(gt=0, description="images: in Å; that of the table or the header when not given"),
    ] = None
    voltage: Annotated[float, Field(ge=60, le=1000, description="images: in kV, where no table says it")] = (
        300.0
    )
    cs: Annotated[
        float, Field(ge=0, description="images: spherical aberration in mm, where no table says it")
    ] = 2.7
    amplitude_contrast: Annotated[
        float, Field(ge=0, le=1, description="images: as a fraction, where no table says it")
    ] = 0.1


def list_items(params: CtfParams) -> list[Item]:
    """One item a tilt series or an image."""
    if params.lowest_defocus >= params.highest_defocus:
        raise UserError(
            f"`lowest_defocus` must be less than `highest_defocus`; got {params.lowest_defocus:g} and "
            f"{params.highest_defocus:g} µm"
        )
    if params.ice_thickness and not params.aligned_stack:
        raise UserError("`ice_thickness` weights the aligned stack; expected `aligned_stack` too")
    series = [path for path in params.inputs if _lists_series(path)]
    if not series:
        return list_images(params)
    if len(series) < len(params.inputs):
        other = next(path for path in params.inputs if path not in series)
        raise UserError(
            f"{str(series[0])!r} lists tilt series and {str(other)!r} images; expected one or the other"
        )
    return list_series(series)


def run_item(item: Item, params: CtfParams, context: Context) -> ItemResult:
    """Estimate one series or image."""
    run = run_series if isinstance(item.record, TiltSeries) else run_image
    return run(item, params, context)


def summarise(results: dict[str, ItemResult], params: CtfParams, folder: Path) -> Summary:
    """Write the tables and gather the figures."""
    is_series = _lists_series(params.inputs[0])
    return (summarise_ctf_series if is_series else summarise_images)(results, params, folder)


def estimate(items: list[Item], params: CtfParams) -> Estimate:
    """From the sizes of the images, and rates measured on one core."""
    is_series = isinstance(items[0].record, TiltSeries)
    return (estimate_series if is_series else estimate_images)(items, params)


def _lists_series(path: Path) -> bool:
    from verglas.io.star import read_star

    check_exists(path, "input of `ctf`")
    return path.suffix == ".star" and not {"micrographs", "movies"} & set(read_star(path))


CTF_STEP = Step(
    name="ctf",
    params=CtfParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
