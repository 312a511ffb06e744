"""Membranes traced in a micrograph, fitted together: where each runs, how strong it is on its way, its profile.

The model of a membrane is (near(s) * inner(d) + far(s) * outer(d)), where d is the distance from the curve, moved by
move(s) along its normal. The profile's two leaflets have strengths of their own, so it may change along the curve.
Strengths and moves are smooth: how smooth, the data say (evidence, MacKay, Neural Comput. 4, 415 (1992)).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from verglas.algo.membranes.blocks import Blocks, weigh_blocks
from verglas.algo.membranes.curves import Band, map_band, path_normals, resample_path
from verglas.algo.membranes.profiles import (
    Profile,
    bilayer_kernel,
    fit_profile,
    place_splines,
    take_off_baseline,
)
from verglas.algo.membranes.tracing import Trace, straighten

FloatArray = npt.NDArray[np.float64]

_ROUNDS = 6
_SWEEPS = 2
_TRUSTING = 3
"""Rounds in which all pixels count."""
_KNOT_DISTANCES = 2.0
"""Spacing of the knots along the curve, in leaflet distances."""
_SMOOTH = 0.003
_WIDTH = 1.8
_SEARCH = 0.7


@dataclass(frozen=True, eq=False)
class Vesicle:
    """A membrane of a micrograph.

    Parameters
    ----------
    path
        `(m, 2)` yx, a pixel apart.
    closed
        Whether its ends meet.
    profile
        Grey across it.
    near, far
        `(k,)` spline coefficients along the curve of the strength of the leaflets against and along the normal.
    explained
        Share of the variance of the band's profile-like grey that the model explains, 0 to 1.
    """

    path: FloatArray
    closed: bool
    profile: Profile
    near: FloatArray
    far: FloatArray
    explained: float


def fit_vesicles(
    image: npt.NDArray[np.floating], traces: Sequence[Trace], distance: float
) -> tuple[list[Vesicle], FloatArray]:
    """Fit all membranes of a micrograph together.

    Parameters
    ----------
    image
        `(y, x)` of either contrast.
    traces
        Where they run, within about half a leaflet distance.
    distance
        Between leaflets, pixels.

    Returns
    -------
    tuple
        The membranes, and what they are together `(y, x)` in the grey of the image.
    """
    grey = np.asarray(image, float)
    flat = grey - gaussian_filter(grey, 6 * distance)
    shape = (grey.shape[0], grey.shape[1])
    models = [np.zeros(shape) for _ in traces]
    found: list[Vesicle | None] = [None] * len(traces)
    paths = [_settle(flat, trace, distance) for trace in traces]
    for sweep in range(_SWEEPS if len(traces) > 1 else 1):
        total = np.sum(models, axis=0) if models else np.zeros(shape)
        for number, trace in enumerate(traces):
            rest = flat - (total - models[number])
            start = found[number]
            path = paths[number] if start is None else start.path
            one = _fit_one(rest, path, trace.closed, distance, start, rounds=_ROUNDS if not sweep else 2)
            model = render_vesicle(one, shape) if one else np.zeros(shape)
            total += model - models[number]
            models[number], found[number] = model, one
    kept = [one for one in found if one is not None]
    return kept, np.sum(models, axis=0) if models else np.zeros(shape)


def _settle(image: FloatArray, trace: Trace, distance: float) -> FloatArray:
    """Move a trace onto its membrane: the best smooth path beside it, by dynamic programming."""
    path = _smooth_path(resample_path(trace.points_yx, 1.0, closed=trace.closed), distance, trace.closed)
    reach = np.arange(-int(2.5 * distance), int(2.5 * distance) + 1).astype(float)
    grey, inside = straighten(image, path, reach, closed=trace.closed)
    kernel = bilayer_kernel(np.arange(-int(1.5 * distance), int(1.5 * distance) + 1).astype(float), distance)
    answer = np.stack([np.convolve(row, kernel[::-1], "same") for row in grey]) * inside
    answer = gaussian_filter1d(answer, 1.2 * distance, axis=0, mode="wrap" if trace.closed else "nearest")
    answer *= np.sign(np.sum(answer[:, np.abs(reach) < distance / 2]) or 1.0)
    limit = np.abs(reach) <= _SEARCH * distance
    answer = np.where(limit, answer, -np.inf)[::4]
    spread = max(float(answer[np.isfinite(answer)].std()), 1e-12)
    rows = np.concatenate([answer, answer]) / spread if trace.closed else answer / spread
    total, back = rows[0], []
    for row in rows[1:]:
        padded = np.pad(total, 1, constant_values=-np.inf)
        options = np.stack([padded[1 + k : 1 + k + len(row)] - 0.3 * abs(k) for k in (-1, 0, 1)])
        choice = np.argmax(options, axis=0)
        back.append(choice - 1)
        total = row + np.take_along_axis(options, (choice)[None], axis=0)[0]
    place = int(np.argmax(total))
    places = [place]
    for steps in reversed(back):
        place = int(np.clip(place + steps[place], 0, len(reach) - 1))
        places.append(place)
    offsets = reach[np.array(places[::-1])]
    count = len(answer)
    if trace.closed:
        offsets = np.roll(offsets[count // 2 : count // 2 + count], count // 2)
    offset = np.interp(np.arange(len(path)), np.arange(count) * 4, offsets)
    offset = gaussian_filter1d(offset, 1.5 * distance, mode="wrap" if trace.closed else "nearest")
    return path + offset[:, None] * path_normals(path, closed=trace.closed)


def _smooth_path(path: FloatArray, width: float, closed: bool) -> FloatArray:
    """Take out of a path what the knots of its moves could not: bends shorter than `width`."""
    if closed:
        return np.asarray(gaussian_filter1d(path, width, axis=0, mode="wrap"))
    line = np.linspace(path[0], path[-1], len(path))
    rest = path - line
    odd = np.concatenate([-rest[::-1], rest, -rest[::-1]])
    smooth = gaussian_filter1d(odd, width, axis=0)[len(path) : 2 * len(path)]
    return np.asarray(line + smooth)


def _fit_one(
    image: FloatArray, path: FloatArray, closed: bool, distance: float, start: Vesicle | None, *, rounds: int
) -> Vesicle | None:
    half_width = _WIDTH * distance
    near = far = np.ones(1)
    profile = start.profile if start else None
    explained = 0.0
    for turn in range(rounds):
        path = resample_path(path, 1.0, closed=closed)
        band = map_band(path, (image.shape[0], image.shape[1]), half_width + 2, closed=closed)
        if len(band.pixels) < 50 * distance:
            return None
        values = image.reshape(-1)[band.pixels]
        knots = _count_knots(band, distance)
        weight = np.ones(len(values))
        if profile is None:
            profile = _lean(fit_profile(band.distance, values, weight, half_width), distance)
            near = far = np.ones(knots)
        elif len(near) != knots:
            near, far = (_restretch(one, knots, closed) for one in (near, far))
        for _ in range(2):
            rest = values - _model(band, profile, near, far, distance)
            weight, noise = _weigh(rest, band)
            if start is None and turn < _TRUSTING:
                # A curve that is not in its place yet looks like something else.
                weight = np.ones(len(values))
            near, far = _fit_strengths(values, band, profile, weight, noise, knots, distance)
            mean = float(np.mean((near + far) / 2))
            if not abs(mean) > 1e-6:
                return None
            strength = _strength(band, near, far, distance)
            profile = _fit_profile(values, band, strength, weight, half_width, distance, noise)
        model = _model(band, profile, near, far, distance)
        if start is not None or turn >= _TRUSTING:
            weight, noise = _weigh(values - model, band)
        moves = _fit_moves(values, band, profile, (near, far), weight, noise, knots, distance)
        share = np.arange(len(path)) / (len(path) if closed else len(path) - 1)
        index, weights = _place(share, knots, closed)
        move = np.clip((moves[index] * weights).sum(axis=0), -0.4 * distance, 0.4 * distance)
        path = path + move[:, None] * path_normals(path, closed=closed)
        explained = 1 - float((weight * (values - model) ** 2).sum() / max((weight * values**2).sum(), 1e-30))
    assert profile is not None
    return Vesicle(resample_path(path, 1.0, closed=closed), closed, profile, near, far, explained)


def _lean(profile: Profile, distance: float) -> Profile:
    return take_off_baseline(profile, 0.6 * distance)


def _count_knots(band: Band, distance: float) -> int:
    return max(6, round(band.length / (_KNOT_DISTANCES * distance)))


def _along(band: Band, count: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Return indices `(4, n)` and weights `(4, n)` of the splines along the curve at the band's pixels."""
    return _place(band.position / band.length, count, band.closed)


def _place(share: FloatArray, count: int, closed: bool) -> tuple[npt.NDArray[np.int64], FloatArray]:
    if closed:
        first, weights, _, _ = place_splines(share * count - (count + 3) / 2 + 1.0, count + 4, 1.0)
        return (first + np.arange(4)[:, None]) % count, weights
    places = share * (count - 3) - (count - 3) / 2
    first, weights, _, _ = place_splines(places * 0.999999, count, 1.0)
    return first + np.arange(4)[:, None], weights


def _evaluate(coefficients: FloatArray, band: Band) -> FloatArray:
    index, weights = _along(band, len(coefficients))
    return np.asarray((coefficients[index] * weights).sum(axis=0))


def _restretch(coefficients: FloatArray, count: int, closed: bool) -> FloatArray:
    if len(coefficients) == 1:
        return np.full(count, coefficients[0])
    old = np.linspace(0, 1, len(coefficients), endpoint=not closed)
    new = np.linspace(0, 1, count, endpoint=not closed)
    return np.asarray(np.interp(new, old, coefficients, period=1.0 if closed else None))


def _sides(distance: FloatArray, gap: float) -> tuple[FloatArray, FloatArray]:
    """Return how much each leaflet has of the profile at distances `(n,)`."""
    share = 0.5 + 0.5 * np.sin(np.pi / 2 * np.clip(distance / (0.5 * gap), -1, 1))
    return 1 - share, share


def _strength(band: Band, near: FloatArray, far: FloatArray, distance: float) -> FloatArray:
    inner, outer = _sides(band.distance, distance)
    return _evaluate(near, band) * inner + _evaluate(far, band) * outer


def _model(band: Band, profile: Profile, near: FloatArray, far: FloatArray, distance: float) -> FloatArray:
    return _strength(band, near, far, distance) * profile.evaluate(band.distance)


def _weigh(rest: FloatArray, band: Band) -> tuple[FloatArray, float]:
    """Return weights by how blocks follow the model, and the noise."""
    along = (band.position / 10).astype(np.int64)
    across = ((band.distance - band.distance.min()) / 6).astype(np.int64)
    grid = (1, int(along.max()) + 1, int(across.max()) + 1)
    return weigh_blocks(rest, Blocks(along * grid[2] + across, grid))


def _solve_smooth(
    columns: Sequence[FloatArray],
    target: FloatArray,
    weight: FloatArray,
    noise: float,
    band: Band,
    count: int,
    base: float,
) -> list[FloatArray]:
    """Fit functions along the curve, one for each column, that are as smooth as the data say.

    Parameters
    ----------
    columns
        `(n,)` what multiplies each function.
    target
        `(n,)` what they add up to.
    weight, noise
        Of the target.
    band
        Where it lies.
    count
        Splines of a function.
    base
        What the functions vary about.
    """
    index, weights = _along(band, count)
    size = count * len(columns)
    matrix, right = np.zeros((size, size)), np.zeros(size)
    for a, first in enumerate(columns):
        for i in range(4):
            share = weight * first * weights[i]
            right[a * count : (a + 1) * count] += np.bincount(index[i], share * target, minlength=count)
            for b, second in enumerate(columns):
                for j in range(4):
                    flat = index[i] * count + index[j]
                    sums = np.bincount(flat, share * second * weights[j], minlength=count * count)
                    matrix[a * count : (a + 1) * count, b * count : (b + 1) * count] += sums.reshape(
                        count, count
                    )
    precision = 1 / max(noise, 1e-12) ** 2
    matrix, right = matrix * precision, right * precision
    right = right - matrix @ np.full(size, base)
    rough = np.kron(np.eye(len(columns)), _roughness(count, band.closed))
    rough += 1e-3 * np.kron(np.eye(len(columns)), np.eye(count))
    hold = 1.0 / max(float(np.mean(np.diag(np.linalg.pinv(rough)))), 1e-12)
    solved = np.zeros(size)
    for _ in range(12):
        inverse = np.linalg.inv(matrix + hold * rough)
        solved = inverse @ right
        known = size - hold * float(np.trace(inverse @ rough))
        hold = float(np.clip(known / max(float(solved @ rough @ solved), 1e-9), 1e-3, 1e7))
    return [solved[a * count : (a + 1) * count] + base for a in range(len(columns))]


def _roughness(count: int, closed: bool) -> FloatArray:
    if closed:
        rows = np.roll(np.eye(count), 1, axis=1) - 2 * np.eye(count) + np.roll(np.eye(count), -1, axis=1)
    else:
        rows = np.diff(np.eye(count), 2, axis=0)
    return np.asarray(rows.T @ rows)


def _fit_strengths(
    values: FloatArray,
    band: Band,
    profile: Profile,
    weight: FloatArray,
    noise: float,
    count: int,
    distance: float,
) -> tuple[FloatArray, FloatArray]:
    grey = profile.evaluate(band.distance)
    inner, outer = _sides(band.distance, distance)
    # Common and different strength are independent; noise of the second then costs nothing where there is none.
    common, other = _solve_two(values, (grey, grey * (outer - inner)), weight, noise, band, count)
    return common - other, common + other


def _solve_two(
    values: FloatArray,
    columns: tuple[FloatArray, FloatArray],
    weight: FloatArray,
    noise: float,
    band: Band,
    count: int,
) -> tuple[FloatArray, FloatArray]:
    level = float((weight * columns[0] * values).sum() / max((weight * columns[0] ** 2).sum(), 1e-30))
    (common,) = _solve_smooth(columns[:1], values, weight, noise, band, count, level)
    rest = values - columns[0] * _evaluate(common, band)
    (other,) = _solve_smooth(columns[1:], rest, weight, noise, band, count, 0.0)
    return common, other


def _fit_profile(
    values: FloatArray,
    band: Band,
    strength: FloatArray,
    weight: FloatArray,
    half_width: float,
    distance: float,
    noise: float,
) -> Profile:
    safe = np.where(np.abs(strength) > 1e-6, strength, 1e-6)
    spacing = max(1.0, distance / 10)
    found = fit_profile(
        band.distance,
        values / safe,
        weight * safe**2,
        half_width,
        spacing=spacing,
        smooth=_SMOOTH,
        noise=noise,
    )
    return _lean(found, distance)


def _fit_moves(
    values: FloatArray,
    band: Band,
    profile: Profile,
    strengths: tuple[FloatArray, FloatArray],
    weight: FloatArray,
    noise: float,
    count: int,
    distance: float,
) -> FloatArray:
    """Return spline coefficients of by how much the curve moves along its normal."""
    strength = _strength(band, *strengths, distance)
    value, slope = profile.evaluate_both(band.distance)
    column = -strength * slope
    (move,) = _solve_smooth([column], values - strength * value, weight, noise, band, count, 0.0)
    return move


def render_vesicle(one: Vesicle, shape: tuple[int, int]) -> FloatArray:
    """Return a membrane alone `(y, x)`; an open one fades at its ends."""
    band = map_band(one.path, shape, one.profile.half_width, closed=one.closed)
    image = np.zeros(shape)
    gap = one.profile.half_width / _WIDTH
    grey = _model(band, one.profile, one.near, one.far, gap)
    if not one.closed:
        end = np.minimum(band.position, band.length - band.position) / gap
        grey = grey * (0.5 - 0.5 * np.cos(np.pi * np.clip(end, 0, 1)))
    image.reshape(-1)[band.pixels] = grey
    return image
