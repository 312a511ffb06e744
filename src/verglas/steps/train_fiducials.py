"""`fiducials train`: the network that masks gold, thick contamination, carbon and grid bars."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.exec.threads import limit_threads
from verglas.steps.fiducials import WEIGHTS
from verglas.steps.series_results import PROCESS_BYTES, choose_pixel_size
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.fiducials.training import Example

_NAME = "network"
_FEWEST_TO_HOLD_OUT = 5
_JUDGED, _DRAWN = 60, 6


class TrainFiducialsParams(Params):
    """Train the network that masks gold, thick contamination, carbon and grid bars.

    Without images it learns from simulated scenes alone; that is how the weights that come with verglas were made.
    With a few images and masks made by hand it goes on from those, and half of what it sees are the images.
    """

    images: Annotated[
        tuple[Path, ...], Field(description="MRC images or stacks that were masked by hand")
    ] = ()
    masks: Annotated[
        tuple[Path, ...],
        Field(
            description="their masks in the same order and of the same shapes: 0 specimen, 1 gold, 2 contamination, "
            "3 carbon, 4 grid bar"
        ),
    ] = ()
    pixel_size: Annotated[
        float | None, Field(gt=0, description="of the images in Å; that of their headers when not given")
    ] = None
    weights: Annotated[
        Path | None,
        Field(
            description="to start from; when not given those that come with verglas where there are images, else "
            "random ones"
        ),
    ] = None
    steps: Annotated[int, Field(ge=1, description="batches of eight parts of images")] = 2400
    scenes: Annotated[int, Field(ge=0, description="simulated scenes to learn from")] = 1000
    rate: Annotated[float, Field(gt=0, le=1, description="largest learning rate")] = 0.004
    seed: Annotated[int, Field(ge=0, description="chooses everything that is random")] = 0


def list_items(params: TrainFiducialsParams) -> list[Item]:
    """List the one item: the network."""
    if len(params.images) != len(params.masks):
        raise UserError(
            f"every one of the images needs a mask; got {len(params.images)} `images` and {len(params.masks)} `masks`"
        )
    files = (*params.images, *params.masks, *([params.weights] if params.weights else []))
    return [Item(_NAME, None, tuple(files))]


def run_item(item: Item, params: TrainFiducialsParams, context: Context) -> ItemResult:
    """Train, judge on what was held out, and write the weights."""
    from verglas.algo.fiducials.network import KINDS, make_network
    from verglas.algo.fiducials.training import judge_network, make_scenes, train_network
    from verglas.io.network_weights import read_shipped_weights, read_weights, write_weights
    from verglas.ops.networks import list_weights
    from verglas.runtime import choose_device

    handmade = [
        part for pair in zip(params.images, params.masks, strict=True) for part in _read_pair(*pair, params)
    ]
    start = None
    if params.weights:
        start = read_weights(params.weights)
    elif handmade:
        start = read_shipped_weights(WEIGHTS)
    network = make_network(start, params.seed).to(choose_device(context.device))
    held_out = handmade[::_FEWEST_TO_HOLD_OUT] if len(handmade) >= _FEWEST_TO_HOLD_OUT else []
    learned = [part for index, part in enumerate(handmade) if not held_out or index % _FEWEST_TO_HOLD_OUT]
    scenes = make_scenes(params.scenes, params.seed)
    # One thread, so that the weights do not depend on the machine's cores; convolutions this small gain little.
    with limit_threads(1):
        losses = train_network(
            network, scenes, learned, steps=params.steps, rate=params.rate, seed=params.seed
        )
    write_weights(context.folder / "weights.npz", list_weights(network.cpu()))
    judged = make_scenes(_JUDGED, params.seed, held_out=True)
    values: dict[str, Any] = {"steps": len(losses), "loss": round(float(np.mean(losses[-20:])), 4)}
    for name, examples in (("", judged), ("_handmade", held_out)):
        if examples:
            scores = judge_network(network, examples)
            for index, kind in enumerate(KINDS):
                values[f"{kind}_precision{name}"] = round(float(scores.precision[index]), 3)
                values[f"{kind}_recall{name}"] = round(float(scores.recall[index]), 3)
                values[f"{kind}_overlap{name}"] = round(float(scores.overlap[index]), 3)
    figures = _draw(network, losses, values, [*held_out, *_choose_shown(judged)], context.folder)
    return ItemResult(("weights.npz", *figures), values)


def _read_pair(image: Path, mask: Path, params: TrainFiducialsParams) -> "list[Example]":
    """Images of a file and their classes, at the network's pixel size."""
    import torch

    from verglas.algo.fiducials.network import KINDS, count_block
    from verglas.io.mrc import check_finite, read_mrc, read_mrc_header
    from verglas.ops.binning import bin_images

    header = read_mrc_header(image)
    views = check_finite(read_mrc(image), f"image {str(image)!r}")
    classes = np.rint(read_mrc(mask)).astype(np.int64)
    if classes.shape != views.shape:
        raise UserError(
            f"mask {str(mask)!r} has shape {classes.shape}; expected that of its image, {views.shape}"
        )
    if classes.min() < 0 or classes.max() > len(KINDS):
        raise UserError(
            f"mask {str(mask)!r} holds values from {classes.min()} to {classes.max()}; expected 0 to {len(KINDS)}"
        )
    pixel, _ = choose_pixel_size(params.pixel_size, header.pixel_size_angstrom, None, str(image))
    factor = count_block(pixel)
    small = bin_images(torch.from_numpy(views), factor).numpy()
    shares = [
        bin_images(torch.from_numpy((classes == kind).astype(np.float32)), factor)
        for kind in range(len(KINDS) + 1)
    ]
    return list(zip(small, torch.stack(shares).argmax(dim=0).numpy(), strict=True))


def _choose_shown(examples: "list[Example]") -> "list[Example]":
    """Those in which most kinds are to be seen."""
    kinds = [len(np.unique(labels)) for _, labels in examples]
    return [examples[int(index)] for index in np.argsort(kinds, kind="stable")[::-1][:_DRAWN]]


def _draw(
    network: Any, losses: list[float], values: dict[str, Any], shown: "list[Example]", folder: Path
) -> list[str]:
    import torch

    from verglas.algo.fiducials.network import KINDS, describe_views
    from verglas.figures.masks import draw_examples, draw_training

    paths = [f"figures/{kind}.png" for kind in _CAPTIONS]
    scores = {
        name: [values[f"{kind}_{name}"] for kind in KINDS] for name in ("precision", "recall", "overlap")
    }
    draw_training(losses, scores, KINDS, folder / paths[0])
    images, truth, found = [], [], []
    for image, labels in shown[:_DRAWN]:
        side = min(*image.shape, _SHOWN_PX) // 8 * 8
        view: npt.NDArray[np.float32] = image[:side, :side]
        with torch.inference_mode():
            said = network(describe_views(torch.from_numpy(view[None])))[0].argmax(dim=0).numpy()
        images.append(view)
        truth.append(labels[:side, :side])
        found.append(said)
    draw_examples(images, truth, found, KINDS, folder / paths[1])
    return paths


def summarise(results: dict[str, ItemResult], params: TrainFiducialsParams, folder: Path) -> Summary:
    """Gather the scores."""
    from verglas.algo.fiducials.network import KINDS

    found = results[_NAME].values
    values = {"loss": Value(found["loss"], "", "mean of the last twenty steps")}
    for kind in KINDS:
        values[kind] = Value(
            found[f"{kind}_overlap"],
            "",
            "intersection over union with the truth, on simulated scenes held out",
        )
        if f"{kind}_overlap_handmade" in found:
            values[f"{kind}, by hand"] = Value(
                found[f"{kind}_overlap_handmade"],
                "",
                "the same on images with masks by hand that were held out",
            )
    figures = [Figure(f"figures/{kind}.png", caption) for kind, caption in _CAPTIONS.items()]
    return Summary(figures, values)


def estimate(items: list[Item], params: TrainFiducialsParams) -> Estimate:
    """From the steps and scenes, by times measured on one core."""
    return Estimate(PROCESS_BYTES + (400 << 20), 1 << 20, 0.18 * params.steps + 0.07 * params.scenes)


_SHOWN_PX = 160
_CAPTIONS = {
    "training": "loss over the steps, and precision, recall and overlap of each kind on scenes that were held out",
    "examples": "images that were held out, what is there, and what the network says",
}

TRAIN_FIDUCIALS_STEP = Step(
    name="fiducials train",
    params=TrainFiducialsParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
