"""What was found of the images before they are stacked: their defocus, and which of them were left out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from verglas.model import TiltSeries

DEFOCUS = {
    "defocus_u_angstrom": "rlnDefocusU",
    "defocus_v_angstrom": "rlnDefocusV",
    "defocus_angle_deg": "rlnDefocusAngle",
}


def add_knowledge(
    series: TiltSeries, names: Sequence[str], defocus: Path | None, selection: Path | None
) -> tuple[TiltSeries, list[str]]:
    """Fill in the defocus of each view, and mark views as not selected.

    Parameters
    ----------
    series
        The record.
    names
        `(n,)` plain name of each view's movie.
    defocus, selection
        `micrographs_ctf.star` and `selection.star`, by the names of the movies.

    Returns
    -------
    tuple
        The record, and sentences for the user.

    Raises
    ------
    FileFormatError
        When a file is not what it should be.
    """
    warnings = []
    if defocus is not None:
        series, missing = _fill_defocus(series, names, defocus)
        if missing:
            warnings.append(f"{missing} of {len(names)} views have no defocus in {str(defocus)!r}")
    if selection is not None:
        from verglas.steps.select import read_selection

        kept = {name.replace(".", "_"): is_kept for name, is_kept in read_selection(selection).items()}
        wanted = np.array([kept.get(name, True) for name in names])
        series = replace(series, selected=series.selected & wanted)
        if not wanted.all():
            warnings.append(
                f"{int((~wanted).sum())} of {len(names)} views are left out by {str(selection)!r}"
            )
    return series, warnings


def _fill_defocus(series: TiltSeries, names: Sequence[str], path: Path) -> tuple[TiltSeries, int]:
    """Take the defocus from a table; the median of the others where it has none."""
    from verglas.io.star import get_table, read_star, require_columns

    wanted = ["rlnMicrographName", *DEFOCUS.values()]
    table = require_columns(get_table(read_star(path), "micrographs", path), wanted, path, "micrographs")
    rows = {
        Path(str(row["rlnMicrographName"])).stem.replace(".", "_"): [
            float(row[label]) for label in wanted[1:]
        ]
        for row in table.to_dict("records")
    }
    found = np.array([rows.get(name, [np.nan] * 3) for name in names])
    unknown = np.isnan(found[:, 0])
    if not unknown.all():
        found[unknown] = np.median(found[~unknown], axis=0)
        series = replace(series, **dict(zip(DEFOCUS, found.T, strict=True)))
    return series, int(unknown.sum())
