"""Membranes of whole micrographs found as ridges: along curves, open or closed, that may cross.

An oriented filter answers to a bilayer, or to the lines of a mask; a tracer follows its answer from the strongest
place on, straight across other membranes, until it fades or comes back to where it began.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter

from verglas.algo.membranes.curves import path_normals, resample_path
from verglas.algo.membranes.profiles import bilayer_kernel

FloatArray = npt.NDArray[np.float64]

_MOST = 60
_DIRECTIONS = 24
_STRONG, _WEAK = 6.0, 3.2
"""Standard deviations of the answer at which a membrane begins, and at which it ends."""
_MASK_STRONG, _MASK_WEAK = 0.5, 0.2
_STEP = 2.0
_STRAIGHT_DEG = 35.0
_LEAST_LENGTH_ANGSTROM = 300.0
_GAP = 12.0
"""Leaflet distances over which two ends that look at each other are one membrane."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A curve `(m, 2)` yx in pixels, and whether its ends meet."""

    points_yx: FloatArray
    closed: bool


def answer_to_bilayers(image: FloatArray, distance: float, length: float) -> tuple[FloatArray, FloatArray]:
    """Filter an image with bilayers of many directions.

    Parameters
    ----------
    image
        `(y, x)` in which membranes are bright.
    distance
        Between leaflets, pixels.
    length
        Of the filter along the membrane, one standard deviation, pixels.

    Returns
    -------
    tuple
        `(k, y, x)` answers in standard deviations of what is no membrane, and `(k,)` the angles in radians of the
        directions from the y axis towards x.
    """
    return _filter(image, lambda across: bilayer_kernel(across, distance), length)


def answer_to_lines(mask: FloatArray, width: float, length: float) -> tuple[FloatArray, FloatArray]:
    """Filter a mask with lines of many directions; parameters and result as of `answer_to_bilayers`."""
    answers, angles = _filter(mask, lambda across: np.exp(-0.5 * (across / width) ** 2), length, scale=False)
    return answers / max(float(answers.max()), 1e-12), angles


def _filter(
    image: FloatArray, profile: object, length: float, *, scale: bool = True
) -> tuple[FloatArray, FloatArray]:
    assert callable(profile)
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    transform = np.fft.rfft2(image - np.median(image))
    y, x = (np.fft.fftfreq(size) * size for size in image.shape)
    answers = np.empty((_DIRECTIONS, *image.shape), np.float32)
    for number, angle in enumerate(angles):
        across = np.sin(angle) * y[:, None] - np.cos(angle) * x[None, :]
        along = np.cos(angle) * y[:, None] + np.sin(angle) * x[None, :]
        kernel = profile(across.ravel()).reshape(across.shape) * np.exp(-0.5 * (along / length) ** 2)
        answer = np.fft.irfft2(transform * np.conj(np.fft.rfft2(kernel)), image.shape)
        answers[number] = answer
    if scale:
        answers /= 1.4826 * np.median(np.abs(answers))
    return answers, angles


def trace_membranes(
    image: FloatArray,
    pixel_size_angstrom: float,
    *,
    mask: FloatArray | None = None,
    distance_angstrom: float = 40.0,
) -> list[Trace]:
    """Trace membranes.

    Parameters
    ----------
    image
        `(y, x)` in which membranes are bright.
    pixel_size_angstrom
        Of the image.
    mask
        `(y, x)` above 0 where membranes are; none finds them.
    distance_angstrom
        Between leaflets.
    """
    factor = max(1, int(8.0 / pixel_size_angstrom))
    small = _bin(image, factor)
    pixel = pixel_size_angstrom * factor
    distance = distance_angstrom / pixel
    if mask is not None:
        covered = _bin(np.asarray(mask > 0, float), factor)
        answers, angles = answer_to_lines(covered, max(1.0, 0.5 * distance), 60.0 / pixel)
        strong, weak = _MASK_STRONG, _MASK_WEAK
    else:
        answers, angles = answer_to_bilayers(gaussian_filter(small, 0.7), distance, 70.0 / pixel)
        strong, weak = _STRONG, _WEAK
    best, which = answers.max(axis=0), answers.argmax(axis=0)
    free = np.ones(best.shape, dtype=bool)
    found: list[Trace] = []
    top = maximum_filter(best, 5)
    seeds = np.argwhere((best == top) & (best > strong))
    seeds = seeds[np.argsort(-best[seeds[:, 0], seeds[:, 1]])]
    for seed in seeds:
        if not free[seed[0], seed[1]]:
            continue
        trace = _follow(
            answers, angles, seed.astype(float), float(angles[which[seed[0], seed[1]]]), weak, distance, free
        )
        _occupy(free, trace, 1.5 * distance)
        if len(trace.points_yx) * _STEP * pixel >= _LEAST_LENGTH_ANGSTROM / 3:
            found.append(trace)
        if len(found) == _MOST:
            break
    traces = []
    for trace in _join(found, _GAP * distance):
        length = np.linalg.norm(np.diff(trace.points_yx, axis=0), axis=1).sum() * pixel
        if length >= _LEAST_LENGTH_ANGSTROM:
            points = trace.points_yx * factor + (factor - 1) / 2
            traces.append(Trace(resample_path(points, 1.0, closed=trace.closed), trace.closed))
    return traces


def _join(traces: list[Trace], gap: float) -> list[Trace]:
    """Join open traces whose ends look at each other over less than `gap`; close those that look at themselves."""
    traces = list(traces)
    while True:
        best: tuple[float, int, int, int, int] | None = None
        for i, first in enumerate(traces):
            for j in range(i + 1):
                second = traces[j]
                if first.closed or second.closed or len(first.points_yx) < 6 or len(second.points_yx) < 6:
                    continue
                for a in (0, 1):
                    for b in (0, 1) if i != j else (1 - a,):
                        away = _look(first, a, second, b)
                        if away < gap and (best is None or away < best[0]):
                            best = (away, i, j, a, b)
        if best is None:
            return traces
        _, i, j, a, b = best
        if i == j:
            traces[i] = Trace(traces[i].points_yx, closed=True)
            continue
        one, other = traces[i].points_yx, traces[j].points_yx
        joined = np.concatenate([one[:: 1 if a else -1], other[:: -1 if b else 1]])
        traces[j] = Trace(joined, closed=False)
        del traces[i]


def _look(first: Trace, a: int, second: Trace, b: int) -> float:
    """Return the distance of two ends, or infinity where they do not look at each other."""
    ends, ways = [], []
    for trace, end in ((first, a), (second, b)):
        points = trace.points_yx if end else trace.points_yx[::-1]
        way = points[-1] - points[-6]
        ends.append(points[-1])
        ways.append(way / max(float(np.linalg.norm(way)), 1e-9))
    gap = ends[1] - ends[0]
    away = float(np.linalg.norm(gap))
    if away > 3:
        unit = gap / away
        if unit @ ways[0] < 0.7 or -unit @ ways[1] < 0.7:
            return float("inf")
    elif ways[0] @ ways[1] > -0.5:
        return float("inf")
    return away


def _bin(image: FloatArray, factor: int) -> FloatArray:
    height, width = (size // factor * factor for size in image.shape)
    parts = image[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return np.asarray(parts.mean(axis=(1, 3)), float)


def _occupy(free: npt.NDArray[np.bool_], trace: Trace, radius: float) -> None:
    """Mark what lies near a trace as taken."""
    reach = np.arange(-radius, radius + 0.5, 0.5)
    points = resample_path(trace.points_yx, 0.5, closed=trace.closed)
    normals = path_normals(points, closed=trace.closed)
    near = np.rint(points[:, None] + reach[:, None] * normals[:, None]).astype(np.int64).reshape(-1, 2)
    near = near[((near >= 0) & (near < free.shape)).all(axis=1)]
    free[near[:, 0], near[:, 1]] = False


def _follow(
    answers: FloatArray,
    angles: FloatArray,
    seed: FloatArray,
    angle: float,
    weak: float,
    distance: float,
    free: npt.NDArray[np.bool_],
) -> Trace:
    """Follow a ridge from a seed to both sides."""
    ahead, closed = _walk(answers, angles, seed, angle, weak, distance, free)
    if closed:
        return Trace(_smooth(np.array(ahead), closed=True), closed=True)
    behind, _ = _walk(answers, angles, seed, angle + np.pi, weak, distance, free)
    points = np.array(behind[:0:-1] + ahead)
    if len(points) < 4:
        points = seed + np.arange(4)[:, None] * 0.5 * np.array([np.cos(angle), np.sin(angle)])
    return Trace(_smooth(points, closed=False), closed=False)


def _walk(
    answers: FloatArray,
    angles: FloatArray,
    seed: FloatArray,
    angle: float,
    weak: float,
    distance: float,
    free: npt.NDArray[np.bool_],
) -> tuple[list[FloatArray], bool]:
    points, missed, taken = [seed], 0, 0
    limit = 4 * sum(answers.shape[1:])
    slack = np.arange(-1.5, 1.75, 0.5)
    near = np.deg2rad(_STRAIGHT_DEG)
    while len(points) < limit:
        place = points[-1] + _STEP * np.array([np.cos(angle), np.sin(angle)])
        normal = np.array([np.sin(angle), -np.cos(angle)])
        tried = place + slack[:, None] * normal
        rows = np.rint(tried).astype(np.int64)
        if (rows < 1).any() or (rows >= np.array(answers.shape[1:]) - 1).any():
            break
        turn = (angles - angle + np.pi / 2) % np.pi - np.pi / 2
        allowed = np.flatnonzero(np.abs(turn) < near)
        values = answers[allowed][:, rows[:, 0], rows[:, 1]] - 0.1 * np.abs(slack) * weak
        direction, sideways = np.unravel_index(int(np.argmax(values)), values.shape)
        value = float(values[direction, sideways])
        missed = missed + 1 if value < weak else 0
        row = rows[sideways]
        taken = taken + 1 if not free[row[0], row[1]] else 0
        # Noise may hide a membrane for some steps, and another one may cross it.
        if missed > 5 or taken > 4 * distance / _STEP:
            points = points[: len(points) - max(missed, taken) + 1] or [seed]
            break
        weight = 0.5 if value >= weak else 0.0
        angle += weight * float(turn[allowed[direction]])
        points.append(tried[sideways])
        if len(points) > 20:
            early = np.linalg.norm(np.array(points[:-16]) - points[-1], axis=1)
            first = int(np.argmin(early))
            if early[first] < 1.6 * _STEP:
                return points[first:-1], True
    return points, False


def _smooth(points: FloatArray, *, closed: bool) -> FloatArray:
    from scipy.ndimage import gaussian_filter1d

    if len(points) < 5:
        return points
    if closed:
        return np.asarray(gaussian_filter1d(points, 1.5, axis=0, mode="wrap"))
    line = np.linspace(points[0], points[-1], len(points))
    # Ends stay where they are when what is smoothed is 0 there.
    return np.asarray(line + gaussian_filter1d(points - line, 1.5, axis=0, mode="constant"))


def straighten(
    image: FloatArray, path: FloatArray, reach: FloatArray, *, closed: bool
) -> tuple[FloatArray, FloatArray]:
    """Return the grey `(m, r)` across each point of a path, and whether it lies in the image."""
    normals = path_normals(path, closed=closed)
    places = np.moveaxis(path[:, None] + reach[:, None] * normals[:, None], -1, 0)
    inside = (
        (places[0] >= 0)
        & (places[0] <= image.shape[0] - 1)
        & (places[1] >= 0)
        & (places[1] <= image.shape[1] - 1)
    )
    return np.asarray(map_coordinates(image, places, order=1, mode="nearest")), np.asarray(inside, float)
