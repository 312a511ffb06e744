"""Discs of an image replaced by what could be there: a sample given all that is around.

What is around a disc is taken as a Gaussian field of the local spectrum. Given the values outside, the values
inside are again Gaussian, and one of them is drawn: their mean continues the surroundings, so there is no edge,
and their scatter is what the mean lacks of the spectrum (conditional simulation; Hoffman & Ribak, *ApJ* 380, L5,
1991). The mean is solved for by conjugate gradients in which the covariance and its inverse are products in Fourier
space, so nothing larger than a tile is stored.
"""

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft2, next_fast_len, rfft2

from verglas.algo.fiducials.spectra import LocalSpectra, make_noise, measure_spectra

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

TILE_RADII = 6.0
"""Side of the tile that is looked at around a disc, in radii of the disc."""

_SMALLEST_TILE = 32
_FRAME = 12
_ROUNDS = 60
_TOLERANCE = 1e-3
_HOT_SD, _MOST_HOT = 10.0, 1e-3


def mask_discs(shape: tuple[int, int], positions_px: FloatArray, radius_px: float) -> BoolArray:
    """Mark the pixels `(y, x)` within `radius_px` of places `(k, 2)`, xy from the centre `n // 2`."""
    masked = np.zeros(shape, np.bool_)
    for place in _to_indices(shape, positions_px):
        region, inside = _cut_disc(shape, place, radius_px)
        masked[region] |= inside
    return masked


def erase_discs(
    image: Image, positions_px: FloatArray, radius_px: float, seed: int
) -> tuple[Image, BoolArray]:
    """Replace discs by matched noise.

    Parameters
    ----------
    image
        `(y, x)`; its values outside the discs stay as they are.
    positions_px
        `(k, 2)` xy of the discs from the centre `n // 2`; they may overlap and reach over the border.
    radius_px
        Of the discs: all that the beads changed, their fringes included.
    seed
        The same seed and image give the same result.

    Returns
    -------
    tuple
        The image, and `(y, x)` which pixels were replaced.
    """
    shape = (image.shape[0], image.shape[1])
    places = _to_indices(shape, positions_px)
    masked = mask_discs(shape, positions_px, radius_px)
    if not masked.any():
        return image.copy(), masked
    size = _choose_tile(shape, radius_px)
    spectra = measure_spectra(image, masked | _find_hot(image), size)
    filled, unknown = image.copy(), masked.copy()
    rng = np.random.default_rng(seed)
    for place in places:
        region, inside = _cut_disc(shape, place, radius_px)
        inside = inside & unknown[region]
        if inside.any():
            # What one disc got is known to the next, so discs that touch fit together.
            filled[region][inside] = _draw_disc(filled, unknown, place, region, inside, spectra, rng)
            unknown[region] &= ~inside
    return filled, masked


def _find_hot(image: Image) -> BoolArray:
    """Find pixels far above all others, which would pass for white noise; many such are no fault of the camera."""
    middle = np.median(image)
    hot = image > middle + _HOT_SD * 1.4826 * np.median(np.abs(image - middle))
    return np.asarray(hot if hot.mean() < _MOST_HOT else np.zeros_like(hot))


def _to_indices(shape: tuple[int, int], positions_px: FloatArray) -> FloatArray:
    places: FloatArray = np.asarray(positions_px, dtype=float).reshape(-1, 2)[:, ::-1]
    return np.asarray(places + np.array([n // 2 for n in shape]))


def _cut_disc(
    shape: tuple[int, int], place: FloatArray, radius: float
) -> tuple[tuple[slice, slice], BoolArray]:
    """Region of the image around a disc, and which of its pixels lie in the disc."""
    spans = []
    for length, centre in zip(shape, place, strict=True):
        low, high = (
            int(np.clip(value, 0, length)) for value in (np.ceil(centre - radius), centre + radius + 1)
        )
        spans.append((low, max(low, high)))
    y, x = (np.arange(*span) - centre for span, centre in zip(spans, place, strict=True))
    return (slice(*spans[0]), slice(*spans[1])), np.hypot(y[:, None], x) <= radius


def _choose_tile(shape: tuple[int, int], radius: float) -> int:
    size = next_fast_len(max(_SMALLEST_TILE, int(np.ceil(TILE_RADII * radius))), real=True)
    while size % 2:
        size = next_fast_len(size + 1, real=True)
    return min(size, min(shape) // 2 * 2)


def _draw_disc(
    image: Image,
    unknown: BoolArray,
    place: FloatArray,
    region: tuple[slice, slice],
    inside: BoolArray,
    spectra: LocalSpectra,
    rng: np.random.Generator,
) -> FloatArray:
    """Draw the values of the pixels of `region` that are `inside`."""
    size = len(spectra.power)
    corner = np.rint(place).astype(int) - size // 2
    tile, known = _cut_tile(image, unknown, corner, size)
    background = _fit_plane(tile, known)
    power = spectra.at(place, size)
    noise = make_noise(power, rng.standard_normal((size, size)))
    difference = np.where(known, tile - background - noise, 0.0)
    drawn = background + noise + _continue_field(difference, known, power)
    y, x = (slice(part.start - start, part.stop - start) for part, start in zip(region, corner, strict=True))
    return np.asarray(drawn[y, x][inside])


def _cut_tile(
    image: Image, unknown: BoolArray, corner: npt.NDArray[np.intp], size: int
) -> tuple[FloatArray, BoolArray]:
    """Cut a tile, which may reach over the border; a frame of it counts as unknown, because opposite sides touch."""
    tile, known = np.zeros((size, size)), np.zeros((size, size), np.bool_)
    low = np.maximum(corner, 0)
    high = np.minimum(corner + size, image.shape)
    source = np.s_[low[0] : high[0], low[1] : high[1]]
    (top, left), (bottom, right) = low - corner, high - corner
    tile[top:bottom, left:right] = image[source]
    known[top:bottom, left:right] = ~unknown[source]
    frame = max(2, size // _FRAME)
    inner = np.zeros_like(known)
    inner[frame:-frame, frame:-frame] = True
    return tile, known & inner


def _fit_plane(tile: FloatArray, known: BoolArray) -> FloatArray:
    """Plane through the known values; their mean where they are too few."""
    steps = np.arange(len(tile)) - len(tile) / 2
    y, x = np.meshgrid(steps, steps, indexing="ij")
    if known.sum() < 16:
        return np.full(tile.shape, tile[known].mean() if known.any() else 0.0)
    columns = np.stack([np.ones(int(known.sum())), y[known], x[known]], axis=1)
    constant, slope_y, slope_x = np.linalg.lstsq(columns, tile[known], rcond=None)[0]
    return np.asarray(constant + slope_y * y + slope_x * x)


def _continue_field(values: FloatArray, known: BoolArray, power: FloatArray) -> FloatArray:
    """Continue a field of this spectrum to where it is not known: what is expected there, and zero elsewhere.

    Solves Q_uu d = -Q_uk v, where Q is the inverse of the covariance, by conjugate gradients preconditioned with
    the covariance.
    """
    shape = values.shape

    def multiply(field: FloatArray, spectrum: FloatArray) -> FloatArray:
        return np.asarray(np.where(known, 0.0, irfft2(rfft2(field) * spectrum, shape)))

    inverse = 1.0 / power
    residual = -multiply(values, inverse)
    solution = np.zeros_like(values)
    conditioned = multiply(residual, power)
    direction = conditioned.copy()
    energy = float((residual * conditioned).sum())
    least = _TOLERANCE**2 * energy
    for _ in range(_ROUNDS):
        if not energy > least:
            break
        image = multiply(direction, inverse)
        step = energy / float((direction * image).sum())
        solution += step * direction
        residual -= step * image
        conditioned = multiply(residual, power)
        previous, energy = energy, float((residual * conditioned).sum())
        direction = conditioned + energy / previous * direction
    return solution
