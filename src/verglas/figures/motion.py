"""Pictures of the motion in a movie: where the specimen went, how fast, and what correcting it brought."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verglas.figures.style import COLOURS, LINE, PAGE_INCHES, house_style, make_figure, save_figure
from verglas.figures.tomogram import draw_scale_bar, show_image

FloatArray = npt.NDArray[np.floating]


def draw_trajectories(
    image: FloatArray,
    pixel_size_angstrom: float,
    places: FloatArray,
    paths_angstrom: FloatArray,
    path: Path,
    *,
    magnification: float,
    lowpass_angstrom: float = 40.0,
) -> None:
    """Draw the ways of some places over the corrected image, larger than they are.

    Parameters
    ----------
    image
        `(y, x)` average.
    pixel_size_angstrom
        Of the image, Å.
    places
        `(p, 2)` yx shares of the image.
    paths_angstrom
        `(n, p, 2)` yx displacements.
    path
        The PNG to write.
    magnification
        By which the ways are larger than the image.
    lowpass_angstrom
        To which the picture is smoothed.
    """
    height, width = image.shape
    with house_style():
        high = PAGE_INCHES * height / width + 0.35
        figure = make_figure(PAGE_INCHES, high)
        (axes,) = _place_axes(figure, [(0.0, 0.0, PAGE_INCHES, high - 0.3)])
        show_image(axes, image, pixel_size_angstrom, lowpass_angstrom)
        scale = magnification / pixel_size_angstrom
        centred = scale * (paths_angstrom - paths_angstrom.mean(0)) + places * (height, width)
        # One line for all, with gaps: as many lines as places would take longer than the rest of the picture.
        y, x = np.pad(centred, ((0, 1), (0, 0), (0, 0)), constant_values=np.nan).T.reshape(2, -1)
        axes.plot(x, y, color="white", linewidth=2.6, alpha=0.8)
        axes.plot(x, y, color=COLOURS[1], linewidth=1.3)
        first = centred[0].T
        axes.plot(*first[::-1], "o", color=COLOURS[0], markeredgecolor="white", markersize=4.5)
        draw_scale_bar(axes, width, pixel_size_angstrom)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(-0.5, height - 0.5)
        axes.set_title(
            f"motion, drawn {magnification:.0f} times as long; a dot marks the first frame", fontsize=9, y=1.0
        )
        save_figure(figure, path)


def draw_spectra(
    frequency: FloatArray, before: FloatArray, after: FloatArray, limit_per_angstrom: float, path: Path
) -> None:
    """Draw the power of the sum of frames as they lie, and of the aligned sum.

    Parameters
    ----------
    frequency
        `(k,)` 1/Å, from 0.
    before, after
        `(k,)` rotational averages.
    limit_per_angstrom
        Frequency up to which the frames told of the motion.
    path
        The PNG to write.
    """
    shown = slice(max(3, len(frequency) // 200), None)
    level = float(np.median(after[-len(after) // 4 :])) or 1.0
    with house_style():
        figure = make_figure(PAGE_INCHES, 3.4)
        (axes,) = _place_axes(figure, [(0.65, 0.55, PAGE_INCHES - 0.8, 2.5)])
        axes.axvline(limit_per_angstrom, color=LINE, linewidth=1.0)
        axes.semilogy(frequency[shown], before[shown] / level, linewidth=1.1, label="frames as they lie")
        axes.semilogy(frequency[shown], after[shown] / level, linewidth=1.1, label="motion taken out")
        ticks = [r for r in (30, 15, 10, 7, 5, 4, 3, 2.5, 2, 1.7) if 1 / r <= frequency[-1]]
        axes.set_xticks([1 / r for r in ticks], [f"{r:g}" for r in ticks])
        axes.set_xlim(0, frequency[-1])
        axes.set_xlabel("resolution, Å")
        axes.set_ylabel("power over that of the noise")
        axes.set_title("spectrum of the sum of all frames", y=1.0)
        axes.legend()
        save_figure(figure, path)


def draw_drift(
    trajectory_angstrom: FloatArray, local_angstrom: FloatArray, first_frame: int, path: Path
) -> None:
    """Draw how far the specimen moved from frame to frame, and the way of the whole image.

    Parameters
    ----------
    trajectory_angstrom
        `(n, 2)` yx of the middle of the image.
    local_angstrom
        `(n,)` RMS over the image of what differs from the middle.
    first_frame
        Number of the first frame, from 1.
    path
        The PNG to write.
    """
    steps = np.hypot(*np.diff(trajectory_angstrom, axis=0).T)
    frames = first_frame + np.arange(len(trajectory_angstrom))
    with house_style():
        figure = make_figure(PAGE_INCHES, 3.2)
        left, right = _place_axes(figure, [(0.6, 0.5, 3.9, 2.4), (5.4, 0.5, PAGE_INCHES - 5.5, 2.4)])
        edges = np.arange(frames[0], frames[-1] + 1) + 0.5
        left.stairs(steps, edges, fill=True, color=COLOURS[0], label="middle, since the frame before")
        left.plot(frames, local_angstrom, color=COLOURS[1], label="elsewhere against the middle, RMS")
        left.set_xlabel("frame")
        left.set_ylabel("Å")
        left.set_title("drift", y=1.0)
        left.legend()
        right.plot(trajectory_angstrom[:, 1], trajectory_angstrom[:, 0], ".-", markersize=4, linewidth=1.0)
        right.plot(*trajectory_angstrom[0, ::-1], "o", color=COLOURS[1], label="first frame")
        right.set_aspect("equal", adjustable="datalim")
        right.set_xlabel("x, Å")
        right.set_ylabel("y, Å")
        right.set_title("way of the middle", y=1.0)
        right.legend()
        save_figure(figure, path)


def _place_axes(figure: Figure, boxes: list[tuple[float, float, float, float]]) -> list[Axes]:
    """Axes at places in inches (left, bottom, width, height): to find them takes as long as to draw them."""
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    return [figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes]
