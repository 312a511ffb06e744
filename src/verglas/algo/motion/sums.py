"""Sums of displaced frames, plain and weighted by exposure, in one pass over the frames.

Weights depend on frequency and frame, and a filter for each frame would cost two transforms of it. They are smooth
in both, so a few products of a factor a frame and a curve over frequency make all of them: frames are added with
the factors as they are, and the curves are applied to the few sums at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.motion.field import shifts_on_axes
from verglas.model import MotionModel
from verglas.ops.dose import critical_exposure
from verglas.ops.fft import frequency_axes
from verglas.ops.kernels.warp import BLOCK, ReadRows, add_displaced, count_blocks
from verglas.runtime import map_threads

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 1e-3
"""Largest error of a weight, as a part of the largest."""

_CURVE = 512
_ROWS = 64
_COLUMNS = 32


@dataclass(frozen=True, eq=False)
class Weighting:
    """Weights of n frames as sums of r products.

    Parameters
    ----------
    factors
        `(n, r)` by which each frame is added to each sum; 1 for the first sum.
    curves
        `(r, k)` by which the sums are multiplied for the dose-weighted image, at `k` frequencies from zero to that
        of the corner of Fourier space; none without weighting.
    """

    factors: FloatArray
    curves: FloatArray | None


def weight_plainly(count: int) -> Weighting:
    """All frames alike."""
    return Weighting(np.ones((count, 1)), None)


def weight_by_exposure(
    count: int,
    pixel_size_angstrom: float,
    exposure_e_per_a2: float,
    pre_exposure_e_per_a2: float = 0.0,
    voltage_kv: float = 300.0,
) -> Weighting:
    """Weight frames by what the exposure up to their end left of each frequency (Grant and Grigorieff 2015).

    w_i = √n q_i / √(Σ q_j²): noise keeps at every frequency the power that it has in the plain sum, and so does the
    mean.

    Parameters
    ----------
    count
        Number n of frames.
    pixel_size_angstrom
        Of the frames, Å.
    exposure_e_per_a2
        Of one frame.
    pre_exposure_e_per_a2
        Before the first of them.
    voltage_kv
        100 to 300.
    """
    frequency = torch.linspace(0.0, np.sqrt(0.5) / pixel_size_angstrom, _CURVE, dtype=torch.float64)
    exposure = pre_exposure_e_per_a2 + exposure_e_per_a2 * np.arange(1, count + 1)
    rate = (-0.5 / critical_exposure(frequency, voltage_kv)).numpy()
    # Against the first frame, so that nothing underflows.
    left = np.exp((exposure[:, None] - exposure[0]) * rate)
    weights = np.sqrt(count) * left / np.sqrt((left**2).sum(0))
    mean = weights.mean(0)
    u, values, v = np.linalg.svd(weights - mean, full_matrices=False)
    for rank in range(len(values) + 1):
        factors = np.concatenate([np.ones((count, 1)), u[:, :rank]], axis=1)
        curves = np.concatenate([mean[None], values[:rank, None] * v[:rank]])
        if np.abs(factors @ curves - weights).max() <= TOLERANCE * weights.max():
            break
    return Weighting(factors, curves)


class FrameSums:
    """Sums of frames that are read some rows at a time.

    Parameters
    ----------
    model
        The motion that is taken out.
    shape
        `(y, x)` pixels of the frames.
    pixel_size_angstrom
        Å.
    weighting
        How frames are weighted.
    even
        Whether to add up every other frame apart too.
    """

    def __init__(
        self,
        model: MotionModel,
        shape: tuple[int, int],
        pixel_size_angstrom: float,
        weighting: Weighting,
        *,
        even: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._model, self._shape, self._pixel = model, shape, pixel_size_angstrom
        self._weighting, self._even = weighting, even
        # Rows have room for their half transforms, which take their place.
        count = weighting.factors.shape[1] + even
        self._sums = torch.zeros(count, shape[0], 2 * (shape[1] // 2 + 1), device=device)

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._sums.device

    def add(
        self, numbers: Sequence[int], read_rows: ReadRows, gain: Float[Tensor, "y x"] | None = None
    ) -> None:
        """Add frames `numbers` (from 0, of those that the model has); `read_rows` counts them as they are given."""
        factors = torch.from_numpy(self._weighting.factors[list(numbers)]).float()
        if self._even:
            factors = torch.cat([factors, torch.tensor(numbers)[:, None] % 2], dim=1)
        shifts = torch.stack(
            [block_shifts(self._model, number, self._shape, self._pixel) for number in numbers]
        )
        add_displaced(read_rows, shifts, factors, self._sums[..., : self._shape[1]], gain)

    def plain(self) -> Float[Tensor, "y x"]:
        """Sum of all frames, until :meth:`weighted` takes its place."""
        return self._sums[0, :, : self._shape[1]]

    def even(self) -> Float[Tensor, "y x"]:
        """Sum of the second, fourth ... frame."""
        return self._sums[-1, :, : self._shape[1]]

    def weighted(self) -> Float[Tensor, "y x"]:
        """Dose-weighted sum. It is made in the place of the others, so nothing else can be asked for afterwards."""
        height, width = self._shape
        curves = self._weighting.curves
        if curves is not None:
            sums = self._sums[: len(curves)]
            transforms = torch.view_as_complex(sums.view(*sums.shape[:2], -1, 2))
            tables = torch.from_numpy(curves).to(sums)
            y2, x2 = (axis.square() for axis in frequency_axes(self._shape, device=sums.device))

            def transform(top: int) -> None:
                rows = slice(top, top + _ROWS)
                transforms[:, rows] = torch.fft.rfft(sums[:, rows, :width])

            def weight(left: int) -> None:
                columns = slice(left, left + _COLUMNS)
                place = (y2 + x2[:, columns]).sqrt_() * ((_CURVE - 1) / np.sqrt(0.5))
                low = place.floor().long().clamp(max=_CURVE - 2)
                place -= low
                total = torch.zeros((), device=sums.device)
                for part, table in zip(transforms[:, :, columns], tables, strict=True):
                    total = total + torch.fft.fft(part, dim=0) * torch.lerp(table[low], table[low + 1], place)
                transforms[0, :, columns] = torch.fft.ifft(total, dim=0)

            def transform_back(top: int) -> None:
                rows = slice(top, top + _ROWS)
                sums[0, rows, :width] = torch.fft.irfft(transforms[0, rows], width)

            map_threads(transform, range(0, height, _ROWS))
            map_threads(weight, range(0, width // 2 + 1, _COLUMNS))
            map_threads(transform_back, range(0, height, _ROWS))
        return self._sums[0, :, :width]


def block_shifts(
    model: MotionModel, frame: int, shape: tuple[int, int], pixel_size_angstrom: float
) -> Float[Tensor, "by bx 2"]:
    """Displacement of each block of `ops.kernels.warp` in pixels."""
    axes = [
        np.minimum((np.arange(count) + 0.5) * BLOCK, size) / size
        for count, size in zip(count_blocks(shape), shape, strict=True)
    ]
    return torch.from_numpy(shifts_on_axes(model, frame, axes[0], axes[1]) / pixel_size_angstrom)


def displace_frame(
    model: MotionModel,
    frame: int,
    read_rows: ReadRows,
    shape: tuple[int, int],
    pixel_size_angstrom: float,
    gain: Float[Tensor, "y x"] | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "y x"]:
    """One frame with its motion taken out, for the rows of image 0 of `read_rows`."""
    result = torch.zeros(1, *shape, device=device)
    shifts = block_shifts(model, frame, shape, pixel_size_angstrom)
    add_displaced(read_rows, shifts[None], torch.ones(1, 1), result, gain)
    return result[0]
