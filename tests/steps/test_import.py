"""`import`: what other programs found arrives whole, and what does not fit is said."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import verglas.io.mrc
from verglas.errors import JobMismatchError, UserError
from verglas.io.imod import write_tlt, write_xf
from verglas.io.mrc import write_mrc
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.model import TiltSeries
from verglas.ops.geometry import series_matrices
from verglas.steps.import_series import IMPORT_STEP, ImportParams
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(quiet=True)
PIXEL = 4.0


def run(out: Path, *inputs: Path, **parameters) -> RunReport:
    return run_step(IMPORT_STEP, ImportParams(inputs=inputs, **parameters), out, options=QUIET)


def imported(out: Path, name: str) -> TiltSeries:
    return read_tilt_series(out / "tilt_series.star")[name]


def matrices(series: TiltSeries) -> np.ndarray:
    return series_matrices(series.geometry).numpy()


def results(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent.name != "items" and path.suffix in {".star", ".png"}
    }


def write_stack(path: Path, count: int, shape: tuple[int, int] = (20, 24), pixel: float = PIXEL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(20, 4, (count, *shape)).astype(np.float32)
    write_mrc(path, data, voxel_size_angstrom=pixel, is_stack=True)
    return path


def forget_pixel_size(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40:52] = bytes(12)
    path.write_bytes(data)


@pytest.fixture
def real(shared_data):
    return shared_data / "tilt_series_empiar10499"


@pytest.fixture
def plain(tmp_path):
    """Folder of two small IMOD series, their stacks beside them."""
    folder = tmp_path / "imod"
    for name in ("TS_1", "TS_2"):
        write_stack(folder / f"{name}.st", 5)
        write_xf(folder / f"{name}.xf", np.tile([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], (5, 1, 1)))
        write_tlt(folder / f"{name}.tlt", [-6.5, -3.5, -0.5, 2.5, 5.5])
        write_tlt(folder / f"{name}.rawtlt", [-6.0, -3.0, 0.0, 3.0, 6.0])
    return folder


def test_warp_and_imod_agree_on_a_real_series(real, tmp_path):
    stack = real / "00254.stack.mrc"
    report = run(tmp_path / "warp", real / "00254.xml", stack=stack)
    # Warp gives IMOD its own angles, and so the mirror image in z of the specimen that it works in.
    run(tmp_path / "imod", real / "imod/00254.xf", stack=stack, exposure=3.0, flip_hand=True)
    run(tmp_path / "first", real / "imod/00254.xml", stack=stack)
    warp, imod, first = (imported(tmp_path / name, "00254") for name in ("warp", "imod", "first"))
    angles = np.loadtxt(real / "imod/00254.tlt")
    np.testing.assert_allclose(warp.y_tilt_deg, -angles, atol=0.006)
    np.testing.assert_allclose(warp.z_rot_deg, -4.3, atol=1e-4)
    np.testing.assert_allclose(matrices(warp)[:, :3, :3], matrices(imod)[:, :3, :3], atol=1e-4)
    # Warp has refined the shifts since: by up to six pixels of 10 Å, one in the middle.
    shifts = np.abs(matrices(warp) - matrices(imod))[:, :2, 3]
    assert shifts.max() < 60
    assert np.median(shifts) < 10
    # Warp's own import of the files has them to the half pixel between the two centres of an image.
    np.testing.assert_allclose(matrices(first)[:, :2, :3], matrices(imod)[:, :2, :3], atol=1e-4)
    step = matrices(first)[:, :2, 3] - matrices(imod)[:, :2, 3]
    np.testing.assert_allclose(step, 5.0, atol=1e-3)
    assert (warp.hand, imod.hand) == (-1, -1)
    assert np.isfinite(warp.defocus_u_angstrom).all()
    assert warp.pixel_size_angstrom == 10.0
    assert warp.pre_exposure_e_per_a2[:4].tolist() == [117, 114, 105, 102]
    assert set(warp.exposure_e_per_a2) == {3.0}
    assert np.abs(imod.pre_exposure_e_per_a2 - warp.pre_exposure_e_per_a2).max() <= 3
    assert report.summary.values["views"].value == 41
    assert not report.summary.warnings
    for figure in report.summary.figures:
        assert (tmp_path / "warp" / figure.path).stat().st_size > 10_000


def test_relion_reads_what_is_written(real, tmp_path, relion):
    run(tmp_path / "out", real / "00254.xml", stack=real / "00254.stack.mrc")
    labels = [
        "rlnMicrographName",
        "rlnTomoYTilt",
        "rlnTomoXShiftAngst",
        "rlnMicrographPreExposure",
        "rlnDefocusU",
    ]
    printed = relion("relion_star_printtable", "out/tilt_series/00254.star", "data_00254", *labels).split(
        "\n"
    )
    rows = [line.split() for line in printed if line.strip()]
    series = imported(tmp_path / "out", "00254")
    assert len(rows) == 41
    assert rows[0][0] == f"000001@{real / '00254.stack.mrc'}"
    table = np.array([row[1:] for row in rows], dtype=float)
    expected = [
        series.y_tilt_deg,
        series.x_shift_angstrom,
        series.pre_exposure_e_per_a2,
        series.defocus_u_angstrom,
    ]
    np.testing.assert_allclose(table.T, expected)
    index = relion(
        "relion_star_printtable", "out/tilt_series.star", "data_global", "rlnTomoName", "rlnVoltage"
    )
    assert index.split() == ["00254", "300.0"]


def test_only_the_views_that_are_drawn_are_read(real, tmp_path, monkeypatch):
    read = []
    fill = verglas.io.mrc._read_sections_into

    def fill_and_tell(file, header, start, result):
        read.append((start, start + len(result)))
        fill(file, header, start, result)

    monkeypatch.setattr(verglas.io.mrc, "_read_sections_into", fill_and_tell)
    run(tmp_path / "out", real / "00254.xml", stack=real / "00254.stack.mrc")
    assert sorted(read) == [(0, 1), (20, 21), (40, 41)]


def test_importing_what_was_imported_changes_nothing(plain, tmp_path):
    run(tmp_path / "one", plain / "TS_1.xf", plain / "TS_2.xf", exposure=2.0)
    run(tmp_path / "two", tmp_path / "one/tilt_series.star")
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    # The index names the job folder.
    assert one.pop("tilt_series.star") != two.pop("tilt_series.star")
    assert one == two
    assert len(one) == 6


def test_imod_with_raw_angles_and_exposures(plain, tmp_path):
    report = run(tmp_path / "out", plain / "TS_1.xf", exposure=2.0, voltage=200.0, cs=1.2)
    series = imported(tmp_path / "out", "TS_1")
    assert series.nominal_tilt_deg.tolist() == [-6, -3, 0, 3, 6]
    assert series.y_tilt_deg.tolist() == [-6.5, -3.5, -0.5, 2.5, 5.5]
    # The order follows the stage: 0, 3, -3, 6, -6.
    assert series.pre_exposure_e_per_a2.tolist() == [8, 4, 0, 2, 6]
    assert (series.optics.voltage_kv, series.optics.cs_mm) == (200.0, 1.2)
    # d = -A place, from the middle of an even image; ours is pixel n // 2, half a pixel later.
    np.testing.assert_allclose(series.x_shift_angstrom, (-2 - 0.5) * PIXEL)
    np.testing.assert_allclose(series.y_shift_angstrom, (1 - 0.5) * PIXEL)
    assert "dose-symmetric" in report.summary.warnings[0]


def test_exposures_of_an_mdoc(plain, tmp_path):
    lines = ["PixelSpacing = 4", "Voltage = 300", ""]
    for index, (tilt, dose) in enumerate([(0, 1.0), (-3, 2.0), (-6, 3.0), (3, 4.0), (6, 5.0)]):
        lines += [f"[ZValue = {index}]", f"TiltAngle = {tilt + 0.01}", f"ExposureDose = {dose}", ""]
    (plain / "TS_1.mrc.mdoc").write_text("\n".join(lines))
    run(tmp_path / "out", plain / "TS_1.xf", mdoc=plain)
    series = imported(tmp_path / "out", "TS_1")
    assert series.exposure_e_per_a2.tolist() == [3, 2, 1, 4, 5]
    assert series.pre_exposure_e_per_a2.tolist() == [3, 1, 0, 6, 10]
    report = run(tmp_path / "both", plain / "TS_1.xf", plain / "TS_2.xf", mdoc=plain)
    assert report.done == ("TS_1",)
    assert "has no mdoc of series 'TS_2'" in report.failed["TS_2"]


def test_nominal_defocus_is_for_views_without_one(plain, shared_data, tmp_path):
    run(tmp_path / "out", plain / "TS_1.xf", defocus=1.75)
    assert imported(tmp_path / "out", "TS_1").mean_defocus_angstrom.tolist() == [17500.0] * 5
    warp = shared_data / "tilt_series_empiar10499/00254.xml"
    for name, given in (("none", {}), ("some", {"defocus": 9.0})):
        run(tmp_path / name, warp, **given)
    known, again = (imported(tmp_path / name, "00254").mean_defocus_angstrom for name in ("none", "some"))
    assert known.tolist() == again.tolist()
    assert 15000 < known.min() < known.max() < 20000


def test_unknown_exposures_are_said(plain, tmp_path):
    report = run(tmp_path / "out", plain / "TS_1.xf", plain / "TS_2.xf")
    assert report.summary.warnings == [
        "TS_1, TS_2: the exposures are unknown, so views cannot be weighted by them; expected `exposure`"
    ]
    assert report.summary.values["exposure"].value == "unknown"


def test_flip_hand_mirrors_the_specimen(plain, tmp_path):
    write_tlt(plain / "TS_1.xtilt", [0.5] * 5)
    run(tmp_path / "one", plain / "TS_1.xf")
    run(tmp_path / "two", plain / "TS_1.xf", flip_hand=True)
    one, two = (imported(tmp_path / name, "TS_1") for name in ("one", "two"))
    mirror = np.diag([1.0, 1.0, -1.0, 1.0])
    np.testing.assert_allclose(matrices(two), mirror @ matrices(one) @ mirror, atol=1e-9)
    # The depth changes its sign and so does the hand, so that no point of an image changes its defocus.
    assert (one.hand, two.hand) == (1, -1)


def test_etomo_folder_and_its_transforms_are_one(shared_data, tmp_path):
    folder = tmp_path / "etomo"
    shutil.copytree(shared_data / "formats/imod/imod_1", folder)
    count = len((folder / "tilt_1.xf").read_text().strip().split("\n"))
    write_stack(folder / "tilt_1.st", count)
    run(tmp_path / "one", folder)
    run(tmp_path / "two", folder / "tilt_1.xf")
    one, two = (imported(tmp_path / name, "tilt_1") for name in ("one", "two"))
    # THICKNESS and FULLIMAGE of tilt.com came along.
    assert one.volume_shape == two.volume_shape == (2000, 3832, 3708)
    np.testing.assert_array_equal(one.y_tilt_deg, np.loadtxt(folder / "tilt_1.tlt"))
    np.testing.assert_array_equal(matrices(one), matrices(two))


def test_aretomo_leaves_dark_views_out_but_counts_their_exposure(shared_data, tmp_path):
    text = (shared_data / "formats/aretomo/test.aln").read_text()
    (tmp_path / "TS_9.aln").write_text(text.replace("2032 2032 90", "24 20 90"))
    shutil.copy(shared_data / "formats/aretomo/test_CTF.txt", tmp_path / "TS_9_CTF.txt")
    write_stack(tmp_path / "TS_9.mrc", 90)
    report = run(tmp_path / "out", tmp_path / "TS_9.aln", exposure=1.0)
    series = imported(tmp_path / "out", "TS_9")
    assert series.y_tilt_deg.tolist() == [-61.5, -60.0, -58.5, -57.0]
    # Sections as they are counted in versions that write AlphaOffset: from 1.
    assert [image.section for image in series.images] == [0, 1, 2, 3]
    assert series.pre_exposure_e_per_a2.tolist() == [3, 2, 1, 0]
    np.testing.assert_allclose(series.x_shift_angstrom, np.array([24.786, 34.451, 9.951, 5.538]) * PIXEL)
    assert any("3 lines for 4 aligned views" in warning for warning in report.summary.warnings)
    report = run(tmp_path / "bad", tmp_path / "TS_9.aln", stack=write_stack(tmp_path / "other.mrc", 41))
    assert "41 sections, but 'TS_9.aln' has 90 views" in report.failed["TS_9"]


def test_serialem_mdoc(shared_data, tmp_path):
    shutil.copy(shared_data / "formats/mdoc/TS_01.mrc.mdoc", tmp_path)
    write_stack(tmp_path / "TS_01.st", 41, pixel=5.4)
    run(tmp_path / "out", tmp_path / "TS_01.mrc.mdoc", exposure=3.0)
    series = imported(tmp_path / "out", "TS_01")
    assert series.z_rot_deg.tolist() == [85.3] * 41
    assert series.y_tilt_deg[:3].tolist() == [0.000999877, 3.00113, -2.99863]
    assert series.pre_exposure_e_per_a2[:3].tolist() == [0, 3, 6]


def test_emclarity_table(shared_data, tmp_path):
    shutil.copy(shared_data / "formats/emclarity/riboNew07_ali1_ctf.tlt", tmp_path)
    write_stack(tmp_path / "riboNew07.fixed", 41, pixel=2.17)
    report = run(tmp_path / "out", tmp_path / "riboNew07_ali1_ctf.tlt")
    series = imported(tmp_path / "out", "riboNew07")
    assert not report.summary.warnings
    assert series.pixel_size_angstrom == pytest.approx(2.17)
    assert series.optics.voltage_kv == pytest.approx(300, abs=0.1)
    first = int(np.argmin(series.pre_exposure_e_per_a2))
    assert series.y_tilt_deg[first] == pytest.approx(30.11)
    np.testing.assert_allclose(series.exposure_e_per_a2, 60 / 41, atol=1e-5)


def test_relion_series_whose_images_are_not_here_fail_each(shared_data, tmp_path):
    report = run(tmp_path / "out", shared_data / "formats/relion5/tilt_series.star")
    assert len(report.failed) == 5
    assert all("does not exist" in error for error in report.failed.values())


def test_pixel_sizes_that_differ_are_said(plain, tmp_path):
    report = run(tmp_path / "out", plain / "TS_1.xf", pixel_size=8.0, exposure=1.0)
    assert any(
        "8 Å after `pixel_size`, but 4 Å after the header" in warning for warning in report.summary.warnings
    )
    assert imported(tmp_path / "out", "TS_1").pixel_size_angstrom == 8.0


def test_a_pixel_size_that_makes_no_sense_for_warp_is_said(real, tmp_path):
    report = run(tmp_path / "out", real / "00254.xml", stack=real / "00254.stack.mrc", pixel_size=0.5)
    told = "\n".join(report.summary.warnings)
    assert "finer than the 1.7005 Å of the movies" in told
    assert "outside of" in told


def test_one_bad_series_does_not_stop_the_rest_and_is_done_when_mended(plain, tmp_path):
    inputs = (plain / "TS_1.xf", plain / "TS_2.xf")
    run(tmp_path / "whole", *inputs, exposure=1.0)
    good = (plain / "TS_2.st").read_bytes()
    write_stack(plain / "TS_2.st", 4)
    report = run(tmp_path / "out", *inputs, exposure=1.0)
    assert report.done == ("TS_1",)
    assert "has 4 sections, but 'TS_2.xf' has 5 views; expected as many" in report.failed["TS_2"]
    assert list(read_tilt_series(tmp_path / "out/tilt_series.star")) == ["TS_1"]
    (plain / "TS_2.st").write_bytes(good)
    report = run(tmp_path / "out", *inputs, exposure=1.0)
    assert (report.done, report.skipped) == (("TS_2",), ("TS_1",))
    first, second = results(tmp_path / "whole"), results(tmp_path / "out")
    # The index names the job folder.
    assert first.pop("tilt_series.star") != second.pop("tilt_series.star")
    assert first == second
    with pytest.raises(JobMismatchError, match="`exposure`"):
        run(tmp_path / "out", *inputs, exposure=2.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "TS_1.st").unlink(), "no stack of series 'TS_1' was found"),
        (lambda folder: write_tlt(folder / "TS_1.tlt", [0.0, 3.0]), "'TS_1.tlt' has 2 angles"),
        (lambda folder: forget_pixel_size(folder / "TS_1.st"), "expected `pixel_size` in Å"),
        (lambda folder: (folder / "TS_1.st").write_bytes(b"x" * 2000), "TS_1.st"),
    ],
)
def test_what_is_wrong_with_a_series_is_said(plain, tmp_path, change, told):
    change(plain)
    report = run(tmp_path / "out", plain / "TS_1.xf")
    assert told in report.failed["TS_1"]
    assert "\n" not in report.failed["TS_1"]
    assert json.loads((tmp_path / "out/items/TS_1.json").read_text())["state"] == "failed"


def test_values_that_are_not_finite_are_refused(plain, tmp_path):
    data = np.ones((5, 20, 24), np.float32)
    data[0, 3, 4] = np.nan
    write_mrc(plain / "TS_1.st", data, voxel_size_angstrom=4.0, is_stack=True)
    report = run(tmp_path / "out", plain / "TS_1.xf")
    assert "view 1 in" in report.failed["TS_1"]
    assert "not finite" in report.failed["TS_1"]


def test_wrong_inputs_stop_at_once(plain, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="does not exist"):
        run(out, plain / "TS_3.xf")
    with pytest.raises(UserError, match="of no format that `import` reads"):
        run(out, plain / "TS_1.st")
    with pytest.raises(UserError, match="does not hold one alignment of etomo"):
        run(out, plain)
    with pytest.raises(UserError, match="inputs list 2 series; expected a folder"):
        run(out, plain / "TS_1.xf", plain / "TS_2.xf", stack=plain / "TS_1.st")
    with pytest.raises(UserError, match="twice"):
        run(out, plain / "TS_1.xf", plain / "TS_1.xf")
    (plain / "TS_1.tlt").unlink()
    (plain / "TS_1.rawtlt").unlink()
    with pytest.raises(UserError, match=r"no tilt angles beside it; expected 'TS_1.tlt'"):
        run(out, plain / "TS_1.xf")
    with pytest.raises(ValidationError, match="pixel_size"):
        ImportParams(inputs=(plain / "TS_1.xf",), pixel_size=-1.0)
    assert not out.exists()


def test_stack_may_be_a_folder_of_folders(plain, tmp_path):
    for name in ("TS_1", "TS_2"):
        (tmp_path / "stacks" / name).mkdir(parents=True)
        (plain / f"{name}.st").rename(tmp_path / "stacks" / name / f"{name}.mrc")
    report = run(tmp_path / "out", plain / "TS_1.xf", plain / "TS_2.xf", stack=tmp_path / "stacks")
    assert report.done == ("TS_1", "TS_2")
    assert imported(tmp_path / "out", "TS_2").images[0].path == tmp_path / "stacks/TS_2/TS_2.mrc"


def test_estimate_reads_headers_only(plain):
    params = ImportParams(inputs=(plain / "TS_1.xf", plain / "TS_2.xf"))
    told = IMPORT_STEP.estimate(IMPORT_STEP.list_items(params), params)
    assert told.memory_bytes > 100 << 20
    assert told.seconds > 0


def test_the_modules_are_light():
    code = (
        "import sys, verglas.steps.import_series, verglas.steps.stack;"
        "sys.exit(bool({'torch', 'matplotlib', 'scipy', 'polars'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
