"""Local refinement of picks: orientation on ever finer grids, position between the voxels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.matching.template import Template, turn_templates
from verglas.ops.peaks import refine_peaks
from verglas.ops.rotation import (
    local_rotations,
    matrices_to_rotation_vectors,
    rotation_vectors_to_matrices,
)
from verglas.shapes import Rotations, Values, Volume

_REACH = 2
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class RefinedPicks:
    """Picks after refinement.

    Parameters
    ----------
    places
        `(n, 3)` zyx in voxels of the volume.
    matrices
        `(n, 3, 3)` template to specimen, float64.
    scores
        `(n,)` correlation coefficient at the last grid's best orientation.
    """

    places: Float[Tensor, "n 3"]
    matrices: Rotations
    scores: Values


def refine_picks(
    volume: Volume,
    template: Template,
    places: Tensor,
    matrices: Rotations,
    filters: Values,
    *,
    step_deg: float,
    floor: float,
    rounds: int = _ROUNDS,
) -> RefinedPicks:
    """Climb from each pick to the nearest best orientation and position.

    Each round tries turns of half the last step about the best orientation so far, up to two voxels around the
    best place, and ends between the tries at the top of a parabola.

    Parameters
    ----------
    volume
        `(z, y, x)` filtered tomogram.
    template
        What the picks are.
    places
        `(n, 3)` zyx voxels, integers.
    matrices
        `(n, 3, 3)` their orientations.
    filters
        `(b, b, b // 2 + 1)` weights of the template's box.
    step_deg
        Of the search whose picks these are.
    floor
        Variance below which a place is empty.
    rounds
        How often the step is halved.
    """
    size = filters.shape[0]
    found = [
        _refine_pick(volume, template, place, matrix, filters, size, step_deg, floor, rounds)
        for place, matrix in zip(places.tolist(), matrices.double(), strict=True)
    ]
    if not found:
        return RefinedPicks(torch.zeros(0, 3), torch.zeros(0, 3, 3, dtype=torch.float64), torch.zeros(0))
    all_places, turned, scores = zip(*found, strict=True)
    return RefinedPicks(torch.stack(all_places), torch.stack(turned), torch.stack(scores))


def _refine_pick(
    volume: Tensor,
    template: Template,
    place: list[int],
    matrix: Tensor,
    filters: Tensor,
    size: int,
    step: float,
    floor: float,
    rounds: int,
) -> tuple[Tensor, Tensor, Tensor]:
    windows = _cut_windows(volume, place, size)
    offset, score = torch.zeros(3), torch.zeros(())
    for _ in range(rounds):
        step = step / 2
        turns = local_rotations(1.5 * step, step)
        maps = _score_turns(windows, template, turns @ matrix, filters, floor)
        best = int(maps.flatten(1).amax(1).argmax())
        peak = _find_peak(maps[best])
        offset, height = refine_peaks(maps[best], peak)
        # Scores of all turns at the best place, for the parabola between them.
        vector = _top_of_turns(maps[:, *peak.tolist()], matrices_to_rotation_vectors(turns), best, step)
        matrix = rotation_vectors_to_matrices(vector) @ matrix
        score, offset = height, offset - _REACH
    return torch.tensor(place, dtype=torch.float32) + offset, matrix, score


def _cut_windows(volume: Tensor, place: list[int], size: int) -> Tensor:
    """`(5, 5, 5, size³)` windows of the volume at shifts about a place; what is outside is zero."""
    side = size + 2 * _REACH
    patch = volume.new_zeros(side, side, side)
    source, target = [], []
    for centre, whole in zip(place, volume.shape, strict=True):
        start = centre - size // 2 - _REACH
        first, last = max(0, start), min(whole, start + side)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    patch[tuple(target)] = volume[tuple(source)]
    return patch.unfold(0, size, 1).unfold(1, size, 1).unfold(2, size, 1).flatten(3)


def _score_turns(
    windows: Tensor, template: Template, rotations: Tensor, filters: Tensor, floor: float
) -> Tensor:
    """`(r, 5, 5, 5)` correlation coefficients of turned templates with the windows."""
    shape = windows.shape[:3]
    flat = windows.reshape(-1, windows.shape[-1])
    maps = []
    for turned, masks in turn_templates(template, rotations.float(), filters, windows.device):
        weight = masks.flatten(1)
        mass = weight.sum(1)
        variance = (flat.square() @ weight.T) / mass - ((flat @ weight.T) / mass).square()
        scale = torch.where(variance > floor, (variance.clamp_min(floor) * mass).rsqrt(), 0.0)
        maps.append(((flat @ turned.flatten(1).T) * scale).T.reshape(-1, *shape))
    return torch.cat(maps)


def _find_peak(map_: Tensor) -> Tensor:
    return torch.stack(torch.unravel_index(map_.argmax(), map_.shape))


def _top_of_turns(scores: Tensor, vectors: Tensor, best: int, step: float) -> Tensor:
    """Find the rotation vector, degrees, at the top of a parabola through the scores of turns, or the best turn."""
    centre: Tensor = vectors[best]
    x = vectors / step
    design = torch.stack(
        [
            torch.ones(len(x), dtype=x.dtype),
            *x.T,
            *(x.T**2),
            x[:, 0] * x[:, 1],
            x[:, 0] * x[:, 2],
            x[:, 1] * x[:, 2],
        ],
        dim=1,
    )
    solution = torch.linalg.lstsq(design, scores.double()[:, None]).solution[:, 0]
    gradient = solution[1:4]
    hessian = torch.diag(2 * solution[4:7])
    for (i, j), value in zip(((0, 1), (0, 2), (1, 2)), solution[7:], strict=True):
        hessian[i, j] = hessian[j, i] = value
    if bool((torch.linalg.eigvalsh(hessian) < 0).all()):
        top: Tensor = -torch.linalg.solve(hessian, gradient) * step
        if float(top.abs().max()) <= 1.5 * step:
            return top
    return centre
