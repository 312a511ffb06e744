"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from verglas.exec.outcome import Outcome


class Progress(Protocol):
    """Is told of each outcome."""

    def advance(self, outcome: Outcome) -> None:
        """Count one item."""


@contextmanager
def open_progress(
    title: str, total: int, *, quiet: bool = False, file: TextIO | None = None
) -> Iterator[Progress]:
    """Show how `total` items get on for the length of the block.

    Parameters
    ----------
    title
        What is running.
    total
        Items to do.
    quiet
        Show nothing.
    file
        Where to show it; standard error when none.
    """
    file = file or sys.stderr
    if quiet or total == 0:
        yield _Silent()
    elif file.isatty():
        with _bar(title, total, file) as progress:
            yield progress
    else:
        yield _Lines(total, file)


class _Silent:
    def advance(self, outcome: Outcome) -> None:
        """Show nothing."""


class _Lines:
    def __init__(self, total: int, file: TextIO) -> None:
        self._total, self._file = total, file
        self._count, self._started = 0, time.monotonic()

    def advance(self, outcome: Outcome) -> None:
        self._count += 1
        verdict = "failed" if outcome.error else f"done in {format_duration(outcome.seconds)}"
        line = f"{self._count}/{self._total} {outcome.name} {verdict}"
        if self._count < self._total:
            left = (time.monotonic() - self._started) / self._count * (self._total - self._count)
            line += f", {format_duration(left)} left"
        if outcome.error:
            line += f": {outcome.error}"
        print(line, file=self._file, flush=True)


@contextmanager
def _bar(title: str, total: int, file: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(file=file)) as bar:
        task = bar.add_task(title, total=total, rate="")
        started, failures = time.monotonic(), 0

        class Shown:
            def advance(self, outcome: Outcome) -> None:
                nonlocal failures
                if outcome.error:
                    failures += 1
                    bar.console.print(
                        f"{outcome.name} failed: {outcome.error}", style="red", markup=False, highlight=False
                    )
                count = int(bar.tasks[0].completed) + 1
                rate = f"{format_duration((time.monotonic() - started) / count)}/item"
                bar.update(task, advance=1, rate=f"{rate}, {failures} failed" if failures else rate)

        yield Shown()


def format_duration(seconds: float) -> str:
    """Seconds for people: `0.31 s`, `12.1 s`, `2.1 min`, `3.4 h`, `2.0 d`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    for limit, unit, name in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} d"
