"""The particles of each tilt series, as the steps of averaging take them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verglas.errors import UserError
from verglas.model import Particles, TiltSeries
from verglas.steps.step import Context, Item
from verglas.steps.used_views import read_views

if TYPE_CHECKING:
    from verglas.algo.averaging.sums import SeriesSource
    from verglas.algo.averaging.transfer import TransferModel


@dataclass(frozen=True, eq=False)
class SeriesParticles:
    """A tilt series and its particles."""

    series: TiltSeries
    particles: Particles


def list_series_particles(
    tilt_series: Path, particles: Path, *, need_halves: bool = True
) -> dict[str, SeriesParticles]:
    """Sort particles by their series.

    Parameters
    ----------
    tilt_series
        `tilt_series.star`.
    particles
        `particles.star`.
    need_halves
        Whether every particle must have a half set.

    Raises
    ------
    UserError
        When there are no particles, a series of theirs is missing, or half sets are not assigned.
    """
    from verglas.io.relion_particles import read_particles
    from verglas.io.relion_tilt_series import read_tilt_series

    series = read_tilt_series(tilt_series)
    table = read_particles(particles, series)
    if not len(table):
        raise UserError(f"{str(particles)!r} holds no particles; expected at least two")
    if need_halves:
        _check_halves(table, particles)
    found = {}
    for name in np.unique(table.tomogram_names).tolist():
        if name not in series:
            raise UserError(
                f"particles of {name!r} have no tilt series in {str(tilt_series)!r}; expected one of "
                f"{', '.join(series)}"
            )
        found[name] = SeriesParticles(series[name], table.take(table.tomogram_names == name))
    return found


def _check_halves(particles: Particles, path: Path) -> None:
    found = sorted(set(particles.half_set.tolist()))
    if found != [1, 2]:
        raise UserError(
            f"the half sets (rlnRandomSubset) of {str(path)!r} are {found}; expected "
            "both 1 and 2 and nothing else: `verglas particles` assigns them"
        )


def list_particle_items(found: Mapping[str, SeriesParticles]) -> list[Item]:
    """One item a series."""
    return [
        Item(name, one, tuple(dict.fromkeys(image.path for image in one.series.images)))
        for name, one in found.items()
    ]


def open_particles(
    one: SeriesParticles, pixel_size_angstrom: float, box: int, model: "TransferModel", context: Context
) -> "SeriesSource":
    """Read the views of a series and measure the noise beside its particles.

    Parameters
    ----------
    one
        The series and its particles.
    pixel_size_angstrom
        Of the crops.
    box
        Their side, pixels.
    model
        What weakens the signal.
    context
        Where it runs.

    Raises
    ------
    UserError
        When no view is selected, or one cannot be used.
    """
    import torch

    from verglas.algo.averaging.sums import open_source
    from verglas.algo.averaging.views import invert_views
    from verglas.runtime import choose_device

    series = one.series
    if not series.selected.any():
        raise UserError(f"no view of {series.name!r} is selected; expected at least one")
    views = series.take(series.selected)
    device = choose_device(context.device)
    images = (torch.from_numpy(view).to(device) for view in read_views(views))
    ready = invert_views(images, views, pixel_size_angstrom)
    return open_source(ready, torch.from_numpy(one.particles.positions_angstrom), box, model)
