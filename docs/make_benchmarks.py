"""Write the tables of `docs/benchmarks.md` from what `verglas bench NAME --json > benchmarks/results/NAME.json` left.

Run `python docs/make_benchmarks.py` after a new result; a test holds the page against what this makes.
"""

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"

_COLUMNS = ("figure", "value", "unit", "target", "holds", "beside", "its value", "ratio")


def make_page() -> str:
    """Make the text of the page: its own prose, with fresh tables between the two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [_make_table(path) for path in sorted(RESULTS.glob("*.json"))]
    return before + BEGIN + ("\n".join(tables) or "No figures are kept in this version.\n") + END + after


def _make_table(path: Path) -> str:
    figures = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = [f"### {path.stem}\n", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    lines += [f"| {' | '.join(_make_row(figure))} |" for figure in figures]
    machines = dict.fromkeys(_describe_machine(figure["machine"]) for figure in figures)
    return "\n".join([*lines, "", *(f"Measured on {machine}.\n" for machine in machines)])


def _make_row(figure: dict[str, Any]) -> list[str]:
    holds = {True: "yes", False: "**no**", None: ""}[figure["holds"]]
    numbers = [_write_number(figure[name]) for name in ("value", "peer_value", "ratio")]
    row = [figure["name"], numbers[0], figure["unit"], figure["target"], holds, figure["peer"], *numbers[1:]]
    return [cell.replace("|", "\\|") for cell in row]


def _write_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _describe_machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("verglas", "python", "torch", "numba", "numpy")
    )
    gpu = "no GPU" if machine["gpu"] == "none" else machine["gpu"]
    return f"{machine['processor']}, {machine['cores']} cores, {gpu}; {versions}"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
