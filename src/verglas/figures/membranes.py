"""Pictures of membranes: where they were found, and what is left when they are taken out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image, show_image

FloatArray = npt.NDArray[Any]


def draw_overlay(
    image: FloatArray,
    pixel_size_angstrom: float,
    curves: Sequence[tuple[FloatArray, FloatArray, FloatArray]],
    profiles: Sequence[tuple[FloatArray, FloatArray, FloatArray]],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw an average without and with the membranes on it, and the grey across them.

    Parameters
    ----------
    image
        `(y, x)`.
    pixel_size_angstrom
        Side of a pixel.
    curves
        Of each membrane `(m, 2)` yx: its middle, and its two leaflets.
    profiles
        Of each membrane `(k,)`: distance in Å, grey of the average, and what would be taken out.
    path
        The PNG to write.
    title
        Above the profile.
    """
    side = PAGE_INCHES / 3
    with house_style():
        figure = make_figure(PAGE_INCHES, side * image.shape[0] / image.shape[1] + 0.35)
        grid = figure.add_gridspec(1, 3)
        for column in range(2):
            axes = figure.add_subplot(grid[0, column])
            show_image(axes, image, pixel_size_angstrom, 2 * pixel_size_angstrom)
            draw_scale_bar(axes, image.shape[1], pixel_size_angstrom)
            if column:
                for number, (middle, *leaflets) in enumerate(curves):
                    colour = COLOURS[number % len(COLOURS)]
                    axes.plot(middle[:, 1], middle[:, 0], color=colour, linewidth=1.0)
                    for one in leaflets:
                        axes.plot(one[:, 1], one[:, 0], color=colour, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.set_xlim(-0.5, image.shape[1] - 0.5)
            axes.set_ylim(-0.5, image.shape[0] - 0.5)
            label_image(axes, "curve and leaflets" if column else "average")
        axes = figure.add_subplot(grid[0, 2])
        for number, (distance, grey, model) in enumerate(profiles):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(distance, grey, color=colour, label="average" if not number else None)
            axes.plot(
                distance, model, color=colour, linestyle="--", label="taken out" if not number else None
            )
        axes.axhline(0, color=MUTED, linewidth=0.6)
        axes.set_xlabel("distance from the curve, Å")
        axes.set_title(title, fontsize=9)
        if profiles:
            axes.legend()
        save_figure(figure, path)


def draw_subtracted(
    pairs: Sequence[tuple[FloatArray, FloatArray]],
    pixel_size_angstrom: float,
    path: Path,
    *,
    lowpass_angstrom: float = 20.0,
) -> None:
    """Draw images before and after, side by side, each pair in one range of grey."""
    count = len(pairs)
    columns = min(count, 4)
    rows = -(-count // columns)
    side = PAGE_INCHES / columns
    with house_style():
        figure = make_figure(PAGE_INCHES, 2 * rows * side * pairs[0][0].shape[0] / pairs[0][0].shape[1])
        grid = figure.add_gridspec(2 * rows, columns)
        for number, (before, after) in enumerate(pairs):
            limits = None
            for below, (image, word) in enumerate(((before, "before"), (after, "after"))):
                axes = figure.add_subplot(grid[2 * (number // columns) + below, number % columns])
                limits = show_image(axes, image, pixel_size_angstrom, lowpass_angstrom, limits)
                if not number:
                    label_image(axes, word)
                    draw_scale_bar(axes, image.shape[1], pixel_size_angstrom)
        save_figure(figure, path)


def draw_fits(
    scales: FloatArray,
    shifts_angstrom: FloatArray,
    profiles: Sequence[tuple[str, FloatArray, FloatArray, FloatArray]],
    path: Path,
) -> None:
    """Draw how strong the membranes are, how far they lie from where the poses put them, and across them.

    Parameters
    ----------
    scales, shifts_angstrom
        `(n,)` of all membranes of all particles.
    profiles
        Of each class: its name, `(k,)` distance in Å, grey before and grey after.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(PAGE_INCHES, 2.6)
        grid = figure.add_gridspec(1, 3)
        for column, (values, label) in enumerate(
            ((scales, "scale of the membrane"), (shifts_angstrom, "moved across, Å"))
        ):
            axes = figure.add_subplot(grid[0, column])
            low, high = np.percentile(values, (0.5, 99.5))
            axes.hist(
                values, bins=40, range=(float(low), max(float(high), float(low) + 1e-6)), color=COLOURS[0]
            )
            axes.set_xlabel(label)
            axes.set_ylabel("membranes")
        axes = figure.add_subplot(grid[0, 2])
        for number, (name, distance, before, after) in enumerate(profiles[: len(COLOURS)]):
            axes.plot(distance, before, color=COLOURS[number], label=name)
            axes.plot(distance, after, color=COLOURS[number], linestyle="--")
        axes.axhline(0, color=MUTED, linewidth=0.6)
        axes.set_xlabel("distance from the curve, Å")
        axes.set_title("mean before, and after (dashed)", fontsize=9)
        axes.legend()
        save_figure(figure, path)


def draw_traced(
    images: tuple[FloatArray, FloatArray],
    curves: Sequence[FloatArray],
    pixel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw a micrograph, the membranes that were traced in it, and what is left without them.

    Parameters
    ----------
    images
        `(y, x)` before and after, in one range of grey.
    curves
        `(m, 2)` yx each.
    pixel_size_angstrom
        Side of a pixel.
    path
        The PNG to write.
    """
    height = PAGE_INCHES / 3 * images[0].shape[0] / images[0].shape[1]
    with house_style():
        figure = make_figure(PAGE_INCHES, height)
        grid = figure.add_gridspec(1, 3)
        limits = None
        for column, (image, word) in enumerate(
            ((images[0], "before"), (images[0], "traced"), (images[1], "after"))
        ):
            axes = figure.add_subplot(grid[0, column])
            lowpass = max(20.0, 2.5 * pixel_size_angstrom)
            limits = show_image(axes, image, pixel_size_angstrom, lowpass, limits)
            label_image(axes, word)
            if column == 1:
                for number, one in enumerate(curves):
                    axes.plot(one[:, 1], one[:, 0], color=COLOURS[number % len(COLOURS)], linewidth=0.8)
                axes.set_xlim(-0.5, image.shape[1] - 0.5)
                axes.set_ylim(-0.5, image.shape[0] - 0.5)
            else:
                draw_scale_bar(axes, image.shape[1], pixel_size_angstrom)
        save_figure(figure, path)
