"""Spectra of filled discs beside those of their neighbours."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import fft2

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_DIRECTIONS = 8
_DISTANCES = (2.1, 3.1)
_FEWEST_NEIGHBOURS = 4
_RINGS = 10


@dataclass(frozen=True, eq=False)
class SpectrumPairs:
    """Spectra of some discs and of undisturbed ones beside them, both over the mean power of the neighbours.

    Parameters
    ----------
    frequencies
        `(rings,)` cycles per pixel.
    filled, neighbours
        `(discs, rings)`.
    """

    frequencies: FloatArray
    filled: FloatArray
    neighbours: FloatArray


def compare_spectra(
    image: Image, masked: BoolArray, positions_px: FloatArray, radius_px: float
) -> SpectrumPairs:
    """Measure the power in discs under a cosine bell, and in discs without masked pixels two to three radii away.

    Parameters
    ----------
    image
        `(y, x)` after the discs were filled.
    masked
        `(y, x)` all that was filled.
    positions_px
        `(k, 2)` xy of the discs from the centre `n // 2`.
    radius_px
        Of the discs.

    Returns
    -------
    SpectrumPairs
        Of the discs that lie within the image and have four neighbours or more.
    """
    reach = int(np.ceil(radius_px))
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(steps[:, None], steps)
    window = np.where(distance < radius_px, np.cos(np.pi / 2 * distance / radius_px) ** 2, 0.0)
    frequencies, rings = _lay_rings(2 * reach + 1, radius_px)
    filled, neighbours = [], []
    for place in positions_px[:, ::-1] + np.array([n // 2 for n in image.shape]):
        own = _cut(image, np.rint(place).astype(int), reach)
        around = [
            cut
            for centre in _list_neighbours(place, radius_px)
            if (free := _cut(masked, centre, reach)) is not None
            and not free[window > 0].any()
            and (cut := _cut(image, centre, reach)) is not None
        ]
        if own is not None and len(around) >= _FEWEST_NEIGHBOURS:
            powers = _measure_power(np.stack([own, *around]), window) @ rings
            scale = powers[1:].mean()
            filled.append(powers[0] / scale)
            neighbours.append(powers[1:].mean(axis=0) / scale)
    shape = (-1, len(frequencies))
    return SpectrumPairs(frequencies, np.reshape(filled, shape), np.reshape(neighbours, shape))


def deviation_of(pairs: SpectrumPairs) -> tuple[FloatArray, FloatArray]:
    """Relative deviation `(rings,)` of the filled discs' mean power from the neighbours', and its standard error."""
    filled, neighbours = pairs.filled.mean(axis=0), pairs.neighbours.mean(axis=0)
    ratio = filled / neighbours
    rest = pairs.filled - ratio * pairs.neighbours
    error = rest.std(axis=0) / neighbours / np.sqrt(max(len(rest), 1))
    return np.asarray(ratio - 1), np.asarray(error)


def join_pairs(pairs: list[SpectrumPairs]) -> SpectrumPairs:
    """Put the pairs of several images one after the other."""
    return SpectrumPairs(
        pairs[0].frequencies,
        np.concatenate([pair.filled for pair in pairs]),
        np.concatenate([pair.neighbours for pair in pairs]),
    )


def _list_neighbours(place: FloatArray, radius: float) -> list[npt.NDArray[np.intp]]:
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    ways = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return [np.rint(place + distance * radius * way).astype(int) for distance in _DISTANCES for way in ways]


def _cut(
    array: npt.NDArray[np.generic], centre: npt.NDArray[np.intp], reach: int
) -> npt.NDArray[np.generic] | None:
    """Square around a pixel; none when it reaches over the border."""
    low, high = centre - reach, centre + reach + 1
    if (low < 0).any() or (high > array.shape).any():
        return None
    return array[low[0] : high[0], low[1] : high[1]]


def _measure_power(patches: npt.NDArray[np.generic], window: FloatArray) -> FloatArray:
    values = patches.astype(float)
    mean = (values * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    transform = fft2((values - mean) * window)
    return np.asarray((transform.real**2 + transform.imag**2).reshape(len(values), -1))


def _lay_rings(size: int, radius: float) -> tuple[FloatArray, FloatArray]:
    """Frequencies of the rings, and the share `(frequencies, rings)` of each frequency in each of them.

    The lowest ring begins at one cycle a diameter, below which the mean takes the power away.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)).ravel()
    edges = np.linspace(0.5 / radius, 0.5, max(3, min(_RINGS, int(radius))) + 1)
    inside = (frequency[:, None] >= edges[:-1]) & (frequency[:, None] < edges[1:])
    inside = inside[:, inside.any(axis=0)]
    share = inside / inside.sum(axis=0)
    return np.asarray(frequency @ share), np.asarray(share)
