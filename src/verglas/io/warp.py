"""Warp's metadata: the XML of a tilt series or movie, the `.tomostar`; and their geometry.

Warp's geometry
---------------
In Warp a specimen point p (Å, from the volume's centre) appears at

    centre + Rz(AxisAngle) Ry(-(Angle + LevelAngleY)) Rx(LevelAngleX) p + AxisOffset - Movement

and its defocus is that of the view plus the rotated height, or with `AreAnglesInverted="True"` less it. So y_tilt is
-(Angle + LevelAngleY), x_tilt is LevelAngleX, and the flag is the hand: +1 when false, -1 when true. The ribosomes of
EMPIAR-10499, whose documents have the flag set, come out with their own hand that way.

Warp's centre of n pixels is the coordinate n / 2 of which pixel i has its centre at i.

What does not enter `TiltSeries` stays in the record: image warps of more than one node in a view and volume
warps, the grids of stage angles, which Warp applies to the orientation of particles and not to their place,
and for the same reason `MagnificationCorrection`.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import FileFormatError, UserError
from verglas.io.star import read_table, write_star
from verglas.io.warp_xml import WarpGrid as WarpGrid
from verglas.io.warp_xml import WarpItem as WarpItem
from verglas.io.warp_xml import movie_names as movie_names
from verglas.io.warp_xml import parse_element, parse_number, parse_warp_xml
from verglas.io.warp_xml import read_warp_xml as read_warp_xml
from verglas.io.warp_xml import write_warp_xml as write_warp_xml
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.units import ANGSTROM_PER_MICROMETRE

FloatArray = npt.NDArray[np.float64]

_TOMOSTAR_REQUIRED = ("wrpMovieName", "wrpAngleTilt")


def tilt_series_from_warp(
    item: WarpItem,
    *,
    name: str,
    pixel_size_angstrom: float,
    image_shape: tuple[int, int],
    stack: Path | None = None,
) -> TiltSeries:
    """Turn Warp's alignment and CTF into our geometry; see the module's text.

    The defocus of a view is the mean of its nodes of `GridCTF`; a grid with another number of nodes along the
    views is interpolated linearly. A grid of nothing but zeros means that no defocus was fitted.

    Parameters
    ----------
    item
        Document of a tilt series.
    name
        Name of the series.
    pixel_size_angstrom
        Of the images that the series will refer to.
    image_shape
        `(y, x)` of these images.
    stack
        Their stack, in the order of the document. Without it the images are the movies' bare names.

    Raises
    ------
    FileFormatError
        When the document is not that of a tilt series, or lacks what a series must have.
    """
    if item.kind != "TiltSeries" or not len(item):
        raise FileFormatError(
            f"the document of {name!r} is a {item.kind} of {len(item)} views; expected a tilt series"
        )
    count = len(item)
    level_x, level_y = (_attribute(item, key) for key in ("LevelAngleX", "LevelAngleY"))
    angles = _per_view(item, "Angles")
    step = np.array([size / 2 - size // 2 for size in image_shape[::-1]]) * pixel_size_angstrom
    defocus, delta = (
        _micrometres(item, "GridCTF", "Defocus"),
        _micrometres(item, "GridCTFDefocusDelta", "DefocusDelta"),
    )
    angle, phase = _along_views(item, "GridCTFDefocusAngle"), _along_views(item, "GridCTFPhase")
    if stack is None:
        images = tuple(ImageReference(Path(movie)) for movie in movie_names(item))
    else:
        images = tuple(ImageReference(stack, section) for section in range(count))
    return TiltSeries(
        name=name,
        optics=Optics(
            pixel_size_angstrom=pixel_size_angstrom,
            voltage_kv=parse_number(item.ctf.get("Voltage", "300"), "Voltage"),
            cs_mm=parse_number(item.ctf.get("Cs", "2.7"), "Cs"),
            amplitude_contrast=parse_number(item.ctf.get("Amplitude", "0.1"), "Amplitude"),
        ),
        image_shape=image_shape,
        images=images,
        nominal_tilt_deg=-angles,
        x_tilt_deg=np.full(count, level_x),
        y_tilt_deg=-(angles + level_y),
        z_rot_deg=_per_view(item, "AxisAngle"),
        x_shift_angstrom=_per_view(item, "AxisOffsetX") - _movement(item, "GridMovementX") + step[0],
        y_shift_angstrom=_per_view(item, "AxisOffsetY") - _movement(item, "GridMovementY") + step[1],
        pre_exposure_e_per_a2=_per_view(item, "Dose"),
        defocus_u_angstrom=defocus + delta / 2,
        defocus_v_angstrom=defocus - delta / 2,
        defocus_angle_deg=np.zeros(count) if angle is None else angle,
        phase_shift_deg=np.zeros(count) if phase is None else 180.0 * phase,
        selected=np.array([_is_true(v, "UseTilt") for v in item.lists.get("UseTilt", ("True",) * count)]),
        hand=-1 if _are_angles_inverted(item) else 1,
        volume_shape=_volume_shape(item, pixel_size_angstrom),
        extra=pd.DataFrame(),
    )


def tilt_series_to_warp(series: TiltSeries, base: WarpItem | None = None) -> WarpItem:
    """Turn our geometry and CTF into a document of Warp.

    Parameters
    ----------
    series
        The series. `tilt_series_from_warp` of the result gives it back.
    base
        Document to change: all that does not come from the series is kept. Without it a small document is made.

    Raises
    ------
    UserError
        When the series has what Warp cannot hold: x tilts that differ between views, or a magnification; or
        when the base has another number of views.
    """
    _check_for_warp(series, base)
    root = parse_element(_minimal(series) if base is None else base.xml)
    root.set("AreAnglesInverted", str(series.hand == -1))
    if series.volume_shape is not None:
        extent = (_text(n * series.pixel_size_angstrom) for n in series.volume_shape[::-1])
        root.set("VolumeDimensionsAngstrom", ", ".join(extent))
    level_y = 0.0 if base is None else _attribute(base, "LevelAngleY")
    root.set("LevelAngleX", _text(float(series.x_tilt_deg[0])))
    step = np.array([size / 2 - size // 2 for size in series.image_shape[::-1]]) * series.pixel_size_angstrom
    assert series.y_tilt_deg is not None
    _set_list(root, "Angles", map(_text, -series.y_tilt_deg - level_y))
    _set_list(root, "Dose", map(_text, series.pre_exposure_e_per_a2))
    _set_list(root, "UseTilt", map(str, series.selected.tolist()))
    _set_list(root, "AxisAngle", map(_text, series.z_rot_deg))
    for axis, shift, offset in zip(
        "XY", (series.x_shift_angstrom, series.y_shift_angstrom), step, strict=True
    ):
        movement = 0.0 if base is None else _movement(base, f"GridMovement{axis}")
        _set_list(root, f"AxisOffset{axis}", map(_text, shift - offset + movement))
    _set_ctf(root, series)
    ET.indent(root, "\t")
    text = ET.tostring(root, encoding="unicode")
    return parse_warp_xml(f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n{text}')


def read_tomostar(path: Path | str) -> pd.DataFrame:
    """Read a `.tomostar`: a row a view, labels without the underscore.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, is no STAR file, or has no movie names and tilt angles.
    """
    return read_table(path, required=_TOMOSTAR_REQUIRED)


def write_tomostar(path: Path | str, series: TiltSeries) -> None:
    """Write a `.tomostar`, from which Warp starts a tilt series; its angles have Warp's sign."""
    assert series.y_tilt_deg is not None
    table = pd.DataFrame(
        {
            "wrpMovieName": _image_names(series),
            "wrpAngleTilt": -series.y_tilt_deg,
            "wrpAxisAngle": series.z_rot_deg,
            "wrpAxisOffsetX": series.x_shift_angstrom,
            "wrpAxisOffsetY": series.y_shift_angstrom,
            "wrpDose": series.pre_exposure_e_per_a2,
        }
    )
    write_star(path, {"": table})


def _is_true(text: str, what: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise FileFormatError(f"{what} is {text[:40]!r}; expected True or False")
    return text.lower() == "true"


def _are_angles_inverted(item: WarpItem) -> bool:
    return _is_true(item.attributes.get("AreAnglesInverted", "False"), "AreAnglesInverted")


def _attribute(item: WarpItem, name: str) -> float:
    return parse_number(item.attributes.get(name, "0"), name)


def _per_view(item: WarpItem, name: str) -> FloatArray:
    values = item.numbers(name)
    return np.zeros(len(item)) if values is None else values


def _along_views(item: WarpItem, grid: str) -> FloatArray | None:
    """Mean of a grid's nodes for each view, or None where the grid is missing."""
    if grid not in item.grids:
        return None
    nodes = item.grids[grid].values.mean(axis=(-2, -1))
    return np.asarray(np.interp(np.linspace(0, 1, len(item)), np.linspace(0, 1, len(nodes)), nodes))


def _micrometres(item: WarpItem, grid: str, parameter: str) -> FloatArray:
    """Values of a defocus grid, or of the parameter without one, in Å; NaN for what was never fitted."""
    values = _along_views(item, grid)
    if values is None:
        values = np.full(len(item), parse_number(item.ctf.get(parameter, "0"), parameter))
    if grid == "GridCTF" and not values.any():
        values = np.full(len(item), np.nan)
    return values * ANGSTROM_PER_MICROMETRE


def _movement(item: WarpItem, name: str) -> FloatArray:
    """Image warp that is one shift a view; what varies over the image is left to the record."""
    grid = item.grids.get(name)
    if grid is None or grid.values.shape[-2:] != (1, 1):
        return np.zeros(len(item))
    values = _along_views(item, name)
    assert values is not None
    return values


def _volume_shape(item: WarpItem, pixel_size_angstrom: float) -> tuple[int, int, int] | None:
    words = item.attributes.get("VolumeDimensionsAngstrom", "").split(",")
    if len(words) != 3:
        return None
    x, y, z = (round(parse_number(word, "VolumeDimensionsAngstrom") / pixel_size_angstrom) for word in words)
    return (z, y, x) if min(x, y, z) > 0 else None


def _check_for_warp(series: TiltSeries, base: WarpItem | None) -> None:
    if base is not None and (base.kind != "TiltSeries" or len(base) != len(series)):
        raise UserError(
            f"the document to change is a {base.kind} of {len(base)} views; expected {len(series)} views"
        )
    if np.ptp(series.x_tilt_deg) > 1e-6:
        raise UserError(
            f"tilt series {series.name!r} has x tilts from {series.x_tilt_deg.min():g} to "
            f"{series.x_tilt_deg.max():g} degrees; Warp knows only one for all views"
        )
    excess = np.abs(series.magnification - np.eye(2)).max(axis=(1, 2))
    if excess.max() > 1e-4:
        raise UserError(
            f"view {int(excess.argmax()) + 1} of tilt series {series.name!r} has a magnification that "
            f"differs from 1 by {excess.max():.2g}; Warp places points without"
        )


def _text(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _image_names(series: TiltSeries) -> list[str]:
    return [
        image.path.name if image.section is None else f"{image.path.stem}_{image.section + 1:03d}.mrc"
        for image in series.images
    ]


def _minimal(series: TiltSeries) -> str:
    root = ET.Element("TiltSeries", {"DataDirectory": "", "UnselectFilter": "False", "UnselectManual": ""})
    _set_list(root, "Angles", [])
    _set_list(root, "MoviePath", _image_names(series))
    ET.SubElement(root, "CTF")
    return ET.tostring(root, encoding="unicode")


def _set_list(root: ET.Element, name: str, values: Iterable[str]) -> None:
    element = root.find(name)
    if element is None:
        element = ET.SubElement(root, name)
    element.text = "\n".join(values)


def _set_ctf(root: ET.Element, series: TiltSeries) -> None:
    block = root.find("CTF")
    if block is None:
        block = ET.SubElement(root, "CTF")
    optics = series.optics
    known = {"PixelSize": optics.pixel_size_angstrom, "Voltage": optics.voltage_kv, "Cs": optics.cs_mm}
    known["Amplitude"] = optics.amplitude_contrast
    grids = {"GridCTFPhase": series.phase_shift_deg / 180.0}
    mean = series.mean_defocus_angstrom
    if np.isfinite(mean).any():
        # Warp has no word for an unknown defocus, so such a view gets that of the others.
        mean = np.where(np.isfinite(mean), mean, np.nanmean(mean))
        delta = np.nan_to_num(series.defocus_u_angstrom - series.defocus_v_angstrom)
        known["Defocus"] = float(mean.mean()) / ANGSTROM_PER_MICROMETRE
        grids["GridCTF"] = mean / ANGSTROM_PER_MICROMETRE
        grids["GridCTFDefocusDelta"] = delta / ANGSTROM_PER_MICROMETRE
        grids["GridCTFDefocusAngle"] = series.defocus_angle_deg
    else:
        grids["GridCTF"] = np.zeros(1)
    for name, value in known.items():
        param = next((item for item in block.findall("Param") if item.get("Name") == name), None)
        if param is None:
            param = ET.SubElement(block, "Param", {"Name": name})
        param.set("Value", _text(value))
    for name, values in grids.items():
        _set_grid(root, name, values)


def _set_grid(root: ET.Element, name: str, values: FloatArray) -> None:
    element = root.find(name)
    if element is None:
        element = ET.SubElement(root, name)
    element.clear()
    for key, size in (("Width", 1), ("Height", 1), ("Depth", len(values))):
        element.set(key, str(size))
    for index, value in enumerate(values):
        ET.SubElement(element, "Node", {"X": "0", "Y": "0", "Z": str(index), "Value": _text(value)})
