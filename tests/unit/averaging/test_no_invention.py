"""Boxes of pure noise aligned to a molecule: what comes out must not look alike in both half sets.

The correlation of a shell of noise scatters as 1 / sqrt(n), n its independent voxels within the mask. Limits are
therefore set for the mean over many shells and several data sets, where n is some thousands, and in units of that
scatter. References are shared up to `SHARED`, and a mask of the molecule's size spreads a shell by one over its
diameter: what lies beyond both must be noise.
"""

import pytest
import torch

from tests.unit.averaging.cases import PIXEL, draw_body, make_series
from verglas.algo.averaging.alignment import Reference, align_particles, plan_search
from verglas.algo.averaging.halves import (
    HalfSums,
    correlate_halves,
    filter_average,
    reconstruct_half,
    spread_cones,
)
from verglas.algo.averaging.reference import share_low_resolution
from verglas.algo.averaging.sums import open_source, sum_particles
from verglas.algo.averaging.transfer import TransferModel
from verglas.algo.averaging.views import invert_views
from verglas.ops.filters import apply_filter, gaussian_lowpass_filter
from verglas.ops.fsc import correlation_error, fourier_shell_correlation
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import random_rotations

BOX = 32
COUNT = 60
RADIUS = 80.0
SHARED = 80.0
SEEDS = (4, 5, 6)
CYCLES = 3
ONE = torch.eye(3, dtype=torch.float64)[None]
MASK = soft_sphere_mask((BOX,) * 3, RADIUS / PIXEL, 4)
BEYOND = 1 / SHARED + 1 / (2 * RADIUS)


def open_noise(seed):
    """Views that hold nothing but noise, and places and orientations that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    series = make_series()
    images = [torch.randn(series.image_shape, generator=generator) for _ in range(len(series))]
    views = invert_views(images, series, PIXEL)
    span = torch.tensor([300.0, 600.0, 300.0], dtype=torch.float64)
    positions = (2 * torch.rand(COUNT, 3, generator=generator, dtype=torch.float64) - 1) * span
    source = open_source(views, positions, BOX, TransferModel(ctf=False, dose=False))
    return source, positions, random_rotations(COUNT, generator)


def run_cycles(seed, *, leak=False):
    """Cycles as `align` and `average` do them; with a leak both half sets are aligned to one map, to its finest."""
    source, positions, rotations = open_noise(seed)
    first = apply_filter(draw_body(BOX), gaussian_lowpass_filter((BOX,) * 3, PIXEL, SHARED), dims=3)
    references, finest = [first] * 2, SHARED
    for _ in range(CYCLES):
        plan = plan_search(RADIUS, finest, turn_deg=12, step_deg=6, shift_angstrom=15)
        halves = []
        for half, volume in enumerate(references):
            rows = slice(half, None, 2)
            reference = Reference(volume * MASK, PIXEL, plan)
            poses, _ = align_particles(source, positions[rows], rotations[rows], [reference])
            positions[rows], rotations[rows] = poses.positions_angstrom, poses.rotations
            halves.append(HalfSums(*sum_particles(source, positions[rows], rotations[rows], ONE)))
        maps = [reconstruct_half(half, BOX) for half in halves]
        curves = correlate_halves(*maps, PIXEL, MASK)
        if leak:
            references, finest = [maps[0] + maps[1]] * 2, 30.0
        else:
            correlation = spread_cones(curves, 2 * BOX, PIXEL)
            filtered = (filter_average(half, correlation, BOX, whole=False) for half in halves)
            references = list(share_low_resolution(*filtered, PIXEL, SHARED))
            finest = min(curves.resolution(), SHARED)
    return curves


def correlate_band(curves, low, high=1.0):
    """Mean masked correlation of a band of all curves, shells by their voxels, and its error without signal."""
    independent = correlation_error(MASK).pow(-2)
    band = (curves[0].frequency > low) & (curves[0].frequency < high)
    means = [float((one.masked * independent)[band].sum() / independent[band].sum()) for one in curves]
    return sum(means) / len(means), float(independent[band].sum() * len(curves)) ** -0.5


def test_noise_gives_no_correlation_beyond_what_is_shared():
    curves = [run_cycles(seed) for seed in SEEDS]
    mean, error = correlate_band(curves, BEYOND)
    assert 4 * error < 0.143  # else the test could not tell
    assert abs(mean) < 4 * error
    near, error = correlate_band(curves, BEYOND, BEYOND + 1 / (2 * RADIUS))
    assert near < 0.143 / 2 + 4 * error
    shell = 1 / (BOX * PIXEL)
    assert all(one.resolution() > 1 / (BEYOND + shell) for one in curves)


def test_halves_aligned_to_one_map_give_it_away():
    curves = [run_cycles(seed, leak=True) for seed in SEEDS[:2]]
    mean, error = correlate_band(curves, BEYOND, 1 / 32)
    assert mean > 0.143
    assert mean > 8 * error


@pytest.mark.parametrize("radius", [6.0, 10.0])
def test_the_scatter_of_noise_is_the_expected_one(radius):
    mask = soft_sphere_mask((BOX,) * 3, radius, 3)
    weights = correlation_error(mask)[4:].pow(-2)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(100):
        maps = [torch.randn((BOX,) * 3, generator=generator) for _ in range(2)]
        _, curve = fourier_shell_correlation(*maps, PIXEL, mask)
        found.append(float((curve[4:] * weights).sum() / weights.sum()))
    # A standard deviation from 100 values is known to 7 %.
    assert torch.tensor(found).std() * weights.sum().sqrt() == pytest.approx(1.0, abs=0.2)
