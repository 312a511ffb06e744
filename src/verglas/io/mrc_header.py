"""The header of MRC files, both ways.

The format is MRC2014 (Cheng et al., *J. Struct. Biol.* 192, 146 (2015)) with float16 as mode 12 and with
IMOD's flag for signed bytes. What a header says is checked against the size of the file before anything is
allocated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from mrcfile.dtypes import HEADER_DTYPE

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists

Order = Literal["<", ">"]

HEADER_BYTES = 1024
"""Size of the fixed header; an extended header follows it."""

_DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 4: np.complex64, 6: np.uint16, 12: np.float16}
_MODES = {np.dtype(dtype): mode for mode, dtype in _DTYPES.items()}
_STAMPS: dict[bytes, Order] = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz"}
# IMOD's own words in the part of the header that MRC2014 leaves free: bytes 152-155 "IMOD", bit 0 of 156-159.
_IMOD_STAMP = slice(40, 44)
_IMOD_FLAGS = 44
_IMOD_SIGNED_BYTES = 1


@dataclass(frozen=True)
class MrcHeader:
    """What the header of an MRC file says.

    Parameters
    ----------
    shape
        `(n, y, x)` or `(z, y, x)`, always three sizes.
    mode
        Number of the data type in the file.
    dtype
        Data type with the byte order of the file.
    voxel_size_zyx_angstrom
        Sides of a voxel, Å; 0 where the header does not say.
    origin_xyz_angstrom
        The `origin` field, Å.
    is_volume
        Whether the sections are slices of a volume rather than images of a stack: a space group, and `mz` not
        that of a stack. Many programs write particles and movies as volumes, so take it as a hint.
    labels
        Text labels that are not blank.
    statistics
        Minimum, maximum, mean and root mean square deviation as the header states them. Not determined are a
        maximum below the minimum, a mean below both, a negative deviation.
    exttyp
        Kind of the extended header ("FEI1", "SERI", ...), "" where none is named.
    extended
        Bytes of the extended header when they were asked for.
    data_offset
        Byte in the file where the data begin.
    """

    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype[Any]
    voxel_size_zyx_angstrom: tuple[float, float, float]
    origin_xyz_angstrom: tuple[float, float, float]
    is_volume: bool
    labels: tuple[str, ...]
    statistics: tuple[float, float, float, float]
    exttyp: str
    extended: bytes
    data_offset: int

    @property
    def pixel_size_angstrom(self) -> float | None:
        """Side of a pixel along x, Å; None where the header does not say."""
        return self.voxel_size_zyx_angstrom[2] or None


def open_regular_file(path: Path | str, what: str) -> BufferedReader:
    """Open an existing, readable, regular and not empty file for reading.

    Raises
    ------
    MissingFileError
        When it does not exist.
    FileFormatError
        When it is a folder, a pipe or a device, is empty, or may not be read.
    """
    path = check_exists(path, what)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise FileFormatError(f"{what} {str(path)!r} is {kind}; expected a file")
    try:
        file = path.open("rb")
    except PermissionError:
        raise FileFormatError(f"{what} {str(path)!r} may not be read; expected read permission") from None
    if path.stat().st_size == 0:
        file.close()
        raise FileFormatError(f"{what} {str(path)!r} is empty")
    return file


def read_mrc_header(path: Path | str, *, extended: bool = False) -> MrcHeader:
    """Read the header and check it against the size of the file.

    Parameters
    ----------
    path
        The MRC file; either byte order, with or without the "MAP" word of newer files.
    extended
        Keep the bytes of the extended header too.

    Raises
    ------
    MissingFileError
        When the file does not exist.
    FileFormatError
        When it is not MRC, is compressed, has a mode other than 0, 1, 2, 4, 6, 12, sizes that are not
        positive, axes in another order than x, y, z, or holds fewer bytes than the header promises.
    """
    path = Path(path)
    with open_regular_file(path, "MRC file") as file:
        start = file.read(HEADER_BYTES)
        _check_start(path, start)
        raw, order = _interpret(path, start)
        header = _describe(raw, order, b"")
        _check_size(path, header)
        if not extended:
            return header
        return _describe(raw, order, file.read(header.data_offset - HEADER_BYTES))


def _check_start(path: Path, start: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise FileFormatError(f"MRC file {str(path)!r} is compressed with {name}; decompress it first")
    if len(start) < HEADER_BYTES:
        raise FileFormatError(
            f"MRC file {str(path)!r} holds {len(start)} bytes; "
            f"expected at least the {HEADER_BYTES} of a header"
        )


def _interpret(path: Path, start: bytes) -> tuple[Any, Order]:
    """Choose the byte order in which the header makes sense, the one of its machine stamp first."""
    stamped: Order = _STAMPS.get(start[212:214], "<")
    other: Order = ">" if stamped == "<" else "<"
    is_map = start[208:211] == b"MAP"
    for order in (stamped, other):
        raw = np.frombuffer(start, HEADER_DTYPE.newbyteorder(order))[0]
        axes = [int(raw[name]) for name in ("mapc", "mapr", "maps")]
        if not (0 <= raw["mode"] < 256 and all(0 <= axis <= 3 for axis in axes)):
            continue
        sizes = tuple(int(raw[name]) for name in ("nz", "ny", "nx"))
        if min(sizes) < 1:
            raise FileFormatError(
                f"MRC file {str(path)!r} has sizes (z, y, x) = {sizes}; expected positive sizes"
            )
        if axes not in ([1, 2, 3], [0, 0, 0]):
            raise FileFormatError(
                f"MRC file {str(path)!r} stores its axes in the order {axes} (1 is x); expected [1, 2, 3]"
            )
        if int(raw["mode"]) not in _DTYPES:
            known = ", ".join(map(str, _DTYPES))
            raise FileFormatError(
                f"MRC file {str(path)!r} has mode {raw['mode']}; expected one of {known}"
                if is_map
                else f"file {str(path)!r} is not an MRC file"
            )
        return raw, order
    raise FileFormatError(f"file {str(path)!r} is not an MRC file")


def _describe(raw: Any, order: Order, extended: bytes) -> MrcHeader:
    shape = (int(raw["nz"]), int(raw["ny"]), int(raw["nx"]))
    mode = int(raw["mode"])
    free = bytes(raw["extra2"])
    has_imod_word = free[_IMOD_STAMP] in {b"IMOD", b"DOMI"}
    flags = int(np.frombuffer(free, order + "i4", 1, _IMOD_FLAGS)[0])
    dtype = np.dtype(_DTYPES[mode])
    if mode == 0 and has_imod_word and not flags & _IMOD_SIGNED_BYTES:
        dtype = np.dtype(np.uint8)
    group, sections = int(raw["ispg"]), int(raw["mz"])
    statistics = (float(raw["dmin"]), float(raw["dmax"]), float(raw["dmean"]), float(raw["rms"]))
    return MrcHeader(
        shape=shape,
        mode=mode,
        dtype=dtype.newbyteorder(order),
        voxel_size_zyx_angstrom=(_side(raw, "z"), _side(raw, "y"), _side(raw, "x")),
        origin_xyz_angstrom=(float(raw["origin"]["x"]), float(raw["origin"]["y"]), float(raw["origin"]["z"])),
        is_volume=group > 0 and (sections > 1 or shape[0] == 1),
        labels=tuple(
            text for label in raw["label"][: max(0, raw["nlabl"])] if (text := _decode(bytes(label)))
        ),
        statistics=statistics,
        exttyp=_decode(bytes(raw["exttyp"])),
        extended=extended,
        data_offset=HEADER_BYTES + int(raw["nsymbt"]),
    )


def _side(raw: Any, axis: str) -> float:
    """Side of a voxel; 0 where the header holds nothing that could be one."""
    cell, samples = float(raw["cella"][axis]), int(raw["m" + axis])
    side = cell / samples if samples > 0 else 0.0
    return side if math.isfinite(side) and side > 0 else 0.0


def _decode(text: bytes) -> str:
    return text.split(b"\0")[0].decode("latin-1").strip()


def _check_size(path: Path, header: MrcHeader) -> None:
    found = path.stat().st_size
    if header.data_offset < HEADER_BYTES:
        raise FileFormatError(
            f"MRC file {str(path)!r} has an extended header of {header.data_offset - HEADER_BYTES} bytes; "
            "expected none or more"
        )
    promised = header.data_offset + math.prod(header.shape) * header.dtype.itemsize
    if promised > found:
        raise FileFormatError(
            f"MRC file {str(path)!r} is damaged or cut short: its header (z, y, x = {header.shape}, mode "
            f"{header.mode}) promises {promised} bytes, but the file holds {found}"
        )


def make_header(
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    voxel_size_angstrom: float,
    origin_angstrom: Sequence[float],
    *,
    is_stack: bool,
) -> npt.NDArray[Any]:
    """Header of a new file, in little-endian order and without statistics, as a record of `HEADER_DTYPE`.

    Raises
    ------
    UserError
        When the data type has no mode, or a number cannot stand in a header.
    """
    if dtype not in _MODES:
        known = ", ".join(known.name for known in _MODES)
        raise UserError(f"`dtype` of an MRC file must be one of {known}; got {dtype.name}")
    if not (math.isfinite(voxel_size_angstrom) and voxel_size_angstrom > 0):
        raise UserError(f"`voxel_size_angstrom` must be positive; got {voxel_size_angstrom}")
    if len(origin_angstrom) != 3 or not np.isfinite(origin_angstrom).all():
        raise UserError(f"`origin_angstrom` must be three finite numbers xyz; got {tuple(origin_angstrom)}")
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nz"], header["ny"], header["nx"] = shape
    header["mode"] = _MODES[dtype]
    cell = (1 if is_stack else shape[0], shape[1], shape[2])
    header["mz"], header["my"], header["mx"] = cell
    header["cella"] = tuple(voxel_size_angstrom * size for size in reversed(cell))
    header["cellb"] = (90.0, 90.0, 90.0)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = 0 if is_stack else 1
    header["nversion"] = 20141
    header["origin"] = tuple(origin_angstrom)
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    if dtype == np.int8:
        # Only this word tells IMOD for certain that the bytes are signed.
        free = bytearray(84)
        free[_IMOD_STAMP] = b"IMOD"
        free[_IMOD_FLAGS] = _IMOD_SIGNED_BYTES
        header["extra2"] = np.void(bytes(free))
    return header


def encode_text(text: str, length: int, what: str) -> bytes:
    """Return `text` as up to `length` bytes of ASCII, or raise UserError."""
    if not text.isascii() or len(text) > length:
        raise UserError(f"`{what}` must be up to {length} ASCII characters; got {text!r}")
    return text.encode("ascii")
