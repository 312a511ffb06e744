"""Pictures of tomograms that a person can judge by."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.ndimage import gaussian_filter

from verglas.figures.style import PAGE_INCHES, house_style, make_figure, save_figure

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
    (height, width), depth = xy.shape, xz.shape[0]
    scale = (PAGE_INCHES - 0.15) / (width + depth)
    with house_style():
        figure = make_figure(PAGE_INCHES, scale * (height + depth) + 0.4)
        grid = figure.add_gridspec(2, 2, width_ratios=(width, depth), height_ratios=(height, depth))
        for image, place, name in ((xy, (0, 0), "xy"), (xz, (1, 0), "xz"), (yz, (0, 1), "zy")):
            axes = figure.add_subplot(grid[place])
            show_image(axes, image, voxel_size_angstrom, lowpass_angstrom)
            label_image(axes, name)
            if name == "xy":
                draw_scale_bar(axes, width, voxel_size_angstrom)
                axes.set_title(title, fontsize=8, color="black")
        save_figure(figure, path)


def show_image(
    axes: Axes,
    image: FloatArray,
    pixel_size_angstrom: float,
    lowpass_angstrom: float,
    limits: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Show an image smoothed, in the grey levels given or in those that fit it; one unit of the axes is one pixel.

    The grey levels are returned, so that another image can be shown in the same.

    Places that no view covers are exactly zero in a tomogram and do not count for the grey levels.
    """
    height, width = image.shape
    smooth = lowpass_image(image, pixel_size_angstrom, lowpass_angstrom)
    low, high = limits or contrast_limits(smooth[image != 0] if (image != 0).any() else smooth)
    # What is smoothed need not be drawn at every pixel.
    step = max(1, int(lowpass_angstrom / 4 / pixel_size_angstrom))
    axes.imshow(
        smooth[::step, ::step],
        vmin=low,
        vmax=high,
        # Where pixels of the picture are larger than those of the data, leaving some out would alias.
        interpolation="antialiased",
        extent=(-0.5, width - 0.5, -0.5, height - 0.5),
    )
    axes.set_axis_off()
    return low, high


def label_image(axes: Axes, text: str, corner: tuple[float, float] = (0.0, 1.0)) -> None:
    """Write a word into the upper left corner of an image, readable on any grey; `corner` in parts of the axes."""
    box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 2.0}
    axes.text(
        *corner, text, transform=axes.transAxes, ha="left", va="top", color="white", fontsize=8, bbox=box
    )


def lowpass_image(image: FloatArray, pixel_size_angstrom: float, lowpass_angstrom: float) -> FloatArray:
    """Smooth an image with a Gaussian that leaves a seventh (0.143) of the amplitudes at `lowpass_angstrom`."""
    sigma = lowpass_angstrom * np.sqrt(2 * np.log(7)) / (2 * np.pi * pixel_size_angstrom)
    return np.asarray(gaussian_filter(np.asarray(image, dtype=np.float32), sigma))


def contrast_limits(image: FloatArray) -> tuple[float, float]:
    """Grey levels between which an image shows what it holds.

    Those of a Gaussian's 0.5th and 99.5th percentile with the 5th and 95th of the image: gold and its streaks
    fill some hundredths of an image, and do not decide.
    """
    low, middle, high = (float(value) for value in np.percentile(image, (5, 50, 95)))
    if not high > low:
        return low, low + 1.0
    return middle - _STRETCH * (middle - low), middle + _STRETCH * (high - middle)


_STRETCH = 2.576 / 1.645


def draw_scale_bar(axes: Axes, width: int, pixel_size_angstrom: float) -> None:
    """Draw a bar of a round length, about a fifth of the image wide, in its lower left corner."""
    target = width * pixel_size_angstrom / 50
    nanometres = max((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= target), default=1)
    length = nanometres * 10 / pixel_size_angstrom
    x, y = 0.03 * width, 0.03 * width
    axes.plot([x, x + length], [y, y], color="black", linewidth=4.5, solid_capstyle="butt")
    axes.plot([x, x + length], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    label = f"{nanometres} nm" if nanometres < 1000 else "1 µm"
    text = axes.text(x + length / 2, y * 1.6, label, color="white", ha="center", va="bottom", fontsize=7)
    text.set_bbox({"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5})
