"""Make `verglas estimate STEP` from the parameters of a step; loaded like `verglas.cli.step_command`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from verglas.cli.step_command import Command, dress_command, gather_flags, load_step
from verglas.cli.validation import build_params
from verglas.exec import format_duration
from verglas.runtime import available_memory_bytes
from verglas.steps.step import Step


def __getattr__(path: str) -> Command:
    return make_estimate_command(load_step(path))


def make_estimate_command(step: Step[Any]) -> Command:
    """Make the function that prints what `step` will take with these parameters."""

    def command(*positional: Any, params: Path | None = None, workers: int = 1, **given: Any) -> int:
        flags = gather_flags(step, positional, given)
        print_estimate(step, build_params(step.params, flags, params), workers)
        return 0

    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, Parameter(help=told)],
        )
        for name, kind, default, told in (
            ("params", Path | None, None, "TOML file of parameters; flags win over it"),
            ("workers", int, 1, "items done at the same time"),
        )
    ]
    return dress_command(command, step, options)


def print_estimate(step: Step[Any], params: Any, workers: int) -> None:
    """Print memory, disk and time of a run beside what the machine has free."""
    items = step.list_items(params)
    told = step.estimate(items, params)
    busy = max(1, min(workers, len(items)))
    rows = (
        ("items", f"{len(items)}", ""),
        ("memory", format_bytes(told.memory_bytes * busy), f"{format_bytes(available_memory_bytes())} free"),
        ("disk", format_bytes(told.disk_bytes), ""),
        ("time", format_duration(told.seconds / busy), f"with {busy} workers" if busy > 1 else ""),
    )
    for name, value, remark in rows:
        print(f"{name:<8}{value:>10}  {remark}".rstrip())


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
