"""How far beads change an image: their fringes included."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

DEFAULT_RADII = 1.9
"""What is erased, in radii of a bead, when there are too few beads to measure their fringes."""

_FEWEST_BEADS = 5
_SHARE = 0.4
_SIGNIFICANT = 3.0
_LEAST_RADII, _MOST_RADII = 1.2, 2.4
_FAR_RADII = (2.6, 3.4)
_STEPS = 8


def measure_halos(image: Image, positions_px: FloatArray, radius_px: float) -> FloatArray:
    """Mean values in rings around beads, less those far out, in standard deviations of what is far out.

    Parameters
    ----------
    image
        `(y, x)`.
    positions_px
        `(k, 2)` xy from the centre `n // 2`.
    radius_px
        Of the beads.

    Returns
    -------
    ndarray
        `(beads, rings)` of rings as wide as :func:`ring_width`; NaN where other beads are. Beads too near to the
        border are left out.
    """
    width = ring_width(radius_px)
    reach = int(np.ceil(_FAR_RADII[1] * radius_px))
    count = int(np.ceil(reach / width))
    places = positions_px[:, ::-1] + np.array([n // 2 for n in image.shape])
    halos = []
    for row, place in enumerate(places):
        y0, x0 = (int(value) for value in np.rint(place))
        if min(y0, x0) < reach or y0 + reach >= image.shape[0] or x0 + reach >= image.shape[1]:
            continue
        patch = image[y0 - reach : y0 + reach + 1, x0 - reach : x0 + reach + 1].astype(float)
        steps = np.arange(-reach, reach + 1)
        distance = np.hypot((y0 - place[0] + steps)[:, None], x0 - place[1] + steps)
        free = np.ones(patch.shape, np.bool_)
        for other in np.delete(places, row, axis=0):
            if np.linalg.norm(other - place) < reach + _MOST_RADII * radius_px:
                away = np.hypot((y0 - other[0] + steps)[:, None], x0 - other[1] + steps)
                free &= away > DEFAULT_RADII * radius_px
        far = free & (distance >= _FAR_RADII[0] * radius_px) & (distance <= _FAR_RADII[1] * radius_px)
        if far.sum() < 16:
            continue
        scaled = (patch - patch[far].mean()) / max(float(patch[far].std()), np.finfo(np.float32).tiny)
        ring = np.minimum((distance / width).astype(int), count)
        total = np.bincount(ring[free], scaled[free], count + 1)[:count]
        weight = np.bincount(ring[free], minlength=count + 1)[:count]
        halos.append(np.where(weight > 0, total / np.maximum(weight, 1), np.nan))
    return np.array(halos).reshape(-1, count)


def ring_width(radius_px: float) -> float:
    """Width of the rings of :func:`measure_halos`, pixels."""
    return max(1.0, radius_px / _STEPS)


def choose_radius(halos: Sequence[FloatArray], radius_px: float) -> float:
    """Radius beyond which beads leave no trace that could be seen.

    A ring shows a trace when its mean over all beads is significant, three standard errors, and more than
    0.4 of what the ring's own values scatter from place to place.

    Parameters
    ----------
    halos
        Of all views, from :func:`measure_halos`.
    radius_px
        Of the beads.

    Returns
    -------
    float
        Pixels, from 1.2 to 2.4 radii and a pixel more.
    """
    rings = np.concatenate(list(halos)) if halos else np.empty((0, 0))
    if len(rings) < _FEWEST_BEADS:
        return DEFAULT_RADII * radius_px + 1
    width = ring_width(radius_px)
    known = np.isfinite(rings)
    count = known.sum(axis=0)
    # Medians, because some of what was found is no bead, and some beads lie at edges.
    mean = np.array(
        [
            np.median(column[fine]) if fine.any() else 0.0
            for column, fine in zip(rings.T, known.T, strict=True)
        ]
    )
    scatter = np.array(
        [
            1.4826 * np.median(np.abs(column[fine] - middle)) if fine.any() else np.inf
            for column, fine, middle in zip(rings.T, known.T, mean, strict=True)
        ]
    )
    trace = np.abs(mean) > np.maximum(_SHARE, _SIGNIFICANT / np.sqrt(np.maximum(count, 1))) * scatter
    outer = (np.arange(len(mean)) + 1) * width
    within = trace & (outer <= _MOST_RADII * radius_px)
    reach = float(outer[within].max()) if within.any() else 0.0
    return max(reach, _LEAST_RADII * radius_px) + 1
