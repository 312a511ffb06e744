"""The tomogram, ready to be searched: cut, sampled as the band needs, filtered."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import label
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.fft import radial_frequency, rescale_images
from verglas.ops.filters import bandpass_filter
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Values, Volume

_TAIL = 0.998
"""Share of the voxels that are noise and molecules; gold is less than the rest."""

_CLIP = 1.7
_GOLD = 3.0
"""Times the tail's value at which values are cut off, and beyond which they are gold."""

_GOLD_DIAMETER_ANGSTROM = 60.0


@dataclass(frozen=True, eq=False)
class SearchVolume:
    """A volume to be searched, and what was done to it.

    Parameters
    ----------
    values
        `(z, y, x)` filtered, mean 0 and deviation 1.
    voxel_size_angstrom
        Side of a voxel, the same along all axes to a part in a thousand.
    scale
        Voxels of the tomogram to one of these, zyx.
    centre
        Voxel of the tomogram at the centre of this volume, zyx.
    usable
        `(z, y, x)` where there is something, gold aside.
    curve
        Frequencies in 1/Å and the filter's values there.
    band
        Low-pass and high-pass, Å; none where there is none.
    """

    values: Volume
    voxel_size_angstrom: float
    scale: tuple[float, float, float]
    centre: tuple[int, int, int]
    usable: npt.NDArray[np.bool_]
    curve: tuple[Tensor, Tensor] | None
    band: tuple[float, float | None]

    def make_filter(self, size: int) -> Values:
        """Return what was done to the volume, for the box of a template."""
        return _make_filter((size, size, size), self.voxel_size_angstrom, self.band, self.curve)

    def to_tomogram(self, places: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Turn `(n, 3)` voxels zyx of this volume into those of the tomogram's part that it was made from."""
        middle = np.array([n // 2 for n in self.values.shape])
        return np.asarray((places - middle) * np.array(self.scale) + np.array(self.centre))


def prepare_volume(
    tomogram: Volume,
    voxel_size_angstrom: float,
    *,
    search_voxel_angstrom: float,
    lowpass_angstrom: float,
    highpass_angstrom: float | None = None,
    whiten: bool = False,
) -> SearchVolume:
    """Bring a tomogram, or the part of it that is searched, to the sampling and band of a search.

    What is exactly zero was seen by no view and takes the median. Gold is where values several times beyond
    those of molecules lie together; what its streaks add to the rest is cut off.

    Parameters
    ----------
    tomogram
        `(z, y, x)`, dense matter dark.
    voxel_size_angstrom
        Its voxel, Å.
    search_voxel_angstrom
        That of the search; the tomogram's own when that is coarser.
    lowpass_angstrom, highpass_angstrom
        Band that is compared.
    whiten
        Divide every frequency by the root of the volume's mean power there.

    Raises
    ------
    UserError
        When the volume is flat.
    """
    seen = tomogram != 0
    if not bool(seen.any()):
        raise UserError("the region that is searched is empty: all its voxels are zero")
    middle = tomogram[seen].median()
    spread = 1.4826 * (tomogram[seen] - middle).abs().median()
    if not float(spread) > 0:
        raise UserError("the region that is searched is flat: its voxels are all alike")
    values = torch.where(seen, (tomogram - middle) / spread, 0.0)
    tail = float(np.quantile(values[seen].abs().cpu().numpy()[::7], _TAIL))
    gold = find_gold((values / tail).cpu().numpy(), voxel_size_angstrom)
    values = values.clamp(-_CLIP * tail, _CLIP * tail)
    factor = max(1.0, search_voxel_angstrom / voxel_size_angstrom)
    padded, shape = zip(*(_choose_size(n, factor) for n in values.shape), strict=True)
    scale = tuple(n / m for n, m in zip(padded, shape, strict=True))
    clean = _sample((seen.cpu() & ~torch.from_numpy(gold)).numpy(), padded, shape)
    margins = [m - n for n, m in zip(values.shape, padded, strict=True)]
    values = torch.nn.functional.pad(values, (0, margins[2], 0, margins[1], 0, margins[0]))
    values = rescale_images(values, shape)
    voxel = voxel_size_angstrom * float(np.prod(scale) ** (1 / 3))
    band = (lowpass_angstrom, highpass_angstrom)
    curve = _measure_whitening(values, voxel) if whiten else None
    filters = _make_filter(shape, voxel, band, curve).to(values.device)
    values = torch.fft.irfftn(torch.fft.rfftn(values).mul_(filters), s=shape)
    values = (values - values.mean()) / values.std()
    return SearchVolume(
        values=values,
        voxel_size_angstrom=voxel,
        scale=(scale[0], scale[1], scale[2]),
        centre=(padded[0] // 2, padded[1] // 2, padded[2] // 2),
        usable=clean,
        curve=curve,
        band=band,
    )


def _choose_size(size: int, factor: float) -> tuple[int, int]:
    """Choose a padded size, and the even number of coarser voxels that it makes to a part in a thousand or so."""
    if factor < 1.001:
        return size, size
    candidates = [
        (n, 2 * max(1, round(n / factor / 2))) for n in range(size, size + 2 * math.ceil(factor) + 16)
    ]
    # Never coarser than asked: the band would not fit.
    fitting = [(n, m) for n, m in candidates if n / m <= factor * (1 + 1e-4)] or candidates
    return min(fitting, key=lambda pair: (round(abs(pair[0] / pair[1] / factor - 1), 4), pair[0]))


def _sample(
    region: npt.NDArray[np.bool_], padded: tuple[int, ...], shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Read a region at the nearest voxels of the coarser volume; false where it was padded."""
    for axis, (n, m) in enumerate(zip(padded, shape, strict=True)):
        places = np.rint((np.arange(m) - m // 2) * n / m + n // 2).astype(int)
        whole = region.shape[axis]
        region = np.take(region, places.clip(0, whole - 1), axis=axis)
        inside = (places >= 0) & (places < whole)
        region = region & inside.reshape([-1 if i == axis else 1 for i in range(3)])
    return region


def find_gold(values: npt.NDArray[np.float32], voxel_size_angstrom: float) -> npt.NDArray[np.bool_]:
    """Tell where gold is in a volume of mean 0, in units of what one voxel in five hundred exceeds."""
    extreme = np.abs(values) > _GOLD
    if not extreme.any():
        return extreme
    labels, count = label(extreme, structure=np.ones((3, 3, 3)))
    smallest = max(4.0, 0.05 * (_GOLD_DIAMETER_ANGSTROM / voxel_size_angstrom) ** 3)
    sizes = np.bincount(labels.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((sizes >= smallest)[labels])


def _make_filter(
    shape: tuple[int, ...],
    voxel: float,
    band: tuple[float, float | None],
    curve: tuple[Tensor, Tensor] | None,
) -> Tensor:
    lowpass, highpass = band
    length = max(shape) * voxel
    # The edge of the low-pass is a fifth of its frequency wide, that of the high-pass half of it.
    filters = bandpass_filter(shape, voxel, lowpass_angstrom=lowpass, edge_pixels=0.2 * length / lowpass)
    if highpass is not None:
        filters = filters * bandpass_filter(
            shape, voxel, highpass_angstrom=highpass, edge_pixels=0.5 * length / highpass
        )
    if curve is not None:
        places, values = (one.numpy() for one in curve)
        filters = filters * torch.from_numpy(
            np.interp(radial_frequency(shape, voxel).numpy(), places, values).astype(np.float32)
        )
    return filters


def _measure_whitening(values: Tensor, voxel: float) -> tuple[Tensor, Tensor]:
    """Frequencies, and one over the root of the mean power there; flat below the longest waves of a molecule."""
    power = torch.fft.rfftn(values).abs().square().reshape(-1)
    shells = fourier_shells(tuple(values.shape), values.device).reshape(-1)
    count = max(values.shape) // 2 + 1
    inside = shells < count
    sums = torch.bincount(shells[inside], power[inside].double(), minlength=count)
    mean = sums / torch.bincount(shells[inside], minlength=count).clamp_min(1)
    frequency = torch.arange(count, dtype=torch.float64) / (max(values.shape) * voxel)
    first = int(min(count - 1, max(1, round(max(values.shape) * voxel / _LONGEST_ANGSTROM))))
    mean[:first] = mean[first]
    curve = mean.clamp_min(1e-6 * float(mean.max())).rsqrt().cpu()
    return frequency, curve / curve.max()


_LONGEST_ANGSTROM = 500.0
