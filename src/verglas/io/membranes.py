"""Tables of membranes in class averages: MemXTerminator's `mem_analysis.star`, with columns of our own beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from verglas.errors import FileFormatError
from verglas.files import check_exists
from verglas.io.star import get_numbers, get_table, read_star, require_columns, write_star
from verglas.model.membrane import MembraneRecord

_NUMBERS = (
    "rlnCenterX",
    "rlnCenterY",
    "rlnAngleTheta",
    "rlnMembraneDistance",
    "rlnSigma1",
    "rlnSigma2",
    "rlnCurveKappa",
)
_CONTROL = tuple(f"vglBezier{axis}{number}" for number in range(1, 5) for axis in "YX")
_OWN = ("vglQuality", "vglImagePixelSize", "vglImageSize")


def write_membranes(
    path: Path | str, records: Sequence[MembraneRecord], images: Mapping[str, str] | None = None
) -> None:
    """Write a table of membranes.

    Parameters
    ----------
    path
        The STAR file.
    records
        A row each.
    images
        `rlnAveragedMembraneName` and `rlnMembraneMaskName` to the stack with a section a row.
    """
    columns: dict[str, list[object]] = {
        "rln2DAverageimageName": [f"{one.average:06d}@{one.stack}" for one in records]
    }
    for label, stack in (images or {}).items():
        columns[label] = [f"{row + 1:06d}@{stack}" for row in range(len(records))]
    values = [
        (
            one.centre_yx[1],
            one.centre_yx[0],
            one.theta_deg,
            one.distance,
            one.sigma1,
            one.sigma2,
            one.kappa,
        )
        for one in records
    ]
    columns |= {label: [row[place] for row in values] for place, label in enumerate(_NUMBERS)}
    columns["vglQuality"] = [one.quality for one in records]
    if all(one.size and one.pixel_size_angstrom for one in records):
        columns["vglImagePixelSize"] = [one.pixel_size_angstrom for one in records]
        columns["vglImageSize"] = [one.size for one in records]
    columns["vglMembraneShape"] = ["bezier" if one.control_yx else "arc" for one in records]
    if any(one.control_yx for one in records):
        flat = [[each for point in one.control_yx or [(0.0, 0.0)] * 4 for each in point] for one in records]
        columns |= {label: [row[place] for row in flat] for place, label in enumerate(_CONTROL)}
    write_star(path, {"": pd.DataFrame(columns)})


def read_membranes(path: Path | str) -> list[MembraneRecord]:
    """Read a table of membranes, of `membranes analyze` or of MemXTerminator.

    Raises
    ------
    FileFormatError
        When labels are missing or an average has no number.
    """
    path = check_exists(path, "table of membranes")
    blocks = read_star(path)
    name = next((key for key, block in blocks.items() if isinstance(block, pd.DataFrame)), "")
    table = require_columns(get_table(blocks, name, path), ["rln2DAverageimageName", *_NUMBERS], path, name)
    numbers = {label: get_numbers(table, label, path, name) for label in _NUMBERS}
    own = {label: get_numbers(table, label, path, name) for label in (*_OWN, *_CONTROL) if label in table}
    shapes = table.get("vglMembraneShape", pd.Series(["arc"] * len(table)))
    records = []
    for row in range(len(table)):
        number, at, stack = str(table["rln2DAverageimageName"].iloc[row]).partition("@")
        if not at or not number.isdigit():
            raise FileFormatError(f"{str(path)!r} names the average {number!r}; expected NUMBER@STACK")
        control = None
        if shapes.iloc[row] == "bezier":
            flat = [float(own[label][row]) for label in _CONTROL]
            control = tuple((flat[2 * i], flat[2 * i + 1]) for i in range(4))
        one = {label: float(values[row]) for label, values in numbers.items()}
        pixel = own.get("vglImagePixelSize")
        size = own.get("vglImageSize")
        records.append(
            MembraneRecord(
                int(number),
                stack,
                (one["rlnCenterY"], one["rlnCenterX"]),
                one["rlnAngleTheta"],
                one["rlnCurveKappa"],
                one["rlnMembraneDistance"],
                one["rlnSigma1"],
                one["rlnSigma2"],
                float(own["vglQuality"][row]) if "vglQuality" in own else 1.0,
                None if pixel is None else float(pixel[row]),
                None if size is None else int(size[row]),
                control,
            )
        )
    return records
