"""Membranes of single particles: moved by the pose, followed within bounds, scaled; what is no membrane left out.

The model of a particle is, for each membrane of its class, scale * profile(distance - move(position)), where distance
and position are those of the class average's curve at the particle's pose. The move is a parabola of the position:
place, angle and curvature. Scales follow by least squares; moves are held by how much they scatter in the set.

Blocks of pixels along and across the curve that do not follow the model, such as a protein, get no weight, nor do
those where the class as a whole does not. Where noise has a colour, the equations weigh frequencies by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.blocks import ACROSS, ALONG, Blocks, weigh_blocks
from verglas.algo.membranes.curves import Arc
from verglas.algo.membranes.profiles import Profile
from verglas.algo.membranes.shapes import Shape

FloatArray = npt.NDArray[np.float64]

BOUND = 5.0
"""Farthest that a membrane may lie from where the pose puts it, pixels."""
_ROUNDS = 3
_ABSOLUTE_ROUNDS = 20
_PARTS = 6
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
        Along and across the nearest membrane.
    """

    pixels: npt.NDArray[np.int64]
    distance: FloatArray
    position: FloatArray
    blocks: Blocks


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
    return Region(pixels, distance, position, _make_blocks(distance, position, maps))


def _make_blocks(distance: FloatArray, position: FloatArray, maps: CurveMaps) -> Blocks:
    nearest = np.argmin(np.abs(distance), axis=0)
    rows = np.arange(distance.shape[1])
    reach = float(maps.half_width.max()) + BOUND + 2
    along = ((position[nearest, rows] + 2) * maps.box / 2 / ALONG).astype(np.int64)
    across = ((distance[nearest, rows] + reach) / ACROSS).astype(np.int64)
    grid = (len(distance), int(4 * maps.box / 2 / ALONG) + 1, int(2 * reach / ACROSS) + 1)
    along = np.clip(along, 0, grid[1] - 1)
    across = np.clip(across, 0, grid[2] - 1)
    return Blocks((nearest * grid[1] + along) * grid[2] + across, grid)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the membranes of a particle before they are fitted.

    Parameters
    ----------
    profiles
        Of each membrane, as this particle sees them.
    whitened
        The same over the power of the noise, or the same where it is white.
    spread
        `(m, 3)` standard deviations of the moves in the set, pixels.
    half_width
        `(m,)` to which distance each reaches.
    crowded
        Whether the class has something else there, in the shape of its blocks; nothing is fitted where it has.
    """

    profiles: Sequence[Profile]
    whitened: Sequence[Profile]
    spread: FloatArray
    half_width: FloatArray
    crowded: npt.NDArray[np.bool_] | None = None


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
    known: Known,
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
    known
        Profiles, and what holds them.
    either_sign
        Whether scales may be negative where the search begins.
    absolute
        Whether the scales make the sum of absolute differences smallest, not that of squares.
    """
    count = len(known.profiles)
    free = np.ones(len(values))
    if known.crowded is not None:
        free -= known.crowded.ravel()[region.blocks.index]
    weight = free
    moves, scales = _search_places(values, region, known, either_sign=either_sign)
    noise = float(values.std())
    bases = [move_basis(position) for position in region.position]
    beside = _draw_beside(region, known)
    looks = [_look_across(known, number, region, bases, moves) for number in range(count)]
    for _ in range(_ROUNDS):
        columns, tests = _build_columns(looks, bases, beside)
        holds, pulls = _hold_moves(moves, scales, known.spread, noise, len(columns))
        solved, inverse = _solve(columns, tests * weight, values, holds, pulls)
        scales, changes = _read_solution(solved, scales, count)
        moves = np.clip(moves + changes, -BOUND, BOUND)
        looks = [_look_across(known, number, region, bases, moves) for number in range(count)]
        background = solved[4 * count :] @ beside
        rest = values - background - scales @ np.array([look.value for look in looks])
        weight, noise = weigh_blocks(rest, region.blocks)
        weight *= free
    grey = np.array([look.value for look in looks])
    columns = np.concatenate([grey, beside])
    tests = np.concatenate([[look.test for look in looks], beside])
    scales = _finish_scales(values, columns, tests, weight, absolute=absolute)[:count]
    errors = noise * np.sqrt(np.maximum(np.diag(inverse), 0))
    safe = np.maximum(np.abs(scales), 1e-6)[:, None]
    return Fit(
        scales,
        errors[:count],
        moves,
        errors[count : 4 * count].reshape(count, 3) / safe,
        weight,
        noise,
        scales @ grey,
        background,
    )


@dataclass(frozen=True, eq=False)
class _Look:
    """Grey of a membrane at the region's pixels and its derivative across `(k,)`; both whitened are the tests."""

    value: FloatArray
    slope: FloatArray
    test: FloatArray
    test_slope: FloatArray


def _look_across(
    known: Known, number: int, region: Region, bases: Sequence[FloatArray], moves: FloatArray
) -> _Look:
    distance = region.distance[number] - moves[number] @ bases[number]
    profile, whitened = known.profiles[number], known.whitened[number]
    value, slope = profile.evaluate_both(distance)
    if whitened is profile:
        return _Look(value, slope, value, slope)
    return _Look(value, slope, *whitened.evaluate_both(distance))


def _search_places(
    values: FloatArray, region: Region, known: Known, *, either_sign: bool
) -> tuple[FloatArray, FloatArray]:
    """Find by how much each membrane lies off, as moves `(m, 3)`, and its scale, from medians along the curve."""
    moves, scales = np.zeros((len(known.profiles), 3)), np.ones(len(known.profiles))
    noise = float(values.std()) ** 2 * 1.5
    for number, profile in enumerate(known.profiles):
        places, line, counts = _find_line(values, region, number, profile)
        shifts = np.arange(-BOUND, BOUND + 0.25, 0.5)
        away = places - shifts[:, None]
        share = (counts > 0) * (np.abs(away) <= profile.half_width) * counts / noise
        model = profile.evaluate(away)
        total = np.maximum(share.sum(axis=1), 1e-30)
        model -= ((share * model).sum(axis=1) / total)[:, None]
        energy = (share * model**2).sum(axis=1)
        scale = (share * model) @ line / np.maximum(energy, 1e-30)
        gain = scale**2 * energy / 2
        gain -= shifts**2 / (2 * max(known.spread[number, 0], 1e-3) ** 2)
        possible = ((share > 0).sum(axis=1) >= 8) & (energy > 0) & ((scale > 0) | either_sign)
        if possible.any():
            best = int(np.argmax(np.where(possible, gain, -np.inf)))
            moves[number, 0], scales[number] = shifts[best], scale[best]
    return moves, scales


def _find_line(
    values: FloatArray, region: Region, number: int, profile: Profile
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return distances, the median grey of parts of the curve at each, and of how many pixels, 0 where too few."""
    distance = region.distance[number]
    reach = int(np.ceil(profile.half_width + BOUND))
    bins = np.rint(distance).astype(np.int64) + reach
    inside = (bins >= 0) & (bins <= 2 * reach)
    along = np.clip(((region.position[number] + 1) / 2 * _PARTS).astype(np.int64), 0, _PARTS - 1)
    index = along[inside] * (2 * reach + 1) + bins[inside]
    size = _PARTS * (2 * reach + 1)
    counts = np.bincount(index, minlength=size).reshape(_PARTS, -1)
    sums = np.bincount(index, values[inside], minlength=size).reshape(_PARTS, -1)
    means = np.where(counts > 2, sums / np.maximum(counts, 1), np.nan)
    whole = np.isfinite(means).sum(axis=0) > 1
    line = np.zeros(means.shape[1])
    line[whole] = np.nanmedian(means[:, whole], axis=0)
    return np.arange(-reach, reach + 1.0), line, whole * counts.sum(axis=0).astype(float)


def _draw_beside(region: Region, known: Known) -> FloatArray:
    """Return what the background consists of: across each membrane a ramp, and a constant."""
    ramps = [
        np.clip(one / width, -1, 1) for one, width in zip(region.distance, known.half_width, strict=True)
    ]
    return np.array([*ramps, np.ones(len(region.pixels))])


def _build_columns(
    looks: Sequence[_Look], bases: Sequence[FloatArray], beside: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return what the unknowns multiply, and what the equations are tested with: the same where noise is white.

    Scales come first, then three moves of each membrane, then the background.
    """
    slopes = [-look.slope * basis for look, basis in zip(looks, bases, strict=True)]
    columns = np.concatenate([[look.value for look in looks], *slopes, beside])
    if all(look.test is look.value for look in looks):
        return columns, columns
    slopes = [-look.test_slope * basis for look, basis in zip(looks, bases, strict=True)]
    return columns, np.concatenate([[look.test for look in looks], *slopes, beside])


def _hold_moves(
    moves: FloatArray, scales: FloatArray, spread: FloatArray, noise: float, size: int
) -> tuple[FloatArray, FloatArray]:
    """Return how strongly the unknowns are held `(size,)`, and what pulls them: moves, by their prior."""
    count = len(scales)
    holds, pulls = np.zeros(size), np.zeros(size)
    # Unknowns are scale * change of the move; its prior is on the move.
    scale = (np.sign(scales) * np.maximum(np.abs(scales), 0.2))[:, None]
    hold = noise**2 / (scale * np.maximum(spread, 1e-3)) ** 2
    holds[count : 4 * count] = hold.ravel()
    pulls[count : 4 * count] = (-hold * scale * moves).ravel()
    return holds, pulls


def _solve(
    columns: FloatArray, tests: FloatArray, values: FloatArray, holds: FloatArray, pulls: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the unknowns and the inverse of the matrix of their equations."""
    matrix = tests @ columns.T + np.diag(holds)
    inverse = np.linalg.inv(matrix + 1e-9 * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))
    return inverse @ (tests @ values + pulls), inverse


def _read_solution(solved: FloatArray, scales: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    found = solved[:count]
    safe = np.where(np.abs(found) > 0.2 * np.abs(scales), found, 0.2 * scales)
    safe = np.where(np.abs(safe) < 1e-9, 1e-9, safe)
    changes = solved[count : 4 * count].reshape(count, 3) / safe[:, None]
    return found, np.clip(changes, -2, 2)


def _finish_scales(
    values: FloatArray, columns: FloatArray, tests: FloatArray, weight: FloatArray, *, absolute: bool
) -> FloatArray:
    """Return the scales, and the background, once the moves and the weights stand."""
    none = np.zeros(len(columns))
    share, solved = weight, none
    for _ in range(_ABSOLUTE_ROUNDS if absolute else 1):
        solved, _inverse = _solve(columns, tests * share, values, none, none)
        # Squares weighted by the inverse of the differences are their absolute values (Weiszfeld).
        rest = np.abs(values - solved @ columns)
        share = weight / np.maximum(rest, 0.02 * rest.mean() + 1e-12)
    return solved
