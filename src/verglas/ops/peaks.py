"""Maxima of correlation maps, to the pixel and below it.

Positions are indices in the order of the map's axes (yx or zyx); a peak at the centre of an axis of n is at
`n // 2`.
"""

from itertools import product
from typing import Literal

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import max_pool2d, max_pool3d

from verglas.errors import UserError
from verglas.shapes import Values


def find_peaks(
    values: Values, count: int, radius: float, threshold: float = -float("inf")
) -> tuple[Int[Tensor, "peaks d"], Float[Tensor, " peaks"]]:
    """Find the highest local maxima that keep a distance from each other.

    Maxima are taken from the highest down; each one suppresses all that lie nearer than `radius`.

    Parameters
    ----------
    values
        `(y, x)` or `(z, y, x)` map. What is not finite is no peak.
    count
        How many to return at most.
    radius
        Smallest distance between two peaks, pixels.
    threshold
        Lowest value of a peak.

    Returns
    -------
    tuple
        `(peaks, d)` indices and `(peaks,)` values, highest first; of equal values the lower index first.

    Raises
    ------
    UserError
        When the map has other than two or three axes, or `count` or `radius` is negative.
    """
    if values.ndim not in {2, 3}:
        raise UserError(f"`values` must be an image or a volume; got shape {tuple(values.shape)}")
    if count < 0 or not radius >= 0:
        raise UserError(f"`count` and `radius` must be zero or more; got {count} and {radius}")
    clean = torch.where(values.isfinite(), values, -torch.inf)
    pool = max_pool2d if values.ndim == 2 else max_pool3d
    highest = pool(clean[None, None], 3, stride=1, padding=1)[0, 0]
    is_peak = (clean == highest) & (clean >= threshold) & clean.isfinite()
    candidates = is_peak.nonzero()
    heights = clean[is_peak]
    order = torch.sort(heights, descending=True, stable=True).indices
    candidates, heights = candidates[order], heights[order]
    kept = _keep_distant(candidates, count, radius)
    return candidates[kept], heights[kept]


def _keep_distant(candidates: Tensor, count: int, radius: float) -> Tensor:
    """Return the rows to which no earlier kept row is nearer than `radius`."""
    points = candidates.cpu().numpy()
    kept: list[int] = []
    if len(points):
        tree = cKDTree(points)
        free = torch.ones(len(points), dtype=torch.bool).numpy()
        reach = radius * (1 - 1e-9)
        for row, point in enumerate(points):
            if len(kept) == count:
                break
            if free[row]:
                kept.append(row)
                if reach > 0:
                    free[tree.query_ball_point(point, reach)] = False
    return torch.tensor(kept, dtype=torch.long, device=candidates.device)


def find_maximum(
    values: Values, dims: int = 2, max_distance: float | None = None
) -> tuple[Int[Tensor, "... d"], Values]:
    """Find the highest pixel of each map of a batch.

    Parameters
    ----------
    values
        `(..., y, x)` or `(..., z, y, x)`.
    dims
        2 or 3.
    max_distance
        Only pixels up to this far from the centre `n // 2` are looked at: the longest shift allowed.

    Returns
    -------
    tuple
        `(..., dims)` indices and `(...)` values.
    """
    shape = tuple(values.shape[-dims:])
    if max_distance is not None:
        square = torch.zeros((), device=values.device)
        for axis, n in enumerate(shape):
            offset = torch.arange(n, device=values.device) - n // 2
            square = square + offset.reshape([-1 if i == axis else 1 for i in range(dims)]) ** 2
        values = torch.where(square <= max_distance**2, values, -torch.inf)
    heights, flat = values.flatten(-dims).max(-1)
    return torch.stack(torch.unravel_index(flat, shape), dim=-1), heights


def refine_peaks(
    values: Values,
    positions: Int[Tensor, "... d"],
    method: Literal["parabola", "centroid", "fourier"] = "parabola",
) -> tuple[Float[Tensor, "... d"], Values]:
    """Place peaks between the pixels.

    Parameters
    ----------
    values
        `(*batch, y, x)` or `(*batch, z, y, x)` maps.
    positions
        `(*batch, *peaks, d)` indices of maxima, from `find_peaks` or `find_maximum`; d says whether maps are
        images or volumes.
    method
        `parabola` takes the vertex of the quadratic through the 3 x 3 (x 3) neighbours, mixed terms included;
        `centroid` the centre of mass of the 5 x 5 (x 5) neighbours above their minimum; `fourier` climbs the
        map's own trigonometric interpolation, which is what an upsampled DFT samples (Guizar-Sicairos et al.
        2008), to its top. A step of more than a pixel is not believed: the peak stays where it is.

    Returns
    -------
    tuple
        `(*batch, *peaks, d)` positions and `(*batch, *peaks)` heights there; `centroid` gives the height of
        the pixel.

    Raises
    ------
    UserError
        When shapes do not fit or the method has another name.
    """
    d = positions.shape[-1]
    batch = tuple(values.shape[:-d])
    if d not in {2, 3} or values.ndim < d or tuple(positions.shape[: len(batch)]) != batch:
        raise UserError(
            f"`positions` of shape {tuple(positions.shape)} do not fit maps of shape {tuple(values.shape)}"
        )
    maps = values.reshape(-1, *values.shape[-d:])
    places = positions.reshape(len(maps), -1, d)
    if method == "parabola":
        offset, heights = _vertex(_neighbours(maps, places, 1))
    elif method == "centroid":
        offset, heights = _centroid(_neighbours(maps, places, 2))
    elif method == "fourier":
        offset, heights = _climb(maps, places)
    else:
        raise UserError(f"`method` must be parabola, centroid or fourier; got {method!r}")
    refined = places.to(values.dtype) + offset
    return refined.reshape(positions.shape), heights.reshape(positions.shape[:-1])


def _neighbours(maps: Tensor, places: Tensor, reach: int) -> Tensor:
    """Cut `(maps, peaks, 2 reach + 1, ...)` values around the places; the border is repeated outside."""
    steps = torch.arange(-reach, reach + 1, device=maps.device)
    d = places.shape[-1]
    index = [torch.arange(len(maps), device=maps.device).reshape(-1, *[1] * (d + 1))]
    for axis in range(d):
        along = (places[..., axis, None] + steps).clamp(0, maps.shape[axis + 1] - 1)
        shape = [*along.shape[:2], *[-1 if i == axis else 1 for i in range(d)]]
        index.append(along.reshape(shape))
    return maps[tuple(index)]


def _vertex(cubes: Tensor) -> tuple[Tensor, Tensor]:
    d = cubes.ndim - 2

    def at(*steps: tuple[int, int]) -> Tensor:
        place = [1] * d
        for axis, step in steps:
            place[axis] += step
        return _at(cubes, place)

    middle = at()
    gradient = torch.stack([(at((i, 1)) - at((i, -1))) / 2 for i in range(d)], dim=-1)
    rows = []
    for i, j in product(range(d), range(d)):
        if i == j:
            rows.append(at((i, 1)) + at((i, -1)) - 2 * middle)
        else:
            mixed = [a * b * at((i, a), (j, b)) for a, b in product((-1, 1), (-1, 1))]
            rows.append((mixed[0] + mixed[1] + mixed[2] + mixed[3]) / 4)
    hessian = torch.stack(rows, dim=-1).reshape(*middle.shape, d, d)
    offset = _newton_step(gradient, hessian)
    return offset, middle + (gradient * offset).sum(-1) / 2


def _newton_step(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Step to the top of a quadratic; none where it has no top or that is over a pixel away on an axis."""
    solved, info = torch.linalg.cholesky_ex(-hessian)
    has_top = (info == 0)[..., None]
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    step = torch.cholesky_solve(gradient[..., None], torch.where(has_top[..., None], solved, eye))[..., 0]
    return torch.where(has_top & (step.abs() <= 1).all(-1, keepdim=True), step, 0.0)


def _centroid(cubes: Tensor) -> tuple[Tensor, Tensor]:
    d = cubes.ndim - 2
    axes = tuple(range(2, d + 2))
    weights = cubes - cubes.amin(axes, keepdim=True)
    total = weights.sum(axes).clamp(min=torch.finfo(cubes.dtype).tiny)
    steps = torch.arange(-2, 3, dtype=cubes.dtype, device=cubes.device)
    parts = []
    for axis in axes:
        others = tuple(other for other in axes if other != axis)
        parts.append((weights.sum(others) * steps).sum(-1) / total)
    return torch.stack(parts, dim=-1), _at(cubes, [2] * d)


def _climb(maps: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    start, _ = _vertex(_neighbours(maps, places, 1))
    d = places.shape[-1]
    spectrum: Tensor = torch.fft.fftn(maps, dim=tuple(range(1, d + 1)), norm="forward")
    offset = start
    for _ in range(6):
        _, gradient, hessian = _interpolate(spectrum, places.to(maps.dtype) + offset)
        offset = offset + _newton_step(gradient, hessian)
    offset = torch.where(((offset - start).abs() <= 1).all(-1, keepdim=True), offset, start)
    return offset, _interpolate(spectrum, places.to(maps.dtype) + offset)[0]


def _interpolate(spectrum: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Hessian of maps between their pixels, at `(maps, peaks, d)` points."""
    d = points.shape[-1]
    table = spectrum[:, None]
    for axis in range(d):
        n = spectrum.shape[axis + 1]
        k: Tensor = torch.fft.fftfreq(n, 1 / (2 * torch.pi), dtype=points.dtype, device=points.device)
        wave = torch.exp(1j * points[..., axis, None] * k)
        derivatives = torch.stack([wave, 1j * k * wave, -(k**2) * wave], dim=-2)
        table = torch.einsum("mp...k,mpok->mp...o", table.movedim(2 + axis, -1), derivatives)
        table = table.movedim(-1, 2 + axis)

    def at(*axes: int) -> Tensor:
        return _at(table, [axes.count(axis) for axis in range(d)]).real

    gradient = torch.stack([at(i) for i in range(d)], dim=-1)
    hessian = torch.stack([at(i, j) for i, j in product(range(d), range(d))], dim=-1)
    return at(), gradient, hessian.reshape(*gradient.shape, d)


def _at(cubes: Tensor, place: list[int]) -> Tensor:
    """Read one place of each of the `(maps, peaks, ...)` cubes."""
    for index in place:
        cubes = cubes.select(2, index)
    return cubes
