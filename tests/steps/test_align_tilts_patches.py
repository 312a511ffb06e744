"""`align-tilts` without beads: by patches when asked, and when there is no gold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.tilt_alignment.patch_series import PIXEL, make_patch_series
from tests.unit.tilt_alignment.series import to_geometry
from verglas.algo.tilt_alignment.gauge import compare_geometries
from verglas.io.imod import read_imod_folder
from verglas.io.imod_model import list_points, read_imod_model
from verglas.io.mrc import write_mrc
from verglas.io.relion_particles import read_particles
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.steps.align_tilts import ALIGN_TILTS_STEP, AlignTiltsParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)


def write_series(folder: Path, views: np.ndarray, tilt_deg: np.ndarray, axis_deg: float) -> Path:
    stack = folder / "TS_01.mrc"
    write_mrc(stack, views, voxel_size_angstrom=PIXEL, is_stack=True)
    images = tuple(ImageReference(stack, row) for row in range(len(views)))
    series = TiltSeries("TS_01", Optics(PIXEL), views.shape[1:], images, tilt_deg, z_rot_deg=axis_deg)
    return write_tilt_series(folder / "raw", [series])


@pytest.fixture(scope="module")
def series():
    return make_patch_series(192, 500.0, step_deg=6.0, seed=2)


@pytest.fixture(scope="module")
def job(series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    star = write_series(folder, series.views, series.nominal_tilt_deg, series.axis_deg)
    report = run_step(ALIGN_TILTS_STEP, AlignTiltsParams(tilt_series=star), folder / "job", options=QUIET)
    assert report.done == ("TS_01",), report.failed
    return folder / "job", report


def test_without_gold_patches_align(series, job):
    folder, report = job
    aligned = read_tilt_series(folder / "tilt_series.star")["TS_01"]
    difference = compare_geometries(to_geometry(aligned), series.truth, series.points_px)
    assert np.hypot(*difference.rms_shift_px) < 0.7
    assert np.sqrt((difference.tilt_deg**2).mean()) < 0.2
    assert any("aligned by patches" in warning for warning in report.summary.warnings)
    assert not any("POOR" in warning for warning in report.summary.warnings)
    assert report.summary.values["patches"].value >= 9
    assert report.summary.values["beads"].value == "unknown"


def test_patches_are_written_for_relion_and_imod(job):
    folder, report = job
    patches = read_particles(folder / "patches/TS_01.star")
    assert len(patches) == report.summary.values["patches"].value
    assert (patches.extra["vglSizeAngst"] > 300).all()
    # The slab is level: patches lie in a plane across the beam.
    assert abs(np.polyfit(patches.positions_angstrom[:, 0], patches.positions_angstrom[:, 2], 1)[0]) < 0.02
    imod = read_imod_folder(folder / "imod/TS_01")
    assert len(imod.transforms) == 21
    _, members = list_points(read_imod_model(folder / "imod/TS_01/TS_01.fid"))
    assert members[:, 1].max() + 1 == len(patches)
    names = {Path(figure.path).name for figure in report.summary.figures}
    assert "TS_01_tracks.png" in names
    assert all((folder / "figures" / name).stat().st_size > 5000 for name in names)


def test_views_that_share_nothing_are_refused(tmp_path, series):
    noise = np.random.default_rng(0).poisson(200, (9, 96, 96)).astype(np.float32)
    star = write_series(tmp_path, noise, series.nominal_tilt_deg[6:15], series.axis_deg)
    for method in ("auto", "patches"):
        params = AlignTiltsParams(tilt_series=star, method=method, bead_diameter=100.0)
        report = run_step(ALIGN_TILTS_STEP, params, tmp_path / method, options=QUIET)
        assert "do not show the same" in report.failed["TS_01"]


def test_rigid_patches_keep_the_magnification(tmp_path, series):
    star = write_series(tmp_path, series.views[4:17], series.nominal_tilt_deg[4:17], series.axis_deg)
    params = AlignTiltsParams(tilt_series=star, method="patches", rigid=True)
    report = run_step(ALIGN_TILTS_STEP, params, tmp_path / "job", options=QUIET)
    assert report.done == ("TS_01",), report.failed
    aligned = read_tilt_series(tmp_path / "job/tilt_series.star")["TS_01"]
    np.testing.assert_array_equal(aligned.magnification, np.broadcast_to(np.eye(2), (13, 2, 2)))
    assert replace(aligned, name="x").z_rot_deg.std() < 1e-6
