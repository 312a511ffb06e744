"""`verglas bench`: measure, beside a peer or a floor."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from verglas.benchmarks.harness import Figure


def bench(
    name: Annotated[
        str, Parameter(help="Which benchmark; a name that is none of them is answered with the list.")
    ],
    *,
    json: Annotated[bool, Parameter(help="Print one JSON line a figure.", negative="")] = False,
    quick: Annotated[bool, Parameter(help="Smaller data and fewer rounds.", negative="")] = False,
) -> int:
    """Run a benchmark; the exit status is 1 when a figure misses its target."""
    from verglas.benchmarks.harness import load_benchmark, to_line

    missed = False
    for figure in load_benchmark(name)(quick):
        print(to_line(figure) if json else _describe(figure), flush=True)
        missed = missed or figure.holds is False
    return int(missed)


def _describe(figure: "Figure") -> str:
    """One figure in words: value, target, peer."""
    value = "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
    lines = [f"{figure.name}: {value}"]
    if figure.target:
        verdict = {True: "holds", False: "MISSED", None: "not judged"}[figure.holds]
        lines.append(f"  target: {figure.target} ({verdict})")
    if figure.peer_value is not None:
        ratio = f", ratio {figure.ratio:.3g}" if figure.ratio is not None else ""
        lines.append(f"  beside: {figure.peer}: {figure.peer_value:.4g}{ratio}")
    elif figure.peer:
        lines.append(f"  beside: {figure.peer}")
    return "\n".join(lines)
