"""Pictures of how the denoiser learned, and of what it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from verglas.figures.losses import plot_losses
from verglas.figures.style import COLOURS, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image, show_image

Array = npt.NDArray[Any]


def draw_training(losses: Sequence[float], left: tuple[float, float], path: Path) -> None:
    """Draw the loss over the steps, and what is left of the noise.

    Parameters
    ----------
    losses
        One a step: mean square difference from the other half, in units of its noise's variance.
    left
        Noise over the specimen's strength, with the best linear filter and with the network.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(7.2, 2.9)
        axes, bars = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        axes.set_ylim(*_frame(plot_losses(axes, losses, 20)))
        axes.set(xlabel="step", title="difference from the other half")
        bars.bar(("linear filter", "network"), left, 0.5, color=(MUTED, COLOURS[0]))
        for place, value in enumerate(left):
            bars.text(place, value, f"{value:.3f}", ha="center", va="bottom", fontsize=8)
        bars.set(ylim=(0, 1.15 * max(left)), title="noise over specimen, held out")
        save_figure(figure, path)


def _frame(smooth: Array) -> tuple[float, float]:
    low, high = float(smooth.min()), float(smooth.max())
    room = max(0.3 * (high - low), 1e-3 * abs(high) + 1e-9)
    return low - room, high + room


def draw_denoised(shown: Sequence[tuple[Array, ...]], pixel_size_angstrom: float, path: Path) -> None:
    """Draw parts of halves, the same filtered, and denoised, one row each.

    Parameters
    ----------
    shown
        `(y, x)` half, filtered, denoised, of each part.
    pixel_size_angstrom
        Side of the pixels.
    path
        The PNG to write.
    """
    side = PAGE_INCHES / 3
    ratio = max(parts[0].shape[0] / parts[0].shape[1] for parts in shown)
    with house_style():
        figure = make_figure(PAGE_INCHES, len(shown) * side * ratio)
        for row, parts in enumerate(shown):
            for column, (image, name) in enumerate(
                zip(parts, ("half", "linear filter", "network"), strict=True)
            ):
                axes = figure.add_subplot(len(shown), 3, 3 * row + column + 1)
                show_image(axes, image, pixel_size_angstrom, pixel_size_angstrom)
                if row == 0:
                    label_image(axes, name)
                    draw_scale_bar(axes, image.shape[1], pixel_size_angstrom)
        save_figure(figure, path)
