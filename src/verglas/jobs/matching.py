"""Whether a job folder holds the result of the same work."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from verglas.errors import JobMismatchError
from verglas.jobs.fingerprint import Fingerprint, fingerprint_file
from verglas.jobs.folder import JobFolder
from verglas.jobs.records import ItemRecord, JobRecord

_WAY_OUT = "give another `--out` or `--overwrite`"


def check_same_job(folder: JobFolder, old: JobRecord, new: JobRecord) -> None:
    """Check that `new` continues what `old` began.

    Raises
    ------
    JobMismatchError
        When step, major version or a parameter differs; the message names the first that does.
    """
    where = f"job folder {str(folder.path)!r} holds the result of"
    if old.step != new.step:
        raise JobMismatchError(f"{where} step {old.step!r}, not {new.step!r}; {_WAY_OUT}")
    if old.verglas.split(".")[0] != new.verglas.split(".")[0]:
        raise JobMismatchError(f"{where} verglas {old.verglas}, and this is {new.verglas}; {_WAY_OUT}")
    for name in dict.fromkeys([*new.params, *old.params]):
        before, after = old.params.get(name), new.params.get(name)
        if before != after and not _is_same_file(before, after, old.inputs, new.inputs):
            raise JobMismatchError(f"{where} {_tell_change(name, before, after)}; {_WAY_OUT}")


def check_same_items(folder: JobFolder, done: Iterable[ItemRecord], listed: Iterable[str]) -> None:
    """Check that every finished item is still one of the `listed`.

    Raises
    ------
    JobMismatchError
        When one is not: a table of the others would leave its files behind.
    """
    listed = set(listed)
    for item in done:
        if item.name not in listed:
            raise JobMismatchError(
                f"job folder {str(folder.path)!r} holds item {item.name!r}, "
                f"which the inputs no longer list; {_WAY_OUT}"
            )


def check_same_item(folder: JobFolder, item: ItemRecord, record: str, inputs: Iterable[Path]) -> None:
    """Check that a finished `item` was made from this record and these inputs.

    An input that no longer exists is not held against it: movies are often deleted once they are processed.

    Raises
    ------
    JobMismatchError
        When it was made from others; the message names the first that differs.
    """
    where = f"job folder {str(folder.path)!r} holds item {item.name!r} made from"
    inputs = list(inputs)
    if len(item.inputs) != len(inputs):
        raise JobMismatchError(
            f"{where} {len(item.inputs)} files, and the inputs list {len(inputs)} now; {_WAY_OUT}"
        )
    for old, path in zip(item.inputs, inputs, strict=True):
        if path.exists() and not old.is_same(new := fingerprint_file(path, known=old)):
            raise JobMismatchError(
                f"{where} {old.path!r} of {_describe(old)}, "
                f"and now it is {new.path!r} of {_describe(new)}; {_WAY_OUT}"
            )
    if item.record != record:
        raise JobMismatchError(f"{where} other metadata than the inputs give for it now; {_WAY_OUT}")


def has_outputs(folder: JobFolder, item: ItemRecord) -> bool:
    """Whether all files that a finished `item` wrote are there in their whole length."""
    return all(
        (folder.path / name).is_file() and (folder.path / name).stat().st_size == size
        for name, size in item.outputs.items()
    )


def _is_same_file(before: Any, after: Any, old: Iterable[Fingerprint], new: Iterable[Fingerprint]) -> bool:
    """Whether two paths name the same content: the project was moved."""
    old_prints = {item.path: item for item in old}
    new_prints = {item.path: item for item in new}
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    return before in old_prints and after in new_prints and old_prints[before].is_same(new_prints[after])


def _tell_change(name: str, before: Any, after: Any) -> str:
    if before is None:
        return f"no `{name}`, and it is {after!r} now"
    if after is None:
        return f"`{name}` = {before!r}, which is not given now"
    return f"`{name}` = {before!r}, and it is {after!r} now"


def _describe(fingerprint: Fingerprint) -> str:
    changed = datetime.fromtimestamp(fingerprint.mtime_ns / 1e9).astimezone().isoformat(timespec="seconds")
    return f"{fingerprint.size} bytes (changed {changed}, BLAKE2b {fingerprint.digest[:8]})"
