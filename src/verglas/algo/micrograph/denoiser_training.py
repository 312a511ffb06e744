"""Training of the denoiser on pairs of halves, and what it is worth where it was not trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.micrograph.denoiser import (
    SHELLS,
    Denoiser,
    denoise_image,
    describe_image,
    make_denoiser,
    standardise,
)
from verglas.errors import UserError
from verglas.ops.networks import descend
from verglas.ops.statistics import power_spectrum
from verglas.shapes import Image

Array = npt.NDArray[np.float32]
Pair = tuple[Image, Image]

CROP_PX = 128
"""Side of the parts that are learned from."""

HELD_OUT = 0.2
"""Share of each image, its last rows, that is not learned from."""

_BATCH = 8


@dataclass(frozen=True)
class Gain:
    """What is left of the noise, where nothing was learned.

    Parameters
    ----------
    linear, network
        Root mean square difference from the specimen that the halves have in common, over its own root mean square,
        of a half that was filtered by the best linear filter, and of one that was denoised.
    """

    linear: float
    network: float


def start_denoiser(pairs: Sequence[Pair], pixel_size_angstrom: float, seed: int) -> Denoiser:
    """Make a denoiser whose linear filter is the best for these halves.

    Parameters
    ----------
    pairs
        `(y, x)` sums of odd and of even frames of each micrograph.
    pixel_size_angstrom
        Of all of them.
    seed
        Chooses the network's first weights.

    Raises
    ------
    UserError
        When the halves have nothing in common.
    """
    common, total = torch.zeros(SHELLS), torch.zeros(SHELLS)
    for pair in pairs:
        odd, even = (standardise(half)[0] for half in pair)
        plus, minus = (_sample_spectrum(image) for image in (odd + even, odd - even))
        common, total = common + (plus - minus) / len(pairs), total + (plus + minus) / len(pairs)
    response = (common / total.clamp(min=1e-12)).clamp(0, 1)
    # Weighted by how many frequencies a ring has: the power of a half after the filter.
    rings = torch.arange(SHELLS) / (SHELLS - 1)
    power = float((response.square() * total / 4 * rings).sum() / rings.sum()) * math.pi / 4
    if not power > 1e-9:
        raise UserError("odd and even halves have nothing in common; expected two sums of one movie's frames")
    return make_denoiser(response, 1 / math.sqrt(power), pixel_size_angstrom, seed)


def _sample_spectrum(image: Image) -> Float[Tensor, " shells"]:
    """Power a pixel's variance, around each of the frequencies at which the linear filter is known."""
    frequency, power = power_spectrum(image - image.mean(), 1.0)
    places = (frequency * 2 * (SHELLS - 1)).round().long()
    inside = places < SHELLS
    sums = torch.zeros(SHELLS).index_add_(0, places[inside], power[inside].float())
    counts = torch.zeros(SHELLS).index_add_(0, places[inside], torch.ones(int(inside.sum())))
    known = counts > 0
    found = np.interp(np.arange(SHELLS), known.nonzero()[:, 0].numpy(), (sums[known] / counts[known]).numpy())
    return torch.from_numpy(found.astype(np.float32))


def train_denoiser(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    *,
    steps: int,
    rate: float,
    seed: int,
) -> list[float]:
    """Train the network of a denoiser in place.

    Parameters
    ----------
    denoiser
        As :func:`start_denoiser` makes it.
    pairs
        `(y, x)` halves at the denoiser's pixel size.
    steps
        Batches of eight parts of halves, turned and mirrored; either half is predicted from the other.
    rate
        Largest learning rate of Adam.
    seed
        Chooses the parts and what becomes of them.

    Returns
    -------
    list
        The loss of each step: mean square difference from the other half, in units of its noise.

    Raises
    ------
    UserError
        When an image is too small.
    """
    for odd, _ in pairs:
        if min(odd.shape[0] * (1 - HELD_OUT), odd.shape[1]) < CROP_PX:
            raise UserError(
                f"halves of {odd.shape[0]} x {odd.shape[1]} pixels are too small to learn from; expected at least "
                f"{math.ceil(CROP_PX / (1 - HELD_OUT))} x {CROP_PX}"
            )
    network, gain = denoiser.network, denoiser.gain
    device = next(network.parameters()).device
    seen = [
        [describe_image(standardise(half)[0], denoiser.response, gain).numpy() for half in pair]
        for pair in pairs
    ]
    rng = np.random.default_rng([seed, 2])

    def measure_loss() -> Tensor:
        drawn = [_draw_part(seen[int(rng.integers(len(seen)))], rng) for _ in range(_BATCH)]
        views, wanted = (torch.from_numpy(np.stack(parts)).to(device) for parts in zip(*drawn, strict=True))
        difference = network(views) + views[:, 1:] - gain * wanted
        return torch.as_tensor(difference.square().mean() / gain**2)

    return descend(network, measure_loss, steps=steps, rate=rate)


def _draw_part(pair: Sequence[Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """Cut the same part of both halves, turn and mirror it: what the network sees of one, and the other."""
    first = int(rng.integers(2))
    _, y, x = pair[0].shape
    rows = int(y * (1 - HELD_OUT))
    top, left = int(rng.integers(rows - CROP_PX + 1)), int(rng.integers(x - CROP_PX + 1))
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))

    def cut(half: Array) -> Array:
        part = np.rot90(half[:, top : top + CROP_PX, left : left + CROP_PX], turns, (1, 2))
        return np.ascontiguousarray(part[:, :, ::-1] if mirrored else part)

    return cut(pair[first]), cut(pair[1 - first][:1])


def judge_denoiser(denoiser: Denoiser, pairs: Sequence[Pair]) -> Gain:
    """Measure on the rows that were held out how near halves come to the specimen.

    With a half h, the other half o and what became of the first, f(h), the noise of one being independent of that of
    the other, the mean square error is that of f(h)² - 2 f(h) o + h o; nothing needs to be known of the specimen.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for pair in pairs:
        odd, even = (standardise(half[int(half.shape[0] * (1 - HELD_OUT)) :])[0] for half in pair)
        common = (odd * even).double().mean()
        for one, other in ((odd, even), (even, odd)):
            linear = describe_image(one, denoiser.response, denoiser.gain)[1] / denoiser.gain
            network = denoise_image(one, denoiser, denoiser.pixel_size_angstrom, is_half=True)
            sums[0] += common
            for index, guess in enumerate((linear, network), 1):
                sums[index] += (guess.square() - 2 * guess * other).double().mean() + common
    left = (sums[1:] / sums[0].clamp(min=1e-12)).clamp(min=0).sqrt()
    return Gain(float(left[0]), float(left[1]))
