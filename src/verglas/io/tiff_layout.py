"""Where the frames of a TIFF or EER file lie, checked against the file before anything is decoded.

EER is BigTIFF with a compression of its own, one page a raw frame (Guo et al., *IUCrJ* 7, 860 (2020)).
"""

import math
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from verglas.errors import FileFormatError
from verglas.units import ANGSTROM_PER_METRE

NO_COMPRESSION, LZW = 1, 5
_DEFLATE = {8, 32946}
_EER = {65000: (8, 2, 2), 65001: (7, 2, 2)}
_EER_IN_TAGS = 65002
_EER_TAGS = (65007, 65008, 65009)
_MAGIC = {b"II*\0": "<I", b"MM\0*": ">I", b"II+\0": "<Q", b"MM\0+": ">Q"}
# LZW with codes of 12 bits, the densest coding that is read here, makes less than 1500 bytes of one.
_MAXIMUM_RATIO = 2000
_ANGSTROM_PER_UNIT = {2: 2.54e8, 3: 1.0e8}


@dataclass(frozen=True)
class TiffFrame:
    """One page: its geometry and where its data lie.

    Parameters
    ----------
    shape
        `(y, x)` as stored.
    dtype
        Data type with the byte order of the file; bool for EER.
    compression
        Number of the compression.
    is_differenced
        Whether each row holds differences between neighbours (TIFF's predictor 2).
    rows_per_strip
        Rows that each strip but the last holds.
    strips
        Offset and size in bytes of each strip.
    eer_bits
        Bits of a run and of the sub-pixel in x and y, None where the page is not EER.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    compression: int
    is_differenced: bool
    rows_per_strip: int
    strips: tuple[tuple[int, int], ...]
    eer_bits: tuple[int, int, int] | None


@dataclass(frozen=True)
class TiffLayout:
    """The frames of a file and the side of their pixels, Å, where the file tells it."""

    frames: tuple[TiffFrame, ...]
    pixel_size_angstrom: float | None


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts with these four bytes is TIFF, BigTIFF or EER."""
    return start in _MAGIC


def read_layout(path: Path, file: BufferedReader) -> TiffLayout:
    """Read the directories of an open TIFF or EER file.

    In an EER file only the raw frames count, not the sum that some cameras put before them.

    Raises
    ------
    FileFormatError
        When the chain of directories is broken, a frame lies outside the file, claims more pixels than its
        bytes can hold, or is of a kind that movies are not.
    """
    size = path.stat().st_size
    _check_chain(path, file, size)
    file.seek(0)
    try:
        with tifffile.TiffFile(file, is_ome=False) as tiff:
            pages: list[Any] = [page.keyframe for page in tiff.pages]
            eer = [page for page in pages if int(page.compression) in {*_EER, _EER_IN_TAGS}]
            data = [(page.dataoffsets, page.databytecounts) for page in tiff.pages]
            pixel_size = _eer_pixel_size(tiff) if eer else _pixel_size(pages[0])
            frames = tuple(
                _describe(path, number, page, tuple(zip(*strips, strict=True)), tiff.byteorder)
                for number, (page, strips) in enumerate(zip(pages, data, strict=True), 1)
                if not eer or int(page.compression) != NO_COMPRESSION
            )
    except FileFormatError:
        raise
    except Exception as error:  # tifffile raises whatever its parsing meets
        raise FileFormatError(f"movie {str(path)!r} cannot be read as TIFF ({error})") from error
    for number, frame in enumerate(frames, 1):
        _check_frame(path, number, frame, size)
    return TiffLayout(frames, pixel_size)


def _check_chain(path: Path, file: BufferedReader, size: int) -> None:
    """Follow the directories to their end; tifffile passes over a chain that breaks off."""
    file.seek(0)
    word = _MAGIC[file.read(4)]
    is_big = word[1] == "Q"
    entry_bytes, count_word = (20, word) if is_big else (12, word[0] + "H")
    link = 8 if is_big else 4
    seen: set[int] = set()
    while offset := _read_word(path, file, link, word, size):
        if offset in seen:
            raise FileFormatError(f"movie {str(path)!r} is damaged: its directories form a circle")
        seen.add(offset)
        entries = _read_word(path, file, offset, count_word, size)
        link = offset + struct.calcsize(count_word) + entries * entry_bytes
    if not seen:
        raise FileFormatError(f"movie {str(path)!r} holds no frames")


def _read_word(path: Path, file: BufferedReader, offset: int, word: str, size: int) -> int:
    length = struct.calcsize(word)
    if offset + length > size:
        raise FileFormatError(
            f"movie {str(path)!r} is damaged or cut short: it points to byte {offset}, "
            f"but the file holds {size} bytes"
        )
    file.seek(offset)
    return int(struct.unpack(word, file.read(length))[0])


def _describe(
    path: Path, number: int, page: Any, strips: tuple[tuple[int, int], ...], byteorder: Literal["<", ">"]
) -> TiffFrame:
    what = f"frame {number} of movie {str(path)!r}"
    compression = int(page.compression)
    eer_bits = _EER.get(compression)
    if compression == _EER_IN_TAGS:
        run, x, y = (
            int(page.tags.valueof(tag, default)) for tag, default in zip(_EER_TAGS, (7, 2, 2), strict=True)
        )
        eer_bits = (run, x, y)
    elif eer_bits is None and compression not in {NO_COMPRESSION, LZW, *_DEFLATE}:
        raise FileFormatError(f"{what} has TIFF compression {compression}; expected none, LZW or deflate")
    if page.is_tiled:
        raise FileFormatError(f"{what} is stored in tiles; expected strips")
    if len(page.shape) != 2 or min(page.shape) < 1:
        raise FileFormatError(f"{what} has the shape {page.shape}; expected (y, x) with one value a pixel")
    dtype = np.dtype(np.bool_ if eer_bits else page.dtype).newbyteorder(byteorder)
    if not eer_bits and (dtype.kind not in "iuf" or page.bitspersample != dtype.itemsize * 8):
        raise FileFormatError(
            f"{what} has {page.bitspersample} bits a pixel; expected integers or floats of 8, 16 or 32"
        )
    if page.predictor not in {1, 2} or page.fillorder != 1:
        raise FileFormatError(
            f"{what} has predictor {page.predictor} or swapped bits; expected predictor 1 or 2"
        )
    height = int(page.shape[0])
    return TiffFrame(
        shape=(height, int(page.shape[1])),
        dtype=dtype,
        compression=compression,
        is_differenced=page.predictor == 2,
        rows_per_strip=max(1, min(int(page.rowsperstrip), height)),
        strips=tuple((int(offset), int(count)) for offset, count in strips),
        eer_bits=eer_bits,
    )


def _check_frame(path: Path, number: int, frame: TiffFrame, size: int) -> None:
    what = f"frame {number} of movie {str(path)!r}"
    for offset, count in frame.strips:
        if min(offset, count) < 0:
            raise FileFormatError(
                f"{what} has {count} bytes of data at byte {offset}; expected no less than 0"
            )
        if offset + count > size:
            raise FileFormatError(
                f"{what} is cut short: its data end at byte {offset + count}, but the file holds {size} bytes"
            )
    if frame.eer_bits is not None:
        return
    expected = math.ceil(frame.shape[0] / frame.rows_per_strip)
    if len(frame.strips) != expected:
        raise FileFormatError(f"{what} has {len(frame.strips)} strips; expected {expected}")
    found = sum(count for _, count in frame.strips)
    promised = math.prod(frame.shape) * frame.dtype.itemsize
    ratio = 1 if frame.compression == NO_COMPRESSION else _MAXIMUM_RATIO
    if promised > found * ratio:
        raise FileFormatError(
            f"{what} claims (y, x) = {frame.shape}, {promised} bytes, but its {found} bytes in the file "
            "cannot hold that"
        )


def _pixel_size(page: Any) -> float | None:
    """SerialEM's way: pixels per centimetre or inch; scanners' and viewers' defaults are not pixel sizes."""
    numerator, denominator = page.tags.valueof(282, (0, 1))
    unit = _ANGSTROM_PER_UNIT.get(int(page.tags.valueof(296, 2)))
    if unit is None or not numerator or not denominator:
        return None
    return _plausible(unit * denominator / numerator)


def _eer_pixel_size(tiff: tifffile.TiffFile) -> float | None:
    metadata = tiff.eer_metadata or {}
    value = metadata.get("sensorPixelSize.width")
    return _plausible(value * ANGSTROM_PER_METRE) if isinstance(value, float) else None


def _plausible(side_angstrom: float) -> float | None:
    return side_angstrom if 0.01 <= side_angstrom <= 1000.0 else None
