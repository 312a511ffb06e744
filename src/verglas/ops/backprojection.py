"""Weighted back-projection: the filters, and where a volume's voxels meet the views.

A view of the specimen point p (xyz) is `M Rz (s, w) + shift`, where `(s, w)` are the first two coordinates of
`Ry Rx p` (`verglas.ops.geometry`): `w` runs along the tilt axis, `s` across it. With q the height above the
axis, `q = y sin(x_tilt) + z cos(x_tilt)`, it is `s = cos(y_tilt) (x + q tan(y_tilt))`: a volume row along x meets
the view in equal steps, and the rows of the view are sampled at just these.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verglas.ops.geometry import axis_rotations
from verglas.ops.kernels.backproject import backproject_rows
from verglas.ops.kernels.resample import resample_rows
from verglas.shapes import Values, Volume

PHASES = 2
"""Samples a voxel along a row; linear interpolation between them loses nothing that the filter cannot restore."""

MAX_TILT_DEG = 80.0
"""Beyond it the rows of a view would have to be stretched without bound."""

LEAST_X_TILT_DEG = 1e-3
"""Below it a specimen's rows stay within a few hundredths of those of the views."""


def angular_steps(y_tilt_deg: Values) -> Values:
    """Angle that each view stands for, in radians: half the way to its neighbours on either side.

    The outermost views stand for as much outside as inside; views at one angle share its step; a single view
    stands for one degree.

    Parameters
    ----------
    y_tilt_deg
        `(n,)` tilt angles in any order.
    """
    angles, place, counts = torch.unique(y_tilt_deg, return_inverse=True, return_counts=True)
    if len(angles) == 1:
        return torch.full_like(y_tilt_deg, math.radians(1.0)) / len(y_tilt_deg)
    gaps = angles.diff()
    steps = (torch.cat([gaps[:1], gaps]) + torch.cat([gaps, gaps[-1:]])) / 2
    return torch.deg2rad(steps / counts)[place]


def ramp_filter(frequency: Values, step: float) -> Values:
    """Radon's filter times the angular step: sums of views so filtered have the specimen's density.

    Parameters
    ----------
    frequency
        Frequencies across the tilt axis, cycles a voxel.
    step
        Angle that the view stands for, radians.
    """
    return frequency.abs() * step


def exact_filter(frequency: Values, y_tilt_deg: Values, view: int, diameter_voxels: float) -> Values:
    """Filter of Harauz and van Heel (1986, Optik 73, 146) for the tilts there are.

    At each frequency a view counts in inverse proportion to the views whose central sections, as thick as the
    specimen's transform is smooth, overlap there.

    Parameters
    ----------
    frequency
        Frequencies across the tilt axis, cycles a voxel.
    y_tilt_deg
        `(n,)` tilt angles of all views.
    view
        Which view the filter is for.
    diameter_voxels
        Extent of the specimen across the beam's path, usually its thickness.
    """
    sines = torch.deg2rad(y_tilt_deg - y_tilt_deg[view]).sin().abs()
    overlap = torch.zeros_like(frequency)
    for sine in sines.tolist():
        overlap += (1 - diameter_voxels * frequency.abs() * sine).clamp(min=0)
    return 1 / (overlap * diameter_voxels)


def sirt_filter(frequency: Values, step: float, iterations: int, lowest: float) -> Values:
    """Filter that gives what `iterations` rounds of SIRT would.

    Landweber's iteration from zero reaches the share 1 - (1 - a/|k|)^n of each frequency after n rounds, with a
    the lowest frequency sampled, where it converges at once (the formula behind IMOD's FakeSIRTiterations).

    Parameters
    ----------
    frequency
        Frequencies across the tilt axis, cycles a voxel.
    step
        Angle that the view stands for, radians.
    iterations
        Number of rounds, at least 1.
    lowest
        Lowest frequency that the view holds, one over its extent.
    """
    size = frequency.abs()
    share = 1 - (1 - lowest / size.clamp(min=lowest)) ** iterations
    return size * step * share


def spline_response(frequency_y: Values, frequency_x: Values) -> Values:
    """Response of cubic B-spline interpolation's samples, by which to divide an image to get coefficients.

    Parameters
    ----------
    frequency_y, frequency_x
        Cycles a pixel of the sampled image; any shapes that broadcast.
    """
    return _spline_response_1d(frequency_y) * _spline_response_1d(frequency_x)


def _spline_response_1d(frequency: Values) -> Values:
    return (2 + (2 * math.pi * frequency).cos()) / 3


@dataclass(frozen=True)
class ViewFrames:
    """Geometry of filtered views; all double precision, an entry a view.

    Parameters
    ----------
    x_tilt_deg, y_tilt_deg
        `(n,)` tilts of the specimen.
    in_plane
        `(n, 2, 2)` the matrices `M Rz`, acting on column vectors of xy.
    shift_angstrom
        `(n, 2)` xy place of the specimen's centre, from the centre of the view.
    pixel_size_angstrom
        xy sides of a pixel of the filtered views.
    centre_pixel
        xy place of the view's centre in pixels of the filtered views.
    """

    x_tilt_deg: Tensor
    y_tilt_deg: Tensor
    in_plane: Tensor
    shift_angstrom: Tensor
    pixel_size_angstrom: tuple[float, float]
    centre_pixel: tuple[int, int]

    @property
    def rows_per_voxel(self) -> int:
        """Rows of a view a voxel along y; one suffices where the specimen is not tilted about x."""
        return 2 if bool(self.leaves_rows.any()) else 1

    @property
    def leaves_rows(self) -> Tensor:
        """`(n,)` whether the specimen is tilted so far about x that its rows meet a view between its rows."""
        return self.x_tilt_deg.abs() > LEAST_X_TILT_DEG

    def take(self, views: Tensor) -> "ViewFrames":
        """Return the frames of these views."""
        return ViewFrames(
            self.x_tilt_deg[views],
            self.y_tilt_deg[views],
            self.in_plane[views],
            self.shift_angstrom[views],
            self.pixel_size_angstrom,
            self.centre_pixel,
        )


def in_plane_matrices(z_rot_deg: Values, magnification: Tensor) -> Tensor:
    """`(n, 2, 2)` matrices `M Rz` from the axis angles `(n,)` and the magnifications `(n, 2, 2)`."""
    return magnification @ axis_rotations(z_rot_deg, "z")[:, :2, :2]


@dataclass(frozen=True)
class VoxelGrid:
    """Where the voxels of a volume lie in the specimen.

    Parameters
    ----------
    shape
        `(z, y, x)` voxels.
    voxel_size_angstrom
        Side of a voxel, Å.
    centre_angstrom
        xyz of voxel `n // 2`, Å from the specimen's centre.
    """

    shape: tuple[int, int, int]
    voxel_size_angstrom: float
    centre_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def rows(self, start: int, stop: int) -> "VoxelGrid":
        """Return the part of the grid between two rows along y."""
        z, y, x = self.shape
        size = stop - start
        moved = (start + size // 2 - y // 2) * self.voxel_size_angstrom
        cx, cy, cz = self.centre_angstrom
        return VoxelGrid((z, size, x), self.voxel_size_angstrom, (cx, cy + moved, cz))

    def sections(self, start: int, stop: int) -> "VoxelGrid":
        """Return the part of the grid between two sections along z."""
        z, y, x = self.shape
        size = stop - start
        moved = (start + size // 2 - z // 2) * self.voxel_size_angstrom
        cx, cy, cz = self.centre_angstrom
        return VoxelGrid((size, y, x), self.voxel_size_angstrom, (cx, cy, cz + moved))

    def first_voxel_angstrom(self) -> tuple[float, float, float]:
        """Xyz of voxel (0, 0, 0), Å."""
        x, y, z = (
            centre - (size // 2) * self.voxel_size_angstrom
            for centre, size in zip(self.centre_angstrom, self.shape[::-1], strict=True)
        )
        return x, y, z


def backproject(coefficients: Values, frames: ViewFrames, grid: VoxelGrid) -> Volume:
    """Sum filtered views over the voxels of a grid.

    Parameters
    ----------
    coefficients
        `(n, y, x)` float32 B-spline coefficients of the filtered views.
    frames
        Their geometry.
    grid
        The voxels.

    Returns
    -------
    Tensor
        `(z, y, x)` float32.

    Raises
    ------
    ValueError
        When a view is tilted beyond 80°.
    """
    steepest = float(frames.y_tilt_deg.abs().max())
    if steepest > MAX_TILT_DEG:
        raise ValueError(
            f"views tilted beyond {MAX_TILT_DEG:g}° cannot be back-projected; got {steepest:.1f}°"
        )
    samples, shears, shape = lay_rows(frames, grid)
    rows = resample_rows(coefficients, samples, shape)
    volume = torch.zeros(grid.shape, dtype=torch.float32, device=coefficients.device)
    backproject_rows(rows, shears, volume)
    return volume


def lay_rows(frames: ViewFrames, grid: VoxelGrid) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Lay rows through each view that just cover the grid.

    Parameters
    ----------
    frames
        Geometry of the views.
    grid
        The voxels.

    Returns
    -------
    samples
        `(n, 6)` places of the rows' samples in the views, see `verglas.ops.kernels.resample`.
    shears
        `(n, 6)` places of the voxels in the rows, see `verglas.ops.kernels.backproject`.
    shape
        `(v, phase, k)` number of samples of a view.
    """
    voxel = grid.voxel_size_angstrom
    spacing = voxel / frames.rows_per_voxel
    z_size, y_size, x_size = grid.shape
    x0, y0, z0 = grid.first_voxel_angstrom()
    tilt = torch.deg2rad(frames.y_tilt_deg)
    x_tilt = torch.deg2rad(frames.x_tilt_deg)
    sine, cosine, tangent = x_tilt.sin(), x_tilt.cos(), tilt.tan()
    # w and X = x + q tan(tilt) are linear in the voxel's y and z: their corners bound them.
    corners = [(y0 + y * voxel, z0 + z * voxel) for y in (0, y_size - 1) for z in (0, z_size - 1)]
    w = torch.stack([y * cosine - z * sine for y, z in corners])
    offset = torch.stack([(y * sine + z * cosine) * tangent for y, z in corners])
    # Samples lie on the volume's own lattice: rows then meet rows, and a region or a block of a volume is the
    # same as in the whole.
    w_lattice = y0 % voxel * cosine - z0 % voxel * sine
    w_start = torch.floor((w.min(dim=0).values - w_lattice) / spacing + 1e-6) * spacing + w_lattice
    x_start = torch.floor(offset.min(dim=0).values / voxel) * voxel + x0
    v_size = int(((w.max(dim=0).values - w_start) / spacing).max() + 1e-6) + 2
    k_size = x_size + int(((offset.max(dim=0).values + x0 - x_start) / voxel).max()) + 2
    shears = torch.stack(
        [
            (y0 * cosine - z0 * sine - w_start) / spacing,
            cosine * voxel / spacing,
            -sine * voxel / spacing,
            (x0 + (y0 * sine + z0 * cosine) * tangent - x_start) / voxel,
            sine * tangent,
            cosine * tangent,
        ],
        dim=1,
    )
    pixel = torch.tensor(frames.pixel_size_angstrom, dtype=torch.float64)
    centre = torch.tensor(frames.centre_pixel, dtype=torch.float64)
    first = torch.stack([tilt.cos() * x_start, w_start], dim=1)
    start = (frames.in_plane @ first[..., None])[..., 0]
    start = (start + frames.shift_angstrom) / pixel + centre
    along_k = frames.in_plane[:, :, 0] * (tilt.cos() * voxel)[:, None] / pixel
    along_v = frames.in_plane[:, :, 1] * spacing / pixel
    samples = torch.stack(
        [start[:, 1], along_v[:, 1], along_k[:, 1], start[:, 0], along_v[:, 0], along_k[:, 0]], dim=1
    )
    return samples, shears, (v_size, PHASES, k_size)
