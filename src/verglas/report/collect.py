"""Read what a job folder tells of itself."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verglas.errors import FileFormatError, UserError
from verglas.files import check_inside
from verglas.jobs import ItemRecord, JobFolder, JobRecord, read_items, read_job


@dataclass(frozen=True)
class Picture:
    """A figure of the job: where it is, and what to look for in it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class JobView:
    """All that the page shows of a job.

    Parameters
    ----------
    folder
        The job folder.
    job
        Its provenance.
    items
        Those that are done or failed, sorted by name.
    missing
        Names of the others.
    columns
        Names of the values that the items have.
    tiles
        Figures of merit: name, and mapping with `value`, `unit`, `meaning`.
    figures
        Pictures, most important first.
    warnings
        Of the whole job.
    tables
        Paths of the tables, relative to the folder.
    """

    folder: Path
    job: JobRecord
    items: list[ItemRecord]
    missing: list[str]
    columns: list[str]
    tiles: dict[str, dict[str, Any]]
    figures: list[Picture]
    warnings: list[str]
    tables: list[str]

    @property
    def step(self) -> str:
        """Name of the step."""
        return self.job.step

    @property
    def failed(self) -> list[ItemRecord]:
        """Items that failed."""
        return [item for item in self.items if item.state == "failed"]

    @property
    def state(self) -> str:
        """`done`, `failed` or `unfinished`."""
        return "unfinished" if self.job.state == "running" else self.job.state

    @property
    def verdict(self) -> str:
        """The state in a word or two."""
        return f"{len(self.failed)} failed" if self.failed and self.state == "failed" else self.state

    @property
    def has_notes(self) -> bool:
        """Whether any item failed or warned."""
        return any(item.error or item.warnings for item in self.items)

    @property
    def slowest(self) -> float:
        """Seconds of the slowest item."""
        return max((item.seconds for item in self.items), default=0.0)

    @property
    def item_warnings(self) -> list[tuple[str, list[str]]]:
        """Each sentence that items warned with and the job did not repeat, and the names of those items."""
        found: dict[str, list[str]] = {}
        for item in self.items:
            for text in item.warnings:
                if not any(told.endswith(text) for told in self.warnings):
                    found.setdefault(text, []).append(item.name)
        return list(found.items())


def collect_job(path: Path) -> JobView:
    """Read a job folder.

    Raises
    ------
    UserError
        When it holds no job.
    FileFormatError
        When a file of it is damaged.
    """
    folder = JobFolder(path)
    job = read_job(folder.job)
    if job is None:
        raise UserError(f"{str(path)!r} is no job folder: it holds no job.json")
    read = read_items(folder, job)
    items = [item for item in read if item]
    summary = _read_summary(folder.summary)
    figures = [
        Picture(check_inside(path, figure["path"]), figure["caption"])
        for figure in summary.get("figures", [])
    ]
    return JobView(
        folder=path,
        job=job,
        items=items,
        missing=[name for name, item in zip(job.items, read, strict=True) if item is None],
        columns=_list_columns(items),
        tiles=summary.get("values", {}),
        figures=[figure for figure in figures if figure.path.is_file()],
        warnings=summary.get("warnings", []),
        tables=summary.get("tables", []),
    )


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FileFormatError(f"{str(path)!r} is not JSON: {error}") from error
    return dict(summary)


def _list_columns(items: Iterable[ItemRecord]) -> list[str]:
    """Names of values that fit a column, in the order in which they first occur."""
    names = dict.fromkeys(name for item in items for name in item.values)
    return [name for name in names if not any(isinstance(item.values.get(name), dict) for item in items)]
