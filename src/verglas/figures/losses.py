"""The loss of a network in training."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from verglas.figures.style import COLOURS, MUTED


def plot_losses(axes: Axes, losses: Sequence[float], parts: int) -> npt.NDArray[np.float64]:
    """Plot the loss of each step, and its mean over windows, so many to all steps; return the means."""
    axes.plot(losses, color=MUTED, linewidth=0.4)
    width = max(1, len(losses) // parts)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(np.arange(len(smooth)) + width / 2, smooth, color=COLOURS[0])
    return smooth
