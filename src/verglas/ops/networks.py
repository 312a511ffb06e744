"""The one network of the house, a U-Net, and what is done with the weights of any."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from verglas.errors import UserError

Weights = Mapping[str, npt.NDArray[np.generic]]


class UNet(nn.Module):
    """Two convolutions a level, each level at half the sampling of the one above, and the same way up again.

    Ronneberger, Fischer & Brox, *MICCAI* 2015. It takes `(n, inputs, y, x)`, sides multiples of :attr:`stride`, and
    gives `(n, outputs, y, x)`.

    Parameters
    ----------
    inputs, outputs
        Channels of the images that go in and come out.
    channels
        Of each level, the finest first.
    batch_norm
        Whether each convolution is followed by one, and by a plain rectifier; without, the rectifier leaks.
    """

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, ...], *, batch_norm: bool) -> None:
        super().__init__()
        self.stride = 2 ** (len(channels) - 1)
        before = (inputs, *channels[:-1])
        self.down = nn.ModuleList(
            _make_block(a, b, batch_norm) for a, b in zip(before, channels, strict=True)
        )
        self.up = nn.ModuleList(
            _make_block(fine + coarse, fine, batch_norm) for fine, coarse in pairwise(channels)
        )
        self.last = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Do one pass."""
        levels = []
        values = images
        for index, block in enumerate(self.down):
            values = block(max_pool2d(values, 2) if index else values)
            levels.append(values)
        for index in reversed(range(len(self.up))):
            finer = interpolate(values, scale_factor=2.0, mode="nearest")
            values = self.up[index](torch.cat([levels[index], finer], dim=1))
        result: Tensor = self.last(values)
        return result


def _make_block(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (inputs, outputs):
        layers.append(nn.Conv2d(count, outputs, 3, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def load_weights(network: nn.Module, weights: Weights) -> None:
    """Give a network its weights.

    Parameters
    ----------
    network
        Changed in place.
    weights
        Arrays by name, as :func:`list_weights` gives them.

    Raises
    ------
    UserError
        When the arrays are not those of this network.
    """
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


def list_weights(network: nn.Module) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of a network by name."""
    return {name: value.cpu().contiguous().numpy() for name, value in network.state_dict().items()}


def descend(
    network: nn.Module, measure_loss: Callable[[], Tensor], *, steps: int, rate: float
) -> list[float]:
    """Train a network in place by Adam (Kingma & Ba, *ICLR* 2015).

    Parameters
    ----------
    network
        Left ready to be used.
    measure_loss
        Draws a batch and gives its loss.
    steps
        Batches.
    rate
        Largest learning rate; it rises over the first tenth and falls as a cosine.

    Returns
    -------
    list
        The loss of each step.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate_factor(step, steps))
    network.train()
    losses = []
    for _ in range(steps):
        loss = measure_loss()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    network.eval()
    return losses


def _rate_factor(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) + 1e-3
