"""Pictures of a defocus estimate: the search, the rings, the views and the hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, LINE, MUTED, house_style, make_figure, save_figure

FloatArray = npt.NDArray[np.floating]

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
    frequency: FloatArray,
    power: FloatArray,
    background: FloatArray,
    ripple: FloatArray,
    fit: FloatArray,
    path: Path,
) -> None:
    """Draw the average spectrum with its background, and what is left with the fitted CTF.

    Parameters
    ----------
    frequency
        `(k,)` 1/Å.
    power, background
        `(k,)` relative power and its smooth part.
    ripple, fit
        `(k,)` power over background less one, and the rings that were fitted.
    path
        The PNG to write.
    """
    scale = float(background.max()) or 1.0
    with house_style():
        figure = make_figure(11.6, 3.6)
        left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
        left.semilogy(frequency, power / scale, linewidth=1.2, label="average spectrum")
        left.semilogy(frequency, background / scale, linewidth=1.2, label="background")
        left.set_ylabel("power, relative")
        left.set_title("spectrum at the mean defocus")
        right.axhline(0, color=LINE, linewidth=0.8)
        right.plot(frequency, 100 * ripple, color=MUTED, linewidth=1.1, label="spectrum less background")
        right.plot(frequency, 100 * fit, color=COLOURS[1], linewidth=1.4, label="CTF, fitted")
        right.set_ylabel("% of the background")
        right.set_title("rings")
        shown = [r for r in _RESOLUTIONS if frequency[0] <= 1 / r <= frequency[-1]]
        for axes in (left, right):
            axes.set_xlabel("resolution, Å")
            axes.set_xticks([1 / r for r in _thin(shown)], [f"{r:g}" for r in _thin(shown)])
            axes.set_xlim(frequency[0], frequency[-1])
            axes.legend(loc="upper right")
        save_figure(figure, path)


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
    gain: FloatArray,
    gain_score: FloatArray,
    verdict: str,
    path: Path,
) -> None:
    """Draw the defocus of each view over the tilt, and what the field's slope says of the hand.

    Parameters
    ----------
    tilt_deg, defocus_angstrom, error_angstrom
        `(n,)` of each view.
    gain, gain_score
        `(m,)` slope of the defocus over the field, as a multiple of that which the tilt says for hand +1, and its
        score in standard deviations of noise.
    verdict
        Title of the right panel.
    path
        The PNG to write.
    """
    with house_style():
        figure = make_figure(11.6, 3.6)
        left, right = (figure.add_subplot(1, 2, i) for i in (1, 2))
        left.errorbar(
            tilt_deg, defocus_angstrom / 1e4, error_angstrom / 1e4, fmt="o", markersize=4, elinewidth=1.0
        )
        left.axhline(float(np.median(defocus_angstrom)) / 1e4, color=LINE, linewidth=1.0)
        left.set_xlabel("tilt, degrees")
        left.set_ylabel("defocus, µm")
        left.set_title("defocus of each view at the tilt axis")
        right.plot(gain, gain_score)
        for place, label in ((1, "hand +1"), (-1, "hand −1")):
            right.axvline(place, color=MUTED, linewidth=0.9, linestyle="--")
            right.annotate(label, (place, right.get_ylim()[0]), xytext=(4, 4), textcoords="offset points")
        right.set_xlabel("slope of the defocus over the field, relative to the tilt's")
        right.set_ylabel("correlation, σ of noise")
        right.set_title(verdict)
        save_figure(figure, path)
