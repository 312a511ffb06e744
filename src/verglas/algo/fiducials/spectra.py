"""Power spectra of the parts of an image, without what is masked."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft2, rfft2

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

MOST_MASKED = 0.15
"""A patch counts when at most this share of its weight is masked."""

FEWEST_PATCHES = 6
"""So many patches say what the spectrum is in a place."""

_BANDS = 8
_BATCH_PIXELS = 1 << 20
# A Hann window spreads mean and slope over frequencies below two cycles a patch.
_LOST = 2.0
_STEEPEST = 3.0
_SHARPENINGS = 4
_LEAST = 1e-4


@dataclass(frozen=True, eq=False)
class LocalSpectra:
    """Spectrum of noise and specimen anywhere in an image.

    The shape over both axes of frequency is that of the whole image; how much of it there is in each band of
    frequencies is that of the surroundings.

    Parameters
    ----------
    power
        `(size, size // 2 + 1)` mean power of the image, `rfft2` layout; white noise has its variance.
    bands
        `(size, size // 2 + 1)` band of each frequency, a number with a fraction between the bands' centres.
    places_px
        `(patches, 2)` yx of the centres of the patches.
    ratios
        `(patches, bands)` power of each patch over that of all.
    """

    power: npt.NDArray[np.float64]
    bands: npt.NDArray[np.float64]
    places_px: npt.NDArray[np.float64]
    ratios: npt.NDArray[np.float64]

    def at(self, place_px: npt.ArrayLike, reach_px: float) -> npt.NDArray[np.float64]:
        """Power spectrum `(size, size // 2 + 1)` around a place yx, from the patches within `reach_px`.

        At least the six nearest count. The fewer there are, the more the result is that of the whole image.
        """
        distance = np.linalg.norm(self.places_px - np.asarray(place_px), axis=1)
        nearest = np.argsort(distance, kind="stable")
        count = max(FEWEST_PATCHES, int((distance <= reach_px).sum()))
        chosen = self.ratios[nearest[:count]]
        # Neighbouring patches overlap by half, so four of them tell about as much as two that do not.
        trust = len(chosen) / (len(chosen) + 2.0)
        logs = trust * np.log(chosen.mean(axis=0)) if len(chosen) else np.zeros(self.ratios.shape[1])
        return np.asarray(self.power * np.exp(np.interp(self.bands, np.arange(len(logs)), logs)))


def measure_spectra(image: FloatArray, masked: BoolArray, size: int) -> LocalSpectra:
    """Measure the spectra of an image in patches that overlap by half.

    Parameters
    ----------
    image
        `(y, x)`.
    masked
        `(y, x)` what does not count.
    size
        Side of the patches and of the tiles that the spectra are for; at most that of the image.
    """
    window = np.outer(np.hanning(size + 2)[1:-1], np.hanning(size + 2)[1:-1]).astype(np.float32)
    corners = _lay_corners(image.shape, size)
    bands, count = _lay_bands(size)
    kept, rows, power = [], [], np.zeros((size, size // 2 + 1))
    step = max(1, _BATCH_PIXELS // size**2)
    for start in range(0, len(corners), step):
        batch = corners[start : start + step]
        weights = np.stack([~masked[y : y + size, x : x + size] for y, x in batch]) * window
        good = weights.sum(axis=(1, 2)) >= (1 - MOST_MASKED) * window.sum()
        if good.any():
            patches = np.stack([image[y : y + size, x : x + size] for y, x in batch[good]])
            found = _periodograms(patches, weights[good])
            power += found.sum(axis=0)
            rows.append(_average_bands(found, bands, count))
            kept.append(batch[good])
    if not kept:
        usable = image[~masked] if not masked.all() else image
        power[:] = max(float(usable.var()), float(np.finfo(np.float32).tiny))
        return LocalSpectra(power, bands, np.empty((0, 2)), np.ones((0, count)))
    places = np.concatenate(kept) + (size - 1) / 2
    power = _sharpen(_fill_lowest(power / len(places)), window)
    # A spectrum that ends below Nyquist would make the covariance singular.
    power = np.maximum(power, _LEAST * float(np.median(power)))
    values = np.concatenate(rows)
    return LocalSpectra(power, bands, places, np.maximum(values / values.mean(axis=0), _LEAST))


def _lay_corners(shape: tuple[int, ...], side: int) -> npt.NDArray[np.intp]:
    """Upper left corners of patches that overlap by about half and reach all borders."""
    axes = []
    for length in shape:
        count = 1 + max(0, -(-2 * (length - side) // side))
        axes.append(np.linspace(0, max(0, length - side), count).astype(int))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _lay_bands(size: int) -> tuple[npt.NDArray[np.float64], int]:
    """Band of each frequency; bands are equally wide in the square root of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    low, high = np.sqrt(_LOST / size), np.sqrt(0.5)
    count = max(2, min(_BANDS, size // 8))
    place = (np.sqrt(frequency) - low) / (high - low) * (count - 1)
    return np.asarray(place.clip(0, count - 1)), count


def _periodograms(patches: FloatArray, weights: FloatArray) -> npt.NDArray[np.float64]:
    """Power of weighted patches `(n, size, size)` without the planes through them."""
    size = patches.shape[1]
    steps = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / size
    y, x = np.meshgrid(steps, steps, indexing="ij")
    plane = np.stack([np.ones_like(y), y, x]).reshape(3, -1)
    middle = patches.mean(axis=(1, 2), keepdims=True)
    flat, values = weights.reshape(len(weights), -1), (patches - middle).reshape(len(patches), -1)
    normal = (flat @ (plane[:, None] * plane).reshape(9, -1).T).reshape(-1, 3, 3)
    right = (flat * values) @ plane.T
    fitted = np.linalg.solve(normal, right[..., None])[..., 0].astype(np.float32) @ plane
    transform = rfft2(((values - fitted) * flat).reshape(patches.shape), axes=(1, 2))
    power = transform.real**2 + transform.imag**2
    return np.asarray(power / (flat**2).sum(axis=1)[:, None, None], np.float64)


def _average_bands(
    power: npt.NDArray[np.float64], bands: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.float64]:
    """Mean power `(n, count)` of each band; frequencies between two centres count for both."""
    inside = np.hypot(np.fft.fftfreq(power.shape[1])[:, None], np.fft.rfftfreq(power.shape[1])) <= 0.5
    share = np.maximum(0, 1 - np.abs(bands[..., None] - np.arange(count))) * inside[..., None]
    share = share.reshape(-1, count) / share.sum(axis=(0, 1))
    return np.asarray(power.reshape(len(power), -1) @ share)


def _fill_lowest(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Continue the spectrum, by the next rings' power law, to the frequencies that went with the patches' planes."""
    size = len(power)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    near, far = (float(power[np.abs(radius - ring) < 0.75].mean()) for ring in (_LOST + 0.5, 2 * _LOST + 1))
    slope = min(max(np.log(near / far) / np.log(2), 0.0), _STEEPEST) if far > 0 else 0.0
    lost = radius < _LOST
    filled = power.copy()
    filled[lost] = near * ((_LOST + 0.5) / np.maximum(radius[lost], 0.75)) ** slope
    return filled


def _sharpen(power: npt.NDArray[np.float64], window: FloatArray) -> npt.NDArray[np.float64]:
    """Take back what the window smeared, by a few of Richardson's and Lucy's steps.

    The expected periodogram is the spectrum convolved with that of the window: the covariance times the window's
    own overlap.
    """
    size = len(power)
    twice = (2 * size, 2 * size)
    overlap = irfft2(np.abs(rfft2(window.astype(float), twice)) ** 2, twice)
    lags = np.minimum(np.arange(size), size - np.arange(size))
    overlap = overlap[np.ix_(lags, lags)] / overlap[0, 0]
    lost = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size < _LOST
    sharp = power
    for _ in range(_SHARPENINGS):
        smeared = rfft2(irfft2(sharp, (size, size)) * overlap).real
        ratio = power / np.maximum(smeared, _LEAST * power)
        sharp = _fill_lowest(np.where(lost, sharp, sharp * ratio))
    return sharp


def make_noise(power: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Noise of a spectrum `(size, size // 2 + 1)` from `(size, size)` normal numbers."""
    return np.asarray(irfft2(rfft2(normal) * np.sqrt(power), normal.shape))
