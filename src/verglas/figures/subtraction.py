"""Pictures of a subtraction: scales, particles and maps before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image, lowpass_image

FloatArray = npt.NDArray[Any]


def draw_scales(
    plain: FloatArray,
    expected: FloatArray,
    gains: Sequence[tuple[str, FloatArray]],
    pixel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw how strong the map is in each particle, and by frequency.

    Parameters
    ----------
    plain, expected
        `(n,)` scales by least squares, and with the prior of the set.
    gains
        Label and `(s,)` gain of each shell up to Nyquist, of each half set.
    pixel_size_angstrom
        Of the images.
    path
        The PNG to write.
    """
    low, high = np.percentile(plain, (0.5, 99.5))
    edges = np.linspace(low, max(high, low + 1e-6), 50).tolist()
    with house_style():
        figure = make_figure(PAGE_INCHES, 2.9)
        left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
        left.hist(np.clip(plain, low, high), edges, color=MUTED, alpha=0.5, label="least squares")
        left.hist(
            np.clip(expected, low, high), edges, histtype="step", color=COLOURS[0], label="with the prior"
        )
        left.set_xlabel("scale of the map in a particle")
        left.set_ylabel("particles")
        left.legend()
        for label, gain in gains:
            frequency = np.arange(len(gain)) / (2 * len(gain) * pixel_size_angstrom)
            right.plot(frequency[1:], gain[1:], label=label)
        right.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
        ticks = np.linspace(0, 0.5 / pixel_size_angstrom, 6)[1:]
        right.set_xticks(ticks, [f"{1 / tick:.1f}" for tick in ticks])
        right.set_xlabel("resolution, Å")
        right.set_title("gain by frequency")
        right.set_ylim(0, None)
        right.legend()
        save_figure(figure, path)


def draw_sections(
    columns: Sequence[tuple[str, FloatArray, FloatArray]],
    removed: tuple[FloatArray, FloatArray],
    pixel_size_angstrom: float,
    path: Path,
    *,
    title: str,
) -> None:
    """Draw sections of maps in columns with the outline of the removed region; before and after share their greys.

    Parameters
    ----------
    columns
        Label, `(y, x)` and `(z, x)` section of each.
    removed
        The same sections of the mask.
    pixel_size_angstrom
        Of the maps.
    path
        The PNG to write.
    title
        Above the picture.
    """
    before = np.stack(columns[1][1:])
    with house_style():
        panel = PAGE_INCHES / len(columns)
        figure = make_figure(PAGE_INCHES, 2 * panel + 0.5)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        for column, (label, *sections) in enumerate(columns):
            greys = np.stack(sections) if column == 0 else before
            low, high = np.percentile(greys, (2, 99.7))
            for row, (section, mask) in enumerate(zip(sections, removed, strict=True)):
                axes = figure.add_subplot(2, len(columns), row * len(columns) + column + 1)
                axes.imshow(section, vmin=low, vmax=high)
                if mask.min() < 0.5 < mask.max():
                    axes.contour(mask, [0.5], colors=COLOURS[1], linewidths=0.8)
                label_image(axes, f"{label}, {'xy' if row == 0 else 'xz'}")
                if not row and not column:
                    draw_scale_bar(axes, section.shape[1], pixel_size_angstrom)
                axes.set_axis_off()
        save_figure(figure, path)


def draw_pairs(
    pairs: FloatArray, pixel_size_angstrom: float, path: Path, *, lowpass_angstrom: float = 20.0
) -> None:
    """Draw particles before and after, and what was taken out.

    Parameters
    ----------
    pairs
        `(k, 2, y, x)` before and after.
    pixel_size_angstrom
        Of the images.
    path
        The PNG to write.
    lowpass_angstrom
        Resolution to which the picture is smoothed.
    """
    shown = np.array(
        [
            [
                lowpass_image(one, pixel_size_angstrom, lowpass_angstrom)
                for one in (before, before - after, after)
            ]
            for before, after in pairs
        ]
    )
    limits = np.percentile(shown[:, 0], (0.5, 99.5), axis=(1, 2))
    low, high = limits[..., None, None]
    shown[:, 1] += (low + high) / 2
    # Every particle has its own range of grey.
    shown = np.clip((shown - low[:, None]) / np.maximum(high - low, 1e-30)[:, None], 0, 1)
    count = max(len(pairs), 4)
    with house_style():
        figure = make_figure(PAGE_INCHES, 3 * PAGE_INCHES / count)
        for row, name in enumerate(("before", "taken out", "after")):
            axes = figure.add_subplot(3, 1, row + 1)
            axes.imshow(_lay_in_a_row(shown[:, row], count), vmin=0, vmax=1)
            label_image(axes, name)
            if not row:
                draw_scale_bar(axes, shown.shape[-1], pixel_size_angstrom)
            axes.set_axis_off()
        save_figure(figure, path)


def _lay_in_a_row(images: FloatArray, count: int) -> FloatArray:
    """Lay images `(k, y, x)` beside each other, in one with place for `count`: one axes draws faster."""
    height, width = images.shape[1:]
    gap = max(1, width // 50)
    row = np.full((height, count * (width + gap) - gap), np.nan)
    for place, image in enumerate(images):
        row[:, place * (width + gap) : place * (width + gap) + width] = image
    return row
