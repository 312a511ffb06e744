"""What the microscope does to the projected potential: phase contrast, damage, loss.

The formulas are written out here and not taken from `verglas.ops`, so that this package can judge those.
"""

import math

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.scatterers import FloatArray
from verglas.errors import UserError
from verglas.model import Optics

ICE_MOLECULES_PER_A3 = 0.0311
"""Molecules per Å³ of vitreous ice of 0.93 g/cm³."""

WATER_WEIGHT_V_A3 = 145.6
"""Integral of the potential of one water molecule, V·Å³: (1.983 + 2 · 0.529) Å · 47.878 V·Å²."""

WATER_STRUCTURE_FACTOR = 0.063
"""S(0) of water: how much quieter a liquid is than independent molecules."""


def interaction_constant(voltage_kv: float) -> float:
    """Phase shift per projected potential, rad/(V·Å); 6.53e-4 at 300 kV (Kirkland, eq. 5.6)."""
    rest = 510.99895
    wavelength = 12.398419843 / math.sqrt(voltage_kv * (2 * rest + voltage_kv))
    return 2 * math.pi / (wavelength * voltage_kv * 1e3) * (rest + voltage_kv) / (2 * rest + voltage_kv)


def frequency_grid(shape: tuple[int, int], pixel_size_angstrom: float) -> tuple[FloatArray, FloatArray]:
    """`(1, x // 2 + 1)` kx and `(y, 1)` ky of a half transform, 1/Å."""
    kx = np.fft.rfftfreq(shape[1], pixel_size_angstrom)[None, :].astype(np.float64)
    ky = np.fft.fftfreq(shape[0], pixel_size_angstrom)[:, None].astype(np.float64)
    return kx, ky


def contrast_transfer(
    kx: FloatArray,
    ky: FloatArray,
    optics: Optics,
    *,
    defocus_u_angstrom: float,
    defocus_v_angstrom: float,
    defocus_angle_deg: float = 0.0,
    phase_shift_deg: float = 0.0,
) -> FloatArray:
    """Contrast transfer sin(γ + asin(Q) + φ), positive near the origin for underfocus.

    γ = (2π/λ) (λ² k² Δf / 2 - λ⁴ k⁴ Cs / 4), with Δf(α) = (u + v)/2 + (u - v)/2 cos 2(α - α0). The image of
    a weak phase object is then 1 - 2 · (phase ⊗ transfer): protein is dark under focus.

    Parameters
    ----------
    kx, ky
        Frequencies of one broadcast shape, 1/Å.
    optics
        Voltage, Cs and amplitude contrast Q.
    defocus_u_angstrom, defocus_v_angstrom
        Defocus along the principal axes, positive for underfocus.
    defocus_angle_deg
        Angle of the first axis from x.
    phase_shift_deg
        Shift φ of a phase plate.
    """
    square = kx**2 + ky**2
    turn = 2 * (np.arctan2(ky, kx) - math.radians(defocus_angle_deg))
    mean = (defocus_u_angstrom + defocus_v_angstrom) / 2
    defocus = mean + (defocus_u_angstrom - defocus_v_angstrom) / 2 * np.cos(turn)
    wavelength = optics.wavelength_angstrom
    cs = optics.cs_mm * 1e7
    path = 0.5 * wavelength**2 * square * defocus - 0.25 * wavelength**4 * square**2 * cs
    constant = math.asin(optics.amplitude_contrast) + math.radians(phase_shift_deg)
    return np.asarray(np.sin(2 * np.pi / wavelength * path + constant))


def critical_exposure(frequencies: npt.ArrayLike, voltage_kv: float = 300.0) -> FloatArray:
    """Exposure at which the power at a frequency has fallen to 1/e, in e/Å².

    0.245 k^-1.665 + 2.81 at 300 kV, 0.8 of it at 200 kV, linear in between and held outside (Grant &
    Grigorieff 2015, *eLife* 4, e06980).

    Parameters
    ----------
    frequencies
        `(...)` 1/Å; at zero it is infinite.
    voltage_kv
        Acceleration voltage.
    """
    k = np.asarray(frequencies, dtype=np.float64)
    curve = 0.245 * np.where(k > 0, k, 1.0) ** -1.665 + 2.81
    factor = 0.8 + 0.2 * min(max((voltage_kv - 200) / 100, 0.0), 1.0)
    return np.asarray(np.where(k > 0, curve * factor, np.inf))


def exposure_attenuation(
    frequencies: npt.ArrayLike,
    pre_exposure_e_per_a2: float,
    exposure_e_per_a2: float,
    voltage_kv: float = 300.0,
) -> FloatArray:
    """Mean of exp(-N / 2Nc) while the exposure N goes from before a view to after it.

    Parameters
    ----------
    frequencies
        `(...)` 1/Å.
    pre_exposure_e_per_a2, exposure_e_per_a2
        Exposure before the view and of the view.
    voltage_kv
        Acceleration voltage.
    """
    if pre_exposure_e_per_a2 < 0 or exposure_e_per_a2 < 0:
        raise UserError(f"exposures must not be negative; got {pre_exposure_e_per_a2}, {exposure_e_per_a2}")
    rate = 0.5 / critical_exposure(frequencies, voltage_kv)
    start = np.exp(-rate * pre_exposure_e_per_a2)
    during = rate * exposure_e_per_a2
    safe = np.where(during > 1e-9, during, 1.0)
    return np.asarray(start * np.where(during > 1e-9, -np.expm1(-safe) / safe, 1.0))


def slab_transmission(
    thickness_angstrom: float, cosine: float, mean_free_path_angstrom: float = 3500.0
) -> float:
    """Share of electrons that pass a tilted slab without inelastic loss: exp(-t / (Λ |cos|)).

    Parameters
    ----------
    thickness_angstrom
        Of the slab along its normal.
    cosine
        Cosine of the angle between the beam and the normal.
    mean_free_path_angstrom
        Λ; about 3500 Å for ice at 300 kV behind an energy filter.

    Raises
    ------
    UserError
        When the beam runs along the slab.
    """
    if abs(cosine) < 1e-3:
        raise UserError(f"the beam must not run along the slab; got a cosine of {cosine}")
    return math.exp(-thickness_angstrom / (mean_free_path_angstrom * abs(cosine)))


def make_ice_noise(
    shape: tuple[int, int],
    pixel_size_angstrom: float,
    path_angstrom: float | npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Projected potential of water molecules in random places, less its mean, in V·Å.

    White, because the structure factor of water is flat at S(0) below about 1/5 Å; its variance per pixel of
    area p² is ρ t w² S(0) / p².

    Parameters
    ----------
    shape
        `(y, x)` pixels.
    pixel_size_angstrom
        Side of a pixel.
    path_angstrom
        Length of the beam's path in the ice, one or `(y, x)`.
    rng
        Source of randomness; molecules move between views, so every view takes new noise.
    """
    variance = ICE_MOLECULES_PER_A3 * WATER_WEIGHT_V_A3**2 * WATER_STRUCTURE_FACTOR
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= np.sqrt(path_angstrom, dtype=np.float32)
    return np.asarray(noise * np.float32(math.sqrt(variance) / pixel_size_angstrom))
