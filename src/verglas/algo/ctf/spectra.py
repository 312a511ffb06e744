"""Power spectra of the tiles of a view, sorted by how high the specimen lies under each tile.

A tilted view has another defocus on either side of its tilt axis. Tiles at about the same height over the
axis share one average spectrum, a *row* for each direction in it. Every row then is compared with the CTF of
its own defocus. That does what stretching the frequencies of each tile to the defocus at the axis does, is exact
with spherical aberration, and needs no interpolation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.tiles import (
    SECTORS,
    Band,
    Tiling,
    check_band,
    lay_tiles,
    list_frequencies,
    sum_tiles,
    window_spread,
)
from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.ops.geometry import series_matrices
from verglas.shapes import Image

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class ViewSpectra:
    """Spectra of one view.

    Parameters
    ----------
    power
        `(g, a, k)` mean power of the tiles at each height, in each direction, at each frequency.
    samples
        `(g, a, k)` numbers of independent Fourier coefficients in each mean.
    depth_angstrom
        `(g,)` height of the specimen's middle plane under the tiles, along the beam, over that of the
        specimen's centre.
    frequency
        `(k,)` 1/Å.
    direction_deg
        `(a,)` from x towards y.
    tile_angstrom
        Side of a tile, which decides how much of fine rings is left.
    depth_spread_angstrom
        Standard deviation of the height within a tile.
    """

    power: FloatArray
    samples: FloatArray
    depth_angstrom: FloatArray
    frequency: FloatArray
    direction_deg: FloatArray
    tile_angstrom: float
    depth_spread_angstrom: float


@dataclass(frozen=True, eq=False)
class CellSpectra:
    """Spectra of the cells of a micrograph: its tiles, or those of groups of a movie's frames.

    Parameters
    ----------
    spectra
        Rows are the cells; no height is known.
    places
        `(g, 2)` xy of each from the image's centre, Å.
    extent_angstrom
        `(2,)` sides of the image along x and y.
    time
        `(g,)` of each in the movie, from 0 to 1.
    power_2d
        `(y, x // 2 + 1)` mean power of all tiles, a half transform.
    power_2d_pixel_angstrom
        Pixel size of the image that it would be the transform of.
    """

    spectra: ViewSpectra
    places: FloatArray
    extent_angstrom: FloatArray
    time: FloatArray
    power_2d: FloatArray
    power_2d_pixel_angstrom: float


def measure_spectra(image: Image, series: TiltSeries, view: int, band: Band) -> ViewSpectra:
    """Average the power spectra of a view's tiles by height and direction.

    Parameters
    ----------
    image
        `(y, x)` the view; hot pixels and gold are clipped at five robust standard deviations.
    series
        Its geometry; the specimen is taken as the plane z = 0.
    view
        Row of the series.
    band
        What is kept.

    Raises
    ------
    UserError
        When the band does not fit the images, or the view has no tile that is not blank.
    """
    check_band(band, series.pixel_size_angstrom, series.image_shape, series.name)
    tiling = lay_tiles(image, series.pixel_size_angstrom, band)
    plane = _depth_plane(series, view)
    depth = plane[0] + tiling.places @ np.array(plane[1:])
    slope = math.hypot(plane[1], plane[2])
    spread = window_spread() * tiling.tile_angstrom * slope
    # Heights in one group add a twelfth to the variance of those within a tile.
    step = max(40.0, spread)
    groups = np.round(depth / step).astype(int)
    groups -= groups.min()
    power, samples, _ = sum_tiles(tiling, groups, band)
    heights = np.bincount(groups, depth) / np.maximum(np.bincount(groups), 1)
    used = samples.any(axis=(1, 2))
    if not used.any():
        raise UserError(
            f"view {view + 1} of {series.name!r} is blank; expected an image, or that it is left out"
        )
    return _gather(
        tiling, band, power[used], samples[used], heights[used], math.hypot(spread, step / 12**0.5)
    )


def measure_cells(image: Image, pixel_size_angstrom: float, band: Band, name: str) -> CellSpectra:
    """Measure the power spectrum of every tile of an image by itself.

    Parameters
    ----------
    image
        `(y, x)`; hot pixels and gold are clipped at five robust standard deviations.
    pixel_size_angstrom
        Å.
    band
        What is kept.
    name
        Of the image, for errors.

    Raises
    ------
    UserError
        When the band does not fit the image, or it is blank.
    """
    check_band(band, pixel_size_angstrom, (image.shape[0], image.shape[1]), name)
    tiling = lay_tiles(image, pixel_size_angstrom, band)
    power, samples, whole = sum_tiles(tiling, np.arange(len(tiling.corners)), band)
    used = samples.any(axis=(1, 2))
    if not used.any():
        raise UserError(f"image {name!r} is blank; expected one with contrast")
    spectra = _gather(tiling, band, power[used], samples[used], np.zeros(int(used.sum())), 0.0)
    extent = np.array([image.shape[1], image.shape[0]]) * pixel_size_angstrom
    time = np.zeros(int(used.sum()))
    return CellSpectra(spectra, tiling.places[used], extent, time, whole, tiling.pixel)


def end_band(cells: CellSpectra, highest_angstrom: float) -> CellSpectra:
    """Leave out frequencies beyond a resolution in Å."""
    spectra = cells.spectra
    kept = spectra.frequency <= 1 / highest_angstrom
    return replace(
        cells,
        spectra=replace(
            spectra,
            power=spectra.power[..., kept],
            samples=spectra.samples[..., kept],
            frequency=spectra.frequency[kept],
        ),
    )


def add_frames(frames: Sequence[CellSpectra], time: float) -> CellSpectra:
    """Average the spectra of frames, each of the same image at the same places, into those of one time."""
    samples = np.sum([one.spectra.samples for one in frames], axis=0)
    power = np.sum([one.spectra.power * one.spectra.samples for one in frames], axis=0)
    power /= np.maximum(samples, 1e-9)
    first = frames[0]
    return replace(
        first,
        spectra=replace(first.spectra, power=power, samples=samples),
        time=np.full(len(first.places), time),
        power_2d=np.mean([one.power_2d for one in frames], axis=0),
    )


def join_times(parts: Sequence[CellSpectra]) -> CellSpectra:
    """Put the cells of several times into one."""
    first = parts[0]
    spectra = replace(
        first.spectra,
        power=np.concatenate([one.spectra.power for one in parts]),
        samples=np.concatenate([one.spectra.samples for one in parts]),
        depth_angstrom=np.concatenate([one.spectra.depth_angstrom for one in parts]),
    )
    return CellSpectra(
        spectra,
        np.concatenate([one.places for one in parts]),
        first.extent_angstrom,
        np.concatenate([one.time for one in parts]),
        np.mean([one.power_2d for one in parts], axis=0),
        first.power_2d_pixel_angstrom,
    )


def _gather(
    tiling: Tiling,
    band: Band,
    power: FloatArray,
    samples: FloatArray,
    depth: FloatArray,
    spread: float,
) -> ViewSpectra:
    return ViewSpectra(
        power=power,
        samples=samples,
        depth_angstrom=depth,
        frequency=list_frequencies(tiling, band),
        direction_deg=(np.arange(SECTORS) + 0.5) * 180.0 / SECTORS,
        tile_angstrom=tiling.tile_angstrom,
        depth_spread_angstrom=spread,
    )


def _depth_plane(series: TiltSeries, view: int) -> tuple[float, float, float]:
    """Height of the plane z = 0 at the image's centre, Å, and its slopes along x and y of the image."""
    matrix = series_matrices(series.take([view]).geometry)[0].numpy()
    slopes = matrix[2, :2] @ np.linalg.inv(matrix[:2, :2])
    return float(-slopes @ matrix[:2, 3]), float(slopes[0]), float(slopes[1])
