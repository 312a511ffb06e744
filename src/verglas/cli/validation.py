"""Parameters from flags and files, and what is wrong with them in a sentence."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from verglas.errors import FileFormatError, UserError, tell_nearest
from verglas.files import check_file
from verglas.steps.step import Params

P = TypeVar("P", bound=Params)


def build_params(model: type[P], flags: Mapping[str, Any], file: Path | None) -> P:
    """Make parameters from a TOML file and from flags, which win.

    Parameters
    ----------
    model
        The model of the step.
    flags
        What the user gave, by field.
    file
        TOML with a line a field; names may be written with dashes.

    Raises
    ------
    UserError
        When a value is missing, unknown or out of bounds, or the file is no TOML.
    """
    values = {} if file is None else _read_toml(file)
    try:
        return model(**{**values, **flags})
    except ValidationError as error:
        raise UserError(describe_validation_error(error, model.model_fields)) from error


def _read_toml(file: Path) -> dict[str, Any]:
    check_file(file, "parameter file")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"parameter file {str(file)!r} is not TOML: {error}") from error
    return {name.replace("-", "_"): value for name, value in data.items()}


def describe_validation_error(error: Exception, known: Iterable[str] = ()) -> str:
    """One sentence on what pydantic found wrong, with the nearest `known` name; empty when it was not pydantic."""
    if not isinstance(error, ValidationError):
        return ""
    return "; ".join(_describe(detail, known) for detail in error.errors(include_url=False))


def _describe(detail: ErrorDetails, known: Iterable[str]) -> str:
    name = "`" + ".".join(map(str, detail["loc"])) + "`"
    if detail["type"] == "missing":
        return f"{name} is required"
    if detail["type"] == "extra_forbidden":
        return f"{name} is not one of the parameters{tell_nearest(name.strip('`'), known)}"
    if detail["type"] in {"value_error", "assertion_error"}:
        return str(detail["ctx"]["error"])
    told = detail["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{name} {told}; got {detail['input']!r}"
