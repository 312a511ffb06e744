"""Training of the network: on simulated scenes, and on a few images with masks made by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from verglas.algo.fiducials.network import KINDS, MaskNet, describe_views
from verglas.algo.fiducials.scenes import SceneRanges, draw_scene
from verglas.errors import UserError
from verglas.ops.networks import descend

Image = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Example = tuple[Image, IntArray]

SCENE_PX = 160
CROP_PX = 128
"""Side of the scenes that are drawn, and of the parts of them that are learned from."""

_BATCH = 8
_WEIGHTS = (1.0, 3.0, 1.0, 1.0, 1.0)
"""What each class counts in the loss: gold fills few pixels."""

_HELD_OUT = 1 << 20


@dataclass(frozen=True, eq=False)
class Scores:
    """How well masks agree with the truth, by kind.

    Parameters
    ----------
    precision, recall, overlap
        `(kinds,)` share of what was masked that is right, of what is there that was masked, and of both together
        (intersection over union); NaN where there is nothing.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]


def make_scenes(
    count: int, seed: int, ranges: SceneRanges | None = None, *, held_out: bool = False
) -> list[Example]:
    """Draw scenes to learn from, or, from other seeds, to judge by."""
    start = _HELD_OUT if held_out else 0
    return [draw_scene((seed, start + index), SCENE_PX, ranges) for index in range(count)]


def train_network(
    network: MaskNet,
    scenes: Sequence[Example],
    handmade: Sequence[Example] = (),
    *,
    steps: int,
    rate: float,
    seed: int,
) -> list[float]:
    """Train a network in place.

    Parameters
    ----------
    network
        Random, or trained before.
    scenes, handmade
        Images `(y, x)` at the network's pixel size, and the class of each pixel. Where both are given, half of what
        is learned from is handmade.
    steps
        Batches of eight parts of images, turned, mirrored, and brightened unevenly.
    rate
        Largest learning rate of Adam; it rises over the first tenth and falls as a cosine.
    seed
        Chooses the parts and what becomes of them.

    Returns
    -------
    list
        The loss of each step.

    Raises
    ------
    UserError
        When there is nothing to learn from.
    """
    if not scenes and not handmade:
        raise UserError("there is nothing to learn from: expected scenes or images with masks")
    rng = np.random.default_rng([seed, 1])
    device = next(network.parameters()).device
    weights = torch.tensor(_WEIGHTS, device=device)

    def measure_loss() -> Tensor:
        views, labels = (part.to(device) for part in _draw_batch(scenes, handmade, rng))
        return _measure_loss(network(views), labels, weights)

    # A fifth faster on the CPU.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    losses = descend(network, measure_loss, steps=steps, rate=rate)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return losses


def judge_network(network: MaskNet, examples: Sequence[Example]) -> Scores:
    """Compare what a network says of images with the truth, pixel by pixel."""
    counts = np.zeros((3, len(KINDS)))
    device = next(network.parameters()).device
    with torch.inference_mode():
        for image, labels in examples:
            y, x = (size // 8 * 8 for size in image.shape)
            view = describe_views(torch.from_numpy(image[None, :y, :x])).to(device)
            found = network(view)[0].argmax(dim=0).cpu().numpy()
            for kind in range(len(KINDS)):
                said, true = found == kind + 1, labels[:y, :x] == kind + 1
                counts[:, kind] += [(said & true).sum(), said.sum(), true.sum()]
    both, said, true = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return Scores(both / said, both / true, both / (said + true - both))


def _draw_batch(
    scenes: Sequence[Example], handmade: Sequence[Example], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    parts = []
    for index in range(_BATCH):
        pool = handmade if handmade and (index % 2 or not scenes) else scenes
        image, labels = pool[int(rng.integers(len(pool)))]
        parts.append(_draw_part(image, labels, rng))
    views = torch.from_numpy(np.stack([view for view, _ in parts]))
    return describe_views(views), torch.from_numpy(np.stack([truth for _, truth in parts]))


def _draw_part(image: Image, labels: IntArray, rng: np.random.Generator) -> Example:
    """Cut a part of an image, turn and mirror it, and brighten it unevenly."""
    frame = [(0, max(0, CROP_PX - size)) for size in image.shape]
    view, truth = np.pad(image, frame, mode="symmetric"), np.pad(labels, frame, mode="symmetric")
    y, x = (int(rng.integers(size - CROP_PX + 1)) for size in view.shape)
    part = np.s_[y : y + CROP_PX, x : x + CROP_PX]
    turns = int(rng.integers(4))
    view, truth = np.rot90(view[part], turns), np.rot90(truth[part], turns)
    if rng.uniform() < 0.5:
        view, truth = view[:, ::-1], truth[:, ::-1]
    steps = np.linspace(-0.5, 0.5, CROP_PX)
    slope = rng.normal(0, 0.1, 2)
    uneven = 1 + slope[0] * steps[:, None] + slope[1] * steps
    # Images whose mean was taken off have no zero of their own.
    zero = min(0.0, float(view.min()))
    bright = zero + (view - zero) * uneven
    noise = rng.uniform(0, 0.2) * rng.uniform() * view.std()
    bright = bright + noise * rng.standard_normal(view.shape)
    return np.ascontiguousarray(bright, np.float32), np.ascontiguousarray(truth)


def _measure_loss(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy, and what the kinds' overlaps lack (Dice), so that small kinds count like large ones."""
    entropy: Tensor = cross_entropy(scores, labels, weight=weights)
    chances = scores.softmax(dim=1)[:, 1:]
    truth = torch.stack([(labels == kind + 1).float() for kind in range(len(KINDS))], dim=1)
    both, size = (chances * truth).sum((0, 2, 3)), (chances + truth).sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    lack = 1 - (2 * both + 1) / (size + 1)
    return entropy + 0.5 * (lack * present).sum() / present.sum().clamp(min=1)
