"""How far the rings of an image can be followed, how thick the specimen is, and what is wrong with the image."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d

from verglas.algo.ctf.background import flatten_spectra
from verglas.algo.ctf.micrograph import (
    ImageDefocus,
    ImageSearch,
    blur_by_tilt,
    estimate_image,
    ring_strengths,
    sum_rings,
)
from verglas.algo.ctf.profile import Profile, stretch_rows, without_background
from verglas.algo.ctf.search import astigmatism_offsets, make_rings
from verglas.algo.ctf.spectra import CellSpectra, ViewSpectra, end_band
from verglas.algo.ctf.thickness import Path, measure_path
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]

LEAST_CORRELATION = 0.5
"""Correlation of data and rings down to which a fit holds."""

ICE_RING_ANGSTROM = (3.95, 3.6)
"""Where crystalline ice has its strongest rings."""

_NEAR_NODE = 0.25  # of what lies between two nodes: rings are too weak there to be judged


@dataclass(frozen=True, eq=False)
class ImageQuality:
    """What is told of a fit.

    Parameters
    ----------
    profile
        All rings brought to the defocus at the centre, to the end of what was measured.
    correlation
        `(k,)` of data and rings about each frequency.
    resolution_angstrom
        Where the correlation falls below a half.
    merit
        Correlation of data and fit over the whole of the rings, -1 to 1.
    ice_ring
        By how much the power at the rings of crystalline ice exceeds that beside them, of the background; none
        where they were not measured.
    anisotropy, anisotropy_error
        By which share rings are weaker in one direction than on average, as drift makes them.
    path
        The way through the specimen along the beam, where the rings vanish and come back inverted; none where they
        do not.
    """

    profile: Profile
    correlation: FloatArray
    resolution_angstrom: float
    merit: float
    ice_ring: float | None
    anisotropy: float
    anisotropy_error: float
    path: Path | None

    def tell_thickness(self, found: ImageDefocus) -> tuple[float | None, float | None]:
        """Thickness of the specimen and its standard error, Å: of a tilted one across it, not along the beam."""
        if self.path is None:
            return None, None
        tilt, error = (math.radians(angle) for angle in (found.tilt_deg, found.tilt_error_deg))
        share = math.cos(tilt)
        spread = math.hypot(
            share * self.path.error_angstrom, math.sin(tilt) * error * self.path.length_angstrom
        )
        return share * self.path.length_angstrom, spread


def judge_image(
    cells: CellSpectra, optics: Optics, found: ImageDefocus, path: Path | None = None
) -> ImageQuality:
    """Measure how good a fit is.

    Parameters
    ----------
    cells
        Spectra, to frequencies beyond those of the fit.
    optics
        Voltage, Cs and amplitude contrast.
    found
        The fit.
    path
        What the rings say of the specimen's thickness.
    """
    spectra = cells.spectra
    strength = _fit_strength(spectra, optics, found) if path is None else path.strength
    profile, correlation = _make_profile(spectra, optics, found, strength)
    end = _find_end(profile, correlation, _list_near_nodes(profile.frequency, optics, path))
    fitted = profile.frequency <= max(1 / end, profile.frequency[min(20, len(profile.frequency) - 1)])
    merit = _correlate(
        profile.ripple[fitted], profile.fit[fitted], profile.frequency[fitted], np.ones((1, fitted.sum()))
    )
    anisotropy, anisotropy_error = _measure_anisotropy(spectra, optics, found, end, np.sign(strength))
    return ImageQuality(
        profile,
        correlation,
        end,
        float(merit[0]),
        _measure_ice_ring(spectra),
        anisotropy,
        anisotropy_error,
        path,
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a fit can be used.

    Parameters
    ----------
    confidence
        0 to 1; below a half the defocus may be wrong.
    faults
        What speaks against the image or the fit, in words.
    """

    confidence: float
    faults: tuple[str, ...]


def give_verdict(found: ImageDefocus, quality: ImageQuality) -> Verdict:
    """Judge a fit by what it reaches beside noise and beside other answers."""
    faults = []
    signal = _rise(found.significance, 5.0, 9.0)
    lead = _rise(1 - found.rival_significance / max(found.significance, 1e-9), 0.0, 0.2)
    agreement = _rise(quality.merit, 0.2, 0.6)
    if signal < 0.5:
        faults.append(f"the rings stand out by only {found.significance:.1f} standard deviations of noise")
    if lead < 0.5:
        faults.append("another defocus fits nearly as well")
    if agreement < 0.5:
        faults.append(f"data and fit correlate by only {quality.merit:.2f}")
    if quality.anisotropy > 0.3 and quality.anisotropy > 3 * quality.anisotropy_error:
        faults.append(
            f"the rings are weaker in one direction by {quality.anisotropy:.0%}, as drift makes them"
        )
    if quality.ice_ring is not None and quality.ice_ring > 0.5:
        faults.append(f"there is a ring of crystalline ice, {quality.ice_ring:.0%} above the background")
    return Verdict(float(signal * lead * agreement), tuple(faults))


def _rise(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def _fit_strength(spectra: ViewSpectra, optics: Optics, found: ImageDefocus) -> FloatArray:
    """`(k,)` strength of the rings of a specimen without nodes: the likeliest of those that fall off."""
    total, possible = sum_rings(spectra, optics, found.row_defocus(), found.phase_shift_deg)
    falls = ring_strengths(spectra.frequency)
    norm = np.maximum(falls**2 @ possible, 1e-12)
    share = np.maximum(falls @ total, 0)
    best = int((share**2 / norm).argmax())
    return np.asarray(share[best] / norm[best] * falls[best])


def _make_profile(
    spectra: ViewSpectra, optics: Optics, found: ImageDefocus, strength: FloatArray
) -> tuple[Profile, FloatArray]:
    u, v, _ = found.principal
    mean, direction = (u + v) / 2, spectra.direction_deg
    own = found.row_defocus().reshape(len(spectra.power), -1)
    flat = flatten_spectra(spectra)
    level = stretch_rows(spectra, optics, own, np.full(len(direction), mean))
    weight = level.weight.sum(axis=0)
    curve = np.where(weight > 0, level.total.sum(axis=0) / np.maximum(weight, 1e-12), 0.0)
    rings = make_rings(spectra, optics, np.array([mean]), found.phase_shift_deg)[:, 0]
    # What could be background is no part of either curve.
    curve, fit = (without_background(one, flat.basis, spectra.frequency) for one in (curve, strength * rings))
    aims = mean + astigmatism_offsets(direction, found.astigmatism)
    background = flat.background.mean(axis=0)
    profile = Profile(
        frequency=spectra.frequency,
        power=background * (1 + curve),
        background=background,
        ripple=curve,
        fit=fit,
        direction_deg=direction,
        ripple_2d=stretch_rows(spectra, optics, own, aims).mean,
        fit_2d=strength * make_rings(spectra, optics, aims, found.phase_shift_deg).T,
    )
    return profile, _correlate_locally(profile, mean, np.sign(strength) * rings, optics)


def _correlate_locally(profile: Profile, defocus: float, rings: FloatArray, optics: Optics) -> FloatArray:
    """Correlation about each frequency, over two periods of the rings there or more."""
    frequency = profile.frequency
    slope = 2 * optics.wavelength_angstrom * defocus * frequency
    slope -= 2 * optics.cs_mm * 1e7 * optics.wavelength_angstrom**3 * frequency**3
    half = np.clip(1 / np.maximum(np.abs(slope), 1e-9), 6 * (frequency[1] - frequency[0]), 0.04)
    near = (np.abs(frequency - frequency[:, None]) <= half[:, None]).astype(float)
    return _correlate(profile.ripple, rings, np.ones_like(frequency), near)


def _correlate(one: FloatArray, other: FloatArray, weight: FloatArray, near: FloatArray) -> FloatArray:
    """Pearson's correlation of two curves `(k,)` in each of some ranges `(r, k)`."""
    share = near * weight
    share = share / share.sum(axis=1, keepdims=True)
    first, second = (curve - (share @ curve)[:, None] for curve in (one, other))
    size = np.sqrt((share * first**2).sum(axis=1) * (share * second**2).sum(axis=1))
    return np.asarray((share * first * second).sum(axis=1) / np.maximum(size, 1e-30))


def _list_near_nodes(frequency: FloatArray, optics: Optics, path: Path | None) -> npt.NDArray[np.bool_]:
    """`(k,)` where the rings of a thick specimen vanish."""
    if path is None:
        return np.zeros(len(frequency), dtype=bool)
    place = optics.wavelength_angstrom * np.square(frequency) * path.length_angstrom
    return np.asarray((np.abs(place - np.round(place)) < _NEAR_NODE) & (place > 0.5))


def _find_end(profile: Profile, correlation: FloatArray, is_near_node: npt.NDArray[np.bool_]) -> float:
    """Resolution at which the correlation falls below a half for good part of a ring, nodes left out."""
    smooth = uniform_filter1d(correlation, 5, mode="nearest")
    good = smooth >= LEAST_CORRELATION
    # The first rings often are not what they should: the way up to the best of them is not judged.
    start = int(smooth[: max(3, len(smooth) // 3)].argmax())
    bad = np.flatnonzero(~(good | is_near_node)[start:])
    end = start + (int(bad[0]) if len(bad) else len(good) - start)
    seen = np.flatnonzero(good[start:end])
    last = start + (int(seen[-1]) if len(seen) else -1)
    return float(1 / profile.frequency[max(last, 0)])


def _measure_anisotropy(
    spectra: ViewSpectra, optics: Optics, found: ImageDefocus, end_angstrom: float, sign: FloatArray
) -> tuple[float, float]:
    """How much the strength of the rings varies over the directions, in the upper half of what shows rings."""
    top = 1 / end_angstrom
    used = (spectra.frequency <= top) & (
        spectra.frequency >= spectra.frequency[0] + 0.5 * (top - spectra.frequency[0])
    )
    rings = make_rings(spectra, optics, found.row_defocus(), found.phase_shift_deg).T
    rings = (sign * rings).reshape(spectra.power.shape)
    weighted = (spectra.samples * rings)[..., used]
    total = (weighted * flatten_spectra(spectra).ripple[..., used]).sum(axis=(0, 2))
    possible = (weighted * rings[..., used]).sum(axis=(0, 2))
    turn = np.deg2rad(2 * spectra.direction_deg)
    terms = np.stack([np.ones_like(turn), np.cos(turn), np.sin(turn)], axis=1)
    inverse = np.linalg.inv((terms * possible[:, None]).T @ terms + 1e-9 * np.eye(3))
    level, a, b = inverse @ terms.T @ total
    if level <= 0:
        return 0.0, 1.0
    return float(np.hypot(a, b) / level), float(np.sqrt(inverse[1, 1] + inverse[2, 2]) / level)


def _measure_ice_ring(spectra: ViewSpectra) -> float | None:
    """Largest excess of any direction at the rings of ice over what lies beside them."""
    low, high = (1 / value for value in ICE_RING_ANGSTROM)
    frequency = spectra.frequency
    if frequency[-1] < high:
        return None
    weight = spectra.samples.sum(axis=0)
    power = (spectra.power * spectra.samples).sum(axis=0) / np.maximum(weight, 1e-9)
    inside = (frequency >= low) & (frequency <= high)
    beside = (np.abs(frequency - (low + high) / 2) < 1.5 * (high - low)) & ~inside
    level = np.median(power[:, beside], axis=1)
    peak = uniform_filter1d(power, 3, axis=1)[:, inside].max(axis=1)
    return float((peak / np.maximum(level, 1e-30)).max() - 1)


def fit_and_judge(
    cells: CellSpectra, optics: Optics, search: ImageSearch, highest_angstrom: float
) -> tuple[ImageDefocus, ImageQuality, Verdict]:
    """Fit the defocus of an image with frequencies to some resolution in Å, and judge it with all.

    Raises
    ------
    UserError
        When the band holds fewer than two zeros of the CTF at any defocus in the range.
    """
    fitted = end_band(cells, highest_angstrom)
    found = estimate_image(fitted, optics, search)
    path = _see_path(cells, optics, found)
    if path is not None:
        found = estimate_image(fitted, optics, search, path.strength)
        path = _see_path(cells, optics, found)
    quality = judge_image(blur_by_tilt(cells, found.model, found.fit), optics, found, path)
    return found, quality, give_verdict(found, quality)


def _see_path(cells: CellSpectra, optics: Optics, found: ImageDefocus) -> Path | None:
    spectra = blur_by_tilt(cells, found.model, found.fit).spectra
    return measure_path(spectra, optics, found.row_defocus(), found.phase_shift_deg)
