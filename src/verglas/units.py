"""Physical constants and the unit conversions used at the edges (readers and writers).

Inside the package lengths are Å, angles degrees, exposures e/Å², voltages kV and Cs mm.
"""

import math

ANGSTROM_PER_NANOMETRE = 10.0
ANGSTROM_PER_MICROMETRE = 1.0e4
ANGSTROM_PER_MILLIMETRE = 1.0e7
ANGSTROM_PER_METRE = 1.0e10


def electron_wavelength_angstrom(voltage_kv: float) -> float:
    """Relativistic de Broglie wavelength of an electron, in Å.

    λ = 12.2643 Å / sqrt(V + 0.97845e-6 V²) with V in volts (Kirkland, *Advanced Computing in Electron
    Microscopy*, eq. 2.5; the constants that RELION and CTFFIND use).

    Parameters
    ----------
    voltage_kv
        Acceleration voltage in kV, positive.
    """
    if not (math.isfinite(voltage_kv) and voltage_kv > 0):
        raise ValueError(f"`voltage_kv` must be positive; got {voltage_kv}")
    volts = voltage_kv * 1e3
    return 12.2643247 / math.sqrt(volts * (1.0 + volts * 0.978466e-6))
