"""The CUDA kernels of `fourier_slice`; importing this needs Triton. Float32 only."""

# ruff: noqa: ANN001, ANN202 -- Triton infers the types of kernels

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def extract(volume: Tensor, rotations: Tensor, slices: Tensor) -> None:
    """Fill `slices` `(s, n, n // 2 + 1)` from `volume` `(N, N, N // 2 + 1)`; all complex64 and contiguous."""
    count, size, half = slices.shape
    grid = (triton.cdiv(size * half, _BLOCK), count)
    _extract_kernel[grid](
        torch.view_as_real(volume), rotations, torch.view_as_real(slices), size, half, volume.shape[0], _BLOCK
    )


def insert(slices: Tensor, weights: Tensor, rotations: Tensor, sums: Tensor, totals: Tensor) -> None:
    """Add `slices` and `weights` to `sums` and `totals` with atomic additions."""
    count, size, half = slices.shape
    grid = (triton.cdiv(size * half, _BLOCK), count)
    _insert_kernel[grid](
        torch.view_as_real(slices),
        weights,
        rotations,
        torch.view_as_real(sums),
        totals,
        size,
        half,
        sums.shape[0],
        _BLOCK,
    )


@triton.jit
@no_type_check
def _place(rotations, s, kx, ky, size, volume_size):
    # x, y, z in the half volume, the sign of the imaginary part, and which pixels count.
    scale = volume_size * 1.0 / size
    matrix = rotations + s * 9
    x = (tl.load(matrix) * kx + tl.load(matrix + 3) * ky) * scale
    y = (tl.load(matrix + 1) * kx + tl.load(matrix + 4) * ky) * scale
    z = (tl.load(matrix + 2) * kx + tl.load(matrix + 5) * ky) * scale
    sign = tl.where(x < 0, -1.0, 1.0)
    inside = (4 * (kx * kx + ky * ky) < size * size) & (
        4 * (x * x + y * y + z * z) < volume_size * volume_size * 1.0
    )
    return x * sign, y * sign, z * sign, sign, inside


@triton.jit
@no_type_check
def _extract_kernel(volume, rotations, slices, size, half, volume_size, block: tl.constexpr):
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    s = tl.program_id(1)
    j = pixel // half
    kx = pixel % half
    ky = tl.where(2 * j < size, j, j - size)
    x, y, z, sign, inside = _place(rotations, s, kx, ky, size, volume_size)
    inside = inside & (pixel < size * half)
    x0 = tl.floor(x).to(tl.int32)
    y0 = tl.floor(y).to(tl.int32)
    z0 = tl.floor(z).to(tl.int32)
    fx = x - x0
    fy = y - y0
    fz = z - z0
    real = tl.zeros([block], dtype=tl.float32)
    imaginary = tl.zeros([block], dtype=tl.float32)
    for dz in tl.static_range(2):
        zi = (z0 + dz + volume_size) % volume_size
        wz = fz if dz else 1.0 - fz
        for dy in tl.static_range(2):
            yi = (y0 + dy + volume_size) % volume_size
            wy = wz * (fy if dy else 1.0 - fy)
            base = (zi.to(tl.int64) * volume_size + yi) * (volume_size // 2 + 1) + x0
            for dx in tl.static_range(2):
                w = wy * (fx if dx else 1.0 - fx)
                real += w * tl.load(volume + 2 * (base + dx), mask=inside, other=0.0)
                imaginary += w * tl.load(volume + 2 * (base + dx) + 1, mask=inside, other=0.0)
    out = slices + 2 * (s.to(tl.int64) * size * half + pixel)
    tl.store(out, real, mask=inside)
    tl.store(out + 1, imaginary * sign, mask=inside)


@triton.jit
@no_type_check
def _insert_kernel(slices, weights, rotations, sums, totals, size, half, volume_size, block: tl.constexpr):
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    s = tl.program_id(1)
    j = pixel // half
    kx = pixel % half
    ky = tl.where(2 * j < size, j, j - size)
    x, y, z, sign, inside = _place(rotations, s, kx, ky, size, volume_size)
    inside = inside & (pixel < size * half)
    x0 = tl.floor(x).to(tl.int32)
    y0 = tl.floor(y).to(tl.int32)
    z0 = tl.floor(z).to(tl.int32)
    fx = x - x0
    fy = y - y0
    fz = z - z0
    place = s.to(tl.int64) * size * half + pixel
    count = tl.where(kx == 0, 0.5, 1.0)
    real = count * tl.load(slices + 2 * place, mask=inside, other=0.0)
    imaginary = count * sign * tl.load(slices + 2 * place + 1, mask=inside, other=0.0)
    weight = count * tl.load(weights + place, mask=inside, other=0.0)
    for dz in tl.static_range(2):
        zi = (z0 + dz + volume_size) % volume_size
        wz = fz if dz else 1.0 - fz
        for dy in tl.static_range(2):
            yi = (y0 + dy + volume_size) % volume_size
            wy = wz * (fy if dy else 1.0 - fy)
            base = (zi.to(tl.int64) * volume_size + yi) * (volume_size // 2 + 1) + x0
            for dx in tl.static_range(2):
                w = wy * (fx if dx else 1.0 - fx)
                tl.atomic_add(sums + 2 * (base + dx), w * real, mask=inside)
                tl.atomic_add(sums + 2 * (base + dx) + 1, w * imaginary, mask=inside)
                tl.atomic_add(totals + base + dx, w * weight, mask=inside)
