"""Picture of a selection: what a rule asked for, of what is kept and of what is left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from verglas.figures.style import COLOURS, house_style, make_figure, save_figure


def draw_selection(columns: Mapping[str, Sequence[float]], kept: Sequence[bool], path: Path) -> None:
    """Draw each value over the items in their order.

    Parameters
    ----------
    columns
        `(n,)` by name; NaN where an item has none.
    kept
        `(n,)`.
    path
        The PNG to write.
    """
    mask = np.asarray(kept, dtype=bool)
    number = np.arange(1, len(mask) + 1)
    with house_style():
        figure = make_figure(9.0, 1.0 + 2.0 * len(columns))
        grid = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
        for axes, (name, given) in zip(grid, columns.items(), strict=True):
            values = np.asarray(given, dtype=float)
            axes.plot(number[mask], values[mask], "o", markersize=4, label="kept")
            axes.plot(number[~mask], values[~mask], "x", markersize=6, color=COLOURS[1], label="left out")
            axes.set_ylabel(name)
        grid[0].legend(loc="upper right")
        grid[-1].set_xlabel("item")
        save_figure(figure, path)
