import numpy as np
import pytest
import torch

from tests.unit.matching.cases import RADIUS, VOXEL, draw_molecules, make_series, make_template
from verglas.algo.matching.bank import build_bank
from verglas.algo.matching.sampling import sampling_weights
from verglas.algo.matching.search import block_bytes, cut_block, plan_blocks, search_block
from verglas.algo.matching.template import randomise_template, template_box, turn_templates
from verglas.errors import OutOfMemoryError, UserError
from verglas.ops.correlation import local_correlate
from verglas.ops.kernels.best_row import best_row, best_row_reference
from verglas.ops.masks import soft_box_mask
from verglas.ops.rotation import random_rotations

SIZE = template_box(RADIUS / VOXEL)
SHAPE = (20, 26, 24)


@pytest.fixture(scope="module")
def rotations():
    return random_rotations(40, torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def weights():
    return sampling_weights(make_series(), SIZE, VOXEL)


@pytest.fixture(scope="module")
def volume(rotations):
    molecules = draw_molecules(SHAPE, [(9, 9, 8), (11, 17, 16)], rotations[[5, 30]], noise=1.0)
    return (molecules - molecules.mean()) / molecules.std()


def search(volume, bank, **options):
    (block,) = plan_blocks(tuple(volume.shape), bank, 1 << 30)
    return search_block(cut_block(volume, block, bank.size), bank, floor=1e-3, **options)


def score_directly(volume, template, rotations, weights):
    """Every orientation by itself, in real space's terms."""
    padded = torch.nn.functional.pad(volume, (SIZE,) * 6)
    scores = []
    for turned, masks in turn_templates(template, rotations.float(), weights):
        for one, mask in zip(turned, masks.expand(len(turned), -1, -1, -1), strict=True):
            plain = torch.where(mask > 1e-6, one / mask.clamp_min(1e-6), 0.0)
            scores.append(local_correlate(padded, plain, mask)[SIZE:-SIZE, SIZE:-SIZE, SIZE:-SIZE])
    return torch.stack(scores)


@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_correlations_under_the_turned_mask(volume, rotations, weights, masked):
    mask = soft_box_mask((40, 40, 40), (12, 20, 30), 4) if masked else None
    template = make_template(mask=mask)
    bank = build_bank([template], [rotations], weights, kept=1.0)
    assert (bank.mask is None) == masked
    found = search(volume, bank, half=False)
    direct = score_directly(volume, template, rotations, weights)
    best, place = direct.max(0)
    inner = tuple(slice(4, -4) for _ in range(3))
    torch.testing.assert_close(found.best[0][inner], best[inner], atol=4e-3 if masked else 1e-3, rtol=0)
    same = found.orientation[0][inner] == place[inner]
    assert same.float().mean() > (0.97 if masked else 0.99)


def test_a_smaller_basis_and_half_precision_change_little(volume, rotations, weights):
    template = make_template()
    exact = search(volume, build_bank([template], [rotations], weights, kept=1.0), half=False).best
    small = build_bank([template], [rotations], weights, kept=0.95)
    assert 0.94 < small.templates.kept < 1
    single, half = search(volume, small, half=False).best, search(volume, small, half=True).best
    assert (single - half).abs().max() < 0.01
    assert (single - exact).abs().max() < 0.15
    assert np.corrcoef(single.flatten(), exact.flatten())[0, 1] > 0.97


def test_molecules_score_highest_where_and_as_they_are(volume, rotations, weights):
    bank = build_bank([make_template()], [rotations], weights)
    found = search(volume, bank, threads=2)
    best = found.best[0].clone()
    places = []
    for _ in range(2):
        place = np.unravel_index(int(best.argmax()), SHAPE)
        places.append((*map(int, place), int(found.orientation[0][place])))
        z, y, x = place
        best[max(0, z - 4) : z + 5, max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = 0
    assert sorted(places) == [(9, 9, 8, 5), (11, 17, 16, 30)]
    assert 0.02 < (found.square / found.count) ** 0.5 < 0.3


def test_blocks_give_what_the_whole_gives(volume, rotations, weights):
    bank = build_bank([make_template()], [rotations], weights)
    whole = search(volume, bank, half=False)
    whole_bytes = block_bytes(SHAPE, bank, 1, half=False)
    blocks = plan_blocks(SHAPE, bank, int(0.8 * whole_bytes), half=False)
    assert all(block_bytes(block.shape, bank, 1, half=False) <= 0.8 * whole_bytes for block in blocks)
    assert len(blocks) > 1
    covered = torch.zeros(SHAPE)
    for block in blocks:
        part = search_block(cut_block(volume, block, bank.size), bank, floor=1e-3, half=False)
        torch.testing.assert_close(part.best[0], whole.best[0][block.slices], atol=1e-4, rtol=0)
        covered[block.slices] += 1
    assert (covered == 1).all()
    with pytest.raises(OutOfMemoryError, match="expected at most"):
        plan_blocks(SHAPE, bank, 1 << 10)


def test_several_templates_are_searched_at_once(volume, rotations, weights):
    template = make_template()
    twin = randomise_template(template, seed=1)
    both = search(
        volume, build_bank([template, twin], [rotations, rotations[:7]], weights, kept=1.0), half=False
    )
    alone = search(volume, build_bank([twin], [rotations[:7]], weights, kept=1.0), half=False)
    torch.testing.assert_close(both.best[1], alone.best[0], atol=1e-3, rtol=0)
    assert both.orientation[1].max() < 7
    assert both.best[0].max() > both.best[1].max() + 0.1
    powers = [torch.fft.rfftn(one.fine).abs() for one in (template, twin)]
    torch.testing.assert_close(powers[0], powers[1], atol=1e-3 * float(powers[0].max()), rtol=1e-3)


def test_empty_places_score_nothing(rotations, weights):
    volume = torch.zeros(SHAPE)
    volume[:, :6] = torch.randn(20, 6, 24, generator=torch.Generator().manual_seed(0))
    found = search(volume, build_bank([make_template()], [rotations], weights))
    assert found.best[0][:, 14:].abs().max() == 0
    assert torch.isfinite(found.best).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 5), (70, 1500), (33000, 3)])
def test_the_best_row_is_that_of_the_reference(dtype, shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Equal values are common in half precision: the first row counts.
    for one in (scores, -scores.abs()):
        best, index = best_row(one)
        expected, place = best_row_reference(one)
        assert torch.equal(best, expected)
        assert torch.equal(index, place)


def test_templates_of_other_sampling_are_the_same():
    template = make_template()
    from tests.unit.matching.cases import make_molecule
    from verglas.algo.matching.template import prepare_template
    from verglas.algo.simulation.render import render_volume

    coarse = torch.from_numpy(render_volume(make_molecule(), (27, 27, 27), 8.3))
    other = prepare_template(
        "molecule", coarse, 8.3, search_voxel_angstrom=VOXEL, radius_angstrom=RADIUS, lowpass_angstrom=40.0
    )
    assert np.corrcoef(template.fine.flatten(), other.fine.flatten())[0, 1] > 0.999
    assert float(template.fine.sum()) < 0
    bright = make_template(invert=False)
    torch.testing.assert_close(bright.fine, -template.fine)


def test_templates_that_cannot_be_used_are_refused(rotations, weights):
    with pytest.raises(UserError, match="two voxels"):
        make_template(lowpass_angstrom=30.0)
    with pytest.raises(UserError, match="must have the template's shape"):
        make_template(mask=torch.ones(10, 10, 10))
    with pytest.raises(UserError, match="mask of 'molecule' is zero"):
        make_template(mask=torch.zeros(40, 40, 40))
    with pytest.raises(UserError, match="one radius"):
        build_bank([make_template(), make_template(radius_angstrom=60.0)], [rotations] * 2, weights)
    with pytest.raises(UserError, match="box of"):
        build_bank([make_template()], [rotations], torch.ones(8, 8, 5))
