"""The CTF of each place's own defocus, in strips across the tilt axis.

A view is corrected as a whole at a few defoci, and each pixel blends the two next to its own. So no strip
has an edge, and what the CTF moved sideways comes back from as far as the view reaches.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.model.weights import DefocusSurface
from verglas.ops.backprojection import ViewFrames
from verglas.ops.ctf import aberration_wave_2d
from verglas.ops.fft import frequency_axes
from verglas.shapes import ImageRfft

STRIP_PHASE = 0.5
"""Radians of the CTF's phase at the volume's Nyquist frequency from one strip's defocus to the next."""

LEVEL = DefocusSurface(-math.inf, math.inf, (0.0,) * 6)
"""The plane through the specimen's centre."""


def correct_in_strips(
    transform: ImageRfft,
    padded: tuple[int, int],
    offsets: Tensor,
    view: int,
    series: TiltSeries,
    pixel_size_angstrom: float,
    voxel_size_angstrom: float,
    mode: Literal["flip", "multiply"],
) -> Tensor:
    """Multiply a view by its CTF, or flip its phases, at the defocus of each pixel.

    Parameters
    ----------
    transform
        `(y, kx)` half transform of the extended view.
    padded
        `(y, x)` of the extended view.
    offsets
        `(y, x)` defocus of each pixel that is wanted less that of the view's record, Å; as
        :func:`defocus_offsets` gives. The pixels are the first ones of the extended view.
    view
        Which view it is.
    series
        The record, for the defocus.
    pixel_size_angstrom
        Of the view.
    voxel_size_angstrom
        Of the volume; its Nyquist frequency decides how many strips there are.
    mode
        What to do.

    Returns
    -------
    Tensor
        `(y, x)` like `offsets`.

    Raises
    ------
    UserError
        When the view has no defocus.
    """
    if not math.isfinite(series.mean_defocus_angstrom[view]):
        raise UserError(f"view {view + 1} of {series.name!r} has no defocus; expected one for `ctf` {mode!r}")
    step = strip_step(series, voxel_size_angstrom)
    first, spacing, count = _spread(float(offsets.min()), float(offsets.max()), step)
    wave = aberration_wave_2d(
        padded,
        pixel_size_angstrom,
        defocus_u_angstrom=float(series.defocus_u_angstrom[view]) + first,
        defocus_v_angstrom=float(series.defocus_v_angstrom[view]) + first,
        defocus_angle_deg=float(series.defocus_angle_deg[view]),
        voltage_kv=series.optics.voltage_kv,
        cs_mm=series.optics.cs_mm,
        amplitude_contrast=series.optics.amplitude_contrast,
        phase_shift_deg=float(series.phase_shift_deg[view]),
        device=transform.device,
    )
    turn = _defocus_turn(padded, series, pixel_size_angstrom, spacing, transform.device)
    height, width = offsets.shape
    places = (offsets - first) / spacing
    result = torch.zeros_like(offsets)
    for strip in range(count):
        ctf = wave.imag if mode == "multiply" else wave.imag.sign()
        corrected: Tensor = torch.fft.irfft2(transform * ctf, s=padded)[:height, :width]
        if count == 1:
            return corrected
        result.addcmul_(corrected, (1 - (places - strip).abs_()).clamp_(min=0))
        wave *= turn
    return result


def strip_step(series: TiltSeries, voxel_size_angstrom: float) -> float:
    """Largest change of defocus from one strip to the next, Å."""
    return STRIP_PHASE * (2 * voxel_size_angstrom) ** 2 / (math.pi * series.optics.wavelength_angstrom)


def _spread(low: float, high: float, step: float) -> tuple[float, float, int]:
    """First, spacing and number of defoci, no farther apart than `step`, that cover a range."""
    count = math.ceil((high - low) / step) + 1
    return ((low + high) / 2, step, 1) if count == 1 else (low, (high - low) / (count - 1), count)


def _defocus_turn(
    shape: tuple[int, int], series: TiltSeries, pixel: float, spacing: float, device: torch.device
) -> Tensor:
    """Exp(iπλ s² Δ): what a change Δ of the defocus multiplies the wave by."""
    y, x = frequency_axes(shape, pixel, device=device)
    angle = math.pi * series.optics.wavelength_angstrom * spacing * (y.square() + x.square())
    return torch.polar(torch.ones_like(angle), angle)


def defocus_offsets(
    shape: tuple[int, int],
    view: int,
    series: TiltSeries,
    frames: ViewFrames,
    surface: DefocusSurface = LEVEL,
    defocus_height_angstrom: float = 0.0,
) -> Tensor:
    """Defocus of what each pixel sees of a surface, less the defocus in the view's record, Å.

    Parameters
    ----------
    shape
        `(y, x)` pixels of the filtered view.
    view
        Which view it is.
    series
        Its record.
    frames
        Its geometry at the sampling of the volume.
    surface
        What is looked at.
    defocus_height_angstrom
        Height of the plane whose defocus, seen through the specimen's centre, is that of the record.

    Returns
    -------
    Tensor
        `(y, x)` float32.
    """
    pixel_x, pixel_y = frames.pixel_size_angstrom
    shift_x, shift_y = frames.shift_angstrom[view].tolist()
    image_x = (torch.arange(shape[1], dtype=torch.float64) - frames.centre_pixel[0]) * pixel_x - shift_x
    image_y = (
        torch.arange(shape[0], dtype=torch.float64)[:, None] - frames.centre_pixel[1]
    ) * pixel_y - shift_y
    (a, b), (c, d) = torch.linalg.inv(frames.in_plane[view]).tolist()
    across, along = a * image_x + b * image_y, c * image_x + d * image_y
    tilt, x_tilt = (math.radians(float(angle[view])) for angle in (frames.y_tilt_deg, frames.x_tilt_deg))
    # With s across and w along the axis, a point of height z has q = w tan(x_tilt) + z / cos(x_tilt) above the
    # axis and lies q / cos(tilt) - s tan(tilt) deep: linear in s, w and z.
    base = along * (math.tan(x_tilt) / math.cos(tilt)) - across * math.tan(tilt)
    rise = 1 / (math.cos(x_tilt) * math.cos(tilt))
    z: Tensor | float = surface.coefficients[0]
    if not surface.is_plane:
        z = _find_heights(surface, across, along, tilt, x_tilt)
    offsets: Tensor = series.hand * (base + rise * (z - defocus_height_angstrom))
    return offsets.float()


def _find_heights(
    surface: DefocusSurface, across: Tensor, along: Tensor, tilt: float, x_tilt: float
) -> Tensor:
    """Heights at which the rays through the pixels meet a surface that is not steep."""
    z = torch.full_like(across + along, (surface.low_angstrom + surface.high_angstrom) / 2)
    for _ in range(_ROUNDS):
        y = (along + z * math.sin(x_tilt)) / math.cos(x_tilt)
        height = y * math.sin(x_tilt) + z * math.cos(x_tilt)
        x = (across - height * math.sin(tilt)) / math.cos(tilt)
        z = evaluate_surface(surface, x, y)
    return z


_ROUNDS = 6


def evaluate_surface(surface: DefocusSurface, x: Tensor, y: Tensor) -> Tensor:
    """Height of a surface at places in Å, all `(...)`."""
    c0, c1, c2, c3, c4, c5 = surface.coefficients
    z = c0 + c1 * x + c2 * y + c3 * x.square() + c4 * x * y + c5 * y.square()
    return z.clamp(surface.low_angstrom, surface.high_angstrom)
