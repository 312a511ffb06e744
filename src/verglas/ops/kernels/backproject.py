"""Back-projection as sums of shifted rows.

A view is stored in rows whose spacing is that with which the voxels of one volume row meet it. All voxels of
that row then read the view at the same fraction between samples, so the inner loop adds contiguous memory
with constant weights: no gather, no index arithmetic, and the same code for every tilt of the specimen about x
and y. `verglas.ops.kernels.resample` makes the rows.

Convention
----------
Rows are `(n, v, phase, k)`: view, row, and the position `k + phase / phases` along the row, in voxels. Voxel
`(z, y, x)` of the volume reads view t at

    v = shears[t, 0] + shears[t, 1] * y + shears[t, 2] * z
    k = shears[t, 3] + shears[t, 4] * y + shears[t, 5] * z + x

by linear interpolation in both; places outside the rows add nothing.
"""

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verglas.shapes import Values, Volume


def backproject_rows(rows: Values, shears: Values, volume: Volume) -> None:
    """Add every view to `volume`, in place.

    Parameters
    ----------
    rows
        `(n, v, phase, k)` float32 samples of each view.
    shears
        `(n, 6)` float64 places of the volume's voxels in the rows, see the module's convention.
    volume
        `(z, y, x)` float32, contiguous.
    """
    if rows.ndim != 4 or shears.shape != (rows.shape[0], 6):
        raise ValueError(
            f"`rows` must be (n, v, phase, k) and `shears` (n, 6); got {tuple(rows.shape)}, {tuple(shears.shape)}"
        )
    if rows.dtype != torch.float32 or volume.dtype != torch.float32 or shears.dtype != torch.float64:
        raise ValueError(
            "`rows` and `volume` must be float32 and `shears` float64; "
            f"got {rows.dtype}, {volume.dtype}, {shears.dtype}"
        )
    if not (rows.is_contiguous() and volume.is_contiguous()):
        raise ValueError("`rows` and `volume` must be contiguous")
    if volume.device.type == "cuda":
        from verglas.ops.kernels.backproject_triton import backproject_rows_triton

        backproject_rows_triton(rows, shears, volume)
    else:
        _backproject_numba(rows.numpy(), shears.numpy(), volume.numpy())


def backproject_rows_reference(rows: Tensor, shears: Tensor, volume: Tensor) -> None:
    """Do what `backproject_rows` does, in plain torch."""
    _, v_size, phases, k_size = rows.shape
    z, y, x = (torch.arange(n, dtype=torch.float64, device=volume.device) for n in volume.shape)
    for view, shear in zip(rows, shears, strict=True):
        flat = view.transpose(1, 2).reshape(v_size, k_size * phases)
        v = (shear[0] + shear[1] * y + shear[2] * z[:, None])[..., None]
        k = ((shear[3] + shear[4] * y + shear[5] * z[:, None])[..., None] + x) * phases
        v_low, k_low = v.floor(), k.floor()
        for dv in (0, 1):
            for dk in (0, 1):
                weight = (1 - (v - v_low - dv).abs()) * (1 - (k - k_low - dk).abs())
                row, column = (v_low + dv).long(), (k_low + dk).long()
                inside = (row >= 0) & (row < v_size) & (column >= 0) & (column < k_size * phases)
                sample = flat[row.clamp(0, v_size - 1), column.clamp(0, k_size * phases - 1)]
                volume += (sample * weight * inside).to(volume.dtype)


@numba.njit(fastmath=True, nogil=True, cache=True)
def _add_row(
    target: npt.NDArray[np.float32], view_row: npt.NDArray[np.float32], k: float, weight: float
) -> None:
    """Add `weight` times one row of a view, read from `k` on, to one row of voxels."""
    phases, k_size = view_row.shape
    position = int(np.floor(k * phases))
    fraction = k * phases - position
    for step in range(2):
        phase = (position + step) % phases
        start = (position + step - phase) // phases
        factor = np.float32(weight * (fraction if step else 1.0 - fraction))
        first = max(0, -start)
        last = min(target.shape[0], k_size - start)
        if last > first and factor != 0:
            source = view_row[phase, start + first : start + last]
            goal = target[first:last]
            for i in range(last - first):
                goal[i] += factor * source[i]


@numba.njit(fastmath=True, nogil=True, cache=True)
def _add_row_pair(
    target: npt.NDArray[np.float32], view_row: npt.NDArray[np.float32], k: float, weight: float
) -> None:
    """As `_add_row`, both neighbours in one pass, where the whole row lies inside the view."""
    phases, k_size = view_row.shape
    position = int(np.floor(k * phases))
    fraction = k * phases - position
    phase = position % phases
    start = (position - phase) // phases
    next_phase = (phase + 1) % phases
    next_start = start + (phase + 1) // phases
    size = target.shape[0]
    if start < 0 or next_start + size > k_size:
        _add_row(target, view_row, k, weight)
        return
    low = np.float32(weight * (1.0 - fraction))
    high = np.float32(weight * fraction)
    source = view_row[phase, start : start + size]
    following = view_row[next_phase, next_start : next_start + size]
    for i in range(size):
        target[i] += low * source[i] + high * following[i]


@numba.njit(parallel=True, fastmath=True, nogil=True, cache=True)
def _backproject_numba(
    rows: npt.NDArray[np.float32], shears: npt.NDArray[np.float64], volume: npt.NDArray[np.float32]
) -> None:
    z_size, y_size, _ = volume.shape
    views, v_size = rows.shape[0], rows.shape[1]
    # A thread keeps the rows of one y in its cache while it goes through z.
    for y in numba.prange(y_size):
        for z in range(z_size):
            target = volume[z, y]
            for t in range(views):
                v = shears[t, 0] + shears[t, 1] * y + shears[t, 2] * z
                k = shears[t, 3] + shears[t, 4] * y + shears[t, 5] * z
                row = int(np.floor(v))
                fraction = v - row
                # Rows that were laid on the volume's own meet it up to rounding: one of the two suffices.
                if fraction < 1e-6 and 0 <= row < v_size:
                    _add_row_pair(target, rows[t, row], k, 1.0)
                else:
                    if 0 <= row < v_size:
                        _add_row_pair(target, rows[t, row], k, 1.0 - fraction)
                    if 0 <= row + 1 < v_size:
                        _add_row_pair(target, rows[t, row + 1], k, fraction)
