"""A small U-Net that tells gold, thick contamination, carbon and grid bars from the specimen.

It has four levels of 8 to 48 channels, and sees views averaged to about
20 Å a pixel, in which a bead is some pixels wide and an edge of carbon crosses the field.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from verglas.ops.binning import bin_images
from verglas.ops.networks import UNet, Weights, load_weights

Image = npt.NDArray[np.float32]

KINDS = ("gold", "contamination", "carbon", "bar")
"""What is masked; class 0 of the network is the specimen, class 1 the first of these."""

PIXEL_ANGSTROM = 20.0
"""Views are averaged in blocks to about this pixel size."""

CHANNELS = (8, 16, 32, 48)

_INPUTS = 3
_LIMIT = 8.0
_WIDE_PX, _NARROW_PX = 25, 9


class MaskNet(UNet):
    """The network: `(n, 3, y, x)` of :func:`describe_views` to `(n, 5, y, x)` scores; sides are multiples of 8."""

    def __init__(self) -> None:
        super().__init__(_INPUTS, len(KINDS) + 1, CHANNELS, batch_norm=True)


def make_network(weights: Weights | None = None, seed: int = 0) -> MaskNet:
    """Make a network of these weights, ready to use, or of random ones.

    Parameters
    ----------
    weights
        Arrays by name, as `list_weights` gives them; none for random ones.
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
        load_weights(network, weights)
    return network.eval()


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
    rest = [-size % network.stride for size in small.shape]
    with torch.inference_mode():
        framed = pad(describe_views(small[None]), (0, rest[1], 0, rest[0]), mode="replicate")
        chances = network(framed).softmax(dim=1)[:, 1:, : small.shape[0], : small.shape[1]]
        covered = [size * factor for size in small.shape]
        large = interpolate(chances, size=covered, mode="bilinear", align_corners=False)
        left = [size - part for size, part in zip(image.shape, covered, strict=True)]
        large = pad(large, (0, left[1], 0, left[0]), mode="replicate")
    return np.asarray(large[0].cpu().numpy())
