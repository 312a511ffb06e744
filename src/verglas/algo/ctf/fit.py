"""Mean defocus, hand, and the defocus of every view of a series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from verglas.algo.ctf.background import flatten_spectra
from verglas.algo.ctf.hand import LEAST_SIGNIFICANCE as LEAST_HAND_SIGNIFICANCE
from verglas.algo.ctf.hand import HandCheck, check_hand, compare_hands
from verglas.algo.ctf.joint import ASTIGMATISM_REACH, ViewFits, fit_views, score_view
from verglas.algo.ctf.search import DefocusGrid, FilterBank, keep_rows, make_bank, make_rings
from verglas.algo.ctf.spectra import ViewSpectra
from verglas.errors import UserError
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]

LEAST_SIGNIFICANCE = 6.0
"""Standard deviations of noise that the best defocus must reach; of thousands tried, noise reaches about 4."""

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
    view_angstrom: float = 5000.0


@dataclass(frozen=True, eq=False)
class SeriesDefocus:
    """What was found.

    Parameters
    ----------
    views
        Defocus and astigmatism of each view.
    view_score
        `(n,)` of each view, in standard deviations of noise.
    significance
        Of the mean defocus, in standard deviations of noise.
    hand
        After which the views were fitted.
    hand_check
        What the field says of it.
    search_defocus_angstrom, search_score
        `(f,)` the first search over the mean defocus.
    envelope
        `(k,)` relative strength of the rings.
    """

    views: ViewFits
    view_score: FloatArray
    significance: float
    hand: int
    hand_check: HandCheck
    search_defocus_angstrom: FloatArray
    search_score: FloatArray
    envelope: FloatArray

    @property
    def is_found(self) -> bool:
        """Whether there are rings."""
        return self.significance >= LEAST_SIGNIFICANCE

    @property
    def verdict(self) -> int:
        """Hand that the data show: +1, -1, or 0 when they cannot tell."""
        return self.hand_check.verdict if self.is_found else 0

    @property
    def principal(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """`(n,)` defocus u and v in Å, u the larger, and the angle of u from x in degrees, -90 to 90."""
        a, b = self.views.astigmatism.T
        half, mean = np.hypot(a, b), self.views.defocus_angstrom
        return mean + half, mean - half, np.rad2deg(0.5 * np.arctan2(b, a))


def lowest_visible_defocus(optics: Optics, highest_angstrom: float) -> float:
    """Defocus below which a band that ends at this resolution holds fewer than two zeros of the CTF, Å."""
    square = highest_angstrom**-2
    wavelength = optics.wavelength_angstrom
    zeros = 2 - math.asin(optics.amplitude_contrast) / math.pi
    return zeros / (wavelength * square) + 0.5 * optics.cs_mm * 1e7 * wavelength**2 * square


def limit_search(search: SearchRange, optics: Optics, highest_angstrom: float) -> float:
    """Find the lowest defocus of the search that a band to this resolution can show, Å.

    Raises
    ------
    UserError
        When there is none.
    """
    lowest = max(search.lowest_angstrom, lowest_visible_defocus(optics, highest_angstrom))
    if lowest >= search.highest_angstrom:
        raise UserError(
            f"frequencies to 1/{highest_angstrom:.1f} Å show two zeros of the CTF only from {lowest / 1e4:.1f} µm of "
            f"defocus on, so none up to {search.highest_angstrom / 1e4:.1f} µm can be measured"
        )
    return lowest


def estimate_defocus(
    spectra: Sequence[ViewSpectra],
    tilt_deg: FloatArray,
    optics: Optics,
    search: SearchRange,
    *,
    hand: int = 1,
) -> SeriesDefocus:
    """Find the mean defocus, then the hand, the astigmatism and the defocus of each view.

    Parameters
    ----------
    spectra
        Of the views, on the same frequencies.
    tilt_deg
        `(n,)` of the views.
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
    frequency = spectra[0].frequency
    lowest = limit_search(search, optics, float(1 / frequency[-1]))
    reach = search.view_angstrom + ASTIGMATISM_REACH
    reach += max(float(np.abs(view.depth_angstrom).max()) for view in spectra)
    grid = DefocusGrid(lowest - reach, search.highest_angstrom + reach)
    tried = DefocusGrid(lowest, search.highest_angstrom, 25.0).values
    envelope = np.exp(-25.0 * np.square(frequency))
    banks = [make_bank(view, optics, grid, envelope) for view in spectra]
    centre, side, _ = _search_mean(banks, tried)
    envelope = _fit_envelope(spectra, optics, centre, side)
    banks = [make_bank(view, optics, grid, envelope) for view in spectra]
    centre, _, curve = _search_mean(banks, tried)
    fits = {one: fit_views(banks, tilt_deg, centre, one, search.view_angstrom) for one in (1, -1)}
    told = compare_hands(banks, fits)
    is_told = abs(told) >= LEAST_HAND_SIGNIFICANCE and curve.max() >= LEAST_SIGNIFICANCE
    chosen = (1 if told > 0 else -1) if is_told else hand
    views = fits[chosen]
    return SeriesDefocus(
        views=views,
        view_score=_score_views(banks, views, chosen),
        significance=float(curve.max()),
        hand=chosen,
        hand_check=check_hand(banks, views, told),
        search_defocus_angstrom=tried,
        search_score=curve,
        envelope=envelope,
    )


def _search_mean(banks: list[FilterBank], defocus: FloatArray) -> tuple[float, int, FloatArray]:
    """Best mean defocus, the hand it was found with (0 for none), and the score over all defoci.

    The hand is not known yet: both are tried, and none, with what lies near the axis alone.
    """
    none = np.zeros(2)
    curves: dict[int, FloatArray] = {}
    for side in (0, 1, -1):
        parts = [_near_axis(bank) for bank in banks] if side == 0 else banks
        scores = np.array([score_view(bank, defocus, side, none) for bank in parts])
        curves[side] = scores.sum(axis=0) / math.sqrt(len(banks))
    side = max(curves, key=lambda one: float(curves[one].max()))
    return float(defocus[curves[side].argmax()]), side, curves[side]


def _near_axis(bank: FilterBank) -> FilterBank:
    height = np.abs(bank.depth_angstrom)
    return keep_rows(bank, height <= max(_NEAR_AXIS, float(height.min())))


def _fit_envelope(spectra: Sequence[ViewSpectra], optics: Optics, centre: float, side: int) -> FloatArray:
    """Find how strong the rings are over frequency, by regression of all views, smoothed; of maximum one."""
    found, possible = (np.zeros(len(spectra[0].frequency)) for _ in range(2))
    for view in spectra:
        ripple = flatten_spectra(view).ripple
        rings = make_rings(view, optics, centre + side * view.depth_angstrom).T[:, None]
        found += (view.samples * ripple * rings).sum(axis=(0, 1))
        possible += (view.samples * rings**2).sum(axis=(0, 1))
    width = len(found) / 12
    smooth = gaussian_filter1d(found, width) / np.maximum(gaussian_filter1d(possible, width), 1e-12)
    smooth = np.maximum(smooth, 0.02 * smooth.max())
    return np.asarray(smooth / smooth.max() if smooth.max() > 0 else np.ones_like(smooth))


def _score_views(banks: list[FilterBank], views: ViewFits, side: float) -> FloatArray:
    """`(n,)` score of each view at its own defocus."""
    return np.array(
        [
            float(score_view(bank, views.defocus_angstrom[i : i + 1], side, views.astigmatism[i])[0])
            for i, bank in enumerate(banks)
        ]
    )
