"""What `job.json` and `items/<name>.json` hold."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from verglas.errors import FileFormatError
from verglas.files import write_text
from verglas.jobs.fingerprint import Fingerprint

R = TypeVar("R")


@dataclass(frozen=True)
class RunRecord:
    """One start of a job: where, when, how, and how it ended.

    Parameters
    ----------
    started, finished
        ISO 8601 with offset; `finished` is empty while it runs and when it was killed.
    host, process, command
        Who ran it.
    python, torch, platform
        What it ran on.
    device, workers, threads, shard
        How it ran; `shard` is `i/n` or empty.
    done, skipped, failed
        How many items.
    seconds
        Wall time.
    """

    started: str
    host: str
    process: int
    command: str
    python: str
    torch: str
    platform: str
    device: str
    workers: int
    threads: int
    shard: str = ""
    finished: str = ""
    done: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class JobRecord:
    """The state and provenance of a job, as `job.json` holds it.

    Parameters
    ----------
    verglas
        Version that made it.
    step
        Name of the step.
    state
        `running`, `done`, or `failed` when some item or the summary failed. A killed job stays `running`.
    params
        Every parameter; paths are absolute.
    changed
        Names of those that differ from their default.
    items
        Names of all items, sorted.
    inputs
        Fingerprints of the files that the parameters name and, once finished, of those of all items.
    runs
        Every start, oldest first.
    """

    verglas: str
    step: str
    state: str
    params: dict[str, Any]
    changed: tuple[str, ...]
    items: tuple[str, ...]
    inputs: tuple[Fingerprint, ...] = ()
    runs: tuple[RunRecord, ...] = ()


@dataclass(frozen=True)
class ItemRecord:
    """The state of one item, as `items/<name>.json` holds it.

    Parameters
    ----------
    name
        Of the item.
    state
        `done` or `failed`.
    record
        Digest of what the step knew of the item.
    inputs
        Fingerprints of the files it read.
    outputs
        Bytes of each file it wrote, by path relative to the job folder.
    values, warnings
        As the step returned them.
    seconds
        Wall time.
    error, traceback
        Why it failed.
    """

    name: str
    state: str
    record: str = ""
    inputs: tuple[Fingerprint, ...] = ()
    outputs: dict[str, int] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""


def to_json(value: Any) -> Any:
    """Turn `value` into what JSON can hold: paths absolute, numpy numbers plain, NaN and infinities None.

    Raises
    ------
    TypeError
        When something in it has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")


def write_json(path: Path, value: Any) -> None:
    """Write a record or a mapping as JSON, whole or not at all."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    write_text(path, json.dumps(to_json(plain), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_job(path: Path) -> JobRecord | None:
    """Read a `job.json`; none when there is none.

    Raises
    ------
    FileFormatError
        When the file is damaged.
    """

    def make(data: dict[str, Any]) -> JobRecord:
        data["runs"] = tuple(RunRecord(**item) for item in data["runs"])
        data["changed"], data["items"] = tuple(data["changed"]), tuple(data["items"])
        return JobRecord(**data)

    return _read(path, make, "a job of verglas")


def read_item(path: Path) -> ItemRecord | None:
    """Read an `items/<name>.json`; none when there is none.

    Raises
    ------
    FileFormatError
        When the file is damaged.
    """

    def make(data: dict[str, Any]) -> ItemRecord:
        return ItemRecord(**data | {"warnings": tuple(data["warnings"])})

    return _read(path, make, "an item of a job")


def _read(path: Path, make: Callable[[dict[str, Any]], R], what: str) -> R | None:
    """Read a record that has `inputs`; none when there is no file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FileFormatError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"{str(path)!r} holds a {type(data).__name__}; expected a JSON object")
    try:
        return make(data | {"inputs": tuple(Fingerprint(**item) for item in data["inputs"])})
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{str(path)!r} does not describe {what}: {error}") from error
