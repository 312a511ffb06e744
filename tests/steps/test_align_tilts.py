"""`align-tilts`: a stack and stage angles in; RELION's and IMOD's files, the beads, figures and warnings out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.tilt_alignment.series import (
    BEAD,
    PIXEL,
    SmallSeries,
    make_bent_series,
    make_series,
    to_geometry,
)
from verglas.algo.tilt_alignment.gauge import compare_geometries
from verglas.errors import JobMismatchError
from verglas.io.imod import read_imod_folder, read_xf, tilt_series_from_imod
from verglas.io.imod_model import list_points, read_imod_model
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_particles import read_particles
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.model import ImageReference
from verglas.steps.align_tilts import ALIGN_TILTS_STEP, AlignTiltsParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)
BLANK = 4


def write_series(folder: Path, series: SmallSeries, name: str = "TS_01", views=None) -> Path:
    stack = folder / f"{name}.mrc"
    write_mrc(stack, series.views if views is None else views, voxel_size_angstrom=PIXEL, is_stack=True)
    images = tuple(ImageReference(stack, row) for row in range(len(series.views)))
    return write_tilt_series(folder / name, [replace(series.scheme.nominal, name=name, images=images)])


@pytest.fixture(scope="module")
def series():
    return make_series(seed=1, blank=(BLANK,))


@pytest.fixture(scope="module")
def job(series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    star = write_series(folder, series)
    report = run_step(
        ALIGN_TILTS_STEP, AlignTiltsParams(tilt_series=star, stack=True), folder / "job", options=QUIET
    )
    assert report.done == ("TS_01",)
    return folder / "job", report


def test_the_star_file_holds_the_alignment(series, job):
    folder, _ = job
    aligned = read_tilt_series(folder / "tilt_series.star")["TS_01"]
    good = np.delete(np.arange(21), BLANK)
    difference = compare_geometries(
        to_geometry(aligned).take(good), to_geometry(series.scheme.truth).take(good), series.beads / PIXEL
    )
    assert np.hypot(*difference.rms_shift_px) < 0.3
    assert abs(difference.axis_deg.mean()) < 0.05
    assert np.array_equal(aligned.nominal_tilt_deg, series.scheme.nominal.nominal_tilt_deg)


def test_matching_with_projections_leaves_what_beads_know(series, tmp_path):
    star = write_series(tmp_path, series)
    params = AlignTiltsParams(tilt_series=star, refine=True, bead_diameter=BEAD)
    report = run_step(ALIGN_TILTS_STEP, params, tmp_path / "job", options=QUIET)
    assert report.done == ("TS_01",), report.failed
    aligned = read_tilt_series(tmp_path / "job/tilt_series.star")["TS_01"]
    good = np.delete(np.arange(21), BLANK)
    difference = compare_geometries(
        to_geometry(aligned).take(good), to_geometry(series.scheme.truth).take(good), series.beads / PIXEL
    )
    assert np.hypot(*difference.rms_shift_px) < 0.3
    values = report.summary.values
    told = any("projection" in warning for warning in report.summary.warnings)
    # Either a warning tells that nothing was changed, or the beads fit as well as the held-out ones did.
    residual, held_out = (
        np.hypot(*(values[f"{kind} {axis}"].value for axis in "xy"))
        for kind in ("residual", "held-out residual")
    )
    assert told or residual <= held_out + 0.01


def test_a_blank_view_is_left_out_and_its_dose_counts(series, job):
    folder, report = job
    aligned = read_tilt_series(folder / "tilt_series.star")["TS_01"]
    assert np.flatnonzero(~aligned.selected).tolist() == [BLANK]
    assert np.array_equal(aligned.pre_exposure_e_per_a2, series.scheme.nominal.pre_exposure_e_per_a2)
    assert aligned.y_tilt_deg[BLANK] == pytest.approx(aligned.nominal_tilt_deg[BLANK] + 0, abs=8)
    assert any("left out" in warning and "-36.0°" in warning for warning in report.summary.warnings)
    assert report.summary.values["left out"].value == 1


def test_imods_files_say_the_same(series, job):
    folder, _ = job
    aligned = read_tilt_series(folder / "tilt_series.star")["TS_01"]
    imod = read_imod_folder(folder / "imod/TS_01")
    again = tilt_series_from_imod(
        imod, name="TS_01", stack=Path("TS_01.mrc"), optics=aligned.optics, image_shape=aligned.image_shape
    )
    assert imod.excluded == (BLANK + 1,)
    # IMOD's text files have three to seven digits.
    one, other = to_geometry(aligned), to_geometry(again)
    difference = compare_geometries(other, one, series.beads / PIXEL)
    assert np.abs(difference.shift_px).max() < 0.02
    assert np.allclose(read_xf(folder / "imod/TS_01/TS_01.xf"), imod.transforms)


def test_the_beads_are_written_in_space_and_in_the_views(series, job):
    folder, _ = job
    beads = read_particles(folder / "beads/TS_01.star")
    assert len(beads) >= 14
    assert (beads.extra["vglDiameterAngst"] - BEAD).abs().max() < 15
    assert beads.extra["vglViews"].max() == 20
    assert beads.extra["vglResidualAngst"].median() < 3
    heights = np.abs(beads.positions_angstrom[:, 2])
    assert np.abs(heights - 500).max() < 50
    points, members = list_points(read_imod_model(folder / "imod/TS_01/TS_01.fid"))
    assert members[:, 1].max() + 1 == len(beads)
    assert BLANK not in points[:, 2]
    # A point is the middle of a dark spot, in IMOD's coordinates.
    dark = [series.views[int(z), int(y), int(x)] / np.median(series.views[int(z)]) for x, y, z in points]
    assert np.mean(dark) < 0.8


def test_the_aligned_stack_has_the_axis_upright_and_the_centre_in_the_middle(series, job):
    """A bead moves along x by what its place says, and along y not at all."""
    folder, _ = job
    aligned = read_tilt_series(folder / "tilt_series.star")["TS_01"]
    stack = read_mrc(folder / "stacks/TS_01_ali.mrc")
    assert stack.shape == (20, *aligned.image_shape)
    beads = read_particles(folder / "beads/TS_01.star").positions_angstrom / PIXEL
    checked = 0
    for section, row in enumerate(np.flatnonzero(aligned.selected)):
        tilt, x_tilt = np.deg2rad([aligned.y_tilt_deg[row], aligned.x_tilt_deg[row]])
        turned = beads[:, 1] * np.cos(x_tilt) - beads[:, 2] * np.sin(x_tilt)
        z = beads[:, 1] * np.sin(x_tilt) + beads[:, 2] * np.cos(x_tilt)
        x = beads[:, 0] * np.cos(tilt) + z * np.sin(tilt)
        for place in np.column_stack([x, turned])[(np.abs(x) < 100) & (np.abs(turned) < 100)]:
            column, line = np.rint(place + 150).astype(int)
            checked += 1
            spot = stack[section, line - 1 : line + 2, column - 1 : column + 2]
            assert spot.mean() < -1.5 * stack[section].std()
    assert checked > 60


def test_figures_are_drawn_and_named(job):
    folder, report = job
    names = {Path(figure.path).name for figure in report.summary.figures}
    assert names == {f"TS_01_{kind}.png" for kind in ("tracks", "residuals", "field", "places", "geometry")}
    assert all((folder / "figures" / name).stat().st_size > 5000 for name in names)
    assert (folder / "report.html").exists() or report.summary.values["beads"].value >= 14


def test_what_is_done_is_not_done_again(series, job):
    folder, _ = job
    star = folder.parent / "TS_01/tilt_series.star"
    before = (folder / "tilt_series/TS_01.star").read_bytes()
    params = AlignTiltsParams(tilt_series=star, stack=True)
    assert run_step(ALIGN_TILTS_STEP, params, folder, options=QUIET).skipped == ("TS_01",)
    (folder / "beads/TS_01.star").unlink()
    assert run_step(ALIGN_TILTS_STEP, params, folder, options=QUIET).done == ("TS_01",)
    assert (folder / "tilt_series/TS_01.star").read_bytes() == before
    with pytest.raises(JobMismatchError):
        run_step(ALIGN_TILTS_STEP, AlignTiltsParams(tilt_series=star), folder, options=QUIET)


def test_a_series_without_beads_fails_and_says_so(tmp_path, series):
    noise = np.random.default_rng(0).poisson(200, series.views.shape).astype(np.float32)
    star = write_series(tmp_path, series, "TS_02", noise)
    params = AlignTiltsParams(tilt_series=star, bead_diameter=BEAD, method="beads")
    report = run_step(ALIGN_TILTS_STEP, params, tmp_path / "job", options=QUIET)
    assert "no three beads could be followed" in report.failed["TS_02"]
    assert not report.bugs


def test_a_wrong_axis_and_few_beads_are_told(tmp_path):
    series = make_series(seed=7, count=5, magnification_drift=0.0)
    star = write_series(tmp_path, series, "TS_03")
    params = AlignTiltsParams(tilt_series=star, axis_angle=20.0, rigid=True, bead_diameter=BEAD)
    report = run_step(ALIGN_TILTS_STEP, params, tmp_path / "job", options=QUIET)
    assert any("z may be mirrored" in warning for warning in report.summary.warnings)
    aligned = read_tilt_series(tmp_path / "job/tilt_series.star")["TS_03"]
    assert np.array_equal(aligned.magnification, np.broadcast_to(np.eye(2), (21, 2, 2)))


def test_large_views_are_averaged_first(tmp_path, monkeypatch):
    """The same series seen in blocks of 2 x 2 has the same geometry, to a fraction of a pixel."""
    series = make_series(seed=2)
    star = write_series(tmp_path, series)
    monkeypatch.setattr("verglas.steps.align_tilts.LARGEST_SIDE", 150)
    params = AlignTiltsParams(tilt_series=star, bead_diameter=BEAD)
    assert not run_step(ALIGN_TILTS_STEP, params, tmp_path / "job", options=QUIET).failed
    aligned = read_tilt_series(tmp_path / "job/tilt_series.star")["TS_01"]
    difference = compare_geometries(
        to_geometry(aligned), to_geometry(series.scheme.truth), series.beads / PIXEL
    )
    assert np.hypot(*difference.rms_shift_px) < 0.4
    assert np.abs(difference.shift_px.mean(axis=0)).max() < 0.2


def test_an_estimate_grows_with_the_views(job):
    params = AlignTiltsParams(tilt_series=job[0].parent / "TS_01/tilt_series.star")
    items = ALIGN_TILTS_STEP.list_items(params)
    small = ALIGN_TILTS_STEP.estimate(items, params)
    large = ALIGN_TILTS_STEP.estimate(
        [replace(items[0], record=replace(items[0].record, image_shape=(4096, 4096)))], params
    )
    assert large.memory_bytes > small.memory_bytes
    assert large.memory_bytes < 4 << 30
    assert large.seconds > small.seconds


def test_a_specimen_that_bends_gets_a_local_field(tmp_path):
    """It lies beside the STAR file and in IMOD's, and tells where beads appear better than the geometry alone."""
    series = make_bent_series(150.0, seed=3)
    star = write_series(tmp_path, series)
    results = {}
    for local in (True, False):
        params = AlignTiltsParams(tilt_series=star, bead_diameter=BEAD, local=local)
        report = run_step(ALIGN_TILTS_STEP, params, tmp_path / f"job{local}", options=QUIET)
        results[local] = report.summary.values["held-out residual y"].value
        aligned = read_tilt_series(tmp_path / f"job{local}/tilt_series.star")["TS_01"]
        imod = read_imod_folder(tmp_path / f"job{local}/imod/TS_01")
        assert (aligned.local is not None) == (imod.local is not None) == local
    assert results[True] < 0.7 * results[False]
