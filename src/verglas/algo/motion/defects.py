"""Pixels of the camera that do not count what falls on them."""

import numpy as np
import numpy.typing as npt

from verglas.runtime import map_threads

FloatArray = npt.NDArray[np.float32]

LIMIT_SD = 8.0
_REACH = 3
_STRIP = 64


def find_defects(total: FloatArray) -> npt.NDArray[np.bool_]:
    """Find pixels whose sum over all frames is far from that of the pixels around.

    Frames are added as they lie, so that the specimen, which moves, is blurred, and a pixel of the camera is not.
    The noise is the median deviation from the mean of 7 x 7 pixels, whose own outliers are cut first.

    Parameters
    ----------
    total
        `(y, x)` sum of the frames, gain-corrected.

    Returns
    -------
    ndarray
        `(y, x)` True where hot or dead.
    """
    sample = total.ravel()[:: max(1, total.size // 200_000)]
    middle = float(np.median(sample))
    spread = float(np.median(np.abs(sample - middle))) / 0.6745
    bounds = (middle - LIMIT_SD * spread, middle + LIMIT_SD * spread)
    tops = range(0, len(total), _STRIP)
    few = tops[:: max(1, len(tops) // 16)]
    away = np.concatenate(
        map_threads(lambda top: _measure_away(total, top, bounds, middle)[:, ::5].ravel(), few)
    )
    noise = float(np.median(np.abs(away))) / 0.6745
    bad = np.zeros(total.shape, bool)

    def mark(top: int) -> None:
        away = _measure_away(total, top, bounds, middle)
        np.greater(np.abs(away, out=away), LIMIT_SD * noise, out=bad[top : top + _STRIP])

    if noise > 0:
        map_threads(mark, tops)
    return bad


def _measure_away(total: FloatArray, top: int, bounds: tuple[float, float], middle: float) -> FloatArray:
    """How far the pixels of a strip are from the mean of those around, in units of the noise of the middle value."""
    bottom = min(top + _STRIP, len(total))
    first, last = max(top - _REACH, 0), min(bottom + _REACH, len(total))
    smooth: FloatArray = np.clip(total[first:last], np.float32(bounds[0]), np.float32(bounds[1]))
    along_y = (top - _REACH - first, bottom + _REACH - last)
    for axis, edges in ((0, along_y), (1, (-_REACH, _REACH))):
        smooth = _average_seven(smooth, axis, edges)
    away: FloatArray = total[top:bottom] - smooth
    # Counts scatter with the root of their mean, so what is usual depends on the place.
    np.maximum(smooth, np.float32(1e-3 * max(middle, 0.0) + 1e-12), out=smooth)
    smooth /= np.float32(max(middle, 1e-12))
    away /= np.sqrt(smooth, out=smooth)
    return away


def _average_seven(values: FloatArray, axis: int, edges: tuple[int, int]) -> FloatArray:
    """Mean of seven neighbours along an axis of which `-edges[0]` and `edges[1]` are missing at the ends."""
    missing = (-edges[0], edges[1])
    pad = [missing if one == axis else (0, 0) for one in (0, 1)]
    padded = np.moveaxis(np.pad(values, pad), axis, 0)
    length = len(padded) - 6
    # Sums of two, of four, and of seven.
    two = padded[:-1] + padded[1:]
    seven = two[:-2] + two[2:]
    seven = seven[:length] + two[4 : 4 + length]
    seven += padded[6:]
    count = np.full(length, 7)
    for i in range(3):
        count[i] -= max(missing[0] - i, 0)
        count[-1 - i] -= max(missing[1] - i, 0)
    seven *= (1 / count).astype(np.float32)[:, None]
    return np.moveaxis(seven, 0, axis)


def choose_sources(bad: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose for each bad pixel a good one nearby to copy from, which keeps the noise what it is.

    Returns
    -------
    places, sources
        `(m,)` flat indices. A pixel without a good one within three pixels takes the one at the same place of the
        nearest row above or below that is good there.
    """
    rng = np.random.default_rng(0)
    places = np.flatnonzero(bad)
    height, width = bad.shape
    sources = np.empty_like(places)
    for i, place in enumerate(places):
        y, x = divmod(int(place), width)
        rows = np.arange(max(0, y - _REACH), min(height, y + _REACH + 1))
        columns = np.arange(max(0, x - _REACH), min(width, x + _REACH + 1))
        good = np.flatnonzero(~bad[np.ix_(rows, columns)])
        if len(good):
            row, column = divmod(int(good[rng.integers(len(good))]), len(columns))
            sources[i] = rows[row] * width + columns[column]
        else:
            free = np.flatnonzero(~bad[:, x])
            nearest = free[np.abs(free - y).argmin()] if len(free) else y
            sources[i] = nearest * width + x
    return places, sources
