import math

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops.dose import (
    critical_exposure,
    elastic_shares,
    exposure_filter,
    power_normalised_weights,
    view_weights,
)


def test_critical_exposure_is_the_papers():
    frequency = torch.tensor([0.0, 0.05, 0.1, 1 / 3], dtype=torch.float64)
    at_300 = critical_exposure(frequency)
    # By hand: 0.24499 * 20^1.6649 + 2.8141 and so on.
    assert at_300.tolist() == pytest.approx([math.inf, 38.7261, 14.1392, 4.3396], abs=2e-3)
    torch.testing.assert_close(critical_exposure(frequency, 200.0), 0.8 * at_300)
    torch.testing.assert_close(critical_exposure(frequency, 100.0), 0.64 * at_300)
    torch.testing.assert_close(critical_exposure(frequency, 250.0), 0.9 * at_300)


def test_filter_is_the_exponential_on_the_grid():
    exposures = torch.tensor([[0.0], [30.0]], dtype=torch.float64)
    filters = exposure_filter((10, 12), 1.5, exposures, 200.0)
    assert filters.shape == (2, 1, 10, 7)
    assert (filters[0] == 1).all()
    assert filters[1, 0, 0, 0] == 1
    s = math.hypot(3 / 15, 4 / 18)
    expected = math.exp(-30 / (2 * 0.8 * (0.24499 * s**-1.6649 + 2.8141)))
    assert filters[1, 0, -3, 4].item() == pytest.approx(expected)
    assert exposure_filter((4, 4, 4), 1.0, torch.tensor(3.0)).shape == (4, 4, 3)


def test_exposures_multiply():
    first, second, both = exposure_filter((8, 8), 2.0, torch.tensor([4.0, 7.0, 11.0], dtype=torch.float64))
    torch.testing.assert_close(first * second, both)


def test_weights_keep_the_power_of_noise():
    filters = exposure_filter((16, 16), 1.0, torch.arange(1, 6, dtype=torch.float64) * 10)
    weights = power_normalised_weights(filters)
    torch.testing.assert_close(weights.square().sum(0), torch.ones(16, 9, dtype=torch.float64))
    torch.testing.assert_close(weights[1] / weights[0], filters[1] / filters[0])
    assert (power_normalised_weights(torch.zeros(3, 2)) == 0).all()


def test_bad_input_is_named():
    with pytest.raises(UserError, match="voltage_kv"):
        critical_exposure(torch.ones(1), 80.0)
    with pytest.raises(UserError, match="exposures_e_per_a2"):
        exposure_filter((4, 4), 1.0, torch.tensor([1.0, -2.0]))
    with pytest.raises(UserError, match="exposures_e_per_a2"):
        exposure_filter((4, 4), 1.0, torch.tensor([1.0, torch.nan]))


def test_elastic_shares_by_hand():
    cosines = torch.tensor([1.0, 0.5], dtype=torch.float64)
    # 750 Å and 1500 Å of ice of 4000 Å of mean free path.
    expected = [1.0, np.exp(-1500 / 4000) / np.exp(-750 / 4000)]
    np.testing.assert_allclose(elastic_shares(cosines, 750.0).numpy(), expected)
    assert (elastic_shares(cosines, 0.0) == 1).all()
    with pytest.raises(UserError, match="below 90 degrees"):
        elastic_shares(torch.tensor([0.0]), 750.0)
    with pytest.raises(UserError, match="thickness_angstrom"):
        elastic_shares(cosines, -1.0)


def test_view_weights_multiply_ice_and_exposure():
    cosines = torch.tensor([1.0, 0.5], dtype=torch.float64)
    exposures = torch.tensor([2.0, 4.0], dtype=torch.float64)
    expected = elastic_shares(cosines, 750.0) * torch.tensor([2 / 3, 4 / 3])
    torch.testing.assert_close(view_weights(cosines, exposures, 750.0), expected)
    unknown = torch.tensor([2.0, float("nan")], dtype=torch.float64)
    torch.testing.assert_close(view_weights(cosines, unknown, 750.0), elastic_shares(cosines, 750.0))
    with pytest.raises(UserError, match="all zero"):
        view_weights(cosines, torch.zeros(2, dtype=torch.float64), 750.0)
