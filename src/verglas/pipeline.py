"""A pipeline as a file: jobs in the order of the work, checked before the first starts.

The file is TOML. Each `[[jobs]]` names a step and gives its parameters, and becomes a job folder below that of the
pipeline. Text of the form `{align}` stands for the folder of the job of that name; `{align|particles}` for that of
the first of these that has come before. A table with `cycles` holds `jobs` of its own, which come that many times,
their folders numbered; in it a name stands for its latest job.
"""

import gc
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verglas.errors import FileFormatError, JobMismatchError, UserError
from verglas.files import check_file, check_name
from verglas.steps.step import Params, RunOptions, RunReport, Step, run_step

MakeParams = Callable[[type[Params], Mapping[str, Any]], Params]
"""Makes a step's parameters of plain values, or raises a `UserError` that says what is wrong with them."""

_REFERENCE = re.compile(r"\{([^{}]*)\}")
_MOST_CYCLES = 99


@dataclass(frozen=True)
class Job:
    """One step of a pipeline.

    Parameters
    ----------
    name
        Of its folder.
    step
        What is run.
    params
        With what.
    folder
        Where.
    """

    name: str
    step: Step[Any]
    params: Params
    folder: Path


def read_pipeline(
    path: Path, out: Path, load_step: Callable[[str], Step[Any]], make_params: MakeParams
) -> list[Job]:
    """Read a pipeline and check all that can be checked before it runs.

    Parameters
    ----------
    path
        The TOML file; paths in it are relative to its folder.
    out
        Folder of the job folders.
    load_step
        Finds the step of a name, or raises a `UserError`.
    make_params
        Makes the parameters of a step.

    Returns
    -------
    list
        The jobs in order.

    Raises
    ------
    FileFormatError
        When the file is no pipeline.
    UserError
        When a step is unknown, a parameter wrong, a job refers to one that does not come before it, two jobs have one
        name, or a file that no job makes is missing.
    """
    try:
        content = tomllib.loads(check_file(path, "pipeline").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{str(path)!r} is no TOML: {error}") from error
    out = out.absolute()
    folders: dict[str, Path] = {}
    jobs: list[Job] = []
    for name, table in _unroll(content, path):
        label = f"job {name!r} of {str(path)!r}"
        step = load_step(str(table["step"]))
        values = {
            key.replace("-", "_"): _fill(value, folders, label)
            for key, value in table.items()
            if key not in {"step", "name"}
        }
        try:
            params = make_params(step.params, values)
        except UserError as error:
            raise UserError(f"{label}: {error}") from error
        params = _locate(params, path.absolute().parent, out, label)
        if any(job.name == name for job in jobs):
            raise UserError(
                f"{str(path)!r} has two jobs of the name {name!r}; give one of them another `name`"
            )
        jobs.append(Job(name, step, params, out / name))
        folders[str(table.get("name", table["step"]))] = out / name
    return jobs


def run_pipeline(
    jobs: list[Job],
    options: RunOptions,
    tell: Callable[[Job, RunReport], None],
    *,
    renew: bool = False,
) -> tuple[list[Job], bool]:
    """Run what is missing of each job.

    An item that fails does not stop the rest, but a job of which nothing is left ends the pipeline.

    Parameters
    ----------
    jobs
        Of `read_pipeline`.
    options
        How each is run.
    tell
        Called when a job is through.
    renew
        Do jobs again whose folder holds the result of other parameters or inputs, instead of refusing.

    Returns
    -------
    ran, failed
        The jobs that ran, and whether an item failed.
    """
    failed = False
    for number, job in enumerate(jobs, 1):
        try:
            report = run_step(job.step, job.params, job.folder, options=options)
        except JobMismatchError:
            if not renew:
                raise
            report = run_step(job.step, job.params, job.folder, options=replace(options, overwrite=True))
        tell(job, report)
        # What a job left in cycles may be large.
        gc.collect()
        failed = failed or bool(report.failed)
        if report.summary is None:
            return jobs[:number], True
    return jobs, failed


def _unroll(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and table of each job, cycles written out."""
    tables = content.get("jobs")
    unknown = set(content) - {"jobs"}
    if not isinstance(tables, list) or not tables or unknown:
        raise FileFormatError(
            f"{str(path)!r} holds {', '.join(content) or 'nothing'}; expected [[jobs]] and nothing else"
        )
    for table in tables:
        if "cycles" not in table:
            yield _name(table, path), table
            continue
        cycles, inner = table["cycles"], table.get("jobs")
        if set(table) != {"cycles", "jobs"} or not isinstance(inner, list) or not inner:
            raise FileFormatError(
                f"a table with `cycles` of {str(path)!r} must hold [[jobs.jobs]] and nothing else"
            )
        if not isinstance(cycles, int) or isinstance(cycles, bool) or not 1 <= cycles <= _MOST_CYCLES:
            raise FileFormatError(
                f"`cycles` of {str(path)!r} is {cycles!r}; expected a number from 1 to {_MOST_CYCLES}"
            )
        for cycle in range(1, cycles + 1):
            for one in inner:
                yield f"{_name(one, path)}_{cycle:02d}", one


def _name(table: Mapping[str, Any], path: Path) -> str:
    if not isinstance(table.get("step"), str):
        raise FileFormatError(f"a job of {str(path)!r} has no `step`; expected the name of a command")
    return check_name(str(table.get("name", table["step"])).replace(" ", "-"), "job")


def _fill(value: Any, folders: Mapping[str, Path], label: str) -> Any:
    """Put folders in the place of the names of jobs."""
    if isinstance(value, list):
        return [_fill(one, folders, label) for one in value]
    if not isinstance(value, str):
        return value

    def find(match: re.Match[str]) -> str:
        names = match[1].split("|")
        found = next((folders[name] for name in names if name in folders), None)
        if found is None:
            before = ", ".join(folders) or "none"
            raise UserError(f"{label} refers to {match[0]}; expected a job that comes before it: {before}")
        return str(found)

    return _REFERENCE.sub(find, value)


def _locate(params: Params, base: Path, out: Path, label: str) -> Params:
    """Take relative paths from the pipeline's folder; look whether those that no job makes are there."""

    def locate(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(locate(one) for one in value)
        if not isinstance(value, Path):
            return value
        place = base / value
        if not place.is_relative_to(out) and not place.exists():
            raise UserError(f"{label} needs {str(place)!r}, which does not exist")
        return place

    located = {name: locate(getattr(params, name)) for name in type(params).model_fields}
    return params.model_copy(update=located)
