"""MRC files: images, stacks and volumes, read and written piece by piece.

Files are written with plain writes in the order of their sections, so that a volume larger than memory passes
through in the size of its pieces. The same data give the same bytes: there is no time stamp.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.files import atomic_path
from verglas.io.mrc_header import HEADER_BYTES, MrcHeader, encode_text, make_header, read_mrc_header
from verglas.io.mrc_statistics import BLOCK, MrcStatistics
from verglas.model import ImageReference

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

__all__ = [
    "MrcHeader",
    "MrcWriter",
    "check_finite",
    "create_mrc",
    "open_mrc",
    "read_image",
    "read_images",
    "read_mrc",
    "read_mrc_header",
    "read_rows",
    "read_sections",
    "write_mrc",
]

_CHUNK_BYTES = 1 << 26


def open_mrc(path: Path | str) -> Array:
    """Map a file into memory, read-only.

    Returns
    -------
    ndarray
        `(n, y, x)` in the data type and the byte order of the file.

    Raises
    ------
    UserError
        As :func:`read_mrc_header`.
    """
    header = read_mrc_header(path)
    return np.memmap(path, header.dtype, "r", header.data_offset, header.shape)


def read_mrc(path: Path | str, dtype: npt.DTypeLike | None = np.float32) -> Array:
    """Read a whole file.

    Parameters
    ----------
    path
        The MRC file.
    dtype
        Data type of the result; None is that of the file.

    Returns
    -------
    ndarray
        `(n, y, x)`.

    Raises
    ------
    UserError
        As :func:`read_mrc_header`, and when the data cannot be of that type (complex as
        real, float as integer).
    """
    return read_sections(path, read_mrc_header(path), dtype=dtype)


def read_sections(
    path: Path | str,
    header: MrcHeader,
    start: int = 0,
    stop: int | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
) -> Array:
    """Read sections `start` to `stop` (not included) of a file whose header is known.

    Parameters
    ----------
    path
        The MRC file.
    header
        Its header, from :func:`read_mrc_header`.
    start, stop
        Range of sections; None is the end.
    dtype
        Data type of the result; None is that of the file.

    Returns
    -------
    ndarray
        `(stop - start, y, x)` in the byte order of the machine.
    """
    count, *section = header.shape
    stop = count if stop is None else stop
    if not 0 <= start <= stop <= count:
        raise UserError(f"sections {start} to {stop} are outside the {count} of MRC file {str(path)!r}")
    wanted = header.dtype.newbyteorder("=") if dtype is None else np.dtype(dtype)
    result = np.empty((stop - start, *section), wanted)
    with Path(path).open("rb", buffering=0) as file:
        _read_sections_into(file, header, start, result)
    return result


def read_rows(path: Path | str, header: MrcHeader, section: int, top: int, bottom: int) -> Array:
    """Read rows `top` to `bottom` (not included) of one section of a file whose header is known.

    Returns
    -------
    ndarray
        `(bottom - top, x)` in the data type of the file and the byte order of the machine.
    """
    count, height, width = header.shape
    if not (0 <= section < count and 0 <= top <= bottom <= height):
        raise UserError(
            f"rows {top} to {bottom} of section {section + 1} are outside MRC file {str(path)!r}, which holds "
            f"{count} sections of {height} rows"
        )
    result = np.empty((bottom - top, width), header.dtype)
    # Without a buffer: what is read goes where it is wanted, and no more than that.
    with Path(path).open("rb", buffering=0) as file:
        file.seek(header.data_offset + (section * height + top) * width * header.dtype.itemsize)
        _read_into(file, result)
    return result if header.dtype.isnative else result.astype(header.dtype.newbyteorder("="))


def _read_sections_into(file: FileIO, header: MrcHeader, start: int, result: Array) -> None:
    """Fill `result` with sections from `start` on."""
    if not np.can_cast(header.dtype, result.dtype, "same_kind"):
        raise UserError(
            f"MRC file {str(file.name)!r} holds {header.dtype.name}, which cannot be read as {result.dtype.name}"
        )
    file.seek(header.data_offset + start * math.prod(header.shape[1:]) * header.dtype.itemsize)
    if header.dtype == result.dtype:
        _read_into(file, result)
        return
    flat = result.reshape(-1)
    buffer = np.empty(min(_CHUNK_BYTES // header.dtype.itemsize, flat.size), header.dtype)
    for first in range(0, flat.size, max(buffer.size, 1)):
        piece = buffer[: flat.size - first]
        _read_into(file, piece)
        flat[first : first + piece.size] = piece


def _read_into(file: FileIO, array: Array) -> None:
    view = array.reshape(-1).view(np.uint8).data
    while view:
        count = file.readinto(view)
        if not count:
            raise FileFormatError(f"MRC file {file.name!r} was cut short while it was read")
        view = view[count:]


def read_image(image: ImageReference) -> FloatArray:
    """Read one image.

    Returns
    -------
    ndarray
        `(y, x)` float32.

    Raises
    ------
    UserError
        As :func:`read_mrc_header`; when the section is not in the file; when the reference names no section
        and the file holds several.
    """
    result: FloatArray = read_images([image])[0]
    return result


def read_images(images: Sequence[ImageReference]) -> FloatArray:
    """Read images of one size, each run of following sections of a file in one go.

    Returns
    -------
    ndarray
        `(n, y, x)` float32, in the order asked for.

    Raises
    ------
    UserError
        As :func:`read_image`; when there are no images, or their sizes differ.
    """
    if not images:
        raise UserError("no images to read; expected at least one")
    headers = {path: read_mrc_header(path) for path in dict.fromkeys(image.path for image in images)}
    sections = [_check_section(image, headers[image.path]) for image in images]
    first = images[0].path
    shape = headers[first].shape[1:]
    for path, header in headers.items():
        if header.shape[1:] != shape:
            raise UserError(
                f"images must have one size; {str(first)!r} has (y, x) = {shape}, "
                f"{str(path)!r} has {header.shape[1:]}"
            )
    result = np.empty((len(images), *shape), np.float32)
    start = 0
    with ExitStack() as stack:
        file, opened = None, None
        for end in range(1, len(images) + 1):
            path = images[start].path
            if end < len(images) and images[end].path == path and sections[end] == sections[end - 1] + 1:
                continue
            if file is None or opened != path:
                stack.close()
                file, opened = stack.enter_context(path.open("rb", buffering=0)), path
            _read_sections_into(file, headers[path], sections[start], result[start:end])
            start = end
    return result


def _check_section(image: ImageReference, header: MrcHeader) -> int:
    count = header.shape[0]
    if image.section is None and count > 1:
        raise UserError(
            f"MRC file {str(image.path)!r} holds {count} sections; expected one image or a section"
        )
    section = image.section or 0
    if not 0 <= section < count:
        raise UserError(f"section {section + 1} is not in MRC file {str(image.path)!r}, which holds {count}")
    return section


def check_finite(array: Array, what: str) -> Array:
    """Return `array` when all its values are finite.

    Parameters
    ----------
    array
        `(...)` of any type.
    what
        Names it in the message, for example the path of its file.

    Raises
    ------
    UserError
        With the number of values that are not, and the first of them.
    """
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), finite.shape))
        count = finite.size - int(np.count_nonzero(finite))
        raise UserError(
            f"{what} holds {count} of {finite.size} values that are not finite, the first at {place}; "
            "expected finite numbers"
        )
    return array


class MrcWriter:
    """Writes one file, its sections or its rows in their order; made by :func:`create_mrc`."""

    def __init__(self, file: BufferedWriter, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self._file = file
        self._start = file.tell()
        self._shape = shape
        self._dtype = dtype
        self._statistics = MrcStatistics()
        self._written = 0
        self._rows_written = 0
        self._depth = 0

    def write(self, sections: npt.ArrayLike) -> None:
        """Append sections.

        Parameters
        ----------
        sections
            `(k, y, x)`, or `(y, x)` for one. They are converted to the file's data type, floats to the
            nearest integer where that is an integer, and never scaled.

        Raises
        ------
        ValueError
            When their size is not that of the file, or there are more than it was made for.
        UserError
            When a value does not fit in the file's data type.
        """
        array = np.asarray(sections)
        array = array[None] if array.ndim == 2 else array
        if self._rows_written:
            raise ValueError("sections were begun with rows; expected rows to their end")
        if array.ndim != 3 or array.shape[1:] != self._shape[1:]:
            raise ValueError(
                f"`sections` must be (..., {self._shape[1]}, {self._shape[2]}); got {array.shape}"
            )
        if self._written + len(array) > self._shape[0]:
            raise ValueError(f"the file takes {self._shape[0]} sections; got {self._written + len(array)}")
        # Small sections go together; of a large one, some rows at a time: no copy of a whole image is made.
        step = max(1, BLOCK // max(math.prod(array.shape[1:]), 1))
        rows = max(1, BLOCK // max(array.shape[2], 1))
        for start in range(0, len(array), step):
            for top in range(0, array.shape[1], rows):
                converted = _convert(array[start : start + step, top : top + rows], self._dtype)
                self._statistics.add(converted)
                self._file.write(converted.reshape(-1).view(np.uint8).data)
        self._written += len(array)

    def settle(self) -> None:
        """Wait until the disk has what was written so far: less is left to wait for when the file is finished."""
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def write_rows(self, block: npt.ArrayLike) -> None:
        """Write the next rows of the next sections, for volumes that are made in blocks along y.

        Parameters
        ----------
        block
            `(k, rows, x)`, the next k sections, or all; converted as by :meth:`write`. Until all rows of these
            sections are there, the blocks that follow must be as thick.

        Raises
        ------
        ValueError
            When its size is not that of the file, or there are more rows or sections than it takes.
        UserError
            When a value does not fit in the file's data type.
        """
        array = np.asarray(block)
        z, y, x = self._shape
        count, rows = array.shape[:2] if array.ndim == 3 else (0, 0)
        fits = count == self._depth if self._rows_written else 0 < count <= z - self._written
        if not fits or array.shape != (count, rows, x) or self._rows_written + rows > y:
            sections = self._depth if self._rows_written else f"up to {z - self._written}"
            raise ValueError(
                f"`block` must be ({sections} sections, up to {y - self._rows_written} rows, {x}); got {array.shape}"
            )
        row_bytes = x * self._dtype.itemsize
        for index, part in enumerate(array, self._written):
            converted = _convert(part, self._dtype)
            self._statistics.add(converted[None])
            self._file.seek(self._start + (index * y + self._rows_written) * row_bytes)
            self._file.write(converted.reshape(-1).view(np.uint8).data)
        self._depth = count
        self._rows_written += rows
        if self._rows_written == y:
            self._written += count
            self._rows_written = 0

    def finish(self) -> tuple[float, float, float, float]:
        """Return minimum, maximum, mean and deviation; raise ValueError when sections or rows are missing."""
        if self._rows_written:
            raise ValueError(f"the file takes {self._shape[1]} rows; got {self._rows_written}")
        if self._written != self._shape[0]:
            raise ValueError(f"the file takes {self._shape[0]} sections; got {self._written}")
        return self._statistics.values()


def _convert(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` in another type, contiguous, with every value kept as well as the type can."""
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "c" and dtype.kind != "c":
        raise UserError(f"complex data cannot be written as {dtype.name}; expected complex64")
    source = np.rint(array) if array.dtype.kind == "f" and dtype.kind in "iu" else array
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        inside = (source >= limits.min) & (source <= limits.max)
        if not inside.all():
            value = source.reshape(-1)[int(np.argmin(inside))]
            raise UserError(
                f"value {value} does not fit in {dtype.name}; expected {limits.min} to {limits.max}"
            )
        return np.ascontiguousarray(source.astype(dtype))
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(source.astype(dtype))
    if np.count_nonzero(np.isfinite(result)) != np.count_nonzero(np.isfinite(source)):
        largest = np.abs(source[np.isfinite(source)]).max()
        raise UserError(
            f"value {largest:g} does not fit in {dtype.name}; expected up to {np.finfo(dtype).max:g}"
        )
    return result


@contextmanager
def create_mrc(
    path: Path | str,
    shape: Sequence[int],
    *,
    voxel_size_angstrom: float,
    dtype: npt.DTypeLike | None = None,
    is_stack: bool = False,
    origin_angstrom: Sequence[float] = (0.0, 0.0, 0.0),
    label: str = "verglas",
    extended: bytes = b"",
    exttyp: str = "",
) -> Iterator[MrcWriter]:
    """Write a file section by section; it appears whole when the block ends, or not at all.

    Parameters
    ----------
    path
        The MRC file.
    shape
        `(z, y, x)`, `(n, y, x)`, or `(y, x)` for one image.
    voxel_size_angstrom
        Side of a voxel, Å.
    dtype
        float32 (also None), float16 (mode 12), int8, int16, uint16 or complex64. RELION 3.1 knows no float16
        and takes uint16 above 32767 for negative.
    is_stack
        Whether the sections are images; a single image always is one.
    origin_angstrom
        xyz for the header's `origin`, Å.
    label
        Text for the first label, up to 80 ASCII characters.
    extended, exttyp
        Bytes of an extended header and the four letters that name its kind.

    Raises
    ------
    UserError
        When a parameter cannot stand in a header.
    ValueError
        When the block wrote fewer sections than `shape` says.
    """
    is_stack = is_stack or len(shape) == 2
    sizes = _check_shape(shape)
    kind = np.dtype(np.float32 if dtype is None else dtype)
    header = make_header(sizes, kind, voxel_size_angstrom, origin_angstrom, is_stack=is_stack)
    header["nsymbt"] = len(extended)
    header["exttyp"] = encode_text(exttyp, 4, "exttyp")
    header["nlabl"] = 1
    header["label"][0] = encode_text(label, 80, "label").ljust(80)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(HEADER_BYTES) + extended)
        writer = MrcWriter(file, sizes, kind.newbyteorder("<"))
        yield writer
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = writer.finish()
        file.seek(0)
        file.write(header.tobytes())


def write_mrc(
    path: Path | str,
    data: npt.ArrayLike,
    *,
    voxel_size_angstrom: float,
    is_stack: bool = False,
    origin_angstrom: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: npt.DTypeLike | None = None,
    label: str = "verglas",
    extended: bytes = b"",
    exttyp: str = "",
) -> None:
    """Write `data`, `(y, x)`, `(n, y, x)` or `(z, y, x)`, as one file; see :func:`create_mrc`."""
    array = np.asarray(data)
    with create_mrc(
        path,
        array.shape,
        voxel_size_angstrom=voxel_size_angstrom,
        dtype=dtype,
        is_stack=is_stack,
        origin_angstrom=origin_angstrom,
        label=label,
        extended=extended,
        exttyp=exttyp,
    ) as writer:
        writer.write(array)


def _check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = (1, *shape) if len(shape) == 2 else tuple(shape)
    if len(sizes) != 3 or not all(1 <= size < 2**31 for size in sizes):
        raise UserError(f"`shape` of an MRC file must be two or three positive sizes; got {tuple(shape)}")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])
