"""Pictures of how bright the views of a tilt series are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.figures.style import COLOURS, MUTED, house_style, make_figure, save_figure

FloatArray = npt.NDArray[np.floating]


def draw_intensities(
    tilt_deg: FloatArray,
    means: FloatArray,
    deviations: FloatArray,
    expected_mean: FloatArray,
    faults: Sequence[str],
    path: Path,
) -> None:
    """Draw mean intensity and contrast over the tilt, the law of transmission, and the views with a fault.

    Parameters
    ----------
    tilt_deg
        `(n,)` rising.
    means, deviations
        `(n,)` mean and standard deviation of each view.
    expected_mean
        `(n,)` means that the law says; NaN draws none.
    faults
        A word for each view that has a fault, "" for the others.
    path
        The PNG to write.
    """
    bad = np.array([bool(fault) for fault in faults])
    panels = (("mean intensity", means, expected_mean), ("standard deviation", deviations, None))
    with house_style():
        figure = make_figure(11.6, 3.2)
        for i, (title, values, law) in enumerate(panels):
            axes = figure.add_subplot(1, 2, i + 1)
            if law is not None and np.isfinite(law).all():
                axes.plot(tilt_deg, law, color=COLOURS[1], label="law of transmission")
            axes.plot(tilt_deg[~bad], values[~bad], "o", color=COLOURS[0], markersize=4, label="view")
            if bad.any():
                axes.plot(
                    tilt_deg[bad], values[bad], "x", color=COLOURS[3], markersize=7, label="not selected"
                )
            axes.set_xlabel("tilt, degrees")
            axes.set_title(title)
            if i == 0:
                axes.legend()
                for row in np.flatnonzero(bad).tolist():
                    axes.annotate(
                        faults[row],
                        (tilt_deg[row], values[row]),
                        xytext=(0, 7),
                        textcoords="offset points",
                        color=MUTED,
                        fontsize=8,
                        ha="center",
                    )
        save_figure(figure, path)
