"""`export series`: what another program's files hold of a series, `import` reads back as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.io.warp import read_warp_xml
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.ops.geometry import series_matrices
from verglas.steps.export_series import EXPORT_SERIES_STEP, ExportSeriesParams
from verglas.steps.import_series import IMPORT_STEP, ImportParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)
VIEWS, SHAPE, PIXEL = 5, (20, 24), 4.0
FILES = {
    "warp": ("{}.xml", "."),
    "imod": ("{}", "."),
    "aretomo": ("{}.aln", "."),
    "emclarity": ("fixedStacks/ctf/{}_ali1_ctf.tlt", "fixedStacks"),
}
"""Of each format what `import` is given, and the folder where it looks for the stack."""


def make_series(folder: Path, *, one_stack: bool = True, **changes) -> TiltSeries:
    """A series of five views that were recorded from the middle outward; the last is not used."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(20, 4, (VIEWS, *SHAPE)).astype(np.float32)
    folder.mkdir(parents=True)
    if one_stack:
        write_mrc(folder / "TS_1.st", pixels, voxel_size_angstrom=PIXEL, is_stack=True)
        images = tuple(ImageReference(folder / "TS_1.st", row) for row in range(VIEWS))
    else:
        images = tuple(ImageReference(folder / f"view_{row}.mrc") for row in range(VIEWS))
        for image, view in zip(images, pixels, strict=True):
            write_mrc(image.path, view, voxel_size_angstrom=PIXEL)
    tilts = np.array([-30.0, -15.0, 0.0, 15.0, 30.0])
    series = TiltSeries(
        name="TS_1",
        optics=Optics(PIXEL, 300.0, 2.7, 0.1),
        image_shape=SHAPE,
        images=images,
        nominal_tilt_deg=tilts,
        y_tilt_deg=tilts + 1.25,
        z_rot_deg=np.array([84.9, 85.0, 85.1, 85.0, 84.9]),
        x_shift_angstrom=rng.uniform(-12, 12, VIEWS).round(3),
        y_shift_angstrom=rng.uniform(-12, 12, VIEWS).round(3),
        pre_exposure_e_per_a2=np.array([12.0, 6.0, 0.0, 3.0, 9.0]),
        exposure_e_per_a2=np.full(VIEWS, 3.0),
        defocus_u_angstrom=25000.0 + 100 * np.arange(VIEWS),
        defocus_v_angstrom=24500.0 + 100 * np.arange(VIEWS),
        defocus_angle_deg=np.full(VIEWS, 31.0),
        selected=np.array([True, True, True, True, False]),
    )
    return replace(series, **changes)


def export(series: TiltSeries, folder: Path, form: str, **changes) -> tuple[Path, list[str]]:
    write_tilt_series(folder / "in", [series])
    params = ExportSeriesParams(tilt_series=folder / "in/tilt_series.star", format=form, **changes)
    report = run_step(EXPORT_SERIES_STEP, params, folder / form, options=QUIET)
    assert not report.failed, report.failed
    return folder / form, report.summary.warnings


def bring_back(folder: Path, form: str, stack: Path | None) -> TiltSeries:
    given, place = FILES[form]
    params = ImportParams(
        inputs=(folder / given.format("TS_1"),), stack=stack or folder / place, exposure=3.0
    )
    report = run_step(IMPORT_STEP, params, folder.parent / f"{form}_back", options=QUIET)
    assert not report.failed, report.failed
    return read_tilt_series(folder.parent / f"{form}_back/tilt_series.star")["TS_1"]


@pytest.mark.parametrize("form", FILES)
def test_a_series_comes_back_as_it_was(form, tmp_path):
    series = make_series(tmp_path / "raw")
    if form == "warp":
        series = replace(series, hand=-1, x_tilt_deg=np.full(VIEWS, 0.5))
    folder, warnings = export(series, tmp_path, form)
    assert not warnings
    assert not list(folder.rglob("TS_1.st"))
    back = bring_back(folder, form, tmp_path / "raw/TS_1.st")
    if form in ("aretomo", "emclarity"):  # they leave out views that are not used
        series = series.take(series.selected)
    torch.testing.assert_close(
        series_matrices(back.geometry), series_matrices(series.geometry), atol=0.02, rtol=0
    )
    assert [image.section for image in back.images] == [image.section for image in series.images]
    assert (back.selected == series.selected).all()
    assert back.hand == series.hand
    if form in ("warp", "emclarity"):  # the files of the others know no exposures
        after, before = (one.pre_exposure_e_per_a2 + one.exposure_e_per_a2 for one in (back, series))
        np.testing.assert_allclose(after, before, atol=1e-5)
    if form == "imod":
        np.testing.assert_array_equal(back.nominal_tilt_deg, series.nominal_tilt_deg)
    else:
        np.testing.assert_allclose(back.defocus_u_angstrom, series.defocus_u_angstrom, atol=0.1)
        np.testing.assert_allclose(back.defocus_v_angstrom, series.defocus_v_angstrom, atol=0.1)
        np.testing.assert_allclose(back.defocus_angle_deg % 180, series.defocus_angle_deg, atol=0.01)


@pytest.mark.parametrize("form", ["warp", "imod"])
def test_views_in_files_of_their_own_are_stacked_where_the_program_looks(form, tmp_path):
    series = make_series(tmp_path / "raw", one_stack=False)
    folder, warnings = export(series, tmp_path, form)
    assert "were stacked in" in warnings[0]
    place = "tiltstack" if form == "warp" else "."
    back = bring_back(folder, form, folder / place if form == "warp" else None)
    torch.testing.assert_close(
        series_matrices(back.geometry)[2], series_matrices(series.geometry)[2], atol=0.02, rtol=0
    )
    third = back.images[2]
    np.testing.assert_array_equal(read_mrc(third.path)[third.section], read_mrc(series.images[2].path)[0])


def test_what_import_does_not_read_of_a_warp_document_is_kept(tmp_path):
    series = make_series(tmp_path / "raw")
    first, _ = export(series, tmp_path / "first", "warp")
    document = (first / "TS_1.xml").read_text(encoding="utf-8-sig")
    originals = tmp_path / "originals"
    originals.mkdir()
    (originals / "TS_1.xml").write_text(document.replace("<CTF", "<PlaneNormal>0,0,1</PlaneNormal><CTF", 1))
    second, _ = export(series, tmp_path / "second", "warp", originals=originals)
    assert "PlaneNormal" in read_warp_xml(second / "TS_1.xml").xml
    assert "PlaneNormal" not in document


def test_what_a_program_cannot_hold_is_said(tmp_path):
    tilted = replace(make_series(tmp_path / "raw"), x_tilt_deg=np.full(VIEWS, 2.0))
    write_tilt_series(tmp_path / "in", [tilted, replace(tilted, name="TS_2", x_tilt_deg=np.zeros(VIEWS))])
    params = ExportSeriesParams(tilt_series=tmp_path / "in/tilt_series.star", format="aretomo")
    report = run_step(EXPORT_SERIES_STEP, params, tmp_path / "out", options=QUIET)
    assert "x tilts" in report.failed["TS_1"]
    assert (tmp_path / "out/TS_2.aln").is_file()
    with pytest.raises(ValidationError, match="`originals` are of Warp"):
        ExportSeriesParams(tilt_series=tmp_path, format="imod", originals=tmp_path)
