"""The frames of one movie as they are wanted: one at a time, gain-corrected, mended and cropped."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

FloatArray = npt.NDArray[np.float32]


class MovieFrames:
    """Frames `start` to `stop` of a movie.

    Frames of one or two bytes a pixel are kept as they are once they were read, which is at most half of what they
    take in single precision; others are read again each time.

    Parameters
    ----------
    movie
        The movie.
    start, stop
        Range of frames, from 0.
    threads
        That read and correct frames.
    """

    def __init__(self, movie: Movie, start: int, stop: int, threads: int = 1) -> None:
        self.movie, self.start, self.count = movie, start, stop - start
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self.shape = (movie.shape[1], movie.shape[2])
        self._kept: dict[int, npt.NDArray[Any]] = {}
        self._gain: FloatArray | None = None
        self._places = self._sources = np.empty(0, np.int64)

    def read(self, number: int) -> npt.NDArray[Any]:
        """Frame `number` of the range as the camera wrote it.

        Raises
        ------
        UserError
            When it is empty or holds what is not finite, and as `Movie.frames`.
        """
        if number in self._kept:
            return self._kept[number]
        at = self.start + number
        frame: npt.NDArray[Any] = self.movie.frames(at, at + 1)[0]
        what = f"frame {at + 1} of movie {str(self.movie.path)!r}"
        if frame.dtype.kind == "f":
            check_finite(frame, what)
        if not frame.any():
            raise UserError(f"{what} is zero everywhere; expected an image, or a range of frames without it")
        if frame.dtype.itemsize <= 2:
            self._kept[number] = frame
        return frame

    def add_up(self) -> FloatArray:
        """Sum of all frames as the camera wrote them."""
        total: FloatArray = np.zeros(self.shape, np.float32)
        for frame in self._read_ahead():
            np.add(total, frame, out=total, casting="unsafe")
        return total

    def _read_ahead(self) -> Iterator[npt.NDArray[Any]]:
        """Give the frames in turn while the next are read."""
        waiting: deque[Future[npt.NDArray[Any]]] = deque()
        for number in range(self.count):
            waiting.append(self._pool.submit(self.read, number))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def correct(self, total: FloatArray, gain: FloatArray | None) -> npt.NDArray[np.bool_]:
        """From now on give frames times `gain`, with the camera's defects mended.

        Parameters
        ----------
        total
            From :meth:`add_up`; it is changed to the corrected sum.
        gain
            `(y, x)`; pixels that are not positive are defects. None is no correction.

        Returns
        -------
        ndarray
            `(y, x)` True at defects.
        """
        self._gain = gain
        if gain is not None:
            total *= gain
        bad = find_defects(total)
        if gain is not None:
            bad |= ~(gain > 0)
        self._places, self._sources = choose_sources(bad)
        self._mend(total)
        return bad

    def _mend(self, frame: FloatArray) -> None:
        flat = frame.reshape(-1)
        flat[self._places] = flat[self._sources]

    def prepare(self, number: int, shape: tuple[int, int]) -> torch.Tensor:
        """Corrected frame, Fourier-cropped to `shape`."""
        raw = self.read(number)
        gain = np.float32(1) if self._gain is None else self._gain
        # Memory of torch is aligned, and only then do its transforms give the same bytes every time.
        image = torch.empty(self.shape)
        corrected = image.numpy()

        def multiply(rows: slice) -> None:
            factor = gain[rows] if isinstance(gain, np.ndarray) else gain
            np.multiply(raw[rows], factor, out=corrected[rows], dtype=np.float32, casting="unsafe")

        edges = np.linspace(0, self.shape[0], self._threads + 1).astype(int)
        first, *others = map(slice, edges[:-1], edges[1:])
        waiting = [self._pool.submit(multiply, rows) for rows in others]
        multiply(first)
        for part in waiting:
            part.result()
        self._mend(corrected)
        return image if shape == self.shape else rescale_images(image, shape)


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
    gain: FloatArray = np.nan_to_num(file.frames()[0].astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if not (gain > 0).any():
        raise UserError(f"gain reference {str(path)!r} has no positive pixel; expected factors around one")
    return gain
