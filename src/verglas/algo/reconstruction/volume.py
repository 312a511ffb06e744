"""A volume in blocks of rows, so that memory holds the views and one block, whatever the volume's size."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from verglas.ops.backprojection import ViewFrames, VoxelGrid, backproject
from verglas.shapes import Image, Volume

BLOCK_BYTES = 16 << 20
"""Size of one block of the volume; the rows sampled for it take about as much again."""


def reconstruct_blocks(
    coefficients: Image, frames: ViewFrames, grid: VoxelGrid, subsets: Sequence[Tensor]
) -> Iterator[tuple[int, list[Volume]]]:
    """Back-project subsets of the views, a block of volume rows at a time.

    Parameters
    ----------
    coefficients
        `(n, y, x)` filtered views of `filter_views`.
    frames
        Their geometry.
    grid
        The voxels of the whole volume.
    subsets
        Indices of the views that make each volume: all of them, or the odd and the even ones.

    Yields
    ------
    tuple
        The first row of the block, and a volume `(z, rows, x)` for each subset.
    """
    rows, y_size = block_rows(grid, len(subsets)), grid.shape[1]
    parts = [(_take_views(coefficients, views), frames.take(views)) for views in subsets]
    for start in range(0, y_size, rows):
        block = grid.rows(start, min(y_size, start + rows))
        yield start, [backproject(views, geometry, block) for views, geometry in parts]


def block_rows(grid: VoxelGrid, subsets: int) -> int:
    """Rows along y of one block, when this many volumes are made at once."""
    z_size, y_size, x_size = grid.shape
    return max(1, min(y_size, BLOCK_BYTES // (4 * z_size * x_size * subsets)))


def _take_views(coefficients: Tensor, views: Tensor) -> Tensor:
    """Select views, without a copy where they follow each other."""
    first, count = int(views[0]), len(views)
    if torch.equal(views, torch.arange(first, first + count)):
        return coefficients[first : first + count]
    return coefficients[views]


def split_views(count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of every other view, from the first and from the second, for half tomograms."""
    return torch.arange(0, count, 2), torch.arange(1, count, 2)
