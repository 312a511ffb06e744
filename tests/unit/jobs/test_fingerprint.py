"""Fingerprints follow content: equal for equal content, different for any change."""

import hashlib
import os
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verglas.errors import MissingFileError
from verglas.jobs import digest_record, fingerprint_file
from verglas.jobs.fingerprint import END_BYTES, WHOLE_BYTES


def test_small_file_is_read_whole(tmp_path):
    path = tmp_path / "a.star"
    path.write_bytes(b"data_\n")
    print_ = fingerprint_file(path)
    assert print_.digest == hashlib.blake2b(b"data_\n", digest_size=16).hexdigest()
    assert print_.size == 6
    os.utime(path, (5, 5))
    assert print_.is_same(fingerprint_file(path))
    path.write_bytes(b"data-\n")
    assert not print_.is_same(fingerprint_file(path))


def test_large_file_is_known_by_its_ends_and_its_time(tmp_path):
    path = tmp_path / "a.mrc"
    data = bytearray(np.random.default_rng(0).bytes(WHOLE_BYTES + 3 * END_BYTES))
    path.write_bytes(data)
    before = fingerprint_file(path)
    assert before.digest == hashlib.blake2b(data[:END_BYTES] + data[-END_BYTES:], digest_size=16).hexdigest()
    # The middle is not read, so the time must speak for it.
    data[WHOLE_BYTES // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.mtime_ns + 1, before.mtime_ns + 1))
    after = fingerprint_file(path)
    assert after.digest == before.digest
    assert not before.is_same(after)


def test_moved_file_is_the_same(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "a.mrc"
    path.write_bytes(b"pixels")
    before = fingerprint_file(path)
    moved = path.rename(tmp_path / "there/a.mrc")
    assert before.is_same(fingerprint_file(moved))
    assert not before.is_same(fingerprint_file(moved.rename(tmp_path / "b.mrc")))


def test_known_fingerprint_spares_the_reading(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(b"pixels")
    known = replace(fingerprint_file(path), digest="remembered")
    assert fingerprint_file(path, known).digest == "remembered"
    os.utime(path, ns=(1, 1))
    assert fingerprint_file(path, known).digest != "remembered"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"input '.*no\.mrc' does not exist"):
        fingerprint_file(tmp_path / "no.mrc")


class Kind(Enum):
    STACK = "stack"


@dataclass(frozen=True)
class Record:
    path: Path = Path("/here/a.mrc")
    angles: np.ndarray = None
    table: pd.DataFrame = None
    kind: Kind = Kind.STACK
    extra: object = ()


BASE = Record(angles=np.arange(3.0), table=pd.DataFrame({"a": [1, 2]}), extra={"x": (1, None, {"a", "b"})})


@pytest.mark.parametrize(
    "change",
    [
        {"path": Path("/here/b.mrc")},
        {"angles": np.array([0.0, 1.0, 2.0 + 1e-15])},
        {"angles": np.arange(3)},
        {"angles": np.arange(3.0)[None]},
        {"table": pd.DataFrame({"a": [1, 3]})},
        {"table": pd.DataFrame({"b": [1, 2]})},
        {"extra": {"x": (1, None, {"a", "c"})}},
        {"extra": {"x": (True, None, {"a", "b"})}},
        {"extra": {"x": (1, (None, {"a", "b"}))}},
    ],
)
def test_any_change_of_a_record_shows(change):
    assert digest_record(replace(BASE, **change)) != digest_record(BASE)


def test_equal_records_agree_wherever_their_files_lie():
    twin = Record(
        path=Path("/there/a.mrc"),
        angles=np.arange(6.0)[::2] / 2,
        table=pd.DataFrame({"a": [1, 2]}),
        extra={"x": (1, None, {"b", "a"})},
    )
    assert digest_record(twin) == digest_record(BASE)


def test_what_has_no_content_is_refused():
    with pytest.raises(TypeError, match="cannot hold a function"):
        digest_record({"x": lambda: 1})
