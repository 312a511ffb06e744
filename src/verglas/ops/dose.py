"""Radiation damage: how much of each frequency is left after an exposure.

Convention
----------
Exposures are e/Å² and cumulative: what the specimen has received when the frame or view counts as taken.
Grant and Grigorieff take the end of each frame; half a frame less is its middle. The caller adds up and
chooses.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import radial_frequency
from verglas.shapes import Values

_VOLTAGES_KV = (100.0, 200.0, 300.0)
_TOLERANCES = (0.64, 0.8, 1.0)


def critical_exposure(frequency: Values, voltage_kv: float = 300.0) -> Values:
    """Exposure after which the amplitude of a frequency has fallen to exp(-1/2), e/Å².

    0.24499 s^-1.6649 + 2.8141 at 300 kV (Grant and Grigorieff, eLife 2015, eq. 3). It is 0.8 times that at
    200 kV and 0.64 times at 100 kV (as in Unblur and RELION), linear between these.

    Parameters
    ----------
    frequency
        `(...)` 1/Å; infinite exposure for 0.
    voltage_kv
        100 to 300.

    Returns
    -------
    Tensor
        `(...)`.

    Raises
    ------
    UserError
        When the voltage is out of range.
    """
    if not _VOLTAGES_KV[0] <= voltage_kv <= _VOLTAGES_KV[-1]:
        raise UserError(f"`voltage_kv` must lie between 100 and 300 for an exposure filter; got {voltage_kv}")
    tolerance = float(np.interp(voltage_kv, _VOLTAGES_KV, _TOLERANCES))
    return tolerance * (0.24499 * frequency**-1.6649 + 2.8141)


def exposure_filter(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    exposures_e_per_a2: Values,
    voltage_kv: float = 300.0,
) -> Values:
    """Amplitudes that are left after exposures: exp(-N / (2 Ne)), Ne the critical exposure of each frequency.

    Parameters
    ----------
    shape
        Sizes of the images or volumes, yx or zyx.
    pixel_size_angstrom
        Å.
    exposures_e_per_a2
        `(...)` cumulative, see the module's convention; their dtype and device are those of the result.
    voltage_kv
        100 to 300.

    Returns
    -------
    Tensor
        `(..., y, x // 2 + 1)` between 0 and 1; 1 at zero frequency.

    Raises
    ------
    UserError
        When an exposure is negative, or the voltage or a size is out of range.
    """
    if not bool((exposures_e_per_a2 >= 0).all()):
        lowest = float(exposures_e_per_a2.min())
        raise UserError(f"`exposures_e_per_a2` must not be negative; got {lowest:g}")
    frequency = radial_frequency(
        shape, pixel_size_angstrom, dtype=exposures_e_per_a2.dtype, device=exposures_e_per_a2.device
    )
    rates = -0.5 / critical_exposure(frequency, voltage_kv)
    return torch.exp(exposures_e_per_a2[(..., *[None] * len(shape))] * rates)


def power_normalised_weights(filters: Values) -> Values:
    """Weights of the images of a series whose weighted sum keeps the power of white noise at every frequency.

    w_i = f_i / sqrt(sum_j f_j²) (Grant and Grigorieff, eLife 2015): images with noise of power P each sum to noise
    of power P.

    Parameters
    ----------
    filters
        `(n, ...)` amplitudes left in each image, from `exposure_filter`.

    Returns
    -------
    Tensor
        `(n, ...)`; zero where all filters are.
    """
    norm = filters.square().sum(0).sqrt()
    return torch.where(norm > 0, filters / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)


def elastic_shares(
    cosines: Values, thickness_angstrom: float, mean_free_path_angstrom: float = 4000.0
) -> Values:
    """Share of electrons that each view of a slab sees pass without inelastic loss, relative to the best view.

    exp(-t / (Λ cos α)) over its largest value: a tilted slab is thicker (emClarity, Himes and Zhang 2018, whose Λ
    is the default).

    Parameters
    ----------
    cosines
        `(n,)` of the angle between the beam and the slab's normal.
    thickness_angstrom
        Of the slab across; not negative.
    mean_free_path_angstrom
        Λ.

    Returns
    -------
    Tensor
        `(n,)` above 0, up to 1.

    Raises
    ------
    UserError
        When the beam runs along the slab in a view, or a length is out of range.
    """
    if not bool((cosines.abs() > 1e-3).all()):
        raise UserError("the beam must not run along the slab; expected tilts below 90 degrees")
    if thickness_angstrom < 0 or mean_free_path_angstrom <= 0:
        raise UserError(
            f"`thickness_angstrom` must not be negative and `mean_free_path_angstrom` be positive; got "
            f"{thickness_angstrom:g} and {mean_free_path_angstrom:g}"
        )
    path = thickness_angstrom / cosines.abs()
    return torch.exp(-(path - path.min()) / mean_free_path_angstrom)


def view_weights(
    cosines: Values, exposures_e_per_a2: Values, thickness_angstrom: float
) -> Float[Tensor, " n"]:
    """Weights of the views of a slab: the electrons that pass without loss, times each view's share of the exposure.

    The share is over the mean exposure, so it is not 1 where views at high tilt were exposed for longer.

    Parameters
    ----------
    cosines
        `(n,)` of the angle between the beam and the slab's normal.
    exposures_e_per_a2
        `(n,)` of each view, not cumulative; where one is NaN, all count as the same.
    thickness_angstrom
        Of the ice across the slab.

    Raises
    ------
    UserError
        As :func:`elastic_shares`, and when an exposure is negative or all are zero.
    """
    weights = elastic_shares(cosines, thickness_angstrom)
    if bool(exposures_e_per_a2.isnan().any()):
        return weights
    if not (bool((exposures_e_per_a2 >= 0).all()) and float(exposures_e_per_a2.sum()) > 0):
        raise UserError("`exposures_e_per_a2` must not be negative, nor all zero")
    return weights * exposures_e_per_a2 / exposures_e_per_a2.mean()
