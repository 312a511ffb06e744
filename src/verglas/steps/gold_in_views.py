"""Gold beads in the block averages of a series: found for an alignment by them, erased for one without."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

if TYPE_CHECKING:
    from verglas.algo.fiducials.find import Beads

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

GOLD_SD = 12.0
"""Median score of beads of gold in views of low tilt; large molecules reach 8."""

_LOW_VIEWS = 5


@dataclass(frozen=True, eq=False)
class ViewBeads:
    """What looks like beads in n views.

    Parameters
    ----------
    diameter_px
        Of a bead.
    beads
        Of each view.
    low
        Rows of a few views of low tilt.
    """

    diameter_px: float
    beads: tuple["Beads", ...]
    low: npt.NDArray[np.intp]

    @property
    def places_px(self) -> list[FloatArray]:
        """For each view `(k, 2)` xy from its centre."""
        return [found.positions_px for found in self.beads]

    @property
    def counts(self) -> tuple[int, ...]:
        """Beads of each view."""
        return tuple(len(found) for found in self.beads)

    @property
    def are_gold(self) -> bool:
        """Whether they are as dark as only gold is."""
        scores = np.concatenate([self.beads[row].scores for row in self.low])
        return bool(len(scores)) and float(np.median(scores)) >= GOLD_SD


def find_view_beads(images: list[Image], tilt_deg: FloatArray, diameter_px: float | None) -> ViewBeads:
    """Find what looks like beads in all views; the diameter is estimated at low tilt when none.

    Raises
    ------
    UserError
        When the views are too small.
    """
    from verglas.algo.fiducials.find import estimate_diameter, find_beads

    low = np.argsort(np.abs(tilt_deg), kind="stable")[:_LOW_VIEWS]
    diameter = estimate_diameter([images[row] for row in low[::2]]) if diameter_px is None else diameter_px
    return ViewBeads(diameter, tuple(find_beads(image, diameter) for image in images), low)


def erase_gold(
    images: list[Image], tilt_deg: FloatArray, diameter_px: float | None
) -> tuple[list[Image], tuple[int, ...]]:
    """Replace gold beads by noise that matches.

    Returns
    -------
    tuple
        The views, and how many beads were erased in each; none where nothing is as dark as gold.
    """
    from verglas.algo.fiducials.erase import erase_discs
    from verglas.algo.fiducials.halo import choose_radius, measure_halos

    try:
        found = find_view_beads(images, tilt_deg, diameter_px)
    except UserError:  # views in which no bead can be told
        return images, ()
    if not found.are_gold:
        return images, ()
    pairs = list(zip(images, found.places_px, strict=True))
    halos = [measure_halos(image, places, found.diameter_px / 2) for image, places in pairs]
    radius = choose_radius(halos, found.diameter_px / 2)
    erased = [erase_discs(image, places, radius, seed=row)[0] for row, (image, places) in enumerate(pairs)]
    return erased, found.counts
