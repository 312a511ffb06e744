"""What two parts of a map look like in particle images, compared with these, subtracted and inserted, in two passes.

A pixel k of the half transform of an image that shows particle p predicts

    A(k) = T(k) F(k) exp(-2πi k·t / n) V(k'),   T = a exp(-B s²) sin(χ)   (squared where the images were so treated)

with χ = k·Q·k + P(k), V the trilinear value of the padded transform at k' = (N / n) (kx m₀ + ky m₁), and P, F
and s² tables of the particle's optics. Everything that does not reach Nyquist counts; the rest is zero.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from verglas.ops.kernels import fourier_slice
from verglas.ops.kernels import parted_slices_numba as _numba
from verglas.ops.statistics import fourier_shells
from verglas.shapes import ImageRfft

PRODUCTS = 6
"""Sums of a shell: Σ|X|², Re ΣX K*, Re ΣX R*, Σ|K|², Re ΣK R*, Σ|R|²; X the image, K and R kept and removed."""


class Views(NamedTuple):
    """How b particles are seen.

    Parameters
    ----------
    part
        `(b,)` which of the parted transforms.
    axes
        `(b, 2, 3)` m₀ and m₁: where a step along x and along y of the image's transform leads, xyz; float64.
    shifts
        `(b, 2)` xy of the particle from pixel 0, pixels; float64.
    waves
        `(b, 6)` Qxx, Qxy, Qyy of χ for k in pixels, constant phase, B in Å², a; float64.
    group
        `(b,)` optics.
    squared
        `(b,)` whether T counts squared.
    phases, factors, squares
        `(g, n, n // 2 + 1)` P, F (complex) and s² in 1/Å² of each optics.
    """

    part: Int[Tensor, " b"]
    axes: Float[Tensor, "b 2 3"]
    shifts: Float[Tensor, "b 2"]
    waves: Float[Tensor, "b 6"]
    group: Int[Tensor, " b"]
    squared: Bool[Tensor, " b"]
    phases: Float[Tensor, "g y kx"]
    factors: Complex[Tensor, "g y kx"]
    squares: Float[Tensor, "g y kx"]

    def take(self, rows: slice) -> "Views":
        """Return the views of some particles."""
        part, axes, shifts, waves, group, squared, *shared = self
        return Views(part[rows], axes[rows], shifts[rows], waves[rows], group[rows], squared[rows], *shared)


def predict(
    parts: Complex[Tensor, "h padded padded padded_half 2"], reach: int, views: Views, images: ImageRfft
) -> tuple[ImageRfft, ImageRfft, Float[Tensor, "b 6 shells"]]:
    """Predict the parts and compare them with the images, by the kernel of the tensors' device.

    Parameters
    ----------
    parts
        `(h, N, N, N // 2 + 1, 2)` of each map the padded transforms of the kept and of the removed part.
    reach
        Shell of the image's transform from which on the parts hold nothing and are not read.
    views
        Of b particles.
    images
        `(b, n, n // 2 + 1)` half transforms, their origin pixel 0.

    Returns
    -------
    removed
        `(b, n, n // 2 + 1)` the removed part in each image.
    change
        `(b, n, n // 2 + 1)` what a slice is multiplied by: transfer, factor and shift.
    sums
        `(b, 6, n // 2)` `PRODUCTS` over the shells, both halves of the plane; float64.
    """
    if images.device.type != "cpu":
        return predict_reference(parts, reach, views, images)
    # NumPy's arrays lie on large pages, torch's do not.
    removed, change = (torch.from_numpy(np.empty(images.shape, np.complex64)) for _ in range(2))
    size = images.shape[1]
    sums = torch.zeros(len(images), PRODUCTS, size // 2, dtype=torch.float64)
    shells = _number_shells(size)
    _numba.predict(
        _view_real(parts),
        reach,
        tuple(_view_real(one) for one in views),
        shells,
        _view_real(images),
        _view_real(removed),
        _view_real(change),
        sums.numpy(),
    )
    return removed, change, sums


def _view_real(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor as an array, real and imaginary parts along a last axis."""
    array: npt.NDArray[Any] = tensor.contiguous().numpy()
    return array.view(array.real.dtype).reshape(*array.shape, 2) if array.dtype.kind == "c" else array


def predict_reference(
    parts: Tensor, reach: int, views: Views, images: Tensor
) -> tuple[ImageRfft, ImageRfft, Float[Tensor, "b 6 shells"]]:
    """Do what `predict` does in plain torch."""
    size, device = images.shape[1], images.device
    matrices = torch.zeros(len(images), 3, 3, dtype=torch.float64, device=device)
    matrices[:, :2] = views.axes
    slices = images.new_zeros(2, *images.shape)
    for half in torch.unique(views.part).tolist():
        rows = torch.nonzero(views.part == half)[:, 0]
        for part in range(2):
            volume = parts[half, ..., part].contiguous()
            slices[part, rows] = fourier_slice.extract(volume, matrices[rows].to(volume.real.dtype), size)
    y = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=device)[:, None]
    x = torch.arange(size // 2 + 1, dtype=torch.float64, device=device)
    xx, xy, yy, start, bfactor, scale = (one[:, None, None] for one in views.waves.unbind(1))
    chi = xx * x**2 + xy * x * y + yy * y**2 + start + views.phases[views.group]
    transfer = scale * torch.exp(-bfactor * views.squares[views.group]) * torch.sin(chi)
    transfer = torch.where(views.squared[:, None, None], transfer.square(), transfer)
    turn = -2 * math.pi / size * (views.shifts[:, 0, None, None] * x + views.shifts[:, 1, None, None] * y)
    place = torch.einsum("bi,yx->byxi", views.axes[:, 0], x.expand(size, -1)) + torch.einsum(
        "bi,yx->byxi", views.axes[:, 1], y.expand(-1, len(x))
    )
    far = place.square().sum(-1)
    inside = (4 * (x**2 + y**2) < size**2) & (4 * far < size**2)
    slices = slices * (far < (reach - 0.5) ** 2)
    change = (transfer * inside * views.factors[views.group] * torch.polar(torch.ones_like(turn), turn)).to(
        images.dtype
    )
    kept, removed = slices[0] * change, slices[1] * change
    pairs = ((images, images), (images, kept), (images, removed), (kept, kept), (kept, removed))
    members = _shell_members(size, device)
    sums = [
        (one.conj() * other).real.double().reshape(len(images), -1) @ members
        for one, other in (*pairs, (removed, removed))
    ]
    return removed, change, torch.stack(sums, dim=1)


@lru_cache(maxsize=4)
def _number_shells(size: int) -> npt.NDArray[np.int32]:
    """Shell of each pixel; n // 2 for all that lies in no whole one."""
    return fourier_shells((size, size)).clamp(max=size // 2).numpy().astype(np.int32)


def _shell_members(size: int, device: torch.device) -> Tensor:
    """How often each pixel of the half transform counts in each shell."""
    shells = fourier_shells((size, size), device).reshape(-1)
    count = torch.full((size, size // 2 + 1), 2.0, dtype=torch.float64, device=device)
    count[:, 0] = 1.0
    members = torch.zeros(len(shells), size // 2, dtype=torch.float64, device=device)
    rows = torch.nonzero(shells < size // 2)[:, 0]
    members[rows, shells[rows]] = count.reshape(-1)[rows]
    return members


def subtract(images: ImageRfft, removed: ImageRfft, factors: Float[Tensor, "b shells"]) -> ImageRfft:
    """Take the removed part out: images - f(shell) removed; `factors` `(b, n // 2 + 1)`, of each shell."""
    if images.device.type != "cpu":
        return subtract_reference(images, removed, factors)
    size = images.shape[1]
    after = torch.from_numpy(np.empty(images.shape, np.complex64))
    shells = _number_shells(size)
    _numba.subtract(
        images.numpy(), removed.numpy(), factors.float().contiguous().numpy(), shells, after.numpy()
    )
    return after


def subtract_reference(images: Tensor, removed: Tensor, factors: Tensor) -> Tensor:
    """Do what `subtract` does in plain torch."""
    size = images.shape[1]
    shells = fourier_shells((size, size), images.device).clamp(max=size // 2)
    return images - removed * factors.float()[:, shells]


def insert_pair(
    before: ImageRfft,
    after: ImageRfft,
    change: ImageRfft,
    axes: Float[Tensor, "b 2 3"],
    sums: Float[Tensor, "padded padded padded_half 5"],
    rows: Int[Tensor, " some"],
) -> None:
    """Insert some images before and after with their weights into one Fourier volume, in place.

    Parameters
    ----------
    before, after, change
        `(b, n, n // 2 + 1)` half transforms and what `predict` says of them.
    axes
        `(b, 2, 3)` as in `Views`.
    sums
        `(N, N, N // 2 + 1, 5)` Σ t C* before, Σ t C* after (real and imaginary), Σ t |C|², t the trilinear weight and
        C the change; of the planes kx = 0 and N / 2 as `ops.projection.insert_slices` fills them. With N below 2n the
        pixels that lie beyond N / 4 are left out, which is a coarser map of the same extent.
    rows
        Which of the b.
    """
    if sums.device.type != "cpu":
        insert_pair_reference(before[rows], after[rows], change[rows], axes[rows], sums)
        return
    arrays = (one.contiguous().numpy() for one in (rows, before, after, change, axes))
    _numba.insert_pair(*arrays, sums.numpy(), numba.get_num_threads())


def insert_pair_reference(before: Tensor, after: Tensor, change: Tensor, axes: Tensor, sums: Tensor) -> None:
    """Do what `insert_pair` does in plain torch."""
    padded, size = sums.shape[0], before.shape[1]
    small = padded // 2
    rows = torch.cat([torch.arange(small - small // 2), size - torch.arange(small // 2, 0, -1)]).to(
        before.device
    )
    matrices = torch.zeros(len(before), 3, 3, dtype=torch.float64, device=before.device)
    matrices[:, :2] = axes
    cut = [one[:, rows, : small // 2 + 1] for one in (before, after, change)]
    weights = cut[2].abs().square()
    for first, slices in ((0, cut[0] * cut[2].conj()), (2, cut[1] * cut[2].conj())):
        real = torch.zeros(padded, padded, padded // 2 + 1, dtype=before.dtype, device=before.device)
        total = torch.zeros_like(real.real)
        fourier_slice.insert(
            slices[None], weights[None], matrices[None].to(total.dtype), real[None], total[None]
        )
        sums[..., first] += real.real
        sums[..., first + 1] += real.imag
    sums[..., 4] += total
