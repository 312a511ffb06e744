"""`stack`: every image at its place, every exposure counted, bad views marked."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from verglas.errors import UserError
from verglas.io.imod import read_tlt
from verglas.io.mrc import read_mrc, read_mrc_header, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.io.warp import read_tomostar
from verglas.steps.import_series import IMPORT_STEP, ImportParams
from verglas.steps.stack import STACK_STEP, StackParams
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(quiet=True)
SHAPE = (20, 24)
TILTS = (0.02, 3.01, -2.98, -6.0, 6.0, 9.0, -9.0)
"""In the order of recording."""


def run(out: Path, *mdocs: Path, **parameters) -> RunReport:
    return run_step(STACK_STEP, StackParams(mdocs=mdocs, **parameters), out, options=QUIET)


def write_mdoc(
    path: Path, tilts=TILTS, dose: float = 2.0, axis: float | None = 85.3, frames: bool = True
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["PixelSpacing = 2.5", "Voltage = 200", ""]
    if axis is not None:
        lines += [f"[T =     Tilt axis angle = {axis}, binning = 1  spot = 8  camera = 2]", ""]
    for index, tilt in enumerate(tilts):
        lines += [f"[ZValue = {index}]", f"TiltAngle = {tilt}", f"ExposureDose = {dose}"]
        lines += [rf"SubFramePath = X:\frames\{path.name[:4]}_{index:03d}_{tilt:.1f}.tif"] if frames else []
        lines += [f"DateTime = 06-Jun-23  23:{index:02d}:00", ""]
    path.write_text("\r\n".join(lines))
    return path


def make_images(count: int, dtype=np.float32, seed: int = 0) -> np.ndarray:
    """Counts of a thin slab; the first pixel tells which image it is."""
    images = np.random.default_rng(seed).normal(100, 10, (count, *SHAPE)).astype(dtype)
    images[:, 0, 0] = np.arange(count)
    return images


def write_series(folder: Path, name: str, images: np.ndarray | None = None, **mdoc) -> Path:
    path = write_mdoc(folder / f"{name}.mrc.mdoc", **mdoc)
    images = make_images(len(TILTS)) if images is None else images
    write_mrc(folder / f"{name}.mrc", images, voxel_size_angstrom=2.5, is_stack=True, dtype=images.dtype)
    return path


def write_frames(folder: Path, name: str, rename=lambda stem: stem, tilts=TILTS) -> Path:
    mdoc = write_mdoc(folder / f"{name}.mdoc", tilts=tilts)
    for index, (tilt, image) in enumerate(zip(tilts, make_images(len(tilts)), strict=True)):
        path = folder / "corrected" / f"{rename(f'{name}_{index:03d}_{tilt:.1f}')}.mrc"
        path.parent.mkdir(exist_ok=True)
        write_mrc(path, image, voxel_size_angstrom=2.5)
    return mdoc


def files(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for kind in ("stacks", "tilt_series", "figures")
        for path in sorted((out / kind).iterdir())
    }


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16, np.float16])
def test_a_series_is_sorted_and_keeps_its_order_and_exposures(tmp_path, dtype):
    images = make_images(len(TILTS), dtype)
    mdoc = write_series(tmp_path, "TS_1", images)
    report = run(tmp_path / "out", mdoc)
    assert not report.failed
    rows = np.argsort(TILTS)
    stack = read_mrc(tmp_path / "out/stacks/TS_1.st", dtype=None)
    assert stack.dtype == dtype
    np.testing.assert_array_equal(stack, images[rows])
    header = read_mrc_header(tmp_path / "out/stacks/TS_1.st")
    assert header.pixel_size_angstrom == 2.5
    assert not header.is_volume
    series = read_tilt_series(tmp_path / "out/tilt_series.star")["TS_1"]
    assert series.nominal_tilt_deg.tolist() == sorted(TILTS)
    assert series.pre_exposure_e_per_a2.tolist() == [12, 6, 4, 0, 2, 8, 10]
    assert series.exposure_e_per_a2.tolist() == [2] * 7
    assert series.extra["rlnTomoTiltMovieIndex"].tolist() == [7, 4, 3, 1, 2, 5, 6]
    assert series.z_rot_deg.tolist() == [85.3] * 7
    assert series.optics.voltage_kv == 200
    assert series.selected.all()
    assert [image.section for image in series.images] == list(range(7))
    assert series.images[0].path == tmp_path / "out/stacks/TS_1.st"
    assert not report.summary.warnings
    np.testing.assert_allclose(read_tlt(tmp_path / "out/stacks/TS_1.rawtlt"), sorted(TILTS))


def test_tomostar_names_the_movies(tmp_path):
    run(tmp_path / "out", write_series(tmp_path, "TS_1"))
    table = read_tomostar(tmp_path / "out/stacks/TS_1.tomostar")
    assert table["wrpMovieName"].tolist()[:2] == ["TS_1_006_-9.0.tif", "TS_1_003_-6.0.tif"]
    assert table["wrpDose"].tolist() == [12, 6, 4, 0, 2, 8, 10]


@pytest.mark.parametrize(
    "rename",
    [
        lambda stem: stem,
        lambda stem: stem.replace(".", "_"),
        lambda stem: f"{stem}_aligned",
        lambda stem: f"{stem.replace('.', '_')}_DW",
    ],
)
def test_motion_corrected_images_are_found_by_the_movies_names(tmp_path, rename):
    mdoc = write_frames(tmp_path, "TS_1", rename)
    report = run(tmp_path / "out", mdoc, images=tmp_path / "corrected")
    assert not report.failed
    stack = read_mrc(tmp_path / "out/stacks/TS_1.st")
    assert stack[:, 0, 0].tolist() == np.argsort(TILTS).tolist()


def test_real_mdocs_of_single_views(shared_data, tmp_path):
    frames = shared_data / "formats/mdoc/frames"
    names = [path.name.removesuffix(".mrc.mdoc") for path in sorted(frames.glob("*.mdoc"))]
    for index, name in enumerate(names):
        path = tmp_path / "images" / f"{name.replace('.', '_')}.mrc"
        path.parent.mkdir(exist_ok=True)
        image = np.random.default_rng(index).normal(30, 5, SHAPE).astype(np.float32)
        image[0, 0] = index
        write_mrc(path, image, voxel_size_angstrom=1.971)
    report = run(tmp_path / "out", frames, images=tmp_path / "images")
    assert report.done == ("TS_019",)
    series = read_tilt_series(tmp_path / "out/tilt_series.star")["TS_019"]
    # The names tell the number of the view and its angle; the mdoc has the stage's own.
    order = np.array([int(name.split("_")[2]) for name in names])
    angles = np.array([float(name.split("_")[3]) for name in names])
    rows = np.argsort(angles)
    np.testing.assert_allclose(series.nominal_tilt_deg, angles[rows], atol=0.06)
    assert (series.extra["rlnTomoTiltMovieIndex"] - 1).tolist() == order[rows].tolist()
    np.testing.assert_allclose(series.z_rot_deg, 82.9)
    assert np.diff(series.pre_exposure_e_per_a2[np.argsort(order[rows])]).min() > 2
    stack = read_mrc(tmp_path / "out/stacks/TS_019.st")
    assert stack[:, 0, 0].tolist() == order[rows].tolist()


@pytest.mark.relion
def test_relion_reads_what_is_written(tmp_path, relion):
    run(tmp_path / "out", write_series(tmp_path, "TS_1"))
    printed = relion(
        "relion_star_printtable",
        *("out/tilt_series/TS_1.star", "data_TS_1"),
        *("rlnTomoNominalStageTiltAngle", "rlnMicrographPreExposure", "rlnTomoTiltMovieIndex"),
    )
    table = np.array(printed.split(), dtype=float).reshape(-1, 3)
    np.testing.assert_allclose(table[:, 0], sorted(TILTS))
    np.testing.assert_allclose(table[:, 1], 2 * (table[:, 2] - 1))
    told = relion("relion_image_handler", "--i", "out/stacks/TS_1.st:mrcs", "--stats")
    assert "(x,y,z,n)= 24 x 20 x 1 x 7" in told
    assert "angpix = 2.5" in told


def test_bad_views_are_not_selected_but_count(tmp_path):
    tilts = tuple(np.arange(-30.0, 31.0, 6.0))
    images = make_images(len(tilts))
    images[2] *= 0.1
    images[5, :, 12:] *= 0.05
    images[8] = 100
    mdoc = write_series(tmp_path, "TS_1", images, tilts=tilts)
    report = run(tmp_path / "out", mdoc)
    series = read_tilt_series(tmp_path / "out/tilt_series.star")["TS_1"]
    assert np.flatnonzero(~series.selected).tolist() == [2, 5, 8]
    assert series.pre_exposure_e_per_a2.tolist() == [2.0 * i for i in range(11)]
    assert report.summary.values["left out"].value == 3
    assert report.summary.warnings == [
        "TS_1: 3 of 11 views are not selected: -18.0° (dark), +0.0° (dark), +18.0° (blank)"
    ]
    assert {Path(figure.path).stem for figure in report.summary.figures} == {
        f"TS_1_{kind}" for kind in ("intensities", "views", "geometry")
    }


def test_a_real_series_loses_no_view(shared_data, tmp_path):
    real = shared_data / "tilt_series_empiar10499"
    angles = read_tlt(real / "imod/00254.tlt")
    shutil.copy(real / "00254.stack.mrc", tmp_path / "00254.mrc")
    mdoc = write_mdoc(tmp_path / "00254.mdoc", tilts=angles, frames=False, axis=-4.3, dose=3.0)
    report = run(tmp_path / "out", mdoc)
    series = read_tilt_series(tmp_path / "out/tilt_series.star")["00254"]
    assert series.selected.all()
    # Vitreous ice of 200 to 250 nm over a mean free path of about 300 nm.
    assert 0.6 < report.summary.values["thickness"].value < 1.0


def test_parameters_win_over_the_mdoc(tmp_path):
    mdoc = write_series(tmp_path, "TS_1", dose=0.0, axis=None)
    report = run(tmp_path / "one", mdoc)
    assert [warning.split(": ")[1].split(",")[0] for warning in report.summary.warnings] == [
        "the mdoc does not tell the tilt axis",
        "the mdoc does not tell the exposures",
    ]
    run(tmp_path / "two", mdoc, exposure=3.0, axis_angle=-95.5, pixel_size=5.0)
    series = read_tilt_series(tmp_path / "two/tilt_series.star")["TS_1"]
    assert series.exposure_e_per_a2.tolist() == [3] * 7
    assert series.z_rot_deg.tolist() == [-95.5] * 7
    assert series.pixel_size_angstrom == 5.0
    assert read_mrc_header(tmp_path / "two/stacks/TS_1.st").pixel_size_angstrom == 5.0


def test_the_result_can_be_imported(tmp_path):
    run(tmp_path / "out", write_series(tmp_path, "TS_1"))
    params = ImportParams(inputs=(tmp_path / "out/tilt_series.star",))
    report = run_step(IMPORT_STEP, params, tmp_path / "again", options=QUIET)
    assert report.done == ("TS_1",)
    one, two = (tmp_path / name / "tilt_series/TS_1.star" for name in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_one_bad_series_does_not_stop_the_rest_and_is_done_when_mended(tmp_path):
    mdocs = [write_series(tmp_path, f"TS_{k}") for k in (1, 2, 3)]
    run(tmp_path / "whole", *mdocs)
    good = (tmp_path / "TS_2.mrc").read_bytes()
    (tmp_path / "TS_2.mrc").write_bytes(good[:-100])
    report = run(tmp_path / "out", *mdocs)
    assert report.done == ("TS_1", "TS_3")
    assert "TS_2.mrc" in report.failed["TS_2"]
    assert not (tmp_path / "out/stacks/TS_2.st").exists()
    (tmp_path / "TS_2.mrc").write_bytes(good)
    report = run(tmp_path / "out", *mdocs)
    assert (report.done, report.skipped) == (("TS_2",), ("TS_1", "TS_3"))
    whole, mended = files(tmp_path / "whole"), files(tmp_path / "out")
    assert whole.keys() == mended.keys()
    # Only the tables name the folder that they are in.
    assert {name for name in whole if whole[name] != mended[name]} == {
        f"tilt_series/TS_{k}.star" for k in (1, 2, 3)
    }


def cut_section(folder: Path) -> None:
    write_mrc(folder / "TS_1.mrc", make_images(6), voxel_size_angstrom=2.5, is_stack=True)


def spoil_pixel(folder: Path) -> None:
    images = make_images(len(TILTS))
    images[3, 1, 2] = np.nan
    write_mrc(folder / "TS_1.mrc", images, voxel_size_angstrom=2.5, is_stack=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (cut_section, "has 6 sections, but the mdoc has 7 views; expected as many"),
        (spoil_pixel, "not finite"),
        (lambda folder: write_mdoc(folder / "TS_1.mrc.mdoc", tilts=(*TILTS[:6], 9.02)), "both at 9 degrees"),
        (lambda folder: (folder / "TS_1.mrc").unlink(), "one image of the movie 'TS_1_000_0.0.tif'"),
        (lambda folder: (folder / "TS_1.mrc.mdoc").write_text("nonsense"), "is not `key = value`"),
        (
            lambda folder: (folder / "TS_1.mrc.mdoc").write_text("[MontSection = 0]\nTiltAngle = 1\n"),
            "expected ZValue for a series",
        ),
    ],
)
def test_what_is_wrong_with_a_series_is_said(tmp_path, change, told):
    mdocs = [write_series(tmp_path, f"TS_{k}") for k in (1, 2)]
    change(tmp_path)
    report = run(tmp_path / "out", *mdocs)
    assert report.done == ("TS_2",)
    assert told in report.failed["TS_1"]
    assert "\n" not in report.failed["TS_1"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda folder: (folder / "TS_1_003_-6.0.mrc").unlink(),
            "the movie 'TS_1_003_-6.0.tif' in .* found none",
        ),
        (
            lambda folder: write_mrc(
                folder / "TS_1_003_-6.0.mrc", np.ones((20, 20)), voxel_size_angstrom=2.5
            ),
            "has 20 x 20 pixels of float32, but .* has 24 x 20",
        ),
        (
            lambda folder: write_mrc(
                folder / "TS_1_003_-6.0.mrc", np.ones((4, *SHAPE)), voxel_size_angstrom=2.5
            ),
            "has 4 sections; expected one motion-corrected image",
        ),
        (
            lambda folder: shutil.copy(folder / "TS_1_003_-6.0.mrc", folder / "TS_1_003_-6_0.mrc"),
            "found TS_1_003_-6.0.mrc and TS_1_003_-6_0.mrc",
        ),
    ],
)
def test_what_is_wrong_with_an_image_is_said(tmp_path, change, told):
    mdoc = write_frames(tmp_path, "TS_1")
    change(tmp_path / "corrected")
    report = run(tmp_path / "out", mdoc, images=tmp_path / "corrected")
    assert re.search(told, report.failed["TS_1"])


def test_wrong_parameters_stop_at_once(tmp_path):
    out = tmp_path / "out"
    mdocs = [write_series(tmp_path, f"TS_{k}") for k in (1, 2)]
    with pytest.raises(UserError, match="does not exist"):
        run(out, tmp_path / "none.mdoc")
    with pytest.raises(UserError, match="the mdocs are of 2 series; expected a folder"):
        run(out, *mdocs, images=tmp_path / "TS_1.mrc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no mdocs"):
        run(out, tmp_path / "empty")
    with pytest.raises(UserError, match="are both mdocs of 'TS_1'"):
        run(out, *mdocs, shutil.copy(mdocs[0], tmp_path / "TS_1.st.mdoc"))
    (tmp_path / "empty/view.mdoc").write_text("[FrameSet = 0]\nTiltAngle = 1\n")
    with pytest.raises(UserError, match="name does not tell the series"):
        run(out, tmp_path / "empty")
    with pytest.raises(ValidationError, match="exposure"):
        StackParams(mdocs=tuple(mdocs), exposure=0.0)
    assert not out.exists()


def test_estimate(tmp_path):
    params = StackParams(mdocs=(write_series(tmp_path, "TS_1"),))
    told = STACK_STEP.estimate(STACK_STEP.list_items(params), params)
    assert told.disk_bytes == 7 * 4 * 20 * 24
    assert told.seconds > 0
