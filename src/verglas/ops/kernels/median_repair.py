"""Pixels replaced by the median of the good ones around them, one after the other."""

import numba
import numpy as np
import numpy.typing as npt


@numba.njit(nogil=True, cache=True)
def repair_pixels(image: npt.NDArray[np.floating], is_bad: npt.NDArray[np.bool_]) -> int:
    """Replace bad pixels in place, in the order of the rows; one that is repaired is good for the next.

    A pixel becomes the median of the good pixels among the 5 x 5 around it that lie in the image; of an even
    number the mean of the middle two. One without a good neighbour waits for the next sweep.

    Parameters
    ----------
    image
        `(y, x)`.
    is_bad
        `(y, x)`; false everywhere afterwards, unless it was true everywhere.

    Returns
    -------
    int
        How many are left; 0, or all.
    """
    rows, columns = image.shape
    places = np.argwhere(is_bad)
    left = len(places)
    values = np.empty(25, image.dtype)
    while left:
        before = left
        for place in range(len(places)):
            i, j = places[place]
            if not is_bad[i, j]:
                continue
            count = 0
            for row in range(max(i - 2, 0), min(i + 3, rows)):
                for column in range(max(j - 2, 0), min(j + 3, columns)):
                    if not is_bad[row, column]:
                        values[count] = image[row, column]
                        count += 1
            if count:
                image[i, j] = np.median(values[:count])
                is_bad[i, j] = False
                left -= 1
        if left == before:
            break
    return left
