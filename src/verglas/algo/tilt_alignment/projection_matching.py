"""Projection matching: each view as a whole against what the reconstruction from all others projects to.

The projection is that of `prediction`: the best linear one for a specimen in a slab, without the view itself, so its
noise is not matched with itself. One large patch in the middle of the field takes the place of many small ones: it
holds what a thick specimen moves out of small patches when it is tilted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.tilt_alignment.geometry import ViewGeometry
from verglas.algo.tilt_alignment.patches import Displacements, Layer, measure_layer, whiten_view
from verglas.ops.binning import bin_images, binned_centre_step

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

LARGEST_SIDE = 128
"""Views are averaged in blocks to about this many pixels a side."""

LEAST_GAIN = 0.003
"""Matched views are kept when their mean score rises by this fraction: smaller gains came with worse shifts."""

_COVERED = 0.9
_REACH = 0.03
_SHORTEST_REACH = 2.0
_ANCHOR = 1e-6
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class MatchedViews:
    """Views matched with projections.

    Parameters
    ----------
    geometry
        Of the views, in their pixels: that with which it began when nothing better was found.
    scores
        `(n,)` correlation of each view with the projection of the others.
    gain
        By what fraction the mean score rose.
    """

    @property
    def better(self) -> bool:
        """Whether it rose enough for the matched shifts to be kept."""
        return self.gain >= LEAST_GAIN

    geometry: ViewGeometry
    scores: FloatArray
    gain: float


def match_projections(images: Sequence[Image], geometry: ViewGeometry, thickness_px: float) -> MatchedViews:
    """Refine the shifts of the views.

    They are kept only when the views agree clearly better with the predictions than before. No view takes part in its
    own.

    Parameters
    ----------
    images
        n good views `(y, x)`.
    geometry
        With shifts that err by less than some hundredths of the field.
    thickness_px
        Of the slab, which is level.
    """
    factor = max(1, round(max(images[0].shape) / LARGEST_SIDE))
    views = [
        whiten_view(bin_images(torch.from_numpy(np.asarray(i, np.float32)), factor).numpy()) for i in images
    ]
    size = 2 * round(_COVERED * min(views[0].shape) / 2)
    layer = Layer(np.zeros((1, 3)), (0.0, 0.0), size, thickness_px / factor)

    def measure(shift_px: FloatArray) -> Displacements:
        reach = max(_SHORTEST_REACH, _REACH * size)
        return measure_layer(views, replace(geometry, shift_px=shift_px), layer, reach, anchor=_ANCHOR)

    # Block averages have their centre elsewhere than the views.
    step = np.array([binned_centre_step(length, factor) for length in images[0].shape[::-1]])
    shift = (geometry.shift_px - step) / factor
    found = measure(shift)
    first = found.scores[0]
    for _ in range(_ROUNDS):
        places = found.tracks.places_px[0]
        shift = np.where(np.isfinite(places), places, shift)
        found = measure(shift)
    before, after = float(np.nanmean(first)), float(np.nanmean(found.scores))
    gain = after / before - 1 if before > 0 else 0.0
    matched = MatchedViews(replace(geometry, shift_px=shift * factor + step), found.scores[0], gain)
    return matched if matched.better else MatchedViews(geometry, first, gain)
