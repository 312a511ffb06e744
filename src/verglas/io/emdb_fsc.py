"""The XML in which the EMDB takes Fourier shell correlations, and in which RELION and cryoSPARC write them."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from verglas.files import atomic_path


def write_fsc_xml(
    path: Path, frequency_per_angstrom: Sequence[float], correlation: Sequence[float], *, title: str
) -> None:
    """Write one curve.

    Parameters
    ----------
    path
        The file.
    frequency_per_angstrom
        1/Å.
    correlation
        As many values.
    title
        What it is the correlation of.
    """
    root = ElementTree.Element("fsc", title=title, xaxis="Resolution (A-1)", yaxis="Correlation Coefficient")
    for place, value in zip(frequency_per_angstrom, correlation, strict=True):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{place:.6f}"
        ElementTree.SubElement(point, "y").text = f"{value:.6f}"
    ElementTree.indent(root, "  ")
    with atomic_path(path) as temporary:
        temporary.write_bytes(ElementTree.tostring(root, encoding="utf-8") + b"\n")
