"""The Triton kernel of `verglas.ops.kernels.interpolate`; imported only where Triton is installed."""

# ruff: noqa: ANN001, ANN202 -- Triton infers the types of kernels
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def sample_affine(
    volumes: Tensor, inverse: Tensor, out_shape: tuple[int, int, int], cubic: bool, fill: float
) -> Tensor:
    """Read float32 volumes under affine maps; one program a run of voxels of one result."""
    count = len(inverse)
    voxels = out_shape[0] * out_shape[1] * out_shape[2]
    result = volumes.new_empty(count, *out_shape)
    if result.numel() == 0:
        return result
    z_size, y_size, x_size = volumes.shape[1:]
    stride = z_size * y_size * x_size if len(volumes) > 1 else 0
    # Voxels are counted from the middle of the result, where single precision is finest.
    middle = torch.tensor([n // 2 for n in out_shape], dtype=inverse.dtype, device=inverse.device)
    start = inverse[:, :, 3] + inverse[:, :, :3] @ middle
    maps = torch.cat([inverse[:, :, :3], start[:, :, None]], dim=-1).to(torch.float32).contiguous()
    # The first axis of a launch is the one that may be long.
    _kernel[(triton.cdiv(voxels, _BLOCK) * count,)](
        volumes, maps, result, voxels, triton.cdiv(voxels, _BLOCK), stride,
        z_size, y_size, x_size, out_shape[0], out_shape[1], out_shape[2],
        fill, cubic, _BLOCK,
    )  # fmt: skip
    return result


@no_type_check
@triton.jit
def _mirror(index, size):
    index = tl.abs(index)
    index = tl.where(index >= size, tl.abs(2 * size - 2 - index), index)
    return tl.minimum(index, size - 1)


@no_type_check
@triton.jit
def _weight(t, tap: tl.constexpr, cubic: tl.constexpr):
    if cubic:
        s = 1.0 - t
        if tap == 0:
            weight = s * s * s / 6.0
        elif tap == 1:
            weight = 2.0 / 3.0 - t * t * (2.0 - t) / 2.0
        elif tap == 2:
            weight = 2.0 / 3.0 - s * s * (2.0 - s) / 2.0
        else:
            weight = t * t * t / 6.0
    elif tap == 0:
        weight = 1.0 - t
    else:
        weight = t
    return weight


@no_type_check
@triton.jit
def _kernel(
    volumes, maps, result, voxels, blocks, stride,
    z_size, y_size, x_size, z_out, y_out, x_out,
    fill, cubic: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    valid = place < voxels
    z_to = (place // (y_out * x_out) - z_out // 2).to(tl.float32)
    y_to = (place // x_out % y_out - y_out // 2).to(tl.float32)
    x_to = (place % x_out - x_out // 2).to(tl.float32)
    m = maps + item * 12
    z = tl.load(m) * z_to + tl.load(m + 1) * y_to + tl.load(m + 2) * x_to + tl.load(m + 3)
    y = tl.load(m + 4) * z_to + tl.load(m + 5) * y_to + tl.load(m + 6) * x_to + tl.load(m + 7)
    x = tl.load(m + 8) * z_to + tl.load(m + 9) * y_to + tl.load(m + 10) * x_to + tl.load(m + 11)
    inside = (z >= -0.5) & (z < z_size - 0.5) & (y >= -0.5) & (y < y_size - 0.5)
    inside = inside & (x >= -0.5) & (x < x_size - 0.5) & valid
    z_low, y_low, x_low = tl.floor(z), tl.floor(y), tl.floor(x)
    source = volumes + item.to(tl.int64) * stride
    first: tl.constexpr = -1 if cubic else 0
    taps: tl.constexpr = 4 if cubic else 2
    total = tl.zeros([block], dtype=tl.float32)
    for i in tl.static_range(taps):
        z_index = _mirror(z_low.to(tl.int32) + (i + first), z_size)
        for j in tl.static_range(taps):
            y_index = _mirror(y_low.to(tl.int32) + (j + first), y_size)
            outer = _weight(z - z_low, i, cubic) * _weight(y - y_low, j, cubic)
            row = (z_index.to(tl.int64) * y_size + y_index) * x_size
            for k in tl.static_range(taps):
                x_index = _mirror(x_low.to(tl.int32) + (k + first), x_size)
                sample = tl.load(source + row + x_index, mask=inside, other=0.0)
                total += outer * _weight(x - x_low, k, cubic) * sample
    target = result + item.to(tl.int64) * voxels + place
    tl.store(target, tl.where(inside, total, fill), mask=valid)
