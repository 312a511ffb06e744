"""The contrast transfer function of the microscope.

Convention
----------
With s the frequency in 1/Å, λ the wavelength, Δ the defocus (positive for underfocus), φ the shift of a phase
plate and A the amplitude contrast,

    χ(s) = π λ Δ s² - π/2 Cs λ³ s⁴ + φ + atan(A / sqrt(1 - A²))
    CTF(s) = sin χ(s)

so that without a phase plate CTF(0) = +A. RELION and Warp have the same sign. It is that of images in which
matter is bright; a micrograph as recorded, in which matter is dark, is the negative of the projected
potential times this function. `tests/conventions/test_ctf.py` compares with relion_ctf_toolbox and with an
image that Warp made.

Defocus is Δu along an axis turned from x by the astigmatism's angle towards y, and Δv across it:
Δ(α) = (Δu + Δv) / 2 + (Δu - Δv) / 2 cos 2(α - angle), α the direction of the frequency.

Warp states a phase shift in units of π, a defocus in µm, Δu and Δv as its mean plus and minus half of
`DefocusDelta`, and a B-factor of opposite sign (negative decays).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import Spectrum, frequency_axes
from verglas.shapes import Values
from verglas.units import ANGSTROM_PER_MILLIMETRE, electron_wavelength_angstrom


def astigmatic_defocus(
    direction_deg: Values,
    defocus_u_angstrom: Values,
    defocus_v_angstrom: Values,
    defocus_angle_deg: Values,
) -> Values:
    """Defocus along a direction of the image, Å.

    Parameters
    ----------
    direction_deg
        `(...)` angle from x towards y.
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg
        `(...)` principal defoci and the angle of the first from x.

    Returns
    -------
    Tensor
        `(...)`, all arguments broadcast.
    """
    mean = (defocus_u_angstrom + defocus_v_angstrom) / 2
    half = (defocus_u_angstrom - defocus_v_angstrom) / 2
    return mean + half * torch.cos(2 * torch.deg2rad(direction_deg - defocus_angle_deg))


def defocus_form(defocus_u_angstrom: Values, defocus_v_angstrom: Values, defocus_angle_deg: Values) -> Values:
    """Coefficients of x², xy and y² in defocus times s²: the defocus of a frequency without its direction.

    Parameters
    ----------
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg
        `(...)` principal defoci and the angle of the first from x.

    Returns
    -------
    Tensor
        `(..., 3)` Å, all arguments broadcast.
    """
    mean = (defocus_u_angstrom + defocus_v_angstrom) / 2
    half = (defocus_u_angstrom - defocus_v_angstrom) / 2
    twice = 2 * torch.deg2rad(defocus_angle_deg)
    along, across = half * torch.cos(twice), half * torch.sin(twice)
    return torch.stack([mean + along, 2 * across, mean - along], dim=-1)


def ctf_1d(
    frequency: Values,
    defocus_angstrom: Values,
    *,
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    phase_shift_deg: Values | float = 0.0,
    bfactor_a2: Values | float = 0.0,
) -> Values:
    """Contrast transfer along a line of frequencies.

    Parameters
    ----------
    frequency
        `(k,)` 1/Å.
    defocus_angstrom
        `(...)`, positive for underfocus.
    voltage_kv, cs_mm, amplitude_contrast
        Of the microscope; the contrast is a fraction from -1 to 1.
    phase_shift_deg
        `(...)` of a phase plate.
    bfactor_a2
        `(...)` Å²; positive decays, as exp(-B s² / 4).

    Returns
    -------
    Tensor
        `(..., k)`.

    Raises
    ------
    UserError
        When the voltage is not positive or the amplitude contrast out of range.
    """
    squares = frequency.square()
    phase = _phase(
        squares,
        _column(defocus_angstrom, 1) * squares,
        voltage_kv,
        cs_mm,
        amplitude_contrast,
        _column(phase_shift_deg, 1),
    )
    return _damp(phase.sin(), squares, _column(bfactor_a2, 1))


def ctf_2d(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    *,
    defocus_u_angstrom: Values | float,
    defocus_v_angstrom: Values | float,
    defocus_angle_deg: Values | float,
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    phase_shift_deg: Values | float = 0.0,
    bfactor_a2: Values | float = 0.0,
    device: torch.device | str | None = None,
) -> Values:
    """Contrast transfer on the grid of an image's half transform, for any number of images at once.

    Parameters
    ----------
    shape
        `(y, x)` of the image.
    pixel_size_angstrom
        Å.
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg
        `(...)` principal defoci, positive for underfocus, and the angle of the first from x. Numbers
        count as float32 on `device`, tensors bring their own dtype and device.
    voltage_kv, cs_mm, amplitude_contrast
        Of the microscope; the contrast is a fraction from -1 to 1.
    phase_shift_deg
        `(...)` of a phase plate.
    bfactor_a2
        `(...)` Å²; positive decays, as exp(-B s² / 4).
    device
        Where the result lies when no defocus is a tensor.

    Returns
    -------
    Tensor
        `(..., y, x // 2 + 1)`; differentiable in all tensors.

    Raises
    ------
    UserError
        When `shape` is not that of an image, the pixel size or the voltage is not positive, or the amplitude
        contrast is out of range.
    """
    phase, squares = _phase_2d(
        shape,
        pixel_size_angstrom,
        (defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg),
        voltage_kv,
        cs_mm,
        amplitude_contrast,
        phase_shift_deg,
        device,
    )
    return _damp(phase.sin(), squares, _column(bfactor_a2, 2))


def aberration_wave_2d(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    *,
    defocus_u_angstrom: Values | float,
    defocus_v_angstrom: Values | float,
    defocus_angle_deg: Values | float,
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    phase_shift_deg: Values | float = 0.0,
    device: torch.device | str | None = None,
) -> Spectrum:
    """Exp(iχ), whose imaginary part is what :func:`ctf_2d` gives; parameters and errors are as there.

    Multiplied by exp(iπλs²Δ) it is the wave of a defocus larger by Δ.
    """
    phase, _ = _phase_2d(
        shape,
        pixel_size_angstrom,
        (defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg),
        voltage_kv,
        cs_mm,
        amplitude_contrast,
        phase_shift_deg,
        device,
    )
    return torch.polar(torch.ones_like(phase), phase)


def _phase_2d(
    shape: Sequence[int],
    pixel_size_angstrom: float,
    defoci: tuple[Tensor | float, Tensor | float, Tensor | float],
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    phase_shift_deg: Tensor | float,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor]:
    """χ and s² on the grid of a half transform."""
    if len(shape) != 2:
        raise UserError(f"`shape` must be (y, x); got {tuple(shape)}")
    like = next((item for item in defoci if isinstance(item, Tensor)), torch.zeros((), device=device))
    defocus_u, defocus_v, angle = (torch.as_tensor(item).to(like)[..., None, None] for item in defoci)
    y, x = frequency_axes(shape, pixel_size_angstrom, dtype=like.dtype, device=like.device)
    squares = y.square() + x.square()
    mean = (defocus_u + defocus_v) / 2
    half = (defocus_u - defocus_v) / 2
    twice = 2 * torch.deg2rad(angle)
    # s² cos 2(α - angle), without the direction α of each pixel.
    stretch = twice.cos() * (x.square() - y.square()) + twice.sin() * (2 * x * y)
    phase = _phase(
        squares,
        mean * squares + half * stretch,
        voltage_kv,
        cs_mm,
        amplitude_contrast,
        _column(phase_shift_deg, 2),
    )
    return phase, squares


def zero_frequency(
    defocus_angstrom: Values,
    *,
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    phase_shift_deg: Values | float = 0.0,
    order: int = 1,
) -> Values:
    """Frequency at which an underfocused transfer function is zero, 1/Å.

    Parameters
    ----------
    defocus_angstrom
        `(...)`.
    voltage_kv, cs_mm, amplitude_contrast
        Of the microscope.
    phase_shift_deg
        `(...)` of a phase plate.
    order
        1 for the first zero, 2 for the second, ...: where χ is `order` times π.

    Returns
    -------
    Tensor
        `(...)`; NaN where χ never gets there.

    Raises
    ------
    UserError
        When `order` is below one, the voltage is not positive or the amplitude contrast out of range.
    """
    if order < 1:
        raise UserError(f"`order` must be at least 1; got {order}")
    wavelength = _wavelength(voltage_kv)
    start = _start_phase(amplitude_contrast, phase_shift_deg)
    missing = order - start / math.pi
    # The smaller root of Cs λ³/2 s⁴ - λ Δ s² + missing = 0, in a form that also holds for Cs = 0.
    slope = wavelength * defocus_angstrom
    root = (slope.square() - 2 * _cs_angstrom(cs_mm) * wavelength**3 * missing).sqrt()
    square = 2 * missing / (slope + root)
    return torch.where(square >= 0, square, torch.nan).sqrt()


def _phase(
    squares: Tensor,
    defocus_squares: Tensor,
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    phase_shift_deg: Tensor | float,
) -> Tensor:
    """Make χ from s² and defocus times s²."""
    wavelength = _wavelength(voltage_kv)
    start = _start_phase(amplitude_contrast, phase_shift_deg)
    aberration = 0.5 * math.pi * _cs_angstrom(cs_mm) * wavelength**3
    return math.pi * wavelength * defocus_squares - aberration * squares.square() + start


def _damp(transfer: Tensor, squares: Tensor, bfactor_a2: Tensor | float) -> Tensor:
    if isinstance(bfactor_a2, Tensor) or bfactor_a2 != 0:
        return transfer * torch.exp(-bfactor_a2 / 4 * squares)
    return transfer


def _start_phase(amplitude_contrast: float, phase_shift_deg: Tensor | float) -> Tensor | float:
    if not -1 <= amplitude_contrast <= 1:
        raise UserError(f"`amplitude_contrast` must lie between -1 and 1; got {amplitude_contrast}")
    return phase_shift_deg * (math.pi / 180) + math.asin(amplitude_contrast)


def _cs_angstrom(cs_mm: float) -> float:
    return cs_mm * ANGSTROM_PER_MILLIMETRE


def _wavelength(voltage_kv: float) -> float:
    try:
        return electron_wavelength_angstrom(voltage_kv)
    except ValueError as error:
        raise UserError(str(error)) from None


def _column(values: Tensor | float, dims: int) -> Tensor | float:
    """Append axes, so that batch dimensions stand before those of the grid."""
    return values[(..., *[None] * dims)] if isinstance(values, Tensor) else values
