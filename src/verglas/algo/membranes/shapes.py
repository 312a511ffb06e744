"""Arcs and Bézier curves fitted to an image, with whatever profile the image has across them."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.curves import (
    Arc,
    bezier_weights,
    evaluate_bezier,
    extend_path,
    fit_bezier,
    locate_on_path,
    path_normals,
    resample_path,
)
from verglas.algo.membranes.profiles import Profile, bilayer_kernel, fit_profile

FloatArray = npt.NDArray[np.float64]

_ROUNDS = 25
_ENOUGH = 1e-6
_MOST_DAMPING = 10.0
_BEYOND = 0.35
"""How far a cubic goes on beyond its ends, in its parameter."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of an image that count: places `(n, 2)` yx, grey `(n,)` and weight `(n,)`."""

    points_yx: FloatArray
    values: FloatArray
    weight: FloatArray


@dataclass(frozen=True, eq=False)
class Shape:
    """A membrane's curve and profile in an image.

    Parameters
    ----------
    arc
        Of a straight or evenly bent membrane; of a Bézier curve, the arc nearest to it.
    control_yx
        `(4, 2)` control points of a Bézier curve; none for an arc.
    profile
        Grey across it.
    explained
        Share of the band's variance that curve and profile explain.
    """

    arc: Arc
    control_yx: FloatArray | None
    profile: Profile
    explained: float

    def trace(self, reach: float) -> FloatArray:
        """Return points `(m, 2)` of the curve, a pixel apart, continued by `reach` pixels beyond a Bézier's ends."""
        return self._continue(reach)[0]

    def locate(self, points_yx: FloatArray, reach: float) -> tuple[FloatArray, FloatArray]:
        """Return distance and position, pixels from the curve's middle, of points `(n, 2)`."""
        if self.control_yx is None:
            return self.arc.locate(points_yx)
        path, middle = self._continue(reach)
        distance, position, _ = locate_on_path(path, points_yx, closed=False)
        return distance, position - middle

    def _continue(self, reach: float) -> tuple[FloatArray, float]:
        """Return the path, and where on it the curve's own middle lies.

        An average shows what lies in its window; turned particles show more. There the cubic goes on a little way,
        and from then on straight.
        """
        if self.control_yx is None:
            return self.arc.trace(reach), 0.0
        beyond = _BEYOND if reach > 0 else 0.0
        path = evaluate_bezier(self.control_yx, np.linspace(-beyond, 1 + beyond, 200))
        own = evaluate_bezier(self.control_yx, np.linspace(0, 1, 200))
        before = evaluate_bezier(self.control_yx, np.linspace(-beyond, 0, 40))
        middle = _length(before) + _length(own) / 2
        if reach > 0:
            path = extend_path(path, reach)
            middle += np.ceil(max(2.0, reach))
        return resample_path(path, 1.0, closed=False), float(middle)


def _length(path: FloatArray) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def _explain(
    distance: FloatArray, pixels: Pixels, half_width: float, spacing: float
) -> tuple[Profile, FloatArray, float]:
    """Fit the profile; return it, the band's weights, and the share of its variance that it explains."""
    weight = pixels.weight * np.clip(half_width - np.abs(distance), 0, 1)
    profile = fit_profile(distance, pixels.values, weight, half_width + 1, spacing=spacing)
    rest = pixels.values - profile.evaluate(distance)
    mean = (weight * pixels.values).sum() / weight.sum()
    whole = (weight * (pixels.values - mean) ** 2).sum()
    return profile, weight, float(1 - (weight * rest**2).sum() / max(whole, 1e-30))


def refine_arc(start: Arc, pixels: Pixels, half_width: float, *, spacing: float = 1.0) -> Shape:
    """Refine an arc by Gauss and Newton's method: its place across, its angle and its curvature.

    Parameters
    ----------
    start
        Where to begin, within half of the leaflets' distance.
    pixels
        Of the image.
    half_width
        To which distance the profile reaches, pixels.
    spacing
        Of the profile's splines.
    """
    arc, step = start, 1.0
    distance, along = arc.locate(pixels.points_yx)
    profile, weight, explained = _explain(distance, pixels, half_width, spacing)
    for _ in range(_ROUNDS):
        change = _solve_moves(distance, _powers(along), pixels, weight, profile)
        move = step * change
        theta = arc.theta_deg - np.rad2deg(move[1])
        centre = np.array(arc.centre_yx) + move[0] * arc.normal
        trial = Arc((float(centre[0]), float(centre[1])), float(theta), float(arc.kappa - 2 * move[2]))
        trial_distance, trial_along = trial.locate(pixels.points_yx)
        result = _explain(trial_distance, pixels, half_width, spacing)
        if result[2] <= explained:
            step /= 2
            if step < 0.05:
                break
            continue
        gain = result[2] - explained
        arc, distance, along = trial, trial_distance, trial_along
        profile, weight, explained = result
        step = min(1.0, 1.5 * step)
        if gain < _ENOUGH:
            break
    return Shape(arc, None, profile, explained)


def _powers(along: FloatArray) -> FloatArray:
    return np.stack([np.ones(len(along)), along, along**2])


def _solve_moves(
    distance: FloatArray,
    basis: FloatArray,
    pixels: Pixels,
    weight: FloatArray,
    profile: Profile,
    damping: float = 1e-4,
) -> FloatArray:
    """Return by how much the curve must move along its normal, in terms of `basis` `(m, n)`."""
    value, slope = profile.evaluate_both(distance)
    columns = -slope * basis
    # The profile fits itself to every place of the curve: only what it cannot follow tells the place.
    rest = pixels.values - value
    scale = np.sqrt(np.maximum((weight * columns**2).sum(axis=1), 1e-30))
    columns = columns / scale[:, None]
    matrix = (columns * weight) @ columns.T + damping * np.eye(len(columns))
    return np.asarray(np.linalg.solve(matrix, (columns * weight) @ rest) / scale)


def refine_bezier(
    start: FloatArray,
    arc: Arc,
    pixels: Pixels,
    half_width: float,
    reach: float,
    *,
    spacing: float = 1.0,
    beyond: float = _BEYOND,
) -> Shape:
    """Refine the control points `(4, 2)` of a cubic Bézier curve by Levenberg and Marquardt's method.

    Ends that slide along the curve hardly change it: the damping keeps them from running away.

    Parameters
    ----------
    start
        Where to begin.
    arc
        The arc beside it.
    pixels, half_width, spacing
        As of `refine_arc`.
    reach
        By how much the curve is continued at its ends, pixels.
    beyond
        How far outside of its ends the curve moves as a cubic; from far away it finds its place better with 0.
    """

    def judge(control: FloatArray) -> tuple[Shape, FloatArray, FloatArray, FloatArray]:
        shape = Shape(arc, control, Profile(np.zeros(4)), 0.0)
        distance, along = shape.locate(pixels.points_yx, reach)
        profile, weight, explained = _explain(distance, pixels, half_width, spacing)
        return replace(shape, profile=profile, explained=explained), distance, along, weight

    best, distance, along, weight = judge(start)
    damping = 1e-2
    for _ in range(_ROUNDS):
        assert best.control_yx is not None
        basis = _bezier_basis(best.control_yx, along, beyond)
        move = _solve_moves(distance, basis, pixels, weight, best.profile, damping).reshape(2, 4).T
        trial = judge(best.control_yx + move)
        if trial[0].explained <= best.explained:
            damping *= 8
            if damping > _MOST_DAMPING:
                break
            continue
        gain = trial[0].explained - best.explained
        best, distance, along, weight = trial
        damping = max(damping / 4, 1e-6)
        if gain < _ENOUGH:
            break
    return best


def _bezier_basis(control: FloatArray, along: FloatArray, beyond: float) -> FloatArray:
    """Return by how much the curve moves along its normal as control points move: `(8, n)`, y then x.

    What lies farther than `beyond` outside of its ends moves as these places do.
    """
    t = np.linspace(-beyond, 1 + beyond, 280)
    path = evaluate_bezier(control, t)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    s = np.concatenate([[0.0], np.cumsum(steps)])
    middle = np.interp([0.0, 1.0], t, s).mean()
    places = np.interp(along, s - middle, t)
    weights = bezier_weights(places)
    normals = path_normals(path, closed=False)
    normal = np.stack([np.interp(places, t, normals[:, axis]) for axis in (0, 1)], axis=1)
    return np.concatenate([(weights * normal[:, axis : axis + 1]).T for axis in (0, 1)])


def trace_ridge(
    image: FloatArray, weight: FloatArray, arc: Arc, distance: float, half_length: float
) -> FloatArray:
    """Follow a membrane along an arc, to both sides of it, by the path of the greatest sum (dynamic programming).

    Parameters
    ----------
    image, weight
        `(y, x)`.
    arc
        Beside which the membrane runs.
    distance
        Between its leaflets, pixels.
    half_length
        To both sides of the arc's centre.

    Returns
    -------
    ndarray
        `(m, 2)` yx.
    """
    from scipy.ndimage import gaussian_filter1d, map_coordinates

    path = arc.trace(half_length)
    normals = path_normals(path, closed=False)
    reach = np.arange(-min(image.shape) // 3, min(image.shape) // 3 + 1).astype(float)
    places = path[:, None] + reach[:, None] * normals[:, None]
    rows = np.moveaxis(places, -1, 0)
    grey = map_coordinates(image, rows, order=1, mode="nearest")
    inside = map_coordinates(weight, rows, order=1, mode="constant")
    kernel = bilayer_kernel(np.arange(-int(1.5 * distance), int(1.5 * distance) + 1).astype(float), distance)
    response = np.stack([np.convolve(row, kernel[::-1], "same") for row in grey]) * inside
    response = gaussian_filter1d(response, 3.0, axis=0)
    response /= max(float(np.abs(response).max()), 1e-12)
    total, back = response[0], []
    slack = np.array([-1, 0, 1])
    for row in response[1:]:
        padded = np.pad(total, 1, constant_values=-np.inf)
        options = np.stack([padded[1 + k : 1 + k + len(row)] - 0.02 * abs(k) for k in slack])
        choice = np.argmax(options, axis=0)
        back.append(choice)
        total = row + np.take_along_axis(options, choice[None], axis=0)[0]
    place = int(np.argmax(total))
    offsets = [place]
    for choice in reversed(back):
        place = int(np.clip(place + slack[choice[place]], 0, len(reach) - 1))
        offsets.append(place)
    offset = gaussian_filter1d(reach[np.array(offsets[::-1])], 3.0)
    points = path + offset[:, None] * normals
    visible = map_coordinates(weight, points.T, order=1, mode="constant") > 0.3
    return points[visible] if visible.sum() > 8 else path


def fit_bezier_along(
    image: FloatArray,
    weight: FloatArray,
    arc: Arc,
    pixels: Pixels,
    *,
    distance: float,
    half_width: float,
    sign: int,
) -> Shape:
    """Trace a membrane beside an arc and fit a Bézier curve to it."""
    half = max(image.shape) / 2
    path = trace_ridge(sign * image, weight, arc, distance, half)
    starts = [fit_bezier(path), fit_bezier(_visible(arc.trace(half), weight))]
    thin = (pixels.points_yx.sum(axis=1) % 2 == 0) & (pixels.points_yx[:, 0] % 2 == 0)
    few = Pixels(pixels.points_yx[thin], pixels.values[thin], pixels.weight[thin])
    tried = [refine_bezier(start, arc, few, half_width, half, spacing=1.5, beyond=0.0) for start in starts]
    best = max(tried, key=lambda one: one.explained)
    assert best.control_yx is not None
    return refine_bezier(best.control_yx, arc, pixels, half_width, half)


def _visible(path: FloatArray, weight: FloatArray) -> FloatArray:
    rows = np.rint(path).astype(np.int64)
    inside = ((rows >= 0) & (rows < weight.shape)).all(axis=1)
    kept = np.zeros(len(path), dtype=bool)
    kept[inside] = weight[rows[inside, 0], rows[inside, 1]] > 0.3
    return path[kept] if kept.sum() > 8 else path
