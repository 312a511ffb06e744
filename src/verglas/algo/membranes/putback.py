"""What was taken out of particles, taken out of their micrograph at its own grey scale.

A particle tells a difference: its image before less the image after. In the micrograph's grey that is the same
difference times the factor by which the micrograph follows the image before. Nothing else of the micrograph changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

FloatArray = npt.NDArray[np.float64]

_WIDTH = 0.6
"""Of the Gaussian weight of a box, in half boxes."""
_TAPER = 0.08
"""Share of a box over which its weight falls to 0 at the border."""
_SAME = 0.4
"""Correlation of two differences where they overlap from which on they show the same membrane."""
_SEARCH = 3
_LEAST_AGREEMENT = 0.3


@dataclass(frozen=True, eq=False)
class Patch:
    """A particle's difference in the micrograph.

    Parameters
    ----------
    rows, columns
        Where it lies.
    removed
        `(y, x)` in the micrograph's grey.
    weight
        `(y, x)` of it among others.
    edge
        `(y, x)` 1 within the box, falling to 0 at its border.
    slope
        Grey of the micrograph for one of the particle; negative where extraction inverted the contrast.
    agreement
        Correlation of the micrograph with the particle before.
    """

    rows: slice
    columns: slice
    removed: FloatArray
    weight: FloatArray
    edge: FloatArray
    slope: float
    agreement: float


def place_particle(
    micrograph: npt.NDArray[np.floating],
    before: npt.NDArray[np.floating],
    after: npt.NDArray[np.floating],
    centre_yx: tuple[float, float],
    factor: float,
) -> Patch | None:
    """Find what a particle says of its micrograph; none where it lies outside or does not look like it.

    Parameters
    ----------
    micrograph
        `(y, x)`.
    before, after
        `(b, b)` the particle's image and the same without membranes.
    centre_yx
        Of the particle, pixels of the micrograph.
    factor
        Pixel size of the particle over that of the micrograph.
    """
    box = len(before)
    side = round(box * factor)
    first = [round(one) - side // 2 for one in centre_yx]
    low = [max(0, one) for one in first]
    high = [min(size, one + side) for one, size in zip(first, micrograph.shape, strict=True)]
    if min(h - lo for h, lo in zip(high, low, strict=True)) < 8:
        return None
    grids = [
        (np.arange(lo, h) - f - side // 2) / factor + box // 2
        for lo, h, f in zip(low, high, first, strict=True)
    ]
    difference = _read(np.asarray(before, float) - after, grids, factor)
    smooth = max(1.0, 1.5 * factor)
    image = gaussian_filter(_read(np.asarray(before, float), grids, factor), smooth)
    best: tuple[float, float] = (0.0, 0.0)
    for shift_y in range(-_SEARCH, _SEARCH + 1):
        for shift_x in range(-_SEARCH, _SEARCH + 1) if shift_y == 0 else (0,):
            found = _compare(micrograph, image, (low[0] + shift_y, low[1] + shift_x), smooth)
            if abs(found[1]) > abs(best[1]) + 1e-3:
                best, offset = found, (shift_y, shift_x)
    if abs(best[1]) < _LEAST_AGREEMENT:
        return None
    rows = slice(low[0] + offset[0], low[0] + offset[0] + image.shape[0])
    columns = slice(low[1] + offset[1], low[1] + offset[1] + image.shape[1])
    r = [(grid - box // 2) / (box / 2) for grid in grids]
    weight = np.exp(-(r[0][:, None] ** 2 + r[1][None, :] ** 2) / (2 * _WIDTH**2))
    edges = [np.clip((1 - np.abs(one)) / (2 * _TAPER), 0, 1) for one in r]
    edge = np.prod(np.meshgrid(*[0.5 - 0.5 * np.cos(np.pi * one) for one in edges], indexing="ij"), axis=0)
    return Patch(rows, columns, best[0] * difference, weight * edge + 1e-9, edge, *best)


def _read(image: FloatArray, grids: Sequence[FloatArray], factor: float) -> FloatArray:
    """Read an image at the micrograph's pixels."""
    if factor < 1:
        image = gaussian_filter(image, 0.4 / factor)
    if factor == 1.0:
        rows, columns = (np.rint(grid).astype(np.int64) for grid in grids)
        return image[np.ix_(rows, columns)]
    places = np.meshgrid(*grids, indexing="ij")
    return np.asarray(map_coordinates(image, places, order=3, mode="nearest"))


def _compare(
    micrograph: npt.NDArray[np.floating], image: FloatArray, corner: tuple[int, int], smooth: float
) -> tuple[float, float]:
    """Return slope and correlation of a part of the micrograph with an image."""
    height, width = image.shape
    if corner[0] < 0 or corner[1] < 0:
        return 0.0, 0.0
    part = np.asarray(micrograph[corner[0] : corner[0] + height, corner[1] : corner[1] + width], float)
    if part.shape != image.shape:
        return 0.0, 0.0
    part = gaussian_filter(part, smooth)
    margin = int(2 * smooth)
    inner = (slice(margin, -margin), slice(margin, -margin))
    a, b = part[inner] - part[inner].mean(), image[inner] - image[inner].mean()
    energy = float((b**2).sum())
    product = float((a * b).sum())
    return product / max(energy, 1e-30), product / max(np.sqrt(energy * float((a**2).sum())), 1e-30)


def sum_patches(patches: Sequence[Patch], shape: tuple[int, int]) -> FloatArray:
    """Return what is to be taken out of the micrograph `(y, x)`.

    Boxes that show the same membrane are averaged where they overlap; different membranes add up. Borders of boxes
    that no other box continues fade.
    """
    total = np.zeros(shape)
    for group in _group(patches):
        area = _outline([patches[one] for one in group])
        top, left = area[0].start, area[1].start
        size = (area[0].stop - top, area[1].stop - left)
        sums, weights, edges = np.zeros(size), np.zeros(size), np.zeros(size)
        for one in group:
            patch = patches[one]
            where = (_shift(patch.rows, top), _shift(patch.columns, left))
            sums[where] += patch.weight * patch.removed
            weights[where] += patch.weight
            np.maximum(edges[where], patch.edge, out=edges[where])
        total[area] += sums / np.maximum(weights, 1e-12) * edges
    return total


def _shift(one: slice, by: int) -> slice:
    return slice(one.start - by, one.stop - by)


def _outline(patches: Sequence[Patch]) -> tuple[slice, slice]:
    return (
        slice(min(one.rows.start for one in patches), max(one.rows.stop for one in patches)),
        slice(min(one.columns.start for one in patches), max(one.columns.stop for one in patches)),
    )


def _group(patches: Sequence[Patch]) -> list[list[int]]:
    """Join particles whose differences agree where they overlap."""
    parents = list(range(len(patches)))

    def find(one: int) -> int:
        while parents[one] != one:
            one = parents[one]
        return one

    for i, first in enumerate(patches):
        for j in range(i):
            if find(i) != find(j) and _agree(first, patches[j]):
                parents[find(i)] = find(j)
    groups: dict[int, list[int]] = {}
    for one in range(len(patches)):
        groups.setdefault(find(one), []).append(one)
    return list(groups.values())


def _agree(first: Patch, second: Patch) -> bool:
    rows = slice(max(first.rows.start, second.rows.start), min(first.rows.stop, second.rows.stop))
    columns = slice(
        max(first.columns.start, second.columns.start), min(first.columns.stop, second.columns.stop)
    )
    if rows.stop - rows.start < 2 or columns.stop - columns.start < 2:
        return False
    a, b = (
        one.removed[_shift(rows, one.rows.start), _shift(columns, one.columns.start)]
        for one in (first, second)
    )
    energy = float((a**2).sum()) * float((b**2).sum())
    return energy > 0 and float((a * b).sum()) > _SAME * np.sqrt(energy)
