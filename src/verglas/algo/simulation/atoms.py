"""Scatterers from atoms: electron scattering factors as sums of five Gaussians."""

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.errors import UserError

VOLT_ANGSTROM2 = 47.877647
"""h² / (2π m e) in V·Å²: a scattering amplitude of 1 Å integrates to this many V·Å³."""

MACROMOLECULE_CONTRAST = 0.4
"""Share of the potential of protein (about 7.5 V with its hydrogens) that stands out of ice (about 4.5 V)."""


def scatterers_from_atoms(
    positions_angstrom: npt.ArrayLike,
    atomic_numbers: npt.ArrayLike,
    b_factors_a2: npt.ArrayLike = 0.0,
    occupancies: npt.ArrayLike = 1.0,
    *,
    contrast: float = MACROMOLECULE_CONTRAST,
) -> Scatterers:
    """Turn atoms into five Gaussians each.

    The elastic electron scattering factors of neutral atoms, f(s) = Σ a_i exp(-b_i s²) with s = k/2, are
    those of Peng, Ren, Dudarev & Whelan (1996), *Acta Cryst.* A52, 257, as tabulated in International Tables
    C 4.3.2.2. A displacement factor B adds to every b_i.

    Parameters
    ----------
    positions_angstrom
        `(n, 3)` xyz.
    atomic_numbers
        `(n,)` 1 to 98.
    b_factors_a2
        `(n,)` or one value: B in Å². Atoms of a model without useful B want about 30.
    occupancies
        `(n,)` or one value.
    contrast
        Factor on all weights for the ice that the molecule displaces, a flat-solvent approximation that holds
        below about 1/8 Å; 1 is the molecule in vacuum.

    Raises
    ------
    UserError
        When an element has no tabulated factors or B is negative.
    """
    positions = np.asarray(positions_angstrom, dtype=np.float64)
    numbers = np.asarray(atomic_numbers, dtype=np.int64)
    count = len(numbers)
    b_factors = np.broadcast_to(np.asarray(b_factors_a2, dtype=np.float64), (count,))
    weights = np.broadcast_to(np.asarray(occupancies, dtype=np.float64), (count,)) * contrast * VOLT_ANGSTROM2
    if count and b_factors.min() < 0:
        raise UserError(f"`b_factors_a2` must not be negative; got {b_factors.min()}")
    amplitudes = np.empty((count, 5))
    widths = np.empty((count, 5))
    for number in np.unique(numbers):
        rows = numbers == number
        amplitudes[rows], widths[rows] = scattering_factor(int(number))
    # exp(-b k²/4) is the transform of a Gaussian of variance b / 8π².
    sigmas = np.sqrt((widths + b_factors[:, None]) / (8 * np.pi**2))
    return Scatterers(
        np.repeat(positions, 5, axis=0), (amplitudes * weights[:, None]).reshape(-1), sigmas.reshape(-1)
    )


def scattering_factor(atomic_number: int) -> tuple[FloatArray, FloatArray]:
    """Five amplitudes (Å) and five widths (Å²) of the electron scattering factor of an element.

    Raises
    ------
    UserError
        When the table has no such element.
    """
    import gemmi

    coefficients = gemmi.Element(atomic_number).c4322 if 1 <= atomic_number <= 98 else None
    if coefficients is None:
        raise UserError(f"`atomic_numbers` must be between 1 and 98; got {atomic_number}")
    values = np.asarray(coefficients.get_coefs(), dtype=np.float64)
    return values[:5], values[5:]
