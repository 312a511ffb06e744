"""`preprocess train`: the network that takes noise off micrographs, from sums of odd and of even frames.

What the job folder holds
-------------------------
=======================  =====================================================================================
`weights.npz`            the denoiser, for `preprocess --denoiser`
`figures/training.png`   the loss over the steps, and what is left of the noise where nothing was learned
`figures/examples.png`   parts that were held out: a half, the same filtered, and denoised
=======================  =====================================================================================
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from verglas.errors import UserError
from verglas.exec.threads import limit_threads
from verglas.steps.series_results import PROCESS_BYTES
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.micrograph.denoiser import Denoiser
    from verglas.algo.micrograph.denoiser_training import Pair
    from verglas.io.relion_micrographs import ListedMicrograph

_NAME = "denoiser"
_MOST_PIXELS = 48_000_000
_SHOWN, _SHOWN_PX = 3, 192


class TrainDenoiserParams(Params):
    """Train a network that takes noise off micrographs, on sums of odd and of even frames (Noise2Noise).

    The weights serve `preprocess --denoiser` for micrographs of the same kind and pixel size.
    """

    micrographs: Annotated[
        Path,
        Field(description="`micrographs.star` that names the halves, as `motion --odd-even` writes it"),
    ]
    pixel_size: Annotated[
        float | None,
        Field(gt=0, description="of the halves, in Å; that of the list or the header when not given"),
    ] = None
    downsample: Annotated[
        float | None, Field(gt=1, description="factor on the pixel size; pixels of 4 to 8 Å suit most")
    ] = None
    steps: Annotated[int, Field(ge=1, description="batches of eight parts of 128 x 128 pixels")] = 1200
    rate: Annotated[float, Field(gt=0, le=1, description="largest learning rate")] = 0.002
    seed: Annotated[int, Field(ge=0, description="chooses everything that is random")] = 0


def list_items(params: TrainDenoiserParams) -> list[Item]:
    """List the one item: the network."""
    from verglas.io.relion_micrographs import list_micrographs

    listed = [one for one in list_micrographs(params.micrographs) if one.halves]
    if not listed:
        raise UserError(
            f"{str(params.micrographs)!r} names no sums of odd and of even frames; expected a table with the columns "
            "rlnMicrographNameOdd and rlnMicrographNameEven, as `motion --odd-even` writes it"
        )
    return [Item(_NAME, listed, tuple(half for one in listed for half in one.halves or ()))]


def run_item(item: Item, params: TrainDenoiserParams, context: Context) -> ItemResult:
    """Train, judge on what was held out, and write the weights."""
    from verglas.algo.micrograph.denoiser import pack_denoiser
    from verglas.algo.micrograph.denoiser_training import judge_denoiser, start_denoiser, train_denoiser
    from verglas.io.network_weights import write_weights
    from verglas.runtime import choose_device

    pairs, pixel = _read_pairs(item.record, params)
    denoiser = start_denoiser(pairs, pixel, params.seed)
    denoiser.network.to(choose_device(context.device))
    # One thread, so that the weights do not depend on the machine's cores.
    with limit_threads(1):
        losses = train_denoiser(denoiser, pairs, steps=params.steps, rate=params.rate, seed=params.seed)
    denoiser.network.cpu()
    write_weights(context.folder / "weights.npz", pack_denoiser(denoiser))
    left = judge_denoiser(denoiser, pairs)
    figures = _draw(denoiser, pairs, losses, (left.linear, left.network), context.folder)
    values = {
        "micrographs": len(pairs),
        "pixel_size_angstrom": pixel,
        "loss": float(np.mean(losses[-50:])),
        "left_linear": left.linear,
        "left_network": left.network,
    }
    notes = []
    if left.network > left.linear:
        notes.append(
            f"the network leaves {left.network:.3f} of the specimen's strength as noise and the linear filter "
            f"{left.linear:.3f}: it is of no use; more `steps` or more micrographs may mend that"
        )
    return ItemResult(("weights.npz", *figures), values, tuple(notes))


def _read_pairs(listed: "list[ListedMicrograph]", params: TrainDenoiserParams) -> "tuple[list[Pair], float]":
    """Halves of as many micrographs, spread evenly over the list, as memory is meant for."""
    read = [_read_pair(listed[0], params)]
    count = min(len(listed), max(1, _MOST_PIXELS // read[0][0][0].numel()))
    read += [_read_pair(listed[place * len(listed) // count], params) for place in range(1, count)]
    pixels = [pixel for _, pixel in read]
    if max(pixels) > 1.01 * min(pixels):
        raise UserError(
            f"the micrographs have pixels of {min(pixels):.4g} to {max(pixels):.4g} Å; expected one pixel size"
        )
    return [pair for pair, _ in read], float(np.median(pixels))


def _read_pair(one: "ListedMicrograph", params: TrainDenoiserParams) -> "tuple[Pair, float]":
    """Read both halves of a micrograph, and their pixel size once downsampled."""
    import torch

    from verglas.algo.micrograph.operations import downsample
    from verglas.io.mrc import check_finite, read_image
    from verglas.io.relion_micrographs import read_micrograph

    halves, pixel = [], 0.0
    for path in one.halves or ():
        series = read_micrograph(path, params.pixel_size or one.pixel_size_angstrom)
        values = check_finite(read_image(series.images[0]), f"micrograph {str(path)!r}")
        half, factor = torch.from_numpy(values).double(), 1.0
        if params.downsample:
            half, factor = downsample(half, params.downsample)
        halves.append(half.float())
        pixel = series.pixel_size_angstrom * factor
    if halves[0].shape != halves[1].shape:
        raise UserError(
            f"the halves of {one.path.stem!r} have shapes {tuple(halves[0].shape)} and {tuple(halves[1].shape)}; "
            "expected the same"
        )
    return (halves[0], halves[1]), pixel


def _draw(
    denoiser: "Denoiser",
    pairs: "list[Pair]",
    losses: list[float],
    left: tuple[float, float],
    folder: Path,
) -> list[str]:
    from verglas.algo.micrograph.denoiser import denoise_image, describe_image, standardise
    from verglas.figures.denoising import draw_denoised, draw_training

    paths = [f"figures/{name}.png" for name in _CAPTIONS]
    draw_training(losses, left, folder / paths[0])
    shown = []
    for odd, _ in pairs[:: max(1, len(pairs) // _SHOWN)][:_SHOWN]:
        standard, mean, deviation = standardise(odd)
        filtered = describe_image(standard, denoiser.response, denoiser.gain)[1] / denoiser.gain
        found = (denoise_image(odd, denoiser, denoiser.pixel_size_angstrom, is_half=True) - mean) / deviation
        rows, middle = odd.shape[0], odd.shape[1] // 2
        part = (
            slice(max(0, rows - _SHOWN_PX), rows),
            slice(max(0, middle - _SHOWN_PX // 2), middle + _SHOWN_PX // 2),
        )
        shown.append(tuple(image[part].numpy() for image in (standard, filtered, found)))
    draw_denoised(shown, denoiser.pixel_size_angstrom, folder / paths[1])
    return paths


def summarise(results: dict[str, ItemResult], params: TrainDenoiserParams, folder: Path) -> Summary:
    """Gather the scores."""
    found = results[_NAME].values
    note = "noise left in a half, over the specimen's own strength, on rows that were held out"
    values = {
        "micrographs": Value(found["micrographs"], "", "that were learned from"),
        "pixel size": Value(round(found["pixel_size_angstrom"], 4), "Å", "of what it learned from"),
        "left by the network": Value(round(found["left_network"], 3), "", note),
        "left by a filter": Value(round(found["left_linear"], 3), "", "the same with the best linear filter"),
    }
    figures = [Figure(f"figures/{name}.png", caption) for name, caption in _CAPTIONS.items()]
    return Summary(figures, values, list(results[_NAME].warnings))


def estimate(items: list[Item], params: TrainDenoiserParams) -> Estimate:
    """From the steps, by times measured on one core."""
    return Estimate(PROCESS_BYTES + 24 * _MOST_PIXELS, 1 << 20, 0.15 * params.steps + 30)


_CAPTIONS = {
    "training": "loss over the steps, and the noise that is left where nothing was learned",
    "examples": "parts that were held out: a half, the same after the best linear filter, and denoised",
}

TRAIN_DENOISER_STEP = Step(
    name="preprocess train",
    params=TrainDenoiserParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
"""The denoiser of micrographs."""
