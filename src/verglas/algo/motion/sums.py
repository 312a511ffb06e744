"""Sums of displaced frames, plain and weighted by exposure, in one pass over the frames.

Weights depend on frequency and frame, and a filter for each frame would cost two transforms of it. They are smooth
in both, so a few products of a factor a frame and a curve over frequency make all of them: frames are added with
the factors as they are, and the curves are applied to the few sums at the end.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.motion.field import shifts_on_axes
from verglas.model import MotionModel
from verglas.ops.dose import critical_exposure
from verglas.ops.fft import radial_frequency
from verglas.ops.kernels.warp import AT_ONCE, BLOCK, add_displaced, count_blocks

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 1e-3
"""Largest error of a weight, as a part of the largest."""

_CURVE = 512


@dataclass(frozen=True, eq=False)
class Weighting:
    """Weights of n frames as sums of r products.

    Parameters
    ----------
    factors
        `(n, r)` by which each frame is added to each sum.
    curves
        `(r, k)` by which the sums are multiplied for the dose-weighted image, at `k` frequencies from zero to that
        of the corner of Fourier space; none without weighting.
    plain
        `(r,)` by which they are multiplied for the plain sum.
    """

    factors: FloatArray
    curves: FloatArray | None
    plain: FloatArray


def weight_plainly(count: int) -> Weighting:
    """All frames alike."""
    return Weighting(np.ones((count, 1)), None, np.ones(1))


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
    table = np.concatenate([weights, np.ones((count, 1))], axis=1)
    u, values, v = np.linalg.svd(table, full_matrices=False)
    for rank in range(1, len(values) + 1):
        factors, curves = u[:, :rank], values[:rank, None] * v[:rank]
        if np.abs(factors @ curves - table).max() <= TOLERANCE * weights.max():
            break
    return Weighting(factors, curves[:, :-1], curves[:, -1])


class FrameSums:
    """Adds frames up as they come.

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
        self._waiting: list[tuple[int, Tensor]] = []
        self._sums = torch.zeros(weighting.factors.shape[1] + even, *shape, device=device)

    def add(self, number: int, frame: Float[Tensor, "y x"]) -> None:
        """Add frame `number` (from 0, of those that the model has)."""
        self._waiting.append((number, frame))
        if len(self._waiting) == AT_ONCE:
            self._add_waiting()

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        numbers = [number for number, _ in self._waiting]
        factors = torch.from_numpy(self._weighting.factors[numbers]).float()
        if self._even:
            factors = torch.cat([factors, torch.tensor(numbers)[:, None] % 2], dim=1)
        shifts = torch.stack(
            [block_shifts(self._model, number, self._shape, self._pixel) for number in numbers]
        )
        add_displaced([frame for _, frame in self._waiting], shifts, factors, self._sums)
        self._waiting = []

    def plain(self) -> Float[Tensor, "y x"]:
        """Sum of all frames."""
        self._add_waiting()
        rank = len(self._weighting.plain)
        plain = torch.from_numpy(self._weighting.plain).to(self._sums)
        total: Tensor = torch.tensordot(plain, self._sums[:rank], dims=1)
        return total

    def even(self) -> Float[Tensor, "y x"]:
        """Sum of the second, fourth ... frame."""
        self._add_waiting()
        return self._sums[-1]

    def weighted(self) -> Float[Tensor, "y x"]:
        """Dose-weighted sum."""
        self._add_waiting()
        if self._weighting.curves is None:
            return self.plain()
        radius = radial_frequency(self._shape, device=self._sums.device)
        place = radius * ((_CURVE - 1) / np.sqrt(0.5))
        low = place.floor().long().clamp(max=_CURVE - 2)
        place -= low
        total = torch.zeros(radius.shape, dtype=torch.complex64, device=self._sums.device)
        for image, curve in zip(self._sums, self._weighting.curves, strict=False):
            line = torch.from_numpy(curve).to(self._sums)
            total += torch.fft.rfft2(image) * torch.lerp(line[low], line[low + 1], place)
        result: Tensor = torch.fft.irfft2(total, s=self._shape)
        return result


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
    model: MotionModel, frame: int, image: Float[Tensor, "y x"], pixel_size_angstrom: float
) -> Float[Tensor, "y x"]:
    """One frame with its motion taken out."""
    shape = (image.shape[0], image.shape[1])
    result = torch.zeros(1, *shape, device=image.device)
    shifts = block_shifts(model, frame, shape, pixel_size_angstrom)
    add_displaced([image], shifts[None], torch.ones(1, 1), result)
    return result[0]
