"""What a step is, and how one is run in a job folder.

A step is four plain functions and a model of parameters. Its items can run anywhere and in any order; what
an item leaves behind are files in the job folder and a few values, and `summarise` sees nothing else. A run
that was killed and continued therefore ends with the same bytes as one that was not.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from verglas import __version__
from verglas.errors import UserError
from verglas.exec import (
    Later,
    Outcome,
    choose_worker_device,
    format_duration,
    open_progress,
    run_items,
    take_shard,
)
from verglas.files import check_inside, check_name
from verglas.jobs import (
    Fingerprint,
    ItemRecord,
    JobFolder,
    JobRecord,
    RunRecord,
    append_log,
    check_same_item,
    close_run,
    describe_run,
    digest_record,
    fingerprint_file,
    has_outputs,
    open_job,
    read_item,
    to_json,
    write_json,
)
from verglas.runtime import available_cores, choose_device, reuse_memory, set_aside_objects


class Params(BaseModel):
    """Root of every step's parameters: frozen, and no unknown names.

    Each field has a type, bounds, and a description with its unit; the description is the help of the flag.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Item:
    """One unit of work: a movie, a tilt series, a tomogram.

    Parameters
    ----------
    name
        Names the item's files, so it must be safe as a file name and unique in the job.
    record
        What the step knows of the item: a small, picklable record, never pixels.
    inputs
        Every file whose content the result depends on. A finished item whose inputs changed is refused.
    """

    name: str
    record: Any
    inputs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Context:
    """Where an item runs.

    Parameters
    ----------
    folder
        The job folder; an item writes below it and nowhere else, through `verglas.files.atomic_path`.
    device
        A name for `verglas.runtime.choose_device`.
    threads
        Threads that the item may use on the CPU.
    """

    folder: Path
    device: str
    threads: int


@dataclass(frozen=True)
class ItemResult:
    """What an item left behind.

    Parameters
    ----------
    outputs
        Paths of its files relative to the job folder.
    values
        Figures of merit that JSON can hold, the unit in the name (`defocus_angstrom`); NaN becomes None.
    warnings
        Sentences for the user.
    finish
        Does what is left to do, when there is something: writes, waits for the disk, draws. With one worker it is
        called while the next item is computed, in another thread; it should use few cores. The item is done when it
        returns.
    """

    outputs: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    finish: Callable[[], None] | None = None


@dataclass(frozen=True)
class Figure:
    """A picture of the report: its path relative to the job folder, and what to look for in it."""

    path: str
    caption: str


@dataclass(frozen=True)
class Value:
    """A figure of merit of the whole job, with its unit and a sentence on what it means."""

    value: float | str
    unit: str = ""
    meaning: str = ""

    def __post_init__(self) -> None:
        if self.value in {"none", "unknown"}:
            object.__setattr__(self, "unit", "")

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".rstrip()


@dataclass(frozen=True)
class Summary:
    """What `summarise` made of all results.

    Parameters
    ----------
    figures
        Pictures that it drew, most important first.
    values
        Figures of merit by name.
    warnings
        Sentences for the user.
    tables
        Paths of the tables that it wrote (`tomograms.star`), relative to the job folder.
    """

    figures: list[Figure] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Parameters
    ----------
    memory_bytes
        Peak of one worker.
    disk_bytes
        Of all outputs.
    seconds
        Of one worker doing all items.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float


@dataclass(frozen=True)
class Step(Generic[P]):
    """A step of the work. Its functions live at the top of a module, so that workers can import them.

    Parameters
    ----------
    name
        Of the command and in `job.json`.
    params
        The model of the parameters; its docstring is the help of the command.
    list_items
        `(params) -> items`: what there is to do. Reads tables, not pixels.
    run_item
        `(item, params, context) -> result`: does one item and writes its files.
    summarise
        `(results by name, params, folder) -> summary`: writes the tables and figures of the whole job from
        the results of the items that succeeded, sorted by name, and from nothing that varies between runs.
    estimate
        `(items, params) -> estimate` of memory, disk and time.
    """

    name: str
    params: type[P]
    list_items: Callable[[P], list[Item]]
    run_item: Callable[[Item, P, Context], ItemResult]
    summarise: Callable[[dict[str, ItemResult], P, Path], Summary]
    estimate: Callable[[list[Item], P], Estimate]


@dataclass(frozen=True)
class RunOptions:
    """How a step is run; none of it changes the result.

    Parameters
    ----------
    device
        `auto`, `cpu`, `cuda` or `cuda:N`; with several workers `auto` and `cuda` deal them out over the GPUs.
    workers
        Items done at the same time, each in a process of its own when more than one.
    shard
        `(i, n)`: do only the i-th of n parts, beside other processes that do the rest.
    overwrite
        Remove what the job folder holds of an earlier run first.
    quiet
        Show no progress.
    """

    device: str = "auto"
    workers: int = 1
    shard: tuple[int, int] | None = None
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Parameters
    ----------
    done
        Names of the items finished in this run.
    skipped
        Names of the items that were finished before.
    failed
        One sentence for each item that failed.
    bugs
        Names of the failed items whose error is none that the user could mend.
    seconds
        Wall time.
    summary
        Of the whole job; none while other shards have work left, or when nothing succeeded.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: dict[str, str]
    seconds: float
    bugs: tuple[str, ...] = ()
    summary: Summary | None = None


@set_aside_objects()
def run_step(step: Step[P], params: P, out: Path | str, *, options: RunOptions | None = None) -> RunReport:
    """Run what is missing of `step` in the job folder `out`.

    Parameters
    ----------
    step
        What to run.
    params
        Its parameters.
    out
        The job folder; made when missing.
    options
        How to run it.

    Raises
    ------
    UserError
        When there is nothing to do, an option cannot be used, or the folder holds something else.
    JobMismatchError
        When the folder holds the result of other parameters or inputs.
    JobLockedError
        When another process writes the folder.
    """
    options = options or RunOptions()
    started = time.perf_counter()
    _check_options(options)
    items = _list_items(step, params)
    folder = JobFolder(Path(out))
    # One item alone has no others to be kept from, and gets all cores without the seconds that processes start in.
    workers = options.workers if len(items) > 1 else 1
    run = describe_run(
        device=options.device,
        workers=workers,
        threads=max(1, available_cores() // workers),
        shard=options.shard,
    )
    with open_job(folder, _describe_job(step, params, items), run, overwrite=options.overwrite):
        mine = [items[name] for name in take_shard(list(items), options.shard)]
        pending, skipped = _sort_out(folder, mine)
        outcomes = _run_pending(step, params, folder, pending, run, quiet=options.quiet)
        failed = {outcome.name: outcome.error for outcome in outcomes if outcome.error}
        report = RunReport(
            done=tuple(sorted(outcome.name for outcome in outcomes if not outcome.error)),
            skipped=tuple(skipped),
            failed=dict(sorted(failed.items())),
            seconds=time.perf_counter() - started,
            bugs=tuple(sorted(outcome.name for outcome in outcomes if outcome.traceback)),
        )
        return _finish(step, params, folder, run, report)


def _check_options(options: RunOptions) -> None:
    if options.workers < 1:
        raise UserError(f"`workers` must be at least 1; got {options.workers}")
    take_shard([], options.shard)
    if options.device not in {"auto", "cpu"}:
        # Better one sentence now than one failure an item.
        choose_device(options.device)


def _list_items(step: Step[P], params: P) -> dict[str, Item]:
    """All items by name, sorted."""
    items: dict[str, Item] = {}
    for item in step.list_items(params):
        if check_name(item.name, "name of an input") in items:
            raise UserError(f"the inputs name item {item.name!r} twice; expected a name of its own for each")
        items[item.name] = item
    if not items:
        raise UserError(f"there is nothing to do: the inputs of {step.name!r} list no items")
    return dict(sorted(items.items()))


def _describe_job(step: Step[P], params: P, items: dict[str, Item]) -> JobRecord:
    values = params.model_dump()
    return JobRecord(
        verglas=__version__,
        step=step.name,
        state="running",
        params=to_json(values),
        changed=tuple(
            name
            for name, info in step.params.model_fields.items()
            if info.is_required() or getattr(params, name) != info.get_default(call_default_factory=True)
        ),
        items=tuple(items),
        inputs=tuple(fingerprint_file(path) for path in _find_files(values)),
    )


def _find_files(value: Any) -> Iterator[Path]:
    """Files that the parameters name."""
    if isinstance(value, Path) and value.is_file():
        yield value
    elif isinstance(value, dict):
        yield from _find_files(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _find_files(item)


def _sort_out(folder: JobFolder, items: list[Item]) -> tuple[list[Item], list[str]]:
    """Part the items into those to run and the names of those that are finished."""
    pending, skipped = [], []
    for item in items:
        old = read_item(folder.item(item.name))
        if old and old.state == "done":
            check_same_item(folder, old, digest_record(item.record), item.inputs)
        if old and old.state == "done" and has_outputs(folder, old):
            skipped.append(item.name)
        else:
            pending.append(item)
    return pending, skipped


@dataclass(frozen=True)
class _Work(Generic[P]):
    """All that a worker needs for one item; `follows` says that the worker had another before it."""

    step: Step[P]
    item: Item
    params: P
    folder: JobFolder
    device: str
    threads: int
    follows: bool


def _run_pending(
    step: Step[P], params: P, folder: JobFolder, pending: list[Item], run: RunRecord, *, quiet: bool
) -> list[Outcome]:
    work = {
        item.name: _Work(step, item, params, folder, run.device, run.threads, follows=place >= run.workers)
        for place, item in enumerate(pending)
    }
    outcomes = []
    with (
        open_progress(step.name, len(work), quiet=quiet) as progress,
        closing(run_items(_do_item, work, workers=run.workers, threads=run.threads)) as running,
    ):
        for outcome in running:
            outcomes.append(outcome)
            progress.advance(outcome)
            if outcome.error:
                failed = ItemRecord(
                    outcome.name,
                    "failed",
                    seconds=outcome.seconds,
                    error=outcome.error,
                    traceback=outcome.traceback,
                )
                write_json(folder.item(outcome.name), failed)
                append_log(folder, f"{outcome.name} failed: {outcome.error}\n{outcome.traceback}".rstrip())
            else:
                warnings = "".join(f"\n{outcome.name} warns: {text}" for text in outcome.value)
                append_log(folder, f"{outcome.name} done in {format_duration(outcome.seconds)}{warnings}")
    return outcomes


def _do_item(work: _Work[P]) -> Later | tuple[str, ...]:
    """Run one item in the worker, put its state on disk, and return its warnings, perhaps later."""
    started = time.perf_counter()
    folder, item = work.folder, work.item
    inputs = tuple(fingerprint_file(path) for path in item.inputs)
    context = Context(folder.path, choose_worker_device(work.device), work.threads)
    with reuse_memory():
        if work.follows:
            # What the last item left in cycles may be large.
            gc.collect()
        result = work.step.run_item(item, work.params, context)
    if not work.follows:
        # What is there by now are libraries for the most part, and need not be looked through again.
        gc.collect()
        gc.freeze()

    def finish() -> tuple[str, ...]:
        if result.finish is not None:
            result.finish()
        _write_record(work, inputs, result, time.perf_counter() - started)
        return result.warnings

    return finish() if result.finish is None else Later(finish)


def _write_record(
    work: _Work[P], inputs: tuple[Fingerprint, ...], result: ItemResult, seconds: float
) -> None:
    """Put on disk that an item is done, after all that it left behind."""
    folder, item = work.folder, work.item
    outputs = {name: check_inside(folder.path, name).stat().st_size for name in result.outputs}
    record = ItemRecord(
        item.name,
        "done",
        record=digest_record(item.record),
        inputs=inputs,
        outputs=outputs,
        values=result.values,
        warnings=result.warnings,
        seconds=seconds,
    )
    write_json(folder.item(item.name), record)


def _finish(step: Step[P], params: P, folder: JobFolder, run: RunRecord, report: RunReport) -> RunReport:
    """Summarise the job when its last item is through, and write down how the run ended."""
    ended = replace(
        run,
        done=len(report.done),
        skipped=len(report.skipped),
        failed=len(report.failed),
        seconds=report.seconds,
    )
    with close_run(folder, ended) as (_, items):
        # Read back from disk, so that a run that was continued sees what a whole one does.
        results = {
            item.name: ItemResult(tuple(item.outputs), item.values, item.warnings)
            for item in items or ()
            if item.state == "done"
        }
        if not results:
            return report
        summary = step.summarise(results, params, folder.path)
        for name in [*summary.tables, *(figure.path for figure in summary.figures)]:
            check_inside(folder.path, name).stat()
        write_json(folder.summary, asdict(summary))
    return replace(report, summary=summary)
