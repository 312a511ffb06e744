"""The particles of each tilt series, as the steps of averaging take them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from verglas.errors import UserError
from verglas.model import Particles, TiltSeries, Tomogram
from verglas.steps.step import Context, Item
from verglas.steps.used_views import read_views

if TYPE_CHECKING:
    from verglas.algo.averaging.sums import ParticleSource, SeriesSource
    from verglas.algo.averaging.transfer import TransferModel


BoxedTomograms = Annotated[
    Path | None,
    Field(
        description="`tomograms.star` of `reconstruct --ctf 3d`: cut particles from these as boxes instead of from "
        "the tilt images"
    ),
]
"""The parameter `tomograms`."""

LossyIce = Annotated[
    float,
    Field(
        ge=0, description="count the electrons that lose energy in ice this thick, in Å, as lost; 0 does not"
    ),
]
"""The parameter `ice_thickness`."""


@dataclass(frozen=True, eq=False)
class SeriesParticles:
    """A tilt series, its particles, and the tomograms that these are cut from, none to cut them from the views."""

    series: TiltSeries
    particles: Particles
    tomograms: tuple[Tomogram, ...] = ()

    @property
    def pixel_size_angstrom(self) -> float:
        """The finest that particles can be sampled."""
        return self.tomograms[0].voxel_size_angstrom if self.tomograms else self.series.pixel_size_angstrom


def list_series_particles(
    tilt_series: Path, particles: Path, tomograms: Path | None = None, *, need_halves: bool = True
) -> dict[str, SeriesParticles]:
    """Sort particles by their series.

    Parameters
    ----------
    tilt_series
        `tilt_series.star`.
    particles
        `particles.star`.
    tomograms
        `tomograms.star`, to cut particles from tomograms.
    need_halves
        Whether every particle must have a half set.

    Raises
    ------
    UserError
        When there are no particles, a series or tomogram of theirs is missing, or half sets are not assigned.
    """
    from verglas.io.relion_particles import read_particles
    from verglas.io.relion_tilt_series import read_tilt_series
    from verglas.io.relion_tomograms import read_tomograms

    volumes = read_tomograms(tomograms) if tomograms else []
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
        mine = tuple(one for one in volumes if one.name == name)
        if tomograms and not mine:
            raise UserError(
                f"particles of {name!r} have no tomogram in {str(tomograms)!r}; expected one of that name"
            )
        found[name] = SeriesParticles(series[name], table.take(table.tomogram_names == name), mine)
    return found


def _check_halves(particles: Particles, path: Path) -> None:
    found = sorted(set(particles.half_set.tolist()))
    if found != [1, 2]:
        raise UserError(
            f"the half sets (rlnRandomSubset) of {str(path)!r} are {found}; expected "
            "both 1 and 2 and nothing else: `verglas particles` assigns them"
        )


def list_particle_items(found: Mapping[str, SeriesParticles]) -> list[Item]:
    """One item a series; its inputs are the images that particles are cut from."""
    return [
        Item(
            name,
            one,
            tuple(volume.path for volume in one.tomograms)
            or tuple(dict.fromkeys(image.path for image in one.series.images)),
        )
        for name, one in found.items()
    ]


def open_particles(
    one: SeriesParticles, pixel_size_angstrom: float, box: int, model: "TransferModel", context: Context
) -> "ParticleSource":
    """Read the views of a series, or open its tomograms, and measure the noise beside its particles.

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
        When no view is selected, or a view or tomogram cannot be used.
    """
    if one.tomograms:
        from verglas.steps.tomogram_boxes import open_tomograms

        return open_tomograms(one, pixel_size_angstrom, box, model, context)
    return open_series(one, pixel_size_angstrom, box, model, context)


def open_series(
    one: SeriesParticles, pixel_size_angstrom: float, box: int, model: "TransferModel", context: Context
) -> "SeriesSource":
    """Read the views of a series: what `open_particles` does without tomograms."""
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
