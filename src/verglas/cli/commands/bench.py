"""`verglas bench`: measure, beside a peer or a floor."""

from typing import Annotated, Any

from cyclopts import Parameter


def bench(
    name: Annotated[str, Parameter(help="backproject, reconstruct, star or resume.")],
    *,
    json: Annotated[bool, Parameter(help="Print one JSON line a figure.", negative="")] = False,
    quick: Annotated[bool, Parameter(help="Smaller data and fewer rounds.", negative="")] = False,
) -> int:
    """Run a benchmark; the exit status is 1 when a figure misses its target."""
    from verglas.benchmarks.harness import load_benchmark, to_line

    figures = []
    for figure in load_benchmark(name)(quick):
        figures.append(figure)
        if json:
            print(to_line(figure), flush=True)
    if not json:
        _print_table(figures)
    return int(any(figure.holds is False for figure in figures))


def _print_table(figures: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("figure", no_wrap=True)
    for heading in ("value", "unit", "target", "holds", "peer", "peer value", "ratio"):
        table.add_column(heading, overflow="fold")
    for one in figures:
        holds = "" if one.holds is None else ("yes" if one.holds else "[red]no")
        numbers = [
            f"{value:.4g}" if value is not None else "" for value in (one.value, one.peer_value, one.ratio)
        ]
        table.add_row(one.name, numbers[0], one.unit, one.target, holds, one.peer, numbers[1], numbers[2])
    Console().print(table)
