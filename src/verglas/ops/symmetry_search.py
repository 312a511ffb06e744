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
from verglas.ops.resize import mean_of_faces
from verglas.ops.rotation import rotation_vectors_to_matrices
from verglas.ops.symmetry import generating_matrices
from verglas.shapes import Rotations, Values, Volume

COARSE_VOXELS, FINE_VOXELS = 24, 56
_STEP_DEG = 4.0
_KEPT, _BATCH = 4, 64
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


def find_symmetry_frame(volume: Volume, group: str) -> SymmetryFrame:
    """Find the axes of a point group in a volume.

    The axis of the group's first generator is searched in all directions, as a self-rotation function, but with
    the shift that suits each best; then the others by turning about it; then all is refined together.

    Parameters
    ----------
    volume
        `(z, y, x)`; its centre lies near the axes, within 0.15 of its side.
    group
        As `symmetry_matrices` takes it.

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
    candidates = _search_axes(coarse, generators)
    refined = [_refine(coarse, *one, generators, _STEP_DEG, _COARSE_TRIALS) for one in candidates]
    _, rotation, centre = max(refined, key=lambda one: one[0])
    scale = fine.shape[0] / coarse.shape[0]
    score, rotation, centre = _refine(fine, rotation, centre * scale, generators, 1.0, _FINE_TRIALS)
    if len(generators) == 1:
        # Along a single axis every place is as good; the nearest to the volume's centre is taken.
        axis = rotation.T @ _axis(generators[0])
        centre = centre - axis * (axis @ centre)
    return SymmetryFrame(rotation, centre * max(volume.shape) / fine.shape[0], score)


def _search_axes(volume: Tensor, generators: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rotations and centres that are worth a refinement."""
    axis = _axis(generators[0])
    directions = _hemisphere(axis)
    frames = _bring(directions, axis)
    scores, centres = _score_all(volume, frames, generators[:1])
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if len(kept) < _KEPT and all(
            float((directions[index] @ directions[other]).abs()) < math.cos(math.radians(3 * _STEP_DEG))
            for other in kept
        ):
            kept.append(index)
    if len(generators) == 1:
        return [(frames[index], centres[index]) for index in kept]
    angles = torch.arange(0, 360, _STEP_DEG, dtype=torch.float64)
    spins = rotation_vectors_to_matrices(angles[:, None] * axis)
    # Axes that have two different ends, like three-folds of T, are tried both ways round.
    across = torch.linalg.cross(axis, torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64))
    flip = rotation_vectors_to_matrices(180 * across / across.norm())
    spins = torch.cat([spins, flip @ spins])
    candidates = []
    for index in kept:
        turned = spins @ frames[index]
        scores, centres = _score_all(volume, turned, generators)
        best = int(scores.argmax())
        candidates.append((turned[best], centres[best]))
    return candidates


def _axis(turn: Tensor) -> Tensor:
    """Find the unit vector that a rotation leaves alone."""
    axis: Tensor = torch.linalg.svd(turn - torch.eye(3, dtype=torch.float64))[2][-1]
    return axis


def _hemisphere(axis: Tensor) -> Tensor:
    """Directions `(n, 3)` about a step apart, on a golden spiral, in the half of the sphere about an axis."""
    count = math.ceil(2 * math.pi / math.radians(_STEP_DEG) ** 2)
    place = torch.arange(count, dtype=torch.float64)
    z, turn = (place + 0.5) / count, place * math.pi * (3 - math.sqrt(5))
    across = torch.sqrt(1 - z**2)
    directions = torch.stack([across * turn.cos(), across * turn.sin(), z], dim=1)
    return torch.where((directions @ axis)[:, None] < 0, -directions, directions)


def _bring(directions: Tensor, axis: Tensor) -> Tensor:
    """Shortest rotations `(n, 3, 3)` that bring directions to an axis, from which none is more than 90° away."""
    # Half a turn about the middle between both, after half a turn about the direction.
    middle = torch.nn.functional.normalize(directions + axis, dim=1)
    halves = [
        2 * one[:, :, None] * one[:, None] - torch.eye(3, dtype=torch.float64) for one in (middle, directions)
    ]
    return halves[0] @ halves[1]


def _score_all(volume: Tensor, frames: Tensor, generators: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(n,)` of frames `(n, 3, 3)`, and the centres `(n, 3)` that suit them best to about a voxel."""
    scores, centres = [], []
    for some in torch.split(frames, _BATCH):
        centre = _find_centres(volume, some, generators)
        centres.append(centre)
        scores.append(_score(volume, some, centre, generators))
    return torch.cat(scores), torch.cat(centres)


def _find_centres(volume: Tensor, frames: Tensor, generators: Tensor) -> Tensor:
    """Where axes must go through so that the turned volume falls on itself best.

    What is turned by R about c is turned about the origin and shifted by (1 - R) c; correlation finds the shift.
    """
    size = volume.shape[0]
    masked = volume * _ball(size)
    turns = frames.mT.unsqueeze(1) @ generators @ frames.unsqueeze(1)
    turned = torch.fft.rfftn(affine_transform_volume(masked, turns), dim=(-3, -2, -1))
    product = torch.fft.rfftn(masked) * turned.conj()
    correlation = torch.fft.irfftn(product, s=(size,) * 3, dim=(-3, -2, -1))
    reach = math.floor(2 * _LARGEST_SHIFT * size)
    near = torch.arange(-reach, reach + 1)
    window = correlation[..., near[:, None, None], near[:, None], near].flatten(-3)
    places = torch.stack(torch.unravel_index(window.argmax(-1), (len(near),) * 3), dim=-1) - reach
    shifts = places.flip(-1).to(torch.float64)
    # Small singular values are directions along the axes, which the shift says nothing about.
    solve = torch.linalg.pinv((torch.eye(3, dtype=torch.float64) - turns).flatten(1, 2), rtol=1e-3)
    centres: Tensor = (solve @ shifts.flatten(1)[:, :, None]).squeeze(-1)
    far = centres.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return centres * torch.clamp(_LARGEST_SHIFT * size / far, max=1)


def _shrink(volume: Tensor, size: int) -> Tensor:
    """Bring a volume into a cube of at most `size` voxels a side, normalised."""
    side = max(volume.shape)
    if any(n != side for n in volume.shape):
        widths = [
            w for n in reversed(volume.shape) for w in (side // 2 - n // 2, side - n - side // 2 + n // 2)
        ]
        volume = torch.nn.functional.pad(volume, widths, value=mean_of_faces(volume))
    size = min(fast_size(size), side)
    small = rescale_images(volume.float(), (size, size, size))
    return (small - small.mean()) / small.std()


@cache
def _ball(size: int) -> Tensor:
    return soft_sphere_mask((size, size, size), 0.42 * size, 0.05 * size)


def _score(volume: Tensor, rotations: Tensor, centres: Tensor, generators: Tensor) -> Tensor:
    """Mean correlation of a cube with itself turned by the generators about axes through centres.

    `(..., 3, 3)` rotations and `(..., 3)` centres make `(...)` correlations.
    """
    mask = _ball(volume.shape[0])
    rotations, centres = rotations.unsqueeze(-3), centres.unsqueeze(-2)
    turns = rotations.mT @ generators @ rotations
    affine = torch.eye(4, dtype=torch.float64).repeat(*turns.shape[:-2], 1, 1)
    affine[..., :3, :3] = turns
    affine[..., :3, 3] = centres - (turns @ centres.unsqueeze(-1)).squeeze(-1)
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
    return affine_transform_volume(volume, affine, order="cubic", fill=mean_of_faces(volume))
