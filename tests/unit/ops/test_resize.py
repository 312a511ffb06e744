"""Voxel sizes changed, against Gaussians drawn at both and against RELION."""

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.ops.resize import change_voxel_size

PLACES = np.array([[0.0, 0.0, 0.0], [22.0, -17.0, 9.0], [-30.0, 12.0, -25.0]])


def draw(shape, voxel, sigma=5.0):
    """Gaussians at places xyz in Å from the centre voxel."""
    z, y, x = ((np.arange(n) - n // 2) * voxel for n in shape)
    total = np.zeros(shape)
    for px, py, pz in PLACES:
        total += np.exp(
            -((z[:, None, None] - pz) ** 2 + (y[:, None] - py) ** 2 + (x - px) ** 2) / (2 * sigma**2)
        )
    return torch.from_numpy(total.astype(np.float32))


@pytest.mark.parametrize(("old", "new"), [(2.0, 3.0), (3.0, 2.0), (1.977, 2.612), (2.5, 2.5)])
@pytest.mark.parametrize("shape", [(60, 64, 61)])
def test_densities_stay_where_they_are(old, new, shape):
    result = change_voxel_size(draw(shape, old), old, new)
    assert result.shape == tuple(round(n * old / new) for n in shape)
    inner = tuple(slice(3, n - 3) for n in result.shape)
    np.testing.assert_allclose(result[inner], draw(result.shape, new)[inner], atol=6e-3)


def test_boxes_are_cut_and_padded_about_the_centre():
    volume = draw((60, 60, 60), 2.0) + 4.0
    for box in ((30, 31, 32), (80, 75, 90)):
        result = change_voxel_size(volume, 2.0, 2.5, box)
        assert result.shape == box
        centre = tuple(n // 2 for n in box)
        assert float(result[centre]) == pytest.approx(5.0, abs=0.01)
        assert float(result[0, 0, 0]) == pytest.approx(4.0, abs=0.2)


def test_relion_makes_the_same_map(tmp_path, relion):
    volume = draw((60, 60, 60), 2.0)
    write_mrc(tmp_path / "in.mrc", volume.numpy(), voxel_size_angstrom=2.0)
    relion(
        "relion_image_handler", "--i", "in.mrc", "--o", "out.mrc", "--angpix", 2.0, "--rescale_angpix", 3.0
    )
    theirs = read_mrc(tmp_path / "out.mrc")
    ours = change_voxel_size(volume, 2.0, 3.0).numpy()
    assert theirs.shape == ours.shape
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.9999


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="`new_voxel_size_angstrom` must be positive"):
        change_voxel_size(torch.zeros(4, 4, 4), 1.0, 0.0)
    with pytest.raises(UserError, match="`out_shape` must be three positive sizes"):
        change_voxel_size(torch.zeros(4, 4, 4), 1.0, 1.0, (4, 4))
