"""Pictures of tomograms that a person can judge by."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.ndimage import gaussian_filter

from verglas.figures.style import house_style, make_figure, save_figure

FloatArray = npt.NDArray[Any]


def draw_orthogonal_slices(
    xy: FloatArray,
    xz: FloatArray,
    yz: FloatArray,
    voxel_size_angstrom: float,
    path: Path,
    *,
    lowpass_angstrom: float = 60.0,
    title: str = "",
) -> None:
    """Draw the three central sections of a volume to one scale, with a bar.

    Parameters
    ----------
    xy, xz, yz
        `(y, x)`, `(z, x)` and `(y, z)` sections.
    voxel_size_angstrom
        Side of a voxel, Å.
    path
        The PNG to write.
    lowpass_angstrom
        Resolution to which the picture, not the data, is smoothed.
    title
        Above the picture.
    """
    smooth = [lowpass_image(image, voxel_size_angstrom, lowpass_angstrom) for image in (xy, xz, yz)]
    height, width = xy.shape
    depth = xz.shape[0]
    scale = 11.0 / (width + depth)
    with house_style():
        figure = make_figure(11.6, scale * (height + depth) + 0.5)
        grid = figure.add_gridspec(2, 2, width_ratios=(width, depth), height_ratios=(height, depth))
        places = ((0, 0, "xy"), (1, 0, "xz"), (0, 1, "zy"))
        for image, (row, column, name) in zip(smooth, places, strict=True):
            axes = figure.add_subplot(grid[row, column])
            low, high = contrast_limits(image)
            axes.imshow(image, vmin=low, vmax=high)
            axes.set_axis_off()
            axes.text(
                0.012, 0.985, name, transform=axes.transAxes, va="top", color="white", fontweight="bold"
            )
            if name == "xy":
                draw_scale_bar(axes, width, voxel_size_angstrom)
                axes.set_title(title)
        save_figure(figure, path)


def lowpass_image(image: FloatArray, pixel_size_angstrom: float, lowpass_angstrom: float) -> FloatArray:
    """Smooth an image with a Gaussian that halves amplitudes at `lowpass_angstrom`."""
    sigma = lowpass_angstrom * np.sqrt(2 * np.log(2)) / (2 * np.pi * pixel_size_angstrom)
    return np.asarray(gaussian_filter(np.asarray(image, dtype=np.float32), sigma))


def contrast_limits(image: FloatArray) -> tuple[float, float]:
    """Grey levels between which an image shows what it holds: gold and edges do not decide."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def draw_scale_bar(axes: Axes, width: int, pixel_size_angstrom: float) -> None:
    """Draw a bar of a round length, about a fifth of the image wide, in its lower left corner."""
    target = width * pixel_size_angstrom / 50
    nanometres = max((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= target), default=1)
    length = nanometres * 10 / pixel_size_angstrom
    x, y = 0.03 * width, 0.03 * width
    axes.plot([x, x + length], [y, y], color="black", linewidth=6, solid_capstyle="butt")
    axes.plot([x, x + length], [y, y], color="white", linewidth=3.5, solid_capstyle="butt")
    label = f"{nanometres} nm" if nanometres < 1000 else "1 µm"
    text = axes.text(x + length / 2, y * 1.5, label, color="white", ha="center", va="bottom", fontsize=9)
    text.set_bbox({"facecolor": "black", "alpha": 0.45, "edgecolor": "none", "pad": 1.5})
