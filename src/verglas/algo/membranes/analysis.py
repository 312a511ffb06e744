"""Membranes of a 2-D class average: where they lie, how they bend, how far their leaflets are apart."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.curves import Arc
from verglas.algo.membranes.profiles import Leaflets, Profile, fit_leaflets, fit_profile, take_off_baseline
from verglas.algo.membranes.radon import find_membranes, soft_window
from verglas.algo.membranes.shapes import Pixels, Shape, fit_bezier_along, refine_arc
from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]
ShapeName = Literal["auto", "arc", "bezier"]

DISTANCES_ANGSTROM = (24.0, 60.0)
"""Between leaflets, as they are looked for."""

_WIDTH = 1.6
"""To how many leaflet distances a profile reaches, to both sides."""
_LEAST_QUALITY = 0.55
_LEAST_STRENGTH = 0.25
_WINDOW = 0.9


@dataclass(frozen=True, eq=False)
class Membrane:
    """A membrane of an average; lengths in its pixels.

    Parameters
    ----------
    shape
        Its curve.
    profile
        Grey across it, less the density beside it.
    leaflets
        Of the profile.
    quality
        Correlation of the average with curve and profile in the band about the curve.
    """

    shape: Shape
    profile: Profile
    leaflets: Leaflets
    quality: float

    def render(self, shape: tuple[int, int]) -> FloatArray:
        """Return the membrane alone `(y, x)`."""
        points = grid_points(shape)
        distance, _ = self.shape.locate(points, float(max(shape)))
        return self.profile.evaluate(distance).reshape(shape)

    def mask(self, shape: tuple[int, int], edge: float = 3.0) -> FloatArray:
        """Return a mask `(y, x)`: 1 up to a leaflet distance from the curve, with a Gaussian edge beyond."""
        distance, _ = self.shape.locate(grid_points(shape), float(max(shape)))
        over = np.maximum(np.abs(distance) - self.leaflets.distance, 0)
        mask = np.exp(-0.5 * (over / edge) ** 2)
        return np.where(mask < 1e-3, 0.0, mask).reshape(shape)


def grid_points(shape: tuple[int, int]) -> FloatArray:
    """Return the places `(y * x, 2)` of all pixels."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 2).astype(float)


def analyze_average(
    image: npt.NDArray[np.floating], pixel_size_angstrom: float, *, shape: ShapeName = "auto", most: int = 3
) -> list[Membrane]:
    """Find the membranes of an average, the strongest first.

    Parameters
    ----------
    image
        `(y, x)`, of either contrast.
    pixel_size_angstrom
        Side of a pixel.
    shape
        Whether a membrane is an arc or a cubic Bézier curve; `auto` takes the curve where the arc leaves it.
    most
        Up to how many.

    Raises
    ------
    UserError
        When the image is flat or too small for a membrane.
    """
    grey = np.asarray(image, dtype=float)
    low, high = (one / pixel_size_angstrom for one in DISTANCES_ANGSTROM)
    if min(grey.shape) < 4 * low or not grey.std() > 0:
        raise UserError(
            f"a class average of {grey.shape[1]} x {grey.shape[0]} pixels of {pixel_size_angstrom:g} Å is flat or "
            "too small; expected at least 100 Å of membrane"
        )
    window = soft_window((grey.shape[0], grey.shape[1]), _WINDOW * min(grey.shape) / 2)
    grey = (grey - np.median(grey)) / grey.std()
    distances = np.arange(max(low, 3.0), max(high, 5.0) + 0.5, max(1.0, (high - low) / 10))
    found: list[Membrane] = []
    rest = grey
    for _ in range(most):
        one = _find_strongest(rest, window, distances, shape)
        if one is None or not all(_is_another(one, other, window) for other in found):
            break
        found.append(one)
        rest = _take_out(grey, found)
    if len(found) > 1:
        found = _refine_together(grey, window, found)
    return found


def _strength(membrane: Membrane) -> float:
    return abs(membrane.leaflets.height1 + membrane.leaflets.height2)


def _is_another(one: Membrane, other: Membrane, window: FloatArray) -> bool:
    """Tell a further membrane from what one that was found before left: as wide, as strong, elsewhere."""
    path = one.shape.trace(min(window.shape) / 2)
    distance = np.abs(other.shape.locate(path, float(max(window.shape)))[0])
    return bool(
        _strength(one) > _LEAST_STRENGTH * _strength(other)
        and 0.7 < one.leaflets.distance / other.leaflets.distance < 1.4
        and np.median(distance) > other.leaflets.distance
    )


def _find_strongest(
    grey: FloatArray, window: FloatArray, distances: FloatArray, shape: ShapeName
) -> Membrane | None:
    candidates = find_membranes(grey, window, distances)
    tried = []
    for one in candidates:
        half_width = _WIDTH * one.distance
        pixels = _gather(grey, window)
        coarse = refine_arc(one.arc, pixels, half_width, spacing=1.5)
        tried.append((coarse.explained * np.sqrt(max(one.score, 0)), one, coarse, pixels))
    if not tried:
        return None
    _, one, coarse, pixels = max(tried, key=lambda each: each[0])
    half_width = _WIDTH * one.distance
    fitted = refine_arc(coarse.arc, pixels, half_width)
    if shape != "arc":
        bent = fit_bezier_along(
            grey, window, fitted.arc, pixels, distance=one.distance, half_width=half_width, sign=one.sign
        )
        if shape == "bezier" or _leaves(fitted, bent, window):
            fitted = bent
    return _describe(fitted, pixels, one.distance)


def _gather(grey: FloatArray, window: FloatArray) -> Pixels:
    rows, columns = np.nonzero(window > 0.02)
    points = np.stack([rows, columns], axis=1).astype(float)
    return Pixels(points, grey[rows, columns], window[rows, columns])


def _leaves(arc: Shape, bent: Shape, window: FloatArray) -> bool:
    """Tell whether a Bézier curve lies elsewhere than the arc and explains more."""
    path = bent.trace(0.0)
    rows = np.clip(np.rint(path).astype(np.int64), 0, np.array(window.shape) - 1)
    distance = np.abs(arc.arc.locate(path)[0])[window[rows[:, 0], rows[:, 1]] > 0.5]
    unexplained = (1 - bent.explained) / max(1 - arc.explained, 1e-9)
    return len(distance) > 0 and bool(distance.max() > 1.0) and unexplained < 0.9


def _describe(fitted: Shape, pixels: Pixels, distance: float) -> Membrane | None:
    """Measure the leaflets, put the curve into their middle, and judge."""
    try:
        leaflets = fit_leaflets(fitted.profile, distance)
    except ValueError:
        return None
    half_width = _WIDTH * leaflets.distance
    moved = _centre(_move(fitted, leaflets.middle), pixels)
    away, _ = moved.locate(pixels.points_yx, float(np.ptp(pixels.points_yx)))
    weight = pixels.weight * np.clip(half_width - np.abs(away), 0, 1)
    profile = fit_profile(away, pixels.values, weight, half_width)
    leaflets = fit_leaflets(profile, leaflets.distance)
    quality = _correlate(profile.evaluate(away), pixels.values, weight)
    if quality < _LEAST_QUALITY or not _is_bilayer(leaflets, distance):
        return None
    lean = take_off_baseline(profile, leaflets.distance / 2)
    return Membrane(replace(moved, profile=profile, explained=quality**2), lean, leaflets, quality)


def _is_bilayer(leaflets: Leaflets, distance: float) -> bool:
    heights = sorted(abs(one) for one in (leaflets.height1, leaflets.height2))
    return (
        0.6 < leaflets.distance / distance < 1.6
        and max(leaflets.sigma1, leaflets.sigma2) < 0.6 * leaflets.distance
        and heights[0] > 0.25 * heights[1]
    )


def _correlate(model: FloatArray, values: FloatArray, weight: FloatArray) -> float:
    share = weight / weight.sum()
    first, second = model - share @ model, values - share @ values
    return float(share @ (first * second) / np.sqrt((share @ first**2) * (share @ second**2)))


def _move(fitted: Shape, offset: float) -> Shape:
    """Move the curve along its normal."""
    arc = fitted.arc
    centre = np.array(arc.centre_yx) + offset * arc.normal
    kappa = arc.kappa / max(1 + arc.kappa * offset, 0.1)
    moved = Arc((float(centre[0]), float(centre[1])), arc.theta_deg % 180.0, kappa)
    if arc.theta_deg % 360.0 >= 180.0:
        # Half a turn exchanges the sides.
        moved = Arc(moved.centre_yx, moved.theta_deg, -kappa)
    if fitted.control_yx is None:
        return replace(fitted, arc=moved)
    from verglas.algo.membranes.curves import bezier_weights, path_normals

    # A little way to the side is a cubic of the same parameter, but for what nobody sees.
    weights = bezier_weights(np.linspace(0, 1, 100))
    path = weights @ fitted.control_yx
    path = path + offset * path_normals(path, closed=False)
    control = np.asarray(np.linalg.lstsq(weights, path, rcond=None)[0], float)
    return replace(fitted, arc=moved, control_yx=control)


def _centre(fitted: Shape, pixels: Pixels) -> Shape:
    """Put the centre of the arc where it passes nearest to the middle of the image."""
    arc = fitted.arc
    middle = (pixels.points_yx * pixels.weight[:, None]).sum(axis=0) / pixels.weight.sum()
    _, along = arc.locate(middle[None])
    turn = arc.kappa * float(along[0])
    chord = float(along[0]) * np.sinc(turn / np.pi)
    sag = -float(along[0]) * np.sin(turn / 2) * np.sinc(turn / (2 * np.pi))
    centre = np.array(arc.centre_yx) + chord * arc.direction + sag * arc.normal
    # Along the curve its direction turns against the normal for a positive curvature: theta grows.
    theta = arc.theta_deg + np.rad2deg(turn)
    kappa = arc.kappa
    if not 0 <= theta < 180:
        theta, kappa = theta % 180, -kappa
    return replace(fitted, arc=Arc((float(centre[0]), float(centre[1])), float(theta), kappa))


def _take_out(grey: FloatArray, found: list[Membrane]) -> FloatArray:
    rest = grey.copy()
    for one in found:
        rest -= one.render((grey.shape[0], grey.shape[1]))
    return rest


def _refine_together(grey: FloatArray, window: FloatArray, found: list[Membrane]) -> list[Membrane]:
    """Refine each membrane on what the others leave."""
    for number, one in enumerate(found):
        rest = _take_out(grey, found[:number] + found[number + 1 :])
        pixels = _gather(rest, window)
        half_width = _WIDTH * one.leaflets.distance
        if one.shape.control_yx is None:
            fitted = refine_arc(one.shape.arc, pixels, half_width)
        else:
            from verglas.algo.membranes.shapes import refine_bezier

            fitted = refine_bezier(
                one.shape.control_yx, one.shape.arc, pixels, half_width, max(grey.shape) / 2
            )
        found[number] = _describe(fitted, pixels, one.leaflets.distance) or one
    return found
