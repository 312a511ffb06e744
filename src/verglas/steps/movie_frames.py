"""The frames of one movie as they are wanted: some rows at a time, mended, gain-corrected and cropped."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.motion.defects import choose_sources, find_defects
from verglas.errors import UserError
from verglas.io.movie import Movie, open_movie
from verglas.io.mrc import check_finite
from verglas.ops.fft import rescale_images
from verglas.runtime import map_threads

FloatArray = npt.NDArray[np.float32]

_STRIP = 64


class MovieFrames:
    """Frames `start` to `stop` of a movie.

    Of a file whose rows can be read, nothing is kept: the system has it in memory where there is room. Frames that
    must be decoded are, once, and kept as they are.

    Parameters
    ----------
    movie
        The movie.
    start, stop
        Range of frames, from 0.
    """

    def __init__(self, movie: Movie, start: int, stop: int) -> None:
        self.movie, self.start, self.count = movie, start, stop - start
        self.shape = (movie.shape[1], movie.shape[2])
        self.gain: FloatArray | None = None
        """What frames are multiplied by, mended as they are."""
        self._kept: npt.NDArray[Any] | None = None
        self._places = self._sources = np.empty(0, np.int64)

    def read_rows(self, number: int, top: int, bottom: int) -> npt.NDArray[Any]:
        """Rows `top` to `bottom` of frame `number` of the range, mended: integers as they are, or float32."""
        width = self.shape[1]
        if self._kept is not None:
            return self._kept[number, top:bottom]
        part = slice(*np.searchsorted(self._places, (top * width, bottom * width)))
        places, sources = self._places[part], self._sources[part]
        if len(places) == 0:
            return self._load(number, top, bottom)
        # Good pixels may lie a few rows away.
        first = min(top, int(sources.min()) // width)
        last = max(bottom, int(sources.max()) // width + 1)
        rows = self._load(number, first, last)
        flat = rows.reshape(-1)
        flat[places - first * width] = flat[sources - first * width]
        return rows[top - first : bottom - first]

    def _load(self, number: int, top: int, bottom: int) -> npt.NDArray[Any]:
        return _simplify(self.movie.rows(self.start + number, top, bottom))

    def add_up(self) -> FloatArray:
        """Sum of all frames as the camera wrote them.

        Raises
        ------
        UserError
            When a frame is empty or holds what is not finite, and as `Movie.frames`.
        """
        if not self.movie.has_rows and self._kept is None:
            self._kept = _simplify(self.movie.frames(self.start, self.start + self.count))
        total: FloatArray = np.zeros(self.shape, np.float32)
        seen = np.zeros(self.count, bool)

        def add(top: int) -> None:
            part = total[top : top + _STRIP]
            for number in range(self.count):
                rows = self.read_rows(number, top, top + len(part))
                np.add(part, rows, out=part, casting="unsafe")
                # Only ever set: threads share it.
                if rows.any():
                    seen[number] = True

        map_threads(add, range(0, self.shape[0], _STRIP))
        if not (seen.all() and np.isfinite(total).all()):
            self._complain(seen)
        return total

    def _complain(self, seen: npt.NDArray[np.bool_]) -> None:
        """Say which frame cannot be used."""
        for number in range(self.count):
            what = f"frame {self.start + number + 1} of movie {str(self.movie.path)!r}"
            check_finite(self.read_rows(number, 0, self.shape[0]), what)
            if not seen[number]:
                raise UserError(
                    f"{what} is zero everywhere; expected an image, or a range of frames without it"
                )

    def correct(self, total: FloatArray, gain: FloatArray | None) -> npt.NDArray[np.int64]:
        """From now on give frames with the camera's defects mended, to be multiplied by :attr:`gain`.

        Parameters
        ----------
        total
            From :meth:`add_up`; it is changed to the corrected sum.
        gain
            `(y, x)`; pixels that are not positive are defects. None is no correction. It is mended too.

        Returns
        -------
        ndarray
            `(m, 2)` yx of the defects, row by row.
        """
        self.gain = gain
        if gain is not None:
            total *= gain
        bad = find_defects(total)
        if gain is not None:
            bad |= ~(gain > 0)
        self._places, self._sources = choose_sources(bad)
        for image in (total, gain, *(self._kept if self._kept is not None else ())):
            if image is not None:
                flat = image.reshape(-1)
                flat[self._places] = flat[self._sources]
        return np.stack(np.divmod(self._places, self.shape[1]), axis=1)

    def release(self) -> None:
        """Forget what was kept and what frames are corrected with."""
        self._kept, self.gain = None, None
        self._places = self._sources = np.empty(0, np.int64)

    def prepare(self, number: int, shape: tuple[int, int]) -> torch.Tensor:
        """Corrected frame, Fourier-cropped to `shape`."""
        # Memory of torch is aligned, and only then do its transforms give the same bytes every time.
        image = torch.empty(self.shape)
        corrected = image.numpy()

        def multiply(top: int) -> None:
            rows = self.read_rows(number, top, min(top + _STRIP, self.shape[0]))
            factor = np.float32(1) if self.gain is None else self.gain[top : top + _STRIP]
            np.multiply(rows, factor, out=corrected[top : top + _STRIP], dtype=np.float32, casting="unsafe")

        map_threads(multiply, range(0, self.shape[0], _STRIP))
        return image if shape == self.shape else rescale_images(image, shape)


def _simplify(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Integers of one or two bytes as they are, everything else in single precision."""
    return (
        frames
        if frames.dtype.kind in "iu" and frames.dtype.itemsize <= 2
        else frames.astype(np.float32, copy=False)
    )


def read_gain(path: Path) -> FloatArray:
    """Read a gain reference, MRC or TIFF; what is not finite is zero, a defect.

    Raises
    ------
    UserError
        When it is no single image, or has no positive pixel.
    """
    file = open_movie(path)
    if len(file) != 1:
        raise UserError(f"gain reference {str(path)!r} holds {len(file)} images; expected one")
    gain: FloatArray = file.frames()[0].astype(np.float32, copy=False)
    gain[~np.isfinite(gain)] = 0
    if not (gain > 0).any():
        raise UserError(f"gain reference {str(path)!r} has no positive pixel; expected factors around one")
    return gain
