"""The kernels of `parted_slices` for the CPU: row by row, each row in passes that do several pixels at a time.

Complex arrays come as real ones whose last axis is real and imaginary part.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of kernels

import math
from typing import no_type_check

import numba
import numpy as np

from verglas.ops.kernels.transfer_slices import sine

_ONE = np.float32(1)
_SLAB = 8
"""Sections of a slab that one thread adds to."""


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _reach_row(a, b, ky, columns, limit):  # pragma: no cover -- compiled
    """Count the pixels of a row up to the last whose place has a square below the limit."""
    square = a[0] * a[0] + a[1] * a[1] + a[2] * a[2]
    cross = 2 * ky * (a[0] * b[0] + a[1] * b[1] + a[2] * b[2])
    base = ky * ky * (b[0] * b[0] + b[1] * b[1] + b[2] * b[2])
    last = -1.0
    for kx in range(len(columns)):
        far = (square * columns[kx] + cross) * columns[kx] + base
        last = max(last, columns[kx] if far < limit else -1.0)
    return int(last) + 1


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _place_row(a, b, ky, columns, shape, limit, corners, shares):  # pragma: no cover -- compiled
    """Tell where the pixels of a row lie in a volume.

    Of each pixel `corners` gets the places of the four voxel pairs around it, and `shares` the trilinear parts
    along x, y and z, and the sign of its imaginary part, which is 0 where nothing is to be read. `columns` counts
    from 0 as floats, `shape` is that of the volume, `a` and `b` a step along the row and across it.
    """
    padded, width = float(shape[0]), float(shape[2])
    ax, ay, az, bx, by, bz = a[0], a[1], a[2], b[0] * ky, b[1] * ky, b[2] * ky
    for kx in range(len(columns)):
        x, y, z = ax * columns[kx] + bx, ay * columns[kx] + by, az * columns[kx] + bz
        sign = (-1.0 if x < 0 else 1.0) * (1.0 if x * x + y * y + z * z < limit else 0.0)
        x, y, z = x * sign, y * sign, z * sign
        x0, y0, z0 = np.floor(x), np.floor(y), np.floor(z)
        shares[0, kx], shares[1, kx], shares[2, kx], shares[3, kx] = x - x0, y - y0, z - z0, sign
        # A modulus would take longer than all the rest.
        y1 = y0 + 1 + (padded if y0 < -1 else 0.0)
        z1 = z0 + 1 + (padded if z0 < -1 else 0.0)
        y0 += padded if y0 < 0 else 0.0
        z0 += padded if z0 < 0 else 0.0
        corners[0, kx] = np.int64((z0 * padded + y0) * width + x0)
        corners[1, kx] = np.int64((z0 * padded + y1) * width + x0)
        corners[2, kx] = np.int64((z1 * padded + y0) * width + x0)
        corners[3, kx] = np.int64((z1 * padded + y1) * width + x0)


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _touch_row(volume, corners, numbers, count):  # pragma: no cover -- compiled
    """Read one number of each voxel pair, so that the memory works at many of them at once; the sum is of no use."""
    total = np.float32(0)
    for kx in range(count):
        total += volume[np.uint64(numbers * corners[0, kx])] + volume[np.uint64(numbers * corners[1, kx])]
        total += volume[np.uint64(numbers * corners[2, kx])] + volume[np.uint64(numbers * corners[3, kx])]
    return total


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _read_row(volume, corners, shares, count, values):  # pragma: no cover -- compiled
    """Read kept and removed part, `values` `(kx, 4)`, zero where the sign is; a voxel's four numbers lie together."""
    for kx in range(count):
        b00, b01 = np.uint64(4 * corners[0, kx]), np.uint64(4 * corners[1, kx])
        b10, b11 = np.uint64(4 * corners[2, kx]), np.uint64(4 * corners[3, kx])
        fx, fy, fz, sign = shares[0, kx], shares[1, kx], shares[2, kx], shares[3, kx]
        w00, w01 = (_ONE - fz) * (_ONE - fy), (_ONE - fz) * fy
        w10, w11 = fz * (_ONE - fy), fz * fy
        for c in range(4):
            near = w00 * volume[b00 + c] + w01 * volume[b01 + c]
            near += w10 * volume[b10 + c] + w11 * volume[b11 + c]
            far = w00 * volume[b00 + 4 + c] + w01 * volume[b01 + 4 + c]
            far += w10 * volume[b10 + 4 + c] + w11 * volume[b11 + 4 + c]
            values[kx, c] = (_ONE - fx) * near + fx * far
        known = sign * sign
        values[kx, 0] *= known
        values[kx, 1] *= sign
        values[kx, 2] *= known
        values[kx, 3] *= sign


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _weigh_row(wave, optics, ky, columns, turns, ramp, row, change):  # pragma: no cover -- compiled
    """Fill a row of the change; `turns` and `ramp` are the shift's phase factors along it and of it."""
    qxx, qxy, qyy, start, bfactor, amplitude = wave
    (ramp_re, ramp_im), (turn_re, turn_im) = ramp, turns
    squared, phases, squares, factors = optics
    base, slope = qyy * ky * ky + start, qxy * ky
    count = len(columns)
    for kx in range(count):
        row[kx] = amplitude * sine((qxx * columns[kx] + slope) * columns[kx] + base + phases[kx])
    if bfactor != 0:
        for kx in range(count):
            row[kx] *= np.float32(math.exp(-bfactor * squares[kx]))
    if squared:
        for kx in range(count):
            row[kx] *= row[kx]
    for kx in range(count):
        cos = turn_re[kx] * ramp_re - turn_im[kx] * ramp_im
        sin = turn_re[kx] * ramp_im + turn_im[kx] * ramp_re
        real, imag = factors[kx, 0] * row[kx], factors[kx, 1] * row[kx]
        change[kx, 0] = cos * real - sin * imag
        change[kx, 1] = cos * imag + sin * real
    change[count:] = 0


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _bound_row(a, b, ky, columns, limit, change):  # pragma: no cover -- compiled
    """Empty what a stretched image has beyond the volume."""
    for kx in range(len(columns)):
        x, y, z = a[0] * kx + b[0] * ky, a[1] * kx + b[1] * ky, a[2] * kx + b[2] * ky
        if x * x + y * y + z * z >= limit:
            change[kx] = 0


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _compare_row(image, values, change, shells, count, removed, sums):  # pragma: no cover -- compiled
    """Predict `count` pixels of a row from the parts' values, and add all of it to the sums `(shell, 6)`."""
    for kx in range(len(image)):
        re, im = image[kx, 0], image[kx, 1]
        weight = _ONE if kx == 0 else np.float32(2)
        sums[shells[kx], 0] += weight * (re * re + im * im)
    for kx in range(count):
        re, im = image[kx, 0], image[kx, 1]
        c_re, c_im = change[kx, 0], change[kx, 1]
        k_re = values[kx, 0] * c_re - values[kx, 1] * c_im
        k_im = values[kx, 0] * c_im + values[kx, 1] * c_re
        r_re = values[kx, 2] * c_re - values[kx, 3] * c_im
        r_im = values[kx, 2] * c_im + values[kx, 3] * c_re
        removed[kx, 0], removed[kx, 1] = r_re, r_im
        weight = _ONE if kx == 0 else np.float32(2)
        s = shells[kx]
        sums[s, 1] += weight * (re * k_re + im * k_im)
        sums[s, 2] += weight * (re * r_re + im * r_im)
        sums[s, 3] += weight * (k_re * k_re + k_im * k_im)
        sums[s, 4] += weight * (k_re * r_re + k_im * r_im)
        sums[s, 5] += weight * (r_re * r_re + r_im * r_im)


@numba.njit(cache=True, inline="always")
@no_type_check
def _count_row(ky, size):  # pragma: no cover -- compiled
    """Count the pixels of a row that do not reach Nyquist."""
    count = 0
    while 4 * (count * count + ky * ky) < size * size:
        count += 1
    return count


@numba.njit(cache=True, parallel=True, fastmath=True)
@no_type_check
def predict(
    parts, reach, views, shells, images, removed, change, sums
) -> None:  # pragma: no cover -- compiled
    """Do what `parted_slices.predict` does."""
    part, axes, shifts, waves, group, squared, phases, factors, squares = views
    count, size, half = images.shape[:3]
    shape = parts.shape[1:4]
    scale = shape[0] / size
    limit = shape[0] * shape[0] / 4
    near = min(limit, ((reach - 0.5) * scale) ** 2)
    for p in numba.prange(count):
        volume, g = parts[part[p]].reshape(-1), group[p]
        a, b = axes[p, 0] * scale, axes[p, 1] * scale
        columns, turns = np.arange(half) * 1.0, (np.empty(half, np.float32), np.empty(half, np.float32))
        for kx in range(half):
            angle = -2 * np.pi * shifts[p, 0] / size * kx
            turns[0][kx], turns[1][kx] = math.cos(angle), math.sin(angle)
        corners, shares = np.empty((4, half), np.int64), np.empty((4, half), np.float32)
        stretched = max((a * a).sum(), (b * b).sum()) + abs((a * b).sum()) > 1.000001 * scale * scale
        values, row = np.empty((half, 4), np.float32), np.empty(half, np.float32)
        touched, own = np.empty(size, np.float32), np.zeros((size // 2 + 1, 6), np.float32)
        for j in range(size):
            ky = j if 2 * j < size else j - size
            n = _count_row(ky, size)
            angle = -2 * np.pi * shifts[p, 1] / size * ky
            ramp = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            optics = (squared[p], phases[g, j], squares[g, j], factors[g, j])
            _weigh_row(waves[p], optics, ky, columns[:n], turns, ramp, row, change[p, j])
            if stretched:
                _bound_row(a, b, ky, columns[:n], limit, change[p, j])
            used = _reach_row(a, b, ky, columns[:n], near)
            _place_row(a, b, ky, columns[:used], shape, near, corners, shares)
            touched[j] = _touch_row(volume, corners, 4, used)
            _read_row(volume, corners, shares, used, values)
            removed[p, j] = 0
            # What lies in no whole shell is added to a last one that nobody reads.
            _compare_row(images[p, j, :n], values, change[p, j], shells[j], used, removed[p, j], own)
        for i in range(6):
            for s in range(size // 2):
                sums[p, i, s] = own[s, i]


@numba.njit(cache=True, parallel=True)
@no_type_check
def subtract(images, removed, factors, shells, after) -> None:  # pragma: no cover -- compiled
    """Do what `parted_slices.subtract` does."""
    count, size, half = images.shape
    for row in numba.prange(count * size):
        p, j = row // size, row % size
        for kx in range(half):
            after[p, j, kx] = images[p, j, kx] - factors[p, shells[j, kx]] * removed[p, j, kx]


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _multiply_row(before, after, change, count, values):  # pragma: no cover -- compiled
    """Fill `values` `(kx, 5)` with what a row adds to the sums, before its mirroring."""
    for kx in range(count):
        share = np.float32(0.5) if kx == 0 else _ONE
        re, im = share * change[kx].real, share * change[kx].imag
        b, a = before[kx], after[kx]
        values[kx, 0] = b.real * re + b.imag * im
        values[kx, 1] = b.imag * re - b.real * im
        values[kx, 2] = a.real * re + a.imag * im
        values[kx, 3] = a.imag * re - a.real * im
        values[kx, 4] = change[kx].real * re + change[kx].imag * im


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _own_row(corners, count, section, part, parts, owned):  # pragma: no cover -- compiled
    """Tell of each pixel whether the part adds to its lower and to its upper section; integers would be slow."""
    share = 1.0 / (_SLAB * section)
    for kx in range(count):
        low, high = np.floor((corners[0, kx] + 0.5) * share), np.floor((corners[2, kx] + 0.5) * share)
        owned[0, kx] = low - parts * np.floor((low + 0.5) / parts) == part
        owned[1, kx] = high - parts * np.floor((high + 0.5) / parts) == part


@numba.njit(cache=True, fastmath=True)
@no_type_check
def _add_row(volume, corners, shares, values, count, owned):  # pragma: no cover -- compiled
    """Add a row to the sections that are the part's own; a voxel's five numbers lie together."""
    for kx in range(count):
        fx, fy, fz, sign = shares[0, kx], shares[1, kx], shares[2, kx], shares[3, kx]
        v0, v1, v2 = values[kx, 0], sign * values[kx, 1], values[kx, 2]
        v3, v4 = sign * values[kx, 3], values[kx, 4]
        for corner in range(4):
            if sign == 0 or not owned[corner // 2, kx]:
                continue
            weight = (fz if corner >= 2 else _ONE - fz) * (fy if corner % 2 else _ONE - fy)
            near, far = weight * (_ONE - fx), weight * fx
            first = np.uint64(5 * corners[corner, kx])
            volume[first] += near * v0
            volume[first + np.uint64(1)] += near * v1
            volume[first + np.uint64(2)] += near * v2
            volume[first + np.uint64(3)] += near * v3
            volume[first + np.uint64(4)] += near * v4
            volume[first + np.uint64(5)] += far * v0
            volume[first + np.uint64(6)] += far * v1
            volume[first + np.uint64(7)] += far * v2
            volume[first + np.uint64(8)] += far * v3
            volume[first + np.uint64(9)] += far * v4


@numba.njit(cache=True, parallel=True, fastmath=True)
@no_type_check
def insert_pair(rows, before, after, change, axes, sums, parts) -> None:  # pragma: no cover -- compiled
    """Do what `parted_slices.insert_pair` does.

    Every part owns slabs of sections and walks over all pixels: no two threads meet, and a voxel's terms are added in
    the same order however many threads there are.
    """
    size = before.shape[1]
    shape = sums.shape[:3]
    flat = sums.reshape(-1)
    small = shape[0] // 2
    edge, limit = (small + 1) // 2, shape[0] * shape[0] / 4
    for part in numba.prange(parts):
        columns, values = np.arange(edge) * 1.0, np.empty((edge, 5), np.float32)
        corners, shares = np.empty((4, edge), np.int64), np.empty((4, edge), np.float32)
        owned = np.empty((2, edge), np.bool_)
        for p in rows:
            a, b = 2 * axes[p, 0], 2 * axes[p, 1]
            for ky in range(-edge, edge):
                j = ky if ky >= 0 else ky + size
                n = min(edge, _count_row(ky, small))
                used = _reach_row(a, b, ky, columns[:n], limit)
                _place_row(a, b, ky, columns[:used], shape, limit, corners, shares)
                _own_row(corners, used, shape[1] * shape[2], part, parts, owned)
                _multiply_row(before[p, j], after[p, j], change[p, j], used, values)
                _add_row(flat, corners, shares, values, used, owned)
