"""`micrographs.star` of RELION 3.1 and later: which micrographs there are, and the same table with other images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from verglas.errors import FileFormatError
from verglas.files import check_exists
from verglas.io.mrc import read_mrc_header
from verglas.io.relion_tilt_series import find_file, project_path
from verglas.io.star import get_table, read_star, require_columns, write_star
from verglas.model import ImageReference, Optics, TiltSeries


def is_micrographs_star(path: Path | str) -> bool:
    """Tell whether a STAR file lists micrographs."""
    return "micrographs" in read_star(check_exists(path, "STAR file"))


def read_micrographs(path: Path | str) -> dict[str, TiltSeries]:
    """Read the micrographs of a `micrographs.star`, each as a series of one view, by the stem of its file.

    Raises
    ------
    FileFormatError
        When labels are missing, or two micrographs have the same name.
    """
    path = Path(path)
    blocks = read_star(path)
    table = require_columns(
        get_table(blocks, "micrographs", path), ["rlnMicrographName"], path, "micrographs"
    )
    pixels = {}
    if "optics" in blocks:
        optics = get_table(blocks, "optics", path)
        label = "rlnMicrographPixelSize"
        if {"rlnOpticsGroup", label} <= set(optics) and "rlnOpticsGroup" in table:
            pixels = dict(zip(optics["rlnOpticsGroup"], optics[label].astype(float), strict=True))
    micrographs: dict[str, TiltSeries] = {}
    for row in table.to_dict("records"):
        image = find_file(str(row["rlnMicrographName"]), path)
        if image.stem in micrographs:
            raise FileFormatError(f"{str(path)!r} lists two micrographs with the name {image.stem!r}")
        micrographs[image.stem] = read_micrograph(image, pixels.get(row.get("rlnOpticsGroup")))
    return micrographs


def read_micrograph(path: Path | str, pixel_size_angstrom: float | None = None) -> TiltSeries:
    """Read the header of an MRC micrograph as a series of one view.

    Parameters
    ----------
    path
        The MRC file.
    pixel_size_angstrom
        That of the header when none.

    Raises
    ------
    FileFormatError
        When it holds several images, or the pixel size is unknown.
    """
    path = check_exists(path, "micrograph")
    header = read_mrc_header(path)
    count, y, x = header.shape
    if count != 1:
        raise FileFormatError(f"{str(path)!r} holds {count} images; expected one micrograph")
    pixel = pixel_size_angstrom or header.pixel_size_angstrom
    if not pixel:
        raise FileFormatError(f"the header of {str(path)!r} does not say the pixel size")
    return TiltSeries(path.stem, Optics(pixel), (y, x), (ImageReference(path, 0),), np.zeros(1))


def write_micrographs(path: Path | str, source: Path | str, images: Mapping[str, Path]) -> None:
    """Write a `micrographs.star` again with other images.

    Parameters
    ----------
    path
        Where it goes.
    source
        The table that is repeated.
    images
        Stem of each micrograph that is kept to its new image.
    """
    blocks = dict(read_star(source))
    table = get_table(blocks, "micrographs", source)
    stems = [Path(str(name)).stem for name in table["rlnMicrographName"]]
    kept = table[[stem in images for stem in stems]].reset_index(drop=True)
    kept["rlnMicrographName"] = [project_path(images[stem]) for stem in stems if stem in images]
    write_star(path, {**blocks, "micrographs": kept})
