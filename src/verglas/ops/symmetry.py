"""Point groups, in RELION's orientations.

Convention
----------
C and D have their main axis along z, D a two-fold along x. T has three-folds along z, O four-folds along x, y
and z. I (the same as I2) and I1 have two-folds along x, y and z; with the front view along z, the five-folds
nearest to it lie in the xz plane for I and in the yz plane for I1. I3 and I4 have a five-fold along z and a
two-fold in the xz plane. These are the groups that `relion_refine --sym I --print_symmetry_ops` prints.
"""

import math
import re

import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.interpolation import rotate_volume
from verglas.shapes import Rotations, Volume

_GOLDEN = (1 + math.sqrt(5)) / 2
_AXES: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0.0, 0.0, 1.0)), (2, (0.0, math.sqrt(2), 1.0))),
    "O": ((4, (0.0, 0.0, 1.0)), (3, (1.0, 1.0, 1.0))),
    "I1": ((2, (0.0, 0.0, 1.0)), (5, (_GOLDEN, 0.0, 1.0))),
    "I2": ((2, (0.0, 0.0, 1.0)), (5, (1.0, 0.0, _GOLDEN))),
    "I3": ((5, (0.0, 0.0, 1.0)), (2, (1.0, 0.0, -_GOLDEN))),
    "I4": ((5, (0.0, 0.0, 1.0)), (2, (1.0, 0.0, _GOLDEN))),
}
"""Two axes of each group, as order and direction xyz, whose rotations make the others."""

_ORDERS = {"T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


def symmetry_matrices(group: str) -> Rotations:
    """Rotations of a point group.

    Parameters
    ----------
    group
        C1, C2, ..., D1, D2, ..., T, O, I (that is I2), I1, I2, I3 or I4; upper or lower case.

    Returns
    -------
    Tensor
        `(k, 3, 3)` float64, the identity first.

    Raises
    ------
    UserError
        When the name is none of these.
    """
    name = _normalise(group)
    if name in _AXES:
        return _close_group(list(generating_matrices(name)), _ORDERS[name])
    order = int(name[1:])
    matrices = torch.stack([_turn(order, (0.0, 0.0, 1.0), times) for times in range(order)])
    if name[0] == "D":
        matrices = torch.cat([matrices, matrices @ _turn(2, (1.0, 0.0, 0.0))])
    return matrices


def split_group(group: Rotations) -> tuple[Rotations, Rotations]:
    """Part a group into products C P of few rotations C with those P that only permute and flip the axes.

    The latter take a grid onto itself, so that sums on it can be permuted instead of made again.

    Parameters
    ----------
    group
        `(k, 3, 3)` all elements.

    Returns
    -------
    tuple
        `(c, 3, 3)` and `(p, 3, 3)` with c p = k; the identity is first in both when it is first in the group.
    """

    def permutes(matrices: Tensor) -> Tensor:
        return (matrices - matrices.round()).abs().amax((-2, -1)) < 1e-6

    others: list[Tensor] = []
    for element in group:
        if not any(bool(permutes(other.mT @ element)) for other in others):
            others.append(element)
    return torch.stack(others), group[permutes(group)].round()


def generating_matrices(group: str) -> Rotations:
    """One or two rotations whose products are all of a point group; `(k, 3, 3)` float64, none for C1.

    Raises
    ------
    UserError
        As `symmetry_matrices`.
    """
    name = _normalise(group)
    if name in _AXES:
        return torch.stack([_turn(order, axis) for order, axis in _AXES[name]])
    turns = [_turn(int(name[1:]), (0.0, 0.0, 1.0))] if int(name[1:]) > 1 else []
    turns += [_turn(2, (1.0, 0.0, 0.0))] if name[0] == "D" else []
    return torch.stack(turns) if turns else torch.empty(0, 3, 3, dtype=torch.float64)


def _normalise(group: str) -> str:
    name = group.strip().upper()
    name = "I2" if name == "I" else name
    if name not in _AXES and not re.fullmatch(r"[CD][1-9]\d{0,2}", name):
        raise UserError(f"`group` must be C1, C2 ..., D1, D2 ..., T, O, I or I1 to I4; got {group!r}")
    return name


def _turn(order: int, axis: tuple[float, float, float], times: int = 1) -> Tensor:
    """Rotate by `times` / `order` of a turn about `axis` (Rodrigues' formula)."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    unit = torch.tensor([x, y, z], dtype=torch.float64)
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    angle = 2 * math.pi * times / order
    parallel = torch.outer(unit, unit)
    return (
        math.cos(angle) * (torch.eye(3, dtype=torch.float64) - parallel) + math.sin(angle) * cross + parallel
    )


def _close_group(generators: list[Tensor], order: int) -> Tensor:
    """Multiply until nothing new appears."""
    elements = [torch.eye(3, dtype=torch.float64)]
    for element in elements:
        for generator in generators:
            product = generator @ element
            if all((product - known).abs().max() > 1e-6 for known in elements):
                elements.append(product)
        if len(elements) == order:
            break
    return torch.stack(elements)


def symmetrise_volume(volume: Volume, group: str, order: str = "linear") -> Volume:
    """Average a volume over the rotations of a point group about its centre.

    Parameters
    ----------
    volume
        `(..., z, y, x)`.
    group
        See `symmetry_matrices`.
    order
        "linear" or "cubic" interpolation.

    Returns
    -------
    Tensor
        Like `volume`; voxels whose images lie outside are averaged with zeros.
    """
    matrices = symmetry_matrices(group)
    total = volume.clone()
    for matrix in matrices[1:]:
        total += rotate_volume(volume, matrix, order=order)
    return total / len(matrices)
