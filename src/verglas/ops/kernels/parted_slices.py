"""What two parts of a map look like in particle images, compared with these, subtracted and inserted, in two passes.

A pixel k of the half transform of an image that shows particle p predicts

    A(k) = T(k) F(k) exp(-2πi k·t / n) V(k'),   T = a exp(-B s²) sin(χ)   (squared where the images were so treated)

with χ = k·Q·k + P(k), V the trilinear value of the padded transform at k' = (N / n) (kx m₀ + ky m₁), and P, F
and s² tables of the particle's optics. Everything that does not reach Nyquist counts; the rest is zero.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

import math
from functools import lru_cache
from typing import NamedTuple, no_type_check

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from verglas.ops.kernels import fourier_slice
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
    removed, change = torch.empty_like(images), torch.empty_like(images)
    size = images.shape[1]
    sums = torch.zeros(len(images), PRODUCTS, size // 2, dtype=torch.float64)
    shells = _number_shells(size)
    _predict_numba(
        torch.view_as_real(parts).numpy(),
        reach,
        *(one.contiguous().numpy() for one in views),
        shells,
        images.contiguous().numpy(),
        removed.numpy(),
        change.numpy(),
        sums.numpy(),
    )
    return removed, change, sums


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
    after = torch.empty_like(images)
    shells = _number_shells(size)
    _subtract_numba(
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
) -> None:
    """Insert images before and after with their weights into one Fourier volume, in place.

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
    """
    if sums.device.type != "cpu":
        insert_pair_reference(before, after, change, axes, sums)
        return
    arrays = (one.contiguous().numpy() for one in (before, after, change, axes))
    _insert_numba(*arrays, sums.numpy(), numba.get_num_threads())


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


@numba.njit(cache=True, inline="always")
@no_type_check
def _find_voxels(x, y, z, padded):
    x0, y0, z0 = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    fx, fy, fz = np.float32(x - x0), np.float32(y - y0), np.float32(z - z0)
    y1, z1 = y0 + 1, z0 + 1
    # A modulus would take longer than all the rest.
    y0 += padded if y0 < 0 else 0
    y1 += padded if y1 < 0 else 0
    z0 += padded if z0 < 0 else 0
    z1 += padded if z1 < 0 else 0
    return x0, y0, z0, y1, z1, fx, fy, fz


@numba.njit(cache=True, parallel=True, fastmath=True)
@no_type_check
def _predict_numba(
    parts,
    reach,
    part,
    axes,
    shifts,
    waves,
    group,
    squared,
    phases,
    factors,
    squares,
    shells,
    images,
    removed,
    change,
    sums,
):  # pragma: no cover -- compiled
    count, size, half = images.shape
    padded = parts.shape[1]
    columns = parts.shape[3]
    scale = padded / size
    limit, reach_limit = padded * padded / 4, ((reach - 0.5) * scale) ** 2
    last = size // 2
    one = np.float32(1)
    for p in numba.prange(count):
        volume, m, g = parts[part[p]].reshape(-1), axes[p], group[p]
        ax, ay, az = m[0, 0] * scale, m[0, 1] * scale, m[0, 2] * scale
        bx, by, bz = m[1, 0] * scale, m[1, 1] * scale, m[1, 2] * scale
        qxx, qxy, qyy, start, bfactor, amplitude = waves[p]
        turn_x, turn_y = -2 * np.pi * shifts[p, 0] / size, -2 * np.pi * shifts[p, 1] / size
        step_re, step_im = np.cos(turn_x), np.sin(turn_x)
        own = np.zeros((last + 1, 6), np.float32)
        read = np.empty(4, np.float32)
        for j in range(size):
            ky = j if 2 * j < size else j - size
            ramp_re, ramp_im = np.cos(turn_y * ky), np.sin(turn_y * ky)
            removed[p, j, :] = 0
            change[p, j, :] = 0
            for kx in range(half):
                if 4 * (kx * kx + ky * ky) >= size * size:
                    break
                c_re, c_im = np.float32(ramp_re), np.float32(ramp_im)
                ramp_re, ramp_im = (
                    ramp_re * step_re - ramp_im * step_im,
                    ramp_re * step_im + ramp_im * step_re,
                )
                x, y, z = ax * kx + bx * ky, ay * kx + by * ky, az * kx + bz * ky
                far = x * x + y * y + z * z
                if far >= limit:
                    continue
                sign = one
                if x < 0:
                    x, y, z, sign = -x, -y, -z, -one
                read[:] = 0
                if far < reach_limit:
                    x0, y0, z0, y1, z1, fx, fy, fz = _find_voxels(x, y, z, padded)
                    b00 = 4 * ((z0 * padded + y0) * columns + x0)
                    b01 = 4 * ((z0 * padded + y1) * columns + x0)
                    b10 = 4 * ((z1 * padded + y0) * columns + x0)
                    b11 = 4 * ((z1 * padded + y1) * columns + x0)
                    w00, w01 = (one - fz) * (one - fy), (one - fz) * fy
                    w10, w11 = fz * (one - fy), fz * fy
                    gx = one - fx
                    for c in range(4):
                        near = w00 * volume[b00 + c] + w01 * volume[b01 + c]
                        near += w10 * volume[b10 + c] + w11 * volume[b11 + c]
                        next_ = w00 * volume[b00 + 4 + c] + w01 * volume[b01 + 4 + c]
                        next_ += w10 * volume[b10 + 4 + c] + w11 * volume[b11 + 4 + c]
                        read[c] = gx * near + fx * next_
                chi = qxx * kx * kx + qxy * kx * ky + qyy * ky * ky + start + phases[g, j, kx]
                chi -= 2 * np.pi * np.rint(chi / (2 * np.pi))
                t = np.float32(amplitude) * np.sin(np.float32(chi))
                if bfactor != 0:
                    t *= np.float32(np.exp(-bfactor * squares[g, j, kx]))
                if squared[p]:
                    t *= t
                f = factors[g, j, kx]
                f_re, f_im = t * f.real, t * f.imag
                c_re, c_im = c_re * f_re - c_im * f_im, c_re * f_im + c_im * f_re
                k_re, k_im = read[0], sign * read[1]
                r_re, r_im = read[2], sign * read[3]
                k_re, k_im = k_re * c_re - k_im * c_im, k_re * c_im + k_im * c_re
                r_re, r_im = r_re * c_re - r_im * c_im, r_re * c_im + r_im * c_re
                change[p, j, kx] = complex(c_re, c_im)
                removed[p, j, kx] = complex(r_re, r_im)
                seen = images[p, j, kx]
                w = one if kx == 0 else np.float32(2)
                # What lies in no whole shell is added to a last one that nobody reads.
                s = shells[j, kx]
                own[s, 0] += w * (seen.real * seen.real + seen.imag * seen.imag)
                own[s, 1] += w * (seen.real * k_re + seen.imag * k_im)
                own[s, 2] += w * (seen.real * r_re + seen.imag * r_im)
                own[s, 3] += w * (k_re * k_re + k_im * k_im)
                own[s, 4] += w * (k_re * r_re + k_im * r_im)
                own[s, 5] += w * (r_re * r_re + r_im * r_im)
        for s in range(last):
            for i in range(6):
                sums[p, i, s] = own[s, i]


@numba.njit(cache=True, parallel=True)
@no_type_check
def _subtract_numba(images, removed, factors, shells, after):  # pragma: no cover -- compiled
    count, size, half = images.shape
    for row in numba.prange(count * size):
        p, j = row // size, row % size
        for kx in range(half):
            after[p, j, kx] = images[p, j, kx] - factors[p, shells[j, kx]] * removed[p, j, kx]


@numba.njit(cache=True, parallel=True, fastmath=True)
@no_type_check
def _insert_numba(before, after, change, axes, sums, parts):  # pragma: no cover -- compiled
    # Every part owns the sections z = part (mod parts) and walks over all pixels: no two threads meet, and a voxel's
    # terms are added in the same order however many threads there are.
    count, size, _ = before.shape
    padded = sums.shape[0]
    columns = sums.shape[2]
    flat = sums.reshape(-1)
    small = padded // 2
    edge = (small + 1) // 2
    for part in numba.prange(parts):
        values = np.empty(5, np.float32)
        for p in range(count):
            m = axes[p]
            ax, ay, az = 2 * m[0, 0], 2 * m[0, 1], 2 * m[0, 2]
            bx, by, bz = 2 * m[1, 0], 2 * m[1, 1], 2 * m[1, 2]
            for ky in range(-edge, edge):
                j = ky if ky >= 0 else ky + size
                for kx in range(edge):
                    if 4 * (kx * kx + ky * ky) >= small * small:
                        break
                    x, y, z = ax * kx + bx * ky, ay * kx + by * ky, az * kx + bz * ky
                    if 4 * (x * x + y * y + z * z) >= padded * padded:
                        continue
                    sign = np.float32(1)
                    if x < 0:
                        x, y, z, sign = -x, -y, -z, np.float32(-1)
                    x0, y0, z0, y1, z1, fx, fy, fz = _find_voxels(x, y, z, padded)
                    if parts > 1 and z0 % parts != part and z1 % parts != part:
                        continue
                    c, b, a = change[p, j, kx], before[p, j, kx], after[p, j, kx]
                    share = np.float32(0.5) if kx == 0 else np.float32(1)
                    values[0] = share * (b.real * c.real + b.imag * c.imag)
                    values[1] = share * sign * (b.imag * c.real - b.real * c.imag)
                    values[2] = share * (a.real * c.real + a.imag * c.imag)
                    values[3] = share * sign * (a.imag * c.real - a.real * c.imag)
                    values[4] = share * (c.real * c.real + c.imag * c.imag)
                    for dz in range(2):
                        zi = z1 if dz else z0
                        if parts > 1 and zi % parts != part:
                            continue
                        wz = fz if dz else np.float32(1) - fz
                        for dy in range(2):
                            yi = y1 if dy else y0
                            w = wz * (fy if dy else np.float32(1) - fy)
                            near, far = w * (np.float32(1) - fx), w * fx
                            base = 5 * ((zi * padded + yi) * columns + x0)
                            for i in range(5):
                                flat[base + i] += near * values[i]
                            for i in range(5):
                                flat[base + 5 + i] += far * values[i]
