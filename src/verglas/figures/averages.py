"""Pictures of averages: their sections and projections, their correlation, how their particles are turned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, LINE, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image

FloatArray = npt.NDArray[Any]


def draw_map(volume: FloatArray, voxel_size_angstrom: float, path: Path, *, title: str = "") -> None:
    """Draw nine sections across z of a map, and its projections along z, y and x.

    Parameters
    ----------
    volume
        `(z, y, x)`, dense is bright.
    voxel_size_angstrom
        Side of a voxel.
    path
        The PNG to write.
    title
        Above the picture.
    """
    size = len(volume)
    places = np.linspace(0.24, 0.76, 9) * (size - 1)
    low, high = np.percentile(volume[size // 4 : -size // 4], (2, 99.8))
    projections = [volume.sum(axis) for axis in range(3)]
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES * 0.78)
        grid = figure.add_gridspec(3, 4)
        for number, place in enumerate(places):
            axes = figure.add_subplot(grid[number // 3, number % 3])
            axes.imshow(volume[round(place)], vmin=low, vmax=high)
            height = (round(place) - size // 2) * voxel_size_angstrom
            label_image(axes, f"z {height:+.0f} Å")
            axes.set_axis_off()
            if not number:
                axes.set_title(title, fontsize=9)
                draw_scale_bar(axes, size, voxel_size_angstrom)
        for row, (image, name) in enumerate(zip(projections, "zyx", strict=True)):
            axes = figure.add_subplot(grid[row, 3])
            axes.imshow(image)
            label_image(axes, f"along {name}")
            axes.set_axis_off()
        save_figure(figure, path)


def draw_half_correlation(
    frequency: FloatArray,
    curves: Sequence[tuple[str, FloatArray]],
    cones: FloatArray,
    thresholds: Sequence[tuple[str, FloatArray]],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw the correlation of two half maps with that in its cones.

    Parameters
    ----------
    frequency
        `(s,)` 1/Å, from 0.
    curves
        Label and `(s,)` values of each.
    cones
        `(c, s)`, drawn faintly behind.
    thresholds
        Label and `(s,)` values of each, drawn dashed.
    path
        The PNG to write.
    title
        Above the picture.
    """
    with house_style():
        figure = make_figure(PAGE_INCHES, 4.2)
        axes = figure.add_subplot()
        axes.plot(frequency[1:], cones[:, 1:].T, color=LINE, linewidth=0.7)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for level in (0.5, 0.143):
            axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=":")
            axes.text(frequency[-1], level, f" {level:g}", color=MUTED, fontsize=8, va="center")
        for label, values in thresholds:
            axes.plot(frequency[2:], values[2:], color=MUTED, linewidth=1, linestyle="--", label=label)
        for (label, values), colour in zip(curves, COLOURS, strict=False):
            axes.plot(frequency[1:], values[1:], color=colour, label=label)
        axes.set_xlim(0, frequency[-1])
        axes.set_ylim(-0.1, 1.02)
        ticks = np.linspace(0, frequency[-1], 6)[1:]
        axes.set_xticks(ticks, [f"1/{1 / tick:.1f}" for tick in ticks])
        axes.set_xlabel("spatial frequency, 1/Å")
        axes.set_ylabel("correlation of the half maps")
        axes.set_title(title)
        axes.legend(loc="upper right")
        save_figure(figure, path)


def draw_directions(angles_deg: FloatArray, path: Path, *, title: str = "") -> None:
    """Draw from where particles are seen: where the specimen's z axis lies in their frame.

    Parameters
    ----------
    angles_deg
        `(n, 3)` rot, tilt, psi.
    path
        The PNG to write.
    title
        Above the picture.
    """
    rot, tilt = angles_deg[:, 0], angles_deg[:, 1]
    with house_style():
        figure = make_figure(PAGE_INCHES, 3.2)
        axes = figure.add_subplot()
        # Equal areas of the picture are equal areas of the sphere.
        axes.scatter(
            (rot + 180) % 360 - 180, np.cos(np.deg2rad(tilt)), s=9, color=COLOURS[0], alpha=0.5, linewidth=0
        )
        axes.set_xlim(-180, 180)
        axes.set_ylim(-1, 1)
        axes.set_xticks(range(-180, 181, 60))
        axes.set_xlabel("rot, degrees")
        axes.set_ylabel("cosine of tilt")
        axes.set_title(title)
        save_figure(figure, path)


def draw_scores(scores: Sequence[tuple[str, FloatArray]], path: Path, *, label: str) -> None:
    """Draw the distribution of the scores of each tilt series.

    Parameters
    ----------
    scores
        Name and `(n,)` values of each.
    path
        The PNG to write.
    label
        What the values are.
    """
    values = np.concatenate([one for _, one in scores])
    edges = np.histogram_bin_edges(values, 40).tolist()
    with house_style():
        figure = make_figure(PAGE_INCHES, 3.2)
        axes = figure.add_subplot()
        for (name, one), colour in zip(scores, COLOURS * (len(scores) // len(COLOURS) + 1), strict=False):
            axes.hist(one, edges, histtype="step", color=colour, label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("particles")
        if len(scores) <= len(COLOURS):
            axes.legend()
        save_figure(figure, path)
