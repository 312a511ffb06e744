"""What the microscope was."""

import math
from dataclasses import dataclass

from verglas.errors import UserError
from verglas.units import electron_wavelength_angstrom


@dataclass(frozen=True)
class Optics:
    """Imaging conditions shared by all views of a series or all micrographs of a group.

    Parameters
    ----------
    pixel_size_angstrom
        Side of a pixel of the images that go with this record, Å.
    voltage_kv
        Acceleration voltage, kV.
    cs_mm
        Spherical aberration, mm.
    amplitude_contrast
        Fraction of amplitude contrast, 0 to 1.
    """

    pixel_size_angstrom: float
    voltage_kv: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("pixel_size_angstrom", 0.0, 1000.0),
            ("voltage_kv", 0.0, 5000.0),
            ("cs_mm", -1.0, 100.0),
            ("amplitude_contrast", -1.0, 1.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high) or (low == 0.0 and value == 0.0):
                raise UserError(f"`{name}` must lie between {low:g} and {high:g}; got {value}")

    @property
    def wavelength_angstrom(self) -> float:
        """Electron wavelength, Å."""
        return electron_wavelength_angstrom(self.voltage_kv)
