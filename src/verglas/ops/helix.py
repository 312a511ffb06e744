"""Tubes whose subunits lie on a helical lattice: where the tube is, its surface unrolled, and the lattice."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.optimize import minimize

from verglas.errors import UserError
from verglas.ops.fft import fast_size

FloatArray = npt.NDArray[np.floating[Any]]
ComplexArray = npt.NDArray[np.complexfloating[Any, Any]]

_COARSE_VOXELS = 64
_STEP_DEG = 6.0
_SMALLEST = 2.5
_KEPT = 3
_SHELLS = np.array([1.0, 0.4])
_ANGLES = 360
_SPACING = 0.5
_PADDING = 4
_FEWEST_STRANDS = 5
_MOST_STARTS = 8


@dataclass(frozen=True, eq=False)
class Tube:
    """A straight tube in a volume.

    Parameters
    ----------
    centre
        `(3,)` xyz of a point on its axis, voxels from index 0.
    direction
        `(3,)` xyz, along the axis, length 1.
    radius
        Of the middle of its wall, voxels.
    contrast
        By how much the wall is denser than what it holds, in the volume's deviations.
    """

    centre: FloatArray
    direction: FloatArray
    radius: float
    contrast: float

    @property
    def across(self) -> tuple[FloatArray, FloatArray]:
        """Two directions across the axis; the second after the first, right-handed about the axis."""
        helper = np.eye(3)[np.abs(self.direction).argmin()]
        first = np.cross(self.direction, helper)
        first /= np.linalg.norm(first)
        return first, np.cross(self.direction, first)


@dataclass(frozen=True, eq=False)
class Lattice:
    """What the transform of an unrolled tube tells of its lattice.

    Parameters
    ----------
    repeat
        Of the subunits along a strand, voxels.
    repeat_power
        Of that layer line, over the median of those about it.
    starts
        Order of the strongest helix of the layer line: the number of its starts; positive where it is right-handed
        in the volume as it lies.
    strands
        Number of strands along the axis.
    equator, layer_line
        Power over the background, by the order 0, 1, 2, ... and by the order -n to n.
    spectrum
        `(f, m)` power, both axes shifted so that 0 is in the middle.
    frequency
        `(f,)` cycles a voxel along the axis.
    """

    repeat: float
    repeat_power: float
    starts: int
    strands: int
    equator: FloatArray
    layer_line: FloatArray
    spectrum: FloatArray
    frequency: FloatArray

    def rank_strands(self) -> list[tuple[int, float]]:
        """Numbers of strands, best first, and the geometric mean of the powers that speak for each.

        n strands put power on the equator at order n, and on the layer line, beside the order s of its strongest
        helix, at s - n, or at s + n where s is negative.
        """
        middle = len(self.layer_line) // 2
        sign = 1 if self.starts > 0 else -1
        found = [
            (n, math.sqrt(self.equator[n] * self.layer_line[middle + self.starts - sign * n]))
            for n in range(_FEWEST_STRANDS, len(self.equator) - _MOST_STARTS)
        ]
        return sorted(found, key=lambda one: -one[1])


def find_tube(volume: FloatArray, largest_radius: float | None = None) -> Tube:
    """Find the straight tube with the densest wall.

    The volume is summed along many directions; a tube seen along its axis is a ring, and rings of several radii are
    looked for. The best are refined by how much denser their walls are than what they hold.

    Parameters
    ----------
    volume
        `(z, y, x)`, dense bright.
    largest_radius
        Voxels; half of the middle side of the volume when not given.

    Raises
    ------
    UserError
        When the volume is flat.
    """
    spread = float(volume.std())
    if not spread > 0:
        raise UserError("a volume of constant density holds no tube; expected a map with one")
    # Gold and other extremes would draw any fit to them.
    values = np.clip((volume - volume.mean()) / spread, -3, 3)
    factor = min(1.0, _COARSE_VOXELS / max(volume.shape))
    coarse = zoom(gaussian_filter(values, 0.5 / factor), factor, order=1)
    largest = (largest_radius or sorted(volume.shape)[1] / 2) * factor
    side = fast_size(math.ceil(np.linalg.norm(coarse.shape)) + 2)
    rings = _make_rings(np.arange(_SMALLEST, max(largest, _SMALLEST) + 0.5), side)
    candidates = [_find_ring(coarse, direction, rings, side) for direction in _spread_directions()]
    candidates.sort(key=lambda one: -one[0])
    smooth = gaussian_filter(values, 1.0)
    shape = np.array(coarse.shape[::-1])
    scale = (np.array(volume.shape[::-1]) - 1) / np.maximum(shape - 1, 1)
    tubes = [
        _refine(smooth, Tube(centre * scale, direction, radius / factor, score))
        for score, centre, direction, radius in candidates[:_KEPT]
    ]
    return max(tubes, key=lambda one: one.contrast)


def _spread_directions() -> FloatArray:
    """Directions of half a sphere, on a golden spiral."""
    count = math.ceil(2 * math.pi / math.radians(_STEP_DEG) ** 2)
    place = np.arange(count)
    z, turn = (place + 0.5) / count, place * math.pi * (3 - math.sqrt(5))
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=1)


@dataclass(frozen=True, eq=False)
class _Ring:
    """Transforms of a ring and of what it holds, on a square frame."""

    radius: float
    wall: ComplexArray
    hollow: ComplexArray


def _make_rings(radii: FloatArray, side: int) -> list[_Ring]:
    axis = np.fft.fftfreq(side, 1 / side)
    grid = np.hypot(axis[:, None], axis)
    return [
        _Ring(
            float(radius),
            np.fft.rfft2(np.clip(1.5 - np.abs(grid - radius), 0, 1)),
            np.fft.rfft2(np.clip(radius - 1.5 - grid, 0, 1)),
        )
        for radius in radii
    ]


def _find_ring(
    values: FloatArray, direction: FloatArray, rings: list[_Ring], side: int
) -> tuple[float, FloatArray, FloatArray, float]:
    """Score, centre, direction and radius of the best ring of a volume that is summed along a direction."""
    first, second = Tube(np.zeros(3), direction, 0.0, 0.0).across
    middle = (np.array(values.shape[::-1]) - 1) / 2
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in values.shape)
    u, v = (
        np.rint(x * one[0] + y[:, None] * one[1] + z[:, None, None] * one[2]).astype(int)
        for one in (first, second)
    )
    cells = (((u + side // 2) * side) + v + side // 2).reshape(-1)
    images = [
        np.fft.rfft2(np.bincount(cells, weights, side * side).reshape(side, side))
        for weights in (values.reshape(-1), None)
    ]
    best = (-math.inf, np.zeros(3), direction, 0.0)
    for ring in rings:
        total, weight, inside, count = (
            np.fft.irfft2(image * kernel, s=(side, side))
            for kernel in (ring.wall, ring.hollow)
            for image in images
        )
        # A ring that is mostly outside the volume would be of few voxels.
        enough = weight > 0.5 * weight.max()
        contrast = total / weight.clip(1) - inside / count.clip(1)
        score = np.where(enough, contrast * np.sqrt(weight.clip(0)), -math.inf)
        place = np.unravel_index(score.argmax(), score.shape)
        if score[place] > best[0]:
            offset = (place[0] - side // 2) * first + (place[1] - side // 2) * second
            best = (float(score[place]), middle + offset, direction, ring.radius)
    return best


def _refine(smooth: FloatArray, tube: Tube) -> Tube:
    """Move, turn and widen a tube to the densest wall."""
    first, second = tube.across
    length = _length_inside(smooth.shape, tube) / 2
    places = np.arange(-length, length, 2.0)
    angles = np.deg2rad(np.arange(0, 360, 10.0))

    def make(values: FloatArray) -> Tube:
        direction = tube.direction + (values[2] * first + values[3] * second) / length
        return Tube(
            tube.centre + values[0] * first + values[1] * second,
            direction / np.linalg.norm(direction),
            tube.radius + values[4],
            0.0,
        )

    def cost(values: FloatArray) -> float:
        one = make(values)
        if one.radius < 2:
            return 0.0
        wall, hollow = np.moveaxis(_sample(smooth, one, places, angles, one.radius * _SHELLS), -1, 0)
        missing = np.isnan(wall).mean()
        if missing > 0.6:
            return 0.0
        # A strand of the wall is denser than the wall, but not hollow.
        return float((np.nanmean(hollow) - np.nanmean(wall)) * (1 - missing))

    simplex = np.vstack([np.zeros(5), 2.0 * np.eye(5)])
    found = minimize(
        cost, np.zeros(5), method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": 400}
    )
    best = make(found.x)
    return Tube(best.centre, best.direction, best.radius, -float(found.fun))


def _length_inside(shape: tuple[int, ...], tube: Tube) -> float:
    """Length of the axis within a volume, voxels."""
    places = np.arange(-max(shape) * 2, max(shape) * 2, 0.5)
    points = tube.centre + places[:, None] * tube.direction
    inside = np.all((points >= 0) & (points <= np.array(shape[::-1]) - 1), axis=1)
    return max(4.0, float(inside.sum()) / 2)


def _sample(
    values: FloatArray, tube: Tube, places: FloatArray, angles: FloatArray, radii: FloatArray
) -> FloatArray:
    """`(places, angles, radii)` of the volume about the axis; NaN outside."""
    first, second = tube.across
    around = np.cos(angles)[:, None] * first + np.sin(angles)[:, None] * second
    points = (
        tube.centre
        + places[:, None, None, None] * tube.direction
        + radii[None, None, :, None] * around[None, :, None]
    )
    sampled: FloatArray = map_coordinates(
        values, np.moveaxis(points[..., ::-1], -1, 0), order=1, mode="constant", cval=np.nan
    )
    return sampled


def unroll_tube(volume: FloatArray, tube: Tube) -> FloatArray:
    """Unroll the wall of a tube, 0.4 of its radius thick.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    tube
        Where it is.

    Returns
    -------
    ndarray
        `(s, 360)` mean density; half voxels along the axis, degrees about it, right-handed; NaN outside.
    """
    length = _length_inside(volume.shape, tube) / 2
    middle = _middle_inside(volume.shape, tube)
    places = middle + np.arange(-length, length, _SPACING)
    half = 0.2 * tube.radius
    radii = np.arange(tube.radius - half, tube.radius + half + 0.01, 0.5)
    angles = np.deg2rad(np.arange(_ANGLES))
    shells = np.stack(
        [_sample(volume, tube, places, angles, radii[i : i + 1])[..., 0] for i in range(len(radii))]
    )
    seen = np.isfinite(shells)
    mean = np.where(seen, shells, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return np.where(seen.any(axis=0), mean, np.nan)


def _middle_inside(shape: tuple[int, ...], tube: Tube) -> float:
    """Place on the axis, from the tube's centre, in the middle of what lies within the volume."""
    places = np.arange(-max(shape) * 2, max(shape) * 2, 0.5)
    points = tube.centre + places[:, None] * tube.direction
    inside = np.all((points >= 0) & (points <= np.array(shape[::-1]) - 1), axis=1)
    return float(places[inside].mean()) if inside.any() else 0.0


def read_lattice(unrolled: FloatArray, shortest: float, longest: float) -> Lattice:
    """Read the lattice off the transform of an unrolled tube.

    Strands along the axis make the equator's peak at their number; the repeat along them makes a layer line, with
    peaks at the numbers of starts of the helices through its subunits (Cochran, Crick & Vand 1952). Both must agree
    on the number of strands. A missing wedge takes the tube's sides away and splits each peak into orders two
    apart: of these the two together choose.

    Parameters
    ----------
    unrolled
        `(s, 360)` of `unroll_tube`.
    shortest, longest
        Between which the repeat lies, voxels.

    Raises
    ------
    UserError
        When the tube is too short for the repeat.
    """
    count = len(unrolled)
    if not 2 * _SPACING < shortest < longest or count * _SPACING < 4 * longest:
        raise UserError(
            f"a repeat of {shortest:.3g} to {longest:.3g} voxels needs a tube of {4 * longest:.3g} voxels at least; "
            f"got {count * _SPACING:.4g}"
        )
    seen = np.isfinite(unrolled)
    flat = np.where(seen, unrolled - np.nanmean(unrolled), 0.0) * np.hanning(count)[:, None]
    power = np.abs(np.fft.fft2(flat, s=(_PADDING * count, _ANGLES))) ** 2
    frequency = np.fft.fftfreq(_PADDING * count, _SPACING)
    order = np.fft.fftfreq(_ANGLES, 1 / _ANGLES).astype(int)
    most = 24 + _MOST_STARTS
    background = float(np.median(power[np.abs(frequency) < 1 / shortest][:, np.abs(order) <= most]))
    band = np.flatnonzero((frequency > 1 / longest) & (frequency < 1 / shortest))
    rows = power[band][:, np.abs(order) <= most].sum(axis=1)
    line = int(band[rows.argmax()])
    layer = power[line][np.arange(-most, most + 1)] / background
    # Along e^(-2πi f s) e^(-i m φ), crests of m φ = -2π f s turn left-handed for positive m.
    layer = layer[::-1]
    few = np.arange(-_MOST_STARTS, _MOST_STARTS + 1)
    starts = int(few[layer[most + few].argmax()])
    near = np.abs(frequency) < 0.5 / (count * _SPACING)
    equator = power[near][:, :most].max(axis=0) / background
    lattice = Lattice(
        repeat=float(1 / frequency[line]),
        repeat_power=float(rows.max() / np.median(rows)),
        starts=starts,
        strands=0,
        equator=equator,
        layer_line=layer,
        spectrum=np.fft.fftshift(power) / background,
        frequency=np.fft.fftshift(frequency),
    )
    return Lattice(**{**vars(lattice), "strands": lattice.rank_strands()[0][0]})
