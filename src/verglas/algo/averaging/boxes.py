"""Particles cut as boxes from tomograms that carry the CTF of every height, with the sampling function of each.

A tomogram made by `reconstruct --ctf 3d` is a weighted sum of views that were multiplied by their CTF. So the
transform of a box around a particle is, near the plane of each view, g c' c F, with c the transfer that the view had,
c' the one that it was multiplied by, F what the particle's projection would be, and g the weight across the tilt axis
where planes lie apart, and 1 where they overlap and average. emClarity's sampling function of a particle w² (Himes
and Zhang 2018; section 16.8.2 of its tutorial) is g c' c in three dimensions, from the particle's own defocus, dose
and thickness.

Box and sampling function are both read on the planes of the views, where sums and alignment take them for slices cut
from the views themselves. Where neighbouring planes overlap each of them holds their mean, so nothing counts twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verglas.algo.averaging.sums import OVERSAMPLING, batch_particles
from verglas.algo.averaging.transfer import (
    Transfer,
    TransferModel,
    ViewHeights,
    compute_transfer,
    find_heights,
)
from verglas.algo.averaging.views import ParticleSlices, SeriesViews
from verglas.model import AppliedWeights, TiltSeries, Tomogram
from verglas.ops.backprojection import angular_steps
from verglas.ops.fft import rfft_crop, shift_transforms
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.projection import (
    complete_planes,
    crop_transform,
    extract_slices,
    insert_slices,
    transform_volume,
)
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Vectors

_FALL_PX = 6.0
_NOISE_PARTICLES = 50
_LEAST_GAIN = 0.05

VolumeArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class WeightedVolume:
    """A tomogram, dense is dark.

    Parameters
    ----------
    tomogram
        Where it lies.
    voxels
        `(z, y, x)`, in memory or mapped from its file.
    weights
        What its views were weighted with.
    """

    tomogram: Tomogram
    voxels: VolumeArray
    weights: AppliedWeights

    def cut(self, corner_xyz: tuple[int, int, int], box: int) -> Float[Tensor, "z y x"]:
        """Cut a cube with dense bright; nothing lies outside the volume."""
        cube = np.zeros((box,) * 3, dtype=np.float32)
        inside, outside = [], []
        for first, size in zip(reversed(corner_xyz), self.voxels.shape, strict=True):
            low, high = max(first, 0), min(first + box, size)
            if low >= high:
                return torch.from_numpy(cube)
            inside.append(slice(low, high))
            outside.append(slice(low - first, high - first))
        cube[tuple(outside)] = self.voxels[tuple(inside)]
        return -torch.from_numpy(cube)


@dataclass(frozen=True, eq=False)
class TomogramSource:
    """Slices through the boxes of particles: a `ParticleSource`.

    Parameters
    ----------
    views
        Geometry, without images.
    volumes
        Tomograms of the series.
    model
        What weakened the signal.
    box
        Side n, even.
    gains
        `(v, n, n // 2 + 1)` g.
    noise
        `(v, rings)` power of F's noise.
    """

    views: SeriesViews
    volumes: tuple[WeightedVolume, ...]
    model: TransferModel
    box: int
    gains: Float[Tensor, "views y kx"]
    noise: Float[Tensor, "views rings"]

    @property
    def pixel_size_angstrom(self) -> float:
        """Side of a voxel."""
        return self.views.pixel_size_angstrom[0]

    @property
    def batch(self) -> int:
        """Particles that are cut at once."""
        return batch_particles(len(self.views.images), self.box)

    def cut(self, positions_angstrom: Vectors, size: int) -> tuple[ParticleSlices, Transfer]:
        """Cut particles from the tomograms: `ParticleSource.cut`."""
        slices, squares = [], []
        for position in positions_angstrom:
            one, square = self._cut_one(position[None])
            slices.append(one / self.gains)
            squares.append((square / self.gains).clamp(min=0))
        data, weights = torch.stack(slices), torch.stack(squares)
        if size < self.box:
            shape = (self.box, self.box)
            data = rfft_crop(data, shape, (size, size))
            weights = rfft_crop(weights.to(data.dtype), shape, (size, size)).real
        return data, weights

    def _cut_one(self, position: Vectors) -> tuple[ParticleSlices, Transfer]:
        """Slices of the box of one particle `(1, 3)` and of its sampling function, with `gains` in both."""
        views, box = self.views, self.box
        volume = _find_volume(self.volumes, position)
        seen = _tell_seen(views, position, box)[0]
        if volume is None or not seen.any():
            shape = (len(views.images), box, box // 2 + 1)
            device = views.images.device
            return torch.zeros(shape, dtype=torch.complex64, device=device), torch.zeros(shape, device=device)
        place = torch.from_numpy(volume.tomogram.locate(position.numpy())[0])
        nearest = place.round()
        first = [int(value) - box // 2 for value in nearest]
        cube = volume.cut((first[0], first[1], first[2]), box).to(views.images.device)
        window = _window(box, cube.device)
        cube = (cube - (cube * window).sum() / window.sum()) * window
        slices = extract_slices(transform_volume(cube, OVERSAMPLING), views.rotations, box)
        # What is left of the place, as each view sees it.
        moves = torch.einsum("vij,j->vi", views.rotations[:, :2], nearest - place).flip(-1)
        slices = shift_transforms(slices, (box, box), moves.to(cube.device))
        squares = self._square(volume, position) * seen[:, None, None].to(cube.device)
        return slices, _spread(squares, views, box)

    def _square(self, volume: WeightedVolume, position: Vectors) -> Float[Tensor, "views y kx"]:
        """Multiply what each view had of one particle by what it was multiplied by."""
        views, weights = self.views, volume.weights
        heights = find_heights(views, position)
        had = compute_transfer(views, heights, self.box, self.pixel_size_angstrom, self.model)
        applied = TransferModel(ctf=weights.ctf != "none", dose=weights.dose_weighted)
        slab = heights + _rise_to_surface(weights, views, position)
        given = compute_transfer(views, slab, self.box, self.pixel_size_angstrom, applied)[0]
        factors = torch.from_numpy(weights.view_factors).to(given)
        product: Tensor = had[0] * given * factors[:, None, None]
        return product


def open_boxes(
    volumes: Sequence[WeightedVolume],
    series: TiltSeries,
    positions_angstrom: Vectors,
    box: int,
    model: TransferModel,
    device: torch.device,
) -> TomogramSource:
    """Measure the noise in the boxes of some of the particles, spread over their list.

    Parameters
    ----------
    volumes
        Tomograms of the series, of the same views and voxels, that were weighted by a ramp.
    series
        The whole series.
    positions_angstrom
        `(p, 3)` of the particles, float64.
    box
        Side of the boxes.
    model
        What weakens the signal.
    device
        Where slices are made.
    """
    weights, voxel = volumes[0].weights, volumes[0].tomogram.voxel_size_angstrom
    views = _describe_views(series, weights, voxel, device)
    ones = torch.ones((len(views.images), box, box // 2 + 1), device=device)
    gains = _spread(ones, views, box).clamp(min=_LEAST_GAIN)
    rings = fourier_shells((box, box), device)
    bare = TomogramSource(views, tuple(volumes), model, box, gains, ones.new_ones(len(views.images), 1))
    step = max(1, len(positions_angstrom) // _NOISE_PARTICLES)
    power, expected = torch.zeros_like(gains), torch.zeros_like(gains)
    for position in positions_angstrom[::step][:_NOISE_PARTICLES]:
        slices, squares = bare.cut(position[None], box)
        power += slices[0].abs().square()
        expected += squares[0]
    # Where planes overlap a slice is the mean of several, and its noise is less by as much.
    expected *= _ramp(views, box).clamp(min=1 / box, max=1.0)
    count = int(rings.max()) + 1

    def ring(values: Tensor) -> Tensor:
        flat = values.reshape(len(values), -1)
        return flat.new_zeros(len(flat), count).index_add_(1, rings.reshape(-1), flat)

    found = ring(power) / ring(expected).clamp(min=1e-30)
    found[:, 0] = found[:, 1]
    found = torch.maximum(found, 1e-3 * found.mean(-1, keepdim=True))
    noise = torch.where(ring(expected) > 0, found, found.amax(-1, keepdim=True)).clamp(min=1e-30)
    return replace(bare, noise=noise)


def _describe_views(
    series: TiltSeries, weights: AppliedWeights, voxel: float, device: torch.device
) -> SeriesViews:
    """Describe the views as the tomogram shows them: not stretched, not bent, with its voxels for pixels."""
    used = series.take(weights.views)
    straight = replace(used, magnification=np.eye(2), local=None)
    empty = torch.zeros((len(used), 0, 0), device=device)
    views = SeriesViews(straight, empty, (voxel, voxel))
    # The record's defocus is that of matter at this height, seen through the specimen's centre.
    fall = used.hand * weights.defocus_height_angstrom / views.rotations[:, 2, 2].numpy()
    lowered = replace(
        straight,
        defocus_u_angstrom=used.defocus_u_angstrom - fall,
        defocus_v_angstrom=used.defocus_v_angstrom - fall,
    )
    return replace(views, series=lowered)


def _find_volume(volumes: Sequence[WeightedVolume], position: Vectors) -> WeightedVolume | None:
    """Of the volumes that hold a place `(1, 3)`, the one with the most around it."""
    margins = [float(one.tomogram.find_margins(position.numpy())[0]) for one in volumes]
    best = int(np.argmax(margins))
    return volumes[best] if margins[best] >= 0 else None


def _tell_seen(views: SeriesViews, positions_angstrom: Vectors, box: int) -> Bool[Tensor, "particles views"]:
    """Tell which views show particles: those in which the inner half of the box lies within the view."""
    series = views.series
    extent = torch.tensor(series.image_shape[::-1]) * series.pixel_size_angstrom
    inner = (box / 2 - _FALL_PX) / 2 * views.pixel_size_angstrom[0]
    seen: Tensor = (views.project_points(positions_angstrom).abs() <= extent / 2 - inner).all(-1)
    return seen


def _window(box: int, device: torch.device) -> Float[Tensor, "z y x"]:
    return soft_sphere_mask((box,) * 3, box / 2 - _FALL_PX, _FALL_PX, device=device)


def _ramp(views: SeriesViews, box: int) -> Float[Tensor, "views y kx"]:
    """Distance between neighbouring planes at each frequency of each view, in voxels of a box's transform."""
    device = views.images.device
    steps = angular_steps(torch.tensor(views.series.y_tilt_deg))
    # The tilt axis is y of the specimen; what lies across it in a view is what its x becomes.
    turns = torch.deg2rad(torch.tensor(views.series.z_rot_deg))
    x = torch.arange(box // 2 + 1, dtype=torch.float64)
    y = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64)[:, None]
    across = x * torch.cos(turns)[:, None, None] + y * torch.sin(turns)[:, None, None]
    ramp: Tensor = (across.abs() * steps[:, None, None]).float().to(device)
    return ramp


def _spread(
    squares: Float[Tensor, "views y kx"], views: SeriesViews, box: int
) -> Float[Tensor, "views y kx"]:
    """Sum weights over the planes of all views as the tomogram did, and read the planes again."""
    size = OVERSAMPLING * box
    weights = squares * _ramp(views, box)
    totals = insert_slices(torch.zeros_like(weights, dtype=torch.complex64), weights, views.rotations, size)[
        1
    ]
    # A sample stands for one voxel of the box's transform, of which the finer one has eight.
    spread = crop_transform(complete_planes(totals) * OVERSAMPLING**3, box) * _window(box, squares.device)
    read: Tensor = extract_slices(transform_volume(spread, OVERSAMPLING), views.rotations, box).real
    return read


def _rise_to_surface(weights: AppliedWeights, views: SeriesViews, position: Vectors) -> ViewHeights:
    """From a particle to the surface whose defocus its slab was corrected for, `(1, v)` Å along the beam."""
    x, y, z = position[0].tolist()
    middle = z
    for surface in weights.surfaces:
        if surface.low_angstrom <= z <= surface.high_angstrom:
            c0, c1, c2, c3, c4, c5 = surface.coefficients
            height = c0 + c1 * x + c2 * y + c3 * x * x + c4 * x * y + c5 * y * y
            middle = min(max(height, surface.low_angstrom), surface.high_angstrom)
            break
    rise: Tensor = (middle - z) / views.rotations[:, 2, 2]
    return rise[None]
