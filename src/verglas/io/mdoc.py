"""SerialEM's mdoc files: what the microscope noted of each image.

Values are kept as the text that they are, in their order, so that nothing is lost; the functions below read
the few that are needed. One file describes either a whole stack (sections `ZValue`) or the frames of one tilt
(a section `FrameSet`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PureWindowsPath

from verglas.errors import FileFormatError
from verglas.files import atomic_path, check_exists

_SECTION = re.compile(r"\[(?P<kind>\w+) = (?P<index>.*)\]")
_TITLE = re.compile(r"\[T = (?P<text>.*)\]")
_PAIR = re.compile(r"(?P<key>[^=\[\]]+?) = ?(?P<value>.*)")
_AXIS = re.compile(r"tilt axis angle\s*=\s*(?P<angle>-?[\d.]+)", re.IGNORECASE)
_TIME_FORMATS = ("%d-%b-%y  %H:%M:%S", "%d-%b-%Y  %H:%M:%S")


@dataclass(frozen=True)
class MdocSection:
    """One image.

    Parameters
    ----------
    kind
        `ZValue` for a section of a stack, `FrameSet` for a movie, and others.
    index
        What the heading says behind the kind.
    values
        Key to text; the values of a key that comes several times are lines of one text.
    """

    kind: str
    index: str
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mdoc:
    """A whole mdoc file.

    Parameters
    ----------
    globals
        Key to text, before the first section.
    titles
        Text of the lines `[T = ...]`.
    sections
        The images, in the file's order.
    """

    globals: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    sections: list[MdocSection] = field(default_factory=list)


def read_mdoc(path: Path | str) -> Mdoc:
    """Read a mdoc file.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When a line is neither `key = value` nor a heading in brackets, or there is nothing in the file.
    """
    path = check_exists(path, "mdoc file")
    # Titles hold what users typed, in the microscope computer's encoding.
    lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    mdoc = Mdoc()
    values = mdoc.globals
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        if title := _TITLE.fullmatch(line.rstrip()):
            mdoc.titles.append(title["text"])
        elif section := _SECTION.fullmatch(line.rstrip()):
            mdoc.sections.append(MdocSection(section["kind"], section["index"]))
            values = mdoc.sections[-1].values
        elif pair := _PAIR.fullmatch(line):
            key = pair["key"]
            values[key] = f"{values[key]}\n{pair['value']}" if key in values else pair["value"]
        else:
            raise FileFormatError(f"line {number} of {str(path)!r} is not `key = value`; got {line[:60]!r}")
    if not mdoc.globals and not mdoc.sections:
        raise FileFormatError(f"{str(path)!r} is empty; expected a mdoc file")
    return mdoc


def write_mdoc(path: Path | str, mdoc: Mdoc) -> None:
    """Write a mdoc file: globals, titles, then the sections, as SerialEM lays it out."""
    parts = [_join(mdoc.globals)] if mdoc.globals else []
    parts += [f"[T = {title}]\n" for title in mdoc.titles]
    parts += [f"[{section.kind} = {section.index}]\n{_join(section.values)}" for section in mdoc.sections]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(parts).encode("utf-8", errors="surrogateescape"))


def get_number(values: Mapping[str, str], key: str, place: str = "mdoc file") -> float:
    """Return a value that is one number.

    Raises
    ------
    FileFormatError
        When it is missing or not a number; the message names `place`.
    """
    text = values.get(key)
    if text is None:
        raise FileFormatError(f"{place} lacks {key!r}")
    try:
        return float(text)
    except ValueError:
        raise FileFormatError(f"{key!r} of {place} must be a number; got {text!r}") from None


def get_tilt_angles(mdoc: Mdoc) -> list[float]:
    """Return the stage angle of each section, degrees.

    Raises
    ------
    FileFormatError
        When a section has none.
    """
    return [
        get_number(section.values, "TiltAngle", f"section {section.index} of the mdoc file")
        for section in mdoc.sections
    ]


def get_frame_names(mdoc: Mdoc) -> list[str | None]:
    """Return the file name of each section's movie, without the microscope computer's folders."""
    paths = [section.values.get("SubFramePath") for section in mdoc.sections]
    # A Windows path also takes slashes as separators.
    return [None if path is None else PureWindowsPath(path).name for path in paths]


def get_exposures(mdoc: Mdoc) -> list[float | None]:
    """Return the exposure of each section, e/Å²; none where SerialEM, uncalibrated, wrote 0 or nothing."""
    exposures: list[float | None] = []
    for section in mdoc.sections:
        place = f"section {section.index} of the mdoc file"
        dose = get_number(section.values, "ExposureDose", place) if "ExposureDose" in section.values else 0.0
        exposures.append(dose if dose > 0 else None)
    return exposures


def get_times(mdoc: Mdoc) -> list[datetime | None]:
    """Return when each section was recorded.

    Raises
    ------
    FileFormatError
        When a time is not like `06-Jun-23  23:51:26`.
    """
    texts = [section.values.get("DateTime") for section in mdoc.sections]
    return [None if text is None else _parse_time(text) for text in texts]


def get_acquisition_order(mdoc: Mdoc) -> list[int]:
    """Return the place of each section in the order of recording, 0 for the first.

    Sections without times count in the file's order, which is SerialEM's unless the file was sorted.
    """
    times = get_times(mdoc)
    count = len(times)
    known = [time for time in times if time is not None]
    if len(known) < count:
        return list(range(count))
    order = [0] * count
    for place, index in enumerate(sorted(range(count), key=known.__getitem__)):
        order[index] = place
    return order


def get_pixel_spacing_angstrom(mdoc: Mdoc) -> float:
    """Return the pixel size, Å, of the first section or else of the whole file.

    Raises
    ------
    FileFormatError
        When there is none.
    """
    for values in (*(section.values for section in mdoc.sections[:1]), mdoc.globals):
        if "PixelSpacing" in values:
            return get_number(values, "PixelSpacing")
    raise FileFormatError("mdoc file lacks 'PixelSpacing'")


def get_tilt_axis_angle_deg(mdoc: Mdoc) -> float | None:
    """Return the angle of the tilt axis as SerialEM gives it: in the titles, else from the image's rotation.

    `RotationAngle` is how the image is turned against the stage; the tilt axis lies 90 degrees before it.
    """
    for title in (*mdoc.titles, mdoc.globals.get("T", "")):
        if found := _AXIS.search(title):
            return float(found["angle"])
    for section in mdoc.sections[:1]:
        if "RotationAngle" in section.values:
            return get_number(section.values, "RotationAngle") - 90.0
    return None


def _join(values: Mapping[str, str]) -> str:
    return "".join(f"{key} = {line}\n" for key, value in values.items() for line in value.split("\n"))


def _parse_time(text: str) -> datetime:
    for time_format in _TIME_FORMATS:
        try:
            return datetime.strptime(" ".join(text.split()), " ".join(time_format.split()))
        except ValueError:
            continue
    raise FileFormatError(f"'DateTime' of the mdoc file must be like 06-Jun-23 23:51:26; got {text!r}")
