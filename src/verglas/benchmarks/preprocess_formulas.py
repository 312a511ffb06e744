"""The operations of `preprocess` written out once more, by their formulas, slowly and in double precision.

Transforms are sums by matrices of cosines and sines, medians are sorted lists, and the energy of the denoiser is
differentiated by another arrangement of its terms.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def take_logarithm(image: Array, a: float, b: float, c: float) -> Array:
    """Return a - b ln(x + c)."""
    return a - b * np.log(image + c)


def remove_bad_pixels(image: Array, limit_sd: float) -> Array:
    """Medians of the good pixels among 5 x 5, in the order of the rows."""
    result = image.copy()
    good = np.abs(image - image.mean()) <= limit_sd * image.std()
    while not good.all():
        for i, j in np.argwhere(~good).tolist():
            window = (slice(max(i - 2, 0), i + 3), slice(max(j - 2, 0), j + 3))
            values = sorted(result[window][good[window]].tolist())
            if values:
                result[i, j] = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
                good[i, j] = True
    return result


def sum_waves(image: Array, keep: tuple[int, int]) -> Array:
    """Write `(y, x)` as its waves, and add those up that `keep` pixels can hold, at their places about the centre."""
    matrices = [_resampling_matrix(size, new) for size, new in zip(image.shape, keep, strict=True)]
    result: Array = np.real(matrices[0] @ image @ matrices[1].T)
    return result


def _resampling_matrix(size: int, new: int) -> npt.NDArray[np.complex128]:
    waves = np.arange(-(new // 2), new // 2 + 1)
    places = size // 2 + (np.arange(new) - new // 2) * size / new
    there = np.exp(2j * np.pi * np.outer(places, waves) / size)
    back = np.exp(-2j * np.pi * np.outer(waves, np.arange(size)) / size)
    # Real part already here: the waves come in pairs of opposite sign.
    matrix: npt.NDArray[np.complex128] = (there @ back / size).real.astype(complex)
    return matrix


def filter_waves(image: Array, transfer: npt.ArrayLike) -> Array:
    """Multiply the waves of `(y, x)` by a function of their frequency, given on the grid of `frequencies`."""
    y, x = (np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size) for size in image.shape)
    waves = (y @ image @ x) * transfer
    filtered: Array = np.real(y.conj() @ waves @ x.conj()) / image.size
    return filtered


def frequencies(shape: tuple[int, ...]) -> Array:
    """Length of the frequency of each wave, 1/pixel."""
    y, x = (np.minimum(np.arange(size), size - np.arange(size)) / size for size in shape)
    return np.hypot(y[:, None], x)


def gaussian(frequency: Array, sigma: float) -> Array:
    """Transform of a Gaussian of standard deviation `sigma`."""
    return np.exp(-2 * np.pi**2 * sigma**2 * frequency**2)


def highpass(frequency: Array, cutoff: float, width: float) -> Array:
    """Xmipp's high-pass."""
    edge = (1 + np.cos(np.pi * (cutoff - frequency) / width)) / 2
    return np.where(frequency > cutoff, 1.0, np.where(frequency <= cutoff - width, 0.0, edge))


def lowpass(frequency: Array, cutoff: float, width: float) -> Array:
    """Xmipp's low-pass."""
    edge = (1 + np.cos(np.pi * (frequency - cutoff) / width)) / 2
    return np.where(frequency < cutoff, 1.0, np.where(frequency >= cutoff + width, 0.0, edge))


def denoise(image: Array, iterations: int) -> Array:
    """Total-variation denoising; between 0 and 1."""
    levels = 255 * (image - image.min()) / (image.max() - image.min())
    k = 3 / 8 + 5.8**2
    seen = 2 * np.sqrt(levels + k)
    top = seen.max()
    seen = seen / top

    def energy(x: Array) -> tuple[float, Array]:
        expected = 2 * np.sqrt(255 / top**2 * x + k / top**2)
        dy, dx = np.roll(x, -1, 0) - x, np.roll(x, -1, 1) - x
        length = np.sqrt(dx**2 + dy**2 + 1e-10)
        # Each difference pulls its two pixels apart with the same force.
        pull = -(dx + dy) / length
        pull += np.roll(dx / length, 1, 1) + np.roll(dy / length, 1, 0)
        slope = (expected - seen) * 255 / top**2 / np.sqrt(255 / top**2 * x + k / top**2)
        return float(np.sum((expected - seen) ** 2) / 2 + 0.03 * np.sum(length)), slope + 0.03 * pull

    place, theta = seen, 1.0
    value, slope = energy(place)
    for _ in range(iterations):
        way = np.clip(place - theta * slope, 0, 1) - place
        product, share = float(np.sum(slope * way)), 1.0
        new_value, new_slope = energy(place + way)
        while new_value > value + 1e-4 * share * product:
            lowest = -product * share**2 / (2 * (new_value - value - share * product))
            share = lowest if 0.1 <= lowest <= 0.9 * share else 0.5 * share
            new_value, new_slope = energy(place + share * way)
        step, change = share * way, new_slope - slope
        bend = float(np.sum(step * change))
        theta = 1e3 if bend <= 0 else float(np.clip(np.sum(step**2) / bend, 1e-3, 1e3))
        place, value, slope = place + step, new_value, new_slope
    return np.asarray(place)
