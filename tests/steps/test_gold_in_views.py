"""Gold told from molecules, and erased before patches are followed."""

import numpy as np
import pytest

from tests.unit.tilt_alignment.patch_series import make_patch_series
from verglas.errors import UserError
from verglas.steps.gold_in_views import erase_gold, find_view_beads

DIAMETER = 10.0


@pytest.fixture(scope="module")
def views():
    return list(make_patch_series(128, 600.0, step_deg=12.0).views)


@pytest.fixture(scope="module")
def golden(views):
    """The same with balls that take most of the electrons away."""
    rng = np.random.default_rng(4)
    places = np.stack(np.meshgrid([24, 64, 104], [24, 64, 104]), axis=-1).reshape(-1, 2) + rng.uniform(
        -4, 4, (9, 2)
    )
    y, x = np.mgrid[:128, :128]
    painted = []
    for view in views:
        thick = sum(
            np.sqrt(np.clip(DIAMETER**2 / 4 - (x - px) ** 2 - (y - py) ** 2, 0, None)) for px, py in places
        )
        painted.append((view * np.exp(-thick / 8)).astype(np.float32))
    return painted, places - 64


TILTS = np.arange(-60, 61, 12.0)


def test_molecules_are_no_gold(views):
    assert not find_view_beads(views, TILTS, DIAMETER).are_gold
    same, counts = erase_gold(views, TILTS, None)
    assert same is views
    assert counts == ()


def test_gold_is_found_and_erased(views, golden):
    images, places = golden
    found = find_view_beads(images, TILTS, None)
    assert found.are_gold
    assert found.diameter_px == pytest.approx(DIAMETER, rel=0.25)
    nearest = np.linalg.norm(found.places_px[5][:, None] - places[None], axis=2).min(axis=0)
    assert nearest.max() < 1.0
    erased, counts = erase_gold(images, TILTS, DIAMETER)
    assert min(counts) >= 9
    for before, after, there in zip(images, erased, found.places_px, strict=True):
        y, x = np.mgrid[-64:64, -64:64]
        far = np.min([np.hypot(x - px, y - py) for px, py in there], axis=0) > 1.5 * DIAMETER
        np.testing.assert_array_equal(after[far], before[far])
    # Where a bead was it is as bright as elsewhere.
    y, x = np.rint(places[:, ::-1] + 64).astype(int).T
    middle = erased[5][y, x].mean()
    assert abs(middle - np.median(erased[5])) < 2 * erased[5].std() / np.sqrt(9) + 0.1 * np.median(erased[5])
    assert images[5][y, x].mean() < 0.7 * np.median(images[5])


def test_views_too_small_for_beads_are_left_as_they_are():
    tiny = [np.ones((48, 48), np.float32)] * 3
    assert erase_gold(tiny, np.array([-3.0, 0.0, 3.0]), None) == (tiny, ())
    with pytest.raises(UserError, match="64 x 64"):
        find_view_beads(tiny, np.array([-3.0, 0.0, 3.0]), None)
