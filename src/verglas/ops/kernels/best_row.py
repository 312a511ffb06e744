"""The largest value of each column of a matrix, and the row that holds it.

A search over orientations reads each score once: this is all that is done to it, so it must not cost more than
the product that made it. It runs on one core and without Python's lock: callers deal columns out to threads.
"""

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from verglas.shapes import Values

# A strip of columns whose best values stay in the processor's first cache.
_STRIP = 1024
_ROWS = 32768


def best_row(scores: Values) -> tuple[Values, Int[Tensor, " columns"]]:
    """Find the best row of each column with the kernel of the tensor's device.

    Parameters
    ----------
    scores
        `(rows, columns)` float32 or bfloat16, contiguous, without NaN.

    Returns
    -------
    tuple
        `(columns,)` values in the dtype of `scores` and int32 rows; of equal values the first.
    """
    columns = scores.shape[1]
    if scores.device.type != "cpu" or scores.dtype not in {torch.float32, torch.bfloat16}:
        return best_row_reference(scores)
    best = torch.empty(columns, dtype=scores.dtype)
    index = torch.empty(columns, dtype=torch.int32)
    if scores.dtype == torch.float32:
        _best_row_numba(scores.numpy(), best.numpy(), index.numpy())
    else:
        _best_bfloat_numba(scores.view(torch.int16).numpy(), best.view(torch.int16).numpy(), index.numpy())
    return best, index


def best_row_reference(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `best_row` does, in plain torch."""
    # argmax does not promise the first of equal values on every device.
    best = scores.amax(0)
    rows = torch.arange(len(scores), dtype=torch.int32, device=scores.device)[:, None]
    index = torch.where(scores == best, rows, len(scores)).amin(0)
    return best, index


@numba.njit(nogil=True, cache=True)
def _best_row_numba(
    scores: npt.NDArray[np.float32], best: npt.NDArray[np.float32], index: npt.NDArray[np.int32]
) -> None:
    rows, columns = scores.shape
    for first in range(0, columns, _STRIP):
        last = min(columns, first + _STRIP)
        top = best[first:last]
        place = index[first:last]
        top[:] = scores[0, first:last]
        place[:] = 0
        for row in range(1, rows):
            values = scores[row, first:last]
            for i in range(last - first):
                better = values[i] > top[i]
                top[i] = values[i] if better else top[i]
                place[i] = np.int32(row) if better else place[i]


@numba.njit(nogil=True, cache=True)
def _best_bfloat_numba(
    scores: npt.NDArray[np.int16], best: npt.NDArray[np.int16], index: npt.NDArray[np.int32]
) -> None:
    """Compare bfloat16 by their bits: those of negative numbers are turned so that integers have their order."""
    rows, columns = scores.shape
    for first in range(0, columns, _STRIP):
        last = min(columns, first + _STRIP)
        top = np.full(last - first, np.int16(-32768))
        place = np.zeros(last - first, np.int16)
        # Rows in pieces, so that their numbers fit the lanes of the values.
        for base in range(0, rows, _ROWS):
            place[:] = -1
            for row in range(base, min(rows, base + _ROWS)):
                values = scores[row, first:last]
                number = np.int16(row - base)
                for i in range(last - first):
                    value = np.int16(values[i] ^ ((values[i] >> np.int16(15)) & np.int16(32767)))
                    better = value > top[i]
                    top[i] = value if better else top[i]
                    place[i] = number if better else place[i]
            for i in range(last - first):
                if place[i] >= 0:
                    index[first + i] = base + place[i]
        for i in range(last - first):
            best[first + i] = np.int16(top[i] ^ ((top[i] >> np.int16(15)) & np.int16(32767)))
