"""Beads centred by a fit of their own mean profile."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

_ROUNDS = 8


def measure_profile(patches: FloatArray, reach: int) -> FloatArray:
    """Mean bead as a function of the distance from its centre.

    Parameters
    ----------
    patches
        `(k, 2 reach + 1, 2 reach + 1)` patches with a bead in the middle.
    reach
        Half a side.

    Returns
    -------
    ndarray
        `(2 reach + 1,)` values at distances of half pixels, 0 far out, 1 at the centre.
    """
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(steps[:, None], steps).ravel()
    border = distance > reach - 1.5
    flat = patches.reshape(len(patches), -1)
    flat = flat - np.median(flat[:, border], axis=1, keepdims=True)
    mean = np.median(flat, axis=0)
    place = 2 * distance
    index = np.minimum(place.round().astype(int), 2 * reach + 2)
    total = np.bincount(index, mean, 2 * reach + 3)
    weight = np.bincount(index, minlength=2 * reach + 3)
    filled = np.flatnonzero(weight)
    profile = np.interp(np.arange(2 * reach + 1), filled, (total[filled] / weight[filled]))
    profile = profile - profile[-3:].mean()
    return np.asarray(profile / profile[0])


def cut_patches(image: Image, positions_px: FloatArray, reach: int) -> FloatArray:
    """Patches `(k, 2 reach + 1, 2 reach + 1)` around places between the pixels, by cubic splines."""
    centre = np.array([n // 2 for n in image.shape], dtype=float)
    steps = np.arange(-reach, reach + 1)
    yx = positions_px[:, ::-1] + centre
    rows = yx[:, 0, None, None] + steps[None, :, None] + 0 * steps[None, None, :]
    columns = yx[:, 1, None, None] + steps[None, None, :] + 0 * steps[None, :, None]
    return np.asarray(map_coordinates(image, [rows, columns], order=3, mode="nearest", output=float))


def centre_beads(
    image: Image, positions_px: FloatArray, profile: FloatArray, reach: int
) -> tuple[FloatArray, FloatArray]:
    """Centre beads by a least-squares fit of their profile on a sloping background, by Gauss and Newton.

    Parameters
    ----------
    image
        `(y, x)` view.
    positions_px
        `(k, 2)` rough xy from the image's centre, within a radius or so.
    profile
        From :func:`measure_profile`.
    reach
        Half the side of the patch that is fitted.

    Returns
    -------
    tuple
        `(k, 2)` positions and `(k,)` correlation coefficients of bead and fit; what ran away, or lies too near
        an edge, has a coefficient of 0.
    """
    centre = np.array([n // 2 for n in image.shape], dtype=float)
    high = np.array(image.shape, dtype=float) - 1 - reach - centre
    places, scores = positions_px.astype(float).copy(), np.zeros(len(positions_px))
    for row, place in enumerate(positions_px):
        here = np.rint(place)
        if (here < reach - centre[::-1]).any() or (here > high[::-1]).any():
            continue
        y0, x0 = (here[::-1] + centre).astype(int)
        patch = image[y0 - reach : y0 + reach + 1, x0 - reach : x0 + reach + 1].astype(float)
        moved, score = _fit_profile(patch, place - here, profile, reach)
        if np.abs(moved + here - place).max() < reach / 2:
            places[row], scores[row] = moved + here, score
    return places, scores


def _fit_profile(
    patch: FloatArray, start: FloatArray, profile: FloatArray, reach: int
) -> tuple[FloatArray, float]:
    steps = np.arange(-reach, reach + 1, dtype=float)
    y, x = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    inside = np.hypot(x, y) <= reach
    y, x, values = y[inside], x[inside], patch.ravel()[inside]
    slope = np.gradient(profile) * 2
    knots = np.arange(len(profile)) / 2
    place, score = start.astype(float).copy(), 0.0
    for _ in range(_ROUNDS):
        dx, dy = x - place[0], y - place[1]
        distance = np.maximum(np.hypot(dx, dy), 1e-6)
        bead, fall = (
            np.interp(distance, knots, profile, right=0.0),
            np.interp(distance, knots, slope, right=0.0),
        )
        columns = np.stack(
            [bead, np.ones_like(x), x, y, -fall * dx / distance, -fall * dy / distance], axis=1
        )
        found = np.linalg.lstsq(columns, values, rcond=None)[0]
        if not found[0] < 0:  # no dark bead
            return start, 0.0
        step = np.clip(found[4:] / found[0], -1.0, 1.0)
        place = place + step
        flat = values - columns[:, 1:4] @ found[1:4]
        score = float(np.corrcoef(flat, -bead)[0, 1])
        if np.abs(step).max() < 1e-3:
            break
    return place, max(score, 0.0)
