"""Pictures of regions in the specimen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.patches import Rectangle

from verglas.figures.style import COLOURS, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, show_image

FloatArray = npt.NDArray[Any]
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def draw_regions(
    xy: FloatArray,
    xz: FloatArray,
    boxes: Sequence[tuple[str, Box]],
    voxel_size_angstrom: float,
    path: Path,
    *,
    lowpass_angstrom: float = 60.0,
) -> None:
    """Draw boxes on the sections of a tomogram across and along the beam.

    Parameters
    ----------
    xy, xz
        `(y, x)` and `(z, x)` sections; all zeros when there is no tomogram.
    boxes
        Name and limits along x, y and z of each, in voxels from the lower face of voxel 0.
    voxel_size_angstrom
        Side of a voxel, Å.
    path
        The PNG to write.
    lowpass_angstrom
        Resolution to which the picture is smoothed.
    """
    (height, width), depth = xy.shape, xz.shape[0]
    with house_style():
        figure = make_figure(PAGE_INCHES, (PAGE_INCHES - 0.15) / width * (height + depth) + 0.3)
        grid = figure.add_gridspec(2, 1, height_ratios=(height, depth))
        for row, (image, across, name) in enumerate(((xy, 1, "xy"), (xz, 2, "xz"))):
            axes = figure.add_subplot(grid[row])
            if np.any(image):
                show_image(axes, image, voxel_size_angstrom, lowpass_angstrom)
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set_xlim(-0.5, image.shape[1] - 0.5)
            axes.set_ylim(-0.5, image.shape[0] - 0.5)
            axes.spines[:].set(visible=True, color="0.5", linewidth=0.6)
            axes.set_title(name, fontsize=8)
            for index, (label, box) in enumerate(boxes):
                (x0, x1), (y0, y1) = box[0], box[across]
                colour = COLOURS[index % len(COLOURS)]
                axes.add_patch(
                    Rectangle(
                        (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2
                    )
                )
                if row == 0:
                    axes.text(
                        x0, y1, label, color="white", va="top", fontsize=9,
                        bbox={"facecolor": colour, "edgecolor": "none", "pad": 2.0},
                    )  # fmt: skip
            if row == 0:
                draw_scale_bar(axes, width, voxel_size_angstrom)
        save_figure(figure, path)
