"""Bad views: found where they were put, and nowhere else."""

import numpy as np
import pytest

from verglas.algo.tilt_alignment.views import find_bad_views
from verglas.io.imod import read_tlt
from verglas.io.mrc import open_mrc

TILTS = np.arange(-60.0, 61.0, 3.0)


def transmit(
    tilts: np.ndarray, thickness: float = 0.8, offset: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Counts behind a slab of so many mean free paths, with 2 % of noise, and their Poisson deviation."""
    noise = np.random.default_rng(seed).normal(0, 0.02, len(tilts))
    means = 40 * np.exp(-thickness / np.cos(np.radians(tilts - offset)) + noise)
    return means, np.sqrt(means)


@pytest.mark.parametrize("offset", [-15.0, 0.0, 9.0])
@pytest.mark.parametrize("thickness", [0.2, 0.8, 1.4])
def test_good_views_are_left_alone_and_the_law_is_found(thickness, offset):
    for seed in range(5):
        means, deviations = transmit(TILTS + offset, thickness, offset, seed)
        check = find_bad_views(means, deviations, TILTS + offset)
        assert check.faults == ("",) * len(TILTS)
        assert check.thickness_ratio == pytest.approx(thickness, abs=0.1)
        np.testing.assert_allclose(check.expected_mean, means, rtol=0.1)
        if thickness > 0.5:
            assert check.tilt_offset_deg == pytest.approx(offset, abs=4)


def test_dark_blocked_and_blank_views_are_found():
    means, deviations = transmit(TILTS)
    means[5] *= 0.5
    means[20] = 0.01
    means[21] = -0.3
    deviations[33] = 0.1
    check = find_bad_views(means, deviations, TILTS)
    expected = np.full(len(TILTS), "", dtype=object)
    expected[[5, 20, 21]] = "dark"
    expected[33] = "blank"
    assert list(check.faults) == list(expected)
    assert np.flatnonzero(check.bad).tolist() == [5, 20, 21, 33]


@pytest.mark.parametrize("end", [1, -1])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_grid_bar_at_one_end_of_the_range_is_found(end, count):
    means, deviations = transmit(TILTS)
    blocked = np.arange(len(TILTS))[::end][-count:]
    means[blocked] *= np.linspace(0.6, 0.1, count)
    assert set(np.flatnonzero(find_bad_views(means, deviations, TILTS).bad)) == set(blocked)


def test_exposures_that_grow_with_the_tilt_are_no_fault():
    means, deviations = transmit(TILTS)
    assert not find_bad_views(means / np.cos(np.radians(TILTS)), deviations, TILTS).bad.any()


def test_without_the_mean_contrast_alone_decides():
    means = np.random.default_rng(1).normal(0, 0.01, len(TILTS))
    deviations = np.ones(len(TILTS))
    deviations[7] = 0.1
    check = find_bad_views(means, deviations, TILTS)
    assert np.flatnonzero(check.bad).tolist() == [7]
    assert np.isnan(check.expected_mean).all()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_few_views(count):
    tilts = TILTS[:count]
    assert find_bad_views(*transmit(tilts), tilts).faults == ("",) * count


def test_views_at_one_tilt_are_compared_with_their_median():
    means = np.full(7, 10.0)
    means[3] = 1.0
    assert np.flatnonzero(find_bad_views(means, np.ones(7), np.zeros(7)).bad).tolist() == [3]


def test_brightness_has_no_unit():
    means, deviations = transmit(TILTS)
    means[3] *= 0.2
    one = find_bad_views(means, deviations, TILTS)
    other = find_bad_views(1000 * means, 1000 * deviations, TILTS)
    assert one.faults == other.faults
    np.testing.assert_allclose(1000 * one.expected_mean, other.expected_mean)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="equally long"):
        find_bad_views([1.0, 2.0], [1.0], [0.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        find_bad_views([1.0, np.nan], [1.0, 1.0], [0.0, 3.0])


def test_a_real_series_has_no_bad_views(shared_data):
    folder = shared_data / "tilt_series_empiar10499"
    views = open_mrc(folder / "00254.stack.mrc")
    means, deviations = views.mean(axis=(1, 2), dtype=float), views.std(axis=(1, 2), dtype=float)
    check = find_bad_views(means, deviations, read_tlt(folder / "imod" / "00254.tlt"))
    assert not check.bad.any()
    # It follows the law closely, so the threshold of 30 % is far away.
    np.testing.assert_allclose(check.expected_mean, means, rtol=0.025)
