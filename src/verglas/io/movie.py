"""Movies: MRC stacks, TIFF and EER behind one reader that decodes only the frames asked for.

Which way is up
---------------
MRC and EER frames come as they are stored. TIFF stores the top row first and MRC the bottom row, so **TIFF
frames are flipped along y** when they are read, whatever their orientation tag says. RELION, IMOD and
MotionCor2 do the same, so that gain references and coordinates made for those programs fit. A gain reference
that is itself a TIFF is flipped alike when it is read here.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, OutOfMemoryError, UserError
from verglas.io.mrc import read_mrc_header, read_rows, read_sections
from verglas.io.mrc_header import open_regular_file
from verglas.io.tiff_layout import LZW, NO_COMPRESSION, TiffFrame, is_tiff, read_layout
from verglas.runtime import available_cores, available_memory_bytes

Array = npt.NDArray[Any]

_MAXIMUM_PIXELS = 1 << 30
_MAXIMUM_THREADS = 8


@dataclass(frozen=True)
class Movie:
    """Frames of one exposure, read when they are asked for; made by :func:`open_movie`.

    Parameters
    ----------
    path
        The file.
    shape
        `(n, y, x)` after EER frames are grouped and upsampled.
    dtype
        Data type of the frames.
    pixel_size_angstrom
        Side of a pixel of these frames, Å; None where the file does not say.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    pixel_size_angstrom: float | None
    _read: Callable[[int, int], Array] = field(repr=False)
    _read_rows: Callable[[int, int, int], Array] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    def frames(self, start: int = 0, stop: int | None = None) -> Array:
        """Read frames `start` to `stop` (not included; None is the end).

        Returns
        -------
        ndarray
            `(stop - start, y, x)` in the movie's data type.

        Raises
        ------
        UserError
            When the range is not inside the movie.
        FileFormatError
            When the frames cannot be decoded.
        OutOfMemoryError
            When they do not fit in the memory that is free.
        """
        stop = self.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[0]:
            raise UserError(
                f"frames {start} to {stop} are outside the {self.shape[0]} of movie {str(self.path)!r}"
            )
        wanted = (stop - start) * self.shape[1] * self.shape[2] * self.dtype.itemsize
        free = available_memory_bytes()
        if wanted > free:
            raise OutOfMemoryError(
                f"frames {start} to {stop} of {str(self.path)!r} take {wanted / 1e9:.1f} GB, "
                f"but {free / 1e9:.1f} GB of memory are free"
            )
        return self._read(start, stop)

    @property
    def has_rows(self) -> bool:
        """Whether rows of a frame can be read without the rest of it."""
        return self._read_rows is not None

    def rows(self, frame: int, top: int, bottom: int) -> Array:
        """Read rows `top` to `bottom` (not included) of one frame, `(bottom - top, x)`, where :attr:`has_rows`."""
        if self._read_rows is None:
            raise ValueError(f"frames of {str(self.path)!r} can only be read as a whole")
        return self._read_rows(frame, top, bottom)


def open_movie(
    path: Path | str, *, eer_frames_per_fraction: int | None = None, eer_upsampling: int = 1
) -> Movie:
    """Open a movie of any format, which is told by the file's content and not by its name.

    Parameters
    ----------
    path
        MRC stack; TIFF or BigTIFF with one page a frame, uncompressed, LZW or deflate; or EER.
    eer_frames_per_fraction
        Raw EER frames that are summed to one; what is left over at the end is dropped, as in RELION. EER
        needs it, other formats do not use it.
    eer_upsampling
        1, 2 or 4 pixels of the frames along the side of a pixel of the EER camera.

    Raises
    ------
    UserError
        When a parameter cannot be, and MissingFileError when there is no such file.
    FileFormatError
        When the file is damaged, cut short, or holds what is not a movie; before any frame is read.
    """
    path = Path(path)
    with open_regular_file(path, "movie") as file:
        if not is_tiff(file.read(4)):
            return _open_mrc(path)
        layout = read_layout(path, file)
    first = layout.frames[0]
    for number, frame in enumerate(layout.frames, 1):
        if (frame.shape, frame.dtype, frame.eer_bits) != (first.shape, first.dtype, first.eer_bits):
            raise FileFormatError(
                f"movie {str(path)!r} has frames of different kinds: frame 1 is {_kind(first)}, "
                f"frame {number} is {_kind(frame)}"
            )
    if first.eer_bits is not None:
        return _open_eer(
            path, layout.frames, layout.pixel_size_angstrom, eer_frames_per_fraction, eer_upsampling
        )
    _check_pixels(path, first.shape)
    return Movie(
        path,
        (len(layout.frames), *first.shape),
        first.dtype.newbyteorder("="),
        layout.pixel_size_angstrom,
        partial(_read_tiff, path, layout.frames),
    )


def _kind(frame: TiffFrame) -> str:
    return f"(y, x) = {frame.shape} {frame.dtype.name if frame.eer_bits is None else 'EER'}"


def _check_pixels(path: Path, shape: tuple[int, int]) -> None:
    if shape[0] * shape[1] > _MAXIMUM_PIXELS:
        raise FileFormatError(
            f"movie {str(path)!r} claims frames of (y, x) = {shape}; expected up to {_MAXIMUM_PIXELS} pixels"
        )


def _open_mrc(path: Path) -> Movie:
    header = read_mrc_header(path)
    if header.dtype.kind == "c":
        raise FileFormatError(f"movie {str(path)!r} holds complex numbers; expected integers or floats")
    native = header.dtype.newbyteorder("=")
    return Movie(
        path,
        header.shape,
        native,
        header.pixel_size_angstrom,
        partial(read_sections, path, header),
        partial(read_rows, path, header),
    )


def _open_eer(
    path: Path,
    frames: tuple[TiffFrame, ...],
    pixel_size_angstrom: float | None,
    frames_per_fraction: int | None,
    upsampling: int,
) -> Movie:
    if frames_per_fraction is None:
        raise UserError(
            f"EER movie {str(path)!r} holds {len(frames)} raw frames; "
            "expected `eer_frames_per_fraction`, the number to sum to one"
        )
    if not 1 <= frames_per_fraction <= len(frames):
        raise UserError(
            f"`eer_frames_per_fraction` must lie between 1 and {len(frames)}, the raw frames of "
            f"{str(path)!r}; got {frames_per_fraction}"
        )
    _, *sub_bits = frames[0].eer_bits or (0, 0, 0)
    choices = [2**power for power in range(min(2, *sub_bits) + 1)]
    if upsampling not in choices:
        raise UserError(f"`eer_upsampling` must be one of {', '.join(map(str, choices))}; got {upsampling}")
    side_y, side_x = frames[0].shape
    shape = (side_y * upsampling, side_x * upsampling)
    _check_pixels(path, shape)
    count = len(frames) // frames_per_fraction
    # A raw frame adds at most one electron to a pixel, so that the sums fit in a byte more often than not.
    dtype = np.dtype(np.uint8 if frames_per_fraction < 256 else np.uint16)
    return Movie(
        path,
        (count, *shape),
        dtype,
        None if pixel_size_angstrom is None else pixel_size_angstrom / upsampling,
        partial(_read_eer, path, frames, frames_per_fraction, upsampling, dtype),
    )


def _read_eer(
    path: Path,
    frames: tuple[TiffFrame, ...],
    per_fraction: int,
    upsampling: int,
    dtype: np.dtype[Any],
    start: int,
    stop: int,
) -> Array:
    side_y, side_x = frames[0].shape
    result = np.zeros((stop - start, side_y * upsampling, side_x * upsampling), dtype)

    def add(index: int) -> None:
        first = (start + index) * per_fraction
        with path.open("rb") as file:
            for number, frame in enumerate(frames[first : first + per_fraction], first + 1):
                _add_electrons(path, file.fileno(), frame, number, upsampling, result[index])

    _run_all(add, len(result))
    return result


def _add_electrons(
    path: Path, descriptor: int, frame: TiffFrame, number: int, upsampling: int, out: Array
) -> None:
    """Add the electrons of one raw frame to `(y, x)` `out`."""
    data = b"".join(os.pread(descriptor, size, offset) for offset, size in frame.strips)
    # The decoder takes an even number of bytes and does not look at a code that ends with the last of them.
    data += bytes(2 + len(data) % 2)
    run_bits, x_bits, y_bits = frame.eer_bits or (0, 0, 0)
    level = upsampling.bit_length() - 1
    try:
        imagecodecs.eer_decode(data, out.shape, run_bits, x_bits, y_bits, superres=level, out=out)
    except (RuntimeError, ValueError) as error:
        raise FileFormatError(
            f"raw frame {number} of EER movie {str(path)!r} is damaged ({error})"
        ) from error


def _read_tiff(path: Path, frames: tuple[TiffFrame, ...], start: int, stop: int) -> Array:
    first = frames[0]
    result = np.empty((stop - start, *first.shape), first.dtype.newbyteorder("="))

    def decode(index: int) -> None:
        with path.open("rb") as file:
            _decode_frame(path, file.fileno(), frames[start + index], start + index + 1, result[index, ::-1])

    _run_all(decode, len(result))
    return result


def _decode_frame(path: Path, descriptor: int, frame: TiffFrame, number: int, out: Array) -> None:
    """Decode the strips of one frame into `(y, x)` `out`."""
    width = frame.shape[1]
    row_bytes = width * frame.dtype.itemsize
    for (offset, size), top in zip(frame.strips, range(0, len(out), frame.rows_per_strip), strict=True):
        rows = out[top : top + frame.rows_per_strip]
        data = os.pread(descriptor, size, offset)
        try:
            # The limit is what the frame can hold: a bomb is not unpacked further than that.
            data = _decompress(data, frame.compression, frame.rows_per_strip * row_bytes)
        except (RuntimeError, ValueError) as error:
            raise FileFormatError(f"frame {number} of movie {str(path)!r} is damaged ({error})") from error
        if len(data) < rows.shape[0] * row_bytes:
            raise FileFormatError(
                f"frame {number} of movie {str(path)!r} is damaged: a strip holds {len(data)} bytes; "
                f"expected {rows.shape[0] * row_bytes}"
            )
        strip = np.frombuffer(data, frame.dtype, rows.size).reshape(rows.shape)
        if frame.is_differenced:
            strip = imagecodecs.delta_decode(strip.astype(strip.dtype.newbyteorder("=")), axis=-1)
        rows[...] = strip


def _decompress(data: bytes, compression: int, limit: int) -> bytes:
    if compression == NO_COMPRESSION:
        return data
    decode = imagecodecs.lzw_decode if compression == LZW else imagecodecs.zlib_decode
    return bytes(decode(data, out=limit))


def _run_all(work: Callable[[int], None], count: int) -> None:
    """Do `work` for 0 to `count` - 1 in the threads this process may use; the decoders release the GIL."""
    budget = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(budget) if budget.isdigit() else available_cores(), _MAXIMUM_THREADS, count)
    if threads <= 1:
        for index in range(count):
            work(index)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(count)):
            pass
