"""Spectra without what changes slowly with frequency: shot noise, the specimen's own spectrum, the detector's."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.spectra import ViewSpectra

FloatArray = npt.NDArray[np.floating]

TERMS = 6
"""Terms of the polynomial in frequency that counts as background."""


@dataclass(frozen=True, eq=False)
class FlatSpectra:
    """Spectra divided by their background, less one.

    Parameters
    ----------
    ripple
        `(g, a, k)`: around zero, of relative power.
    background
        `(a, k)` what the power was divided by.
    basis
        `(k, t)` orthonormal under the weights of the rings: what a fit must leave alone.
    """

    ripple: FloatArray
    background: FloatArray
    basis: FloatArray


def flatten_spectra(spectra: ViewSpectra) -> FlatSpectra:
    """Divide each direction of a view's spectra by a smooth background.

    The background is a polynomial fitted to the logarithm of the mean over all heights. What is left of it in a
    row is projected out by whoever compares the ripple with a CTF, of both, so a ring that looks like
    background favours no defocus.
    """
    weight = spectra.samples.sum(axis=0)
    mean = (spectra.power * spectra.samples).sum(axis=0) / np.maximum(weight, 1)
    basis = make_basis(spectra.frequency)
    ring = np.sqrt(ring_weights(spectra.frequency))[:, None]
    logarithm = np.log(np.maximum(mean, 1e-30))
    smooth = np.exp((basis @ (basis.T @ (ring * logarithm.T)) / ring).T)
    return FlatSpectra(spectra.power / smooth - 1, smooth, basis)


def ring_weights(frequency: FloatArray) -> FloatArray:
    """`(k,)` share of the coefficients in each ring, of mean one."""
    return np.asarray(frequency / frequency.mean())


def make_basis(frequency: FloatArray) -> FloatArray:
    """`(k, t)` polynomials times the root of the ring's weight, orthonormal."""
    low, high = frequency[0], frequency[-1]
    terms = np.polynomial.chebyshev.chebvander(2 * (frequency - low) / (high - low) - 1, TERMS - 1)
    basis, _ = np.linalg.qr(terms * np.sqrt(ring_weights(frequency))[:, None])
    return np.asarray(basis)
