"""One curve that shows all rings of a series: its rows brought to one defocus and averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.background import flatten_spectra
from verglas.algo.ctf.fit import SeriesDefocus
from verglas.algo.ctf.search import astigmatism_offsets, make_rings
from verglas.algo.ctf.spectra import ViewSpectra
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Profile:
    """The average spectrum of a series at the mean defocus.

    Parameters
    ----------
    frequency
        `(k,)` 1/Å.
    power, background
        `(k,)` relative.
    ripple, fit
        `(k,)` power over background less one, and the rings of the fitted defocus.
    """

    frequency: FloatArray
    power: FloatArray
    background: FloatArray
    ripple: FloatArray
    fit: FloatArray


def average_profile(views: Sequence[ViewSpectra], optics: Optics, found: SeriesDefocus) -> Profile:
    """Stretch the frequencies of every row to the mean defocus, and average all rows of all views."""
    frequency = views[0].frequency
    mean = float(found.views.defocus_angstrom.mean())
    total, weight, fit, background = (np.zeros(len(frequency)) for _ in range(4))
    fits = found.views
    for view, defocus, own in zip(views, fits.defocus_angstrom, fits.astigmatism, strict=True):
        flat = flatten_spectra(view)
        background += flat.background.mean(axis=0) / len(views)
        for g, height in enumerate(view.depth_angstrom):
            rows = defocus + found.hand * height + astigmatism_offsets(view.direction_deg, own)
            for a, row in enumerate(rows):
                place = _stretch(frequency, mean, float(row), optics)
                inside = (place >= frequency[0]) & (place <= frequency[-1])
                samples = np.where(inside, view.samples[g, a], 0.0)
                total += samples * np.interp(place, frequency, flat.ripple[g, a])
                weight += samples
        fit += view.samples.sum(axis=(0, 1)) * make_rings(view, optics, np.array([mean]))[:, 0]
    known = weight > 0
    ripple = np.where(known, total / np.maximum(weight, 1e-12), 0.0)
    rings = found.envelope * fit / np.maximum(weight, 1e-12) * known
    basis = flatten_spectra(views[0]).basis
    ripple, rings = (_without_background(curve, basis, frequency) for curve in (ripple, rings))
    rings *= (ripple * rings * frequency).sum() / max(float((rings * rings * frequency).sum()), 1e-12)
    return Profile(frequency, background * (1 + ripple), background, ripple, rings)


def _stretch(frequency: FloatArray, mean: float, own: float, optics: Optics) -> FloatArray:
    """Frequencies at which the CTF at defocus `own` has the phases that it has at `mean`."""
    wavelength, cs = optics.wavelength_angstrom, optics.cs_mm * 1e7
    square = np.square(frequency)
    phase = wavelength * mean * square - 0.5 * cs * wavelength**3 * square**2
    slope = wavelength * own
    root = np.sqrt(np.maximum(slope**2 - 2 * cs * wavelength**3 * phase, 0))
    return np.sqrt(np.maximum(2 * phase / np.maximum(slope + root, 1e-12), 0))


def _without_background(curve: FloatArray, basis: FloatArray, frequency: FloatArray) -> FloatArray:
    root = np.sqrt(frequency / frequency.mean())
    return np.asarray(curve - basis @ (basis.T @ (curve * root)) / root)
