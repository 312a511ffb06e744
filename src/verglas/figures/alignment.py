"""Pictures of an alignment: residuals over the views and over the field, beads or patches on the views."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, MUTED, house_style, make_figure, save_figure
from verglas.figures.tomogram import contrast_limits, lowpass_image

FloatArray = npt.NDArray[Any]

_LENGTHEN = 40.0


def draw_residuals(tilt_deg: FloatArray, residuals_px: FloatArray, path: Path) -> None:
    """Draw the residuals in x and y over the tilt: a dot each bead, a line for their root mean square.

    Parameters
    ----------
    tilt_deg
        `(n,)`.
    residuals_px
        `(beads, n, 2)` measured less expected; NaN where nothing was measured.
    path
        The PNG to write.
    """
    order = np.argsort(tilt_deg)
    seen = np.isfinite(residuals_px[..., 0])
    count = np.maximum(seen.sum(axis=0), 1)
    rms = np.sqrt(np.where(seen[..., None], residuals_px**2, 0.0).sum(axis=0) / count[:, None])
    rms[~seen.any(axis=0)] = np.nan
    with house_style():
        figure = make_figure(11.6, 3.4)
        for i, name in enumerate("xy"):
            axes = figure.add_subplot(1, 2, i + 1)
            tilts = np.broadcast_to(tilt_deg, seen.shape)[seen]
            axes.plot(tilts, residuals_px[seen][:, i], ".", color=MUTED, markersize=3, alpha=0.6, label="one")
            axes.plot(tilt_deg[order], rms[order, i], "o-", color=COLOURS[i], markersize=3.5, label="RMS")
            axes.axhline(0, color=MUTED, linewidth=0.6)
            axes.set_xlabel("tilt, degrees")
            axes.set_title(f"residual in {name}, pixels")
            axes.legend(ncols=2, loc="lower left")
        save_figure(figure, path)


def draw_residual_field(
    tilt_deg: FloatArray,
    expected_px: FloatArray,
    residuals_px: FloatArray,
    image_shape: tuple[int, int],
    path: Path,
    local_px: FloatArray | None = None,
) -> None:
    """Draw the mean residual of each bead where it lies, for the low, the middle and the high third of the tilts.

    Arrows that neighbours share are what a global alignment cannot follow. What a local field took off is grey.

    Parameters
    ----------
    tilt_deg
        `(n,)`.
    expected_px, residuals_px
        `(beads, n, 2)` places from the images' centre, and residuals; NaN where nothing was measured.
    image_shape
        `(y, x)`.
    path
        The PNG to write.
    local_px
        `(beads, n, 2)` shifts of the local field; none when there is no field.
    """
    thirds = np.array_split(np.argsort(tilt_deg), 3)
    height, width = image_shape
    with house_style():
        figure = make_figure(11.6, 11.6 / 3 * height / width + 0.7)
        for i, rows in enumerate(thirds):
            axes = figure.add_subplot(1, 3, i + 1)
            seen = np.isfinite(residuals_px[:, rows, 0])
            beads = seen.any(axis=1)
            total = np.maximum(seen.sum(axis=1), 1)[:, None]
            place = np.where(seen[..., None], expected_px[:, rows], 0.0).sum(axis=1) / total
            mean = np.where(seen[..., None], residuals_px[:, rows], 0.0).sum(axis=1) / total
            x, y = place[beads].T
            arrow: dict[str, Any] = {
                "angles": "xy",
                "scale_units": "xy",
                "scale": 1 / _LENGTHEN,
                "width": 0.005,
            }
            if local_px is not None:
                off = np.where(seen[..., None], local_px[:, rows], 0.0).sum(axis=1) / total
                axes.quiver(x, y, *off[beads].T, color=MUTED, alpha=0.6, **arrow)
            arrows = axes.quiver(x, y, *mean[beads].T, color=COLOURS[1], **arrow)
            axes.plot(x, y, "o", color=COLOURS[0], markersize=2.5)
            axes.quiverkey(arrows, 0.85, 1.05, 1.0, "1 px", labelpos="E", coordinates="axes")
            axes.set_xlim(-width / 2, width / 2)
            axes.set_ylim(-height / 2, height / 2)
            axes.set_aspect("equal")
            axes.set_title(f"{tilt_deg[rows].min():.0f}° to {tilt_deg[rows].max():.0f}°")
        save_figure(figure, path)


def draw_places(points_angstrom: FloatArray, path: Path) -> None:
    """Draw points in space from above and from both sides, on one scale.

    Parameters
    ----------
    points_angstrom
        `(k, 3)` xyz.
    path
        The PNG to write.
    """
    points = points_angstrom[np.isfinite(points_angstrom).all(axis=1)] / 10
    reach = 1.1 * max(1.0, float(np.abs(points).max(initial=0.0)))
    with house_style():
        figure = make_figure(11.6, 4.2)
        for i, (across, up) in enumerate(((0, 1), (0, 2), (1, 2))):
            axes = figure.add_subplot(1, 3, i + 1)
            axes.plot(points[:, across], points[:, up], "o", color=COLOURS[0], markersize=4)
            axes.axhline(0, color=MUTED, linewidth=0.6)
            axes.set_xlim(-reach, reach)
            axes.set_ylim(-reach, reach)
            axes.set_aspect("equal")
            axes.set_xlabel(f"{'xyz'[across]}, nm")
            axes.set_ylabel(f"{'xyz'[up]}, nm")
        save_figure(figure, path)


def draw_tracks(
    views: Sequence[FloatArray],
    labels: Sequence[str],
    places_px: Sequence[tuple[FloatArray, FloatArray]],
    size_px: float,
    pixel_size_angstrom: float,
    path: Path,
    *,
    square: bool = False,
) -> None:
    """Draw views with a ring around each bead that was measured, and a dotted one where one is expected.

    Parameters
    ----------
    views
        Images `(y, x)`.
    labels
        What to write above each.
    places_px
        For each view `(k, 2)` measured and `(m, 2)` expected but not measured xy from the image's centre.
    size_px
        Diameter of the beads, or side of the patches.
    pixel_size_angstrom
        Side of a pixel, Å.
    path
        The PNG to write.
    square
        Draw squares, for patches. Only their inner half is drawn, for they overlap.
    """
    height, width = views[0].shape
    with house_style():
        figure = make_figure(11.6, 11.6 / len(views) * height / width + 0.4)
        for i, (view, label, groups) in enumerate(zip(views, labels, places_px, strict=True)):
            axes = figure.add_subplot(1, len(views), i + 1)
            smooth = lowpass_image(view, pixel_size_angstrom, 2.5 * pixel_size_angstrom)
            low, high = contrast_limits(smooth)
            axes.imshow(smooth, vmin=low, vmax=high)
            size = (figure.get_figwidth() * 72 / len(views) / width * (0.5 if square else 2.2) * size_px) ** 2
            for places, colour, style in zip(groups, (COLOURS[1], COLOURS[2]), ("-", ":"), strict=True):
                x, y = places[:, 0] + width // 2, places[:, 1] + height // 2
                axes.scatter(
                    x,
                    y,
                    s=size,
                    marker="s" if square else "o",
                    facecolors="none",
                    edgecolors=colour,
                    linewidths=1.1,
                    linestyles=style,
                )
            axes.set_xlim(-0.5, width - 0.5)
            axes.set_ylim(-0.5, height - 0.5)
            axes.set_axis_off()
            axes.set_title(label, fontsize=10)
        save_figure(figure, path)
