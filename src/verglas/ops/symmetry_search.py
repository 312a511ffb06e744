"""Where the axes of a symmetric volume lie."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import fast_size, rescale_images
from verglas.ops.interpolation import affine_transform_volume
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import rotation_vectors_to_matrices, so3_grid
from verglas.ops.symmetry import generating_matrices, symmetry_matrices
from verglas.shapes import Rotations, Values, Volume

COARSE_VOXELS, FINE_VOXELS = 24, 56
_KEPT, _BATCH = 3, 64
_COARSE_TRIALS, _FINE_TRIALS = 60, 100
_LARGEST_SHIFT = 0.15
Params = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SymmetryFrame:
    """How a volume lies to the axes of a group.

    Parameters
    ----------
    rotation
        `(3, 3)` takes the volume's frame to the group's.
    centre_voxels
        `(3,)` xyz of the point through which the axes go, from the volume's centre; of C groups the nearest.
    correlation
        Of the volume with itself turned by the group's generators, within a ball; 1 is perfect.
    """

    rotation: Rotations
    centre_voxels: Values
    correlation: float


def find_symmetry_frame(volume: Volume, group: str, step_deg: float = 10.0) -> SymmetryFrame:
    """Find the axes of a point group in a volume: a search of all orientations, then a refinement with shifts.

    Parameters
    ----------
    volume
        `(z, y, x)`; its centre lies near the axes.
    group
        As `symmetry_matrices` takes it.
    step_deg
        Step of the search.

    Raises
    ------
    UserError
        When the group has one element only, or the volume is constant.
    """
    generators = generating_matrices(group)
    if not len(generators):
        raise UserError(f"`group` {group!r} has no axes to find; expected more than one element")
    if not float(volume.std()) > 0:
        raise UserError(f"a volume of constant density has no axes of {group}; expected a map with detail")
    coarse, fine = (_shrink(volume, size) for size in (COARSE_VOXELS, FINE_VOXELS))
    candidates = _list_frames(group, step_deg)
    scores = torch.cat(
        [_score(coarse, some, torch.zeros(3), generators) for some in candidates.split(_BATCH)]
    )
    best: tuple[float, Tensor, Tensor] | None = None
    for index in scores.argsort(descending=True)[:_KEPT].tolist():
        found = _refine(
            coarse,
            candidates[index],
            torch.zeros(3, dtype=torch.float64),
            generators,
            step_deg,
            _COARSE_TRIALS,
        )
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    scale = fine.shape[0] / coarse.shape[0]
    score, rotation, centre = _refine(fine, best[1], best[2] * scale, generators, 1.0, _FINE_TRIALS)
    if group.strip().upper()[0] == "C":
        # Along a single axis every place is as good; the nearest to the volume's centre is taken.
        centre = centre - rotation[2] * (rotation[2] @ centre)
    return SymmetryFrame(rotation, centre * max(volume.shape) / fine.shape[0], score)


def _list_frames(group: str, step_deg: float) -> Rotations:
    """Rotations from the volume's frame to the group's that are not the same by symmetry."""
    matrices = symmetry_matrices(group)
    if group.strip().upper()[0] == "C":
        # Only the direction of the axis counts, and not which end of it.
        grid = so3_grid(step_deg)
        directions = grid[:, :, 2]
        _, place = np.unique(np.round(directions.numpy(), 6), axis=0, return_index=True)
        grid = grid[np.sort(place)]
        return grid[grid[:, 2, 2] >= -1e-6].transpose(1, 2)
    return so3_grid(step_deg, matrices).transpose(1, 2)


def _shrink(volume: Tensor, size: int) -> Tensor:
    """Bring a volume into a cube of at most `size` voxels a side, normalised."""
    side = max(volume.shape)
    if any(n != side for n in volume.shape):
        widths = [
            w for n in reversed(volume.shape) for w in (side // 2 - n // 2, side - n - side // 2 + n // 2)
        ]
        volume = torch.nn.functional.pad(volume, widths, value=float(volume.mean()))
    size = min(fast_size(size), side)
    small = rescale_images(volume.float(), (size, size, size))
    return (small - small.mean()) / small.std()


@cache
def _ball(size: int) -> Tensor:
    return soft_sphere_mask((size, size, size), 0.42 * size, 0.05 * size)


def _score(volume: Tensor, rotations: Tensor, centre: Tensor, generators: Tensor) -> Tensor:
    """Mean correlation of a cube with itself turned by the generators about axes through `centre`.

    `(..., 3, 3)` rotations make `(...)` correlations.
    """
    mask = _ball(volume.shape[0])
    rotations = rotations.to(torch.float64).unsqueeze(-3)
    turns = rotations.mT @ generators @ rotations
    affine = torch.eye(4, dtype=torch.float64).repeat(*turns.shape[:-2], 1, 1)
    affine[..., :3, :3] = turns
    affine[..., :3, 3] = centre - turns @ centre.to(torch.float64)
    turned = affine_transform_volume(volume, affine)
    a, b = volume * mask, turned * mask
    a, b = (one - mask * one.sum((-3, -2, -1), keepdim=True) / mask.sum() for one in (a, b))
    cross = (a * b).sum((-3, -2, -1)) / (a.square().sum().sqrt() * b.square().sum((-3, -2, -1)).sqrt())
    return cross.mean(-1)


def _refine(
    volume: Tensor, rotation: Tensor, centre: Tensor, generators: Tensor, reach_deg: float, trials: int
) -> tuple[float, Tensor, Tensor]:
    """Nelder and Mead over a small turn and the centre."""
    limit = _LARGEST_SHIFT * volume.shape[0]

    def apply(values: Params) -> tuple[Tensor, Tensor]:
        turn = rotation_vectors_to_matrices(torch.tensor(values[:3] * reach_deg))
        return turn @ rotation, centre + torch.tensor(values[3:])

    def cost(values: Params) -> float:
        turned, moved = apply(values)
        if float(moved.norm()) > limit:
            return math.inf
        return -float(_score(volume, turned, moved, generators))

    simplex = np.vstack([np.zeros(6), 0.5 * np.eye(6)])
    found = minimize(
        cost,
        np.zeros(6),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-5, "maxfev": trials},
    )
    turned, moved = apply(found.x)
    return -float(found.fun), turned, moved


def move_to_frame(volume: Volume, frame: SymmetryFrame) -> Volume:
    """Turn and shift a volume so that its axes are those of the group, through its centre; cubic interpolation."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = frame.rotation
    affine[:3, 3] = -frame.rotation @ frame.centre_voxels
    return affine_transform_volume(volume, affine, order="cubic", fill=float(volume.mean()))
