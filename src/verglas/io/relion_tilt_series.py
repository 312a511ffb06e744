"""RELION's tilt series: an index `tilt_series.star` and one STAR file a series.

RELION 5 keeps angles and shifts in labels of their own; RELION 4 kept 4x4 projection matrices, which are
turned into angles and shifts here. What RELION has no label for gets a label with the prefix `vgl`.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.transform import Rotation

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists, check_inside, check_name
from verglas.io.local_field import read_local_field, write_local_field
from verglas.io.star import get_numbers, get_table, read_star, require_columns, write_star
from verglas.model import ImageReference, Optics, TiltSeries

ImageShapeOf = Callable[[ImageReference], tuple[int, int]]
"""Tells the `(y, x)` shape of an image."""

_VIEW_LABELS = {
    "rlnTomoNominalStageTiltAngle": "nominal_tilt_deg",
    "rlnTomoXTilt": "x_tilt_deg",
    "rlnTomoYTilt": "y_tilt_deg",
    "rlnTomoZRot": "z_rot_deg",
    "rlnTomoXShiftAngst": "x_shift_angstrom",
    "rlnTomoYShiftAngst": "y_shift_angstrom",
    "rlnMicrographPreExposure": "pre_exposure_e_per_a2",
    "vglExposure": "exposure_e_per_a2",
    "rlnDefocusU": "defocus_u_angstrom",
    "rlnDefocusV": "defocus_v_angstrom",
    "rlnDefocusAngle": "defocus_angle_deg",
    "rlnPhaseShift": "phase_shift_deg",
}
_MAGNIFICATION_LABELS = ("vglMagXX", "vglMagXY", "vglMagYX", "vglMagYY")
_IMAGE_SIZE_LABELS = ("vglImageSizeX", "vglImageSizeY")
_LOCAL_LABEL = "vglLocalField"
_MRC_MODES = {0, 1, 2, 3, 4, 6, 12, 101}
_MATRIX_LABELS = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ", "rlnTomoProjW")
_ANGLE_LABELS = ("rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst")
_SIZE_LABELS = ("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ")
_OPTICS_LABELS = {
    "rlnTomoTiltSeriesPixelSize": "pixel_size_angstrom",
    "rlnVoltage": "voltage_kv",
    "rlnSphericalAberration": "cs_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}
# Labels of the index without a field of the record, which every series file repeats so that it stands alone.
_REPEATED_LABELS = ("rlnOpticsGroupName", "rlnMicrographOriginalPixelSize", "rlnEtomoDirectiveFile")
_SERIES_LABELS = ("rlnTomoName", "rlnTomoHand", *_OPTICS_LABELS, *_SIZE_LABELS, *_REPEATED_LABELS)
_INDEX_ONLY = {"rlnTomoTiltSeriesStarFile", "rlnTomoTiltSeriesName", "rlnTomoFrameCount"}


def read_tilt_series(path: Path | str, image_shape_of: ImageShapeOf | None = None) -> dict[str, TiltSeries]:
    """Read all tilt series of a `tilt_series.star` or `tomograms.star` of RELION 5 or 4.

    Labels of a view without a field of the record go to `extra`, such labels of the index to `extra.attrs`.
    Projection matrices are not kept: RELION would trust them over angles that were changed since.

    Parameters
    ----------
    path
        The index.
    image_shape_of
        Tells the shape of an image where the file does not; none reads the header of the series' first image.

    Returns
    -------
    dict
        Name of the series to its record, in the file's order.

    Raises
    ------
    FileFormatError
        When labels are missing, a name comes twice, or a matrix is not a rotation.
    """
    path = check_exists(path, "tilt series STAR file")
    blocks = read_star(path)
    index = require_columns(get_table(blocks, "global", path), ["rlnTomoName"], path, "global")
    series: dict[str, TiltSeries] = {}
    for row in index.to_dict("records"):
        name = str(row["rlnTomoName"])
        globals_ = {str(label): value for label, value in row.items()}
        if name in series and globals_.get("vglRegionName"):
            # Regions of one series share its row.
            continue
        if name in series:
            raise FileFormatError(f"block 'global' of {str(path)!r} has the tilt series {name!r} twice")
        if "rlnTomoTiltSeriesStarFile" in globals_:
            star_path = check_exists(
                find_file(str(globals_["rlnTomoTiltSeriesStarFile"]), path),
                f"STAR file of tilt series {name!r}",
            )
            table = _get_views(star_path, name)
        else:
            star_path, table = path, get_table(blocks, name, path)
        series[name] = _build_series(table, globals_, star_path, image_shape_of)
    return series


def read_one_tilt_series(path: Path | str) -> TiltSeries:
    """Read a series file that `write_one_tilt_series` wrote.

    The files of other programs need their index, where the optics are.

    Raises
    ------
    FileFormatError
        When labels are missing.
    """
    path = check_exists(path, "tilt series STAR file")
    return _build_series(_get_views(path, None), {}, path, None)


def write_tilt_series(folder: Path | str, series: Iterable[TiltSeries]) -> Path:
    """Write `tilt_series.star` and `tilt_series/<name>.star` into `folder`, with RELION 5's labels.

    Paths of images inside the working directory are written relative to it, as RELION expects.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    UserError
        When a name cannot name a file or comes twice.
    """
    folder = Path(folder)
    entries = []
    for one in series:
        star_path = folder / "tilt_series" / f"{check_name(one.name, 'tilt series name')}.star"
        write_one_tilt_series(star_path, one)
        entries.append((one, star_path))
    write_tilt_series_index(folder / "tilt_series.star", entries)
    return folder / "tilt_series.star"


def write_one_tilt_series(path: Path | str, series: TiltSeries) -> None:
    """Write the STAR file of one series; it repeats the optics in each row, so that it can be read alone.

    A local field is written beside it and named in it.
    """
    check_name(series.name, "tilt series name")
    table = _tabulate_views(series)
    if series.local is not None:
        beside = local_field_path(path)
        write_local_field(beside, series.local)
        table[_LOCAL_LABEL] = beside.name
    write_star(path, {series.name: table})


def local_field_path(path: Path | str) -> Path:
    """Return where the local field is that belongs to a series' STAR file."""
    return Path(path).with_suffix(".local.json")


def write_tilt_series_index(path: Path | str, entries: Iterable[tuple[TiltSeries, Path | str]]) -> None:
    """Write the index of series whose own STAR files were written before.

    Parameters
    ----------
    path
        Usually `tilt_series.star`.
    entries
        Each series with the path of its STAR file.

    Raises
    ------
    UserError
        When a name comes twice.
    """
    rows = tabulate_index(entries)
    write_star(path, {"global": pd.DataFrame(rows)})


def tabulate_index(entries: Iterable[tuple[TiltSeries, Path | str]]) -> list[dict[str, Any]]:
    """Return what the index says of each series, label to value."""
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    for series, star_path in entries:
        if check_name(series.name, "tilt series name") in names:
            raise UserError(f"tilt series {series.name!r} comes twice; expected distinct names")
        names.add(series.name)
        row = _tabulate_globals(series)
        head = {"rlnTomoName": row.pop("rlnTomoName"), "rlnTomoTiltSeriesStarFile": project_path(star_path)}
        more = {str(label): value for label, value in series.extra.attrs.items() if label not in row}
        rows.append(head | row | more)
    return rows


def find_file(text: str, star_path: Path) -> Path:
    """Return where the file is that a STAR file names.

    RELION's paths start at the project, its working directory. A file that is not below the present one is
    looked for below the STAR file's folder and its parents; then, for a part of a project that was copied
    elsewhere, below the STAR file's folder with leading folders of its path left out. A file that is nowhere
    keeps the path as it was given.
    """
    path = Path(text)
    if path.is_absolute():
        return path
    folder = Path(os.path.abspath(star_path)).parent
    candidates = [Path.cwd() / path, *(base / path for base in (folder, *folder.parents))]
    candidates += [folder.joinpath(*path.parts[start:]) for start in range(1, len(path.parts))]
    return next((candidate for candidate in candidates if candidate.exists()), path)


def project_path(path: Path | str) -> str:
    """Return `path` as RELION writes it: from the working directory where it lies inside, else unchanged."""
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


def _get_views(path: Path, name: str | None) -> pd.DataFrame:
    blocks = read_star(path)
    if name is None or name not in blocks:
        names = [key for key, block in blocks.items() if isinstance(block, pd.DataFrame)]
        if len(names) != 1:
            raise FileFormatError(f"{str(path)!r} holds {len(names)} tables; expected one tilt series")
        table = get_table(blocks, names[0], path)
        name = names[0]
    else:
        table = get_table(blocks, name, path)
    table = table.copy()
    if "rlnTomoName" not in table:
        table["rlnTomoName"] = name
    return table


def _build_series(
    table: pd.DataFrame, row: Mapping[str, Any], path: Path, image_shape_of: ImageShapeOf | None
) -> TiltSeries:
    if len(table) == 0:
        raise FileFormatError(f"{str(path)!r} holds a tilt series without views; expected at least one")
    repeated = {label: table[label].iloc[0] for label in _SERIES_LABELS if label in table}
    row = repeated | {label: value for label, value in row.items() if value == value}
    name = check_name(str(row["rlnTomoName"]), "rlnTomoName")
    row.setdefault("rlnTomoTiltSeriesPixelSize", row.get("rlnMicrographOriginalPixelSize"))
    if row["rlnTomoTiltSeriesPixelSize"] is None:
        raise FileFormatError(f"tilt series {name!r} of {str(path)!r} lacks rlnTomoTiltSeriesPixelSize")
    optics = Optics(**{field: float(row[label]) for label, field in _OPTICS_LABELS.items() if label in row})
    size = [int(row[label]) for label in _SIZE_LABELS if label in row]
    size = size if len(size) == 3 and min(size) > 0 else []
    images = _read_images(table, row, path, name)
    matrices = _read_matrices(table, path) if all(label in table for label in _MATRIX_LABELS[:3]) else None
    image_shape = _read_image_shape(table, images[0], image_shape_of)
    if image_shape is None:
        image_shape = _infer_image_shape(table, matrices, size, optics)
    if image_shape is None:
        raise UserError(
            f"image {str(images[0].path)!r} of tilt series {name!r} is no MRC file that can be read here; "
            "expected one, to know the shape of the images"
        )
    fields: dict[str, Any] = {
        field: get_numbers(table, label, path, name)
        for label, field in _VIEW_LABELS.items()
        if label in table
    }
    if matrices is not None and not all(label in table for label in _ANGLE_LABELS):
        fields |= _decompose(matrices, size, image_shape, optics, path, name)
    if "nominal_tilt_deg" not in fields:
        if "y_tilt_deg" not in fields:
            raise FileFormatError(f"tilt series {name!r} of {str(path)!r} lacks rlnTomoNominalStageTiltAngle")
        fields["nominal_tilt_deg"] = fields["y_tilt_deg"]
    if "exposure_e_per_a2" not in fields and "rlnTomoImportFractionalDose" in row:
        fields["exposure_e_per_a2"] = float(row["rlnTomoImportFractionalDose"])
    if all(label in table for label in _MAGNIFICATION_LABELS):
        fields["magnification"] = table[list(_MAGNIFICATION_LABELS)].to_numpy(dtype=float).reshape(-1, 2, 2)
    if _LOCAL_LABEL in table:
        fields["local"] = read_local_field(check_inside(path.parent, str(table[_LOCAL_LABEL].iloc[0])))
    if "vglSelected" in table:
        fields["selected"] = table["vglSelected"].to_numpy() != 0
    if "rlnTomoHand" in row:
        fields["hand"] = round(float(row["rlnTomoHand"]))
    return TiltSeries(
        name=name,
        optics=optics,
        image_shape=image_shape,
        images=images,
        volume_shape=(size[2], size[1], size[0]) if size else None,
        extra=_keep_extra(table, row),
        **fields,
    )


def _keep_extra(table: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    known = {*_VIEW_LABELS, *_SERIES_LABELS, *_MATRIX_LABELS, *_MAGNIFICATION_LABELS, *_IMAGE_SIZE_LABELS}
    known |= {"rlnMicrographName", "vglSelected", _LOCAL_LABEL}
    extra = table[[label for label in table.columns if label not in known]].reset_index(drop=True)
    known -= set(_REPEATED_LABELS)
    extra.attrs = {
        label: value.item() if isinstance(value, np.generic) else value
        for label, value in row.items()
        # What belongs to a tomogram is in its own record.
        if label not in known | _INDEX_ONLY
        and not label.startswith(("rlnTomoReconstructed", "vglTomo"))
        and label != "rlnTomoTomogramBinning"
    }
    return extra


def _read_images(
    table: pd.DataFrame, row: Mapping[str, Any], path: Path, name: str
) -> tuple[ImageReference, ...]:
    if "rlnTomoTiltSeriesName" in row:
        stack = find_file(str(row["rlnTomoTiltSeriesName"]).removesuffix(":mrc"), path)
        return tuple(ImageReference(stack, section) for section in range(len(table)))
    for label in ("rlnMicrographName", "rlnMicrographMovieName"):
        if label in table:
            # One look a folder: on shared disks a look at every image takes long.
            folders: dict[Path, Path] = {}
            images = []
            for text in table[label]:
                number, _, file = str(text).partition("@")
                section = int(number) - 1 if file and number.isdigit() else None
                image = Path(str(text) if section is None else file)
                if image.parent not in folders:
                    folders[image.parent] = find_file(str(image), path).parent
                images.append(ImageReference(folders[image.parent] / image.name, section))
            return tuple(images)
    raise FileFormatError(f"tilt series {name!r} of {str(path)!r} lacks rlnMicrographName")


def _read_image_shape(
    table: pd.DataFrame, first: ImageReference, image_shape_of: ImageShapeOf | None
) -> tuple[int, int] | None:
    if all(label in table for label in _IMAGE_SIZE_LABELS):
        x, y = (int(table[label].iloc[0]) for label in _IMAGE_SIZE_LABELS)
        return (y, x)
    if image_shape_of is not None:
        return image_shape_of(first)
    try:
        with first.path.open("rb") as file:
            header = file.read(1024)
    except OSError:
        return None
    if len(header) < 1024:
        return None
    for order in "<>":
        x, y, sections, mode = struct.unpack(f"{order}4i", header[:16])
        if mode in _MRC_MODES and min(x, y, sections) > 0 and max(x, y, sections) < 2**20:
            return (y, x)
    return None


def _read_matrices(table: pd.DataFrame, path: Path) -> npt.NDArray[np.float64]:
    try:
        rows = [[json.loads(text) for text in table[label]] for label in _MATRIX_LABELS[:3]]
        matrices = np.asarray(rows, dtype=float).transpose(1, 0, 2)
    except (TypeError, ValueError):
        matrices = np.empty(0)
    if matrices.shape != (len(table), 3, 4):
        raise FileFormatError(f"{str(path)!r} has projection matrices that are not rows like [1,0,0,0]")
    return matrices


def _decompose(
    matrices: npt.NDArray[np.float64],
    size: list[int],
    image_shape: tuple[int, int],
    optics: Optics,
    path: Path,
    name: str,
) -> dict[str, Any]:
    """Angles and shifts of RELION 4's matrices.

    They take pixels counted from the volume's corner to pixels counted from the image's corner. The volume's
    centre is at half its size, as in RELION 5's centred coordinates.
    """
    rotations = matrices[:, :, :3]
    deviation = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero((deviation > 1e-3) | (np.linalg.det(rotations) < 0))
    if len(bad):
        raise FileFormatError(
            f"projection matrix {bad[0] + 1} of tilt series {name!r} in {str(path)!r} is not a rotation"
        )
    if not size:
        raise FileFormatError(f"tilt series {name!r} of {str(path)!r} lacks rlnTomoSizeX, Y and Z")
    angles = Rotation.from_matrix(rotations).as_euler("xyz", degrees=True)
    place = rotations[:, :2] @ (np.array(size) / 2) + matrices[:, :2, 3]
    shifts = (place - (image_shape[1] // 2, image_shape[0] // 2)) * optics.pixel_size_angstrom
    return {
        "x_tilt_deg": angles[:, 0],
        "y_tilt_deg": angles[:, 1],
        "z_rot_deg": angles[:, 2],
        "x_shift_angstrom": shifts[:, 0],
        "y_shift_angstrom": shifts[:, 1],
    }


def _infer_image_shape(
    table: pd.DataFrame, matrices: npt.NDArray[np.float64] | None, size: list[int], optics: Optics
) -> tuple[int, int] | None:
    """Shape of images that are not here, from a file that has both angles and matrices."""
    if matrices is None or not size or not all(label in table for label in _ANGLE_LABELS):
        return None
    shift = table[["rlnTomoXShiftAngst", "rlnTomoYShiftAngst"]].to_numpy(dtype=float)
    centre = (
        matrices[:, :2, :3] @ (np.array(size) / 2) + matrices[:, :2, 3] - shift / optics.pixel_size_angstrom
    )
    x, y = (round(2 * float(value)) for value in np.median(centre, axis=0))
    return (y, x) if min(x, y) > 0 else None


def _tabulate_globals(series: TiltSeries) -> dict[str, Any]:
    row: dict[str, Any] = {"rlnTomoName": series.name}
    row |= {label: getattr(series.optics, field) for label, field in _OPTICS_LABELS.items()}
    row["rlnMicrographOriginalPixelSize"] = series.pixel_size_angstrom
    row["rlnOpticsGroupName"] = "opticsGroup1"
    row |= {label: series.extra.attrs[label] for label in _REPEATED_LABELS if label in series.extra.attrs}
    row["rlnTomoHand"] = float(series.hand)
    if series.volume_shape is not None:
        row |= dict(zip(_SIZE_LABELS, reversed(series.volume_shape), strict=True))
    return row


def _name_image(image: ImageReference) -> str:
    file = project_path(image.path)
    return file if image.section is None else f"{image.section + 1:06d}@{file}"


def _tabulate_views(series: TiltSeries) -> pd.DataFrame:
    columns: dict[str, Any] = {"rlnMicrographName": [_name_image(image) for image in series.images]}
    for label, field in _VIEW_LABELS.items():
        values = getattr(series, field)
        # A column of unknown values would be read as numbers by RELION.
        if not np.isnan(values).all():
            columns[label] = values
    if (series.magnification != np.eye(2)).any():
        columns |= dict(zip(_MAGNIFICATION_LABELS, series.magnification.reshape(-1, 4).T, strict=True))
    columns["vglSelected"] = series.selected
    count = len(series)
    columns |= dict(zip(_IMAGE_SIZE_LABELS, ([n] * count for n in reversed(series.image_shape)), strict=True))
    columns |= {label: [value] * count for label, value in _tabulate_globals(series).items()}
    table = pd.DataFrame(columns)
    extra = series.extra if len(series.extra) else pd.DataFrame(index=table.index)
    more = [label for label in extra.columns if label not in table]
    return pd.concat([table, extra[more].reset_index(drop=True)], axis=1) if more else table
