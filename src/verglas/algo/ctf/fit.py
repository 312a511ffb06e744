"""Defocus of every view of a series, its astigmatism and the hand, from all views together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from verglas.algo.ctf.background import flatten_spectra, ring_weights
from verglas.algo.ctf.search import DefocusGrid, FilterBank, astigmatism_offsets, make_bank, make_rings
from verglas.algo.ctf.spectra import ViewSpectra
from verglas.errors import UserError
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]

LEAST_SIGNIFICANCE = 6.0
"""Standard deviations of noise that the best defocus must reach; of thousands tried, noise reaches about 4."""

LEAST_HAND_SIGNIFICANCE = 4.0
"""Standard deviations by which one hand must be better than the other."""

_ASTIGMATISM_REACH = 1500.0
_PRIOR_FREEDOM = 4.0
_LEAST_SPREAD = 100.0
_NEAR_AXIS = 500.0


@dataclass(frozen=True)
class SearchRange:
    """Where the defocus is looked for, Å.

    Parameters
    ----------
    lowest_angstrom, highest_angstrom
        Of the series' mean.
    view_angstrom
        How far a view may be from the mean.
    """

    lowest_angstrom: float = 5000.0
    highest_angstrom: float = 50000.0
    view_angstrom: float = 3000.0


@dataclass(frozen=True, eq=False)
class SeriesDefocus:
    """What was found.

    Parameters
    ----------
    defocus_angstrom, error_angstrom
        `(n,)` mean defocus of each view at the specimen's centre, and its standard error.
    astigmatism
        `(2,)` a and b of the defocus a cos 2α + b sin 2α along the direction α, in Å, the same in all views.
    significance
        Of the mean defocus, in standard deviations of noise.
    view_score
        `(n,)` of each view, in standard deviations of noise.
    hand, hand_significance
        Hand after which the series was fitted; and by how many standard deviations +1 is better than -1.
    search_defocus_angstrom, search_score
        `(f,)` the first search over the mean defocus.
    gain, gain_score
        `(m,)` score when the slope of the defocus over the field is so many times that which the tilt says,
        its sign after hand +1.
    envelope
        `(k,)` relative strength of the rings.
    """

    defocus_angstrom: FloatArray
    error_angstrom: FloatArray
    astigmatism: FloatArray
    significance: float
    view_score: FloatArray
    hand: int
    hand_significance: float
    search_defocus_angstrom: FloatArray
    search_score: FloatArray
    gain: FloatArray
    gain_score: FloatArray
    envelope: FloatArray

    @property
    def is_found(self) -> bool:
        """Whether there are rings."""
        return self.significance >= LEAST_SIGNIFICANCE

    @property
    def verdict(self) -> int:
        """Hand that the data show: +1, -1, or 0 when they cannot tell."""
        if not self.is_found or abs(self.hand_significance) < LEAST_HAND_SIGNIFICANCE:
            return 0
        return 1 if self.hand_significance > 0 else -1

    @property
    def principal(self) -> tuple[FloatArray, FloatArray, float]:
        """`(n,)` defocus u and v in Å, u the larger, and the angle of u from x in degrees, -90 to 90."""
        half = float(np.hypot(*self.astigmatism))
        angle = math.degrees(0.5 * math.atan2(self.astigmatism[1], self.astigmatism[0]))
        return self.defocus_angstrom + half, self.defocus_angstrom - half, angle


def lowest_visible_defocus(optics: Optics, highest_angstrom: float) -> float:
    """Defocus below which a band that ends at this resolution holds fewer than two zeros of the CTF, Å."""
    square = highest_angstrom**-2
    wavelength = optics.wavelength_angstrom
    zeros = 2 - math.asin(optics.amplitude_contrast) / math.pi
    return zeros / (wavelength * square) + 0.5 * optics.cs_mm * 1e7 * wavelength**2 * square


def estimate_defocus(
    views: Sequence[ViewSpectra], optics: Optics, search: SearchRange, *, hand: int = 1
) -> SeriesDefocus:
    """Find the mean defocus, then the hand, the astigmatism and the defocus of each view.

    Views are joined by a prior: their defoci scatter around a mean by Student's t with four degrees of freedom, whose
    width and centre are found from the series itself, so weak views follow the others and strong ones do not.

    Parameters
    ----------
    views
        Spectra of the views, on the same frequencies.
    optics
        Voltage, Cs and amplitude contrast.
    search
        The range.
    hand
        Used where the data cannot tell.

    Raises
    ------
    UserError
        When the band holds fewer than two zeros of the CTF at any defocus in the range.
    """
    frequency = views[0].frequency
    lowest = max(search.lowest_angstrom, lowest_visible_defocus(optics, 1 / frequency[-1]))
    if lowest >= search.highest_angstrom:
        raise UserError(
            f"frequencies to 1/{1 / frequency[-1]:.1f} Å show two zeros of the CTF only from {lowest / 1e4:.1f} µm "
            f"of defocus on, so none up to {search.highest_angstrom / 1e4:.1f} µm can be measured"
        )
    reach = search.view_angstrom + _ASTIGMATISM_REACH
    reach += max(float(np.abs(view.depth_angstrom).max()) for view in views)
    grid = DefocusGrid(lowest - reach, search.highest_angstrom + reach)
    mean = DefocusGrid(lowest, search.highest_angstrom, 25.0).values
    envelope = np.exp(-25.0 * np.square(frequency))
    banks = [make_bank(view, optics, grid, envelope) for view in views]
    centre, side, _ = _search_mean(banks, mean)
    envelope = _fit_envelope(views, optics, np.full(len(views), centre), side)
    banks = [make_bank(view, optics, grid, envelope) for view in views]
    centre, side, curve = _search_mean(banks, mean)
    fits = {one: _fit_views(banks, centre, one, search) for one in (1, -1)}
    significance = _compare_hands(banks, fits)
    is_told = abs(significance) >= LEAST_HAND_SIGNIFICANCE and curve.max() >= LEAST_SIGNIFICANCE
    chosen = (1 if significance > 0 else -1) if is_told else hand
    fit = fits[chosen]
    gain = np.linspace(-1.6, 1.6, 33)
    return SeriesDefocus(
        defocus_angstrom=fit.defocus,
        error_angstrom=fit.error,
        astigmatism=fit.astigmatism,
        significance=float(curve.max()),
        view_score=_score_views(banks, fit, chosen),
        hand=chosen,
        hand_significance=significance,
        search_defocus_angstrom=mean,
        search_score=curve,
        gain=gain,
        gain_score=np.array([_score_gain(banks, fit, one) for one in gain]),
        envelope=envelope,
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    """Defocus of each view for one hand."""

    defocus: FloatArray
    error: FloatArray
    astigmatism: FloatArray


def _search_mean(banks: list[FilterBank], defocus: FloatArray) -> tuple[float, int, FloatArray]:
    """Best mean defocus, the hand it was found with (0 for none), and the score over all defoci.

    The hand is not known yet: both are tried, and none, with what lies near the axis alone.
    """
    curves = {}
    for side in (0, 1, -1):
        parts = [_near_axis(bank) for bank in banks] if side == 0 else banks
        curves[side] = sum(_score(bank, defocus, side) for bank in parts) / math.sqrt(len(banks))
    side = max(curves, key=lambda one: float(curves[one].max()))
    return float(defocus[curves[side].argmax()]), side, curves[side]


def _near_axis(bank: FilterBank) -> FilterBank:
    height = np.abs(bank.depth_angstrom)
    near = height <= max(_NEAR_AXIS, float(height.min()))
    parts = {
        name: getattr(bank, name)[near]
        for name in ("correlation", "weight", "depth_angstrom", "direction_deg")
    }
    return replace(bank, **parts)


def _score(
    bank: FilterBank, defocus: FloatArray, side: float, astigmatism: FloatArray | None = None
) -> FloatArray:
    """`(d,)` score of a view in standard deviations of noise."""
    return bank.score(defocus, _offsets(bank, side, astigmatism))


def _offsets(bank: FilterBank, side: float, astigmatism: FloatArray | None) -> FloatArray:
    offsets = side * bank.depth_angstrom
    if astigmatism is not None:
        offsets = offsets + astigmatism_offsets(bank.direction_deg, astigmatism)
    return np.asarray(offsets)


def _fit_envelope(views: Sequence[ViewSpectra], optics: Optics, defocus: FloatArray, side: int) -> FloatArray:
    """Find how strong the rings are over frequency, by regression of all views, smoothed; of maximum one."""
    found, possible = (np.zeros(len(views[0].frequency)) for _ in range(2))
    for view, centre in zip(views, defocus, strict=True):
        ripple = flatten_spectra(view).ripple
        rings = make_rings(view, optics, centre + side * view.depth_angstrom).T[:, None]
        found += (view.samples * ripple * rings).sum(axis=(0, 1))
        possible += (view.samples * rings**2).sum(axis=(0, 1))
    width = len(found) / 12
    smooth = gaussian_filter1d(found, width) / np.maximum(gaussian_filter1d(possible, width), 1e-12)
    smooth = np.maximum(smooth, 0.02 * smooth.max())
    return np.asarray(smooth / smooth.max() if smooth.max() > 0 else np.ones_like(smooth))


def _fit_views(banks: list[FilterBank], centre: float, side: int, search: SearchRange) -> _Fit:
    """Alternate between the defocus of each view and the astigmatism of all."""
    astigmatism = np.zeros(2)
    defocus, error = _fit_defocus(banks, centre, side, astigmatism, search.view_angstrom)
    for _ in range(2):
        astigmatism = _fit_astigmatism(banks, defocus, side, astigmatism)
        defocus, error = _fit_defocus(banks, centre, side, astigmatism, search.view_angstrom)
    return _Fit(defocus, error, astigmatism)


def _fit_defocus(
    banks: list[FilterBank], centre: float, side: int, astigmatism: FloatArray, reach: float
) -> tuple[FloatArray, FloatArray]:
    """Posterior mean and standard deviation of each view's defocus, the prior found by expectation-maximisation."""
    steps = np.arange(-reach, reach + 1, 20.0)
    scores = np.array([_score(bank, centre + steps, side, astigmatism) for bank in banks])
    # The strength of a view's rings is unknown; its best value leaves half the squared score.
    likelihood = 0.5 * np.square(np.maximum(scores, 0))
    middle, spread = 0.0, reach / 4
    for _ in range(30):
        deviation = (steps - middle) / spread
        prior = -0.5 * (_PRIOR_FREEDOM + 1) * np.log1p(np.square(deviation) / _PRIOR_FREEDOM)
        posterior = np.exp(likelihood + prior - (likelihood + prior).max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        trust = (_PRIOR_FREEDOM + 1) / (_PRIOR_FREEDOM + np.square(deviation))
        middle = float((posterior * trust * steps).sum() / (posterior * trust).sum())
        variance = float((posterior * trust * np.square(steps - middle)).sum() / len(banks))
        spread = min(max(math.sqrt(variance), _LEAST_SPREAD), reach)
    mean = posterior @ steps
    error = np.sqrt((posterior * np.square(steps - mean[:, None])).sum(axis=1))
    return centre + mean, error


def _fit_astigmatism(
    banks: list[FilterBank], defocus: FloatArray, side: int, start: FloatArray
) -> FloatArray:
    """Maximise the summed score by pattern search, coarse to fine."""

    def total(astigmatism: FloatArray) -> float:
        return sum(
            float(_score(bank, defocus[i : i + 1], side, astigmatism)[0]) for i, bank in enumerate(banks)
        )

    best, score = start, total(start)
    if not start.any():
        ring = np.arange(8) * np.pi / 4
        for radius in (200.0, 400.0, 800.0, 1200.0):
            for turn in ring:
                point = radius * np.array([np.cos(turn), np.sin(turn)])
                if (value := total(point)) > score:
                    best, score = point, value
    step = 160.0
    while step > 4:
        tried = [best + step * np.array(move) for move in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        values = [total(point) if np.hypot(*point) < _ASTIGMATISM_REACH else -np.inf for point in tried]
        if max(values) > score:
            best, score = tried[int(np.argmax(values))], max(values)
        else:
            step /= 2
    return best


def _compare_hands(banks: list[FilterBank], fits: dict[int, _Fit]) -> float:
    """Standard deviations by which hand +1 is better than -1.

    Each hand is taken at its own best defoci. Views and directions are independent, so where neither hand is right,
    the differences are as often of one sign as of the other, and their sum over the root of the sum of their
    squares has a standard deviation of one.
    """
    differences = []
    for i, bank in enumerate(banks):
        parts = {}
        for side, fit in fits.items():
            rows = bank.look_up(fit.defocus[i : i + 1], _offsets(bank, side, fit.astigmatism))[:, 0]
            sectors = len(np.unique(bank.direction_deg))
            parts[side] = rows.reshape(-1, sectors).sum(axis=0)
        differences.append(parts[1] - parts[-1])
    difference = np.array(differences)
    size = float(np.sqrt(np.square(difference).sum()))
    return float(difference.sum()) / size if size > 0 else 0.0


def _score_views(banks: list[FilterBank], fit: _Fit, side: float) -> FloatArray:
    """`(n,)` score of each view at its own defocus."""
    return np.array(
        [
            float(_score(bank, fit.defocus[i : i + 1], side, fit.astigmatism)[0])
            for i, bank in enumerate(banks)
        ]
    )


def _score_gain(banks: list[FilterBank], fit: _Fit, gain: float) -> float:
    """Score of the series with another slope of the defocus, each view free to move a little along with it."""
    moves = np.arange(-300.0, 301.0, 50.0)
    scores = [
        _score(bank, fit.defocus[i] + moves, gain, fit.astigmatism).max() for i, bank in enumerate(banks)
    ]
    return float(np.sum(scores)) / math.sqrt(len(banks))
