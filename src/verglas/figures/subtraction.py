"""Pictures of a subtraction: scales, particles and maps before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    edges = np.linspace(low, max(high, low + 1e-6), 50)
    with house_style():
        figure = make_figure(PAGE_INCHES, 2.9, placed=True)
        left, right = (figure.add_axes((start, 0.17, 0.41, 0.74)) for start in (0.075, 0.565))
        for scales, label, drawn in (
            (plain, "least squares", {"color": MUTED, "alpha": 0.5, "fill": True}),
            (expected, "with the prior", {"color": COLOURS[0]}),
        ):
            counts, _ = np.histogram(np.clip(scales, low, high), edges)
            left.stairs(counts, edges, label=label, **drawn)
        left.set_xlabel("scale of the map in a particle")
        left.set_ylabel("particles")
        left.legend(loc="lower center")
        for label, gain in gains:
            frequency = np.arange(len(gain)) / (2 * len(gain) * pixel_size_angstrom)
            right.plot(frequency[1:], gain[1:], label=label)
        right.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
        ticks = np.linspace(0, 0.5 / pixel_size_angstrom, 6)[1:]
        right.set_xticks(ticks, [f"{1 / tick:.1f}" for tick in ticks])
        right.set_xlabel("resolution, Å")
        right.set_title("gain by frequency")
        right.set_ylim(0, None)
        right.legend(loc="lower left")
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
    tiles = []
    for column, (_, *sections) in enumerate(columns):
        greys = np.stack(sections) if column == 0 else before
        low, high = np.percentile(greys, (2, 99.7))
        tiles.append((np.stack(sections) - low) / max(high - low, 1e-30))
    masks = np.stack([np.stack(removed)] * len(columns), axis=1)
    with house_style():
        figure, axes = _show_tiles(np.stack(tiles, axis=1), pixel_size_angstrom, len(columns), room=0.3)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        if masks.min() < 0.5 < masks.max():
            axes.contour(_lay_out(masks, len(columns)), [0.5], colors=COLOURS[1], linewidths=0.8)
        for column, (label, *_) in enumerate(columns):
            for row, plane in enumerate(("xy", "xz")):
                corner = (column / len(columns), 1 - row / 2)
                label_image(axes, f"{label}, {plane}", corner)
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
    names = ("before", "taken out", "after")
    with house_style():
        figure, axes = _show_tiles(shown.swapaxes(0, 1), pixel_size_angstrom, max(len(pairs), 4))
        for row, name in enumerate(names):
            label_image(axes, name, (0.0, 1 - row / len(names)))
        save_figure(figure, path)


def _show_tiles(
    tiles: FloatArray, pixel_size_angstrom: float, places: int, *, room: float = 0.0
) -> tuple[Figure, Axes]:
    """Show images `(rows, columns, y, x)` of 0 to 1 in one axes, which draws faster, below `room` in inches."""
    image = _lay_out(tiles, places)
    height = PAGE_INCHES * image.shape[0] / image.shape[1]
    figure = make_figure(PAGE_INCHES, height + room, placed=True)
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + room)))
    # Bytes of three colours are drawn as they are.
    greys = np.where(np.isnan(image), 255, np.rint(255 * np.clip(image, 0, 1))).astype(np.uint8)
    axes.imshow(np.repeat(greys[..., None], 3, axis=2), aspect="auto")
    draw_scale_bar(axes, tiles.shape[-1], pixel_size_angstrom)
    axes.set_axis_off()
    return figure, axes


def _lay_out(tiles: FloatArray, places: int) -> FloatArray:
    """Lay images beside and below each other, the first at the top, in an image with `places` in a row."""
    rows, columns, height, width = tiles.shape
    gap = max(1, width // 50)
    image = np.full((rows * (height + gap), places * (width + gap)), np.nan)
    framed = image.reshape(rows, height + gap, places, width + gap)
    framed[:, :height, :columns, :width] = tiles[::-1].swapaxes(1, 2)
    return image[:-gap, :-gap]
