"""How strong the map is in each image: by least squares, with a prior over the set, and by frequency.

An image is X = a β(s) A + noise of power N(s), with A what the map predicts, a of its own and β and N of the set. β
is 1 where poses and map are exact and falls where they are not, which is what leaves the least power behind. Given
these, a has a normal likelihood; with the normal prior that the set's own scatter shows, its expectation is a
weighted mean.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from verglas.ops.statistics import fourier_shells

FloatArray = npt.NDArray[np.float64]

_ROUNDS = 6
_LARGEST_GAIN = 1.5
_GAIN_STEP = 0.1
_LEAST_PARTICLES = 8


@dataclass(frozen=True, eq=False)
class ShellSums:
    """Sums over the Fourier pixels of each shell, for each of n particles; both halves of the plane count.

    Parameters
    ----------
    cross
        `(n, s)` Re Σ X conj(A).
    model
        `(n, s)` Σ |A|².
    image
        `(n, s)` Σ |X|².
    pixels
        `(s,)` how many.
    """

    cross: FloatArray
    model: FloatArray
    image: FloatArray
    pixels: FloatArray


@dataclass(frozen=True, eq=False)
class SetFit:
    """What a set of particles has in common.

    Parameters
    ----------
    gain
        `(s,)` β.
    noise
        `(s,)` N, the mean power of a pixel of the half transform.
    mean, deviation
        Of the scales in the set: the prior.
    """

    gain: FloatArray
    noise: FloatArray
    mean: float
    deviation: float

    def to_json(self) -> dict[str, object]:
        """Plain numbers."""
        return {name: np.asarray(value).tolist() for name, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Scales:
    """Of n particles: the plain estimate, its standard error, and the expectation under the prior."""

    plain: FloatArray
    error: FloatArray
    expected: FloatArray


def compare_whole(products: FloatArray, size: int) -> ShellSums:
    """Sum up images against kept and removed part together, without zero frequency: a background tells nothing.

    Parameters
    ----------
    products
        `(n, 6, s)` of `ops.kernels.parted_slices.predict`.
    size
        Side of the images, pixels.
    """
    image, with_kept, with_removed, kept, both, removed = np.moveaxis(np.asarray(products, float), 1, 0)
    pixels = count_pixels(size)
    used = pixels > 0
    return ShellSums(
        (with_kept + with_removed) * used, (kept + 2 * both + removed) * used, image * used, pixels
    )


def count_pixels(size: int) -> FloatArray:
    """Pixels of each shell below Nyquist, `(s,)`; of zero frequency none."""
    shells = fourier_shells((size, size)).numpy()
    twice = np.full(shells.shape, 2.0)
    twice[:, 0] = 1.0
    pixels: FloatArray = np.bincount(shells.ravel(), twice.ravel())[: size // 2].astype(float)
    pixels[0] = 0.0
    return pixels


def fit_set(sums: ShellSums, *, by_frequency: bool = True) -> SetFit:
    """Find gain, noise and prior of a set.

    Parameters
    ----------
    sums
        Of all its particles, or of a sample.
    by_frequency
        Let the gain depend on the frequency; else it is 1.
    """
    used = sums.pixels > 0
    pixels = np.where(used, sums.pixels, 1.0)
    gain = np.ones_like(pixels)
    noise = np.where(used, sums.image.mean(axis=0) / pixels, 1.0)
    noise = np.maximum(noise, 1e-12 * max(float(noise.max()), 1e-300))
    mean, deviation = 1.0, 0.0
    for _ in range(_ROUNDS):
        plain, error = _fit_plain(sums, gain, noise)
        mean, deviation = _fit_prior(plain, error)
        scale = _shrink(plain, error, mean, deviation)[:, None]
        if by_frequency:
            gain = _fit_gain(
                (scale * sums.cross).sum(axis=0) / noise, (scale**2 * sums.model).sum(axis=0) / noise
            )
        left = sums.image - 2 * scale * gain * sums.cross + (scale * gain) ** 2 * sums.model
        noise = np.where(used, np.maximum(left.mean(axis=0), 1e-6 * sums.image.mean(axis=0)) / pixels, 1.0)
        noise = np.maximum(noise, 1e-12 * max(float(noise.max()), 1e-300))
    plain, error = _fit_plain(sums, gain, noise)
    mean, deviation = _fit_prior(plain, error)
    return SetFit(gain, noise, mean, deviation)


def _fit_gain(product: FloatArray, information: FloatArray) -> FloatArray:
    """Gain of each shell; what the images do not tell follows the shell before, within a tenth.

    Scales and gain have one factor in common: the gain is 1 over the coarsest quarter of the information.
    """
    gain = np.ones_like(product)
    for shell in range(1, len(gain)):
        mean = product[shell] + _GAIN_STEP**-2 * gain[shell - 1]
        gain[shell] = min(max(mean / (information[shell] + _GAIN_STEP**-2), 0.0), _LARGEST_GAIN)
    known = np.cumsum(information)
    weight = np.where(known <= 0.25 * known[-1], information, 0.0)
    coarse = float((weight * gain).sum() / weight.sum()) if weight.sum() > 0 else 1.0
    return gain / coarse if coarse > 0 else gain


def fit_scales(sums: ShellSums, fit: SetFit) -> Scales:
    """Find the scale of each particle of a set whose fit is known."""
    plain, error = _fit_plain(sums, fit.gain, fit.noise)
    return Scales(plain, error, _shrink(plain, error, fit.mean, fit.deviation))


def _fit_plain(sums: ShellSums, gain: FloatArray, noise: FloatArray) -> tuple[FloatArray, FloatArray]:
    information = (sums.model * gain**2 / noise).sum(axis=1)
    information = np.maximum(information, 1e-12)
    return (sums.cross * gain / noise).sum(axis=1) / information, information**-0.5


def _fit_prior(plain: FloatArray, error: FloatArray) -> tuple[float, float]:
    """Mean and deviation that the scales themselves have, beyond the errors of their estimates."""
    if len(plain) < _LEAST_PARTICLES:
        # Too few to tell scatter from noise.
        weight = error**-2
        return float((weight * plain).sum() / weight.sum()), 0.0
    variance = max(float(plain.var()) - float((error**2).mean()), 0.0)
    for _ in range(20):
        weight = 1 / (variance + error**2)
        mean = float((weight * plain).sum() / weight.sum())
        scatter = weight**2 * ((plain - mean) ** 2 - error**2)
        variance = max(float(scatter.sum() / (weight**2).sum()), 0.0)
    return mean, variance**0.5


def _shrink(plain: FloatArray, error: FloatArray, mean: float, deviation: float) -> FloatArray:
    share = deviation**2 / (deviation**2 + error**2)
    return share * plain + (1 - share) * mean


def find_left(
    products: FloatArray, scale: FloatArray, gain: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Scale at which each subtracted image still holds the removed part, fitted with the kept one, and its error.

    Parameters
    ----------
    products
        `(n, 6, s)` of the images before.
    scale
        `(n,)` at which the removed part was taken out.
    gain, noise
        `(n, s)` or `(s,)` of their sets.
    """
    _, with_kept, with_removed, kept, both, removed = np.moveaxis(np.asarray(products, float), 1, 0)
    taken = scale[:, None] * gain
    weight = gain / noise * (np.arange(products.shape[-1]) > 0)
    after_kept = (weight * (with_kept - taken * both)).sum(axis=1)
    after_removed = (weight * (with_removed - taken * removed)).sum(axis=1)
    kk, kr, rr = ((weight * gain * one).sum(axis=1) for one in (kept, both, removed))
    determinant = np.maximum(rr * kk - kr**2, 1e-9 * rr * kk + 1e-30)
    return (kk * after_removed - kr * after_kept) / determinant, np.sqrt(kk / determinant)


def measure_agreement(sums: ShellSums, gain: FloatArray, noise: FloatArray) -> FloatArray:
    """Correlation of each image with what is predicted of it, frequencies weighed by their noise.

    Parameters
    ----------
    sums
        Of n particles.
    gain, noise
        `(n, s)` or `(s,)` of their sets.
    """
    cross = (sums.cross * gain / noise).sum(axis=1)
    power = (sums.model * gain**2 / noise).sum(axis=1) * (sums.image / noise).sum(axis=1)
    result: FloatArray = cross / np.sqrt(np.maximum(power, 1e-300))
    return result
