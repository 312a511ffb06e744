"""Make the command of a step from its parameters.

`getattr(verglas.cli.step_command, "package.module.STEP")` is the command of that step, which is how cyclopts
loads it when it is called and not before.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from verglas.cli.validation import build_params
from verglas.errors import UserError
from verglas.exec import format_duration
from verglas.steps.step import P, RunOptions, RunReport, Step, Summary, run_step

_RUNNING = Group("Running", sort_key=1)
_MOST_LINES = 20

Command = Callable[..., int]


def __getattr__(path: str) -> Command:
    return make_command(load_step(path))


def load_step(path: str) -> Step[Any]:
    """Import the step at the dotted `path`."""
    module, _, name = path.rpartition(".")
    if not module:
        raise AttributeError(path)
    step = getattr(importlib.import_module(module), name)
    if not isinstance(step, Step):
        raise TypeError(f"{path} is a {type(step).__name__}; expected a Step")
    return step


def make_command(step: Step[Any]) -> Command:
    """Make the function that runs `step`, with a flag for each of its parameters."""

    def command(*positional: Any, params: Path | None = None, out: Path, **given: Any) -> int:
        options = RunOptions(
            device=given.pop("device", "auto"),
            workers=given.pop("workers", 1),
            shard=parse_shard(given.pop("shard", None)),
            overwrite=given.pop("overwrite", False),
            quiet=given.pop("quiet", False),
        )
        flags = gather_flags(step, positional, given)
        return run_command(step, build_params(step.params, flags, params), out, options)

    options = [
        _option("out", Path, inspect.Parameter.empty, "job folder to write"),
        _option("params", Path | None, None, "TOML file of parameters; flags win over it"),
        _option("device", str, "auto", "auto, cpu, cuda or cuda:N"),
        _option("workers", int, 1, "items done at the same time, each in its own process"),
        _option("shard", str | None, None, "i/n: do only the i-th of n parts, beside other processes"),
        _option("overwrite", bool, False, "remove what the folder holds of an earlier run first"),
        _option("quiet", bool, False, "show no progress"),
    ]
    return dress_command(command, step, options)


def dress_command(command: Command, step: Step[Any], options: list[inspect.Parameter]) -> Command:
    """Give `command` the signature and the help that cyclopts reads: the step's fields, then `options`."""
    parameters = [*_list_fields(step), *options]
    # Python wants those without a default first; to the user the order makes no difference.
    parameters.sort(key=lambda one: one.kind)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__name__ = step.name
    command.__doc__ = inspect.getdoc(step.params)
    return command


def gather_flags(step: Step[Any], positional: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Gather the parameters that the user gave, by field."""
    named = dict(zip(step.params.model_fields, positional, strict=False)) | given
    # A required field that was not given is none here; the file of parameters may hold it.
    return {
        name: value
        for name, value in named.items()
        if value is not None or not step.params.model_fields[name].is_required()
    }


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Turn `i/n` into two numbers.

    Raises
    ------
    UserError
        When it is not of that form.
    """
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise UserError(f"`shard` must be i/n, such as 2/8; got {text!r}")
    return int(index), int(count)


def run_command(step: Step[P], params: P, out: Path, options: RunOptions) -> int:
    """Run a step, write its report, say what happened, and return the exit status."""
    # jinja2 and Pillow are not needed to start.
    from verglas.report import write_report

    report = run_step(step, params, out, options=options)
    page = write_report([out])
    if options.quiet:
        # Quiet is without progress, not without reasons.
        _print_lines(_list_failures(report))
    else:
        _tell(step.name, report, page)
    return exit_status(report)


def exit_status(report: RunReport) -> int:
    """Return 0 when all is well, 1 when some items failed, 2 when all did for reasons that the user can mend."""
    if not report.failed:
        return 0
    return 1 if report.done or report.skipped or report.bugs else 2


def _tell(name: str, report: RunReport, page: Path) -> None:
    lines = [
        f"{name}: {len(report.done)} done, {len(report.skipped)} done before, {len(report.failed)} failed "
        f"in {format_duration(report.seconds)}"
    ]
    if report.summary:
        lines += list_findings(report.summary)
    _print_lines([*lines, *_list_failures(report), f"report: {page}"])


def list_findings(summary: Summary) -> list[str]:
    """Lines on what a job found, and on what it warns of."""
    return [
        *(f"  {name}: {one}" for name, one in summary.values.items()),
        *_cut([f"  warning: {text}" for text in summary.warnings], "  and {} more warnings in the report"),
    ]


def _list_failures(report: RunReport) -> list[str]:
    if not report.failed:
        return []
    total = len(report.done) + len(report.skipped) + len(report.failed)
    told = [f"  {name}: {error}" for name, error in report.failed.items()]
    names = _cut(list(report.failed), "{} more")
    return [
        f"{len(report.failed)} of {total} items failed: {', '.join(names)}",
        *_cut(told, "  and {} more, in log.txt"),
    ]


def _cut(lines: list[str], more: str) -> list[str]:
    return (
        lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], more.format(len(lines) - _MOST_LINES)]
    )


def _print_lines(lines: list[str]) -> None:
    if lines:
        print("\n".join(lines), file=sys.stderr)


def _list_fields(step: Step[Any]) -> list[inspect.Parameter]:
    """Make a parameter of the command for each field; the first is positional when it is required."""
    parameters = []
    for index, (name, info) in enumerate(step.params.model_fields.items()):
        required = info.is_required()
        told = (info.description or "").rstrip(".")
        default = None if required else info.get_default(call_default_factory=True)
        kind: Any = info.annotation
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if index == 0 and required
                else inspect.Parameter.KEYWORD_ONLY,
                default=default,
                # A required field may come from the file of parameters, so it is pydantic that asks for it.
                annotation=Annotated[
                    kind | None if required else kind,
                    Parameter(
                        help=f"{told} [required]" if required else told,
                        show_default=_show_default if default not in (None, ()) else False,
                    ),
                ],
            )
        )
    return parameters


def _show_default(value: Any) -> str:
    """Write a default as the user would."""
    if isinstance(value, tuple):
        return " ".join(map(_show_default, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _option(name: str, kind: Any, default: Any, told: str) -> inspect.Parameter:
    parameter = Parameter(
        help=told,
        group=_RUNNING,
        show_default=default not in (None, False),
        negative="" if kind is bool else None,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, parameter]
    )
