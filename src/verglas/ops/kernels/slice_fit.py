"""Central slices of a Fourier volume held against data, with their slopes by small turns and shifts.

For particle p let b0 be the slices of the volume at its pose, and b1 to b6 their derivatives by a small turn ω
(radians) and shift t (sides of the box) of the volume in its own frame: it is turned by R exp(ω) and moved by R t.
With D = c F / σ² and W = c² / σ² for data F, transfer c and noise σ² these sums over all pixels within a band are
what Gauss and Newton's step needs:

    right_i = Σ Re(conj(D) b_i)      left_ij = Σ W Re(conj(b_i) b_j)      power = Σ |D|² / W

Pixels of the column kx = 0, which holds both Friedel mates, count half. Values are read with trilinear weights, and
the derivative by a turn is that of the interpolated values.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

import math
from typing import NamedTuple, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.shapes import Rotations


class FitSums(NamedTuple):
    """The sums, float64: `(p, 7)`, `(p, 7, 7)` and `(p,)`."""

    right: Float[Tensor, "p 7"]
    left: Float[Tensor, "p 7 7"]
    power: Float[Tensor, " p"]


def fit_slices(
    volume: Complex[Tensor, "padded padded padded_half"],
    data: Complex[Tensor, "p v y kx"],
    weights: Float[Tensor, "p v y kx"],
    rotations: Rotations,
    shifts: Float[Tensor, "p v 2"],
    oversampling: float,
    band: tuple[float, float],
) -> FitSums:
    """Sum with the kernel of the tensors' device.

    Parameters
    ----------
    volume
        `(N, N, N // 2 + 1)` complex64, origin at index 0; it may hold the inner part of a transform only.
    data, weights
        `(p, v, m, m // 2 + 1)` D and W.
    rotations
        `(p, v, 3, 3)` reference to the frame in which the beam is z, float64.
    shifts
        `(p, v, 2)` xy by which the particle lies off the middle of its data, in sides of the box; float64.
    oversampling
        How many voxels of the volume are one of the data's pixels.
    band
        Least and greatest radius in pixels of the data.
    """
    if data.device.type != "cpu":
        return fit_slices_reference(volume, data, weights, rotations, shifts, oversampling, band)
    right = np.zeros((len(data), 7))
    left = np.zeros((len(data), 7, 7))
    power = np.zeros(len(data))
    _fit_numba(
        volume.resolve_conj().contiguous().numpy(),
        data.resolve_conj().contiguous().numpy(),
        weights.contiguous().numpy(),
        rotations.double().contiguous().numpy(),
        shifts.double().contiguous().numpy(),
        float(oversampling),
        float(band[0]),
        float(band[1]),
        right,
        left,
        power,
    )
    return FitSums(torch.from_numpy(right), torch.from_numpy(left), torch.from_numpy(power))


def fit_slices_reference(
    volume: Tensor,
    data: Tensor,
    weights: Tensor,
    rotations: Rotations,
    shifts: Tensor,
    oversampling: float,
    band: tuple[float, float],
) -> FitSums:
    """Do what `fit_slices` does in plain torch, a particle at a time."""
    size, device = data.shape[-2], data.device
    ky = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=device)[:, None]
    kx = torch.fft.rfftfreq(size, 1 / size, dtype=torch.float64, device=device)
    radius = (kx**2 + ky**2).sqrt()
    count = torch.where(kx == 0, 0.5, 1.0) * ((radius >= band[0]) & (radius <= band[1]) & (2 * radius < size))
    pixels = torch.stack([kx.expand(size, -1), ky.expand(-1, len(kx))], dim=-1)
    rights, lefts, powers = [], [], []
    for one, weight, rotation, shift in zip(data, weights, rotations, shifts, strict=True):
        turn = rotation.double().to(device)
        place = torch.einsum("yxi,vij->vyxj", pixels, turn[:, :2]) * oversampling
        value, slope = _read_with_slope(volume, place)
        angle = -2 * math.pi * torch.einsum("yxi,vi->vyx", pixels, shift.double().to(device))
        phase = torch.polar(torch.ones_like(angle), angle)
        turned = -torch.linalg.cross(place.to(slope.dtype), slope)
        moved = (-2j * math.pi / oversampling) * place * value[..., None]
        basis = torch.cat([value[..., None], turned, moved], dim=-1) * phase[..., None]
        rights.append((one.to(basis.dtype).conj()[..., None] * basis * count[..., None]).real.sum((0, 1, 2)))
        flat = (basis * (weight.double() * count).sqrt()[..., None]).reshape(-1, 7)
        lefts.append((flat.conj().T @ flat).real)
        known = weight > 0
        powers.append((torch.where(known, one.abs().double() ** 2 / weight, 0.0) * count).sum())
    return FitSums(torch.stack(rights).cpu(), torch.stack(lefts).cpu(), torch.stack(powers).cpu())


def _read_with_slope(volume: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Values at `(..., 3)` places xyz, and their slopes."""
    size = volume.shape[0]
    mirrored = place[..., 0] < 0
    place = torch.where(mirrored[..., None], -place, place)
    inside = (place**2).sum(-1) < (size / 2 - 1) ** 2
    place = torch.where(inside[..., None], place, 0.0)
    low = place.floor()
    part = place - low
    value = torch.zeros(place.shape[:-1], dtype=torch.complex128, device=place.device)
    slope = torch.zeros(place.shape, dtype=torch.complex128, device=place.device)
    for corner in range(8):
        step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=place.device)
        x, y, z = (low.long() + step).unbind(-1)
        read = volume[z % size, y % size, x].to(value.dtype)
        factors = torch.where(step.bool(), part, 1 - part)
        signs = torch.where(step.bool(), 1.0, -1.0).double()
        fx, fy, fz = factors.unbind(-1)
        value = value + read * fx * fy * fz
        slope = slope + read[..., None] * torch.stack([fy * fz, fx * fz, fx * fy], dim=-1) * signs
    value = torch.where(mirrored, value.conj(), value) * inside
    slope = torch.where(mirrored[..., None], -slope.conj(), slope) * inside[..., None]
    return value, slope


@numba.njit(cache=True, fastmath=True, inline="always")
@no_type_check
def _fill_basis(re, im, value, slope, place, sign, oversampling):  # pragma: no cover -- compiled
    """Fill in what the images of a small change of scale, turn and place are at a frequency."""
    dx, dy, dz = slope
    x, y, z = place
    # Of the mate: value conjugated; slopes conjugated and, as the place was mirrored, so are they.
    re[0], im[0] = value.real, sign * value.imag
    re[1], im[1] = z * dy.real - y * dz.real, sign * (z * dy.imag - y * dz.imag)
    re[2], im[2] = x * dz.real - z * dx.real, sign * (x * dz.imag - z * dx.imag)
    re[3], im[3] = y * dx.real - x * dy.real, sign * (y * dx.imag - x * dy.imag)
    factor = sign * np.float32(2 * np.pi) / oversampling
    re[4], im[4] = factor * x * im[0], -factor * x * re[0]
    re[5], im[5] = factor * y * im[0], -factor * y * re[0]
    re[6], im[6] = factor * z * im[0], -factor * z * re[0]


@numba.njit(cache=True, parallel=True, fastmath=True)
@no_type_check
def _fit_numba(
    volume, data, weights, rotations, shifts, oversampling, lowest, highest, right, left, power
):  # pragma: no cover -- compiled
    count, views, size, half = data.shape
    padded = volume.shape[0]
    limit = (padded / 2 - 1) ** 2
    inner, outer = lowest * lowest, min(highest * highest, size * size / 4 - 1e-6)
    for p in numba.prange(count):
        re = np.zeros(7, np.float32)
        im = np.zeros(7, np.float32)
        sums = np.zeros((7, 7))
        row_sums = np.zeros((7, 7), np.float32)
        for v in range(views):
            m = rotations[p, v]
            ax, ay, az = m[0, 0] * oversampling, m[0, 1] * oversampling, m[0, 2] * oversampling
            bx, by, bz = m[1, 0] * oversampling, m[1, 1] * oversampling, m[1, 2] * oversampling
            turn_x, turn_y = -2 * np.pi * shifts[p, v, 0], -2 * np.pi * shifts[p, v, 1]
            step_re, step_im = np.cos(turn_x), np.sin(turn_x)
            for j in range(size):
                ky = j if 2 * j < size else j - size
                phase_re, phase_im = np.cos(turn_y * ky), np.sin(turn_y * ky)
                row_sums[:] = 0
                for kx in range(half):
                    reach = kx * kx + ky * ky
                    if reach > outer:
                        break
                    c, s = np.float32(phase_re), np.float32(phase_im)
                    phase_re, phase_im = (
                        phase_re * step_re - phase_im * step_im,
                        phase_re * step_im + phase_im * step_re,
                    )
                    weight = weights[p, v, j, kx]
                    if reach < inner or weight <= 0:
                        continue
                    x, y, z = ax * kx + bx * ky, ay * kx + by * ky, az * kx + bz * ky
                    if x * x + y * y + z * z >= limit:
                        continue
                    sign = np.float32(1)
                    if x < 0:
                        x, y, z, sign = -x, -y, -z, np.float32(-1)
                    x0, y0, z0 = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                    fx, fy, fz = np.float32(x - x0), np.float32(y - y0), np.float32(z - z0)
                    y1, z1 = y0 + 1, z0 + 1
                    y0 += padded if y0 < 0 else 0
                    y1 += padded if y1 < 0 else 0
                    z0 += padded if z0 < 0 else 0
                    z1 += padded if z1 < 0 else 0
                    a000, a100 = volume[z0, y0, x0], volume[z0, y0, x0 + 1]
                    a010, a110 = volume[z0, y1, x0], volume[z0, y1, x0 + 1]
                    a001, a101 = volume[z1, y0, x0], volume[z1, y0, x0 + 1]
                    a011, a111 = volume[z1, y1, x0], volume[z1, y1, x0 + 1]
                    # Along x, then y, then z; the differences give the slopes.
                    d00, d10, d01, d11 = a100 - a000, a110 - a010, a101 - a001, a111 - a011
                    e00, e10, e01, e11 = a000 + fx * d00, a010 + fx * d10, a001 + fx * d01, a011 + fx * d11
                    g0, g1 = e00 + fy * (e10 - e00), e01 + fy * (e11 - e01)
                    dx0, dx1 = d00 + fy * (d10 - d00), d01 + fy * (d11 - d01)
                    value = g0 + fz * (g1 - g0)
                    dx = dx0 + fz * (dx1 - dx0)
                    dy = (e10 - e00) + fz * ((e11 - e01) - (e10 - e00))
                    dz = g1 - g0
                    place = (np.float32(x), np.float32(y), np.float32(z))
                    _fill_basis(re, im, value, (dx, dy, dz), place, sign, np.float32(oversampling))
                    share = np.float32(0.5) if kx == 0 else np.float32(1)
                    seen = data[p, v, j, kx]
                    # The data are shifted back, which is less work than to shift all that is compared with them.
                    seen_re = share * (seen.real * c + seen.imag * s)
                    seen_im = share * (seen.imag * c - seen.real * s)
                    power[p] += share * (seen.real * seen.real + seen.imag * seen.imag) / weight
                    weight *= share
                    for i in range(7):
                        right[p, i] += seen_re * re[i] + seen_im * im[i]
                        wr, wi = weight * re[i], weight * im[i]
                        for k in range(7):
                            row_sums[i, k] += wr * re[k] + wi * im[k]
                sums += row_sums
        left[p] = sums
