"""The real series 00254: one tomogram from Warp's files and from IMOD's, as far as the two alignments agree."""

import numpy as np
import pytest

from verglas.io.imod import tilt_series_to_imod, write_imod_folder
from verglas.io.mrc import read_mrc
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.steps.import_series import IMPORT_STEP, ImportParams
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    """Both imports, and that of the first once it was written as IMOD's files."""
    folder = tmp_path_factory.mktemp("00254")
    data = shared_data / "tilt_series_empiar10499"
    stack = data / "00254.stack.mrc"
    import_series(data / "00254.xml", stack, folder / "warp")
    series = read_tilt_series(folder / "warp/tilt_series.star")["00254"]
    write_imod_folder(folder / "written", "00254", tilt_series_to_imod(series))
    # Warp gives IMOD its own angles, and so the mirror image in z of the specimen that it works in.
    import_series(data / "imod/00254.xf", stack, folder / "imod", flip_hand=True)
    import_series(folder / "written/00254.xf", stack, folder / "again")
    return folder


def import_series(source, stack, out, **changes):
    report = run_step(IMPORT_STEP, ImportParams(inputs=(source,), stack=stack, **changes), out, options=QUIET)
    assert not report.failed


def reconstruct(folder, name):
    params = ReconstructParams(
        tilt_series=folder / name / "tilt_series.star", pixel_size=40.0, thickness=2600.0, dose_weight=False
    )
    assert not run_step(RECONSTRUCT_STEP, params, folder / f"{name}_tomograms", options=QUIET).failed
    return read_mrc(folder / f"{name}_tomograms/tomograms/00254.mrc")[10:-10, 25:-25, 25:-25]


def smooth(volume, resolution, voxel=40.0):
    frequencies = (np.fft.fftfreq(n, voxel) for n in volume.shape)
    squared = sum(np.meshgrid(*(f**2 for f in frequencies), indexing="ij"))
    kept = (squared < resolution**-2) & (squared > 0)
    return np.fft.ifftn(np.fft.fftn(volume) * kept).real


def test_the_stage_angles_and_exposures_are_warps(folder):
    series = read_tilt_series(folder / "warp/tilt_series.star")["00254"]
    assert len(series) == 41
    assert series.pixel_size_angstrom == pytest.approx(10.0)
    np.testing.assert_allclose(
        series.y_tilt_deg, read_tilt_series(folder / "imod/tilt_series.star")["00254"].y_tilt_deg
    )
    assert sorted(series.pre_exposure_e_per_a2) == pytest.approx(list(np.arange(41) * 3.0), abs=0.1)


def test_warps_alignment_survives_imods_files(folder):
    direct, again = reconstruct(folder, "warp"), reconstruct(folder, "again")
    assert np.corrcoef(direct.ravel(), again.ravel())[0, 1] > 0.9999


def test_warps_and_imods_tomograms_show_the_same(folder):
    """Their shifts differ by 1 to 3 pixels, and by up to 5 at high tilt: coarse features agree."""
    warp, imod = reconstruct(folder, "warp"), reconstruct(folder, "imod")
    mirrored = imod[::-1]
    same, wrong = (
        np.corrcoef(smooth(warp, 250.0).ravel(), smooth(other, 250.0).ravel())[0, 1]
        for other in (imod, mirrored)
    )
    assert same > 0.85
    assert wrong < 0.3
