"""Where a tomogram holds material: the slab along the beam, and the part of it that is filled."""

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, label

FloatArray = npt.NDArray[np.floating]
Limits = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

WORKING_VOXEL_ANGSTROM = 20.0
"""Side of the voxels that suffice to find material."""

_FINE, _COARSE = 40.0, 130.0
_WINDOW = 150.0
_MARGIN = 100.0
_LEAST_SEPARATION = 0.6
_LEAST_BIMODALITY = 0.75
_LEAST_CONTRAST = 0.05


def find_material(volume: FloatArray, voxel_size_angstrom: float) -> Limits:
    """Find the box that holds the material of a tomogram.

    Material has detail of some hundred Å, ice and what lies beside the slab only noise. The local power of that
    band has two levels along the beam, whose step up and down gives the slab; within the slab Otsu's threshold
    parts the filled places from the empty ones, unless they do not differ enough.

    Parameters
    ----------
    volume
        `(z, y, x)`; voxels that are exactly 0 were seen by no view and do not count. About 20 Å a voxel.
    voxel_size_angstrom
        Side of a voxel.

    Returns
    -------
    tuple
        Lower and upper limit along z, y and x, in voxels from the lower face of voxel 0, with 100 Å to spare.
    """
    power = _local_power(volume, voxel_size_angstrom)
    seen = volume != 0
    # Where material fills less than half of the area, the median would not see it.
    profile = np.array(
        [np.quantile(p[s], 0.75) if s.any() else np.nan for p, s in zip(power, seen, strict=True)]
    )
    start, stop = _find_step(profile)
    counts = seen[start:stop].sum(axis=0)
    flat = np.where(
        counts > 0, (power[start:stop] * seen[start:stop]).sum(axis=0) / np.maximum(counts, 1), np.nan
    )
    (top, bottom), (left, right) = _find_filled(flat, voxel_size_angstrom)
    spare = _MARGIN / voxel_size_angstrom
    limits = [
        (max(0.0, low - spare), min(float(size), high + spare))
        for (low, high), size in zip(((start, stop), (top, bottom), (left, right)), volume.shape, strict=True)
    ]
    return limits[0], limits[1], limits[2]


def _local_power(volume: FloatArray, voxel: float) -> FloatArray:
    """Root of the local power of detail between about 200 and 600 Å."""
    # Gold is far above all else; it counts as much as strong material, before and after its edges ring.
    fine = gaussian_filter(_limit(volume.astype(np.float32)), _FINE / voxel)
    fine = _limit(fine - gaussian_filter(fine, _COARSE / voxel))
    power = gaussian_filter(np.square(fine), (0, _WINDOW / voxel, _WINDOW / voxel))
    return np.asarray(np.sqrt(power))


def _limit(volume: FloatArray) -> FloatArray:
    """Bring what lies beyond four standard deviations, as the middle of the values tells them, back to there."""
    seen = volume[volume != 0]
    middle = float(np.median(seen)) if seen.size else 0.0
    reach = 4 * 1.4826 * float(np.median(np.abs(seen - middle))) if seen.size else 0.0
    return np.asarray(np.where(volume == 0, 0, np.clip(volume, middle - reach, middle + reach)))


def _find_step(profile: FloatArray) -> tuple[int, int]:
    """First section and the one after the last of the best single step up and down, by least squares."""
    known = np.flatnonzero(np.isfinite(profile))
    if len(known) < 5:
        return 0, len(profile)
    values = profile[known]
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count = len(values)
    best, limits = 0.0, (0, count)
    for start in range(count):
        lengths = np.arange(max(2, count // 20), count - start + 1)
        if not len(lengths):
            continue
        inside = sums[start + lengths] - sums[start]
        outside = sums[-1] - inside
        rest = np.maximum(count - lengths, 1)
        gap = inside / lengths - outside / rest
        # What the step explains of the variance.
        gain = np.where((gap > 0) & (lengths < count), gap**2 * lengths * (count - lengths) / count, 0.0)
        place = int(gain.argmax())
        if gain[place] > best:
            best, limits = float(gain[place]), (start, start + int(lengths[place]))
    total = float(((values - values.mean()) ** 2).sum())
    if best < _LEAST_SEPARATION * total or math.sqrt(total / count) < _LEAST_CONTRAST * values.mean():
        return 0, len(profile)
    return int(known[limits[0]]), int(known[limits[1] - 1]) + 1


def _find_filled(power: FloatArray, voxel: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row and column of the largest filled part of a map."""
    everything = ((0, power.shape[0]), (0, power.shape[1]))
    known = np.isfinite(power)
    values = power[known]
    if values.size < 16 or values.std() < _LEAST_CONTRAST * values.mean():
        return everything
    # Gold is far above all else and would take the threshold to itself.
    low, high = np.quantile(values, (0.02, 0.98))
    edges = np.linspace(low, high, 65)
    histogram, _ = np.histogram(np.clip(values, low, high), edges)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(histogram)[:-1] / histogram.sum()
    mean = np.cumsum(histogram * middles)[:-1] / histogram.sum()
    total = float((histogram * middles).sum() / histogram.sum())
    spread = float((histogram * (middles - total) ** 2).sum() / histogram.sum())
    between = (total * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-9)
    # Otsu's threshold explains 2 / π of the variance of a single Gaussian.
    if between.max() < _LEAST_BIMODALITY * spread:
        return everything
    filled = np.where(known, power, -np.inf) > edges[1:-1][int(between.argmax())]
    parts, count = label(filled)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    rows, columns = (np.flatnonzero((parts == int(sizes.argmax()) + 1).any(axis=axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)
