"""The tiles of an image, and the means of their power in rings and sectors."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import crop_centred, fast_size, frequency_axes, rescale_images
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


def lay_tiles(image: Image, pixel_size_angstrom: float, band: Band) -> Tiling:
    """Clip and coarsen an image `(y, x)`, and lay tiles that overlap by at least half."""
    image, pixel = _coarsen(clip_outliers(image.to(torch.float32), 5.0), pixel_size_angstrom, band)
    size = min(2 * round(band.tile_angstrom / pixel / 2), *image.shape)
    return Tiling(
        image, pixel, size, (_place_tiles(image.shape[0], size), _place_tiles(image.shape[1], size))
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


def sum_tiles(
    tiling: Tiling, groups: npt.NDArray[np.int64], band: Band
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average the power of tiles over groups, sectors and rings.

    Parameters
    ----------
    tiling
        The tiles.
    groups
        `(t,)` number of each tile's group, from 0.
    band
        Which frequencies are kept.

    Returns
    -------
    power, samples
        `(g, a, k)` means, and numbers of independent coefficients in each; a blank tile has none.
    whole
        `(y, x // 2 + 1)` mean power of all tiles, a half transform.
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


def list_frequencies(tiling: Tiling, band: Band) -> FloatArray:
    """`(k,)` frequencies of the rings, 1/Å."""
    bins = _frequency_bins(tiling.size, tiling.pixel, band)
    return np.asarray(bins / (_padded(tiling.size) * tiling.pixel))


def _padded(size: int) -> int:
    return fast_size(round(1.5 * size))


def _frequency_bins(size: int, pixel: float, band: Band) -> npt.NDArray[np.int64]:
    length = _padded(size) * pixel
    return np.arange(math.ceil(length / band.lowest_angstrom), math.floor(length / band.highest_angstrom))
