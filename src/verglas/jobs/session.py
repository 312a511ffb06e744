"""The life of a run in a job folder: begin under lock, write down what happens, end."""

import json
import os
import platform
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from verglas.errors import JobLockedError, JobMismatchError, UserError
from verglas.jobs.fingerprint import Fingerprint
from verglas.jobs.folder import JobFolder, append_log, prepare_folder, remove_job, sweep_temporary
from verglas.jobs.lock import hold_lock
from verglas.jobs.matching import check_same_items, check_same_job, has_outputs
from verglas.jobs.records import ItemRecord, JobRecord, RunRecord, read_item, read_job, write_json


def describe_run(*, device: str, workers: int, threads: int, shard: tuple[int, int] | None) -> RunRecord:
    """Describe the run that begins now in this process."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    return RunRecord(
        started=format_now(),
        host=socket.gethostname(),
        process=os.getpid(),
        command=shlex.join(sys.argv),
        python=platform.python_version(),
        torch=torch,
        platform=platform.platform(),
        device=device,
        workers=workers,
        threads=threads,
        shard="{}/{}".format(*shard) if shard else "",
    )


def format_now() -> str:
    """Now, as ISO 8601 with the offset."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


@contextmanager
def open_job(
    folder: JobFolder, new: JobRecord, run: RunRecord, *, overwrite: bool = False
) -> Iterator[JobRecord]:
    """Hold the job for the length of the block: alone, or beside others when `run` is a shard.

    Parameters
    ----------
    folder
        The job folder; made when missing.
    new
        What is to be run.
    run
        The run that begins.
    overwrite
        Remove what the job wrote before.

    Yields
    ------
    JobRecord
        `new` with the history of the job, as it now stands in `job.json`.

    Raises
    ------
    UserError
        When the folder holds something else.
    JobMismatchError
        When it holds the result of something else.
    JobLockedError
        When another process writes it.
    """
    if run.shard and overwrite:
        raise UserError("`overwrite` cannot go with `shard`: each shard would remove what the others did")
    prepare_folder(folder)
    with ExitStack() as held:
        with hold_lock(folder.start_lock, wait=True):
            if run.shard:
                # Only while no other shard runs is a temporary file sure to be a dead one's.
                with suppress(JobLockedError), hold_lock(folder.lock):
                    sweep_temporary(folder)
            held.enter_context(hold_lock(folder.lock, shared=bool(run.shard)))
            if not run.shard:
                sweep_temporary(folder)
            if overwrite or (not run.shard and _is_vain(folder, new)):
                remove_job(folder)
            job = _begin(folder, new, run)
        yield job


def _is_vain(folder: JobFolder, new: JobRecord) -> bool:
    """Whether the folder holds other work than `new`, of which every item failed: nothing that could be lost."""
    old = read_job(folder.job)
    if not old or old.state != "failed" or old.step != new.step:
        return False
    if any(item is None or item.state != "failed" for item in read_items(folder, old)):
        return False
    try:
        check_same_job(folder, old, new)
    except JobMismatchError:
        return True
    return False


def _begin(folder: JobFolder, new: JobRecord, run: RunRecord) -> JobRecord:
    old = read_job(folder.job)
    if old:
        check_same_job(folder, old, new)
        done = [item for item in read_items(folder, old) if item and item.state == "done"]
        check_same_items(folder, done, new.items)
        new = replace(new, inputs=_merge(old.inputs, new.inputs))
    job = replace(new, runs=(*(old.runs if old else ()), run))
    write_json(folder.job, job)
    lines = [
        f"verglas {job.verglas} {job.step}" + (f", shard {run.shard}" if run.shard else ""),
        f"host {run.host}, device {run.device}, {run.workers} x {run.threads} threads, "
        f"Python {run.python}, torch {run.torch or 'none'}",
        *(f"  {name} = {json.dumps(job.params[name], ensure_ascii=False)}" for name in job.changed),
    ]
    append_log(folder, "\n".join(lines))
    return job


def read_items(folder: JobFolder, job: JobRecord) -> list[ItemRecord | None]:
    """Read the state of every item of the job, none for one that was never finished."""
    return [read_item(folder.item(name)) for name in job.items]


@contextmanager
def close_run(folder: JobFolder, run: RunRecord) -> Iterator[tuple[JobRecord, list[ItemRecord] | None]]:
    """Write down how `run` ended, after the block has summarised the job.

    Parameters
    ----------
    folder
        The job folder, held by :func:`open_job`.
    run
        The run with its numbers; the block runs while no other shard can begin or end.

    Yields
    ------
    tuple[JobRecord, list[ItemRecord] | None]
        The job, and all its items when each is done or failed; none while other shards have work left.
    """
    with hold_lock(folder.start_lock, wait=True):
        job = read_job(folder.job)
        if job is None:
            raise UserError(f"{str(folder.job)!r} was removed while the job ran; expected it to stay")
        read = read_items(folder, job)
        items = [item for item in read if item and (item.state == "failed" or has_outputs(folder, item))]
        complete = len(items) == len(read)
        failed = sum(item.state == "failed" for item in items)
        state = "running"
        try:
            yield job, items if complete else None
            if complete:
                state = "failed" if failed else "done"
        except BaseException:
            state = "failed"
            raise
        finally:
            ended = replace(run, finished=format_now())
            write_json(
                folder.job,
                replace(
                    job,
                    state=state,
                    inputs=_merge(job.inputs, *(item.inputs for item in items)),
                    runs=tuple(ended if _is_same_run(old, run) else old for old in job.runs),
                ),
            )
            append_log(
                folder, f"{run.done} done, {run.skipped} done before, {run.failed} failed; job {state}"
            )


def _is_same_run(one: RunRecord, other: RunRecord) -> bool:
    return (one.started, one.host, one.process) == (other.started, other.host, other.process)


def _merge(*groups: tuple[Fingerprint, ...]) -> tuple[Fingerprint, ...]:
    """All fingerprints by path, sorted; later ones replace earlier ones."""
    return tuple(dict(sorted({item.path: item for group in groups for item in group}.items())).values())
