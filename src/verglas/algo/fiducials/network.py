"""A small U-Net that tells gold, thick contamination, carbon and grid bars from the specimen.

Ronneberger, Fischer & Brox, *MICCAI* 2015, with four levels of 8 to 48 channels: it sees views averaged to about
20 Å a pixel, in which a bead is some pixels wide and an edge of carbon crosses the field.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from verglas.errors import UserError
from verglas.ops.binning import bin_images

Image = npt.NDArray[np.float32]

KINDS = ("gold", "contamination", "carbon", "bar")
"""What is masked; class 0 of the network is the specimen, class 1 the first of these."""

PIXEL_ANGSTROM = 20.0
"""Views are averaged in blocks to about this pixel size."""

CHANNELS = (8, 16, 32, 48)

_INPUTS = 3
_LIMIT = 8.0
_WIDE_PX, _NARROW_PX = 25, 9


class MaskNet(nn.Module):
    """The network: `(n, 3, y, x)` of :func:`describe_views` to `(n, 5, y, x)` scores; sides are multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (_INPUTS, *CHANNELS[:-1])
        self.down = nn.ModuleList(_make_block(a, b) for a, b in zip(inputs, CHANNELS, strict=True))
        pairs = list(pairwise(CHANNELS))
        self.up = nn.ModuleList(_make_block(fine + coarse, fine) for fine, coarse in pairs)
        self.last = nn.Conv2d(CHANNELS[0], len(KINDS) + 1, 1)

    def forward(self, views: Tensor) -> Tensor:
        """Score the classes of each pixel."""
        levels = []
        values = views
        for index, block in enumerate(self.down):
            values = block(max_pool2d(values, 2) if index else values)
            levels.append(values)
        for index in reversed(range(len(self.up))):
            finer = interpolate(values, scale_factor=2.0, mode="nearest")
            values = self.up[index](torch.cat([levels[index], finer], dim=1))
        scores: Tensor = self.last(values)
        return scores


def _make_block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (inputs, outputs):
        layers += [nn.Conv2d(count, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def make_network(weights: Mapping[str, npt.NDArray[np.generic]] | None = None, seed: int = 0) -> MaskNet:
    """Make a network of these weights, ready to use, or of random ones.

    Parameters
    ----------
    weights
        Arrays by name, as :func:`list_weights` gives them; none for random ones.
    seed
        Chooses the random ones.

    Raises
    ------
    UserError
        When the arrays are not those of this network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MaskNet()
    if weights is not None:
        known = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        given = {name: tuple(np.shape(value)) for name, value in weights.items()}
        if wrong := [name for name in {**known, **given} if known.get(name) != given.get(name)]:
            raise UserError(
                f"the weights are not those of this network: {wrong[0]!r} has shape {given.get(wrong[0], 'none')}, "
                f"expected {known.get(wrong[0], 'none')}"
            )
        state = {
            name: torch.from_numpy(np.array(weights[name])).to(value.dtype)
            for name, value in network.state_dict().items()
        }
        network.load_state_dict(state)
    return network.eval()


def list_weights(network: MaskNet) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of a network by name."""
    return {name: value.cpu().numpy() for name, value in network.state_dict().items()}


def count_block(pixel_size_angstrom: float) -> int:
    """Pixels a side that are averaged before the network sees a view."""
    return max(1, round(PIXEL_ANGSTROM / pixel_size_angstrom))


def describe_views(small: Tensor) -> Tensor:
    """Make what the network sees of views at its pixel size.

    Parameters
    ----------
    small
        `(n, y, x)` views; neither offset nor scale makes a difference.

    Returns
    -------
    Tensor
        `(n, 3, y, x)`: the view at mean 0 and standard deviation 1; the same within a window of 500 Å, which shows
        beads and grain wherever they lie; and the logarithm of the standard deviation within 180 Å over that of
        the view, which is low in the shadow of a bar and high on carbon. All are cut at eight.
    """
    values = small[:, None]
    mean, deviation = values.mean((-2, -1), keepdim=True), values.std((-2, -1), keepdim=True)
    whole = (values - mean) / deviation.clamp(min=1e-12)
    around, spread = _measure_windows(whole, _WIDE_PX)
    _, grain = _measure_windows(whole, _NARROW_PX)
    parts = [whole, (whole - around) / spread.clamp(min=1e-3), grain.clamp(min=1e-3).log()]
    return torch.cat(parts, dim=1).clamp(-_LIMIT, _LIMIT)


def _measure_windows(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in a square around every pixel."""

    def average(field: Tensor) -> Tensor:
        half = size // 2
        rows = avg_pool2d(field, (size, 1), 1, (half, 0), count_include_pad=False)
        return avg_pool2d(rows, (1, size), 1, (0, half), count_include_pad=False)

    mean = average(values)
    return mean, (average(values.square()) - mean.square()).clamp(min=0).sqrt()


def segment_view(network: MaskNet, image: Image, pixel_size_angstrom: float) -> Image:
    """Tell what each pixel of a view shows.

    Parameters
    ----------
    network
        Trained.
    image
        `(y, x)` view.
    pixel_size_angstrom
        Side of its pixels, Å.

    Returns
    -------
    ndarray
        `(kinds, y, x)` probability of each of `KINDS`, at the size of the view.
    """
    device = next(network.parameters()).device
    factor = count_block(pixel_size_angstrom)
    small = bin_images(torch.from_numpy(np.ascontiguousarray(image)), factor).to(device)
    step = 2 ** (len(CHANNELS) - 1)
    rest = [-size % step for size in small.shape]
    with torch.inference_mode():
        framed = pad(describe_views(small[None]), (0, rest[1], 0, rest[0]), mode="replicate")
        chances = network(framed).softmax(dim=1)[:, 1:, : small.shape[0], : small.shape[1]]
        covered = [size * factor for size in small.shape]
        large = interpolate(chances, size=covered, mode="bilinear", align_corners=False)
        left = [size - part for size, part in zip(image.shape, covered, strict=True)]
        large = pad(large, (0, left[1], 0, left[0]), mode="replicate")
    return np.asarray(large[0].cpu().numpy())
