"""Slices held against data: the kernels agree, and slopes are those of small moves of a known body."""

import math

import pytest
import torch

from tests.unit.averaging.cases import draw_body
from verglas.ops.kernels import slice_fit
from verglas.ops.projection import extract_slices, transform_volume
from verglas.ops.rotation import random_rotations, rotation_vectors_to_matrices

BOX = 32
BAND = (0.5, 11.0)


@pytest.fixture(scope="module")
def case():
    """Data, weights and poses of two particles in three views, and the body's transform."""
    generator = torch.Generator().manual_seed(0)
    volume = transform_volume(draw_body(BOX), 2).to(torch.complex64)
    data = torch.randn(2, 3, 24, 13, dtype=torch.complex64, generator=generator)
    weights = torch.rand(2, 3, 24, 13, generator=generator)
    weights[0, 1] = 0  # a view that does not see the particle
    data[0, 1] = 0
    rotations = random_rotations(6, generator).reshape(2, 3, 3, 3)
    shifts = 0.05 * torch.rand(2, 3, 2, generator=generator, dtype=torch.float64)
    return volume, data, weights, rotations, shifts


def test_kernels_agree(case):
    one = slice_fit.fit_slices(*case, 2.0, BAND)
    other = slice_fit.fit_slices_reference(*case, 2.0, BAND)
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6 * float(second.abs().max()))


def read(volume, rotations, shifts, size):
    """Shifted slices of one particle, by another road."""
    slices = extract_slices(volume, rotations, BOX)
    half = size // 2
    rows = torch.cat([torch.arange(half), torch.arange(BOX - half, BOX)])
    slices = slices[:, rows][..., : half + 1].to(torch.complex128)
    ky, kx = torch.fft.fftfreq(size, 1 / size)[:, None], torch.arange(half + 1.0)
    angles = -2 * math.pi * (kx * shifts[:, 0, None, None] + ky * shifts[:, 1, None, None])
    radius = (kx**2 + ky**2).sqrt()
    inside = (radius >= BAND[0]) & (radius <= BAND[1])
    count = torch.where(kx == 0, 0.5, 1.0) * inside
    return slices * torch.polar(torch.ones_like(angles), angles), count.double()


def test_sums_and_slopes_are_those_of_moved_slices(case):
    volume, data, weights, rotations, shifts = case
    found = slice_fit.fit_slices(*case, 2.0, BAND)
    # Slopes of what trilinear weights interpolate have steps, which small moves seldom meet.
    small = 1e-6
    volume = volume.to(torch.complex128)
    for p in range(2):
        value, count = read(volume, rotations[p], shifts[p], 24)
        seen = data[p].to(value.dtype)
        assert float(found.right[p, 0]) == pytest.approx(
            float((seen.conj() * value * count).real.sum()), rel=1e-4
        )
        energy = (weights[p] * count * value.abs() ** 2).sum()
        assert float(found.left[p, 0, 0]) == pytest.approx(float(energy), rel=1e-4)
        power = (seen.abs() ** 2 * count)[weights[p] > 0] / weights[p][weights[p] > 0]
        assert float(found.power[p]) == pytest.approx(float(power.sum()), rel=1e-4)
        for axis in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[axis] = small
            turn = rotation_vectors_to_matrices(torch.rad2deg(step))
            moved = (rotations[p] @ step)[:, :2]
            turned = [read(volume, rotations[p] @ one, shifts[p], 24)[0] for one in (turn, turn.mT)]
            shifted = [read(volume, rotations[p], shifts[p] + one, 24)[0] for one in (moved, -moved)]
            for row, (ahead, behind) in ((1 + axis, turned), (4 + axis, shifted)):
                slope = (ahead - behind) / (2 * small)
                norm = float((seen.abs() * slope.abs() * count).square().sum().sqrt())
                right = float((seen.conj() * slope * count).real.sum())
                assert float(found.right[p, row]) == pytest.approx(right, abs=1e-3 * norm)
                left = float((weights[p] * count * (value.conj() * slope).real).sum())
                scale = math.sqrt(float(energy) * float((weights[p] * count * slope.abs() ** 2).sum()))
                assert float(found.left[p, 0, row]) == pytest.approx(left, abs=1e-3 * scale)
