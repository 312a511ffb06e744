"""Crops of particles, and what reaches them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.averaging.cases import (
    PIXEL,
    draw_body,
    draw_poses,
    make_series,
    no_turn,
    open_views,
    view_matrix,
)
from verglas.algo.averaging.sums import open_source
from verglas.algo.averaging.transfer import TransferModel, compute_transfer, find_heights, measure_noise
from verglas.algo.averaging.views import cut_particles
from verglas.model import LocalField
from verglas.ops.ctf import ctf_1d
from verglas.ops.dose import critical_exposure
from verglas.ops.fft import rfft_crop
from verglas.ops.kernels import transfer_slices
from verglas.ops.projection import slices_to_images

BOX = 32


def test_crops_are_centred_to_a_fraction_of_a_pixel():
    positions, _ = draw_poses(6)
    rotations = no_turn().expand(6, -1, -1)
    apart = positions * torch.tensor([0.0, 1.0, 0.0]) + torch.arange(6)[:, None] * torch.tensor(
        [0.0, 0.0, 3.3]
    )
    views = open_views(apart[:1], rotations[:1])
    slices, seen = cut_particles(views, apart[:1], BOX)
    assert bool(seen.all())
    crop = slices_to_images(slices, BOX)[0, 6]
    # At no tilt of the axis the projection of the body is its sum along the beam, turned by the view's matrix.
    expected = draw_body(BOX, view_matrix(views.series, 6)).sum(0)
    inner = slice(8, -8)
    a, b = crop[inner, inner].flatten(), expected[inner, inner].flatten()
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.999


def test_the_local_field_moves_particles_by_their_place_in_the_specimen():
    rng = np.random.default_rng(0)
    corners = rng.normal(0, 20, (13, 2, 2, 2))
    field = LocalField((-500.0, -600.0), (500.0, 600.0), corners)
    positions, rotations = draw_poses(4)
    plain, bent = (open_views(positions, rotations, local=one) for one in (None, field))
    moved = (bent.project_points(positions) - plain.project_points(positions)).numpy()
    for p, (x, y, _) in enumerate(positions.tolist()):
        # Through two nodes an axis a natural spline is a straight line.
        u, v = (x + 500) / 1000, (y + 600) / 1200
        expected = (1 - v) * ((1 - u) * corners[:, 0, 0] + u * corners[:, 0, 1]) + v * (
            (1 - u) * corners[:, 1, 0] + u * corners[:, 1, 1]
        )
        np.testing.assert_allclose(moved[p], expected, atol=1e-6)


def test_what_lies_outside_is_not_seen():
    positions = torch.tensor([[0.0, 0, 0], [4000.0, 0, 0]], dtype=torch.float64)
    views = open_views(positions[:1], no_turn())
    slices, seen = cut_particles(views, positions, BOX)
    assert seen[0].all()
    assert not seen[1].any()
    assert not slices[1].abs().any()


def test_views_are_bright_with_mean_0_and_deviation_1():
    positions, rotations = draw_poses(5)
    views = open_views(positions, rotations, noise=0.1)
    np.testing.assert_allclose(views.images.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(views.images.std((1, 2)), 1, atol=1e-4)
    assert float(views.images[6].max()) > -float(views.images[6].min())


@pytest.mark.parametrize("hand", [1, -1])
def test_the_ctf_is_that_of_the_particles_own_height(hand):
    count = len(make_series())
    views = open_views(
        *draw_poses(1),
        defocus_u_angstrom=np.full(count, 21000.0),
        defocus_v_angstrom=np.full(count, 21000.0),
        hand=hand,
    )
    place = torch.tensor([[300.0, 0, 800.0]], dtype=torch.float64)
    transfer = compute_transfer(views, find_heights(views, place), BOX, PIXEL, TransferModel(dose=False))
    for row in (0, 6, 12):
        depth = view_matrix(views.series, row)[2] @ place[0].numpy()
        frequency = torch.tensor([8 / (BOX * PIXEL)], dtype=torch.float64)
        expected = ctf_1d(
            frequency,
            defocus_angstrom=torch.tensor([21000.0 + hand * depth]),
            voltage_kv=300.0,
            cs_mm=2.7,
            amplitude_contrast=0.1,
        )
        optics = views.series.optics
        assert (optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast) == (300.0, 2.7, 0.1)
        assert float(transfer[0, row, 0, 8]) == pytest.approx(float(expected), abs=1e-3)


def test_damage_loss_and_views_without_defocus():
    exposure = np.arange(13) * 3.0
    unknown = np.where(np.arange(13) == 3, np.nan, 20000.0)
    views = open_views(
        *draw_poses(1), pre_exposure_e_per_a2=exposure, defocus_u_angstrom=unknown, defocus_v_angstrom=unknown
    )
    place = torch.zeros(1, 3, dtype=torch.float64)
    damaged = compute_transfer(views, find_heights(views, place), BOX, PIXEL, TransferModel(ctf=False))
    limit = float(critical_exposure(torch.tensor([5 / (BOX * PIXEL)]))[0])
    assert float(damaged[0, 7, 0, 5]) == pytest.approx(math.exp(-0.5 * 21 / limit), rel=1e-4)
    lost = compute_transfer(
        views,
        find_heights(views, place),
        BOX,
        PIXEL,
        TransferModel(ctf=False, dose=False, ice_thickness_angstrom=2000.0),
    )
    assert float(lost[0, 0, 0, 0] / lost[0, 6, 0, 0]) == pytest.approx(
        math.exp(
            -2000
            / 4000
            * (1 / math.cos(math.radians(60)) / math.cos(math.radians(2)) - 1 / math.cos(math.radians(2)))
        ),
        rel=1e-3,
    )
    both = compute_transfer(views, find_heights(views, place), BOX, PIXEL, TransferModel())
    torch.testing.assert_close(both[0, 3], damaged[0, 3])
    assert not torch.allclose(both[0, 4], damaged[0, 4])


def test_noise_is_the_mean_power_of_white_noise():
    generator = torch.Generator().manual_seed(1)
    images = 3 * torch.randn(60, 2, BOX, BOX, generator=generator)
    images[:, 1] = 0
    noise = measure_noise(torch.fft.rfft2(images))
    np.testing.assert_allclose(noise[0, 2:15], 9 * BOX**2, rtol=0.1)
    assert set(noise[1].tolist()) == {1.0}


@pytest.mark.parametrize("size", [BOX, 20])
def test_weighed_crops_are_centred_ones_times_their_transfer(size):
    positions, rotations = draw_poses(5)
    views = open_views(positions, rotations, noise=0.1)
    series = replace(
        views.series,
        defocus_u_angstrom=views.series.defocus_u_angstrom + np.where(np.arange(13) == 4, np.nan, 0.0),
        defocus_v_angstrom=views.series.defocus_v_angstrom - 4000.0,
        defocus_angle_deg=np.linspace(-80.0, 90.0, 13),
        phase_shift_deg=np.linspace(0.0, 90.0, 13),
    )
    views = replace(views, series=series)
    positions = torch.cat([positions, torch.tensor([[4000.0, 0, 0]], dtype=torch.float64)])
    for model in (TransferModel(ice_thickness_angstrom=1500.0), TransferModel(ctf=False)):
        source = open_source(views, positions, BOX, model)
        slices, squares = source.cut(positions, size)
        plain, seen = cut_particles(views, positions, BOX)
        heights = find_heights(views, positions)
        transfer = compute_transfer(views, heights, size, PIXEL * BOX / size, model) * seen[..., None, None]
        expected = rfft_crop(plain, (BOX, BOX), (size, size)) * transfer
        # A row and a column at Nyquist hold two frequencies each and are used nowhere.
        inner = torch.arange(size) != size // 2
        for found, wanted in ((slices, expected), (squares, transfer.square())):
            np.testing.assert_allclose(
                found[:, :, inner, :-1], wanted[:, :, inner, :-1], atol=2e-4 * float(wanted.abs().max())
            )


def test_weighing_kernel_and_plain_torch_agree():
    rng = torch.Generator().manual_seed(3)
    slices = torch.randn(3, 2, 16, 9, dtype=torch.complex64, generator=rng)
    shifts = torch.randn(3, 2, 2, dtype=torch.float64, generator=rng)
    phases = torch.randn(3, 2, 5, dtype=torch.float64, generator=rng)
    factors = torch.rand(2, 16, 9, generator=rng)
    seen = torch.tensor([[True, False], [True, True], [True, True]])
    again = slices.clone()
    squares = transfer_slices.move_and_weigh(slices, shifts, phases, factors, seen)
    plain = transfer_slices.move_and_weigh_reference(again, shifts, phases, factors, seen)
    np.testing.assert_allclose(slices, again, atol=1e-5)
    np.testing.assert_allclose(squares, plain, atol=1e-6)
    assert not slices[0, 1].abs().any()
