"""Averages of particles seen from nearly one side, before and after: what a 2-D classification would show."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verglas.ops.interpolation import affine_transform_images
from verglas.ops.rotation import euler_to_matrices
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Image, ImageRfft

FloatArray = npt.NDArray[np.float64]

AVERAGES = 4
_NEAR_DEG, _APART_DEG = 15.0, 40.0
_MOST, _LOOKED_AT = 100, 4000
_LEADING = 4
_FLOOR = 0.1
_AT_ONCE = 1 << 20
"""Pixels that are collected before they are turned: threads that start for a few images cost more than these."""


class Averages:
    """Which particles go into which average, and the sums of these.

    Parameters
    ----------
    angles_deg
        `(n, 3)` rot, tilt, psi of all particles.
    size
        Side of the images, pixels.
    """

    def __init__(self, angles_deg: FloatArray, size: int) -> None:
        self.turns = euler_to_matrices(torch.from_numpy(angles_deg)).numpy()
        self.member, self.leaders = _choose_members(self.turns)
        self._sums = np.zeros((AVERAGES, 2, size, size))
        self._weights = np.zeros((AVERAGES, size // 2 + 1))
        self._waiting: list[tuple[npt.NDArray[np.int64], Tensor, Tensor, Tensor]] = []

    def add(
        self, rows: npt.NDArray[np.int64], before: ImageRfft, after: ImageRfft, change: ImageRfft
    ) -> None:
        """Add particles: `(b,)` rows of the table, `(b, n, n // 2 + 1)` as in `ops.kernels.parted_slices`."""
        chosen = np.flatnonzero(self.member[rows] >= 0)
        if not len(chosen):
            return
        index = torch.from_numpy(chosen).to(before.device)
        self._waiting.append((rows[chosen], before[index], after[index], change[index]))
        if sum(len(one[0]) for one in self._waiting) * before.shape[1] ** 2 > _AT_ONCE:
            self._turn_waiting()

    def take_sums(self) -> tuple[FloatArray, FloatArray]:
        """Return sums `(k, 2, n, n)` and weights `(k, n // 2 + 1)` of all that was added."""
        self._turn_waiting()
        return self._sums, self._weights

    def _turn_waiting(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate([one[0] for one in self._waiting])
        before = torch.cat([one[1] for one in self._waiting])
        after = torch.cat([one[2] for one in self._waiting])
        change = torch.cat([one[3] for one in self._waiting])
        self._waiting.clear()
        size = before.shape[1]
        group = self.member[rows]
        turns = self.turns[rows] @ self.turns[self.leaders[group]].transpose(0, 2, 1)
        angle = np.arctan2(turns[:, 1, 0] - turns[:, 0, 1], turns[:, 0, 0] + turns[:, 1, 1])
        cos, sin = np.cos(angle), np.sin(angle)
        # From the particle back to its leader.
        back = torch.from_numpy(np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2)).float()
        for place, slices in enumerate((before, after)):
            images = torch.fft.irfft2(slices * change.conj(), s=(size, size))
            centred: Image = torch.fft.fftshift(images, dim=(-2, -1)).cpu()
            turned = affine_transform_images(centred, back).double().numpy()
            for one in np.unique(group):
                self._sums[one, place] += turned[group == one].sum(axis=0)
        shells = fourier_shells((size, size)).clamp(max=size // 2).numpy()
        power = change.abs().square().double().cpu().numpy()
        for one in np.unique(group):
            self._weights[one] += _mean_shells(power[group == one].sum(axis=0), shells)


def finish_averages(sums: FloatArray, weights: FloatArray) -> FloatArray:
    """Divide sums `(k, 2, n, n)` by their weights `(k, n // 2 + 1)`, of each shell; weak shells fade."""
    size = sums.shape[-1]
    shells = fourier_shells((size, size)).clamp(max=size // 2).numpy()
    known = weights.max(axis=1) > 0
    weights = weights[known]
    spread = (weights + _FLOOR * weights.max(axis=1, keepdims=True))[:, shells]
    transforms = np.fft.rfft2(sums[known]) / spread[:, None]
    averages: FloatArray = np.fft.irfft2(transforms, s=(size, size))
    return averages


def _mean_shells(values: FloatArray, shells: npt.NDArray[np.int64]) -> FloatArray:
    total = np.bincount(shells.ravel(), values.ravel())
    mean: FloatArray = total / np.maximum(np.bincount(shells.ravel()), 1)
    return mean


def _choose_members(turns: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give the particles about the most frequent views to averages; -1 is none."""
    looked = np.unique(np.linspace(0, len(turns) - 1, min(len(turns), _LOOKED_AT)).astype(np.int64))
    views = turns[looked, 2]
    # A quarter of them may lead; all may follow.
    near = views[::_LEADING] @ views.T > np.cos(np.deg2rad(_NEAR_DEG))
    free = np.ones(len(looked), dtype=bool)
    member = np.full(len(turns), -1)
    leaders: list[int] = []
    for number in range(AVERAGES):
        count = np.where(free[::_LEADING], np.count_nonzero(near & free, axis=1), 0)
        first = int(np.argmax(count))
        if not count[first]:
            leaders.append(leaders[-1])
            continue
        leader = _LEADING * first
        leaders.append(int(looked[leader]))
        distance = views @ views[leader]
        rows = np.flatnonzero(near[first] & free)
        rows = rows[np.argsort(-distance[rows], kind="stable")[:_MOST]]
        member[looked[rows]] = number
        free &= distance < np.cos(np.deg2rad(_APART_DEG))
    return member, np.array(leaders)
