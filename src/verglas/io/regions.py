"""`regions.star`: the parts of specimens that are worked on alone."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from verglas.errors import FileFormatError
from verglas.files import check_exists, check_name
from verglas.io.star import get_numbers, get_table, read_star, require_columns, write_star
from verglas.model import Region

_CENTRE_LABELS = ("vglRegionCentreXAngst", "vglRegionCentreYAngst", "vglRegionCentreZAngst")
_SIZE_LABELS = ("vglRegionSizeXAngst", "vglRegionSizeYAngst", "vglRegionSizeZAngst")
_NAME_LABELS = ("rlnTomoName", "vglRegionName")
_BLOCK = "regions"


def read_regions(path: Path | str) -> list[Region]:
    """Read the regions of all tilt series.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, lacks a label, holds what is no number, or names a region twice.
    UserError
        When a region has no extent.
    """
    path = check_exists(path, "table of regions")
    required = [*_NAME_LABELS, *_CENTRE_LABELS, *_SIZE_LABELS]
    table = require_columns(get_table(read_star(path), _BLOCK, path), required, path, _BLOCK)
    numbers = [get_numbers(table, label, path, _BLOCK).tolist() for label in required[2:]]
    names = [
        (str(series), str(name))
        for series, name in zip(*(table[label] for label in _NAME_LABELS), strict=True)
    ]
    regions: dict[tuple[str, str], Region] = {}
    for (series, name), x, y, z, width, height, depth in zip(names, *numbers, strict=True):
        if (series, name) in regions:
            raise FileFormatError(f"table of regions {str(path)!r} has region {name!r} of {series!r} twice")
        check_name(name, _NAME_LABELS[1])
        regions[series, name] = Region(series, name, (x, y, z), (width, height, depth))
    return list(regions.values())


def write_regions(path: Path | str, regions: Iterable[Region]) -> None:
    """Write the regions of all tilt series."""
    rows = [
        dict(
            zip(
                (*_NAME_LABELS, *_CENTRE_LABELS, *_SIZE_LABELS),
                (region.tomogram_name, region.name, *region.centre_angstrom, *region.size_angstrom),
                strict=True,
            )
        )
        for region in regions
    ]
    write_star(path, {_BLOCK: pd.DataFrame(rows)})
