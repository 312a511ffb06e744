"""What SerialEM noted of a tilt series, from one mdoc of the series or one of each view."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.io.mdoc import (
    Mdoc,
    get_acquisition_order,
    get_exposures,
    get_frame_names,
    get_number,
    get_pixel_spacing_angstrom,
    get_tilt_angles,
    get_tilt_axis_angle_deg,
    read_mdoc,
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

IMAGE_SUFFIXES = (".mrc", ".mrcs", ".st", ".tif", ".tiff", ".eer")


@dataclass(frozen=True)
class Recording:
    """What is known of the n views of a series, in the order of the files.

    Parameters
    ----------
    tilt_deg
        `(n,)` stage angles.
    order
        `(n,)` place of each view in the order of recording, 0 for the first.
    exposure_e_per_a2
        `(n,)` exposure of each view; NaN where SerialEM was not calibrated.
    frame_names
        File name of each view's movie; none where it was not saved.
    sections
        `(n,)` section of each view in the stack, from 0; none for mdocs of single views.
    axis_deg
        Angle of the tilt axis in the image, when known.
    pixel_size_angstrom, voltage_kv
        When known.
    """

    tilt_deg: FloatArray
    order: IntArray
    exposure_e_per_a2: FloatArray
    frame_names: tuple[str | None, ...]
    sections: IntArray | None
    axis_deg: float | None
    pixel_size_angstrom: float | None
    voltage_kv: float | None

    def __len__(self) -> int:
        return len(self.tilt_deg)


def read_recording(paths: Sequence[Path]) -> Recording:
    """Read the mdoc of a series, or the mdocs of its views.

    Parameters
    ----------
    paths
        One file with sections `ZValue`, or one a view with a section `FrameSet`, in the order of recording.

    Raises
    ------
    MissingFileError, FileFormatError
        When a file is missing or lacks what a series must have; the message names the file.
    """
    files = [read_mdoc(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        _check_sections(path, file)
    whole = Mdoc(files[0].globals, files[0].titles, [section for file in files for section in file.sections])
    try:
        exposures = [np.nan if value is None else value for value in get_exposures(whole)]
        names = get_frame_names(whole)
        is_stack = whole.sections[0].kind == "ZValue"
        if not is_stack:
            names = [name or path.name.removesuffix(".mdoc") for name, path in zip(names, paths, strict=True)]
        recording = Recording(
            tilt_deg=np.array(get_tilt_angles(whole)),
            order=np.array(get_acquisition_order(whole), dtype=np.int64),
            exposure_e_per_a2=np.array(exposures),
            frame_names=tuple(names),
            sections=_read_sections(whole) if is_stack else None,
            axis_deg=get_tilt_axis_angle_deg(whole),
            pixel_size_angstrom=_read_pixel_size(whole),
            voltage_kv=get_number(whole.globals, "Voltage") if "Voltage" in whole.globals else None,
        )
    except FileFormatError as error:
        raise FileFormatError(f"{str(paths[0])!r}: {error}") from None
    if not np.isfinite(recording.tilt_deg).all():
        raise FileFormatError(f"{str(paths[0])!r} has a tilt angle that is not finite")
    return recording


def series_name(path: Path) -> str:
    """Name of the series of a file: without its suffixes, those of images before `.mdoc` and the like included."""
    stem = path.stem
    for suffix in IMAGE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return stem


def find_stack(name: str, folder: Path) -> Path | None:
    """Find the stack of a series: `<name>.st` and the like in `folder`, or in `folder/<name>`.

    The first of `.st`, `.mrc`, `.mrcs`, `.stack.mrc` and emClarity's `.fixed` that exists.
    """
    for place in (folder, folder / name):
        for suffix in (".st", ".mrc", ".mrcs", ".stack.mrc", ".fixed"):
            if (path := place / f"{name}{suffix}").is_file():
                return path
    return None


def find_mdoc(name: str, folder: Path) -> Path | None:
    """Find the mdoc of a series in `folder`: `<name>.mdoc`, or `<name>.mrc.mdoc` and the like."""
    candidates = (folder / f"{name}{suffix}.mdoc" for suffix in (*IMAGE_SUFFIXES, ""))
    return next((path for path in candidates if path.is_file()), None)


def group_mdocs(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Sort mdocs by series: name to the one mdoc of the series, or to those of its views in order of recording.

    Mdocs of single views are told by their content and named `SERIES_NUMBER_TILT`, as SerialEM does it.

    Raises
    ------
    UserError
        When the mdoc of a view has another name, or a series comes twice.
    """
    views: dict[str, list[tuple[int, Path]]] = {}
    groups: dict[str, tuple[Path, ...]] = {}
    for path in dict.fromkeys(paths):
        with path.open("rb") as file:
            is_view = b"[FrameSet" in file.read(1 << 14)
        name = series_name(path)
        if is_view:
            match = _VIEW_NAME.fullmatch(path.name)
            if match is None:
                raise UserError(
                    f"mdoc {str(path)!r} is that of a single view, but its name does not tell the series; expected "
                    "SERIES_NUMBER_TILT, such as TS_01_000_0.0.mrc.mdoc"
                )
            views.setdefault(match["series"], []).append((int(match["order"]), path))
        elif name in groups:
            raise UserError(f"{str(path)!r} and {str(groups[name][0])!r} are both mdocs of {name!r}")
        else:
            groups[name] = (path,)
    for name, numbered in views.items():
        if name in groups:
            raise UserError(
                f"series {name!r} has both an mdoc of its own and mdocs of its views; give one kind"
            )
        groups[name] = tuple(path for _, path in sorted(numbered))
    return groups


_VIEW_NAME = re.compile(r"(?P<series>.+)_(?P<order>\d{1,5})_[-+]?\d+(\.\d+)?([._].*)?\.mdoc")


def _check_sections(path: Path, file: Mdoc) -> None:
    kinds = {section.kind for section in file.sections}
    if kinds not in ({"ZValue"}, {"FrameSet"}) or (kinds == {"FrameSet"} and len(file.sections) > 1):
        found = ", ".join(sorted(kinds)) or "none"
        raise FileFormatError(
            f"{str(path)!r} has the sections {found}; expected ZValue for a series, or one FrameSet for a view"
        )


def _read_sections(mdoc: Mdoc) -> IntArray:
    indices = [section.index.strip() for section in mdoc.sections]
    if not all(index.isdecimal() for index in indices) or len(set(indices)) < len(indices):
        raise FileFormatError("the ZValues of the mdoc file are not distinct whole numbers")
    return np.array(indices, dtype=np.int64)


def _read_pixel_size(mdoc: Mdoc) -> float | None:
    try:
        return get_pixel_spacing_angstrom(mdoc)
    except FileFormatError:
        return None
