"""Membranes of single particles: moved by the pose, followed within bounds, scaled; what is no membrane left out.

The model of a particle is, for each membrane of its class, scale * profile(distance - move(position)), where distance
and position are those of the class average's curve at the particle's pose. The move is a parabola of the position:
place, angle and curvature. Scales follow by least squares; moves are held by how much they scatter in the set.

Blocks of pixels along and across the curve that do not follow the model, such as a protein, get no weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.curves import Arc
from verglas.algo.membranes.profiles import Profile
from verglas.algo.membranes.shapes import Shape

FloatArray = npt.NDArray[np.float64]

BOUND = 5.0
"""Farthest that a membrane may lie from where the pose puts it, pixels."""
_ROUNDS = 3
_ABSOLUTE_ROUNDS = 20
_ALONG, _ACROSS = 8.0, 6.0
_FULL, _NONE = 2.5, 4.5
"""Standard deviations of a block from the model up to which it counts fully, and beyond which not at all."""
_MARGIN = 16


@dataclass(frozen=True, eq=False)
class CurveMaps:
    """Distance from, and position along, each membrane of a class, on a canvas about the box of its average.

    Parameters
    ----------
    distance, position
        `(m, c, c)` pixels; positions from the middle, as a share of half the box.
    normals_yx
        `(m, 2)` of each curve at its middle.
    box
        Side of the particles' images.
    half_width
        `(m,)` to which distance the membrane reaches.
    """

    distance: FloatArray
    position: FloatArray
    normals_yx: FloatArray
    box: int
    half_width: FloatArray


def scale_shape(
    arc: Arc, control_yx: FloatArray | None, *, size: int, box: int, factor: float
) -> tuple[Arc, FloatArray | None]:
    """Return a curve of an average in the pixels of its particles.

    Parameters
    ----------
    arc, control_yx
        The curve.
    size, box
        Sides of the average and of the particles' images.
    factor
        Pixel size of the average over that of the particles.
    """

    def move(points: FloatArray) -> FloatArray:
        return (points - size // 2) * factor + box // 2

    centre = move(np.array(arc.centre_yx))
    scaled = Arc((float(centre[0]), float(centre[1])), arc.theta_deg, arc.kappa / factor)
    return scaled, None if control_yx is None else move(control_yx)


def map_curves(
    shapes: Sequence[tuple[Arc, FloatArray | None]], half_width: Sequence[float], box: int
) -> CurveMaps:
    """Map the curves of a class once, from where each particle reads them at its pose."""
    half = int(np.ceil(0.7072 * box)) + _MARGIN
    axis = np.arange(-half, half + 1) + box // 2
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2).astype(float)
    distances, positions, normals = [], [], []
    for arc, control in shapes:
        shape = Shape(arc, control, Profile(np.zeros(4)), 0.0)
        distance, position = shape.locate(points, 2.0 * box)
        distances.append(distance.reshape(len(axis), -1))
        positions.append((position / (box / 2)).reshape(len(axis), -1))
        normals.append(arc.normal)
    return CurveMaps(
        np.array(distances), np.array(positions), np.array(normals), box, np.array(half_width, dtype=float)
    )


@dataclass(frozen=True, eq=False)
class Region:
    """The pixels of a particle near its membranes.

    Parameters
    ----------
    pixels
        `(k,)` flat indices.
    distance, position
        `(m, k)` from each membrane.
    blocks
        `(k,)` number of the block along and across the nearest membrane.
    grid
        Shape of the blocks: membranes, along, across.
    """

    pixels: npt.NDArray[np.int64]
    distance: FloatArray
    position: FloatArray
    blocks: npt.NDArray[np.int64]
    grid: tuple[int, int, int]


def find_region(maps: CurveMaps, psi_deg: float, origin_yx: tuple[float, float]) -> Region:
    """Find the pixels near the membranes of a particle.

    Parameters
    ----------
    maps
        Of its class.
    psi_deg
        RELION's in-plane angle.
    origin_yx
        By how many pixels the image must be moved to centre the particle.
    """
    axis = np.arange(maps.box) - maps.box // 2
    cosine, sine = np.cos(np.deg2rad(psi_deg)), np.sin(np.deg2rad(psi_deg))
    y, x = axis[:, None] + origin_yx[0], axis[None, :] + origin_yx[1]
    side = maps.distance.shape[-1]
    rows = (sine * x + cosine * y + side // 2).ravel()
    columns = (cosine * x - sine * y + side // 2).ravel()
    np.clip(rows, 0, side - 1.001, out=rows)
    np.clip(columns, 0, side - 1.001, out=columns)
    near = (rows + 0.5).astype(np.int64) * side + (columns + 0.5).astype(np.int64)
    flat = maps.distance.reshape(len(maps.distance), -1)
    wanted = np.zeros(len(near), dtype=bool)
    for one, width in zip(flat, maps.half_width, strict=True):
        wanted |= np.abs(one[near]) < width + BOUND + 1
    pixels = np.flatnonzero(wanted)
    rows, columns = rows[pixels], columns[pixels]
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    v, u = rows - top, columns - left
    corner = top * side + left
    shares = ((1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u)
    places = (corner, corner + 1, corner + side, corner + side + 1)

    def read(map_: FloatArray) -> FloatArray:
        return np.asarray(sum(share * map_[place] for share, place in zip(shares, places, strict=True)))

    distance = np.array([read(one) for one in flat])
    position = np.array([read(one.ravel()) for one in maps.position])
    return Region(pixels, distance, position, *_make_blocks(distance, position, maps))


def _make_blocks(
    distance: FloatArray, position: FloatArray, maps: CurveMaps
) -> tuple[npt.NDArray[np.int64], tuple[int, int, int]]:
    nearest = np.argmin(np.abs(distance), axis=0)
    rows = np.arange(distance.shape[1])
    reach = float(maps.half_width.max()) + BOUND + 2
    along = ((position[nearest, rows] + 2) * maps.box / 2 / _ALONG).astype(np.int64)
    across = ((distance[nearest, rows] + reach) / _ACROSS).astype(np.int64)
    grid = (len(distance), int(4 * maps.box / 2 / _ALONG) + 1, int(2 * reach / _ACROSS) + 1)
    along = np.clip(along, 0, grid[1] - 1)
    across = np.clip(across, 0, grid[2] - 1)
    return (nearest * grid[1] + along) * grid[2] + across, grid


@dataclass(frozen=True, eq=False)
class Fit:
    """What was found in a particle.

    Parameters
    ----------
    scales, errors
        `(m,)` of each membrane and their standard errors.
    moves, move_errors
        `(m, 3)` pixels: place, slope and bend of the move along the normal.
    weight
        `(k,)` of the region's pixels.
    noise
        Standard deviation of the grey beside the membranes.
    membrane
        `(k,)` grey of all membranes.
    background
        `(k,)` what was fitted beside them.
    """

    scales: FloatArray
    errors: FloatArray
    moves: FloatArray
    move_errors: FloatArray
    weight: FloatArray
    noise: float
    membrane: FloatArray
    background: FloatArray


def move_basis(position: FloatArray) -> FloatArray:
    """Return place, slope and bend `(3, k)` at positions from -1 to 1 in the box."""
    return np.stack([np.ones(len(position)), position, position**2 - 1 / 3])


def fit_membranes(
    values: FloatArray,
    region: Region,
    profiles: Sequence[Profile],
    spread: FloatArray,
    half_width: FloatArray,
    *,
    either_sign: bool = False,
    absolute: bool = False,
) -> Fit:
    """Fit the membranes of a particle.

    Parameters
    ----------
    values
        `(k,)` grey of the region's pixels.
    region
        From `find_region`.
    profiles
        Of each membrane, as this particle sees them.
    spread
        `(m, 3)` standard deviations of the moves in the set, pixels.
    half_width
        `(m,)` to which distance each reaches.
    either_sign
        Whether scales may be negative where the search begins.
    absolute
        Whether the scales make the sum of absolute differences smallest, not that of squares.
    """
    weight = np.ones(len(values))
    moves = np.zeros((len(profiles), 3))
    scales = np.ones(len(profiles))
    for number, profile in enumerate(profiles):
        moves[number, 0], scales[number] = _search_place(
            values, region, number, profile, spread[number, 0], either_sign
        )
    noise = float(values.std())
    inverse = np.eye(1)
    membrane = background = np.zeros(len(values))
    for turn in range(_ROUNDS):
        columns, holds, pulls = _build_columns(region, profiles, moves, scales, spread, half_width, noise)
        matrix = (columns * weight) @ columns.T + np.diag(holds)
        right = (columns * weight) @ values + pulls
        inverse = np.linalg.inv(matrix + 1e-9 * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))
        solved = inverse @ right
        scales, changes = _read_solution(solved, scales, len(profiles))
        moves = np.clip(moves + changes, -BOUND, BOUND)
        membrane = evaluate_membranes(region, profiles, moves, scales)
        background = solved[4 * len(profiles) :] @ columns[4 * len(profiles) :]
        rest = values - membrane - background
        weight, noise = weigh_blocks(rest, region)
        if turn == _ROUNDS - 1:
            beside = columns[4 * len(profiles) :]
            scales = _finish_scales(values, region, profiles, moves, weight, beside, absolute=absolute)
            membrane = evaluate_membranes(region, profiles, moves, scales)
    errors = noise * np.sqrt(np.maximum(np.diag(inverse), 0))
    count = len(profiles)
    safe = np.maximum(np.abs(scales), 1e-6)[:, None]
    return Fit(
        scales,
        errors[:count],
        moves,
        errors[count : 4 * count].reshape(count, 3) / safe,
        weight,
        noise,
        membrane,
        background,
    )


def evaluate_membranes(
    region: Region, profiles: Sequence[Profile], moves: FloatArray, scales: FloatArray
) -> FloatArray:
    """Return the grey `(k,)` of the membranes at a region's pixels."""
    total = np.zeros(len(region.pixels))
    for number, profile in enumerate(profiles):
        shift = moves[number] @ move_basis(region.position[number])
        total += scales[number] * profile.evaluate(region.distance[number] - shift)
    return total


def _search_place(
    values: FloatArray, region: Region, number: int, profile: Profile, spread: float, either_sign: bool
) -> tuple[float, float]:
    """Find by how much the membrane lies off, and its scale, from medians along the curve."""
    distance = region.distance[number]
    reach = int(np.ceil(profile.half_width + BOUND))
    bins = np.rint(distance).astype(np.int64) + reach
    inside = (bins >= 0) & (bins <= 2 * reach)
    parts = 6
    along = np.clip(((region.position[number] + 1) / 2 * parts).astype(np.int64), 0, parts - 1)
    index = along[inside] * (2 * reach + 1) + bins[inside]
    size = parts * (2 * reach + 1)
    counts = np.bincount(index, minlength=size).reshape(parts, -1)
    sums = np.bincount(index, values[inside], minlength=size).reshape(parts, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(counts > 2, sums / counts, np.nan)
    whole = np.isfinite(means).sum(axis=0) > 1
    line = np.zeros(means.shape[1])
    line[whole] = np.nanmedian(means[:, whole], axis=0)
    total = np.maximum(counts.sum(axis=0), 1)
    noise = float(values.std()) ** 2 * 1.5 / total
    places = np.arange(-reach, reach + 1).astype(float)
    best, found = -np.inf, (0.0, 1.0)
    for shift in np.arange(-BOUND, BOUND + 0.25, 0.5):
        model = profile.evaluate(places - shift)
        inside_now = whole & (np.abs(places - shift) <= profile.half_width)
        if inside_now.sum() < 8:
            continue
        share = inside_now / noise
        centred = model - (share @ model) / share.sum()
        energy = share @ centred**2
        if energy <= 0:
            continue
        scale = float((share @ (centred * line)) / energy)
        gain = scale**2 * energy / 2 if either_sign or scale > 0 else 0.0
        gain -= shift**2 / (2 * max(spread, 1e-3) ** 2)
        if gain > best:
            best, found = gain, (float(shift), scale)
    return found


def _build_columns(
    region: Region,
    profiles: Sequence[Profile],
    moves: FloatArray,
    scales: FloatArray,
    spread: FloatArray,
    half_width: FloatArray,
    noise: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return columns of the least squares problem and what holds the moves to their prior.

    Scales come first, then three moves of each membrane, then the background: a constant and, across each membrane,
    a ramp.
    """
    count = len(profiles)
    size = 5 * count + 1
    columns = np.empty((size, len(region.pixels)))
    holds, pulls = np.zeros(size), np.zeros(size)
    for number, profile in enumerate(profiles):
        basis = move_basis(region.position[number])
        shift = moves[number] @ basis
        value, slope = profile.evaluate_both(region.distance[number] - shift)
        columns[number] = value
        columns[count + 3 * number : count + 3 * number + 3] = -slope * basis
        ramp = np.clip(region.distance[number] / half_width[number], -1, 1)
        columns[4 * count + number] = ramp
        # Unknowns are scale * change of the move; its prior is on the move.
        scale = np.sign(scales[number]) * max(abs(scales[number]), 0.2)
        for k in range(3):
            hold = noise**2 / (scale * max(spread[number, k], 1e-3)) ** 2
            holds[count + 3 * number + k] = hold
            pulls[count + 3 * number + k] = -hold * scale * moves[number, k]
    columns[-1] = 1.0
    return columns, holds, pulls


def _read_solution(solved: FloatArray, scales: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    found = solved[:count]
    safe = np.where(np.abs(found) > 0.2 * np.abs(scales), found, 0.2 * scales)
    safe = np.where(np.abs(safe) < 1e-9, 1e-9, safe)
    changes = solved[count : 4 * count].reshape(count, 3) / safe[:, None]
    return found, np.clip(changes, -2, 2)


def _finish_scales(
    values: FloatArray,
    region: Region,
    profiles: Sequence[Profile],
    moves: FloatArray,
    weight: FloatArray,
    background: FloatArray,
    *,
    absolute: bool,
) -> FloatArray:
    """Return the scales once the moves and the weights stand."""
    count = len(profiles)
    models = [
        _evaluate_one(region, number, profile, moves[number]) for number, profile in enumerate(profiles)
    ]
    columns = np.concatenate([np.array(models), background])
    share, solved = weight, np.zeros(len(columns))
    for _ in range(_ABSOLUTE_ROUNDS if absolute else 1):
        matrix = (columns * share) @ columns.T
        matrix += 1e-9 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        solved = np.linalg.solve(matrix, (columns * share) @ values)
        # Squares weighted by the inverse of the differences are their absolute values (Weiszfeld).
        rest = np.abs(values - solved @ columns)
        share = weight / np.maximum(rest, 0.02 * rest.mean() + 1e-12)
    return np.asarray(solved[:count])


def _evaluate_one(region: Region, number: int, profile: Profile, moves: FloatArray) -> FloatArray:
    return profile.evaluate(region.distance[number] - moves @ move_basis(region.position[number]))


def weigh_blocks(rest: FloatArray, region: Region) -> tuple[FloatArray, float]:
    """Return the weight of each pixel by how well its block and those around it follow the model, and the noise."""
    size = int(np.prod(region.grid))
    counts = np.bincount(region.blocks, minlength=size).reshape(region.grid).astype(float)
    sums = np.bincount(region.blocks, rest, minlength=size).reshape(region.grid)
    used = counts > _ALONG * _ACROSS / 4
    z = np.where(used, sums / np.sqrt(np.maximum(counts, 1)), 0.0)
    z = _standardise(z, used)
    padded = np.pad(np.where(used, z, 0.0), ((0, 0), (1, 1), (1, 1)))
    around = np.pad(used.astype(float), ((0, 0), (1, 1), (1, 1)))
    rows, columns = z.shape[1:]
    total = sum(padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    share = sum(around[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    smooth = _standardise(total / np.sqrt(np.maximum(share, 1)), used)
    worst = np.maximum(np.abs(z), np.abs(smooth))
    over = np.clip((worst - _FULL) / (_NONE - _FULL), 0, 1)
    weight = ((1 - over**2) ** 2).ravel()[region.blocks]
    spread = np.sort(np.abs(rest[weight > 0.5])) if (weight > 0.5).any() else np.abs(rest)
    return weight, float(1.4826 * np.median(spread))


def _standardise(z: FloatArray, used: npt.NDArray[np.bool_]) -> FloatArray:
    if used.sum() < 8:
        return np.zeros_like(z)
    middle = np.median(z[used])
    spread = 1.4826 * np.median(np.abs(z[used] - middle))
    return np.asarray((z - middle) / max(float(spread), 1e-12))
