"""The XML in which Warp keeps a tilt series or a movie."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.files import atomic_path, check_exists

FloatArray = npt.NDArray[np.float64]

_MAX_BYTES = 256 << 20
_PER_VIEW = (
    "Angles",
    "Dose",
    "UseTilt",
    "AxisAngle",
    "AxisOffsetX",
    "AxisOffsetY",
    "MoviePath",
    "FOVFraction",
)


@dataclass(frozen=True, eq=False)
class WarpGrid:
    """Values of a spline grid.

    Parameters
    ----------
    values
        `(depth, height, width)`, or `(duration, depth, height, width)`: along z, or the last, go the views.
    margins
        Fraction xyz of the image outside the outermost nodes.
    """

    values: FloatArray
    margins: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class WarpItem:
    """The XML of a tilt series or a movie.

    Parameters
    ----------
    xml
        The whole document as it was read, so that writing it loses nothing.
    kind
        `TiltSeries` or `Movie`.
    attributes
        Attributes of the outermost element.
    lists
        Values of each view by the element's name, such as `Angles`, `Dose`, `MoviePath`; only of tilt series.
    ctf
        Parameters of the CTF: defocus in µm, Cs in mm, voltage in kV, phase shift in units of π.
    grids
        Spline grids by name.
    """

    xml: str
    kind: str
    attributes: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]
    ctf: Mapping[str, str]
    grids: Mapping[str, WarpGrid]

    def __len__(self) -> int:
        return len(self.lists.get("Angles", ()))

    def numbers(self, name: str) -> FloatArray | None:
        """Return `(n,)` values of a list, or None where the document does not have it.

        Raises
        ------
        FileFormatError
            When a value is not a finite number.
        """
        return np.array([parse_number(v, name) for v in self.lists[name]]) if name in self.lists else None


def read_warp_xml(path: Path | str) -> WarpItem:
    """Read the XML of a tilt series or a movie.

    Document types and entities are refused, and files of more than 256 MiB.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is not such a document, its lists are not equally long, or a grid lacks nodes.
    """
    path = check_exists(path, "Warp XML file")
    where = f"Warp XML file {str(path)!r}"
    if path.stat().st_size > _MAX_BYTES:
        raise FileFormatError(f"{where} has {path.stat().st_size} bytes; expected at most {_MAX_BYTES}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise FileFormatError(f"{where} is not UTF-8 text") from None
    try:
        return parse_warp_xml(text)
    except FileFormatError as error:
        raise FileFormatError(f"{where}: {error}") from None


def write_warp_xml(path: Path | str, item: WarpItem) -> None:
    """Write the document of a record."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(item.xml.encode("utf-8"))


def movie_names(item: WarpItem) -> tuple[str, ...]:
    """Names of the movies of a tilt series, without the folders they were in.

    Raises
    ------
    FileFormatError
        When the document has no movies, or a path has no name at its end.
    """
    names = []
    for path in item.lists.get("MoviePath", ()):
        name = PurePosixPath(path.replace("\\", "/")).name
        if name in {"", ".."} or "\0" in name:
            raise FileFormatError(f"MoviePath {path!r} does not end in the name of a file")
        names.append(name)
    if not names:
        raise FileFormatError("the document has no MoviePath; expected one for each view")
    return tuple(names)


def parse_element(xml: str) -> ET.Element:
    """Outermost element of a document, comments kept.

    Raises
    ------
    FileFormatError
        When it is not well formed, or declares a type or entities.
    """
    # A document type is the only door to entities, which grow without bound.
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise FileFormatError("the document declares a type or entities; Warp's never do")
    try:
        return ET.fromstring(xml.lstrip("\ufeff"), ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))
    except (ET.ParseError, ValueError) as error:
        raise FileFormatError(f"the document is no well-formed XML: {error}") from None


def parse_warp_xml(xml: str) -> WarpItem:
    """Read a document that is already text; see `read_warp_xml`."""
    root = parse_element(xml)
    if root.tag not in {"TiltSeries", "Movie"}:
        raise FileFormatError(
            f"the outermost element is {str(root.tag)[:40]!r}; expected TiltSeries or Movie"
        )
    lists, grids = {}, {}
    for element in root.iterfind("*"):
        if element.tag in _PER_VIEW and root.tag == "TiltSeries":
            lists[element.tag] = tuple(line.strip() for line in (element.text or "").strip().splitlines())
        elif element.tag.startswith("Grid"):
            grids[element.tag] = _parse_grid(element)
    count = len(lists.get("Angles", ()))
    for name, values in lists.items():
        if len(values) != count:
            raise FileFormatError(f"{name} has {len(values)} values; expected {count}, as many as Angles")
    block = root.find("CTF")
    parameters = () if block is None else block.findall("Param")
    ctf = {item.get("Name", ""): item.get("Value", "") for item in parameters}
    return WarpItem(xml, root.tag, dict(root.attrib), lists, ctf, grids)


def _parse_grid(element: ET.Element) -> WarpGrid:
    name = element.tag
    sizes = [_count(element.get(key, "1"), f"{key} of {name}") for key in ("Width", "Height", "Depth")]
    axes = ["X", "Y", "Z"]
    if "Duration" in element.attrib:
        sizes.append(_count(element.attrib["Duration"], f"Duration of {name}"))
        axes.append("W")
    nodes = element.findall("Node")
    if np.prod([float(size) for size in sizes]) != len(nodes):
        raise FileFormatError(f"{name} has {len(nodes)} nodes; expected {' x '.join(map(str, sizes))}")
    values = np.full(sizes[::-1], np.nan)
    for node in nodes:
        place = tuple(_count(node.get(axis, ""), f"{axis} of a node of {name}", 0) for axis in reversed(axes))
        if any(p >= n for p, n in zip(place, values.shape, strict=True)):
            raise FileFormatError(
                f"{name} has a node at {place[::-1]}; expected one inside {values.shape[::-1]}"
            )
        values[place] = parse_number(node.get("Value", ""), name)
    if np.isnan(values).any():
        raise FileFormatError(f"{name} has two nodes at the same place")
    x, y, z = (parse_number(element.get(f"Margin{axis}", "0"), f"Margin{axis} of {name}") for axis in "XYZ")
    return WarpGrid(values, (x, y, z))


def _count(text: str, what: str, least: int = 1) -> int:
    if not (text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise FileFormatError(f"{what} is {text[:40]!r}; expected a whole number from {least} up")
    return int(text)


def parse_number(text: str, what: str) -> float:
    """Read a finite number; `what` names it in the error."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise FileFormatError(f"{what} is {text[:40]!r}; expected a finite number")
    return value
