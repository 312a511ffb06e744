"""Local refinement of picks: orientation on ever finer grids, position between the voxels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.matching.template import Template, turn_templates
from verglas.ops.fft import fourier_shift
from verglas.ops.peaks import refine_peaks
from verglas.ops.rotation import (
    local_rotations,
    matrices_to_rotation_vectors,
    rotation_vectors_to_matrices,
)
from verglas.shapes import Rotations, Values, Volume

_REACH = 2
_MARGIN = 3
"""Voxels that a shift of the window may spoil at its faces."""
_ROUNDS = 3
_GROUP = 32


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
    """
    found = [
        _refine_group(
            volume,
            template,
            places[start : start + _GROUP].double(),
            matrices[start : start + _GROUP].double(),
            filters,
            step_deg,
            floor,
        )
        for start in range(0, len(places), _GROUP)
    ]
    if not found:
        return RefinedPicks(torch.zeros(0, 3), torch.zeros(0, 3, 3, dtype=torch.float64), torch.zeros(0))
    all_places, turned, scores = zip(*found, strict=True)
    return RefinedPicks(torch.cat(all_places), torch.cat(turned), torch.cat(scores))


def _refine_group(
    volume: Tensor,
    template: Template,
    places: Tensor,
    matrices: Tensor,
    filters: Tensor,
    step: float,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Refine a few picks together, so that their templates are turned in one go."""
    places, matrices, scores = places.clone(), matrices.clone(), torch.zeros(len(places))
    for _ in range(_ROUNDS):
        step = step / 2
        turns = local_rotations(1.5 * step, step)
        vectors = matrices_to_rotation_vectors(turns)
        rotations = (turns @ matrices[:, None]).flatten(0, 1)
        batches = list(turn_templates(template, rotations.float(), filters, volume.device))
        turned = torch.cat([values.flatten(1) for values, _ in batches])
        masks = [one.flatten(1).expand(len(values), -1) for values, one in batches]
        weights = torch.cat(masks).reshape(len(places), len(turns), -1)
        turned = turned.reshape(len(places), len(turns), -1)
        if template.mask is None:
            weights = weights[:, :1]
        for i, place in enumerate(places):
            # A shift by part of a voxel looks like a small turn, so windows follow the place that was found.
            window = _cut_windows(volume, place, filters.shape[0])
            maps = _score_turns(window, turned[i], weights[i], floor)
            best = int(maps.flatten(1).amax(1).argmax())
            peak = _find_peak(maps[best])
            top, scores[i] = refine_peaks(maps[best], peak)
            places[i] += top - _REACH
            # Scores of all turns at the best place, for the parabola between them.
            vector = _top_of_turns(maps[:, *peak.tolist()], vectors, best, step)
            matrices[i] = rotation_vectors_to_matrices(vector) @ matrices[i]
    return places.float(), matrices, scores


def _cut_windows(volume: Tensor, place: Tensor, size: int) -> Tensor:
    """`(5, 5, 5, size³)` windows of the volume at shifts about a place; what is outside is zero."""
    margin = _REACH + _MARGIN
    side = size + 2 * margin
    patch = volume.new_zeros(side, side, side)
    nearest = place.round()
    source, target = [], []
    for centre, whole in zip(nearest.int().tolist(), volume.shape, strict=True):
        start = centre - size // 2 - margin
        first, last = max(0, start), min(whole, start + side)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    patch[tuple(target)] = volume[tuple(source)]
    patch = fourier_shift(patch, (nearest - place).to(patch))
    patch = patch[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return patch.unfold(0, size, 1).unfold(1, size, 1).unfold(2, size, 1).flatten(3)


def _score_turns(windows: Tensor, turned: Tensor, weights: Tensor, floor: float) -> Tensor:
    """`(r, 5, 5, 5)` correlation coefficients of turned templates with windows, under their masks or a common one."""
    flat = windows.reshape(-1, windows.shape[-1])
    mass = weights.sum(1)
    variance = (flat.square() @ weights.T) / mass - ((flat @ weights.T) / mass).square()
    scale = torch.where(variance > floor, (variance.clamp_min(floor) * mass).rsqrt(), 0.0)
    return ((flat @ turned.T) * scale).T.reshape(-1, *windows.shape[:3])


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
