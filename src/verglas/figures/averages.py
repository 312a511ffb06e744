"""Pictures of averages: their sections and projections, their correlation, how their particles are turned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, LINE, MUTED, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, label_image

FloatArray = npt.NDArray[Any]

_NAMED_SERIES = 12


def draw_map(volume: FloatArray, voxel_size_angstrom: float, path: Path) -> None:
    """Draw nine sections across z of a map, and its projections along z, y and x.

    Parameters
    ----------
    volume
        `(z, y, x)`, dense is bright.
    voxel_size_angstrom
        Side of a voxel.
    path
        The PNG to write.
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
                draw_scale_bar(axes, size, voxel_size_angstrom)
        for row, (image, name) in enumerate(zip(projections, "zyx", strict=True)):
            axes = figure.add_subplot(grid[row, 3])
            axes.imshow(image)
            label_image(axes, f"along {name}")
            axes.set_axis_off()
        save_figure(figure, path)


def draw_sections(
    volumes: Sequence[tuple[str, FloatArray]],
    outline: FloatArray,
    voxel_size_angstrom: float,
    path: Path,
) -> None:
    """Draw the three central sections of maps, a row each, with the outline of their mask.

    Parameters
    ----------
    volumes
        Label and `(z, y, x)` of each.
    outline
        `(z, y, x)` mask; drawn where it is a half.
    voxel_size_angstrom
        Side of a voxel.
    path
        The PNG to write.
    """
    size = len(outline)
    with house_style():
        figure = make_figure(PAGE_INCHES, PAGE_INCHES * 0.31 * len(volumes))
        grid = figure.add_gridspec(len(volumes), 3)
        for row, (label, volume) in enumerate(volumes):
            low, high = np.percentile(volume[size // 4 : -size // 4], (1, 99.8))
            for column, axis in enumerate(range(3)):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(np.take(volume, size // 2, axis), vmin=low, vmax=high)
                edge = np.take(outline, size // 2, axis)
                if edge.min() < 0.5 < edge.max():
                    axes.contour(edge, [0.5], colors=COLOURS[1], linewidths=0.8)
                label_image(axes, f"{label}, across {'zyx'[axis]}")
                axes.set_axis_off()
                if not row and not column:
                    draw_scale_bar(axes, size, voxel_size_angstrom)
        save_figure(figure, path)


def draw_sampling(planes: Sequence[tuple[str, FloatArray]], edge_per_angstrom: float, path: Path) -> None:
    """Draw how well the particles fill Fourier space: the weight over the mean of its shell, in central planes.

    Parameters
    ----------
    planes
        Label and `(n, n)` values of each, origin in the middle; 1 is the mean of a shell, NaN is not drawn.
    edge_per_angstrom
        Frequency at the planes' edges.
    path
        The PNG to write.
    """
    reach = (-edge_per_angstrom, edge_per_angstrom)
    ticks = [-edge_per_angstrom, -edge_per_angstrom / 2, 0.0, edge_per_angstrom / 2, edge_per_angstrom]
    names = [f"1/{abs(1 / tick):.0f}" if tick else "0" for tick in ticks]
    with house_style():
        figure = make_figure(PAGE_INCHES, 3.1)
        grid = figure.add_gridspec(1, len(planes))
        for column, (label, values) in enumerate(planes):
            axes = figure.add_subplot(grid[0, column])
            picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=2, extent=(*reach, *reach))
            axes.set_title(label, fontsize=9)
            axes.set_xticks(ticks, names)
            axes.set_yticks(ticks if not column else [], names if not column else [])
            axes.tick_params(labelsize=7)
        bar = figure.colorbar(picture, ax=figure.axes, shrink=0.8)
        bar.set_label("weight over its shell's mean")
        save_figure(figure, path)


def draw_counts(counts: Sequence[tuple[str, int, int]], path: Path) -> None:
    """Draw how many particles of either half set each tilt series holds.

    Parameters
    ----------
    counts
        Name and the two numbers of each.
    path
        The PNG to write.
    """
    places = np.arange(len(counts))
    first, second = (np.array([one[half] for one in counts]) for half in (1, 2))
    with house_style():
        figure = make_figure(PAGE_INCHES, 2.8)
        axes = figure.add_subplot()
        axes.bar(places, first, color=COLOURS[0], label="half set 1")
        axes.bar(places, second, bottom=first, color=COLOURS[1], label="half set 2")
        few = len(counts) <= _NAMED_SERIES
        axes.set_xticks(places if few else [], [one[0] for one in counts] if few else [])
        axes.set_xlabel("tilt series" if few else f"{len(counts)} tilt series")
        axes.set_ylabel("particles")
        axes.set_xlim(-0.6 - (len(counts) < 4), len(counts) - 0.4 + (len(counts) < 4))
        axes.legend()
        save_figure(figure, path)


def draw_local_resolution(resolution: FloatArray, volume: FloatArray, inside: FloatArray, path: Path) -> None:
    """Draw the local resolution in the central sections of a map, and how it is distributed.

    Parameters
    ----------
    resolution
        `(z, y, x)` Å.
    volume
        `(z, y, x)` the map.
    inside
        `(z, y, x)` mask of the molecule; only what is above a half counts and is coloured.
    path
        The PNG to write.
    """
    known = resolution[inside > 0.5]
    low, high = (float(value) for value in np.percentile(known, (2, 98)))
    high = max(high, low + 1.0)
    size = len(volume)
    dark, bright = np.percentile(volume, (1, 99.8))
    with house_style():
        figure = make_figure(PAGE_INCHES, 2.9)
        grid = figure.add_gridspec(1, 4)
        for axis in range(3):
            axes = figure.add_subplot(grid[0, axis])
            section = np.take(volume, size // 2, axis)
            axes.imshow(section, vmin=dark, vmax=bright)
            shown = np.ma.masked_where(
                np.take(inside, size // 2, axis) <= 0.5, np.take(resolution, size // 2, axis)
            )
            picture = axes.imshow(shown, cmap="viridis_r", vmin=low, vmax=high, alpha=0.75)
            label_image(axes, f"across {'zyx'[axis]}")
            axes.set_axis_off()
        figure.colorbar(picture, ax=figure.axes, shrink=0.8, label="Å")
        axes = figure.add_subplot(grid[0, 3])
        axes.hist(known, np.linspace(low, high, 25).tolist(), color=COLOURS[0])
        axes.set_xlabel("local resolution, Å")
        axes.set_yticks([])
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


def draw_directions(angles_deg: FloatArray, path: Path) -> None:
    """Draw from where particles are seen: where the specimen's z axis lies in their frame.

    Parameters
    ----------
    angles_deg
        `(n, 3)` rot, tilt, psi.
    path
        The PNG to write.
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
