"""What the particles of a class have in common: profiles of their membranes, and how far they lie from the poses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.blocks import ALONG, find_crowded
from verglas.algo.membranes.noise import NoiseSums, make_whitener
from verglas.algo.membranes.particles import (
    CurveMaps,
    Fit,
    Known,
    Region,
    find_region,
    fit_membranes,
    move_basis,
)
from verglas.algo.membranes.profiles import (
    Profile,
    choose_hold,
    count_splines,
    second_differences,
    sum_normal,
    take_off_baseline,
)

FloatArray = npt.NDArray[np.float64]
Transfer = FloatArray
"""`(k, k)` what the microscope makes of the coefficients of a profile."""

_ROUNDS = 3
_FIRST_SPREAD = (2.0, 1.5, 1.0)
_LEAST_SPREAD = 0.03
_TRUST = 0.15
"""Standard deviation of the coefficients of a profile from those before it, of their root mean square."""
_SMOOTH = 0.3


@dataclass(frozen=True, eq=False)
class ClassModel:
    """What is known of the membranes of a class.

    Parameters
    ----------
    maps
        Its curves.
    profiles
        Of each membrane, at the mean scale of the particles; before the transfer function where that is given.
    spread
        `(m, 3)` standard deviation of the moves, pixels.
    power
        Of the noise at evenly spaced frequencies to 1/2, of that of white noise of its variance; none if unknown.
    crowded
        Blocks in which most particles have something else at the membranes, such as a protein.
    """

    maps: CurveMaps
    profiles: tuple[Profile, ...]
    spread: FloatArray
    power: FloatArray | None = None
    crowded: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Particle:
    """An image and where the classification puts it.

    Parameters
    ----------
    image
        `(y, x)`.
    psi_deg, origin_yx
        Pose, as of `find_region`.
    transfers
        Of each membrane; none where the profiles hold the transfer function.
    """

    image: FloatArray
    psi_deg: float
    origin_yx: tuple[float, float]
    transfers: tuple[Transfer, ...] | None = None


def start_model(maps: CurveMaps, leaflets: Sequence[tuple[float, float, float]]) -> ClassModel:
    """Make the model that the search begins with: two Gaussians `(distance, sigma1, sigma2)` for each membrane."""
    profiles = []
    for (distance, sigma1, sigma2), width in zip(leaflets, maps.half_width, strict=True):
        empty = Profile(np.zeros(count_splines(float(width) + 1)))
        x = empty.knots
        grey = np.exp(-0.5 * ((x + distance / 2) / sigma1) ** 2)
        grey += np.exp(-0.5 * ((x - distance / 2) / sigma2) ** 2)
        profiles.append(take_off_baseline(Profile(grey), distance / 2))
    return ClassModel(maps, tuple(profiles), np.tile(_FIRST_SPREAD, (len(profiles), 1)))


def see_profiles(model: ClassModel, particle: Particle) -> tuple[Profile, ...]:
    """Return the profiles as they are in the particle's image."""
    if particle.transfers is None:
        return model.profiles
    return tuple(
        Profile(transfer @ profile.coefficients)
        for transfer, profile in zip(particle.transfers, model.profiles, strict=True)
    )


def fit_particle(
    model: ClassModel, particle: Particle, *, either_sign: bool = False, absolute: bool = False
) -> tuple[Region, FloatArray, Fit]:
    """Return the pixels near the particle's membranes, their grey, and the fit."""
    region = find_region(model.maps, particle.psi_deg, particle.origin_yx)
    values = particle.image.ravel()[region.pixels].astype(float)
    profiles = see_profiles(model, particle)
    whitened = profiles if model.power is None else [_whiten(one, model.power) for one in profiles]
    known = Known(profiles, whitened, model.spread, model.maps.half_width, model.crowded)
    return region, values, fit_membranes(values, region, known, either_sign=either_sign, absolute=absolute)


def _whiten(profile: Profile, power: FloatArray) -> Profile:
    whitener = make_whitener(power, profile.coefficients)
    return profile if whitener is None else Profile(whitener @ profile.coefficients, profile.spacing)


def learn_class(start: ClassModel, particles: Callable[[], Iterator[Particle]]) -> ClassModel:
    """Find the profiles and the scatter of the moves from particles of the class.

    Parameters
    ----------
    start
        From `start_model`.
    particles
        Gives them anew, once a round.
    """
    model = start
    for turn in range(_ROUNDS):
        sums = _Sums(model)
        for particle in particles():
            sums.add(*fit_particle(model, particle, either_sign=not turn), particle)
        model = sums.solve()
    return model


class _Sums:
    """Normal equations of the profiles, and the moves, of all particles."""

    def __init__(self, model: ClassModel) -> None:
        self._model = model
        sizes = [len(profile.coefficients) for profile in model.profiles]
        self._matrices = [np.zeros((size, size)) for size in sizes]
        self._rights = [np.zeros(size) for size in sizes]
        self._scales: list[FloatArray] = []
        self._moves: list[FloatArray] = []
        self._errors: list[FloatArray] = []
        self._noise = NoiseSums(model.maps.box)
        self._rests: list[tuple[FloatArray, FloatArray]] = []

    def add(self, region: Region, values: FloatArray, fit: Fit, particle: Particle) -> None:
        profiles = see_profiles(self._model, particle)
        self._scales.append(fit.scales)
        self._moves.append(fit.moves)
        self._errors.append(fit.move_errors)
        rest = values - fit.membrane - fit.background
        self._noise.add(region.pixels, rest / max(fit.noise, 1e-12), fit.weight)
        precision = 1 / max(fit.noise, 1e-12) ** 2
        self._rests.append((precision * region.blocks.sum(rest), precision * region.blocks.counts))
        for number, profile in enumerate(profiles):
            shift = fit.moves[number] @ move_basis(region.position[number])
            distance = region.distance[number] - shift
            scale = float(fit.scales[number])
            own = rest + scale * profile.evaluate(distance)
            weight = precision * fit.weight
            matrix, right = sum_normal(distance, own, weight, len(profile.coefficients), profile.spacing)
            if particle.transfers is not None:
                transfer = particle.transfers[number]
                matrix, right = transfer.T @ matrix @ transfer, transfer.T @ right
            self._matrices[number] += scale**2 * matrix
            self._rights[number] += scale * right

    def _find_crowded(self) -> npt.NDArray[np.bool_]:
        sums, counts = np.sum(self._rests, axis=0)
        # Beyond the average's box nobody has seen the curve: what does not follow it there is the curve.
        along = (np.arange(counts.shape[1]) + 0.5) * ALONG / (self._model.maps.box / 2) - 2
        seen = (np.abs(along) < 1)[:, None]
        return find_crowded(sums * seen, counts * seen)

    def solve(self) -> ClassModel:
        scales, moves, errors = (np.array(one) for one in (self._scales, self._moves, self._errors))
        profiles = []
        spread = np.empty((len(self._matrices), 3))
        for number, profile in enumerate(self._model.profiles):
            mean = float(scales[:, number].mean())
            old = profile.coefficients
            hold = 1 / (_TRUST**2 * max(float(np.mean(old**2)), 1e-30))
            size = len(old)
            matrix = self._matrices[number]
            rough = second_differences(size)
            matrix = matrix + 1e-9 * np.trace(matrix) / size * np.eye(size)
            smooth = choose_hold(matrix, self._rights[number], rough, hold * _SMOOTH) * rough
            found = np.linalg.solve(matrix + hold * np.eye(size) + smooth, self._rights[number] + hold * old)
            lean = take_off_baseline(Profile(np.asarray(found)), self._model.maps.half_width[number] / 3)
            profiles.append(Profile(lean.coefficients * mean))
            held = self._model.spread[number]
            spread[number] = _estimate_spread(moves[:, number], errors[:, number], held)
        return replace(
            self._model,
            profiles=tuple(profiles),
            spread=spread,
            power=self._noise.solve(),
            crowded=self._find_crowded(),
        )


def _estimate_spread(moves: FloatArray, errors: FloatArray, held: FloatArray) -> FloatArray:
    """Return the standard deviation of the moves by their moments, the prior that held them taken off again.

    With τ the prior's deviation and v the variance that it left, data alone had found m τ² / (τ² - v) with the
    variance v τ² / (τ² - v) for what is m now.
    """
    prior, left = held**2, np.minimum(errors**2, 0.999 * held**2)
    told = prior - left
    excess = (moves**2 * prior**2 - left * prior * told).sum(axis=0) / (told**2).sum(axis=0)
    return np.asarray(np.clip(np.sqrt(np.maximum(excess, 0)), _LEAST_SPREAD, 3.0))
