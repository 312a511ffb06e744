"""Slabs and strips against places worked out point by point, and tomograms against simulated truth."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.unit.reconstruction.test_reconstruction import ctf_by_hand
from verglas.algo.reconstruction.filtering import (
    ViewFilter,
    ViewWeigher,
    filter_views,
    prepare_views,
    view_factors,
)
from verglas.algo.reconstruction.slabs import Slab, choose_defocus_step, plan_slabs, reconstruct_slabs
from verglas.algo.reconstruction.strips import LEVEL, correct_in_strips, defocus_offsets, strip_step
from verglas.algo.reconstruction.surfaces import fit_surface
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Species, arrange_copies
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.errors import UserError
from verglas.io.weights import read_weights, write_weights
from verglas.model import AppliedWeights, DefocusSurface, ImageReference, Optics, TiltSeries
from verglas.ops.backprojection import VoxelGrid, backproject
from verglas.ops.geometry import series_matrices

PIXEL = 5.0


def make_series(shape: tuple[int, int], tilts: np.ndarray, **changes: object) -> TiltSeries:
    count = len(tilts)
    images = tuple(ImageReference("stack.mrc", i) for i in range(count))
    series = TiltSeries(
        "TS", Optics(PIXEL), shape, images, tilts, exposure_e_per_a2=np.full(count, 3.0),
        defocus_u_angstrom=np.full(count, 25200.0), defocus_v_angstrom=np.full(count, 24800.0),
        defocus_angle_deg=np.full(count, 35.0),
    )  # fmt: skip
    return replace(series, **changes)  # type: ignore[arg-type]


def reconstruct(stack: np.ndarray, series: TiltSeries, grid: VoxelGrid, step: float) -> np.ndarray:
    images = (torch.from_numpy(view) for view in stack)
    views, _ = prepare_views(images, series, PIXEL, normalise=False)
    volume = np.full(grid.shape, np.nan, np.float32)
    everything = [torch.arange(len(series))]
    options = ViewFilter(ctf="multiply")
    for z, y, (block,) in reconstruct_slabs(views, series, grid, options, plan_slabs(grid, step), everything):
        volume[z : z + block.shape[0], y : y + block.shape[1]] = block.numpy()
    return volume


SURFACES = [
    DefocusSurface(-5000, 5000, (700.0, 0, 0, 0, 0, 0)),
    DefocusSurface(-5000, 5000, (300.0, 0.05, -0.08, 2e-5, 1e-5, -3e-5)),
]


@pytest.mark.parametrize("surface", SURFACES, ids=["plane", "curved"])
@pytest.mark.parametrize("hand", [1, -1])
def test_pixels_have_the_defocus_of_what_they_see(surface: DefocusSurface, hand: int) -> None:
    """Points of the surface, projected one by one, lie as deep as the pixel there is told to be."""
    series = make_series(
        (200, 240), np.array([-50.0, 20.0]), hand=hand, x_tilt_deg=np.array([4.0, -3.0]),
        z_rot_deg=np.array([-86.0, 10.0]), x_shift_angstrom=np.array([40.0, -60.0]),
        y_shift_angstrom=np.array([-25.0, 90.0]), magnification=np.array([[1.01, 0.004], [-0.003, 0.99]]),
    )  # fmt: skip
    matrices = series_matrices(series.geometry).numpy()
    frames = ViewWeigher(series, PIXEL, ViewFilter()).frames
    x, y = np.random.default_rng(0).uniform(-250, 250, (2, 60))
    c = surface.coefficients
    z = c[0] + c[1] * x + c[2] * y + c[3] * x**2 + c[4] * x * y + c[5] * y**2
    for view in (0, 1):
        offsets = defocus_offsets((200, 240), view, series, frames, surface, 120.0).numpy()
        places = matrices[view] @ np.stack([x, y, z, np.ones(60)])
        column, row = (
            np.rint(places[0] / PIXEL).astype(int) + 120,
            np.rint(places[1] / PIXEL).astype(int) + 100,
        )
        inside = (column >= 0) & (column < 240) & (row >= 0) & (row < 200)
        assert inside.sum() > 10
        tilts = np.deg2rad([series.x_tilt_deg[view], series.y_tilt_deg[view]])
        expected = hand * (places[2] - 120.0 / np.cos(tilts).prod())
        # Half a pixel off, a view tilted by 50° is 3 Å higher or lower.
        np.testing.assert_allclose(offsets[row[inside], column[inside]], expected[inside], atol=5.0)


def test_one_slab_is_the_correction_in_two_dimensions() -> None:
    series = make_series((64, 80), np.linspace(-60, 60, 7), x_tilt_deg=np.full(7, 3.0))
    stack = np.random.default_rng(1).standard_normal((7, 64, 80)).astype(np.float32)
    grid = VoxelGrid((31, 60, 70), PIXEL)
    options = ViewFilter(ctf="multiply", normalise=False)
    flat = filter_views((torch.from_numpy(view) for view in stack), series, PIXEL, options)
    expected = backproject(flat, ViewWeigher(series, PIXEL, options).frames, grid)
    np.testing.assert_allclose(reconstruct(stack, series, grid, 1e6), expected.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def column() -> tuple[Scatterers, VoxelGrid]:
    """Small Gaussians near the top of a slab 300 nm thick, and the voxels around them."""
    places = np.random.default_rng(5).uniform(-35, 35, (40, 3)) + np.array([0.0, 0.0, 1400.0])
    return Scatterers(places, np.full(40, 1000.0), np.full(40, 2.5)), VoxelGrid(
        (40, 40, 40), PIXEL, (0, 0, 1400.0)
    )


def share_left(volume: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of the truth's amplitudes in a volume, in shells from 16 to 10.2 Å, where views measured."""
    axis = np.fft.fftfreq(40, PIXEL)
    kz, ky, kx = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(kz**2 + ky**2 + kx**2)
    measured = np.abs(kz) <= np.abs(kx) * np.tan(np.deg2rad(59.0))
    offset = np.arange(40) - 20
    distance = np.sqrt(sum(o**2 for o in np.meshgrid(offset, offset, offset, indexing="ij")))
    a, b = (np.fft.fftn(one * np.clip((19 - distance) / 5, 0, 1)) for one in (volume, truth))
    shells = [measured & (radius >= low) & (radius < high) for low, high in SHELLS]
    return np.array([(a[one] * b[one].conj()).real.sum() / (np.abs(b[one]) ** 2).sum() for one in shells])


SHELLS = tuple(pairwise(np.linspace(1 / 16, 1 / 10.2, 4)))


def predict_share(series: TiltSeries, error: float) -> np.ndarray:
    """What theory leaves of the amplitudes at the top when the height is wrong by `error`: sin χ sin(χ + δ)."""
    tilts = np.deg2rad(np.asarray(series.y_tilt_deg))[:, None]
    true = 25000 + series.hand * 1400 * np.cos(tilts) + 200 * np.cos(np.linspace(0, 2 * np.pi, 24))
    used = true - series.hand * error / np.cos(tilts)
    shares = []
    for low, high in SHELLS:
        s = np.linspace(low, high, 60)[:, None, None]
        shares.append((ctf_by_hand(s, true) * ctf_by_hand(s, used) * s**2).mean() / (s**2).mean())
    return np.array(shares)


@pytest.mark.parametrize("hand", [1, -1])
def test_the_top_of_a_thick_slab_gains_what_theory_gives(
    column: tuple[Scatterers, VoxelGrid], hand: int
) -> None:
    body, grid = column
    series = make_series((64, 560), np.arange(-60.0, 61.0, 5.0), hand=hand)
    blob = Scatterers(np.zeros((1, 3)), body.weights_v_a3[:1], body.sigmas_angstrom[:1])
    specimen = arrange_copies("top", Species("blob", blob), body.positions_angstrom, np.zeros((40, 3)))
    conditions = Conditions(damage=False, noise=False, layer_angstrom=60.0)
    stack = simulate_tilt_series(specimen, series, conditions=conditions, workers=1)
    moved = Scatterers(body.positions_angstrom - (0, 0, 1400.0), body.weights_v_a3, body.sigmas_angstrom)
    truth = -render_volume(moved, grid.shape, PIXEL)
    options = ViewFilter(ctf="multiply", normalise=False)
    images = (torch.from_numpy(view) for view in stack)
    frames = ViewWeigher(series, PIXEL, options).frames
    plane = share_left(backproject(filter_views(images, series, PIXEL, options), frames, grid).numpy(), truth)
    solid = share_left(reconstruct(stack, series, grid, 400.0), truth)
    mirrored = share_left(reconstruct(stack, replace(series, hand=-hand), grid, 400.0), truth)
    expected = predict_share(series, 1400.0) / predict_share(series, 0.0)
    np.testing.assert_allclose(plane / solid, expected, atol=0.08)
    assert expected[-1] < 0.65
    assert mirrored[-1] < plane[-1]


def test_strips_have_no_seams() -> None:
    """At their spacing the power of corrected noise is that of its neighbours, beside finer strips."""
    series = make_series((256, 1024), np.array([-60.0, 60.0]))
    offsets = defocus_offsets((256, 1024), 1, series, ViewWeigher(series, PIXEL, ViewFilter()).frames)
    transform = torch.fft.rfft2(torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)))
    usual, fine = (
        correct_in_strips(transform, (256, 1024), offsets, 1, series, PIXEL, voxel, "multiply").numpy()
        for voxel in (PIXEL, PIXEL / 3)
    )
    ratio = np.divide(*((np.abs(np.fft.rfft(one, axis=1)) ** 2).mean(axis=0) for one in (usual, fine)))
    strips = math.ceil(float(offsets.max() - offsets.min()) / strip_step(series, PIXEL))
    for harmonic in (1, 2, 3):
        place = harmonic * strips
        beside = ratio[[place - 2, place - 1, place + 1, place + 2]].mean()
        assert ratio[place] / beside == pytest.approx(1.0, abs=0.01)
    assert np.corrcoef(usual.ravel(), fine.ravel())[0, 1] > 0.999


def test_slabs_keep_nine_tenths_of_the_contrast() -> None:
    series = make_series((64, 64), np.array([-60.0, 0.0, 60.0]))
    step = choose_defocus_step(series, PIXEL, 14.0)
    # Waves of the defoci that one slab has at 60°, averaged one by one.
    defoci = np.linspace(-0.5, 0.5, 2001) * step / np.cos(np.deg2rad(60.0))
    waves = np.exp(1j * np.pi * series.optics.wavelength_angstrom * defoci / 14.0**2)
    assert abs(waves.mean()) == pytest.approx(0.9, abs=1e-3)
    assert choose_defocus_step(series, PIXEL, None) == choose_defocus_step(series, PIXEL, 12.5)
    assert choose_defocus_step(series, 1.0, 1.0) == 100.0


def test_slabs_are_odd_in_number_and_cover_the_volume() -> None:
    grid = VoxelGrid((31, 5, 5), PIXEL, (0, 0, 100.0))
    for step, count in ((1000.0, 1), (155.0, 1), (154.0, 3), (31.0, 5), (30.0, 7), (1.0, 31)):
        slabs = plan_slabs(grid, step)
        assert len(slabs) == count
        assert [slab.start for slab in slabs] == [0, *(slab.stop for slab in slabs[:-1])]
        assert slabs[-1].stop == 31
        low, high = slabs[0].surface.low_angstrom, slabs[-1].surface.high_angstrom
        assert (low, high) == (100 - 15.5 * PIXEL, 100 + 15.5 * PIXEL)
    assert plan_slabs(grid, 1000.0)[0].surface.coefficients[0] == pytest.approx(100.0)


def test_surfaces_follow_particles_and_not_the_few_that_lie_off() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.uniform(-2000, 2000, (2, 80))
    true = np.array([150.0, 0.02, -0.03, 1e-5, -2e-5, 1.5e-5])
    z = true @ np.stack([np.ones(80), x, y, x * x, x * y, y * y]) + generator.normal(0, 3, 80)
    z[:8] += 300
    surface = fit_surface(-1000, 1000, torch.tensor(np.stack([x, y, z], axis=1)))
    fitted = np.array(surface.coefficients) @ np.stack([np.ones(80), x, y, x * x, x * y, y * y])
    exact = true @ np.stack([np.ones(80), x, y, x * x, x * y, y * y])
    assert np.abs(fitted - exact).max() < 6
    assert surface.particles == 80


def test_few_particles_make_a_plane() -> None:
    places = torch.tensor([[0.0, 0.0, 10.0], [500.0, 0.0, 30.0], [0.0, 0.0, 900.0]], dtype=torch.float64)
    surface = fit_surface(-100, 100, places)
    assert surface.is_plane
    assert surface.coefficients[0] == 20.0
    assert surface.particles == 2
    assert fit_surface(-100, 50, places[:0]).coefficients[0] == -25.0
    # In a line, they say nothing of the direction across.
    line = torch.tensor([[100.0 * i, 0.0, 5.0 * i] for i in range(10)], dtype=torch.float64)
    c = fit_surface(-100, 100, line).coefficients
    assert c[1] == pytest.approx(0.05)
    assert max(map(abs, (c[2], c[4], c[5]))) < 1e-9


def test_surfaces_do_not_leave_their_slab() -> None:
    """Beyond the particles a quadratic runs away; voxels there are still in the slab."""
    series = make_series((64, 800), np.array([0.0, 30.0]))
    frames = ViewWeigher(series, PIXEL, ViewFilter()).frames
    bowl = DefocusSurface(-50.0, 50.0, (0, 0, 0, 1e-3, 0, 0))
    offsets = defocus_offsets((64, 800), 0, series, frames, bowl)
    assert float(offsets.max()) == 50.0
    assert float(offsets.min()) == pytest.approx(0.0, abs=1e-3)


def test_views_lose_electrons_with_the_path() -> None:
    series = make_series((8, 8), np.array([-60.0, 0.0, 45.0]))
    factors = view_factors(series, ViewFilter(ice_thickness_angstrom=750.0)).numpy()
    expected = np.exp(-750 / 4000 * (1 / np.cos(np.deg2rad(series.y_tilt_deg)) - 1))
    np.testing.assert_allclose(factors, expected)
    assert (view_factors(series, ViewFilter()).numpy() == 1).all()


def test_factors_reach_the_views() -> None:
    series = make_series((32, 32), np.array([0.0, 60.0]))
    image = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    plain = ViewWeigher(series, PIXEL, ViewFilter()).weigh(image, 1)
    weighted = ViewWeigher(series, PIXEL, ViewFilter(ice_thickness_angstrom=750.0)).weigh(image, 1)
    torch.testing.assert_close(weighted, plain * math.exp(-750 / 4000))


def test_weights_are_read_as_written(tmp_path) -> None:
    weights = AppliedWeights(
        "ramp",
        "3d",
        True,
        np.array([2, 0]),
        np.array([1.0, 0.5]),
        np.array([3.0, 4.0]),
        tuple(SURFACES),
        12.5,
    )
    write_weights(tmp_path / "a.json", weights)
    again = read_weights(tmp_path / "a.json")
    assert again.surfaces == weights.surfaces
    assert again.defocus_height_angstrom == 12.5
    for name in ("views", "view_factors", "view_deviations"):
        np.testing.assert_array_equal(getattr(again, name), getattr(weights, name))
    (tmp_path / "b.json").write_text('{"weighting": "ramp"}')
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "b.json")
    with pytest.raises(UserError, match="one a view"):
        replace(weights, view_factors=np.ones(3))


def test_a_slab_without_defocus_is_refused() -> None:
    series = make_series((32, 32), np.array([0.0]), defocus_u_angstrom=np.array([np.nan]))
    grid = VoxelGrid((4, 8, 8), PIXEL)
    with pytest.raises(UserError, match="no defocus"):
        next(
            reconstruct_slabs(
                torch.zeros(1, 32, 32),
                series,
                grid,
                ViewFilter(ctf="multiply"),
                [Slab(0, 4, LEVEL)],
                [torch.arange(1)],
            )
        )
