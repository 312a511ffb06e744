"""The views of a series in memory, and what each shows of each particle."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from verglas.model import TiltSeries
from verglas.ops.fft import rescale_images, shift_transforms
from verglas.ops.geometry import series_matrices
from verglas.ops.local_field import evaluate_field
from verglas.ops.masks import soft_sphere_mask
from verglas.shapes import Affines, Image, Vectors

ParticleSlices = Complex[Tensor, "particles views y kx"]
"""`(p, v, n, n // 2 + 1)` half transforms of the crops, origin at index 0."""

_FALL_PX = 6.0


@dataclass(frozen=True, eq=False)
class SeriesViews:
    """The used views of a series at the sampling of the particles.

    Parameters
    ----------
    series
        Their record, a row for each.
    images
        `(v, y, x)` float32 with mean 0 and standard deviation 1; dense is bright.
    pixel_size_angstrom
        xy of the images.
    """

    series: TiltSeries
    images: Image
    pixel_size_angstrom: tuple[float, float]

    @property
    def matrices(self) -> Affines:
        """`(v, 4, 4)` from the specimen to the views, Å; float64."""
        return series_matrices(self.series.geometry)

    def project_points(self, points_angstrom: Vectors) -> Float[Tensor, "points views 2"]:
        """Find where specimen points appear, local field included.

        Parameters
        ----------
        points_angstrom
            `(p, 3)` xyz, float64.

        Returns
        -------
        Tensor
            `(p, v, 2)` xy in Å from the views' centres.
        """
        matrices = self.matrices
        places = torch.einsum("vij,pj->pvi", matrices[:, :2, :3], points_angstrom) + matrices[:, :2, 3]
        field = self.series.local
        if field is None:
            return places
        shifts = [
            evaluate_field(
                torch.tensor(nodes), field.low_angstrom, field.high_angstrom, points_angstrom[:, :2]
            )
            for nodes in field.shifts_angstrom
        ]
        return places + torch.stack(shifts, dim=1)

    @property
    def rotations(self) -> Float[Tensor, "v 3 3"]:
        """`(v, 3, 3)` from the specimen to the frame in which the beam is z; float64."""
        geometry = self.series.geometry
        del geometry["magnification"]
        return series_matrices(geometry)[:, :3, :3]


def invert_views(images: Iterable[Image], series: TiltSeries, pixel_size_angstrom: float) -> SeriesViews:
    """Bring recorded views, in which dense is dark, to the sampling of the particles with dense bright.

    Parameters
    ----------
    images
        The views `(y, x)`, one after the other.
    series
        Their record.
    pixel_size_angstrom
        Wanted; the views are never sampled more finely than they were recorded.
    """
    factor = min(1.0, series.pixel_size_angstrom / pixel_size_angstrom)
    height, width = (max(8, round(size * factor)) for size in series.image_shape)
    stack: Tensor | None = None
    for row, image in enumerate(images):
        small = rescale_images(image.to(torch.float32), (height, width))
        if stack is None:
            stack = small.new_empty((len(series), height, width))
        torch.sub(small.mean(), small, out=stack[row])
        # The deviation by its norm: `std` is ten times slower.
        stack[row] /= (torch.linalg.vector_norm(stack[row]) / math.sqrt(small.numel() - 1)).clamp(min=1e-12)
    if stack is None:
        raise ValueError("`images` must hold at least one view")
    pixel = series.pixel_size_angstrom
    return SeriesViews(
        series, stack, (pixel * series.image_shape[1] / width, pixel * series.image_shape[0] / height)
    )


def _find_pixels(views: SeriesViews, positions_angstrom: Vectors) -> Float[Tensor, "points views 2"]:
    """Where particles appear, xy pixels."""
    height, width = views.images.shape[1:]
    places = views.project_points(positions_angstrom) / torch.tensor(views.pixel_size_angstrom)
    return places + torch.tensor([width // 2, height // 2])


def tell_seen(views: SeriesViews, positions_angstrom: Vectors, box: int) -> Bool[Tensor, "particles views"]:
    """Tell which views show particles: those in which the inner half of the disc lies within the view.

    Parameters
    ----------
    views
        The views.
    positions_angstrom
        `(p, 3)` xyz in the specimen, float64.
    box
        Side of the crops, pixels.
    """
    return _lies_within(_find_pixels(views, positions_angstrom), views, box)


def _lies_within(places: Tensor, views: SeriesViews, box: int) -> Bool[Tensor, "particles views"]:
    height, width = views.images.shape[1:]
    inner = (box / 2 - _FALL_PX) / 2
    within: Tensor = ((places >= inner) & (places <= torch.tensor([width, height]) - 1 - inner)).all(-1)
    return within


def cut_particles(
    views: SeriesViews, positions_angstrom: Vectors, box: int
) -> tuple[ParticleSlices, Bool[Tensor, "particles views"]]:
    """Cut particles from the views, centred to a fraction of a pixel: `cut_windows`, moved.

    Returns
    -------
    slices
        `(p, v, n, n // 2 + 1)`.
    seen
        `(p, v)` of `tell_seen`; what is not seen is zero.
    """
    slices, shifts, seen = cut_windows(views, positions_angstrom, box)
    return shift_transforms(slices, (box, box), shifts), seen


def cut_windows(
    views: SeriesViews, positions_angstrom: Vectors, box: int
) -> tuple[ParticleSlices, Float[Tensor, "particles views 2"], Bool[Tensor, "particles views"]]:
    """Cut the windows of the views that hold particles, and tell how these are to be moved to be centred.

    Of each crop a disc that nearly fills it is kept, with a soft edge and without its mean. Where it reaches
    beyond the view there is nothing.

    Parameters
    ----------
    views
        The views.
    positions_angstrom
        `(p, 3)` xyz in the specimen, float64.
    box
        Side n of the crops, even.

    Returns
    -------
    slices
        `(p, v, n, n // 2 + 1)`, origin the crop's first pixel.
    shifts
        `(p, v, 2)` yx pixels, that bring the particle to the origin; float64.
    seen
        `(p, v)` of `tell_seen`; what is not seen is zero.
    """
    images = views.images
    places = _find_pixels(views, positions_angstrom)
    nearest = places.round()
    first = nearest.long() - box // 2
    reach = box / 2 - _FALL_PX
    seen = _lies_within(places, views, box)
    device = images.device
    disc = soft_sphere_mask((box, box), reach, _FALL_PX, device=device).to(images.dtype)
    crops, discs = _copy_windows(images, first.to(device), disc)
    discs = discs * seen[..., None, None].to(device)
    means = (crops * discs).sum((-2, -1), keepdim=True) / discs.sum((-2, -1), keepdim=True).clamp(min=1)
    crops = crops.sub_(means).mul_(discs)
    shifts = (nearest - places).flip(-1).to(device) - box // 2
    return torch.fft.rfft2(crops), shifts, seen.to(device)


def _copy_windows(
    images: Image, first: Int[Tensor, "particles views 2"], disc: Float[Tensor, "box box"]
) -> tuple[Tensor, Tensor]:
    """Cut `(p, v, n, n)` windows that begin at `first` (xy), and of the disc what lies within the view."""
    box, (height, width) = len(disc), images.shape[1:]
    rows = torch.arange(len(images), device=first.device).expand(first.shape[:2])
    inside = ((first >= 0) & (first <= torch.tensor([width - box, height - box], device=first.device))).all(
        -1
    )
    crops = images.new_empty(*first.shape[:2], box, box)
    if bool(inside.any()):
        # Whole rows are copied, which indexing pixel by pixel does not.
        windows = images.unfold(1, box, 1).unfold(2, box, 1)
        x, y = (first[..., axis].clamp(0, size - box) for axis, size in ((0, width), (1, height)))
        crops = windows[rows, y, x]
    discs = disc.expand(crops.shape)
    beyond = ~inside
    if bool(beyond.any()):
        steps = torch.arange(box, device=first.device)
        x, y = (first[beyond][:, axis, None] + steps for axis in (0, 1))
        crops[beyond] = images[
            rows[beyond][:, None, None], y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]
        ]
        within_x, within_y = ((x >= 0) & (x < width)).to(disc), ((y >= 0) & (y < height)).to(disc)
        discs = discs.clone()
        discs[beyond] = disc * within_y[:, :, None] * within_x[:, None, :]
    return crops, discs
