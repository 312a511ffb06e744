import numpy as np
import pytest
import torch

from tests.unit.matching.cases import make_series
from verglas.algo.matching.sampling import sampling_weights
from verglas.algo.reconstruction.filtering import ViewFilter, filter_views, make_frames
from verglas.algo.reconstruction.volume import reconstruct_blocks
from verglas.errors import UserError
from verglas.ops.backprojection import VoxelGrid
from verglas.ops.ctf import ctf_1d


def test_one_view_measures_one_plane():
    weights = sampling_weights(make_series([0.0]), 16, 10.0)
    assert weights.shape == (16, 16, 9)
    torch.testing.assert_close(weights[0], torch.ones(16, 9))
    assert weights[1:].abs().max() == 0


def test_the_wedge_is_empty_and_the_rest_is_full():
    size = 24
    weights = sampling_weights(make_series(), size, 10.0)
    z, _, x = torch.meshgrid(
        torch.fft.fftfreq(size), torch.fft.fftfreq(size), torch.fft.rfftfreq(size), indexing="ij"
    )
    angle = torch.rad2deg(torch.atan2(z.abs(), x))
    radius = torch.hypot(z, x) * size
    assert weights[(angle > 66) & (radius > 8)].max() == 0
    inside = weights[(angle < 54) & (radius < 10)]
    assert inside.min() > 0.8
    assert inside.max() <= 1 + 1e-6


def test_weights_are_those_of_a_reconstructed_point():
    """A point in every view, back-projected: its transform is what the reconstruction leaves of a molecule."""
    size = 24
    series = make_series(
        np.arange(-54.0, 55.0, 6.0), pre_exposure_e_per_a2=np.abs(np.arange(-54, 55, 6)) / 2.0
    )
    views = []
    for _ in range(len(series)):
        view = torch.zeros(64, 64)
        view[32, 32] = 1.0
        views.append(view)
    filtered = filter_views(iter(views), series, 10.0, ViewFilter(normalise=False, dose=True))
    grid = VoxelGrid((size, size, size), 10.0)
    frames = make_frames(series, 10.0)
    blocks = reconstruct_blocks(filtered, frames, grid, [torch.arange(len(series))])
    volume = torch.cat([block for _, (block,) in blocks], dim=1)
    measured = torch.fft.rfftn(torch.fft.ifftshift(volume)).real
    # The views were damped once, by the filter; the molecule itself was not.
    once = sampling_weights(series, size, 10.0, dose_weighted=False)
    both = sampling_weights(series, size, 10.0, dose_weighted=True)
    inside = (
        torch.hypot(torch.fft.fftfreq(size)[:, None, None], torch.fft.rfftfreq(size)[None, None]).expand(
            once.shape
        )
        < 0.4
    )
    match = np.corrcoef(once[inside].numpy(), measured[inside].numpy())[0, 1]
    assert match > 0.9
    assert match > np.corrcoef(both[inside].numpy(), measured[inside].numpy())[0, 1]


@pytest.mark.parametrize(("ctf", "power"), [("none", 1), ("multiply", 2)])
def test_the_ctf_counts_as_often_as_it_acted(ctf, power):
    series = make_series([0.0], defocus_u_angstrom=[20000.0], defocus_v_angstrom=[20000.0])
    weights = sampling_weights(series, 16, 10.0, ctf=ctf)
    frequency = torch.arange(9) / 160.0
    expected = ctf_1d(frequency, torch.tensor(20000.0), voltage_kv=300.0, cs_mm=2.7, amplitude_contrast=0.1)
    torch.testing.assert_close(weights[0, 0], expected**power, atol=1e-4, rtol=1e-4)
    flipped = sampling_weights(series, 16, 10.0, ctf="flip")
    torch.testing.assert_close(flipped[0, 0], expected.abs(), atol=1e-4, rtol=1e-4)


def test_views_that_are_not_selected_do_not_count():
    series = make_series([0.0, 40.0], selected=[True, False])
    torch.testing.assert_close(
        sampling_weights(series, 16, 10.0), sampling_weights(make_series([0.0]), 16, 10.0)
    )
    with pytest.raises(UserError, match="no view"):
        sampling_weights(make_series([0.0], selected=[False]), 16, 10.0)
    with pytest.raises(UserError, match="none, flip or multiply"):
        sampling_weights(series, 16, 10.0, ctf="phase")
