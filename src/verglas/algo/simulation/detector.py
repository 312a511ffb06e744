"""What the camera does: transfer, counting, gain, hot and dead pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from verglas.algo.simulation.scatterers import FloatArray
from verglas.errors import UserError


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera whose pixels are not alike.

    Parameters
    ----------
    gain
        `(y, x)` by which a raw frame is multiplied to correct it; the raw counts are expected counts / gain.
    hot
        `(y, x)` True where a pixel counts `hot_rate` more electrons a frame, whatever falls on it.
    dead
        `(y, x)` True where a pixel counts nothing.
    hot_rate
        Electrons a frame in a hot pixel.
    """

    gain: npt.NDArray[np.float32]
    hot: npt.NDArray[np.bool_]
    dead: npt.NDArray[np.bool_]
    hot_rate: float = 50.0


def make_camera(
    shape: tuple[int, int],
    *,
    seed: int,
    gain_spread: float = 0.05,
    hot_fraction: float = 1e-4,
    dead_fraction: float = 1e-5,
    hot_rate: float = 50.0,
) -> Camera:
    """Draw a camera: gains with a smooth trend, tiles of 64 pixels and single-pixel scatter, and bad pixels.

    Parameters
    ----------
    shape
        `(y, x)` pixels.
    seed
        Chooses the camera.
    gain_spread
        Standard deviation of single pixels' gain; tiles differ by half as much.
    hot_fraction, dead_fraction
        Shares of pixels.
    hot_rate
        Electrons a frame in a hot pixel.
    """
    rng = np.random.default_rng(seed)
    y, x = np.linspace(-0.5, 0.5, shape[0])[:, None], np.linspace(-0.5, 0.5, shape[1])[None, :]
    tiles = rng.normal(0, gain_spread / 2, (shape[0] // 64 + 1, shape[1] // 64 + 1))
    tiles = np.repeat(np.repeat(tiles, 64, axis=0), 64, axis=1)[: shape[0], : shape[1]]
    gain = (1 + 0.1 * (x**2 + y**2)) * (1 + tiles) * (1 + rng.normal(0, gain_spread, shape))
    # Counting cameras have gains near one; a gain at or below zero would make negative expected counts.
    gain = np.maximum(gain, 0.2)
    fate = rng.uniform(size=shape)
    return Camera(
        gain=(gain / gain.mean()).astype(np.float32),
        hot=fate < hot_fraction,
        dead=fate > 1 - dead_fraction,
        hot_rate=hot_rate,
    )


def apply_mtf(
    image: npt.NDArray[Any], frequencies_per_pixel: npt.ArrayLike, values: npt.ArrayLike
) -> npt.NDArray[Any]:
    """Multiply the transform of an image by a modulation transfer function, keeping its mean.

    Parameters
    ----------
    image
        `(y, x)`.
    frequencies_per_pixel
        `(n,)` rising, 1/pixel; 0.5 is Nyquist.
    values
        `(n,)` MTF, interpolated linearly and divided by its value at zero; held beyond the last frequency.

    Raises
    ------
    UserError
        When the arrays do not match or the frequencies do not rise.
    """
    frequencies: FloatArray = np.asarray(frequencies_per_pixel, dtype=np.float64)
    curve: FloatArray = np.asarray(values, dtype=np.float64)
    if frequencies.shape != curve.shape or frequencies.ndim != 1 or (np.diff(frequencies) <= 0).any():
        raise UserError(
            f"an MTF needs rising frequencies and as many values; "
            f"got shapes {frequencies.shape} and {curve.shape}"
        )
    radius = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])[None, :])
    factor = np.interp(radius, frequencies, curve) / np.interp(0.0, frequencies, curve)
    result = scipy.fft.irfft2(scipy.fft.rfft2(image) * factor.astype(image.dtype), s=image.shape)
    return np.asarray(result, dtype=image.dtype)


def count_electrons(
    expected: npt.NDArray[Any], rng: np.random.Generator, camera: Camera | None = None
) -> npt.NDArray[np.uint16]:
    """Draw the counts of one exposure, as the camera writes them: not gain-corrected, full at 65,535.

    Parameters
    ----------
    expected
        `(y, x)` electrons expected in each pixel, not negative.
    rng
        Source of randomness.
    camera
        Gain and bad pixels; none is a perfect camera.
    """
    rate: npt.NDArray[Any] = np.maximum(expected, 0)
    if camera is not None:
        if camera.gain.shape != rate.shape:
            raise UserError(f"the camera has {camera.gain.shape} pixels; the image has {rate.shape}")
        rate = rate / camera.gain + camera.hot * camera.hot_rate
        rate = np.where(camera.dead, 0.0, rate)
    return np.asarray(np.minimum(rng.poisson(rate), 65535).astype(np.uint16))
