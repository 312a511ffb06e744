"""Fingerprints of input files and of records: equal when the content is equal, wherever it lies."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from verglas.files import check_exists

WHOLE_BYTES = 1 << 20
END_BYTES = 1 << 16


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the content of a file.

    Parameters
    ----------
    path
        Absolute path.
    size
        Bytes.
    mtime_ns
        Time of the last change, ns.
    digest
        BLAKE2b of the whole file up to 1 MiB, else of its first and last 64 KiB.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str

    def is_same(self, other: "Fingerprint") -> bool:
        """Whether both stand for the same content, wherever the files lie."""
        same = (Path(self.path).name, self.size, self.digest) == (
            Path(other.path).name,
            other.size,
            other.digest,
        )
        # The digest of a large file says nothing of its middle, so there its time counts too.
        return same and (self.size <= WHOLE_BYTES or self.mtime_ns == other.mtime_ns)


def fingerprint_file(path: Path | str, known: Fingerprint | None = None) -> Fingerprint:
    """Take the fingerprint of a file.

    Parameters
    ----------
    path
        The file.
    known
        An earlier fingerprint; it is taken as it is when path, size and time still agree.

    Raises
    ------
    MissingFileError
        When the file does not exist.
    """
    path = check_exists(path, "input").absolute()
    status = path.stat()
    if known and (known.path, known.size, known.mtime_ns) == (str(path), status.st_size, status.st_mtime_ns):
        return known
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if status.st_size <= WHOLE_BYTES:
            hasher.update(file.read())
        else:
            hasher.update(file.read(END_BYTES))
            file.seek(-END_BYTES, 2)
            hasher.update(file.read(END_BYTES))
    return Fingerprint(str(path), status.st_size, status.st_mtime_ns, hasher.hexdigest())


def digest_record(record: Any) -> str:
    """BLAKE2b of a record of the domain: dataclasses, containers, arrays, tables and plain values.

    A path counts by its name alone, so that a project may move; its content is the business of
    :func:`fingerprint_file`.

    Raises
    ------
    TypeError
        When the record holds something that has no content to speak of.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for piece in _pieces(record):
        hasher.update(len(piece).to_bytes(8, "little") + piece)
    return hasher.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if is_dataclass(value) and not isinstance(value, type):
        yield f"dataclass {type(value).__name__}".encode()
        for item in fields(value):
            yield item.name.encode()
            yield from _pieces(getattr(value, item.name))
    elif isinstance(value, Path):
        yield f"path {value.name}".encode()
    elif isinstance(value, Enum):
        yield from _pieces(value.value)
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, np.generic):
        yield from _pieces(value.item())
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, Sequence):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, Set):
        yield from _pieces(sorted(digest_record(item) for item in value))
    elif hasattr(value, "to_csv"):
        yield f"table {value.to_csv()}".encode()
    elif hasattr(value, "model_dump"):
        yield from _pieces(value.model_dump())
    else:
        raise TypeError(f"a record cannot hold a {type(value).__name__}: it has no fingerprint")
