"""Picture of a tube's lattice."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verglas.figures.style import COLOURS, PAGE_INCHES, house_style, make_figure, save_figure

if TYPE_CHECKING:
    from verglas.ops.helix import FloatArray, Lattice

_MOST_ORDER = 20


def draw_lattice(unrolled: "FloatArray", lattice: "Lattice", voxel_size_angstrom: float, path: Path) -> None:
    """Draw an unrolled tube, its transform, and the powers of equator and layer line by order.

    Parameters
    ----------
    unrolled
        `(s, 360)` half voxels along the axis, degrees about it; bright is dense, drawn dark.
    lattice
        What was read off it.
    voxel_size_angstrom
        Side of a voxel, Å.
    path
        The PNG to write.
    """
    length = len(unrolled) / 2 * voxel_size_angstrom / 10
    low, high = np.nanquantile(unrolled, (0.02, 0.98))
    with house_style():
        figure = make_figure(PAGE_INCHES, 0.5 * PAGE_INCHES)
        wall, transform, orders = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.2))
        wall.imshow(-unrolled, extent=(0, 360, length, 0), aspect="auto", cmap="gray", vmin=-high, vmax=-low)
        wall.set(
            xlabel="about the axis (degrees)", ylabel="along the axis (nm)", xticks=(0, 90, 180, 270, 360)
        )
        middle = lattice.spectrum.shape[1] // 2
        columns = slice(middle - _MOST_ORDER, middle + _MOST_ORDER + 1)
        # By orders that are positive where right-handed.
        power = np.log10(np.maximum(lattice.spectrum[:, columns], 1e-3))[:, ::-1]
        edge = lattice.frequency[-1] / voxel_size_angstrom
        reach = min(edge, 1.4 / (lattice.repeat * voxel_size_angstrom))
        transform.imshow(
            power,
            extent=(-_MOST_ORDER - 0.5, _MOST_ORDER + 0.5, edge, -edge),
            aspect="auto",
            cmap="gray_r",
            vmin=0,
            vmax=float(power.max()) - 0.5,
        )
        transform.set(ylim=(-reach, reach), xlabel="order", ylabel="frequency along the axis (1/Å)")
        place = np.arange(_MOST_ORDER + 1)
        half = len(lattice.layer_line) // 2
        line = lattice.layer_line[half - _MOST_ORDER : half + _MOST_ORDER + 1]
        orders.semilogy(place, lattice.equator[: _MOST_ORDER + 1], "o-", color=COLOURS[0], label="equator")
        repeat = lattice.repeat * voxel_size_angstrom
        orders.semilogy(
            np.arange(-_MOST_ORDER, _MOST_ORDER + 1),
            line,
            ".-",
            color=COLOURS[1],
            label=f"layer line, {repeat:.1f} Å",
        )
        orders.axvline(lattice.strands, color=COLOURS[0], lw=0.8, ls=":")
        for order in (lattice.starts, lattice.starts + (-1 if lattice.starts > 0 else 1) * lattice.strands):
            orders.axvline(order, color=COLOURS[1], lw=0.8, ls=":")
        orders.set(xlabel="order", ylabel="power over background")
        orders.set_title(f"{lattice.strands} strands, {abs(lattice.starts)}-start helix", fontsize=9)
        orders.legend(fontsize=7)
        save_figure(figure, path)
