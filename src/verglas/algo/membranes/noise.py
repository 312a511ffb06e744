"""The colour of the noise about membranes: its power by frequency, and what weights the frequencies of a profile.

Least squares with noise of power P weigh a frequency by 1/P. A membrane that bends little has its transform on the
line across it, so that 1/P of a model is 1/P along that line of its profile.
"""

import numpy as np
import numpy.typing as npt
from scipy import fft

FloatArray = npt.NDArray[np.float64]

_REACH = 32
"""Pixels beyond which the noise of two pixels is taken to be independent."""
_FREQUENCIES = 65
_FLOOR = 0.05
_WHITE = 0.1
"""Departure from 1, over the power of a profile, below which noise is held for white."""


class NoiseSums:
    """Autocorrelation of what is left of images, from those of their pixels that count."""

    def __init__(self, box: int) -> None:
        self._box = box
        self._size = fft.next_fast_len(box + _REACH, real=True)
        self._products = np.zeros((self._size, self._size // 2 + 1))
        self._pairs = np.zeros_like(self._products)

    def add(self, pixels: npt.NDArray[np.int64], rest: FloatArray, weight: FloatArray) -> None:
        """Add an image.

        Parameters
        ----------
        pixels
            `(k,)` flat indices.
        rest
            `(k,)` what the model leaves there, in standard deviations.
        weight
            `(k,)` of it.
        """
        for sums, values in ((self._products, rest * weight), (self._pairs, weight)):
            image = np.zeros((self._size, self._size), np.float32)
            image[np.divmod(pixels, self._box)] = values
            transform = fft.rfft2(image)
            sums += transform.real**2 + transform.imag**2

    def solve(self) -> FloatArray:
        """Return the power `(f,)` at evenly spaced frequencies from 0 to 1/2, 1 where noise is white."""
        shape = (self._size, self._size)
        products, pairs = fft.irfft2(self._products, shape), fft.irfft2(self._pairs, shape)
        lags = fft.fftfreq(self._size, 1 / self._size)
        distance = np.hypot(lags[:, None], lags[None, :])
        near = (distance < _REACH) & (pairs > 1e-3 * pairs[0, 0])
        rings = np.rint(distance[near]).astype(np.int64)
        summed = np.bincount(rings, products[near], minlength=_REACH + 1)
        correlation = summed / np.maximum(np.bincount(rings, pairs[near], minlength=_REACH + 1), 1e-30)
        correlation *= 0.5 + 0.5 * np.cos(np.pi * np.arange(_REACH + 1) / _REACH)
        if correlation[0] <= 0:
            return np.ones(_FREQUENCIES)
        # Frequencies along one axis: what lies across it adds up.
        values = np.interp(distance, np.arange(_REACH + 1), correlation, right=0.0).sum(axis=0)
        places = np.minimum(np.rint(np.abs(lags)), _REACH).astype(np.int64)
        line = np.bincount(places, values, minlength=_REACH + 1) / correlation[0]
        phases = 2 * np.pi * np.linspace(0, 0.5, _FREQUENCIES)[:, None] * np.arange(_REACH + 1)
        return np.asarray(np.maximum(np.cos(phases) @ line, _FLOOR))


def make_whitener(power: FloatArray, coefficients: FloatArray) -> FloatArray | None:
    """Return the matrix `(k, k)` that divides a profile of `(k,)` coefficients by the power of the noise.

    None where the noise is as good as white for it.
    """
    count = len(coefficients)
    padded = 4 * count
    frequency = fft.rfftfreq(padded)
    values = np.interp(frequency, np.linspace(0, 0.5, len(power)), power)
    energy = np.abs(fft.rfft(coefficients, padded)) ** 2
    if (energy * np.abs(values - 1)).sum() < _WHITE * energy.sum():
        return None
    unit = fft.rfft(np.eye(count), padded, axis=0)
    return np.asarray(fft.irfft(unit / values[:, None], padded, axis=0)[:count])
