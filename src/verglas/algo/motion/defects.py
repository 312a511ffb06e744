"""Pixels of the camera that do not count what falls on them."""

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float32]

LIMIT_SD = 8.0
_REACH = 3


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
    values = torch.from_numpy(np.ascontiguousarray(total, np.float32))
    clipped = values.clamp(middle - LIMIT_SD * spread, middle + LIMIT_SD * spread)
    smooth = torch.nn.functional.avg_pool2d(clipped[None, None], 7, 1, 3, count_include_pad=False)[0, 0]
    away = values - smooth
    # Counts scatter with the root of their mean, so what is usual depends on the place.
    scale = (smooth.clamp(min=1e-3 * max(middle, 0.0) + 1e-12) / max(middle, 1e-12)).sqrt()
    step = max(1, total.size // 200_000)
    noise = float(np.median(np.abs((away.flatten()[::step] / scale.flatten()[::step]).numpy()))) / 0.6745
    if noise <= 0:
        return np.zeros(total.shape, bool)
    return np.asarray(away.abs() > LIMIT_SD * noise * scale)


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
            row, column = divmod(int(rng.choice(good)), len(columns))
            sources[i] = rows[row] * width + columns[column]
        else:
            free = np.flatnonzero(~bad[:, x])
            nearest = free[np.abs(free - y).argmin()] if len(free) else y
            sources[i] = nearest * width + x
    return places, sources
