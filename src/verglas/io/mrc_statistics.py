"""The numbers in the header of an MRC file, gathered while it is written."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 1 << 19
"""Values that conversion and statistics take at a time.

Small enough for the processor's cache, and large enough for another thread to do something in between.
"""


class MrcStatistics:
    """Running minimum, maximum, mean and deviation in double precision.

    Pieces are merged as in Chan, Golub & LeVeque, *Am. Stat.* 37, 242 (1983), which does not cancel.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.minimum, self.maximum = math.inf, -math.inf
        self.known = True

    def add(self, sections: Array) -> None:
        """Take sections `(k, ...)` one after the other: the same numbers come out however many come at once."""
        self.known = self.known and sections.dtype.kind != "c"
        flat = sections.reshape(len(sections), -1)
        for start in range(0, flat.shape[1] if self.known else 0, BLOCK):
            block = flat[:, start : start + BLOCK].astype(np.float64)
            low, high = float(block.min()), float(block.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                self.known = False
                return
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
            means = block.mean(axis=1)
            block -= means[:, None]
            squares = np.square(block, out=block).sum(axis=1)
            for mean, square in zip(means.tolist(), squares.tolist(), strict=True):
                self._merge(block.shape[1], mean, square)

    def _merge(self, count: int, mean: float, squares: float) -> None:
        total = self.count + count
        step = mean - self.mean
        self.squares += squares + step**2 * self.count * count / total
        self.mean += step * count / total
        self.count = total

    def values(self) -> tuple[float, float, float, float]:
        """Return the four numbers, or MRC2014's way to say that they are not determined."""
        if not self.known:
            return 0.0, -1.0, -2.0, -1.0
        return self.minimum, self.maximum, self.mean, math.sqrt(self.squares / self.count)
