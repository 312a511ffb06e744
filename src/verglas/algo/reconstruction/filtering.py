"""From recorded views to filtered ones, ready to be summed over a volume."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.ops.backprojection import (
    PHASES,
    ViewFrames,
    angular_steps,
    exact_filter,
    in_plane_matrices,
    ramp_filter,
    sirt_filter,
    spline_response,
)
from verglas.ops.ctf import ctf_2d
from verglas.ops.dose import critical_exposure, view_weights
from verglas.ops.fft import fast_size, radial_frequency, rescale_images
from verglas.shapes import Image


@dataclass(frozen=True)
class ViewFilter:
    """How views are weighted before they are summed.

    Parameters
    ----------
    weighting
        "ramp" (Radon), "exact" (Harauz and van Heel) or "sirt" (what rounds of SIRT would give).
    sirt_iterations
        Rounds for "sirt".
    thickness_angstrom
        Extent of the specimen along the beam, for "exact".
    normalise
        Subtract each view's mean and divide by its standard deviation; otherwise the mean alone is subtracted.
    dose
        Weight the frequencies of each view by its exposure (Grant and Grigorieff 2015).
    ctf
        "none", "flip" the phases or "multiply" by the CTF, in strips across the tilt axis.
    ice_thickness_angstrom
        Weight the views by what passes ice of this thickness and by their share of the exposure; none is not to.
    """

    weighting: Literal["ramp", "exact", "sirt"] = "ramp"
    sirt_iterations: int = 20
    thickness_angstrom: float = 1000.0
    normalise: bool = True
    dose: bool = False
    ctf: Literal["none", "flip", "multiply"] = "none"
    ice_thickness_angstrom: float | None = None


def make_frames(series: TiltSeries, voxel_size_angstrom: float) -> ViewFrames:
    """Geometry of a series' views after `filter_views` brought them to the sampling of the volume."""
    shape = filtered_shape(series, voxel_size_angstrom)
    scale_y, scale_x = (old / new for old, new in zip(series.image_shape, shape, strict=True))
    pixel = series.pixel_size_angstrom
    return ViewFrames(
        x_tilt_deg=torch.tensor(series.x_tilt_deg),
        y_tilt_deg=torch.tensor(series.y_tilt_deg),
        in_plane=in_plane_matrices(torch.tensor(series.z_rot_deg), torch.tensor(series.magnification)),
        shift_angstrom=torch.tensor(np.stack([series.x_shift_angstrom, series.y_shift_angstrom], axis=1)),
        pixel_size_angstrom=(pixel * scale_x, pixel * scale_y),
        centre_pixel=(shape[1] // 2, shape[0] // 2),
    )


def filtered_shape(series: TiltSeries, voxel_size_angstrom: float) -> tuple[int, int]:
    """`(y, x)` pixels of a view at the sampling of the volume; never finer than it was recorded."""
    factor = min(1.0, series.pixel_size_angstrom / voxel_size_angstrom)
    y, x = (max(8, round(size * factor)) for size in series.image_shape)
    return min(y, series.image_shape[0]), min(x, series.image_shape[1])


def filter_views(
    images: Iterable[Image], series: TiltSeries, voxel_size_angstrom: float, options: ViewFilter
) -> Image:
    """Bring views to the sampling of the volume and weight them.

    Parameters
    ----------
    images
        The views `(y, x)`, one after the other; each is read once and let go.
    series
        Their geometry, exposure and defocus.
    voxel_size_angstrom
        Side of a voxel of the volume.
    options
        The weights.

    Returns
    -------
    Tensor
        `(n, y, x)` float32 B-spline coefficients of the filtered views; their sum over a volume has the specimen's
        density, in units of a view's values a voxel.
    """
    frames = make_frames(series, voxel_size_angstrom)
    shape = filtered_shape(series, voxel_size_angstrom)
    steps = angular_steps(frames.y_tilt_deg)
    result: Tensor | None = None
    decay: Tensor | None = None
    shares = _view_shares(series, options)
    for view, image in enumerate(images):
        small = rescale_images(image.to(torch.float32), shape)
        small = small - small.mean()
        if options.normalise:
            small = small / small.std().clamp(min=1e-12)
        padded = _extend_image(small)
        transform = torch.fft.rfft2(padded)
        transform *= _view_weights(padded, view, series, frames, steps, voxel_size_angstrom, options)
        transform *= shares[view]
        if options.dose:
            decay = _exposure_decay(padded, series, frames) if decay is None else decay
            transform *= torch.exp(decay * float(series.pre_exposure_e_per_a2[view]))
        filtered = _apply_ctf(transform, padded.shape, view, series, frames, voxel_size_angstrom, options)
        if result is None:
            result = torch.empty((len(series), *shape), dtype=torch.float32, device=small.device)
        result[view] = filtered[: shape[0], : shape[1]]
    if result is None:
        raise ValueError("`images` must hold at least one view")
    return result


def _view_shares(series: TiltSeries, options: ViewFilter) -> list[float]:
    """Weight of each view as a whole."""
    if options.ice_thickness_angstrom is None:
        return [1.0] * len(series)
    tilts = np.deg2rad(np.stack([np.asarray(series.y_tilt_deg), series.x_tilt_deg]))
    cosines, exposures = np.cos(tilts).prod(axis=0), np.array(series.exposure_e_per_a2)
    weights = view_weights(
        torch.from_numpy(cosines), torch.from_numpy(exposures), options.ice_thickness_angstrom
    )
    return [float(weight) for weight in weights]


def _extend_image(image: Tensor) -> Tensor:
    """Continue an image beyond its last row and column, mirrored and fading to zero, to a good FFT size.

    The fade lies half behind the end and half, by the transform's periodicity, before the beginning.
    """
    for dim in (0, 1):
        size = image.shape[dim]
        total = fast_size(size + max(32, size // 2))
        margin = min((total - size) // 2, size)
        fade = (1 + torch.cos(math.pi * (torch.arange(margin, device=image.device) + 1) / (margin + 1))) / 2
        fade = fade.to(image.dtype)[:, None] if dim == 0 else fade.to(image.dtype)
        after = image.narrow(dim, size - margin, margin).flip(dim) * fade
        before = image.narrow(dim, 0, margin).flip(dim) * fade.flip(0)
        gap = list(image.shape)
        gap[dim] = total - size - 2 * margin
        image = torch.cat([image, after, image.new_zeros(gap), before], dim=dim)
    return image


def _view_weights(
    image: Tensor,
    view: int,
    series: TiltSeries,
    frames: ViewFrames,
    steps: Tensor,
    voxel: float,
    options: ViewFilter,
) -> Tensor:
    """All weights of a view that do not depend on the place in it, `(y, kx)`."""
    height, width = image.shape
    fy = torch.fft.fftfreq(height, dtype=torch.float32, device=image.device)[:, None]
    fx = torch.fft.rfftfreq(width, dtype=torch.float32, device=image.device)
    matrix = frames.in_plane[view].tolist()
    pixel_x, pixel_y = frames.pixel_size_angstrom
    across = (matrix[0][0] * fx / pixel_x + matrix[1][0] * fy / pixel_y) * voxel
    along = (matrix[0][1] * fx / pixel_x + matrix[1][1] * fy / pixel_y) * voxel
    if options.weighting == "ramp":
        weights = ramp_filter(across, float(steps[view]))
    elif options.weighting == "exact":
        weights = exact_filter(across, frames.y_tilt_deg, view, options.thickness_angstrom / voxel)
    else:
        lowest = voxel / (pixel_x * width)
        weights = sirt_filter(across, float(steps[view]), options.sirt_iterations, lowest)
    # Linear interpolation between the samples of a row, and between rows where there are two a voxel, damps
    # by sinc squared; what it damps is restored here.
    cosine = math.cos(math.radians(float(frames.y_tilt_deg[view])))
    weights = weights / torch.sinc(across * cosine / PHASES) ** 2
    if frames.rows_per_voxel > 1:
        weights = weights / torch.sinc(along / frames.rows_per_voxel) ** 2
    response: Tensor = spline_response(fy, fx)
    return weights / response


def _exposure_decay(image: Tensor, series: TiltSeries, frames: ViewFrames) -> Tensor:
    """Logarithm of what one e/Å² leaves of each frequency's amplitude."""
    frequency = radial_frequency(
        (image.shape[0], image.shape[1]),
        frames.pixel_size_angstrom[0],
        dtype=image.dtype,
        device=image.device,
    )
    decay: Tensor = -0.5 / critical_exposure(frequency, series.optics.voltage_kv)
    return decay


def _apply_ctf(
    transform: Tensor,
    shape: torch.Size,
    view: int,
    series: TiltSeries,
    frames: ViewFrames,
    voxel: float,
    options: ViewFilter,
) -> Tensor:
    """Go back to real space, with the CTF of each place's own defocus.

    The defocus changes across the tilt axis. The view is corrected at a few defoci, and each pixel blends the two
    next to its own, so that no seam is left.
    """
    if options.ctf == "none":
        plain: Tensor = torch.fft.irfft2(transform, s=tuple(shape))
        return plain
    if not math.isfinite(series.mean_defocus_angstrom[view]):
        raise UserError(
            f"view {view + 1} of {series.name!r} has no defocus; expected one for `ctf` {options.ctf!r}"
        )
    offsets = _defocus_offsets(shape, view, series, frames).to(transform.device)
    # Half a radian of phase at the volume's Nyquist frequency from one strip's defocus to the next.
    step = 0.5 * (2 * voxel) ** 2 / (math.pi * series.optics.wavelength_angstrom)
    centres = _spread(float(offsets.min()), float(offsets.max()), step)
    result = torch.zeros(tuple(shape), dtype=torch.float32, device=transform.device)
    for centre in centres:
        ctf = ctf_2d(
            (shape[0], shape[1]),
            frames.pixel_size_angstrom[0],
            defocus_u_angstrom=float(series.defocus_u_angstrom[view]) + centre,
            defocus_v_angstrom=float(series.defocus_v_angstrom[view]) + centre,
            defocus_angle_deg=float(series.defocus_angle_deg[view]),
            voltage_kv=series.optics.voltage_kv,
            cs_mm=series.optics.cs_mm,
            amplitude_contrast=series.optics.amplitude_contrast,
            phase_shift_deg=float(series.phase_shift_deg[view]),
            device=transform.device,
        )
        weights = ctf if options.ctf == "multiply" else ctf.sign()
        strip = torch.fft.irfft2(transform * weights, s=tuple(shape))
        if len(centres) > 1:
            strip *= (1 - (offsets - centre).abs() / (centres[1] - centres[0])).clamp(min=0)
        result += strip
    return result


def _spread(low: float, high: float, step: float) -> list[float]:
    count = math.ceil((high - low) / step) + 1
    if count == 1:
        return [(low + high) / 2]
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def _defocus_offsets(shape: torch.Size, view: int, series: TiltSeries, frames: ViewFrames) -> Tensor:
    """`(y, x)` defocus of each pixel's specimen, at half its thickness, less that at the tilt axis; Å."""
    y = torch.arange(shape[0], dtype=torch.float64)[:, None]
    x = torch.arange(shape[1], dtype=torch.float64)
    # The extended image continues before pixel 0 at its far end; those pixels are cropped, so they may take
    # any defocus within the range.
    height, width = (
        round(series.image_shape[i] * series.pixel_size_angstrom / frames.pixel_size_angstrom[1 - i])
        for i in (0, 1)
    )
    y, x = y.clamp(max=height - 1), x.clamp(max=width - 1)
    pixel_x, pixel_y = frames.pixel_size_angstrom
    shift_x, shift_y = frames.shift_angstrom[view].tolist()
    image_x = (x - frames.centre_pixel[0]) * pixel_x - shift_x
    image_y = (y - frames.centre_pixel[1]) * pixel_y - shift_y
    inverse = torch.linalg.inv(frames.in_plane[view]).tolist()
    tilt, x_tilt = (math.radians(float(angle[view])) for angle in (frames.y_tilt_deg, frames.x_tilt_deg))
    # Points of the plane z = 0 have w = y cos(x_tilt) and height q = y sin(x_tilt) = w tan(x_tilt); from
    # s = x cos + q sin and depth = q cos - x sin follows depth = q / cos - s tan, linear in the image's x and y.
    rise, fall = math.tan(x_tilt) / math.cos(tilt), math.tan(tilt)
    along_x = series.hand * (rise * inverse[1][0] - fall * inverse[0][0]) * image_x
    along_y = series.hand * (rise * inverse[1][1] - fall * inverse[0][1]) * image_y
    offsets: Tensor = along_y.float() + along_x.float()
    return offsets
