"""Power spectra of the tiles of a view, sorted by how high the specimen lies under each tile.

A tilted view has another defocus on either side of its tilt axis. Tiles at about the same height over the
axis share one average spectrum, a *row* for each direction in it. Every row then is compared with the CTF of
its own defocus. That does what stretching the frequencies of each tile to the defocus at the axis does, is exact
with spherical aberration, and needs no interpolation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.ops.fft import crop_centred, fast_size, frequency_axes, rescale_images
from verglas.ops.geometry import projection_matrices
from verglas.ops.statistics import clip_outliers
from verglas.shapes import Image

FloatArray = npt.NDArray[np.floating]

SECTORS = 12
"""Directions that are told apart: 15 degrees each, of the half circle that a real image has."""

_TAPER = 0.125  # of a tile's side, at either end

_TILES_AT_ONCE_BYTES = 256 << 20


@dataclass(frozen=True)
class Band:
    """Which frequencies are used, and the tiles they are measured on.

    Parameters
    ----------
    lowest_angstrom, highest_angstrom
        Resolution at which the band begins and ends, Å: the first is the larger number.
    tile_angstrom
        Side of a tile.
    """

    lowest_angstrom: float = 30.0
    highest_angstrom: float = 5.0
    tile_angstrom: float = 512.0

    def __post_init__(self) -> None:
        if not self.lowest_angstrom > self.highest_angstrom > 0:
            raise UserError(
                f"a band must begin at a lower resolution than it ends; got {self.lowest_angstrom:g} to "
                f"{self.highest_angstrom:g} Å"
            )
        if self.tile_angstrom < 4 * self.lowest_angstrom:
            raise UserError(
                f"a tile must be four times as large as the lowest resolution of {self.lowest_angstrom:g} Å; "
                f"got {self.tile_angstrom:g} Å"
            )


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


def check_band(band: Band, pixel_size_angstrom: float, image_shape: tuple[int, int], name: str) -> None:
    """Raise when the band or the tiles do not fit the images.

    Raises
    ------
    UserError
        When the band ends beyond Nyquist, or a tile is larger than a view.
    """
    if band.highest_angstrom < 2 * pixel_size_angstrom:
        raise UserError(
            f"the band of {name!r} ends at {band.highest_angstrom:g} Å, beyond the Nyquist resolution of "
            f"{2 * pixel_size_angstrom:g} Å at {pixel_size_angstrom:g} Å per pixel; expected a larger value"
        )
    side = min(image_shape) * pixel_size_angstrom
    if side < band.tile_angstrom:
        raise UserError(
            f"the views of {name!r} are {side:.0f} Å wide, less than one tile of {band.tile_angstrom:g} Å"
        )


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
    power, samples, _ = _sum_tiles(tiling, groups, band)
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
    power, samples, whole = _sum_tiles(tiling, np.arange(len(tiling.corners)), band)
    used = samples.any(axis=(1, 2))
    if not used.any():
        raise UserError(f"image {name!r} is blank; expected one with contrast")
    spectra = _gather(tiling, band, power[used], samples[used], np.zeros(int(used.sum())), 0.0)
    extent = np.array([image.shape[1], image.shape[0]]) * pixel_size_angstrom
    time = np.zeros(int(used.sum()))
    return CellSpectra(spectra, tiling.places[used], extent, time, whole, tiling.pixel)


@dataclass(frozen=True, eq=False)
class Tiling:
    """An image, coarsened to the band, and where its tiles lie.

    Parameters
    ----------
    image
        `(y, x)`.
    pixel
        Its pixel size, Å.
    size
        Side of a tile in pixels.
    starts
        First rows, and first columns, of the tiles.
    """

    image: Tensor
    pixel: float
    size: int
    starts: tuple[list[int], list[int]]

    @property
    def tile_angstrom(self) -> float:
        """Side of a tile."""
        return self.size * self.pixel

    @property
    def corners(self) -> list[tuple[int, int]]:
        """First row and column of each tile."""
        return [(y, x) for y in self.starts[0] for x in self.starts[1]]

    @property
    def places(self) -> FloatArray:
        """`(t, 2)` xy of the tiles' middles from the image's centre, Å; a middle lies between pixels."""
        corners = np.array(self.corners, dtype=float)[:, ::-1]
        centre = np.array([self.image.shape[1] // 2, self.image.shape[0] // 2])
        return np.asarray((corners + (self.size - 1) / 2 - centre) * self.pixel)


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


def lay_tiles(image: Image, pixel_size_angstrom: float, band: Band) -> Tiling:
    """Clip and coarsen an image `(y, x)`, and lay tiles that overlap by at least half."""
    image, pixel = _coarsen(clip_outliers(image.to(torch.float32), 5.0), pixel_size_angstrom, band)
    size = min(2 * round(band.tile_angstrom / pixel / 2), *image.shape)
    return Tiling(
        image, pixel, size, (_place_tiles(image.shape[0], size), _place_tiles(image.shape[1], size))
    )


def _gather(
    tiling: Tiling,
    band: Band,
    power: FloatArray,
    samples: FloatArray,
    depth: FloatArray,
    spread: float,
) -> ViewSpectra:
    bins = _frequency_bins(tiling.size, tiling.pixel, band)
    return ViewSpectra(
        power=power,
        samples=samples,
        depth_angstrom=depth,
        frequency=bins / (_padded(tiling.size) * tiling.pixel),
        direction_deg=(np.arange(SECTORS) + 0.5) * 180.0 / SECTORS,
        tile_angstrom=tiling.tile_angstrom,
        depth_spread_angstrom=spread,
    )


def _coarsen(image: Tensor, pixel: float, band: Band) -> tuple[Tensor, float]:
    """Crop the transform to little more than the band, so that the tiles have fewer pixels."""
    sixteenths = math.ceil(16 * 2.2 * pixel / band.highest_angstrom)
    if sixteenths > 13:
        return image, pixel
    # Whole multiples of 16, so that both axes keep one pixel size: a thousandth would pass for astigmatism.
    shape = [n // 16 * 16 for n in image.shape]
    smaller = rescale_images(crop_centred(image, shape), [n // 16 * sixteenths for n in shape])
    return smaller, pixel * 16 / sixteenths


def _place_tiles(length: int, size: int) -> list[int]:
    """Find the starts of tiles that overlap by at least half and reach both ends."""
    count = max(1, math.ceil((length - size) / (size / 2))) + 1 if length > size else 1
    return [round(start) for start in np.linspace(0, length - size, count)]


def _depth_plane(series: TiltSeries, view: int) -> tuple[float, float, float]:
    """Height of the plane z = 0 at the image's centre, Å, and its slopes along x and y of the image."""
    arguments = {
        name: torch.tensor(getattr(series, name)[view : view + 1])
        for name in ("x_tilt_deg", "y_tilt_deg", "z_rot_deg", "x_shift_angstrom", "y_shift_angstrom")
    }
    magnification = torch.tensor(series.magnification[view : view + 1])
    matrix = projection_matrices(**arguments, magnification=magnification)[0].numpy()
    slopes = matrix[2, :2] @ np.linalg.inv(matrix[:2, :2])
    return float(-slopes @ matrix[:2, 3]), float(slopes[0]), float(slopes[1])


def make_window(size: int) -> FloatArray:
    """`(size,)` one in the middle, with raised-cosine ends.

    A Hann window would hardly see the outermost part of an image, which is in no other tile.
    """
    place = (np.arange(size) + 0.5) / size
    ramp = np.minimum(np.minimum(place, 1 - place) / _TAPER, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * ramp))


@lru_cache(maxsize=1)
def window_spread() -> float:
    """Measure the standard deviation of x over the window's squared weight, in tiles."""
    size = 512
    place = (np.arange(size) + 0.5) / size - 0.5
    return float(np.sqrt(np.average(place**2, weights=make_window(size) ** 2)))


@lru_cache(maxsize=1)
def window_overlap() -> tuple[FloatArray, FloatArray]:
    """Measure how much of itself the window still covers when it is displaced, on average over directions.

    Returns
    -------
    tuple
        `(n,)` displacements, of the tile's side, and `(n,)` shares.
    """
    size = 512
    window = make_window(size)
    along = np.correlate(window, window, "full")[size - 1 :] / np.square(window).sum()
    places = np.arange(size) / size
    angles = (np.arange(SECTORS) + 0.5) * np.pi / 2 / SECTORS
    shares = [
        np.interp(places * np.cos(angle), places, along) * np.interp(places * np.sin(angle), places, along)
        for angle in angles
    ]
    return places, np.mean(shares, axis=0)


def _padded(size: int) -> int:
    return fast_size(round(1.5 * size))


def _frequency_bins(size: int, pixel: float, band: Band) -> npt.NDArray[np.int64]:
    length = _padded(size) * pixel
    return np.arange(math.ceil(length / band.lowest_angstrom), math.floor(length / band.highest_angstrom))


def _sum_tiles(
    tiling: Tiling, groups: npt.NDArray[np.int64], band: Band
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average the power of tiles over groups, sectors and rings: `(g, a, k)` means and numbers of samples.

    The third is the mean of all tiles as it is, `(y, x // 2 + 1)`.
    """
    image, size, pixel = tiling.image, tiling.size, tiling.pixel
    padded = _padded(size)
    count = int(groups.max()) + 1
    line = torch.from_numpy(make_window(size)).to(image)
    window = line[:, None] * line
    rings = len(_frequency_bins(size, pixel, band))
    polar, tiles = np.zeros((count, SECTORS, rings)), np.zeros(count)
    counts = _average_polar(image.new_ones(1, padded, padded // 2 + 1), size, pixel, band)[1]
    whole = image.new_zeros(padded, padded // 2 + 1)
    at_once = max(1, _TILES_AT_ONCE_BYTES // (12 * padded**2))
    for first in range(0, len(groups), at_once):
        group = groups[first : first + at_once]
        stack = torch.stack(
            [image[y : y + size, x : x + size] for y, x in tiling.corners[first : first + at_once]]
        )
        sd, mean = torch.std_mean(stack, dim=(1, 2), keepdim=True)
        is_blank = sd.flatten() < 1e-9
        stack = (stack - mean) / sd.clamp(min=1e-12) * window
        transform = torch.fft.rfft2(stack, s=(padded, padded))
        power = transform.real.square() + transform.imag.square()
        power[is_blank] = 0
        whole += power.sum(dim=0)
        names, place = np.unique(group, return_inverse=True)
        sums = power
        if len(names) < len(group):
            sums = power.new_zeros(len(names), *power.shape[1:])
            sums.index_add_(0, torch.from_numpy(place).to(power.device), power)
        polar[names] += _average_polar(sums, size, pixel, band)[0]
        tiles += np.bincount(group, ~is_blank.cpu().numpy(), count)
    power_means = polar / np.maximum(tiles[:, None, None], 1)
    samples = tiles[:, None, None] * counts / _redundancy(image, tiling.starts, size)
    return power_means, samples, (whole / max(tiles.sum(), 1)).cpu().numpy()


def _redundancy(image: Tensor, starts: tuple[list[int], list[int]], size: int) -> float:
    """Coefficients for each independent one, because tiles are padded and windowed and overlap.

    From the variance of a smooth weighted sum of the power of white noise, which is that of the squared windows,
    summed where tiles overlap.
    """
    square = make_window(size) ** 2
    factor = float(_padded(size)) ** 2
    for length, places in zip(image.shape, starts, strict=True):
        total = np.zeros(length)
        for start in places:
            total[start : start + size] += square
        factor *= float(np.square(total).sum()) / (len(places) * square.sum() ** 2)
    return factor


def _average_polar(power: Tensor, size: int, pixel: float, band: Band) -> tuple[FloatArray, FloatArray]:
    """Means of half transforms in sectors and rings `(g, a, k)`, and the coefficients in each `(a, k)`."""
    used, index, share, rings = _polar_places(size, pixel, band, power.device)
    values = power.flatten(1)[:, used].double()

    def collect(some: Tensor) -> Tensor:
        sums = some.new_zeros(*some.shape[:-1], SECTORS * rings)
        upper = some * share
        sums.index_add_(-1, index, some - upper).index_add_(-1, index + 1, upper)
        return sums.reshape(*some.shape[:-1], SECTORS, rings)[..., 1:-1]

    counts = collect(torch.ones_like(share))
    return (collect(values) / counts.clamp(min=1e-9)).cpu().numpy(), counts.cpu().numpy()


@lru_cache(maxsize=4)
def _polar_places(
    size: int, pixel: float, band: Band, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Which coefficients of a half transform are in the band, the place of each, and its share in the next ring.

    A coefficient is shared out between the two rings next to its frequency. In whole it would be half a ring off
    along the axes, where frequencies are whole numbers: as much as 100 Å of astigmatism.
    """
    padded = _padded(size)
    y, x = frequency_axes((padded, padded), pixel, dtype=torch.float64, device=device)
    bins = _frequency_bins(size, pixel, band)
    rings = len(bins) + 2  # one more at either end takes what lies outside
    place = (x.square() + y.square()).sqrt() * padded * pixel - float(bins[0]) + 1
    sector = torch.floor(torch.rad2deg(torch.atan2(y, x)) % 180.0 * SECTORS / 180.0).long()
    inside = (place > 0) & (place < rings - 1) & (x > 0)
    lower = torch.floor(place).long()
    index = (sector.clamp(max=SECTORS - 1) * rings + lower)[inside]
    return inside.flatten().nonzero().squeeze(1), index, (place - lower)[inside], rings
