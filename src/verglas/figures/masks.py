"""Pictures of masks over images, and of how a network learned to make them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from verglas.figures.losses import plot_losses
from verglas.figures.style import COLOURS, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, show_image

Array = npt.NDArray[Any]

_TINTS = (COLOURS[1], COLOURS[0], COLOURS[2], COLOURS[3])
_COVER = 0.45


def draw_masks(
    views: Sequence[Array],
    classes: Sequence[Array],
    kinds: Sequence[str],
    labels: Sequence[str],
    pixel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw views above, and the same views below with a tint over what is masked.

    Parameters
    ----------
    views
        Images `(y, x)` of one shape.
    classes
        `(y, x)` of each: 0 for what is not masked, 1 for the first kind.
    kinds
        Their names.
    labels
        What to write above each view.
    pixel_size_angstrom
        Side of the pixels, Å.
    path
        The PNG to write.
    """
    height, width = views[0].shape
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES / len(views) * height / width * 2 + 0.6)
        for column, (view, kind, label) in enumerate(zip(views, classes, labels, strict=True)):
            for row in range(2):
                axes = figure.add_subplot(2, len(views), row * len(views) + column + 1)
                show_image(axes, view, pixel_size_angstrom, 2 * pixel_size_angstrom)
                if row == 0:
                    axes.set_title(label, fontsize=8, color="black")
                else:
                    _tint(axes, kind)
                if column == 0 and row == 0:
                    draw_scale_bar(axes, width, pixel_size_angstrom)
        _name_kinds(figure, kinds)
        save_figure(figure, path)


def draw_training(
    losses: Sequence[float], scores: Mapping[str, Sequence[float]], kinds: Sequence[str], path: Path
) -> None:
    """Draw the loss over the steps, and how well each kind is found on what was held out.

    Parameters
    ----------
    losses
        One a step.
    scores
        Name of a score to its value for each kind.
    kinds
        Their names.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(7.2, 2.9)
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        plot_losses(left, losses, 40)
        left.set(xlabel="step", title="loss", yscale="log")
        places = np.arange(len(kinds))
        for i, (name, values) in enumerate(scores.items()):
            right.bar(places + 0.26 * (i - 1), np.nan_to_num(values), 0.24, color=COLOURS[i], label=name)
        right.set_xticks(places, kinds)
        right.set(ylim=(0, 1.28), title="on scenes that were held out")
        right.legend(ncols=3, fontsize=8, loc="upper center")
        save_figure(figure, path)


def draw_examples(
    images: Sequence[Array], truth: Sequence[Array], found: Sequence[Array], kinds: Sequence[str], path: Path
) -> None:
    """Draw images, what is there, and what the network says, a column each.

    Parameters
    ----------
    images
        `(y, x)`.
    truth, found
        `(y, x)` classes of each.
    kinds
        Names of the classes from 1.
    path
        The PNG to write.
    """
    count = len(images)
    with house_style():
        figure = make_figure(PAGE_INCHES, 3 * PAGE_INCHES / count + 0.5)
        for column, parts in enumerate(zip(images, truth, found, strict=True)):
            for row, word in enumerate(("image", "truth", "network")):
                axes = figure.add_subplot(3, count, row * count + column + 1)
                low, high = np.percentile(parts[0], (0.5, 99.5))
                axes.imshow(parts[0], vmin=low, vmax=high)
                axes.set_axis_off()
                if row:
                    _tint(axes, parts[row])
                if column == 0:
                    axes.set_title(word, fontsize=8, color="black")
        _name_kinds(figure, kinds)
        save_figure(figure, path)


def _tint(axes: Axes, classes: Array) -> None:
    """Lay a colour over each class but 0."""
    cover = np.zeros((*classes.shape, 4))
    for index, colour in enumerate(_TINTS):
        cover[classes == index + 1] = (*to_rgb(colour), _COVER)
    height, width = classes.shape
    axes.imshow(cover, extent=(-0.5, width - 0.5, -0.5, height - 0.5), interpolation="nearest")


def _name_kinds(figure: Any, kinds: Sequence[str]) -> None:
    patches = [Patch(color=colour, alpha=0.7, label=kind) for colour, kind in zip(_TINTS, kinds, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(kinds), fontsize=8)
