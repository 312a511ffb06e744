"""How far the rings of an image can be followed, how thick the specimen is, and what is wrong with the image."""

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
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]

LEAST_CORRELATION = 0.5
"""Correlation of data and rings down to which a fit holds."""

ICE_RING_ANGSTROM = (3.95, 3.6)
"""Where crystalline ice has its strongest rings."""

_LEAST_THICKNESS_GAIN = 12.5  # of the logarithm of the likelihood: five standard deviations
_THICKEST = 8000.0


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
    thickness_angstrom, thickness_error_angstrom
        Of the specimen along the beam, where the rings vanish and come back inverted; none where they do not.
    """

    profile: Profile
    correlation: FloatArray
    resolution_angstrom: float
    merit: float
    ice_ring: float | None
    anisotropy: float
    anisotropy_error: float
    thickness_angstrom: float | None
    thickness_error_angstrom: float | None


def judge_image(cells: CellSpectra, optics: Optics, found: ImageDefocus) -> ImageQuality:
    """Measure how good a fit is.

    Parameters
    ----------
    cells
        Spectra, to frequencies beyond those of the fit.
    optics
        Voltage, Cs and amplitude contrast.
    found
        The fit.
    """
    spectra = cells.spectra
    thickness, error, strength = measure_thickness(spectra, optics, found)
    profile, correlation = _make_profile(spectra, optics, found, strength)
    end = _find_end(profile, correlation, found, optics)
    fitted = profile.frequency <= max(1 / end, profile.frequency[min(20, len(profile.frequency) - 1)])
    merit = _correlate(
        profile.ripple[fitted], profile.fit[fitted], profile.frequency[fitted], np.ones((1, fitted.sum()))
    )
    anisotropy, anisotropy_error = _measure_anisotropy(spectra, optics, found, end)
    return ImageQuality(
        profile,
        correlation,
        end,
        float(merit[0]),
        _measure_ice_ring(spectra),
        anisotropy,
        anisotropy_error,
        thickness,
        error,
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


def measure_thickness(
    spectra: ViewSpectra, optics: Optics, found: ImageDefocus
) -> tuple[float | None, float | None, FloatArray]:
    """Fit the strength of the rings by a Gaussian fall-off, with and without the node of a thick specimen.

    Layers of a specimen of thickness t have rings of their own defoci, which add up to the rings of the middle
    times sin(x) / x, x = π λ s² t (McMullan et al. 2015; Elferich et al. 2024).

    Returns
    -------
    tuple
        Thickness and its standard error, none where no node is seen; `(k,)` the fitted strength.
    """
    frequency, (total, possible) = (
        spectra.frequency,
        sum_rings(spectra, optics, found.row_defocus(), found.phase_shift_deg),
    )
    square = np.square(frequency)
    thickness = np.arange(0.0, _THICKEST, 50.0)
    nodes = np.sinc(optics.wavelength_angstrom * square * thickness[:, None])
    falls = ring_strengths(frequency)
    norm = np.maximum((nodes**2 * possible) @ (falls**2).T, 1e-12)
    share = np.maximum((nodes * total) @ falls.T, 0)
    gains = 0.5 * share**2 / norm
    row, column = (int(i) for i in np.unravel_index(int(gains.argmax()), gains.shape))
    profile = gains.max(axis=1)
    likely = np.exp(profile - profile.max())
    mean = float((likely * thickness).sum() / likely.sum())
    error = float(np.sqrt((likely * np.square(thickness - mean)).sum() / likely.sum()))
    has_node = optics.wavelength_angstrom * square[-1] * mean > 1.0 and error < 0.25 * mean
    is_seen = gains[row, column] - gains[0].max() >= _LEAST_THICKNESS_GAIN and has_node
    if not is_seen:
        row, column = 0, int(gains[0].argmax())
    strength = share[row, column] / norm[row, column] * nodes[row] * falls[column]
    return (mean, max(error, 15.0), strength) if is_seen else (None, None, strength)


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


def _find_end(profile: Profile, correlation: FloatArray, found: ImageDefocus, optics: Optics) -> float:
    """Resolution at which the correlation falls below a half for good part of a ring."""
    smooth = uniform_filter1d(correlation, 5, mode="nearest")
    good = smooth >= LEAST_CORRELATION
    # The first rings often are not what they should: the way up to the best of them is not judged.
    start = int(smooth[: max(3, len(smooth) // 3)].argmax())
    bad = np.flatnonzero(~good[start:])
    end = start + (int(bad[0]) if len(bad) else len(good) - start) - 1
    return float(1 / profile.frequency[max(end, 0)])


def _measure_anisotropy(
    spectra: ViewSpectra, optics: Optics, found: ImageDefocus, end_angstrom: float
) -> tuple[float, float]:
    """How much the strength of the rings varies over the directions, in the upper half of what shows rings."""
    top = 1 / end_angstrom
    used = (spectra.frequency <= top) & (
        spectra.frequency >= spectra.frequency[0] + 0.5 * (top - spectra.frequency[0])
    )
    rings = make_rings(spectra, optics, found.row_defocus(), found.phase_shift_deg).T.reshape(
        spectra.power.shape
    )
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
    found = estimate_image(end_band(cells, highest_angstrom), optics, search)
    quality = judge_image(blur_by_tilt(cells, found.model, found.fit), optics, found)
    return found, quality, give_verdict(found, quality)
