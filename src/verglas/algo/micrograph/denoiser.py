"""A network that takes noise off micrographs, learned from sums of odd and of even frames alone.

Lehtinen et al., *ICML* 2018 (Noise2Noise); Bepler et al., *Nat. Commun.* 11, 5208 (2020) for micrographs. The two
halves show one specimen under noise of their own, so that whoever predicts one from the other best, in the mean of
squares, predicts the specimen. The network adds to what the best linear filter gives, which is known from the halves'
spectra.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from verglas.errors import UserError
from verglas.ops.fft import radial_frequency
from verglas.ops.networks import UNet, Weights, list_weights, load_weights
from verglas.shapes import Image

CHANNELS = (16, 24, 32, 48)

SHELLS = 65
"""Frequencies, from 0 to 0.5 per pixel, at which the linear filter is known."""

PIXEL_TOLERANCE = 0.05
"""By how much an image's pixel size may miss the network's, as a part of it."""

_TILE, _MARGIN = 512, 64
"""Pixels a side that are done at a time, and how many beyond them are seen: more than the network reaches (52)."""


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network, and what it was trained for.

    Parameters
    ----------
    network
        Of two channels, the image and the image filtered, to what the latter lacks.
    response
        `(SHELLS,)` the best linear filter of a half: the share of the halves' power that they have in common.
    gain
        What brings a filtered half to a standard deviation of one.
    pixel_size_angstrom
        Of the halves it learned from.
    """

    network: UNet
    response: Float[Tensor, " shells"]
    gain: float
    pixel_size_angstrom: float


def make_denoiser(
    response: Float[Tensor, " shells"], gain: float, pixel_size_angstrom: float, seed: int
) -> Denoiser:
    """Make a denoiser that does no more yet than its linear filter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(2, 1, CHANNELS, batch_norm=False)
    torch.nn.init.zeros_(network.last.weight)
    assert network.last.bias is not None
    torch.nn.init.zeros_(network.last.bias)
    # Three times as fast on the CPU as with the channels first.
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Denoiser(network, response, gain, pixel_size_angstrom)


def pack_denoiser(denoiser: Denoiser) -> Weights:
    """Arrays by name that :func:`unpack_denoiser` makes the same denoiser of."""
    about = {
        "response": denoiser.response.cpu(),
        "gain": torch.tensor(denoiser.gain, dtype=torch.float64),
        "pixel_size_angstrom": torch.tensor(denoiser.pixel_size_angstrom, dtype=torch.float64),
    }
    return list_weights(denoiser.network) | {name: value.numpy() for name, value in about.items()}


def unpack_denoiser(weights: Weights) -> Denoiser:
    """Make a denoiser of its arrays.

    Raises
    ------
    UserError
        When they are not those of a denoiser.
    """
    about = {"response": (SHELLS,), "gain": (), "pixel_size_angstrom": ()}
    for name, shape in about.items():
        if name not in weights or weights[name].shape != shape:
            raise UserError(
                f"the weights are not those of a denoiser: expected {name!r} of shape {shape}, as "
                "`preprocess train` writes it"
            )
    denoiser = make_denoiser(
        torch.from_numpy(weights["response"].astype("float32")),
        float(weights["gain"]),
        float(weights["pixel_size_angstrom"]),
        seed=0,
    )
    load_weights(denoiser.network, {name: value for name, value in weights.items() if name not in about})
    return denoiser


def denoise_image(
    image: Image, denoiser: Denoiser, pixel_size_angstrom: float, *, is_half: bool = False, sign: int = 1
) -> Image:
    """Take the noise off a micrograph.

    Parameters
    ----------
    image
        `(y, x)`, hot pixels removed; neither offset nor scale makes a difference.
    denoiser
        Trained.
    pixel_size_angstrom
        Of the image.
    is_half
        Whether this is the sum of odd or of even frames, as those it learned from; else it is that of all, in which
        the noise's power is half of it.
    sign
        -1 where the contrast was changed since the halves were summed.

    Returns
    -------
    Tensor
        `(y, x)` in the grey levels of the image.

    Raises
    ------
    UserError
        When the pixel size is not the network's, or the image is flat.
    """
    ratio = pixel_size_angstrom / denoiser.pixel_size_angstrom
    if abs(ratio - 1) > PIXEL_TOLERANCE:
        raise UserError(
            f"the denoiser learned from pixels of {denoiser.pixel_size_angstrom:.4g} Å, and those of the image are "
            f"{pixel_size_angstrom:.4g} Å by then; expected the same to {100 * PIXEL_TOLERANCE:g} %: see `downsample`"
        )
    response = denoiser.response.to(image.device)
    if not is_half:
        response = 2 * response / (1 + response)
    standard, mean, deviation = standardise(image)
    seen = describe_image(sign * standard, response, denoiser.gain)
    network = denoiser.network.to(image.device)
    with torch.inference_mode():
        found = (_run_in_tiles(network, seen) + seen[1]) * (sign / denoiser.gain)
    return (found.double() * deviation + mean).to(image.dtype)


def standardise(image: Image) -> tuple[Image, float, float]:
    """Bring an image to mean 0 and noise 1; the latter is taken from the differences of neighbours in a row.

    Returns
    -------
    tuple
        The image in single precision, its mean, and its noise's standard deviation.

    Raises
    ------
    UserError
        When it has no noise.
    """
    mean = float(image.double().mean())
    steps = image[:, 1:] - image[:, :-1]
    deviation = float(steps.double().square().mean().sqrt()) / math.sqrt(2)
    if not deviation > 0:
        raise UserError(
            f"an image whose pixels are all {mean:g} cannot be denoised; expected one with contrast"
        )
    return ((image - mean) / deviation).float(), mean, deviation


def describe_image(
    standard: Image, response: Float[Tensor, " shells"], gain: float
) -> Float[Tensor, "2 y x"]:
    """Make what the network sees: the image, and the image filtered, times the gain."""
    transfer = interpolate_shells(response, (standard.shape[0], standard.shape[1]))
    filtered = torch.fft.irfft2(torch.fft.rfft2(standard) * transfer, s=standard.shape)
    return torch.stack([standard, gain * filtered])


def interpolate_shells(response: Float[Tensor, " shells"], shape: tuple[int, int]) -> Float[Tensor, "y kx"]:
    """Lay a curve from 0 to 0.5 per pixel over the transform of an image; the corners take its end."""
    place = radial_frequency(shape, device=response.device).mul_(2 * (SHELLS - 1)).clamp_(max=SHELLS - 1)
    below = place.floor().clamp_(max=SHELLS - 2).long()
    return torch.lerp(response[below], response[below + 1], place - below)


def _run_in_tiles(network: UNet, seen: Float[Tensor, "2 y x"]) -> Image:
    """Run the network part by part: of a whole micrograph, what its layers hold would fill gigabytes.

    Tiles begin at multiples of the network's stride, and see all that it reaches: they do not show.
    """
    _, y, x = seen.shape
    ends = [-size % network.stride for size in (y, x)]
    framed = pad(seen[None], (_MARGIN, _MARGIN + ends[1], _MARGIN, _MARGIN + ends[0]), mode="replicate")
    framed = framed.contiguous(memory_format=torch.channels_last)
    found = seen.new_empty((y, x))
    for top in range(0, y, _TILE):
        for left in range(0, x, _TILE):
            part = framed[..., top : top + _TILE + 2 * _MARGIN, left : left + _TILE + 2 * _MARGIN]
            rows, columns = min(_TILE, y - top), min(_TILE, x - left)
            done = network(part)[0, 0, _MARGIN : _MARGIN + rows, _MARGIN : _MARGIN + columns]
            found[top : top + rows, left : left + columns] = done
    return found
