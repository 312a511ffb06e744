import numpy as np
import pytest
import torch

from tests.unit.matching.cases import draw_molecules
from verglas.algo.matching.volume import prepare_volume
from verglas.errors import UserError
from verglas.ops.rotation import random_rotations

SHAPE = (40, 60, 60)
PLACES = [(20, 15, 15), (20, 15, 45), (20, 45, 15)]


def make_tomogram(gold=True):
    matrices = random_rotations(3, torch.Generator().manual_seed(0)).numpy()
    volume = draw_molecules(SHAPE, PLACES, matrices, voxel=20.0, noise=0.5)
    if gold:
        z, y, x = np.indices(SHAPE)
        bead = np.sqrt((z - 20) ** 2 + (y - 45) ** 2 + (x - 45) ** 2) * 20 < 60
        volume[torch.from_numpy(bead)] += 10 * volume.min()
    return volume


def prepare(volume, voxel=20.0, **options):
    return prepare_volume(
        volume, voxel, **{"search_voxel_angstrom": 20.0, "lowpass_angstrom": 40.0, **options}
    )


def test_gold_is_told_from_molecules():
    found = prepare(make_tomogram())
    assert not found.usable[20, 45, 45]
    assert all(found.usable[place] for place in PLACES)
    assert prepare(make_tomogram(gold=False)).usable.all()
    # The filtered volume shows molecules, and no bead outshines them.
    depth = [
        float(-found.values[p[0] - 2 : p[0] + 3, p[1] - 2 : p[1] + 3, p[2] - 2 : p[2] + 3].min())
        for p in PLACES
    ]
    bead = float(-found.values[18:23, 43:48, 43:48].min())
    assert bead < 3 * min(depth)


def test_coarser_sampling_keeps_places_and_band():
    rng = np.random.default_rng(0)
    volume = torch.from_numpy(rng.standard_normal((50, 63, 71)).astype(np.float32))
    found = prepare(volume, voxel=7.0)
    assert found.voxel_size_angstrom == pytest.approx(20.0, rel=2e-3)
    assert abs(float(found.values.mean())) < 1e-4
    assert float(found.values.std()) == pytest.approx(1.0, abs=1e-3)
    power = torch.fft.rfftn(found.values).abs().square()
    axes = [torch.fft.fftfreq(n, found.voxel_size_angstrom) for n in power.shape[:2]]
    last = torch.fft.rfftfreq(found.values.shape[2], found.voxel_size_angstrom)
    radius = torch.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + last**2)
    assert float(power[radius > 1.25 / 40].sum() / power.sum()) < 1e-3
    # A blob is where it was in the tomogram.
    squares = [(torch.arange(n) - c) ** 2 for n, c in zip((50, 63, 71), (25, 31, 35), strict=True)]
    blob = torch.exp(-(squares[0][:, None, None] + squares[1][:, None] + squares[2]) / 50)
    found = prepare(blob + 1e-3 * volume, voxel=7.0)
    peak = np.array(np.unravel_index(int(found.values.argmax()), found.values.shape))[None]
    np.testing.assert_allclose(found.to_tomogram(peak), [[25, 31, 35]], atol=1.5)


def test_whitened_noise_is_white():
    volume = torch.from_numpy(
        np.random.default_rng(0).standard_normal((48, 48, 48)).astype(np.float32)
    ).cumsum(2)
    found = prepare(volume - volume.mean(2, keepdim=True), whiten=True, lowpass_angstrom=45.0)
    spectrum = torch.fft.rfftn(found.values).abs().square()
    radius = torch.sqrt(
        sum(f**2 for f in torch.meshgrid(*[torch.fft.fftfreq(48)] * 2, torch.fft.rfftfreq(48), indexing="ij"))
    )
    low, high = (spectrum[(radius > a) & (radius < b)].mean() for a, b in ((0.05, 0.1), (0.3, 0.38)))
    assert 0.5 < float(low / high) < 2


def test_empty_and_flat_volumes_are_refused():
    with pytest.raises(UserError, match="empty"):
        prepare(torch.zeros(SHAPE))
    with pytest.raises(UserError, match="flat"):
        prepare(torch.full(SHAPE, 2.0))
