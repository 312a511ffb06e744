"""Phases that lenses add beyond defocus and spherical aberration, as RELION's optics tables hold them."""

import math

import torch

from verglas.shapes import Values


def beam_tilt_phase(
    tilt_mrad: tuple[float, float], u: Values, v: Values, cs_mm: float, wavelength_angstrom: float
) -> Values:
    """Phase of a tilted beam, less the shift that goes with it: -2π Cs λ² (u² + v²) (tilt · (u, v)).

    Parameters
    ----------
    tilt_mrad
        xy, as RELION's `rlnBeamTiltX` and `rlnBeamTiltY`.
    u, v
        `(...)` frequency along x and y, 1/Å.
    cs_mm, wavelength_angstrom
        Of the microscope.

    Returns
    -------
    Tensor
        `(...)` radians that a particle's transform is turned by.
    """
    cs = cs_mm * 1e7
    along = 1e-3 * (tilt_mrad[0] * u + tilt_mrad[1] * v)
    return -2 * math.pi * cs * wavelength_angstrom**2 * (u.square() + v.square()) * along


def zernike_phase(coefficients: tuple[float, ...], u: Values, v: Values, *, even: bool) -> Values:
    """Sum of Zernike polynomials of the frequency in 1/Å, in RELION's order.

    Of the odd ones those of radial order 1, 3, 5, ..., of the even ones those of 0, 2, 4, ...; of each order the
    angular ones from negative (sines) to positive (cosines), two apart.

    Parameters
    ----------
    coefficients
        Radians, as in `rlnOddZernike` or `rlnEvenZernike`.
    u, v
        `(...)` frequency along x and y, 1/Å.
    even
        Which they are.
    """
    total = torch.zeros_like(u + v)
    order, angular = (0, 0) if even else (1, -1)
    for coefficient in coefficients:
        if coefficient:
            total = total + coefficient * _zernike(order, angular, u, v)
        angular += 2
        if angular > order:
            order += 2
            angular = -order
    return total


def _zernike(order: int, angular: int, u: Values, v: Values) -> Values:
    radius, direction = torch.hypot(u, v), torch.atan2(v, u)
    turns = abs(angular)
    radial = torch.zeros_like(radius)
    for k in range((order - turns) // 2 + 1):
        factor = (-1) ** k * math.comb(order - k, k) * math.comb(order - 2 * k, (order - turns) // 2 - k)
        radial = radial + factor * radius ** (order - 2 * k)
    return radial * ((turns * direction).cos() if angular >= 0 else (turns * direction).sin())
