"""From recorded views to filtered ones, ready to be summed over a volume."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from verglas.algo.reconstruction.strips import LEVEL, correct_in_strips, defocus_offsets
from verglas.model import TiltSeries
from verglas.model.weights import DefocusSurface
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
from verglas.ops.dose import critical_exposure, view_weights
from verglas.ops.fft import fast_size, radial_frequency, rescale_images
from verglas.ops.geometry import series_matrices
from verglas.ops.local_field import undo_field
from verglas.shapes import Image, Values


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
        Weight views by the share of electrons that lose no energy in ice of this thickness, and by their share of
        the exposure; 0 does not.
    defocus_height_angstrom
        Height of the matter whose defocus the record gives, Å from the specimen's centre.
    """

    weighting: Literal["ramp", "exact", "sirt"] = "ramp"
    sirt_iterations: int = 20
    thickness_angstrom: float = 1000.0
    normalise: bool = True
    dose: bool = False
    ctf: Literal["none", "flip", "multiply"] = "none"
    ice_thickness_angstrom: float = 0.0
    defocus_height_angstrom: float = 0.0


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
    views, _ = prepare_views(images, series, voxel_size_angstrom, normalise=options.normalise)
    return filter_prepared(views, series, voxel_size_angstrom, options)


def filter_prepared(
    views: Image, series: TiltSeries, voxel_size_angstrom: float, options: ViewFilter
) -> Image:
    """Weight the views `(n, y, x)` of :func:`prepare_views` in place, and return them."""
    weigher = ViewWeigher(series, voxel_size_angstrom, options)
    for view, image in enumerate(views):
        views[view] = weigher.weigh(image, view)
    return views


def prepare_views(
    images: Iterable[Image], series: TiltSeries, voxel_size_angstrom: float, *, normalise: bool
) -> tuple[Image, Values]:
    """Bring views to the sampling of the volume, with mean 0 and without their local field.

    The field is undone for the specimen's middle plane.

    Parameters
    ----------
    images
        The views `(y, x)`, one after the other; each is read once and let go.
    series
        Their record.
    voxel_size_angstrom
        Side of a voxel of the volume.
    normalise
        Whether to divide each by its standard deviation.

    Returns
    -------
    views
        `(n, y, x)` float32.
    deviations
        `(n,)` what each was divided by, float64.
    """
    shape = filtered_shape(series, voxel_size_angstrom)
    result: Tensor | None = None
    deviations = torch.ones(len(series), dtype=torch.float64)
    for view, image in enumerate(images):
        small = _undo_local(rescale_images(image.to(torch.float32), shape), series, view, voxel_size_angstrom)
        small = small - small.mean()
        if normalise:
            deviation = small.std().clamp(min=1e-12)
            small = small / deviation
            deviations[view] = float(deviation)
        if result is None:
            result = torch.empty((len(series), *shape), dtype=torch.float32, device=small.device)
        result[view] = small
    if result is None:
        raise ValueError("`images` must hold at least one view")
    return result, deviations


def _undo_local(image: Image, series: TiltSeries, view: int, voxel_size_angstrom: float) -> Image:
    """Move what a view shows back by its local field, when it has one."""
    field = series.local
    if field is None:
        return image
    matrix = series_matrices(series.take([view]).geometry)[0, :2]
    back = torch.linalg.inv(matrix[:, :2])
    return undo_field(
        image,
        torch.tensor(field.shifts_angstrom[view]),
        field.low_angstrom,
        field.high_angstrom,
        torch.cat([back, -back @ matrix[:, 3:]], dim=1),
        make_frames(series, voxel_size_angstrom).pixel_size_angstrom,
    )


class ViewWeigher:
    """Weights the prepared views of a series, one at a time.

    Parameters
    ----------
    series
        Geometry, exposure and defocus of the views.
    voxel_size_angstrom
        Side of a voxel of the volume.
    options
        The weights.
    """

    def __init__(self, series: TiltSeries, voxel_size_angstrom: float, options: ViewFilter) -> None:
        self.frames = make_frames(series, voxel_size_angstrom)
        self._series = series
        self._voxel = voxel_size_angstrom
        self._options = options
        self._steps = angular_steps(self.frames.y_tilt_deg)
        self._factors = view_factors(series, options)
        self._decay: Tensor | None = None

    @property
    def padded_shape(self) -> tuple[int, int]:
        """`(y, x)` of a view as it is extended for its transform."""
        y, x = (_extended_size(size) for size in filtered_shape(self._series, self._voxel))
        return y, x

    def weigh(self, image: Image, view: int, surface: DefocusSurface = LEVEL) -> Image:
        """Filter one prepared view.

        Parameters
        ----------
        image
            `(y, x)` of :func:`prepare_views`.
        view
            Which view it is.
        surface
            The matter whose defocus the CTF is taken at.

        Returns
        -------
        Tensor
            `(y, x)` B-spline coefficients.
        """
        series, options = self._series, self._options
        padded = _extend_image(image)
        shape = (padded.shape[0], padded.shape[1])
        transform = torch.fft.rfft2(padded)
        transform *= _view_weights(padded, view, series, self.frames, self._steps, self._voxel, options)
        if options.dose:
            if self._decay is None:
                self._decay = _exposure_decay(padded, series, self.frames)
            transform *= torch.exp(self._decay * float(series.pre_exposure_e_per_a2[view]))
        if self._factors[view] != 1:
            transform *= float(self._factors[view])
        if options.ctf == "none":
            plain: Tensor = torch.fft.irfft2(transform, s=shape)[: image.shape[0], : image.shape[1]]
            return plain
        offsets = defocus_offsets(
            (image.shape[0], image.shape[1]),
            view,
            series,
            self.frames,
            surface,
            options.defocus_height_angstrom,
        )
        pixel = self.frames.pixel_size_angstrom[0]
        return correct_in_strips(
            transform, shape, offsets.to(image.device), view, series, pixel, self._voxel, options.ctf
        )


def view_factors(series: TiltSeries, options: ViewFilter) -> Values:
    """Weight of each view as a whole, `(n,)` float64; 1 where no thickness of ice is given."""
    if not options.ice_thickness_angstrom:
        return torch.ones(len(series), dtype=torch.float64)
    weights: Values = view_weights(
        torch.tensor(series.beam_cosines),
        torch.tensor(series.exposure_e_per_a2),
        options.ice_thickness_angstrom,
    )
    return weights


def _extended_size(size: int) -> int:
    return fast_size(size + max(32, size // 2))


def _extend_image(image: Tensor) -> Tensor:
    """Continue an image beyond its last row and column, mirrored and fading to zero, to a good FFT size.

    The fade lies half behind the end and half, by the transform's periodicity, before the beginning.
    """
    for dim in (0, 1):
        size = image.shape[dim]
        total = _extended_size(size)
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
    if frames.leaves_rows[view]:
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
