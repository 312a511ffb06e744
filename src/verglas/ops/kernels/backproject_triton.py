"""The Triton kernel of `verglas.ops.kernels.backproject`; imported only where Triton is installed."""

# Triton reads the kernel as its own language, without annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor


def backproject_rows_triton(rows: Tensor, shears: Tensor, volume: Tensor) -> None:
    """Add every view to `volume` in place; one program a strip of voxels of one volume row."""
    z_size, y_size, x_size = volume.shape
    views, v_size, phases, k_size = rows.shape
    # Whole rows and whole steps along a row are found in double precision, once a view and volume row.
    z = torch.arange(z_size, dtype=torch.float64, device=volume.device)[:, None]
    y = torch.arange(y_size, dtype=torch.float64, device=volume.device)
    table = shears.to(volume.device)[:, :, None, None]
    v = table[:, 0] + table[:, 1] * y + table[:, 2] * z
    k = (table[:, 3] + table[:, 4] * y + table[:, 5] * z) * phases
    whole = torch.stack([v.floor(), k.floor()]).to(torch.int32).contiguous()
    fraction = torch.stack([v - v.floor(), k - k.floor()]).to(torch.float32).contiguous()
    block = 256
    _kernel[(triton.cdiv(x_size, block), y_size, z_size)](
        rows, whole, fraction, volume, views, z_size, y_size, x_size, v_size, k_size, phases, block
    )


@triton.jit
def _kernel(
    rows, whole, fraction, volume, views, z_size, y_size, x_size, v_size, k_size,
    phases: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    x = tl.program_id(0) * block + tl.arange(0, block)
    y = tl.program_id(1)
    z = tl.program_id(2)
    inside = x < x_size
    place = (z.to(tl.int64) * y_size + y) * x_size + x
    total = tl.load(volume + place, mask=inside, other=0.0)
    plane = z_size * y_size
    for t in range(views):
        entry = (t * z_size + z) * y_size + y
        v = tl.load(whole + entry)
        k = tl.load(whole + views * plane + entry)
        v_fraction = tl.load(fraction + entry)
        k_fraction = tl.load(fraction + views * plane + entry)
        for corner in tl.static_range(4):
            row = v + corner // 2
            position = k + corner % 2
            # Floor division that holds for negative positions, too.
            shifted = position + 1048576 * phases
            phase = shifted % phases
            column = shifted // phases - 1048576 + x
            v_weight = v_fraction if corner // 2 == 1 else 1.0 - v_fraction
            k_weight = k_fraction if corner % 2 == 1 else 1.0 - k_fraction
            valid = inside & (column >= 0) & (column < k_size)
            if (row >= 0) & (row < v_size):
                source = ((tl.cast(t, tl.int64) * v_size + row) * phases + phase) * k_size + column
                total += v_weight * k_weight * tl.load(rows + source, mask=valid, other=0.0)
    tl.store(volume + place, total, mask=inside)
