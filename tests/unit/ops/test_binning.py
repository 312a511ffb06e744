"""Averages of blocks."""

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops.binning import bin_images, binned_centre_step


def test_blocks_are_averaged_and_the_rest_is_dropped():
    image = torch.arange(35.0).reshape(1, 5, 7)
    binned = bin_images(image, 2)
    assert binned.shape == (1, 2, 3)
    assert binned[0, 1, 2] == (18 + 19 + 25 + 26) / 4


@pytest.mark.parametrize("size", [29, 30, 31, 32, 33])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_a_place_is_the_same_before_and_after(size, factor):
    line = torch.zeros(1, size)
    line[0, 14:18] = torch.tensor([1.0, 3.0, 3.0, 1.0])
    middle = 15.5 - size // 2
    binned = bin_images(line.repeat(factor, 1), factor)[0].numpy()
    place = (binned * (np.arange(len(binned)) - len(binned) // 2)).sum() / binned.sum()
    ramp = torch.arange(float(size))[None].repeat(factor, 1)
    centre = float(bin_images(ramp, factor)[0, size // factor // 2])
    assert centre - size // 2 == binned_centre_step(size, factor)
    assert abs(factor * place + binned_centre_step(size, factor) - middle) < factor / 2


@pytest.mark.parametrize("factor", [0, 5])
def test_a_factor_that_cannot_be_is_refused(factor):
    with pytest.raises(UserError, match="`factor` must be from 1 to 4"):
        bin_images(torch.zeros(4, 8), factor)
