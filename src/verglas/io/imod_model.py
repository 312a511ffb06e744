"""IMOD's binary models (`.mod`, `.fid`, `.erase`): contours of points, with everything else carried along.

The file is a 4-byte magic number, a version, a header and then chunks, all big-endian
(https://bio3d.colorado.edu/imod/doc/binspec.html). Chunks that have no field here are kept as bytes, so that
a model is written back as it was read. Counts are held against the bytes that are there before anything is
allocated, which is why files are not given to `imodmodel`.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.files import atomic_path, check_exists

PointArray = npt.NDArray[np.float32]
Chunk = tuple[bytes, bytes]
"""Four letters and the bytes that follow the chunk's size."""

_HEADER_BYTES = 232
_OBJECT_BYTES = 176
_CONTOUR_CHUNKS = frozenset({b"LABL", b"SIZE", b"COST"})
_MODEL_CHUNKS = frozenset({b"VIEW", b"MINX", b"MOST", b"MCLP", b"SLAN", b"OGRP", b"IMNX"})
# Offsets of the fields that are read or changed here.
_SIZE_AT, _OBJECTS_AT, _SCALE_AT, _PIXEL_AT, _UNITS_AT = 128, 140, 176, 208, 212
_CONTOURS_AT, _OBJECT_FLAGS_AT, _COLOUR_AT, _RADIUS_AT, _MESHES_AT = 128, 132, 144, 156, 168
_SCATTERED = 1 << 9
_NANOMETRE = -9


@dataclass(frozen=True, eq=False)
class ImodContour:
    """A contour.

    Parameters
    ----------
    points
        `(n, 3)` xyz in pixels of the image the model was drawn on. Pixel i has its centre at i + 0.5 along x
        and y; along z section i is i.
    flags, time, surface
        As in the file.
    chunks
        What belongs to this contour besides: labels, sizes of points, values.
    """

    points: PointArray
    flags: int = 0
    time: int = 0
    surface: int = 0
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, eq=False)
class ImodObject:
    """An object: contours that are drawn alike.

    Parameters
    ----------
    header
        The 176 bytes of its header; the counts in it are set anew on writing.
    contours
        Its contours.
    meshes
        Its meshes, each as header (16 bytes) with vertices and indices.
    chunks
        Everything else of this object.
    """

    header: bytes
    contours: tuple[ImodContour, ...]
    meshes: tuple[bytes, ...] = ()
    chunks: tuple[Chunk, ...] = ()

    @property
    def name(self) -> str:
        """Name of the object."""
        return self.header[:64].split(b"\0")[0].decode("latin-1")


@dataclass(frozen=True, eq=False)
class ImodModel:
    """A model.

    Parameters
    ----------
    header
        The 232 bytes of its header; the number of objects in it is set anew on writing.
    objects
        Its objects.
    version
        The file's version, `V1.2` for all models of this century.
    chunks
        Views, transforms and what else belongs to the whole model.
    """

    header: bytes
    objects: tuple[ImodObject, ...]
    version: str = "V1.2"
    chunks: tuple[Chunk, ...] = ()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.header[:128].split(b"\0")[0].decode("latin-1")

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Size xyz of the image it was drawn on, pixels."""
        x, y, z = struct.unpack_from(">3i", self.header, _SIZE_AT)
        return int(x), int(y), int(z)


def list_points(model: ImodModel) -> tuple[PointArray, npt.NDArray[np.int64]]:
    """All points of a model, in the file's order.

    Returns
    -------
    points
        `(n, 3)` xyz, as in `ImodContour`.
    members
        `(n, 2)` index of the object and, within it, of the contour, from 0.
    """
    points: list[PointArray] = [np.empty((0, 3), np.float32)]
    members: list[npt.NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for i, item in enumerate(model.objects):
        for j, contour in enumerate(item.contours):
            points.append(contour.points)
            members.append(np.full((len(contour.points), 2), (i, j)))
    return np.concatenate(points), np.concatenate(members)


def make_imod_model(
    contours: Iterable[npt.ArrayLike],
    image_size: tuple[int, int, int],
    *,
    pixel_size_angstrom: float | None = None,
    radius_px: int = 3,
) -> ImodModel:
    """Make a model of one object of scattered points, as IMOD's `point2model -scat` does.

    Parameters
    ----------
    contours
        Each `(n, 3)` xyz, as in `ImodContour`.
    image_size
        Size xyz of the image, pixels.
    pixel_size_angstrom
        Side of a pixel, for the header.
    radius_px
        Radius of the spheres that 3dmod draws.
    """
    items = []
    for index, contour in enumerate(contours):
        points = np.asarray(contour, dtype=np.float32).reshape(-1, 3)
        if not np.isfinite(points).all():
            raise UserError(f"contour {index + 1} of a model has a point that is not finite")
        items.append(ImodContour(points))
    head = bytearray(_OBJECT_BYTES)
    struct.pack_into(">I", head, _OBJECT_FLAGS_AT, _SCATTERED)
    struct.pack_into(">3f", head, _COLOUR_AT, 0.0, 1.0, 0.0)
    struct.pack_into(">i8B", head, _RADIUS_AT, radius_px, 1, 3, 1, 1, 0, 0, 0, 0)
    header = bytearray(_HEADER_BYTES)
    struct.pack_into(">3i", header, _SIZE_AT, *image_size)
    struct.pack_into(">I4i", header, _OBJECTS_AT + 4, 1 << 15, 1, 2, 0, 255)
    struct.pack_into(">3f", header, _SCALE_AT, 1.0, 1.0, 1.0)
    pixel, units = (1.0, 0) if pixel_size_angstrom is None else (pixel_size_angstrom / 10.0, _NANOMETRE)
    struct.pack_into(">fi", header, _PIXEL_AT, pixel, units)
    return ImodModel(bytes(header), (ImodObject(bytes(head), tuple(items)),))


def read_imod_model(path: Path | str) -> ImodModel:
    """Read a binary model.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is no binary IMOD model, is cut short, or counts more points than it holds.
    """
    return _Reader(path).read_model()


def write_imod_model(path: Path | str, model: ImodModel) -> None:
    """Write a binary model."""
    parts: list[bytes] = [
        b"IMOD",
        model.version.encode("ascii"),
        _patched(model.header, _OBJECTS_AT, len(model.objects)),
    ]
    for item in model.objects:
        header = _patched(item.header, _CONTOURS_AT, len(item.contours))
        parts += [b"OBJT", _patched(header, _MESHES_AT, len(item.meshes))]
        for contour in item.contours:
            head = struct.pack(">iIii", len(contour.points), contour.flags, contour.time, contour.surface)
            parts += [b"CONT", head, contour.points.astype(">f4").tobytes(), *_pack(contour.chunks)]
        for mesh in item.meshes:
            parts += [b"MESH", mesh]
        parts += _pack(item.chunks)
    parts += [*_pack(model.chunks), b"IEOF"]
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(parts))


def _patched(header: bytes, offset: int, count: int) -> bytes:
    changed = bytearray(header)
    struct.pack_into(">i", changed, offset, count)
    return bytes(changed)


def _pack(chunks: tuple[Chunk, ...]) -> list[bytes]:
    return [part for tag, data in chunks for part in (tag, struct.pack(">i", len(data)), data)]


class _Reader:
    """Walks through the bytes of one file and never past their end."""

    def __init__(self, path: Path | str) -> None:
        self.where = f"IMOD model {str(path)!r}"
        self.data = check_exists(path, "IMOD model").read_bytes()
        self.position = 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.position:
            raise FileFormatError(
                f"{self.where} asks for {count} bytes at byte {self.position}, but has "
                f"{len(self.data) - self.position} left; it is cut short or damaged"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def read_model(self) -> ImodModel:
        if self.data[:4] != b"IMOD":
            raise FileFormatError(f"{self.where} does not begin with IMOD; expected a binary IMOD model")
        self.take(4)
        version = self.take(4).decode("latin-1")
        header = self.take(_HEADER_BYTES)
        objects: list[ImodObject] = []
        tag = self.take(4)
        while tag == b"OBJT":
            item, tag = self.read_object()
            objects.append(item)
        chunks: list[Chunk] = []
        while tag != b"IEOF":
            if tag in {b"OBJT", b"CONT", b"MESH"}:
                raise FileFormatError(
                    f"{self.where} has a chunk {tag.decode()} after those of the whole model"
                )
            chunks.append((tag, self.read_chunk()))
            tag = self.take(4)
        return ImodModel(header, tuple(objects), version, tuple(chunks))

    def read_object(self) -> tuple[ImodObject, bytes]:
        header = self.take(_OBJECT_BYTES)
        contours: list[ImodContour] = []
        meshes: list[bytes] = []
        chunks: list[Chunk] = []
        tag = self.take(4)
        while tag == b"CONT":
            contour, tag = self.read_contour()
            contours.append(contour)
        while tag == b"MESH":
            meshes.append(self.read_mesh())
            tag = self.take(4)
        while tag not in {b"OBJT", b"IEOF"} and tag not in _MODEL_CHUNKS:
            if tag in {b"CONT", b"MESH"}:
                raise FileFormatError(
                    f"{self.where} has a chunk {tag.decode()} after other chunks of its object"
                )
            chunks.append((tag, self.read_chunk()))
            tag = self.take(4)
        return ImodObject(header, tuple(contours), tuple(meshes), tuple(chunks)), tag

    def read_contour(self) -> tuple[ImodContour, bytes]:
        count, flags, time, surface = struct.unpack(">iIii", self.take(16))
        points = np.frombuffer(self.take(12 * count), dtype=">f4").astype(np.float32).reshape(-1, 3)
        if not np.isfinite(points).all():
            raise FileFormatError(f"{self.where} has a point that is not finite before byte {self.position}")
        chunks: list[Chunk] = []
        tag = self.take(4)
        while tag in _CONTOUR_CHUNKS:
            chunks.append((tag, self.read_chunk()))
            tag = self.take(4)
        return ImodContour(points, flags, time, surface, tuple(chunks)), tag

    def read_mesh(self) -> bytes:
        header = self.take(16)
        vertices, indices = struct.unpack_from(">ii", header)
        if min(vertices, indices) < 0:
            raise FileFormatError(f"{self.where} has a mesh of {vertices} vertices and {indices} indices")
        return header + self.take(12 * vertices + 4 * indices)

    def read_chunk(self) -> bytes:
        return self.take(struct.unpack(">i", self.take(4))[0])
