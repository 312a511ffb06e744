"""Pictures of a defocus estimate: the search, the background and the rings, the views, and the hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter

from verglas.figures.style import COLOURS, LINE, MUTED, house_style, make_figure, save_figure

FloatArray = npt.NDArray[np.floating]

_FLAT_ANGSTROM = 10.0
_RESOLUTIONS = (30, 20, 15, 12, 10, 8, 7, 6, 5, 4, 3.5, 3, 2.5, 2)


def draw_search(
    defocus_angstrom: FloatArray, score: FloatArray, best_angstrom: float, least: float, path: Path
) -> None:
    """Draw the correlation with the CTF over the defocus.

    Parameters
    ----------
    defocus_angstrom, score
        `(f,)`, the score in standard deviations of noise.
    best_angstrom
        Where the peak is.
    least
        Score from which a peak counts.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(8.0, 3.4)
        axes = figure.add_subplot()
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.axhline(least, color=MUTED, linewidth=0.9, linestyle="--", label="needed to count")
        axes.plot(defocus_angstrom / 1e4, score, linewidth=1.2)
        top = float(score.max())
        axes.plot(best_angstrom / 1e4, top, "o", color=COLOURS[1], label=f"{best_angstrom / 1e4:.3f} µm")
        axes.set_xlabel("defocus at the tilt axis, µm")
        axes.set_ylabel("correlation, σ of noise")
        axes.set_title("search over the mean defocus")
        axes.legend()
        save_figure(figure, path)


def draw_rings(
    curves: dict[str, FloatArray],
    direction_deg: FloatArray,
    maps: tuple[FloatArray, FloatArray],
    path: Path,
    *,
    quality: tuple[FloatArray, float] | None = None,
    nodes: tuple[FloatArray, str] | None = None,
) -> None:
    """Draw the average spectrum with its background, and what is left with the fitted CTF, in one and two dimensions.

    Parameters
    ----------
    curves
        `(k,)` each: `frequency` in 1/Å; `power` and its `background`, relative; `ripple`, power over background
        less one, and the `fit` to it.
    direction_deg
        `(a,)` of the maps' rows.
    maps
        `(a, k)` ripple and fit in each direction.
    path
        The PNG to write.
    quality
        `(k,)` correlation of ripple and fit about each frequency, and the resolution in Å at which it ends.
    nodes
        Frequencies at which the rings of a thick specimen vanish, 1/Å, and what to call them.
    """
    frequency, scale = curves["frequency"], float(curves["background"].max()) or 1.0
    with house_style():
        figure = make_figure(11.6, 6.6 if quality is None else 8.0)
        heights = (1, 1) if quality is None else (1, 1, 0.6)
        grid = figure.add_gridspec(len(heights), 2, width_ratios=(1.25, 1), height_ratios=heights)
        upper, lower, *more = (figure.add_subplot(grid[i, 0]) for i in range(len(heights)))
        if quality is not None:
            _draw_quality(more[0], frequency, *quality)
        upper.semilogy(frequency, curves["power"] / scale, linewidth=1.2, label="average spectrum")
        upper.semilogy(frequency, curves["background"] / scale, linewidth=1.2, label="background")
        for axis in (upper.yaxis.set_major_formatter, upper.yaxis.set_minor_formatter):
            axis(FuncFormatter(_tell_power))
        upper.set_ylabel("power, relative")
        upper.set_title("spectrum, brought to the mean defocus")
        lower.axhline(0, color=LINE, linewidth=0.8)
        lower.plot(frequency, 100 * curves["ripple"], color=MUTED, linewidth=1.1, label="less background")
        lower.plot(frequency, 100 * curves["fit"], color=COLOURS[1], linewidth=1.4, label="CTF, fitted")
        lower.set_ylabel("% of the background")
        lower.set_title("rings")
        if nodes is not None:
            for axes in (lower, *more):
                for i, node in enumerate(nodes[0]):
                    label = nodes[1] if i == 0 and axes is lower else None
                    axes.axvline(node, color=COLOURS[2], linewidth=1.1, linestyle=":", label=label)
        shown = _thin([r for r in _RESOLUTIONS if frequency[0] <= 1 / r <= frequency[-1]])
        for axes in (upper, lower, *more):
            axes.set_xlabel("resolution, Å")
            axes.set_xticks([1 / r for r in shown], [f"{r:g}" for r in shown])
            axes.set_xlim(frequency[0], frequency[-1])
            # Above the lines of the nodes.
            axes.legend(loc="lower left" if axes in more else "upper right", frameon=True, edgecolor="none")
        disc = figure.add_subplot(grid[:, 1], projection="polar")
        _draw_disc(disc, frequency, direction_deg, maps)
        save_figure(figure, path)


def _draw_quality(axes: Any, frequency: FloatArray, correlation: FloatArray, end_angstrom: float) -> None:
    axes.axhline(0.5, color=MUTED, linewidth=0.9, linestyle="--")
    axes.plot(frequency, correlation, linewidth=1.2, label="correlation of data and fit")
    axes.axvline(1 / end_angstrom, color=COLOURS[1], linewidth=1.2, label=f"to {end_angstrom:.2f} Å")
    axes.set_ylim(-0.55, 1.05)
    axes.set_title("agreement")


def _draw_disc(
    axes: Any, frequency: FloatArray, direction_deg: FloatArray, maps: tuple[FloatArray, FloatArray]
) -> None:
    """Draw the data on the upper half of a disc and the fit on the lower."""
    half = (direction_deg[1] - direction_deg[0]) / 2 if len(direction_deg) > 1 else 90.0
    # In small pieces, because the edges of a piece are straight.
    pieces = 8
    first, last = direction_deg[0] - half, direction_deg[-1] + half
    edges = np.deg2rad(np.linspace(first, last, pieces * len(direction_deg) + 1))
    step = frequency[1] - frequency[0]
    rings = np.append(frequency - step / 2, frequency[-1] + step / 2)
    limit = float(np.quantile(np.abs(maps[1]), 0.98)) or 1.0
    for turn, rows in zip((0.0, np.pi), maps, strict=True):
        # Each direction has a grey of its own in the middle, so the eye may judge rings and not wedges.
        even = np.repeat(rows - rows.mean(axis=1, keepdims=True), pieces, axis=0)
        axes.pcolormesh(
            edges + turn, rings, even.T, cmap="gray", vmin=-limit, vmax=limit, rasterized=True, linewidth=0
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["polar"].set_visible(False)
    axes.grid(visible=False)
    axes.plot([0, 0], [0, rings[-1]], color=COLOURS[1], linewidth=1.0)
    axes.plot([np.pi, np.pi], [0, rings[-1]], color=COLOURS[1], linewidth=1.0)
    axes.set_title("rings by direction: data above, fit below", loc="center")


def _thin(resolutions: Sequence[float]) -> list[float]:
    """Leave out labels that would touch their neighbours."""
    kept: list[float] = []
    room = (1 / resolutions[-1] - 1 / resolutions[0]) / 14 if resolutions else 0.0
    for resolution in resolutions:
        if not kept or 1 / resolution - 1 / kept[-1] > room:
            kept.append(resolution)
    return kept


def draw_view_defocus(
    tilt_deg: FloatArray,
    defocus_angstrom: FloatArray,
    error_angstrom: FloatArray,
    trend_angstrom: FloatArray,
    astigmatism_angstrom: FloatArray,
    path: Path,
) -> None:
    """Draw the defocus and the astigmatism of each view over the tilt.

    Parameters
    ----------
    tilt_deg
        `(n,)`.
    defocus_angstrom, error_angstrom
        `(n,)` at the tilt axis, and its standard error.
    trend_angstrom
        `(n,)` what the views scatter around.
    astigmatism_angstrom
        `(n,)` defocus u less v.
    path
        The PNG to write.
    """
    order = np.argsort(tilt_deg)
    with house_style():
        figure = make_figure(11.6, 3.6)
        left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
        left.errorbar(
            tilt_deg,
            defocus_angstrom / 1e4,
            error_angstrom / 1e4,
            fmt="o",
            markersize=4,
            elinewidth=1.0,
            label="view",
        )
        left.plot(tilt_deg[order], trend_angstrom[order] / 1e4, color=MUTED, linewidth=1.0, label="trend")
        left.set_ylabel("defocus, µm")
        left.set_title("defocus of each view at the tilt axis")
        left.legend()
        right.plot(tilt_deg, astigmatism_angstrom, "o", markersize=4)
        right.set_ylim(0, 1.15 * float(max(astigmatism_angstrom.max(), 100)))
        right.set_ylabel("defocus u - v, Å")
        right.set_title("astigmatism of each view")
        for axes in (left, right):
            axes.set_xlabel("tilt, degrees")
        save_figure(figure, path)


def draw_hand(
    defocus_angstrom: FloatArray,
    heights: dict[str, FloatArray],
    gain: FloatArray,
    gain_score: FloatArray,
    verdict: str,
    path: Path,
) -> None:
    """Draw what the field on either side of the tilt axis says of the hand.

    Parameters
    ----------
    defocus_angstrom
        `(f,)`.
    heights
        `(f,)` each: score of the tiles at one height over their own defocus, in standard deviations of noise.
    gain, gain_score
        `(m,)` slope of the defocus over the field, as a multiple of that which the tilt says for hand +1, and its
        score.
    verdict
        Title of the right panel.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(11.6, 3.6)
        left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
        for colour, (name, score) in zip((COLOURS[0], MUTED, COLOURS[1]), heights.items(), strict=True):
            left.plot(defocus_angstrom / 1e4, score, color=colour, label=name)
            best = int(score.argmax())
            left.plot(defocus_angstrom[best] / 1e4, score[best], "o", color=colour)
        left.set_xlabel("defocus, µm")
        left.set_ylabel("correlation, σ of noise")
        left.set_title("defocus on either side of the tilt axis")
        left.legend()
        right.plot(gain, gain_score)
        for place, label in ((1, "hand +1"), (-1, "hand −1")):
            right.axvline(place, color=MUTED, linewidth=0.9, linestyle="--")
            right.annotate(label, (place, right.get_ylim()[0]), xytext=(4, 4), textcoords="offset points")
        right.set_xlabel("slope of the defocus over the field, relative to the tilt's")
        right.set_ylabel("correlation, σ of noise")
        right.set_title(verdict)
        save_figure(figure, path)


def draw_surface(
    image: FloatArray,
    pixel_size_angstrom: float,
    surface_angstrom: FloatArray,
    search: tuple[FloatArray, FloatArray],
    least: float,
    path: Path,
) -> None:
    """Draw the defocus over an image, and the search that found it.

    Parameters
    ----------
    image
        `(y, x)`.
    pixel_size_angstrom
        Of the image.
    surface_angstrom
        `(m, n)` defocus on places from edge to edge.
    search
        `(f,)` defocus and its score, in standard deviations of noise.
    least
        Score from which a peak counts.
    path
        The PNG to write.
    """
    height, width = (n * pixel_size_angstrom / 1e4 for n in image.shape)
    with house_style():
        figure = make_figure(11.6, 4.2)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
        low, high = np.quantile(image, (0.01, 0.99))
        box = (-width / 2, width / 2, -height / 2, height / 2)
        left.imshow(image, cmap="gray", vmin=low, vmax=high, extent=box, origin="lower")
        y, x = (
            np.linspace(-side / 2, side / 2, count)
            for side, count in zip((height, width), surface_angstrom.shape, strict=True)
        )
        left.set_title("defocus over the image")
        if np.ptp(surface_angstrom) < _FLAT_ANGSTROM:
            # Lines would show rounding.
            left.set_title(f"defocus {float(surface_angstrom.mean()) / 1e4:.3f} µm all over the image")
        else:
            lines = left.contour(x, y, surface_angstrom / 1e4, 7, cmap="viridis", linewidths=1.4)
            figure.colorbar(
                lines, ax=left, label="defocus, µm", format=FuncFormatter(lambda value, _: f"{value:.4f}")
            )
        left.set_xlabel("µm")
        defocus, score = search
        right.axhline(least, color=MUTED, linewidth=0.9, linestyle="--", label="needed to count")
        right.plot(defocus / 1e4, score, linewidth=1.2)
        best = int(score.argmax())
        right.plot(
            defocus[best] / 1e4, score[best], "o", color=COLOURS[1], label=f"{defocus[best] / 1e4:.2f} µm"
        )
        right.set_xlabel("defocus at the centre, µm")
        right.set_ylabel("correlation, σ of noise")
        right.set_title("first search")
        right.legend()
        save_figure(figure, path)


def _tell_power(value: float, _: Any) -> str:
    """Name 1, 2 and 5 of each decade alone: others would run into each other."""
    return f"{value:.2g}" if f"{value:e}"[0] in "125" else ""
