"""`verglas report`: rebuild the report of job folders."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(
    folders: Annotated[tuple[Path, ...], Parameter(help="Job folders, in the order of the work.")],
    *,
    out: Annotated[
        Path | None, Parameter(help="HTML file; report.html in the first folder if left out.")
    ] = None,
) -> int:
    """Rebuild the report of one job folder, or write one report of several."""
    from verglas.report import write_report

    print(write_report(list(folders), out))
    return 0
