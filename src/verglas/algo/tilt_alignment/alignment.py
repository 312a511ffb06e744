"""What an alignment by beads or by patches finds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.tilt_alignment.common_lines import AxisSearch
from verglas.algo.tilt_alignment.geometry import ViewGeometry
from verglas.algo.tilt_alignment.local_alignment import FittedField
from verglas.algo.tilt_alignment.selection import Trial
from verglas.algo.tilt_alignment.slab import Slab

FloatArray = npt.NDArray[np.float64]

FEWEST_GOOD_VIEWS = 5
"""A series with fewer is not aligned."""

FEWEST_IN_VIEW = 3
"""A view in which fewer marks were measured is lost."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkAlignment:
    """An alignment by marks, beads or patches, that were followed; all lengths in pixels of the views.

    Parameters
    ----------
    geometry
        Of the views, in a frame in which the slab is level and the specimen's centre in its middle.
    points_px
        `(marks, 3)` xyz of the marks' middles in this frame.
    tracks_px
        `(marks, n, 2)` measured xy from the image's centre; NaN where a mark was not measured.
    residuals_px
        `(marks, n, 2)` measured less expected.
    trials
        Held-out residuals of the freedoms that were tried, the chosen one first; with the field when there is one.
    slab
        Where the marks lie before it was levelled; none for fewer than five beads.
    factor
        Pixels of the views a pixel of the finest sampling that was measured on.
    searched
        Whether the axis was searched over all directions, and not taken from what is roughly known.
    axis_search
        What common lines say of the axis, where they were asked.
    explained
        `(n,)` share of the beads found in each view that lie on a track; NaN where none was found. None by patches.
    field
        Local shifts, where held-out beads call for them.
    """

    geometry: ViewGeometry
    points_px: FloatArray
    tracks_px: FloatArray
    residuals_px: FloatArray
    trials: tuple[Trial, ...]
    slab: Slab | None
    factor: int = 1
    searched: bool = False
    axis_search: AxisSearch | None = None
    explained: FloatArray | None = None
    field: FittedField | None = None

    @property
    def lost(self) -> npt.NDArray[np.bool_]:
        """`(n,)` views in which so few marks were measured that nothing is known of them."""
        return np.asarray(np.isfinite(self.tracks_px[..., 0]).sum(axis=0) < FEWEST_IN_VIEW)

    @property
    def rms_px(self) -> tuple[float, float]:
        """Root mean square of the residuals in x and y."""
        x, y = np.sqrt(np.nanmean(self.residuals_px**2, axis=(0, 1)))
        return float(x), float(y)

    @property
    def explained_share(self) -> float | None:
        """Mean over the views of `explained`."""
        return None if self.explained is None else float(np.nanmean(self.explained))
