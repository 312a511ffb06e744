"""Pictures of a template search."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from verglas.figures.style import COLOURS, INK, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image, lowpass_image, show_image

FloatArray = npt.NDArray[np.floating[Any]]

_SLAB_ANGSTROM = 200.0


def draw_histogram(
    scores: Sequence[tuple[str, FloatArray, tuple[float, float, float] | None, float]], path: Path
) -> None:
    """Draw how many maxima have each score, the fitted noise and the threshold.

    Parameters
    ----------
    scores
        For each template its name, the `(n,)` scores of maxima, the deviation, the tries and the number of the
        maxima of noise when they were fitted, and the threshold.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(7.2, 1.0 + 2.4 * len(scores))
        for i, (name, heights, noise, threshold) in enumerate(scores):
            axes = figure.add_subplot(len(scores), 1, i + 1)
            top = max(float(heights.max(initial=0.0)), threshold) * 1.03
            edges = np.linspace(float(np.quantile(heights, 0.005)) if len(heights) else 0.0, top, 101)
            counts, _ = np.histogram(heights, edges)
            axes.stairs(counts, edges, fill=True, color=COLOURS[0], alpha=0.5, label=f"maxima of {name}")
            if noise is not None:
                sigma, tries, count = noise
                expected = count * np.diff(np.exp(tries * log_ndtr(edges / sigma)))
                middle = (edges[1:] + edges[:-1]) / 2
                drawn = expected > 0.05
                axes.plot(middle[drawn], expected[drawn], color=COLOURS[1], label="noise, fitted")
            picked = int((heights >= threshold).sum())
            axes.axvline(threshold, color=INK, linewidth=1.0, linestyle="--")
            axes.set_yscale("log")
            axes.set_ylim(0.5, None)
            axes.text(
                threshold,
                0.97,
                f" {picked} above",
                transform=axes.get_xaxis_transform(),
                va="top",
                color=MUTED,
                fontsize=9,
            )
            axes.set_ylabel("maxima")
            axes.legend(loc="center right")
        axes.set_xlabel("score (correlation coefficient)")
        save_figure(figure, path)


def draw_picks(
    volume: FloatArray,
    places: FloatArray,
    voxel_size_angstrom: float,
    radius_angstrom: float,
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw two sections across the beam and two along it, with rings around the picks in them.

    Parameters
    ----------
    volume
        `(z, y, x)` tomogram.
    places
        `(n, 3)` xyz voxels.
    voxel_size_angstrom
        Å.
    radius_angstrom
        Of the rings.
    path
        The PNG to write.
    title
        Above the picture.
    """
    depth, height, width = volume.shape
    half = max(1, round(_SLAB_ANGSTROM / voxel_size_angstrom / 2))
    heights = places[:, 2] if len(places) else np.array([depth / 2])
    levels = [int(np.clip(level, 0, depth - 1)) for level in np.quantile(heights, (0.3, 0.7))]
    rows = places[:, 1] if len(places) else np.array([height / 2])
    lines = [int(np.clip(row, 0, height - 1)) for row in np.quantile(rows, (0.3, 0.7))]
    ring = radius_angstrom / voxel_size_angstrom
    scale = PAGE_INCHES / 2 / width
    with house_style():
        figure = make_figure(PAGE_INCHES, scale * (height + depth) + 0.6)
        grid = figure.add_gridspec(2, 2, height_ratios=(height, depth))
        for column, level in enumerate(levels):
            axes = figure.add_subplot(grid[0, column])
            slab = volume[max(0, level - half) : level + half].mean(axis=0)
            show_image(axes, slab, voxel_size_angstrom, 60.0)
            near = np.abs(places[:, 2] - level) <= half
            _draw_rings(axes, places[near][:, :2], ring)
            label_image(axes, f"xy at z = {(level - depth // 2) * voxel_size_angstrom:+.0f} Å")
            if column == 0:
                draw_scale_bar(axes, width, voxel_size_angstrom)
                axes.set_title(title, fontsize=8, color="black")
        for column, line in enumerate(lines):
            axes = figure.add_subplot(grid[1, column])
            slab = volume[:, max(0, line - half) : line + half].mean(axis=1)
            show_image(axes, slab, voxel_size_angstrom, 60.0)
            near = np.abs(places[:, 1] - line) <= half
            _draw_rings(axes, places[near][:, [0, 2]], ring)
            label_image(axes, f"xz at y = {(line - height // 2) * voxel_size_angstrom:+.0f} Å")
        save_figure(figure, path)


def _draw_rings(axes: Any, places: FloatArray, radius: float) -> None:
    from matplotlib.collections import EllipseCollection

    size = np.full(len(places), 2 * radius)
    rings = EllipseCollection(
        size,
        size,
        np.zeros(len(places)),
        units="xy",
        offsets=places,
        transOffset=axes.transData,
        facecolors="none",
        edgecolors=COLOURS[1],
        linewidths=0.8,
    )
    axes.add_collection(rings)


def draw_gallery(
    picks: FloatArray,
    mean: FloatArray,
    template: FloatArray,
    scores: FloatArray,
    pixel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw projections of picks in the template's orientation, after the template's and their mean's.

    Parameters
    ----------
    picks
        `(n, y, x)` projections.
    mean, template
        `(y, x)` likewise.
    scores
        `(n,)` of the picks.
    pixel_size_angstrom
        Å.
    path
        The PNG to write.
    """
    columns = 7
    tiles = [("template", template), ("mean of all", mean)]
    tiles += [(f"{score:.2f}", image) for score, image in zip(scores, picks, strict=True)]
    rows = -(-len(tiles) // columns)
    side = PAGE_INCHES / columns
    with house_style():
        figure = make_figure(PAGE_INCHES, rows * (side + 0.18))
        grid = figure.add_gridspec(rows, columns)
        for i, (text, image) in enumerate(tiles):
            axes = figure.add_subplot(grid[divmod(i, columns)])
            smooth = lowpass_image(image, pixel_size_angstrom, 40.0)
            low, high = np.percentile(smooth, (0.5, 99.5))
            axes.imshow(smooth, vmin=low, vmax=max(high, low + 1e-12))
            axes.set_axis_off()
            axes.set_title(text, fontsize=7, color="black", pad=2)
        save_figure(figure, path)
