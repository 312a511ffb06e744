"""Pictures of what differs among particles: components, where particles lie among them, classes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, LINE, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image

FloatArray = npt.NDArray[Any]

_PLANES = 3


def draw_strengths(strengths: FloatArray, agreement: FloatArray, agreed: float, path: Path) -> None:
    """Draw how strongly particles differ in each component, and how far half sets agree on it.

    Parameters
    ----------
    strengths
        `(c,)` spread among particles over the mean map.
    agreement
        `(c,)` correlation of what either half set finds.
    agreed
        From where on they agree.
    path
        The PNG to write.
    """
    places = np.arange(1, len(strengths) + 1)
    with house_style():
        figure = make_figure(PAGE_INCHES, 2.8)
        left, right = (figure.add_subplot(1, 2, number) for number in (1, 2))
        colours = [COLOURS[0] if value >= agreed else LINE for value in agreement]
        left.bar(places, 100 * strengths, color=colours)
        left.set_ylabel("spread, % of the mean map")
        right.bar(places, agreement, color=colours)
        right.axhline(agreed, color=MUTED, linewidth=0.8, linestyle=":")
        right.set_ylim(min(-0.1, float(agreement.min())), 1.02)
        right.set_ylabel("agreement of the half sets")
        for axes in (left, right):
            axes.set_xticks(places)
            axes.set_xlabel("component")
        save_figure(figure, path)


def draw_components(
    rows: Sequence[tuple[str, FloatArray, FloatArray, FloatArray]], voxel_size_angstrom: float, path: Path
) -> None:
    """Draw the mean with less and with more of each component, and the component itself.

    Parameters
    ----------
    rows
        Label, and `(z, y, x)` of the two maps and of the component.
    voxel_size_angstrom
        Side of a voxel.
    path
        The PNG to write.
    """
    size = len(rows[0][1])
    low, high = np.percentile(np.stack([row[1:3] for row in rows]), (1, 99.8))
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES / 6 * len(rows))
        grid = figure.add_gridspec(len(rows), 6)
        for row, (label, less, more, component) in enumerate(rows):
            reach = float(np.abs(component).max()) or 1.0
            for column in range(6):
                axes = figure.add_subplot(grid[row, column])
                volume = (less, more, component)[column % _PLANES]
                plane = np.take(volume, size // 2, axis=0 if column < _PLANES else 1)
                if column % _PLANES == _PLANES - 1:
                    axes.imshow(plane, vmin=-reach, vmax=reach, cmap="RdBu_r")
                else:
                    axes.imshow(plane, vmin=low, vmax=high)
                if not column:
                    label_image(axes, label)
                if not row:
                    axes.set_title(
                        ("less", "more", "across z", "less", "more", "across y")[column], fontsize=8
                    )
                axes.set_axis_off()
                if not row and not column:
                    draw_scale_bar(axes, size, voxel_size_angstrom)
        save_figure(figure, path)


def draw_places(
    shares: FloatArray, components: Sequence[int], numbers: FloatArray | None, path: Path
) -> None:
    """Draw where particles lie among the components, two at a time.

    Parameters
    ----------
    shares
        `(p, c)` of each component, percent of the mean map.
    components
        `(c,)` their numbers.
    numbers
        `(p,)` class of each particle from 0; none draws all alike.
    path
        The PNG to write.
    """
    pairs = list(pairwise(range(min(shares.shape[1], 4)))) or [(0, 0)]
    groups: list[tuple[str, Any]] = [("", slice(None))]
    if numbers is not None:
        groups = [(f"class {number + 1}", numbers == number) for number in np.unique(numbers).tolist()]
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES / max(len(pairs), 3) + 0.2)
        grid = figure.add_gridspec(1, len(pairs))
        for column, (first, second) in enumerate(pairs):
            axes = figure.add_subplot(grid[0, column])
            edges = np.histogram_bin_edges(shares[:, first], 40)
            for row, (label, rows) in enumerate(groups):
                colour, across = COLOURS[row % len(COLOURS)], shares[rows, first]
                if first == second:
                    axes.hist(across, edges.tolist(), color=colour, alpha=0.6, label=label)
                else:
                    axes.scatter(
                        across, shares[rows, second], s=6, color=colour, alpha=0.6, linewidth=0, label=label
                    )
            axes.set_xlabel(f"component {components[first]}, %")
            axes.set_ylabel("particles" if first == second else f"component {components[second]}, %")
            if numbers is not None and not column:
                axes.legend(markerscale=2)
        save_figure(figure, path)
