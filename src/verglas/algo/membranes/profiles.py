"""Profiles across a membrane: cubic B-splines of the distance from its curve, fitted by weighted least squares."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

FloatArray = npt.NDArray[np.float64]

_SMOOTH = 1e-3
"""Weight of the squared second differences of a profile, against the mean weight of its samples."""
_EVIDENCE_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class Profile:
    """Grey across a membrane.

    Parameters
    ----------
    coefficients
        `(k,)` of cubic B-splines, evenly spaced and centred on distance 0.
    spacing
        Of the splines, pixels.
    """

    coefficients: FloatArray
    spacing: float = 1.0

    @property
    def half_width(self) -> float:
        """Distance up to which all four splines of a place exist, pixels."""
        return (len(self.coefficients) - 3) / 2 * self.spacing

    @property
    def knots(self) -> FloatArray:
        """`(k,)` distances of the centres of the splines."""
        return np.asarray(
            (np.arange(len(self.coefficients)) - (len(self.coefficients) - 1) / 2) * self.spacing
        )

    @cached_property
    def _cubics(self) -> FloatArray:
        """`(4, k - 1)` powers of the place between two knots, and 0 before the first and after the last."""
        c = self.coefficients
        a, b, d, e = c[:-3], c[1:-2], c[2:-1], c[3:]
        powers = np.stack([a + 4 * b + d, 3 * (d - a), 3 * (a - 2 * b + d), e - 3 * d + 3 * b - a]) / 6
        return np.asarray(np.pad(powers, ((0, 0), (1, 1))))

    def _place(self, distance: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return which cubic holds at each distance, and the place in it from 0 to 1."""
        place = distance / self.spacing + (len(self.coefficients) - 1) / 2
        np.clip(place, 0.5, len(self.coefficients) - 1.5, out=place)
        index = place.astype(np.int64)
        place -= index
        return index, place

    def evaluate(self, distance: FloatArray) -> FloatArray:
        """Return the grey at distances `(...)`, 0 beyond the profile."""
        index, u = self._place(distance)
        a0, a1, a2, a3 = (power[index] for power in self._cubics)
        return np.asarray(((a3 * u + a2) * u + a1) * u + a0)

    def evaluate_both(self, distance: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return grey and its derivative by the distance."""
        index, u = self._place(distance)
        a0, a1, a2, a3 = (power[index] for power in self._cubics)
        value = ((a3 * u + a2) * u + a1) * u + a0
        return value, ((3 * a3 * u + 2 * a2) * u + a1) / self.spacing

    def energy(self) -> float:
        """Return the sum of squares across the membrane, a pixel of its length."""
        distance = np.arange(-self.half_width, self.half_width, 0.5)
        return float((self.evaluate(distance) ** 2).sum() * 0.5)


def count_splines(half_width: float, spacing: float = 1.0) -> int:
    """Return how many splines a profile to `half_width` has."""
    return 2 * int(np.ceil(half_width / spacing)) + 3


def place_splines(
    distance: FloatArray, count: int, spacing: float
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Return the first of four splines at distances `(n,)`, weights and slopes `(4, n)`, and which are inside."""
    place = distance / spacing + (count - 1) / 2 - 1
    first = np.floor(place).astype(np.int64)
    inside = (first >= 0) & (first <= count - 4)
    first = np.clip(first, 0, count - 4)
    u = np.clip(place - first, 0.0, 1.0)
    v = 1 - u
    weights = np.stack([v**3, 4 - 6 * u**2 + 3 * u**3, 4 - 6 * v**2 + 3 * v**3, u**3]) / 6
    slopes = np.stack([-(v**2), 3 * u**2 - 4 * u, 4 * v - 3 * v**2, u**2]) / 2
    return first, weights, slopes, inside


def sum_normal(
    distance: FloatArray, values: FloatArray, weight: FloatArray, count: int, spacing: float
) -> tuple[FloatArray, FloatArray]:
    """Return normal matrix `(k, k)` and right side `(k,)` of a profile's coefficients."""
    first, weights, _, inside = place_splines(distance, count, spacing)
    weight = weight * inside
    matrix, right = np.zeros((count, count)), np.zeros(count)
    rows = np.arange(count)
    for i in range(4):
        share = weights[i] * weight
        right += np.bincount(first + i, share * values, minlength=count)
        for j in range(i, 4):
            sums = np.bincount(first + i, share * weights[j], minlength=count)[: count - (j - i)]
            matrix[rows[: count - (j - i)], rows[j - i :]] += sums
    return matrix + np.triu(matrix, 1).T, right


def second_differences(count: int) -> FloatArray:
    """Return the matrix `(k, k)` of the sum of squared second differences."""
    rows = np.diff(np.eye(count), 2, axis=0)
    return np.asarray(rows.T @ rows)


def fit_profile(
    distance: FloatArray,
    values: FloatArray,
    weight: FloatArray,
    half_width: float,
    *,
    spacing: float = 1.0,
    smooth: float = _SMOOTH,
    noise: float | None = None,
) -> Profile:
    """Fit a profile to pixels.

    Parameters
    ----------
    distance, values, weight
        `(n,)` distance from the curve, grey and weight of each.
    half_width
        To which distance, pixels.
    spacing
        Of the splines, pixels.
    smooth
        How much second differences weigh, against the mean weight of a spline.
    noise
        Standard deviation of the values; the profile then is as smooth as the data say (evidence, MacKay, Neural
        Comput. 4, 415 (1992)), and at least as smooth as `smooth`.
    """
    count = count_splines(half_width, spacing)
    matrix, right = sum_normal(distance, values, weight, count, spacing)
    scale = max(float(np.trace(matrix)) / count, 1e-12)
    matrix += 1e-9 * scale * np.eye(count)
    rough, hold = second_differences(count), smooth * scale
    if noise is None:
        return Profile(np.asarray(np.linalg.solve(matrix + hold * rough, right)), spacing)
    variance = max(noise, 1e-12) ** 2
    hold = variance * choose_hold(matrix / variance, right / variance, rough, hold / variance)
    found = np.linalg.solve(matrix + hold * rough, right)
    # What smooths a profile makes it weaker too; how strong it is, the values say.
    strength = float(found @ right) / max(float(found @ matrix @ found), 1e-30)
    return Profile(np.asarray(strength * found), spacing)


def choose_hold(matrix: FloatArray, right: FloatArray, rough: FloatArray, least: float) -> float:
    """Return the weight of the roughness for which the data speak most, and at least `least`.

    Parameters
    ----------
    matrix, right
        Normal equations `(k, k)`, `(k,)` of the coefficients, over the variance of the data.
    rough
        `(k, k)` of `second_differences`.
    least
        Weight from which the search goes up.

    Notes
    -----
    Evidence: MacKay, Neural Comput. 4, 415 (1992).
    """
    hold = least
    for _ in range(_EVIDENCE_ROUNDS):
        inverse = np.linalg.inv(matrix + hold * rough)
        found = inverse @ right
        # Of a line, roughness says nothing.
        known = len(found) - 2 - hold * float(np.trace(inverse @ rough))
        hold = max(known / max(float(found @ rough @ found), 1e-30), least)
    return hold


def take_off_baseline(profile: Profile, taper: float) -> Profile:
    """Return the profile less the line between its ends, brought to 0 there over `taper` pixels.

    What is subtracted from an image with it ends without a seam, and leaves the density to both sides as it is.
    """
    knots, ends = profile.knots, profile.half_width - taper / 2
    near = [np.abs(knots - end) <= taper / 2 for end in (-ends, ends)]
    low, high = (float(profile.coefficients[chosen].mean()) for chosen in near)
    line = low + (high - low) * np.clip((knots + ends) / (2 * ends), 0, 1)
    edge = np.clip((profile.half_width - np.abs(knots)) / taper, 0, 1)
    return Profile((profile.coefficients - line) * (0.5 - 0.5 * np.cos(np.pi * edge)), profile.spacing)


@dataclass(frozen=True)
class Leaflets:
    """Two Gaussians of a bilayer's profile.

    Parameters
    ----------
    distance
        Between them, pixels.
    sigma1, sigma2
        Widths, of the one against the normal and of the one along it, pixels.
    height1, height2
        Their heights, in grey.
    middle
        Of both, pixels from the curve.
    """

    distance: float
    sigma1: float
    sigma2: float
    height1: float
    height2: float
    middle: float


def fit_leaflets(profile: Profile, start_distance: float) -> Leaflets:
    """Fit two Gaussians of one sign and an offset to the middle of a profile.

    Only the flanks near the leaflets count: what the transfer function leaves beside them is no Gaussian's.
    """
    x = np.arange(-profile.half_width, profile.half_width + 0.25, 0.25)
    y = profile.evaluate(x)
    sign = 1.0 if _bilayer_sum(x, y, start_distance) >= 0 else -1.0
    y = sign * y
    tops = _find_tops(x, y, start_distance)
    start = 0.25 * (tops[1] - tops[0])
    chosen = (x > tops[0] - 2.2 * start) & (x < tops[1] + 2.2 * start)
    x, y = x[chosen], y[chosen]
    low = float(y.min())

    def misfit(p: FloatArray) -> FloatArray:
        model = p[0] + sum(
            p[1 + 3 * i] * np.exp(-0.5 * ((x - p[2 + 3 * i]) / p[3 + 3 * i]) ** 2) for i in range(2)
        )
        return np.asarray(model - y)

    height = float(y.max()) - low
    guess = [low, height, tops[0], start, height, tops[1], start]
    span = tops[1] - tops[0]
    bounds = (
        [-np.inf, 0, tops[0] - span / 3, 0.3, 0, tops[1] - span / 3, 0.3],
        [np.inf, np.inf, tops[0] + span / 3, span, np.inf, tops[1] + span / 3, span],
    )
    p = least_squares(misfit, guess, bounds=bounds).x
    return Leaflets(
        float(p[5] - p[2]),
        float(p[3]),
        float(p[6]),
        sign * float(p[1]),
        sign * float(p[4]),
        float(p[2] + p[5]) / 2,
    )


def _bilayer_sum(x: FloatArray, y: FloatArray, distance: float) -> float:
    return float((y * bilayer_kernel(x, distance)).sum())


def _find_tops(x: FloatArray, y: FloatArray, distance: float) -> tuple[float, float]:
    """Return the places of the two maxima that lie `distance` apart best."""
    inner = (y[1:-1] >= y[:-2]) & (y[1:-1] > y[2:])
    tops = x[1:-1][inner]
    heights = y[1:-1][inner]
    spread = max(float(y.max() - y.min()), 1e-12)
    best, found = -np.inf, (-distance / 2, distance / 2)
    for i in range(len(tops)):
        for j in range(i + 1, len(tops)):
            gap = (tops[j] - tops[i]) / distance
            if not 0.5 < gap < 1.7:
                continue
            middle = abs(tops[i] + tops[j]) / 2 / distance
            score = (heights[i] + heights[j]) / spread - 2 * np.log(gap) ** 2 - 2 * middle**2
            if score > best:
                best, found = score, (float(tops[i]), float(tops[j]))
    return found


def bilayer_kernel(x: FloatArray, distance: float) -> FloatArray:
    """Return two Gaussians `distance` apart, less their mean over 1.5 distances to both sides, at places `(n,)`."""
    sigma = max(0.2 * distance, 0.7)
    kernel = sum(np.exp(-0.5 * ((x - side * distance / 2) / sigma) ** 2) for side in (-1, 1))
    inside = np.abs(x) <= 1.5 * distance
    kernel = np.where(inside, kernel, 0.0)
    return np.asarray(np.where(inside, kernel - kernel.sum() / max(inside.sum(), 1), 0.0))
