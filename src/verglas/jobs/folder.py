"""The fixed names in a job folder, and what may be done to it."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from verglas.errors import UserError
from verglas.files import check_inside
from verglas.jobs.records import read_item

# What `verglas.files.atomic_path` leaves behind when its process is killed.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\.[^.]*)?")


@dataclass(frozen=True)
class JobFolder:
    """Where things are in the job folder `path`."""

    path: Path

    @property
    def job(self) -> Path:
        """Provenance and state of the job."""
        return self.path / "job.json"

    @property
    def log(self) -> Path:
        """What happened when."""
        return self.path / "log.txt"

    @property
    def summary(self) -> Path:
        """What the step made of all results."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def lock(self) -> Path:
        """Held while a run lasts: alone by a whole run, shared by shards."""
        return self.path / ".job.lock"

    @property
    def start_lock(self) -> Path:
        """Held while a run starts or ends, for the few moments in which shards must not meet."""
        return self.path / ".start.lock"

    def item(self, name: str) -> Path:
        """State of the item `name`."""
        return self.path / "items" / f"{name}.json"


def prepare_folder(folder: JobFolder) -> None:
    """Make the folder when it is missing.

    Raises
    ------
    UserError
        When it is a file, cannot be made, or holds files but no job.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"`out` must be a folder; {str(folder.path)!r} is a file")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`out` {str(folder.path)!r} cannot be made: {error.strerror}") from error
    if folder.job.exists():
        return
    ours = {folder.lock, folder.start_lock, folder.log}
    for path in folder.path.iterdir():
        if path not in ours and not _TEMPORARY.fullmatch(path.name):
            raise UserError(
                f"`out` {str(folder.path)!r} holds {path.name!r} but no job of verglas; "
                "expected a new or empty folder"
            )


def sweep_temporary(folder: JobFolder) -> int:
    """Remove the temporary files of killed runs and return how many there were.

    The caller holds the lock alone.
    """
    stale = [path for path in folder.path.rglob(".*") if _TEMPORARY.fullmatch(path.name) and path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def remove_job(folder: JobFolder) -> None:
    """Remove the files that the job wrote, and the folders that are empty then. Files it does not know stay.

    Raises
    ------
    UserError
        When a record names a file outside the folder.
    """
    doomed = [folder.report, folder.summary, folder.log]
    if folder.summary.exists():
        with suppress(ValueError):
            summary = json.loads(folder.summary.read_text(encoding="utf-8"))
            names = [*summary.get("tables", []), *(figure["path"] for figure in summary.get("figures", []))]
            doomed += [check_inside(folder.path, name) for name in names]
    for path in sorted((folder.path / "items").glob("[!.]*.json")):
        item = read_item(path)
        doomed += [check_inside(folder.path, name) for name in (item.outputs if item else ())]
        doomed.append(path)
    # The job's own file goes last, so that a removal that is interrupted can be repeated.
    for path in [*doomed, folder.job]:
        path.unlink(missing_ok=True)
    for parent in sorted(
        {p for path in doomed for p in path.parents if folder.path in p.parents}, reverse=True
    ):
        with suppress(OSError):
            parent.rmdir()


def append_log(folder: JobFolder, text: str) -> None:
    """Add lines to the log, each with the time. Lines of several processes do not mix."""
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    with folder.log.open("ab", buffering=0) as file:
        file.write("".join(f"{now}  {line}\n" for line in text.splitlines()).encode())
