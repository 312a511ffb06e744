"""Boxes of tomograms and their sampling functions, against the same particles cut from the views."""

import numpy as np
import pytest
import torch

from tests.unit.averaging.cases import PIXEL, SIDE, draw_body, draw_poses, draw_views, make_series
from verglas.algo.averaging.boxes import WeightedVolume, open_boxes
from verglas.algo.averaging.halves import HalfSums, reconstruct_half
from verglas.algo.averaging.sums import open_source, sum_particles, weight_particles
from verglas.algo.averaging.transfer import TransferModel
from verglas.algo.averaging.views import invert_views
from verglas.algo.reconstruction.filtering import ViewFilter, filter_views, make_frames
from verglas.algo.reconstruction.volume import reconstruct_blocks
from verglas.model import AppliedWeights, DefocusSurface, Tomogram
from verglas.ops.backprojection import VoxelGrid
from verglas.ops.fsc import fourier_shell_correlation
from verglas.ops.masks import soft_sphere_mask

BOX = 32
ONE = torch.eye(3, dtype=torch.float64)[None]
PLAIN = TransferModel(ctf=False, dose=False)
SHAPE = (96, SIDE, SIDE)


def make_volume(series, images, centre=(0.0, 0.0, 0.0), shape=SHAPE) -> WeightedVolume:
    """Back-project the views, and tell what they were weighted with."""
    options = ViewFilter(normalise=True)
    filtered = filter_views(images, series, PIXEL, options)
    grid = VoxelGrid(shape, PIXEL, centre)
    blocks = reconstruct_blocks(filtered, make_frames(series, PIXEL), grid, [torch.arange(len(series))])
    volume = torch.cat([block[0] for _, block in blocks], dim=1)
    count = len(series)
    weights = AppliedWeights("ramp", "none", False, np.arange(count), np.ones(count), np.ones(count))
    tomogram = Tomogram("TS", None, shape, PIXEL, centre)
    return WeightedVolume(tomogram, volume.numpy(), weights)


@pytest.fixture(scope="module")
def both():
    """The same noisy particles by their views and by their boxes."""
    positions, rotations = draw_poses(30)
    series = make_series()
    images = draw_views(series, positions, rotations, noise=1.0)
    volume = make_volume(series, images)
    direct = open_source(invert_views(images, series, PIXEL), positions, BOX, PLAIN)
    boxes = open_boxes([volume], series, positions, BOX, PLAIN, torch.device("cpu"))
    return direct, boxes, positions, rotations


def average(source, positions, rotations):
    return reconstruct_half(HalfSums(*sum_particles(source, positions, rotations, ONE)), BOX)


def test_slices_of_a_box_are_those_of_the_views(both):
    """Where planes lie apart; near the axis they mix."""
    direct, boxes, positions, _ = both
    first, _ = direct.cut(positions[:6], BOX)
    second, squares = boxes.cut(positions[:6], BOX)
    assert squares.shape == first.shape
    # Across the tilt axis, which is nearly y of the images, at eight voxels of a box from it and more.
    rows = torch.fft.fftfreq(BOX, 1 / BOX).abs()
    apart = (rows[:, None] >= 7) & (rows[:, None] <= 12) & (torch.arange(BOX // 2 + 1) < 6)
    a, b = first[..., apart], second[..., apart]
    agreement = (a.conj() * b).real.sum() / (a.abs().square().sum() * b.abs().square().sum()).sqrt()
    assert float(agreement) > 0.9
    scale = (a.conj() * b).real.sum() / a.abs().square().sum()
    assert float(scale) == pytest.approx(1.0, abs=0.25)
    # Nothing weakened these views, so nothing but the planes is in the sampling function.
    inner = squares[..., apart]
    assert float(inner.mean()) == pytest.approx(1.0, abs=0.1)


def test_both_averages_are_the_body_and_the_direct_one_is_no_worse(both):
    direct, boxes, positions, rotations = both
    mask = soft_sphere_mask((BOX,) * 3, 10, 3)
    curves = [
        fourier_shell_correlation(average(source, positions, rotations), draw_body(BOX), PIXEL, mask)[1]
        for source in (direct, boxes)
    ]
    assert all(float(curve[2:7].min()) > 0.85 for curve in curves)
    assert float(curves[0][2:10].mean()) > float(curves[1][2:10].mean()) - 0.01


def test_a_region_gives_what_the_whole_gives(both):
    _, boxes, positions, _ = both
    whole = boxes.volumes[0]
    x, y, z = (int(value) for value in np.rint(whole.tomogram.locate(positions[:1].numpy())[0]))
    reach = 20
    part = whole.voxels[z - reach : z + reach, y - reach : y + reach, x - reach : x + reach]
    middle = np.array([n // 2 for n in reversed(SHAPE)])
    centre = tuple(((np.array([x, y, z]) - middle) * PIXEL).tolist())
    tomogram = Tomogram("TS", None, part.shape, PIXEL, centre, region="one")
    region = WeightedVolume(tomogram, part, whole.weights)
    alone = open_boxes([region], make_series(), positions[:1], BOX, PLAIN, torch.device("cpu"))
    torch.testing.assert_close(alone.cut(positions[:1], BOX)[0], boxes.cut(positions[:1], BOX)[0])


def test_what_no_tomogram_holds_weighs_nothing(both):
    _, boxes, _, _ = both
    far = torch.tensor([[0.0, 0.0, 4000.0]], dtype=torch.float64)
    data, weights = weight_particles(boxes, far)
    assert not data.abs().any()
    assert not weights.any()


def test_the_sampling_function_is_the_ctf_of_the_particle_times_that_of_its_slab():
    """At a particle that lies on the surface of its slab it is the square of the CTF, elsewhere less."""
    count = len(make_series())
    series = make_series(
        defocus_u_angstrom=np.full(count, 20000.0), defocus_v_angstrom=np.full(count, 20000.0)
    )
    surfaces = (DefocusSurface(-400.0, 400.0, (150.0, 0, 0, 0, 0, 0)),)
    weights = AppliedWeights(
        "ramp", "3d", False, np.arange(count), np.ones(count), np.ones(count), surfaces=surfaces
    )
    volume = WeightedVolume(
        Tomogram("TS", None, (64, 64, 64), PIXEL), np.zeros((64, 64, 64), np.float32), weights
    )
    model = TransferModel(dose=False)
    places = torch.tensor([[30.0, -40, 150.0], [30.0, -40, -300.0]], dtype=torch.float64)
    source = open_boxes([volume], series, places, BOX, model, torch.device("cpu"))
    on, off = (source._square(volume, place[None]) for place in places)
    assert float(on.min()) >= -1e-6
    assert float(off.min()) < -1e-3
