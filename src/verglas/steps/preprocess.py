"""`preprocess`: operations on micrographs, in the order of Xmipp's protocol of that name.

What the job folder holds
-------------------------
=========================  =====================================================================================
`micrographs.star`         the micrographs that are done, with their true pixel size
`micrographs/<name>.mrc`   a micrograph, float32 or float16; it appears when all operations on it are done
`figures/<name>.png`       the micrograph and its spectrum before and after
=========================  =====================================================================================
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
from verglas.model import Optics
from verglas.steps.series_results import PROCESS_BYTES, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.micrograph.recipe import Cutoff, Recipe

_TILE = 512
_MOST_TILES = 24
_DRAWN_PIXELS = 640


class PreprocessParams(Params):
    """Work on micrographs, in this order: crop, log, bad pixels, invert, downsample, denoise, filter, normalise."""

    model_config = ConfigDict(allow_inf_nan=False)

    micrographs: Annotated[
        tuple[Path, ...],
        Field(
            min_length=1,
            description="MRC files, a folder of them, `micrographs.star`, or a JSON list of paths",
        ),
    ]
    pixel_size: Annotated[
        float | None,
        Field(gt=0, description="of the micrographs, in Å; that of the list or the header when not given"),
    ] = None
    crop: Annotated[int | None, Field(gt=0, description="pixels to cut off each of the four sides")] = None
    log: Annotated[bool, Field(description="take a - b ln(x + c) of the grey levels, for film")] = False
    log_constants: Annotated[tuple[float, float, float], Field(description="a, b and c of the logarithm")] = (
        4.431,
        0.402,
        336.6,
    )
    bad_pixels: Annotated[
        float | None,
        Field(
            gt=0,
            description="replace pixels that are farther than this many standard deviations from the mean by the "
            "median of their neighbours; 5 is usual",
        ),
    ] = None
    invert: Annotated[bool, Field(description="change the sign of the contrast")] = False
    downsample: Annotated[
        float | None, Field(gt=1, description="factor on the pixel size; need not be whole")
    ] = None
    denoise: Annotated[
        int | None, Field(ge=1, le=1000, description="iterations of total-variation denoising; 50 is usual")
    ] = None
    denoiser: Annotated[
        Path | None,
        Field(
            description="weights of a network that `preprocess train` made, to denoise in place of total variation"
        ),
    ] = None
    gaussian: Annotated[
        float | None, Field(gt=0, description="standard deviation of a blur, in pixels as they are by then")
    ] = None
    gaussian_angstrom: Annotated[float | None, Field(gt=0, description="the same, in Å")] = None
    highpass: Annotated[
        float | None,
        Field(gt=0, description="keep what is above this frequency, in 1/pixel as they are by then"),
    ] = None
    highpass_angstrom: Annotated[float | None, Field(gt=0, description="the same as a resolution in Å")] = (
        None
    )
    highpass_width: Annotated[
        float, Field(gt=0, description="1/pixel below the cut-off over which the high-pass falls to 0")
    ] = 0.001
    lowpass: Annotated[
        float | None,
        Field(gt=0, description="keep what is below this frequency, in 1/pixel as they are by then"),
    ] = None
    lowpass_angstrom: Annotated[float | None, Field(gt=0, description="the same as a resolution in Å")] = None
    lowpass_width: Annotated[
        float, Field(gt=0, description="1/pixel above the cut-off over which the low-pass falls to 0")
    ] = 0.001
    normalise: Annotated[bool, Field(description="bring the mean to 0 and the standard deviation to 1")] = (
        False
    )
    as_xmipp: Annotated[
        bool,
        Field(
            description="do what Xmipp's programs do where that is not what their labels say: a blur of sigma over "
            "root 2, denoised images from 0 to 1, sizes rounded down when downsampling"
        ),
    ] = False
    float16: Annotated[bool, Field(description="write 16-bit floats, MRC mode 12")] = False
    voltage: Annotated[float, Field(gt=0, description="in kV, where no table says it")] = 300.0
    cs: Annotated[float, Field(ge=0, description="spherical aberration in mm, where no table says it")] = 2.7
    amplitude_contrast: Annotated[
        float, Field(ge=0, le=1, description="as a fraction, where no table says it")
    ] = 0.1

    @model_validator(mode="after")
    def _check_operations(self) -> Self:
        for name in ("gaussian", "highpass", "lowpass"):
            if getattr(self, name) is not None and getattr(self, f"{name}_angstrom") is not None:
                raise ValueError(f"expected one of `{name}` and `{name}_angstrom`, and not both")
        if self.denoise is not None and self.denoiser is not None:
            raise ValueError("expected one of `denoise` and `denoiser`, and not both")
        names = ("crop", "log", "bad_pixels", "invert", "downsample", "denoise", "denoiser", "normalise")
        filters = ("gaussian", "highpass", "lowpass")
        asked = [*names, *filters, *(f"{name}_angstrom" for name in filters)]
        if not any(getattr(self, name) for name in asked):
            raise ValueError(f"there is nothing to do: expected at least one of {', '.join(asked)}")
        return self


def make_recipe(params: PreprocessParams) -> "Recipe":
    """Turn parameters into what the algorithm takes."""
    from verglas.algo.micrograph.denoiser import unpack_denoiser
    from verglas.algo.micrograph.recipe import Cutoff, Recipe
    from verglas.io.network_weights import read_weights

    def cutoff(name: str) -> "Cutoff | None":
        pixels, angstrom = getattr(params, name), getattr(params, f"{name}_angstrom")
        if angstrom is not None:
            return Cutoff(angstrom, is_angstrom=True)
        return None if pixels is None else Cutoff(pixels)

    return Recipe(
        crop=params.crop,
        logarithm=params.log_constants if params.log else None,
        bad_pixels=params.bad_pixels,
        invert=params.invert,
        downsample=params.downsample,
        denoise=params.denoise,
        denoiser=unpack_denoiser(read_weights(params.denoiser)) if params.denoiser else None,
        gaussian=cutoff("gaussian"),
        highpass=cutoff("highpass"),
        highpass_width=params.highpass_width,
        lowpass=cutoff("lowpass"),
        lowpass_width=params.lowpass_width,
        normalise=params.normalise,
        as_xmipp=params.as_xmipp,
    )


def list_items(params: PreprocessParams) -> list[Item]:
    """One item a micrograph; none is opened yet."""
    from verglas.io.relion_micrographs import list_micrographs

    listed = [one for path in params.micrographs for one in list_micrographs(path)]
    if params.pixel_size:
        listed = [replace(one, pixel_size_angstrom=params.pixel_size) for one in listed]
    weights = (params.denoiser,) if params.denoiser else ()
    return [Item(one.path.stem, one, (one.path, *weights)) for one in listed]


def run_item(item: Item, params: PreprocessParams, context: Context) -> ItemResult:
    """Work on one micrograph, write it whole, and draw it."""
    import torch

    from verglas.algo.micrograph.recipe import process_micrograph
    from verglas.io.mrc import check_finite, read_image, write_mrc
    from verglas.io.relion_micrographs import ListedMicrograph, read_micrograph
    from verglas.runtime import choose_device

    listed: ListedMicrograph = item.record
    series = read_micrograph(listed.path, listed.pixel_size_angstrom)
    pixels = check_finite(read_image(series.images[0]), f"micrograph {str(listed.path)!r}")
    before = torch.from_numpy(pixels).to(choose_device(context.device))
    try:
        done = process_micrograph(before, series.pixel_size_angstrom, make_recipe(params))
    except UserError as error:
        raise UserError(f"micrograph {item.name!r} cannot be processed: {error}") from None
    after = done.image.float().cpu()
    path, figure = f"micrographs/{item.name}.mrc", f"figures/{item.name}.png"
    write_mrc(
        context.folder / path,
        after.numpy(),
        voxel_size_angstrom=done.pixel_size_angstrom,
        dtype=np.float16 if params.float16 else np.float32,
    )
    _draw(
        (before.cpu(), after), (series.pixel_size_angstrom, done.pixel_size_angstrom), context.folder / figure
    )
    values = {
        "from_pixel_size_angstrom": series.pixel_size_angstrom,
        "pixel_size_angstrom": done.pixel_size_angstrom,
        "from_shape": list(before.shape),
        "shape": list(after.shape),
        "bad_pixels": done.bad_pixels,
        "mean": float(done.image.mean()),
        "standard_deviation": float(done.image.std()),
    }
    return ItemResult((path, figure), values, done.notes)


def _draw(images: "tuple[torch.Tensor, torch.Tensor]", pixels: tuple[float, float], path: Path) -> None:
    from verglas.figures.micrographs import draw_before_after
    from verglas.ops.binning import bin_images

    first, second = zip(images, pixels, strict=True)
    factors = [max(1, max(image.shape) // _DRAWN_PIXELS) for image in images]
    small = [bin_images(image, factor).numpy() for image, factor in zip(images, factors, strict=True)]
    draw_before_after(
        (small[0], small[1]),
        (pixels[0] * factors[0], pixels[1] * factors[1]),
        (_measure_spectrum(*first), _measure_spectrum(*second)),
        path,
        title="power spectra, means of tiles",
    )


def _measure_spectrum(
    image: "torch.Tensor", pixel: float
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Average the spectra of some tiles, each less its mean and tapered."""
    import torch

    from verglas.ops.masks import taper_edges
    from verglas.ops.statistics import power_spectrum

    side = min(_TILE, *image.shape)
    tiles = [
        image[y : y + side, x : x + side]
        for y in range(0, image.shape[0] - side + 1, side)
        for x in range(0, image.shape[1] - side + 1, side)
    ]
    chosen = tiles[:: -(-len(tiles) // _MOST_TILES)]
    tapered = taper_edges(torch.stack(chosen), side / 8)
    frequency, power = power_spectrum(tapered - tapered.mean((-2, -1), keepdim=True), pixel)
    return frequency.numpy(), power.mean(dim=0).numpy()


def summarise(results: dict[str, ItemResult], params: PreprocessParams, folder: Path) -> Summary:
    """Write `micrographs.star` of those that are done."""
    from verglas.io.relion_micrographs import tabulate_micrographs, write_micrographs

    images = {name: folder / f"micrographs/{name}.mrc" for name in results}
    factors = {
        name: one.values["pixel_size_angstrom"] / one.values["from_pixel_size_angstrom"]
        for name, one in results.items()
    }
    factor = float(np.median(list(factors.values())))
    star = folder / "micrographs.star"
    if len(params.micrographs) == 1 and params.micrographs[0].suffix == ".star":
        write_micrographs(star, params.micrographs[0], images, pixel_factor=factor)
    else:
        tabulate_micrographs(
            star,
            {
                images[name]: Optics(
                    round(one.values["pixel_size_angstrom"], 6),
                    params.voltage,
                    params.cs,
                    params.amplitude_contrast,
                )
                for name, one in results.items()
            },
        )
    sizes = [one.values["pixel_size_angstrom"] for one in results.values()]
    values = {
        "micrographs": Value(len(results), "", "in micrographs/"),
        "operations": Value(", ".join(make_recipe(params).names), "", "in the order they were done"),
        "pixel size": Value(round(float(np.median(sizes)), 5), "Å", "of the micrographs as they are now"),
    }
    if params.bad_pixels is not None:
        counts = [one.values["bad_pixels"] for one in results.values()]
        values["bad pixels"] = Value(
            round(float(np.median(counts))), "", "replaced in a micrograph; the median"
        )
    figures = [Figure(f"figures/{name}.png", f"{name}: {_CAPTION}") for name in list(results)[:_MOST_FIGURES]]
    return Summary(figures, values, gather_warnings(results), ["micrographs.star"])


_MOST_FIGURES = 24
_CAPTION = (
    "before and after, each in grey levels of its own; below their power spectra, equal at low frequency"
)


def estimate(items: list[Item], params: PreprocessParams) -> Estimate:
    """From the sizes of the files, by times measured on one core."""
    pixels = [_count_pixels(item.record.path) for item in items]
    factor = (params.downsample or 1.0) ** 2
    work = 1.2e-7 + (2.5e-8 * (params.denoise or 0) + 3e-7 * bool(params.denoiser) + 1e-7) / factor
    kept = 2 if params.float16 else 4
    return Estimate(
        PROCESS_BYTES + 60 * max(pixels, default=0),
        int(kept * sum(pixels) / factor) + (len(items) << 19),
        sum(pixels) * work + 3.0 * len(items),
    )


def _count_pixels(path: Path) -> int:
    from verglas.io.mrc_header import read_mrc_header

    try:
        return int(np.prod(read_mrc_header(path).shape))
    except UserError:  # one that is not there yet, or not whole
        return 1 << 24


PREPROCESS_STEP = Step("preprocess", PreprocessParams, list_items, run_item, summarise, estimate)
"""Operations on micrographs."""
