"""Write `docs/commands.md` from the registry of commands and the models of their parameters.

Run `python docs/make_commands.py` after a change of a command; a test holds the page against what this makes.
"""

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from cyclopts import Parameter
from pydantic.fields import FieldInfo

from verglas.cli.registry import COMMANDS, GROUPS, STEPS, PlainCommand, StepCommand
from verglas.cli.step_command import load_step, make_command

PAGE = Path(__file__).with_name("commands.md")

HEAD = """\
# Commands

<!-- Written by docs/make_commands.py; edit the models of the parameters instead. -->

`verglas --help` lists the commands, `verglas COMMAND --help` the flags of one.

A command that runs a step takes its inputs, `--out FOLDER` and flags. Each flag can also stand in a TOML file
given with `--params`, under its name with dashes or underscores; a flag wins over the file. A flag whose default
is yes is turned off with `--no-` before its name. The [job folder](jobs.md) that a step writes has the same parts
for every step.

`verglas estimate STEP` takes the same inputs and flags as the step, without `--out`. It prints items, memory, disk
and time, and runs nothing.

Exit status: 0 all is well, 1 some items failed (or a benchmark missed its target), 2 the command or its inputs must
be mended, 70 a bug in verglas, 130 interrupted.
"""

_WORDS = {Path: "path", str: "text", int: "whole number", float: "number", bool: "yes or no"}
_BOUNDS = ((Gt, "gt", "more than"), (Ge, "ge", "at least"), (Lt, "lt", "less than"), (Le, "le", "at most"))


def make_page() -> str:
    """Make the text of the page."""
    parts = [HEAD, _describe_running()]
    for group in GROUPS:
        steps = [_describe_step(step) for step in STEPS if step.group == group]
        others = [_describe_command(command) for command in COMMANDS if command.group == group]
        if steps or others:
            parts.append(f"## {group}\n")
            parts += [*steps, *others]
    return "\n".join(parts)


def _describe_running() -> str:
    """Flags that all steps share, from the signature of any."""
    step = load_step(STEPS[0].step)
    parameters = inspect.signature(make_command(step)).parameters.values()
    rows = [
        (f"--{one.name}", _name_kind(one.annotation.__origin__), _write_default(one.default), _read_help(one))
        for one in parameters
        if one.name not in step.params.model_fields
    ]
    return "\n".join(["## Flags of every step\n", *_tabulate(rows), ""])


def _describe_step(command: StepCommand) -> str:
    params = load_step(command.step).params
    first, *_ = params.model_fields
    is_positional = params.model_fields[first].is_required()
    usage = [
        f"verglas {command.name}",
        *([_name_positional(params.model_fields[first], first)] * is_positional),
    ]
    rows = []
    for name, info in params.model_fields.items():
        told = _sentence(info.description or "", _tell_bounds(info))
        flag = name.upper() if is_positional and name == first else f"--{name.replace('_', '-')}"
        default = "required" if info.is_required() else _write_default(info.get_default())
        rows.append((flag, _name_kind(info.annotation), default, told))
    return _section(
        command.name, " ".join([*usage, "--out FOLDER [flags]"]), inspect.getdoc(params) or "", rows
    )


def _describe_command(command: PlainCommand) -> str:
    module, _, name = command.function.partition(":")
    function = getattr(__import__(module, fromlist=[name]), name)
    usage, rows = [f"verglas {command.name}"], []
    for one in inspect.signature(function, eval_str=True).parameters.values():
        is_positional = one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        is_required = one.default is inspect.Parameter.empty
        kind = _name_kind(one.annotation.__origin__)
        flag = one.name.upper() if is_positional else f"--{one.name.replace('_', '-')}"
        default = "required" if is_required else _write_default(one.default)
        rows.append((flag, kind, default, _read_help(one)))
        if is_positional:
            usage.append(one.name.upper() + ("..." if kind.startswith("one or more") else ""))
    usage += ["[flags]"] * any(flag.startswith("--") for flag, *_ in rows)
    return _section(command.name, " ".join(usage), inspect.getdoc(function) or "", rows)


def _section(name: str, usage: str, told: str, rows: list[tuple[str, str, str, str]]) -> str:
    return "\n".join(
        [f"### {name}\n", f"`{usage}`\n", f"{_escape(told)}\n", *_tabulate(rows), *([""] * bool(rows))]
    )


def _tabulate(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    if rows:
        yield "| flag | value | default | meaning |"
        yield "|---|---|---|---|"
    for flag, kind, default, told in rows:
        yield f"| `{flag}` | {kind} | {default} | {told} |"


def _name_positional(info: FieldInfo, name: str) -> str:
    return name.upper() + ("..." if get_origin(info.annotation) is tuple else "")


def _name_kind(kind: Any) -> str:
    """What the user gives, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _name_kind(inner[0])
    if origin in {Union, types.UnionType}:
        return " or ".join(_name_kind(one) for one in inner if one is not type(None))
    if origin is Literal:
        return ", ".join(map(str, inner[:-1])) + f" or {inner[-1]}"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"one or more {_name_kind(inner[0])}s"
    if origin is tuple:
        return f"{len(inner)} {_name_kind(inner[0])}s"
    return _WORDS[kind]


def _write_default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(_write_default, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tell_bounds(info: FieldInfo) -> str:
    found = {
        kind: getattr(one, name)
        for one in info.metadata
        for kind, name, _ in _BOUNDS
        if isinstance(one, kind)
    }
    return " and ".join(f"{word} {found[kind]:g}" for kind, _, word in _BOUNDS if kind in found)


def _read_help(one: inspect.Parameter) -> str:
    parameter = next(item for item in one.annotation.__metadata__ if isinstance(item, Parameter))
    return _sentence(parameter.help or "", "")


def _sentence(told: str, bounds: str) -> str:
    told = _escape(told.rstrip(". "))
    return told + (f" ({bounds})" if bounds else "")


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
