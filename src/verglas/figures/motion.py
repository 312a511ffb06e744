"""Pictures of the motion in a movie: where the specimen went, how fast, and what correcting it brought."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

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
        figure = make_figure(PAGE_INCHES, PAGE_INCHES * height / width + 0.35)
        axes = figure.add_subplot()
        show_image(axes, image, pixel_size_angstrom, lowpass_angstrom)
        scale = magnification / pixel_size_angstrom
        for i, place in enumerate(places):
            y = place[0] * height + scale * (paths_angstrom[:, i, 0] - paths_angstrom[:, i, 0].mean())
            x = place[1] * width + scale * (paths_angstrom[:, i, 1] - paths_angstrom[:, i, 1].mean())
            axes.plot(x, y, color="white", linewidth=2.6, alpha=0.8)
            axes.plot(x, y, color=COLOURS[1], linewidth=1.3)
            axes.plot(x[0], y[0], "o", color=COLOURS[0], markeredgecolor="white", markersize=4.5)
        draw_scale_bar(axes, width, pixel_size_angstrom)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(-0.5, height - 0.5)
        axes.set_title(
            f"motion, drawn {magnification:.0f} times as long; a dot marks the first frame", fontsize=9
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
        axes = figure.add_subplot()
        axes.axvline(limit_per_angstrom, color=LINE, linewidth=1.0)
        axes.semilogy(frequency[shown], before[shown] / level, linewidth=1.1, label="frames as they lie")
        axes.semilogy(frequency[shown], after[shown] / level, linewidth=1.1, label="motion taken out")
        ticks = [r for r in (30, 15, 10, 7, 5, 4, 3, 2.5, 2, 1.7) if 1 / r <= frequency[-1]]
        axes.set_xticks([1 / r for r in ticks], [f"{r:g}" for r in ticks])
        axes.set_xlim(0, frequency[-1])
        axes.set_xlabel("resolution, Å")
        axes.set_ylabel("power over that of the noise")
        axes.set_title("spectrum of the sum of all frames")
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
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        left.bar(frames[1:], steps, color=COLOURS[0], width=0.8, label="middle, since the frame before")
        left.plot(frames, local_angstrom, color=COLOURS[1], label="elsewhere against the middle, RMS")
        left.set_xlabel("frame")
        left.set_ylabel("Å")
        left.set_title("drift")
        left.legend()
        right.plot(trajectory_angstrom[:, 1], trajectory_angstrom[:, 0], ".-", markersize=4, linewidth=1.0)
        right.plot(*trajectory_angstrom[0, ::-1], "o", color=COLOURS[1], label="first frame")
        right.set_aspect("equal", adjustable="datalim")
        right.set_xlabel("x, Å")
        right.set_ylabel("y, Å")
        right.set_title("way of the middle")
        right.legend()
        save_figure(figure, path)
