"""Thickness of a specimen, from where its rings vanish and come back inverted.

Layers of a specimen of thickness t have rings of their own defoci, which add up to the rings of the middle times
sin(x) / x, x = π λ k² t (McMullan et al. 2015; Elferich et al. 2024). The first zero lies where λ k² t = 1.

That rings fade proves nothing: motion, the camera and the source damp them as well. So how strong rings are is left
free, any smooth curve that is nowhere negative, and a thickness is stated where no such curve explains the rings
without a node. A phase that is wrong at high frequency inverts rings too, but they pass through a quarter of a
period instead of nothing: rings that are a quarter off speak against a node.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline
from scipy.optimize import nnls

from verglas.algo.ctf.background import flatten_spectra
from verglas.algo.ctf.search import make_rings, window_loss
from verglas.algo.ctf.spectra import ViewSpectra
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]

LEAST_GAIN = 12.5
"""Of the logarithm of the likelihood that a node must give: five standard deviations."""

THICKEST_ANGSTROM = 8000.0
"""Longest path through a specimen that is looked for."""

_STEP = 20.0
_CURVES = 7  # that the strength of rings over frequency is made of
_LEAST_ERROR = 0.015  # of the length: scatterers are not spread quite evenly
_LARGEST_ERROR = 0.15
_NEAR_NODE = 0.4  # of what lies between nodes


@dataclass(frozen=True, eq=False)
class Path:
    """What the rings say of the way through the specimen along the beam.

    Parameters
    ----------
    length_angstrom, error_angstrom
        Its length and standard error.
    nodes
        Frequencies at which the rings vanish, 1/Å, as far as they are in the band.
    strength
        `(k,)` of the rings, relative to the background: negative where they are inverted.
    """

    length_angstrom: float
    error_angstrom: float
    nodes: FloatArray
    strength: FloatArray


def measure_path(
    spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray, phase_shift_deg: float = 0.0
) -> Path | None:
    """Find the length of the way through the specimen along the beam; none where there is no evidence.

    Parameters
    ----------
    spectra
        Of an image.
    optics
        Voltage, Cs and amplitude contrast.
    defocus_angstrom
        `(r,)` of each row.
    phase_shift_deg
        Of a phase plate.
    """
    frequency = spectra.frequency
    square = optics.wavelength_angstrom * np.square(frequency)
    lengths = np.arange(0.0, THICKEST_ANGSTROM + 1, _STEP)
    has_node = square[-1] * lengths > 1.0
    if not has_node.any():
        return None
    total, possible = _sum_white(spectra, optics, defocus_angstrom, phase_shift_deg)
    root = np.sqrt(np.maximum(possible, 1e-12))
    curves = _make_curves(frequency)
    damping = np.sinc(square * lengths[:, None])
    fits = [nnls((root * row)[:, None] * curves, total / root) for row in damping]
    gains = 0.5 * (np.square(total / root).sum() - np.square([rest for _, rest in fits]))
    gain = float(gains[has_node].max() - gains[~has_node].max())
    if gain < LEAST_GAIN:
        return None
    likely = np.exp(np.where(has_node, gains - gains[has_node].max(), -np.inf))
    likely /= likely.sum()
    length = float(likely @ lengths)
    error = math.sqrt(float(likely @ np.square(lengths - length)) + _STEP**2 / 12)
    best = int(np.abs(lengths - length).argmin())
    strength = curves @ fits[best][0]
    # Rings a quarter of a period off near the node, where there should be none at all.
    across, _ = _sum_white(spectra, optics, defocus_angstrom, phase_shift_deg + 45.0)
    near = np.where(np.abs(square * length - 1) < _NEAR_NODE, strength, 0.0)
    gain_off = 0.5 * float(across @ near) ** 2 / max(float(possible @ near**2), 1e-12)
    error = math.hypot(error, _LEAST_ERROR * length)
    if gain < LEAST_GAIN + gain_off or error > _LARGEST_ERROR * length:
        return None
    count = math.floor(square[-1] * length)
    nodes = np.sqrt(np.arange(1, count + 1) / (optics.wavelength_angstrom * length))
    return Path(length, error, nodes, damping[best] * strength)


def _make_curves(frequency: FloatArray) -> FloatArray:
    """`(k, m)` cubic B-splines from end to end of the band."""
    inner = np.linspace(frequency[0], frequency[-1], _CURVES - 2)
    knots = np.concatenate([[inner[0]] * 3, inner, [inner[-1]] * 3])
    return np.asarray(BSpline.design_matrix(frequency, knots, 3).toarray())


def _sum_white(
    spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray, phase_shift_deg: float
) -> tuple[FloatArray, FloatArray]:
    """`(k,)` sums over all rows of ripple times rings, and what rings of strength one would give.

    The second is the variance of the first as well: a tile's window damps fine rings and the noise there alike.
    """
    loss = window_loss(spectra, optics, defocus_angstrom).T
    rings = make_rings(spectra, optics, defocus_angstrom, phase_shift_deg).T
    weight = spectra.samples.reshape(rings.shape)
    ripple = flatten_spectra(spectra).ripple.reshape(rings.shape)
    return (weight * ripple * rings / loss).sum(axis=0), (weight * rings**2 / loss).sum(axis=0)
