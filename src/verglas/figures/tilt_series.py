"""Pictures of tilt series: the views, the geometry, the spectra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, MUTED, house_style, make_figure, save_figure
from verglas.figures.tomogram import contrast_limits, lowpass_image
from verglas.model import TiltSeries

FloatArray = npt.NDArray[Any]


def draw_views(
    views: Sequence[FloatArray],
    labels: Sequence[str],
    pixel_size_angstrom: float,
    path: Path,
    *,
    lowpass_angstrom: float = 60.0,
) -> None:
    """Draw a few views side by side, each with its own contrast.

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
    lowpass_angstrom
        Resolution to which the picture, not the data, is smoothed.
    """
    height, width = views[0].shape
    with house_style():
        figure = make_figure(11.6, 11.6 / len(views) * height / width + 0.4)
        for i, (view, label) in enumerate(zip(views, labels, strict=True)):
            axes = figure.add_subplot(1, len(views), i + 1)
            smooth = lowpass_image(view, pixel_size_angstrom, lowpass_angstrom)
            low, high = contrast_limits(smooth)
            axes.imshow(smooth, vmin=low, vmax=high)
            axes.set_axis_off()
            axes.set_title(label, fontsize=10)
        save_figure(figure, path)


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
        figure = make_figure(7.6, 3.6)
        axes = figure.add_subplot()
        for (label, image, pixel), colour in zip(images, COLOURS, strict=False):
            frequency, power = rotational_power(image, pixel)
            axes.semilogy(frequency, power / power.max(), color=colour, label=label)
        axes.set_xlim(left=0)
        axes.set_xlabel("spatial frequency, 1/Å")
        axes.set_ylabel("power, relative")
        axes.set_title(title)
        axes.legend()
        save_figure(figure, path)


def rotational_power(image: FloatArray, pixel_size_angstrom: float) -> tuple[FloatArray, FloatArray]:
    """Frequencies in 1/Å and mean power of an image in rings up to Nyquist, without the mean."""
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    power = np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
    count = min(image.shape) // 2
    ring = np.minimum((frequency * 2 * count).astype(int), count)
    total = np.bincount(ring.ravel(), power.ravel(), count + 1)
    weight = np.bincount(ring.ravel(), minlength=count + 1)
    centres = (np.arange(1, count) + 0.5) / (2 * count * pixel_size_angstrom)
    return centres, (total / np.maximum(weight, 1))[1:count]
