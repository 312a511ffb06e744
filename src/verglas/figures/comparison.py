"""Pictures that hold a volume against another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, show_image

FloatArray = npt.NDArray[np.floating]


def draw_side_by_side(
    volumes: Sequence[tuple[str, FloatArray, FloatArray]],
    voxel_size_angstrom: float,
    path: Path,
    *,
    lowpass_angstrom: float = 60.0,
) -> None:
    """Draw sections of several volumes in columns, each with its own contrast.

    Parameters
    ----------
    volumes
        Label, `(y, x)` and `(z, x)` section of each, of the same shapes.
    voxel_size_angstrom
        Side of a voxel, Å.
    path
        The PNG to write.
    lowpass_angstrom
        Resolution to which the picture, not the data, is smoothed.
    """
    (height, width), depth = volumes[0][1].shape, volumes[0][2].shape[0]
    panel = PAGE_INCHES / len(volumes)
    with house_style():
        figure = make_figure(PAGE_INCHES, panel * (height + depth) / width + 0.4)
        grid = figure.add_gridspec(2, len(volumes), height_ratios=(height, depth))
        for column, (label, *sections) in enumerate(volumes):
            for row, section in enumerate(sections):
                axes = figure.add_subplot(grid[row, column])
                show_image(axes, section, voxel_size_angstrom, lowpass_angstrom)
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(visible=True, color="0.5", linewidth=0.6)
                if row == 0:
                    axes.set_title(label, fontsize=8, color="black")
                    if column == 0:
                        draw_scale_bar(axes, width, voxel_size_angstrom)
        save_figure(figure, path)


def draw_correlations(
    frequency: FloatArray,
    curves: Sequence[tuple[str, FloatArray]],
    path: Path,
) -> None:
    """Draw Fourier shell correlations, and a line at 0.5.

    Parameters
    ----------
    frequency
        `(shells,)` 1/Å, from 0.
    curves
        Label and `(shells,)` values of each.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(7.6, 3.8)
        axes = figure.add_subplot()
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle="--")
        for (label, values), colour in zip(curves, COLOURS, strict=False):
            # The mean says nothing about what two volumes share.
            axes.plot(frequency[1:], values[1:], color=colour, label=label)
        axes.set_xlim(0, frequency[-1])
        axes.set_ylim(min(-0.05, *(float(values[1:].min()) for _, values in curves)), 1.02)
        ticks = np.linspace(0, frequency[-1], 6)[1:]
        axes.set_xticks(ticks, [f"1/{1 / tick:.0f}" for tick in ticks])
        axes.set_xlabel("spatial frequency, 1/Å")
        axes.set_ylabel("correlation")
        axes.legend()
        save_figure(figure, path)
