"""The kernels of `subtract` agree with plain torch."""

import math

import pytest
import torch

from verglas.ops.kernels import parted_slices as kernels
from verglas.ops.projection import transform_volume
from verglas.ops.rotation import random_rotations

SIZE, COUNT = 20, 7
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def make_case() -> tuple[torch.Tensor, kernels.Views, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    volumes = torch.randn(2, 2, SIZE, SIZE, SIZE, generator=generator)
    parts = torch.stack([torch.stack([transform_volume(one) for one in pair], -1) for pair in volumes])
    rows = torch.rand(COUNT, 6, generator=generator, dtype=torch.float64)
    waves = rows * torch.tensor([0.1, 0.02, 0.1, 3.0, 30.0, 1.0])
    turns = random_rotations(COUNT, generator).double()[:, :2] * torch.tensor([[1.06], [0.93]]).double()
    grid = (2, SIZE, SIZE // 2 + 1)
    views = kernels.Views(
        torch.arange(COUNT) % 2,
        turns,
        SIZE * torch.rand(COUNT, 2, generator=generator).double(),
        waves,
        torch.arange(COUNT) // 4,
        torch.arange(COUNT) % 3 == 0,
        torch.randn(grid, generator=generator),
        torch.polar(torch.rand(grid, generator=generator), 6 * torch.rand(grid, generator=generator)),
        0.01 * torch.rand(grid, generator=generator),
    )
    images = torch.fft.rfft2(torch.randn(COUNT, SIZE, SIZE, generator=generator))
    return parts, views, images


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reach", [SIZE // 2, 6])
def test_prediction_and_sums_agree(device: str, reach: int) -> None:
    parts, views, images = make_case()
    expected = kernels.predict_reference(parts, reach, views, images)
    moved = kernels.Views(*(one.to(device) for one in views))
    found = kernels.predict(parts.to(device), reach, moved, images.to(device))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert float(expected[0].abs().max()) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", [SIZE, 12])
def test_what_is_left_and_inserted_agrees(device: str, side: int) -> None:
    parts, views, images = make_case()
    removed, change, _ = kernels.predict_reference(parts, SIZE // 2, views, images)
    factors = torch.linspace(0, 2, COUNT * (SIZE // 2 + 1)).reshape(COUNT, -1)
    expected = kernels.subtract_reference(images, removed, factors)
    after = kernels.subtract(images.to(device), removed.to(device), factors.to(device))
    torch.testing.assert_close(after.cpu(), expected)
    rows = torch.tensor([0, 2, 3, 6])
    sums = [torch.zeros(2 * side, 2 * side, side + 1, 5, device=one) for one in ("cpu", device)]
    some = [one[rows] for one in (images, expected, change, views.axes)]
    kernels.insert_pair_reference(*some, sums[0])
    moved = [one.to(device) for one in (images, after, change, views.axes)]
    kernels.insert_pair(*moved, sums[1], rows.to(device))
    torch.testing.assert_close(sums[1].cpu(), sums[0], rtol=1e-4, atol=1e-5 * float(sums[0].abs().max()))


def test_the_sums_are_those_of_the_whole_plane() -> None:
    parts, views, images = make_case()
    removed, _, sums = kernels.predict(parts, SIZE // 2, views, images)
    # Parseval, over all that the shells count.
    image, model = (torch.fft.irfft2(one[2], s=(SIZE, SIZE)).double() for one in (images, removed))
    y, x = torch.meshgrid(torch.fft.fftfreq(SIZE, 1 / SIZE), torch.fft.fftfreq(SIZE, 1 / SIZE), indexing="ij")
    shells = torch.floor(torch.hypot(x, y) + 0.5)
    product = (torch.fft.fft2(image) * torch.fft.fft2(model).conj()).real
    for shell in (0, 3, 9):
        assert math.isclose(float(sums[2, 2, shell]), float(product[shells == shell].sum()), rel_tol=1e-3)
