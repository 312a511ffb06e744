"""Pictures of beads that were erased, and of how well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from verglas.figures.style import COLOURS, LINE, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import contrast_limits, draw_scale_bar, label_image, lowpass_image, show_image

FloatArray = npt.NDArray[Any]

_ZOOM_LOWPASS_ANGSTROM = 20.0


def draw_erased(
    before: Sequence[FloatArray],
    after: Sequence[FloatArray],
    places_px: Sequence[FloatArray],
    radius_px: float,
    labels: Sequence[str],
    pixel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw views before, with rings around what was erased, and after, in the same grey levels.

    Parameters
    ----------
    before, after
        Images `(y, x)` of one shape.
    places_px
        `(k, 2)` xy of what was erased in each, from the first pixel.
    radius_px
        Of what was erased.
    labels
        What to write above each view.
    pixel_size_angstrom
        Side of their pixels, Å.
    path
        The PNG to write.
    """
    height, width = before[0].shape
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES / len(before) * height / width * 2 + 0.4)
        for column, (one, other, places, label) in enumerate(
            zip(before, after, places_px, labels, strict=True)
        ):
            for row, image in enumerate((one, other)):
                axes = figure.add_subplot(2, len(before), row * len(before) + column + 1)
                show_image(axes, image, pixel_size_angstrom, 2 * pixel_size_angstrom)
                if row == 0:
                    axes.set_title(label, fontsize=8, color="black")
                    _draw_rings(axes, places, 1.3 * radius_px)
                    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
                if column == 0:
                    label_image(axes, ("before", "after")[row])
                    draw_scale_bar(axes, width, pixel_size_angstrom)
        save_figure(figure, path)


def draw_zooms(
    pairs: Sequence[tuple[FloatArray, FloatArray]], pixel_size_angstrom: float, path: Path
) -> None:
    """Draw small squares around beads before and after, in the grey levels of the latter.

    Parameters
    ----------
    pairs
        Squares `(y, x)` before and after.
    pixel_size_angstrom
        Side of their pixels, Å.
    path
        The PNG to write.
    """
    side = PAGE_INCHES / len(pairs)
    with house_style():
        figure = make_figure(PAGE_INCHES, 2 * side + 0.1)
        for column, pair in enumerate(pairs):
            smooth = [lowpass_image(image, pixel_size_angstrom, _ZOOM_LOWPASS_ANGSTROM) for image in pair]
            low, high = contrast_limits(smooth[1])
            for row, image in enumerate(smooth):
                axes = figure.add_subplot(2, len(pairs), row * len(pairs) + column + 1)
                axes.imshow(image, vmin=low, vmax=high)
                axes.set_axis_off()
                if column == 0:
                    label_image(axes, ("before", "after")[row])
        save_figure(figure, path)


def draw_fill_spectra(
    frequency: FloatArray,
    filled: FloatArray,
    neighbours: FloatArray,
    deviation: FloatArray,
    error: FloatArray,
    pixel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw the mean power of filled discs and of their neighbours, and how far they differ.

    Parameters
    ----------
    frequency
        `(rings,)` cycles per pixel.
    filled, neighbours
        `(rings,)` mean power.
    deviation, error
        `(rings,)` relative difference of the two and its standard error.
    pixel_size_angstrom
        Side of a pixel, Å.
    path
        The PNG to write.
    """
    frequency = np.asarray(frequency) / pixel_size_angstrom
    ticks = np.linspace(0, frequency.max(), 6)[1:]
    with house_style():
        figure = make_figure(7.2, 2.9)
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        left.semilogy(frequency, neighbours, "o-", color=COLOURS[0], markersize=4, label="neighbours")
        left.semilogy(frequency, filled, "x", color=COLOURS[1], markersize=6, label="filled")
        left.set_title("power, relative")
        left.legend()
        right.axhspan(-5, 5, color=LINE, alpha=0.6, linewidth=0)
        right.axhline(0, color=COLOURS[0], linewidth=1)
        right.errorbar(
            frequency,
            100 * deviation,
            100 * error,
            fmt="o",
            color=COLOURS[1],
            markersize=4,
            capsize=2,
            linewidth=1,
        )
        right.set_ylim(*(np.array([-1, 1]) * max(10.0, 110 * float((np.abs(deviation) + error).max()))))
        right.set_title("filled over neighbours, %")
        for axes in (left, right):
            axes.set_xticks(ticks, [f"1/{1 / tick:.{0 if tick < 0.1 else 1}f}" for tick in ticks])
            axes.set_xlim(0, 1.04 * frequency.max())
            axes.set_xlabel("spatial frequency, 1/Å")
        save_figure(figure, path)


def _draw_rings(axes: Axes, places: FloatArray, radius: float) -> None:
    angle = np.linspace(0, 2 * np.pi, 40)
    for x, y in places:
        axes.plot(x + radius * np.cos(angle), y + radius * np.sin(angle), color="white", linewidth=0.6)
