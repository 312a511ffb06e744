"""The house style of figures, and how they are saved: the same data gives the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from verglas.files import atomic_path

INK = "#1d2733"
MUTED = "#66727f"
LINE = "#d5dbe1"
COLOURS = ("#1f6f9f", "#d1762b", "#4c8a5b", "#a3485c", "#7461a8", "#8a7a3d")
"""Colours of curves in order: told apart by people who see few colours, and in print by their lightness."""

DOTS_PER_INCH = 144

PAGE_INCHES = 7.75
"""Width of pictures made of pixels, which is that of the report's column: more would be lost there."""

_GREY_LEVELS = 64

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": DOTS_PER_INCH,
    "figure.facecolor": "white",
    # The one family that matplotlib brings along, so that no machine draws it otherwise.
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "image.cmap": "gray",
    # Pixels of data stay what they are; smoothing would invent detail.
    "image.interpolation": "none",
    "image.origin": "lower",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": DOTS_PER_INCH,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style for the length of the block, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def make_figure(width_inches: float = 8.0, height_inches: float = 5.0, *, placed: bool = False) -> Figure:
    """Make an empty figure that no window and no global list knows. Call it within :func:`house_style`.

    Parameters
    ----------
    width_inches, height_inches
        Size; 144 pixels an inch.
    placed
        Leave all axes where they are put: to make room for their labels takes as long as to draw them.
    """
    figure = Figure(figsize=(width_inches, height_inches))
    if placed:
        figure.set_layout_engine("none")
    FigureCanvasAgg(figure)
    return figure


def save_figure(fig: Figure, path: Path | str) -> Path:
    """Save a figure as PNG or PDF, whole or not at all, without date and version of the program.

    A figure without colour becomes a grey image of 64 levels: those of noise that nobody can tell apart would
    make most of the file.

    Parameters
    ----------
    fig
        The figure.
    path
        Where it goes; ends in `.png` or `.pdf`.

    Returns
    -------
    Path
        `path`.
    """
    path = Path(path)
    if path.suffix == ".pdf":
        with atomic_path(path) as temporary:
            fig.savefig(
                temporary, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None}
            )
        return path
    if path.suffix != ".png":
        raise ValueError(f"`path` must end in .png or .pdf; got {str(path)!r}")
    canvas = FigureCanvasAgg(fig)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    red, green, blue = (pixels[..., colour] for colour in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        levels = np.rint(np.arange(256) / 255 * (_GREY_LEVELS - 1))
        pixels = np.rint(levels / (_GREY_LEVELS - 1) * 255).astype(np.uint8)[red]
    with atomic_path(path) as temporary:
        # Higher levels take twice to eight times as long, for less than a seventh.
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, "PNG", compress_level=3)
    return path
