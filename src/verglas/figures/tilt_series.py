"""Pictures of tilt series: the views, the geometry, the spectra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from verglas.figures.style import COLOURS, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, show_image
from verglas.model import TiltSeries

FloatArray = npt.NDArray[Any]


def draw_views(
    views: Sequence[FloatArray],
    labels: Sequence[str],
    pixel_size_angstrom: float,
    path: Path,
    *,
    tilt_axes: Sequence[tuple[float, float, float]] = (),
    lowpass_angstrom: float = 60.0,
) -> None:
    """Draw a few views side by side, each with its own contrast, to one scale.

    Parameters
    ----------
    views
        Images `(y, x)`.
    labels
        What to write above each.
    pixel_size_angstrom
        Side of their pixels, Å.
    path
        The PNG to write.
    tilt_axes
        Where the tilt axis passes in each view, to be drawn as a line: x and y from the centre of the view in Å,
        and its angle from the view's y axis in degrees.
    lowpass_angstrom
        Resolution to which the picture, not the data, is smoothed.
    """
    height, width = views[0].shape
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES / len(views) * height / width + 0.3)
        for i, (view, label) in enumerate(zip(views, labels, strict=True)):
            axes = figure.add_subplot(1, len(views), i + 1)
            show_image(axes, view, pixel_size_angstrom, lowpass_angstrom)
            axes.set_title(label, fontsize=8, color="black")
            if i == 0:
                draw_scale_bar(axes, width, pixel_size_angstrom)
            if tilt_axes:
                _draw_tilt_axis(axes, view.shape, pixel_size_angstrom, tilt_axes[i])
        save_figure(figure, path)


def _draw_tilt_axis(
    axes: Axes, shape: tuple[int, ...], pixel_size_angstrom: float, place: tuple[float, float, float]
) -> None:
    x, y = (shape[1 - i] // 2 + place[i] / pixel_size_angstrom for i in (0, 1))
    angle = np.deg2rad(place[2])
    limits = axes.get_xlim(), axes.get_ylim()
    axes.axline((x, y), (x - np.sin(angle), y + np.cos(angle)), color="white", linewidth=0.8, linestyle="--")
    axes.set(xlim=limits[0], ylim=limits[1])


def draw_geometry(series: TiltSeries, path: Path) -> None:
    """Draw what is known of each view: shifts, exposure and defocus over the tilt angle."""
    tilts = series.y_tilt_deg
    assert tilts is not None
    order = np.argsort(tilts)
    used = series.selected[order]
    panels: list[tuple[str, list[tuple[str, FloatArray]]]] = [
        ("shift, Å", [("x", series.x_shift_angstrom), ("y", series.y_shift_angstrom)]),
        ("exposure before the view, e/Å²", [("", series.pre_exposure_e_per_a2)]),
    ]
    if np.isfinite(series.mean_defocus_angstrom).any():
        curves = [("u", series.defocus_u_angstrom / 1e4), ("v", series.defocus_v_angstrom / 1e4)]
        panels.append(("defocus, µm", curves))
    with house_style():
        figure = make_figure(11.6, 3.2)
        for i, (label, curves) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            for name, values in curves:
                axes.plot(tilts[order][used], values[order][used], "o-", markersize=3.5, label=name)
            if not used.all():
                values = curves[0][1]
                axes.plot(tilts[order][~used], values[order][~used], "x", color=MUTED, label="left out")
            if axes.get_legend_handles_labels()[1]:
                axes.legend()
            axes.set_xlabel("tilt, degrees")
            axes.set_title(label)
        save_figure(figure, path)


def draw_power_spectra(
    images: Sequence[tuple[str, FloatArray, float]], path: Path, *, title: str = ""
) -> None:
    """Draw rotational averages of the power spectra of images on a logarithmic scale.

    Parameters
    ----------
    images
        Label, image `(y, x)` and side of its pixels in Å, of each curve.
    path
        The PNG to write.
    title
        Above the picture.
    """
    with house_style():
        figure = make_figure(5.4, 2.9)
        axes = figure.add_subplot()
        bounds, finest = [], 0.0
        for (label, image, pixel), colour in zip(images, COLOURS, strict=False):
            frequency, power = rotational_power(image, pixel)
            power /= np.median(power)
            axes.semilogy(frequency, power, color=colour, label=label, linewidth=1.2)
            bounds += [power[len(power) // 40 :].min(), power[len(power) // 40 :].max()]
            finest = max(finest, float(frequency[-1]))
        # The lowest frequencies, where thickness and gold outshine all, do not set the scale.
        axes.set_ylim(min(bounds) / 1.6, max(bounds) * 2.5)
        axes.yaxis.set_minor_formatter(NullFormatter())
        ticks = np.linspace(0, finest, 6)[1:]
        axes.set_xticks(ticks, [f"1/{1 / tick:.{0 if tick < 0.1 else 1}f}" for tick in ticks])
        axes.set_xlim(0, finest)
        axes.set_xlabel("spatial frequency, 1/Å")
        axes.set_ylabel("power, relative")
        axes.set_title(title)
        axes.legend(loc="upper right", ncols=len(images))
        save_figure(figure, path)


def rotational_power(image: FloatArray, pixel_size_angstrom: float) -> tuple[FloatArray, FloatArray]:
    """Frequencies in 1/Å and mean power of an image in rings up to Nyquist.

    The image is taken in tiles of up to 512 pixels that overlap by half (Welch), each without its mean; the
    lowest two rings, into which a Hann window spreads the mean, are left out.
    """
    size = min(_TILE, *image.shape)
    window = np.outer(np.hanning(size), np.hanning(size)).astype(np.float32)
    power = np.zeros((size, size // 2 + 1))
    for y in _tile_starts(image.shape[0], size):
        for x in _tile_starts(image.shape[1], size):
            tile = image[y : y + size, x : x + size]
            power += np.abs(np.fft.rfft2((tile - tile.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    count = size // 2
    ring = np.rint(frequency * size).astype(int).clip(max=count + 1)
    total = np.bincount(ring.ravel(), power.ravel(), count + 2)
    weight = np.bincount(ring.ravel(), minlength=count + 2)
    rings = slice(min(3, count), count + 1)
    frequencies = np.arange(count + 1)[rings] / (size * pixel_size_angstrom)
    return frequencies, total[rings] / weight[rings]


_TILE = 512


def _tile_starts(length: int, size: int) -> npt.NDArray[np.intp]:
    count = 1 + -(-2 * (length - size) // size)
    return np.linspace(0, length - size, count).astype(int)
