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
    direction_deg
        `(a,)` from x towards y.
    ripple_2d, fit_2d
        `(a, k)` the same in each direction, with the astigmatism that all views share left in.
    """

    frequency: FloatArray
    power: FloatArray
    background: FloatArray
    ripple: FloatArray
    fit: FloatArray
    direction_deg: FloatArray
    ripple_2d: FloatArray
    fit_2d: FloatArray


def average_profile(spectra: Sequence[ViewSpectra], optics: Optics, found: SeriesDefocus) -> Profile:
    """Stretch the frequencies of every row to the mean defocus, and average the rows of all views.

    Parameters
    ----------
    spectra
        Of the views.
    optics
        Voltage, Cs and amplitude contrast.
    found
        What was fitted to them.
    """
    frequency, direction = spectra[0].frequency, spectra[0].direction_deg
    shared = found.views.astigmatism.mean(axis=0)
    mean = float(found.views.defocus_angstrom.mean())
    basis = flatten_spectra(spectra[0]).basis
    ripple = _average_ripple(spectra, optics, found, np.zeros(2))
    weight = ripple.weight.sum(axis=0)
    curve = np.where(weight > 0, ripple.total.sum(axis=0) / np.maximum(weight, 1e-12), 0.0)
    model = found.envelope * _model_rings(spectra, optics, np.array([mean]))[:, 0]
    curve, fit = (without_background(one, basis, frequency) for one in (curve, model))
    scale = max(float((curve * fit * frequency).sum()), 0.0) / max(
        float((fit * fit * frequency).sum()), 1e-12
    )
    own = _average_ripple(spectra, optics, found, shared)
    model = found.envelope * _model_rings(spectra, optics, mean + astigmatism_offsets(direction, shared)).T
    background = sum(flatten_spectra(view).background.mean(axis=0) for view in spectra) / len(spectra)
    return Profile(
        frequency=frequency,
        power=background * (1 + curve),
        background=background,
        ripple=curve,
        fit=scale * fit,
        direction_deg=direction,
        ripple_2d=own.mean,
        fit_2d=scale * model,
    )


@dataclass(frozen=True, eq=False)
class RowSums:
    """Weighted sums in each direction, `(a, k)`."""

    total: FloatArray
    weight: FloatArray

    @property
    def mean(self) -> FloatArray:
        """`(a, k)`, zero where nothing is known."""
        return np.where(self.weight > 0, self.total / np.maximum(self.weight, 1e-12), 0.0)


def stretch_rows(
    spectra: ViewSpectra, optics: Optics, own_angstrom: FloatArray, aims_angstrom: FloatArray
) -> RowSums:
    """Bring every row from its own defocus `(g, a)` to that of its direction `(a,)`, and add the rows up."""
    frequency, ripple = spectra.frequency, flatten_spectra(spectra).ripple
    total, weight = (np.zeros((len(aims_angstrom), len(frequency))) for _ in range(2))
    for g, rows in enumerate(own_angstrom):
        for a, (row, aim) in enumerate(zip(rows, aims_angstrom, strict=True)):
            place = _stretch(frequency, float(aim), float(row), optics)
            inside = (place >= frequency[0]) & (place <= frequency[-1])
            samples = np.where(inside, spectra.samples[g, a], 0.0)
            total[a] += samples * np.interp(place, frequency, ripple[g, a])
            weight[a] += samples
    return RowSums(total, weight)


def _average_ripple(
    spectra: Sequence[ViewSpectra], optics: Optics, found: SeriesDefocus, kept_astigmatism: FloatArray
) -> RowSums:
    """Bring all rows to the mean defocus, but for an astigmatism that is left in."""
    direction = spectra[0].direction_deg
    mean = float(found.views.defocus_angstrom.mean())
    aims = mean + astigmatism_offsets(direction, kept_astigmatism)
    fits = found.views
    parts = []
    for view, defocus, own in zip(spectra, fits.defocus_angstrom, fits.astigmatism, strict=True):
        height = found.hand * view.depth_angstrom[:, None]
        parts.append(stretch_rows(view, optics, defocus + height + astigmatism_offsets(direction, own), aims))
    return RowSums(
        np.sum([part.total for part in parts], axis=0), np.sum([part.weight for part in parts], axis=0)
    )


def _model_rings(spectra: Sequence[ViewSpectra], optics: Optics, defocus: FloatArray) -> FloatArray:
    """`(k, d)` mean over the views of the rings that each shows of a defocus."""
    weights = [float(view.samples.sum()) for view in spectra]
    rings = sum(
        weight * make_rings(view, optics, defocus) for weight, view in zip(weights, spectra, strict=True)
    )
    return np.asarray(rings / sum(weights))


def _stretch(frequency: FloatArray, mean: float, own: float, optics: Optics) -> FloatArray:
    """Frequencies at which the CTF at defocus `own` has the phases that it has at `mean`."""
    wavelength, cs = optics.wavelength_angstrom, optics.cs_mm * 1e7
    square = np.square(frequency)
    phase = wavelength * mean * square - 0.5 * cs * wavelength**3 * square**2
    slope = wavelength * own
    root = np.sqrt(np.maximum(slope**2 - 2 * cs * wavelength**3 * phase, 0))
    return np.sqrt(np.maximum(2 * phase / np.maximum(slope + root, 1e-12), 0))


def without_background(curve: FloatArray, basis: FloatArray, frequency: FloatArray) -> FloatArray:
    """Take the part of a curve `(k,)` away that could be background."""
    root = np.sqrt(frequency / frequency.mean())
    return np.asarray(curve - basis @ (basis.T @ (curve * root)) / root)
