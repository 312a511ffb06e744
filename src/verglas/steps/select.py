"""`select`: keep or drop micrographs and tilt series by rule, by name, or by list.

What the job folder holds
-------------------------
===================================  ===========================================================================
`micrographs.star`                   the micrographs that are kept, every column of the input's table repeated
`tilt_series.star`                   or the tilt series that are kept
`selection.star`                     every item, whether it is kept (`vglSelected`), and why (`vglReason`)
===================================  ===========================================================================

The input stays as it is, so nothing is lost: a later `select` may start from a `selection.star` and restore items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field

from verglas.errors import FileFormatError, UserError, tell_nearest
from verglas.files import check_exists
from verglas.steps.select_rules import Rule, Scalar, parse_rule
from verglas.steps.series_results import PROCESS_BYTES
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

UNITS = ("_angstrom", "_deg", "_e_per_a2", "_kv", "_mm")
KINDS = {"micrographs": "rlnMicrographName", "global": "rlnTomoName"}
"""Tables that can be selected from, and the column that names their items."""


class SelectParams(Params):
    """Keep or drop micrographs or tilt series by rule, by name, or by list."""

    table: Annotated[
        Path, Field(description="`micrographs.star`, `micrographs_ctf.star` or `tilt_series.star`")
    ]
    where: Annotated[
        str | None,
        Field(
            description='rule on what the jobs before found or the table holds, such as "ctf_fit_resolution < 6 and '
            'drift < 40"'
        ),
    ] = None
    names: Annotated[
        tuple[str, ...], Field(description='patterns of names, such as "TS_01*"; one that fits is enough')
    ] = ()
    listed: Annotated[Path | None, Field(description="text file of names, one a line")] = None
    action: Annotated[
        Literal["keep", "drop", "restore"],
        Field(
            description="keep only items that fulfil all that is given, drop these, or take these in again that "
            "`base` left out"
        ),
    ] = "keep"
    base: Annotated[
        Path | None, Field(description="`selection.star` to start from; all items are kept when not given")
    ] = None
    jobs: Annotated[
        tuple[Path, ...],
        Field(
            description="more job folders whose values rules may ask for; those before the table are known"
        ),
    ] = ()


@dataclass(frozen=True)
class Choice:
    """What is known of one item before the choice.

    Parameters
    ----------
    values
        By name, for the rule.
    listed
        Whether the list has it.
    before
        Whether it was kept so far.
    """

    values: tuple[tuple[str, float | str | None], ...]
    listed: bool
    before: bool


def list_items(params: SelectParams) -> list[Item]:
    """One item a row of the table."""
    if params.where is None and not params.names and params.listed is None:
        raise UserError("there is nothing to select by; expected `where`, `names` or `listed`")
    if params.action == "restore" and params.base is None:
        raise UserError("`action` restore takes items in again that a selection left out; expected `base`")
    names = _name_rows(params.table)
    known = _gather_values(params, names)
    rule = None if params.where is None else parse_rule(params.where)
    if rule is not None:
        _check_names(rule, known)
    listed = _read_list(params.listed)
    before = {} if params.base is None else read_selection(params.base)
    asked = () if rule is None else rule.names
    return [
        Item(
            name,
            Choice(
                tuple((key, known[name].get(key)) for key in asked), name in listed, before.get(name, True)
            ),
        )
        for name in names
    ]


def run_item(item: Item, params: SelectParams, context: Context) -> ItemResult:
    """Decide on one item."""
    choice: Choice = item.record
    values = dict(choice.values)
    reasons = []
    if params.where is not None and not parse_rule(params.where).test(values):
        reasons.append(f"not: {params.where}")
    if params.names and not any(fnmatchcase(item.name, pattern) for pattern in params.names):
        reasons.append(f"its name is not like {' or '.join(params.names)}")
    if params.listed is not None and not choice.listed:
        reasons.append(f"not in {params.listed.name}")
    fits = not reasons
    if params.action == "keep":
        kept = choice.before and fits
    elif params.action == "drop":
        kept = choice.before and not fits
        reasons = [_tell_asked(params)]
    else:
        kept = choice.before or fits
    told = "" if kept else "; ".join(reasons) if choice.before else f"left out by {params.base}"
    return ItemResult((), {"kept": kept, "reason": told, **values})


def summarise(results: dict[str, ItemResult], params: SelectParams, folder: Path) -> Summary:
    """Write the tables."""
    kept = {name for name, result in results.items() if result.values["kept"]}
    table = _write_kept(params.table, kept, folder)
    _write_selection(results, folder / "selection.star")
    figures = []
    rule = None if params.where is None else parse_rule(params.where)
    numbers = [
        name
        for name in (rule.names if rule else ())
        if any(isinstance(result.values[name], float | int) for result in results.values())
    ]
    if numbers:
        from verglas.figures.selection import draw_selection

        columns = {
            name: [
                float(value) if isinstance(value, float | int) else float("nan")
                for value in (result.values[name] for result in results.values())
            ]
            for name in numbers[:4]
        }
        draw_selection(columns, [name in kept for name in results], folder / "figures/selection.png")
        figures = [Figure("figures/selection.png", f"what the rule asks for: {params.where}")]
    values = {
        "kept": Value(len(kept), "items", f"in {table}"),
        "left out": Value(len(results) - len(kept), "items", "listed with the reason in selection.star"),
    }
    warnings = [] if kept else ["nothing is kept"]
    return Summary(figures, values, warnings, [table, "selection.star"])


def estimate(items: list[Item], params: SelectParams) -> Estimate:
    """Tables only."""
    return Estimate(PROCESS_BYTES, 1000 * len(items), 1.0 + 2e-3 * len(items))


def read_selection(path: Path) -> dict[str, bool]:
    """Read a `selection.star`: whether each item is kept, by name.

    Raises
    ------
    FileFormatError
        When the file is none.
    """
    from verglas.io.star import get_table, read_star, require_columns

    blocks = read_star(check_exists(path, "selection"))
    table = require_columns(
        get_table(blocks, "selection", path), ["vglName", "vglSelected"], path, "selection"
    )
    return {
        str(name): bool(int(kept)) for name, kept in zip(table["vglName"], table["vglSelected"], strict=True)
    }


def _find_table(path: Path) -> tuple[dict[str, Any], str, pd.DataFrame]:
    """Blocks of a STAR file, the name of the one with the items, and its table."""
    from verglas.io.star import read_star

    blocks = dict(read_star(check_exists(path, "table")))
    for kind, label in KINDS.items():
        table = blocks.get(kind)
        if isinstance(table, pd.DataFrame) and label in table:
            return blocks, kind, table
    raise FileFormatError(f"{str(path)!r} lists neither micrographs nor tilt series; expected one of them")


def _name_rows(path: Path) -> list[str]:
    _, kind, table = _find_table(path)
    return [Path(str(name)).stem if kind == "micrographs" else str(name) for name in table[KINDS[kind]]]


def _gather_values(params: SelectParams, names: list[str]) -> dict[str, dict[str, Scalar]]:
    """Values of each item: the table's columns, then those that the jobs found; nearer jobs count first."""
    known: dict[str, dict[str, Scalar]] = {name: {"name": name} for name in names}
    _, _, table = _find_table(params.table)
    for name, row in zip(names, table.to_dict("records"), strict=True):
        for label, value in row.items():
            known[name][str(label)] = value if isinstance(value, str) else float(value)
    for step, values in _walk_jobs([params.table.parent, *params.jobs]):
        for name in known.keys() & values.keys():
            for key, value in values[name].items():
                if isinstance(value, bool | int | float | str) or value is None:
                    plain = float(value) if isinstance(value, bool | int | float) else value
                    short = key
                    for unit in UNITS:
                        short = short.removesuffix(unit)
                    for alias in (short, key, f"{step}_{short}", f"{step}_{key}"):
                        known[name].setdefault(alias.replace("-", "_"), plain)
    return known


def _walk_jobs(folders: list[Path]) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Step and values of the items of jobs, and of the jobs that these took their input from."""
    from verglas.jobs import JobFolder, read_item, read_job

    found: list[tuple[str, dict[str, Mapping[str, Any]]]] = []
    waiting, seen = list(folders), set()
    while waiting:
        path = waiting.pop(0).absolute()
        job = None if path in seen else read_job(JobFolder(path).job)
        seen.add(path)
        if job is None:
            continue
        items = {name: read_item(JobFolder(path).item(name)) for name in job.items}
        found.append((job.step, {name: item.values for name, item in items.items() if item}))
        waiting += [Path(one.path).parent for one in job.inputs if one.path.endswith(".star")]
    return found


def _check_names(rule: Rule, known: dict[str, dict[str, Scalar]]) -> None:
    every = {key for values in known.values() for key in values}
    for name in rule.names:
        if name not in every:
            raise UserError(
                f"rule {rule.text!r} asks for {name!r}, which nothing before knows{tell_nearest(name, every)}; "
                f"expected one of {', '.join(sorted(every))}"
            )


def _read_list(path: Path | None) -> set[str]:
    if path is None:
        return set()
    lines = check_exists(path, "list of names").read_text(encoding="utf-8").split("\n")
    return {Path(line.strip()).stem if "/" in line else line.strip() for line in lines if line.strip()}


def _tell_asked(params: SelectParams) -> str:
    asked = [params.where, " or ".join(params.names), params.listed and f"in {params.listed.name}"]
    return " and ".join(str(one) for one in asked if one)


def _write_kept(source: Path, kept: set[str], folder: Path) -> str:
    """Repeat the input's table without what is left out."""
    from verglas.io.relion_tilt_series import find_file, project_path
    from verglas.io.star import write_star

    blocks, kind, table = _find_table(source)
    rows = pd.Series([name in kept for name in _name_rows(source)], dtype=bool)
    table = table[rows.to_numpy()].reset_index(drop=True)
    for label in table.columns:
        if label in {"rlnMicrographName", "rlnTomoTiltSeriesStarFile"}:
            table[label] = [project_path(find_file(str(name), source)) for name in table[label]]
    name = "micrographs.star" if kind == "micrographs" else "tilt_series.star"
    write_star(folder / name, {**blocks, kind: table})
    return name


def _write_selection(results: dict[str, ItemResult], path: Path) -> None:
    from verglas.io.star import write_star

    table = pd.DataFrame(
        {
            "vglName": list(results),
            "vglSelected": [int(result.values["kept"]) for result in results.values()],
            "vglReason": [result.values["reason"] or "kept" for result in results.values()],
        }
    )
    write_star(path, {"selection": table})


SELECT_STEP = Step("select", SelectParams, list_items, run_item, summarise, estimate)
"""Choice of items."""
