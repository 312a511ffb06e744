"""Pictures of a micrograph before and after it was worked on."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter

from verglas.figures.style import PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image, show_image

FloatArray = npt.NDArray[Any]

_FLOOR = 1e-6


def draw_before_after(
    images: tuple[FloatArray, FloatArray],
    pixels_angstrom: tuple[float, float],
    spectra: tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw two images to one scale of grey levels each, and their power spectra below.

    Parameters
    ----------
    images
        `(y, x)` before and after, small enough to draw.
    pixels_angstrom
        Sides of their pixels.
    spectra
        `(k,)` frequency in 1/Å and `(k,)` power, before and after.
    path
        The PNG to write.
    title
        Above the spectra.
    """
    height = max(image.shape[0] / image.shape[1] for image in images) * PAGE_INCHES / 2
    with house_style():
        figure = make_figure(PAGE_INCHES, height + 2.9)
        grid = figure.add_gridspec(2, 2, height_ratios=(height, 2.6))
        for column, (image, pixel, name) in enumerate(
            zip(images, pixels_angstrom, ("before", "after"), strict=True)
        ):
            axes = figure.add_subplot(grid[0, column])
            show_image(axes, image, pixel, 2 * pixel)
            label_image(axes, name)
            draw_scale_bar(axes, image.shape[1], pixel)
        axes = figure.add_subplot(grid[1, :])
        end = min(frequency[-1] for frequency, _ in spectra)
        for (frequency, power), name in zip(spectra, ("before", "after"), strict=True):
            # Grey levels differ; where most operations change little, both are brought to one.
            band = (frequency > 0.02 * end) & (frequency < 0.1 * end) & (power > 0)
            scale = float(np.median(power[band])) if band.any() else 1.0
            axes.semilogy(frequency[1:], np.maximum(power[1:] / scale, _FLOOR), label=name)
        axes.set_ylim(_FLOOR, None)
        axes.set_xlim(0, None)
        axes.xaxis.set_major_formatter(FuncFormatter(_as_resolution))
        axes.set_xlabel("resolution, Å")
        axes.set_ylabel("power, relative")
        axes.set_title(title)
        axes.legend()
        save_figure(figure, path)


def _as_resolution(frequency: float, _: object) -> str:
    return f"{1 / frequency:.3g}" if frequency > 0 else ""
