"""Blocks of pixels along and across membranes: which of them do not follow the model, such as those of a protein."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ALONG, ACROSS = 8.0, 6.0
"""Sides of a block, pixels."""
_FULL, _NONE = 2.5, 4.5
"""Standard deviations of a block from the model up to which it counts fully, and beyond which not at all."""
_MOST_CROWDED = 0.6


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which block each pixel lies in.

    Parameters
    ----------
    index
        `(k,)` number of the block.
    grid
        Shape of the blocks: membranes, along, across.
    """

    index: IntArray
    grid: tuple[int, int, int]

    @cached_property
    def counts(self) -> FloatArray:
        """Pixels of each block, in the shape of the grid."""
        return self.sum(np.ones(len(self.index)))

    def sum(self, values: FloatArray) -> FloatArray:
        """Add the values `(k,)` of each block up, in the shape of the grid."""
        size = int(np.prod(self.grid))
        return np.asarray(np.bincount(self.index, values, minlength=size).reshape(self.grid), float)


def rate_blocks(sums: FloatArray, counts: FloatArray, least: float) -> FloatArray:
    """Return how surely blocks, or those around them together, differ from most.

    Parameters
    ----------
    sums, counts
        `(m, along, across)` sums of what the model leaves, and of the weights that they were summed with.
    least
        Count from which a block is looked at.

    Returns
    -------
    ndarray
        0 up to 2.5 standard deviations, 1 from 4.5 on.
    """
    used = counts > least
    z = np.where(used, sums / np.sqrt(np.maximum(counts, 1e-30)), 0.0)
    z = _standardise(z, used)
    padded = np.pad(np.where(used, z, 0.0), ((0, 0), (1, 1), (1, 1)))
    around = np.pad(used.astype(float), ((0, 0), (1, 1), (1, 1)))
    rows, columns = z.shape[1:]
    total = sum(padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    share = sum(around[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    smooth = _standardise(total / np.sqrt(np.maximum(share, 1)), used)
    worst = np.maximum(np.abs(z), np.abs(smooth))
    return np.asarray(np.clip((worst - _FULL) / (_NONE - _FULL), 0, 1))


def find_crowded(sums: FloatArray, counts: FloatArray) -> npt.NDArray[np.bool_]:
    """Return the blocks in which a class has something that its model has not, and those around them.

    Parameters
    ----------
    sums, counts
        As of `rate_blocks`, of all particles.
    """
    least = 0.25 * float(np.median(counts[counts > 0]))
    sure = rate_blocks(sums, counts, least) > 0.5
    wide = maximum_filter(sure, (1, 3, 3))
    # Something must be left to fit.
    return np.asarray(wide if counts[wide].sum() < _MOST_CROWDED * counts.sum() else sure)


def _standardise(z: FloatArray, used: npt.NDArray[np.bool_]) -> FloatArray:
    if used.sum() < 8:
        return np.zeros_like(z)
    middle = np.median(z[used])
    spread = 1.4826 * np.median(np.abs(z[used] - middle))
    return np.asarray((z - middle) / max(float(spread), 1e-12))


def weigh_blocks(rest: FloatArray, blocks: Blocks) -> tuple[FloatArray, float]:
    """Return the weight of each pixel by how well its block and those around it follow the model, and the noise."""
    over = rate_blocks(blocks.sum(rest), blocks.counts, ALONG * ACROSS / 4)
    weight = ((1 - over**2) ** 2).ravel()[blocks.index]
    sizes = np.abs(rest)
    followed = weight > 0.5
    spread = np.median(sizes[followed] if followed.any() else sizes)
    return weight, float(1.4826 * spread)
