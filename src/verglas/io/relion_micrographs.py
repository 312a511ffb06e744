"""Lists of micrographs: `micrographs.star` of RELION 3.1 and later, JSON, folders; and the table written again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError
from verglas.files import check_exists
from verglas.io.mrc import read_mrc_header
from verglas.io.relion_tilt_series import find_file, project_path
from verglas.io.star import get_table, read_star, require_columns, write_star
from verglas.model import ImageReference, Optics, TiltSeries


def is_micrographs_star(path: Path | str) -> bool:
    """Tell whether a STAR file lists micrographs."""
    return "micrographs" in read_star(check_exists(path, "STAR file"))


@dataclass(frozen=True)
class ListedMicrograph:
    """A micrograph that a list names; its file need not be there yet.

    Parameters
    ----------
    path
        Of the image.
    pixel_size_angstrom
        What the list says; none leaves it to the image's header.
    plain
        The same image without dose weighting, where the list names one.
    voltage_kv, cs_mm, amplitude_contrast
        What the list says.
    halves
        Sums of the odd and of the even frames, where the list names them.
    """

    path: Path
    pixel_size_angstrom: float | None = None
    plain: Path | None = None
    voltage_kv: float | None = None
    cs_mm: float | None = None
    amplitude_contrast: float | None = None
    halves: tuple[Path, Path] | None = None


def list_micrographs(path: Path | str) -> list[ListedMicrograph]:
    """List micrographs without opening them, so that one that is still being written spoils no other.

    Parameters
    ----------
    path
        A `micrographs.star`; a JSON list of paths; a folder, of which all `.mrc` are taken; or one image.

    Raises
    ------
    FileFormatError
        When a list is not what its name says.
    """
    path = check_exists(path, "micrograph or list of micrographs")
    if path.is_dir():
        return [ListedMicrograph(image) for image in sorted(path.glob("[!.]*.mrc"))]
    if path.suffix == ".star":
        return _list_star(path)
    if path.suffix == ".json":
        return [ListedMicrograph(find_file(name, path)) for name in _read_json(path)]
    return [ListedMicrograph(path)]


def _list_star(path: Path) -> list[ListedMicrograph]:
    blocks = read_star(path)
    table = require_columns(
        get_table(blocks, "micrographs", path), ["rlnMicrographName"], path, "micrographs"
    )
    groups: dict[Any, dict[Any, Any]] = {}
    if "optics" in blocks and "rlnOpticsGroup" in table:
        optics = get_table(blocks, "optics", path)
        groups = {row.get("rlnOpticsGroup"): row for row in optics.to_dict("records")}
    listed = []
    for row in table.to_dict("records"):
        group = groups.get(row.get("rlnOpticsGroup"), {})
        plain = row.get("rlnMicrographNameNoDW")
        halves = [row.get(f"rlnMicrographName{which}") for which in ("Odd", "Even")]
        pixel, voltage, cs, contrast = (
            None if group.get(label) is None else float(group[label])
            for label in (
                "rlnMicrographPixelSize",
                "rlnVoltage",
                "rlnSphericalAberration",
                "rlnAmplitudeContrast",
            )
        )
        listed.append(
            ListedMicrograph(
                find_file(str(row["rlnMicrographName"]), path),
                pixel,
                None if plain is None else find_file(str(plain), path),
                voltage,
                cs,
                contrast,
                None
                if None in halves
                else (find_file(str(halves[0]), path), find_file(str(halves[1]), path)),
            )
        )
    return listed


def _read_json(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{str(path)!r} is not JSON: {error}") from None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise FileFormatError(f'{str(path)!r} holds no list of paths; expected ["one.mrc", "two.mrc"]')
    return names


def read_micrographs(path: Path | str) -> dict[str, TiltSeries]:
    """Read the micrographs of a `micrographs.star`, each as a series of one view, by the stem of its file.

    Raises
    ------
    FileFormatError
        When labels are missing, or two micrographs have the same name.
    """
    micrographs: dict[str, TiltSeries] = {}
    for listed in _list_star(Path(path)):
        name = listed.path.stem
        if name in micrographs:
            raise FileFormatError(f"{str(path)!r} lists two micrographs with the name {name!r}")
        micrographs[name] = read_micrograph(listed.path, listed.pixel_size_angstrom)
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
        raise FileFormatError(
            f"the header of {str(path)!r} does not say the pixel size; expected `pixel_size`"
        )
    return TiltSeries(path.stem, Optics(pixel), (y, x), (ImageReference(path, 0),), np.zeros(1))


def write_micrographs(
    path: Path | str, source: Path | str, images: Mapping[str, Path], *, pixel_factor: float = 1.0
) -> None:
    """Write a `micrographs.star` again with other images.

    Parameters
    ----------
    path
        Where it goes.
    source
        The table that is repeated.
    images
        Stem of each micrograph that is kept to its new image.
    pixel_factor
        By how much the pixels became larger; the names of even and odd sums, whose pixels did not, are left out then.
    """
    blocks = dict(read_star(source))
    table = get_table(blocks, "micrographs", source)
    stems = [Path(str(name)).stem for name in table["rlnMicrographName"]]
    kept = table[[stem in images for stem in stems]].reset_index(drop=True)
    kept["rlnMicrographName"] = [project_path(images[stem]) for stem in stems if stem in images]
    if pixel_factor != 1.0:
        kept = kept.drop(columns=["rlnMicrographNameEven", "rlnMicrographNameOdd"], errors="ignore")
        if "optics" in blocks:
            optics = get_table(blocks, "optics", source).copy()
            if "rlnMicrographPixelSize" in optics:
                optics["rlnMicrographPixelSize"] = (
                    optics["rlnMicrographPixelSize"].astype(float) * pixel_factor
                )
            blocks["optics"] = optics
    write_star(path, {**blocks, "micrographs": kept})


def tabulate_micrographs(path: Path | str, images: Mapping[Path, Optics]) -> None:
    """Write a `micrographs.star` of images that came without one; those of equal optics share a group."""
    groups = {optics: number for number, optics in enumerate(dict.fromkeys(images.values()), 1)}
    table = pd.DataFrame(
        {
            "rlnOpticsGroup": list(groups.values()),
            "rlnOpticsGroupName": [f"opticsGroup{number}" for number in groups.values()],
            "rlnMicrographPixelSize": [optics.pixel_size_angstrom for optics in groups],
            "rlnVoltage": [optics.voltage_kv for optics in groups],
            "rlnSphericalAberration": [optics.cs_mm for optics in groups],
            "rlnAmplitudeContrast": [optics.amplitude_contrast for optics in groups],
        }
    )
    rows = {
        "rlnMicrographName": [project_path(image) for image in images],
        "rlnOpticsGroup": [groups[optics] for optics in images.values()],
    }
    write_star(path, {"optics": table, "micrographs": pd.DataFrame(rows)})


def tabulate_ctf(
    path: Path | str,
    fits: Mapping[Path, tuple[Optics, Mapping[str, float | str]]],
    source: Path | None = None,
) -> None:
    """Write `micrographs_ctf.star` as RELION's CtfFind does.

    Parameters
    ----------
    path
        Where it goes.
    fits
        Image to its optics and the columns that were found for it.
    source
        A `micrographs.star` whose columns are repeated; those of its rows that are not in `fits` are left out.
    """
    if source is None:
        tabulate_micrographs(path, {image: optics for image, (optics, _) in fits.items()})
        blocks = dict(read_star(path))
    else:
        blocks = dict(read_star(source))
    table = get_table(blocks, "micrographs", path)
    images = list(fits)
    if source is not None:
        places = [find_file(str(name), source) for name in table["rlnMicrographName"]]
        table = table[[place in fits for place in places]].reset_index(drop=True)
        images = [place for place in places if place in fits]
    found = pd.DataFrame([dict(fits[image][1]) for image in images])
    table = pd.concat([table.drop(columns=list(found), errors="ignore"), found], axis=1)
    write_star(path, {**blocks, "micrographs": table})
