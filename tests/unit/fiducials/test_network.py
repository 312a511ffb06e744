"""The network: its scenes, that it learns, and what the shipped weights say of images drawn by another route."""

from pathlib import Path

import numpy as np
import pytest
import torch

from verglas.algo.fiducials.network import (
    KINDS,
    count_block,
    describe_views,
    make_network,
    segment_view,
)
from verglas.algo.fiducials.scenes import BAR, CARBON, CONTAMINATION, GOLD, SceneRanges, draw_scene
from verglas.algo.fiducials.training import judge_network, make_scenes, train_network
from verglas.errors import FileFormatError, UserError
from verglas.io.network_weights import read_shipped_weights, read_weights, write_weights
from verglas.ops.networks import list_weights

GOLD_KIND = KINDS.index("gold")


@pytest.fixture(scope="module")
def shipped():
    return make_network(read_shipped_weights("fiducials"))


def test_scenes_show_all_kinds_and_come_again_with_their_seed():
    scenes = make_scenes(24, 0)
    seen = np.concatenate([np.unique(labels) for _, labels in scenes])
    assert set(seen) == {0, GOLD, CONTAMINATION, CARBON, BAR}
    for image, labels in scenes:
        assert image.shape == labels.shape == (160, 160)
        assert np.isfinite(image).all()
    again = draw_scene((0, 3), 160)
    np.testing.assert_array_equal(scenes[3][0], again[0])
    assert not np.array_equal(scenes[3][0], scenes[4][0])


def test_kinds_are_darker_than_the_specimen_in_scenes():
    ratios = {kind: [] for kind in (GOLD, CONTAMINATION, BAR)}
    for image, labels in make_scenes(40, 1):
        clear = image[labels == 0]
        for kind in ratios:
            if (labels == kind).sum() > 20 and len(clear) > 2000:
                ratios[kind].append(image[labels == kind].mean() / clear.mean())
    for kind, least in ((GOLD, 0.9), (CONTAMINATION, 0.9), (BAR, 0.3)):
        assert np.median(ratios[kind]) < least


@pytest.mark.parametrize("shape", [(64, 64), (100, 93), (37, 130)])
@pytest.mark.parametrize("pixel", [20.0, 10.0, 6.5])
def test_views_of_any_size_are_segmented(shape, pixel):
    network = make_network(seed=1)
    view = np.random.default_rng(0).normal(50, 5, shape).astype(np.float32)
    chances = segment_view(network, view, pixel)
    assert chances.shape == (4, *shape)
    assert (chances >= 0).all()
    assert (chances.sum(axis=0) <= 1 + 1e-5).all()


def test_offset_and_scale_of_a_view_make_no_difference(shipped):
    image, _ = draw_scene(5, 96)
    one, other = (segment_view(shipped, view, 20.0) for view in (image, -3 + 0.01 * image))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_views_are_averaged_to_about_20_angstrom():
    assert [count_block(pixel) for pixel in (1.35, 6.7, 10.0, 20.0, 50.0)] == [15, 3, 2, 1, 1]


def test_the_network_sees_contrast_that_does_not_depend_on_offset_and_scale():
    views = torch.from_numpy(np.random.default_rng(0).normal(7, 2, (2, 64, 66)))
    seen = describe_views(views)
    assert seen.shape == (2, 3, 64, 66)
    torch.testing.assert_close(seen, describe_views(5 + 0.1 * views))
    np.testing.assert_allclose(seen[:, 0].mean((1, 2)), 0, atol=1e-6)
    window = (views[0] - views[0].mean())[20:45, 20:45] / views[0].std()
    expected = (window[12, 12] - window.mean()) / window.std(correction=0)
    assert float(seen[0, 1, 32, 32]) == pytest.approx(float(expected))


def test_a_few_steps_lower_the_loss_and_the_seed_decides_all():
    torch.set_num_threads(1)
    scenes = make_scenes(6, 2)
    runs = []
    for seed in (0, 0, 1):
        network = make_network(seed=seed)
        losses = train_network(network, scenes, steps=14, rate=0.01, seed=seed)
        runs.append((losses, list_weights(network)))
    (losses, weights), (same, equal), (other, _) = runs
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:3])
    assert same == losses
    assert all(np.array_equal(weights[name], equal[name]) for name in weights)
    assert other != losses


def test_hand_made_masks_teach_what_the_scenes_do_not():
    """A label of one's own: the bright half is carbon."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.3, (128, 128)).astype(np.float32)
    image[:, 64:] += 2
    labels = np.zeros((128, 128), np.int64)
    labels[:, 64:] = CARBON
    network = make_network(read_shipped_weights("fiducials"))
    before = judge_network(network, [(image, labels)]).overlap[CARBON - 1]
    train_network(network, [], [(image, labels)], steps=30, rate=0.005, seed=0)
    after = judge_network(network, [(image, labels)]).overlap[CARBON - 1]
    assert after > max(0.5, before + 0.2)


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(UserError, match="nothing to learn from"):
        train_network(make_network(), [], steps=1, rate=0.1, seed=0)


def test_scores_are_those_of_counted_pixels():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, views):
            scores = torch.zeros(1, 5, *views.shape[2:])
            scores[:, 1, :4] = 5.0  # gold in the first four rows
            return scores

    labels = np.zeros((16, 16), np.int64)
    labels[2:8] = GOLD
    scores = judge_network(
        Fixed(), [(np.zeros((16, 16), np.float32) + np.arange(16, dtype=np.float32), labels)]
    )
    assert scores.precision[GOLD_KIND] == pytest.approx(0.5)
    assert scores.recall[GOLD_KIND] == pytest.approx(2 / 6)
    assert scores.overlap[GOLD_KIND] == pytest.approx(2 / 8)
    assert np.isnan(scores.recall[1:]).all()


def test_weights_come_back_and_foreign_ones_are_refused(tmp_path):
    weights = list_weights(make_network(seed=3))
    path = tmp_path / "w.npz"
    write_weights(path, weights)
    first = path.read_bytes()
    write_weights(path, dict(reversed(weights.items())))
    assert path.read_bytes() == first
    read = read_weights(path)
    assert all(np.array_equal(read[name], weights[name]) for name in weights)
    with pytest.raises(UserError, match=r"are not those of this network: 'last.bias'"):
        make_network({**read, "last.bias": np.zeros(3)})
    (tmp_path / "no.npz").write_text("no weights")
    with pytest.raises(FileFormatError, match="does not hold weights"):
        read_weights(tmp_path / "no.npz")
    np.savez(tmp_path / "evil.npz", a=np.array([{}], object))
    with pytest.raises(FileFormatError, match="does not hold weights"):
        read_weights(tmp_path / "evil.npz")


def test_the_shipped_weights_are_small():
    weights = read_shipped_weights("fiducials")
    assert sum(value.nbytes for value in weights.values()) < 2e6


def test_the_shipped_weights_know_scenes_of_other_parameters(shipped):
    ranges = SceneRanges(
        gold_diameter_angstrom=(90.0, 160.0),
        contamination_angstrom=(300.0, 900.0),
        carbon_transmission=(0.6, 0.8),
        electrons=(150.0, 800.0),
    )
    scores = judge_network(shipped, make_scenes(40, 77, ranges, held_out=True))
    assert (scores.overlap > [0.5, 0.6, 0.6, 0.8]).all(), scores


def test_the_shipped_weights_see_gold_and_not_ribosomes_in_simulated_views(shipped):
    """Views by the simulation of specimens, which shares no code with the scenes."""
    from verglas.steps.simulate import SimulateParams, make_series

    params = SimulateParams(
        image_size=(256, 256),
        max_tilt=30,
        tilt_step=30,
        copies=40,
        vesicles=1,
        gold=8,
        thickness=1000,
        seed=4,
        truth_voxel_size=100.0,
    )
    made = make_series("TS", params, Path("none.mrc"), workers=1)
    beads = made.field.beads_angstrom[:, :3]
    series = made.scheme.truth
    for row, view in enumerate(made.images):
        a, b = np.deg2rad([series.z_rot_deg[row], series.y_tilt_deg[row]])
        x, y, z = beads.T
        c = np.deg2rad(series.x_tilt_deg[row])
        y, z = y * np.cos(c) - z * np.sin(c), y * np.sin(c) + z * np.cos(c)
        x = x * np.cos(b) + z * np.sin(b)
        u = x * np.cos(a) - y * np.sin(a) + series.x_shift_angstrom[row]
        v = x * np.sin(a) + y * np.cos(a) + series.y_shift_angstrom[row]
        index = np.rint(np.stack([v, u]) / 10 + 128).astype(int)
        index = index[:, ((index > 5) & (index < 250)).all(axis=0)]
        chances = segment_view(shipped, view, 10.0)[GOLD_KIND]
        assert np.mean(chances[tuple(index)] > 0.5) > 0.8
        far = np.ones(view.shape, bool)
        for y0, x0 in index.T:
            far[max(0, y0 - 12) : y0 + 13, max(0, x0 - 12) : x0 + 13] = False
        far[:12], far[-12:], far[:, :12], far[:, -12:] = False, False, False, False
        # The simulation goes on with gold beside the field of view, so a few beads may be unlisted.
        assert (chances[far] > 0.5).mean() < 0.01
