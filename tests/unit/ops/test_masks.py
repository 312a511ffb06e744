import math

import mrcfile
import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.ops import masks


def test_ball_has_the_profile_of_half_a_cosine():
    mask = masks.soft_sphere_mask((21, 22, 23), 5.0, 4.0)
    assert mask.dtype == torch.float32
    profile = mask[10, 11, 11:].tolist()
    expected = [1.0] * 6 + [0.5 + 0.5 * np.cos(np.pi * k / 4) for k in range(1, 4)] + [0.0] * 3
    assert profile == pytest.approx(expected, abs=1e-6)
    assert mask[10 + 3, 11 + 4, 11] == 1.0
    assert float(mask.sum()) == pytest.approx(4 / 3 * np.pi * 7.0**3, rel=0.05)


def test_disc_lies_where_its_centre_is_put():
    mask = masks.soft_sphere_mask((30, 40), 3.0, 0.0, centre=(10.0, 25.0))
    y, x = np.mgrid[:30, :40]
    np.testing.assert_array_equal(mask, (y - 10) ** 2 + (x - 25) ** 2 <= 9)


def test_cylinder_stands_on_z():
    mask = masks.soft_cylinder_mask((20, 30, 30), 6.0, 8.0, 3.0)
    assert mask[:, 15, 15].tolist() == pytest.approx(
        [0.0] * 4 + [0.25, 0.75] + [1.0] * 9 + [0.75, 0.25] + [0.0] * 3, abs=1e-6
    )
    torch.testing.assert_close(mask[10], masks.soft_sphere_mask((30, 30), 6.0, 3.0))
    torch.testing.assert_close(mask, mask.mT)


def test_box_has_its_extents():
    mask = masks.soft_box_mask((12, 20), (4.0, 10.0), 2.0)
    assert mask[6].tolist() == pytest.approx([0.0] * 4 + [0.5] + [1.0] * 11 + [0.5] + [0.0] * 3, abs=1e-6)
    assert mask[:, 10].tolist() == pytest.approx([0.0] * 3 + [0.5] + [1.0] * 5 + [0.5] + [0.0] * 2, abs=1e-6)
    assert 0 < float(mask[3, 4]) < 0.5


def blob():
    noise = torch.rand(12, 13, 14, generator=torch.Generator().manual_seed(0))
    return masks.soft_sphere_mask((12, 13, 14), 3.0, 3.0) * (0.5 + noise)


def distances(region):
    """Distance of every pixel to the nearest of a region, by looking at all of them."""
    inside = np.argwhere(region)
    grid = np.indices(region.shape).reshape(region.ndim, -1).T
    square = ((grid[:, None] - inside[None]) ** 2).sum(-1)
    return np.sqrt(square.min(1)).reshape(region.shape)


@pytest.mark.parametrize("extend", [0.0, 2.0, -2.0])
def test_density_mask_follows_distances(extend):
    density = blob()
    mask = masks.mask_from_density(density, 0.6, extend, 3.0)
    region = density.numpy() >= 0.6
    if extend > 0:
        region = region | (distances(region) < extend)
    if extend < 0:
        region = distances(~region) >= -extend
    expected = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distances(region) / 3, 1))
    np.testing.assert_allclose(mask, expected, atol=1e-6)


@pytest.mark.relion
@pytest.mark.parametrize("extend", [0, 2, -1])
def test_density_mask_agrees_with_relion(tmp_path, relion, extend):
    density = masks.soft_sphere_mask((32, 32, 32), 5.0, 4.0, centre=(15.0, 17.0, 14.0))
    with mrcfile.new(tmp_path / "map.mrc") as mrc:
        mrc.set_data(density.numpy())
        mrc.voxel_size = 1.0
    arguments = ["--ini_threshold", 0.5, "--extend_inimask", extend, "--width_soft_edge", 4]
    relion("relion_mask_create", "--i", "map.mrc", "--o", "mask.mrc", *arguments)
    ours = masks.mask_from_density(density, 0.5, float(extend), 4.0)
    np.testing.assert_allclose(ours, mrcfile.read(tmp_path / "mask.mrc"), atol=1e-6)


def test_taper_falls_at_every_border():
    window = masks.edge_taper((10, 12), 3.0)
    half = [0.5 - 0.5 * np.cos(np.pi * k / 4) for k in (1, 2, 3)]
    assert window[5].tolist() == pytest.approx(half + [1.0] * 6 + half[::-1], abs=1e-6)
    torch.testing.assert_close(window, window.flip(0).flip(1))
    torch.testing.assert_close(masks.edge_taper((4, 5, 6), 0.0), torch.ones(4, 5, 6))


def test_tapered_images_keep_mean_and_middle():
    images = torch.rand(2, 16, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 7
    tapered = masks.taper_edges(images, 4.0)
    assert tapered.dtype == torch.float64
    torch.testing.assert_close(tapered[:, 4:-4, 4:-4], images[:, 4:-4, 4:-4])
    border = torch.stack([tapered[:, 0].std(), tapered[:, -1].std(), tapered[:, :, 0].std()])
    assert float(border.max()) < 0.2 * float(images.std())


def test_bad_input_is_told():
    with pytest.raises(UserError, match="`radius` must be zero or more pixels; got -1"):
        masks.soft_sphere_mask((5, 5), -1.0, 0.0)
    with pytest.raises(UserError, match="two or three positive sizes"):
        masks.soft_sphere_mask((5,), 1.0, 0.0)
    with pytest.raises(UserError, match="`centre` must have 2 coordinates"):
        masks.soft_sphere_mask((5, 5), 1.0, 0.0, centre=(1.0, 2.0, 3.0))
    with pytest.raises(UserError, match="`size` must have 2 extents"):
        masks.soft_box_mask((5, 5), (1.0,), 0.0)
    with pytest.raises(UserError, match="the mask would be empty"):
        masks.mask_from_density(torch.zeros(4, 4, 4), 0.5)
    with pytest.raises(UserError, match="`width` must be at most half"):
        masks.edge_taper((5, 20), 3.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_follows_the_input(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    place = torch.device(device)
    calls = [
        masks.soft_sphere_mask((8, 9), 2.0, 1.0, device=place),
        masks.soft_cylinder_mask((8, 9, 9), 2.0, 3.0, 1.0, device=place),
        masks.soft_box_mask((8, 9), (3.0, 2.0), 1.0, device=place),
        masks.edge_taper((8, 9), 2.0, device=place),
        masks.taper_edges(torch.rand(8, 9, device=place), 2.0),
        masks.mask_from_density(torch.rand(8, 9, device=place), 0.9, 1.0, 1.0),
    ]
    assert {mask.device.type for mask in calls} == {device}
    assert all(0 <= float(mask.min()) <= float(mask.max()) <= 1 for mask in calls)


def test_ellipsoids_have_their_half_axes_and_balls_are_balls():
    ball = masks.soft_ellipsoid_mask((33, 33, 33), (9.0, 9.0, 9.0), 4.0)
    torch.testing.assert_close(ball, masks.soft_sphere_mask((33, 33, 33), 9.0, 4.0), atol=1e-5, rtol=0)
    mask = masks.soft_ellipsoid_mask((41, 41, 41), (5.0, 9.0, 14.0), 0.0)
    volume = 4 / 3 * math.pi * 5 * 9 * 14
    assert float(mask.sum()) == pytest.approx(volume, rel=0.03)
    extents = [int(mask.amax([i for i in range(3) if i != axis]).sum()) for axis in range(3)]
    assert extents == [11, 19, 29]
    with pytest.raises(UserError, match="three positive half axes"):
        masks.soft_ellipsoid_mask((8, 8, 8), (1.0, 0.0, 1.0), 1.0)
