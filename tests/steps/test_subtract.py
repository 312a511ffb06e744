"""`subtract` and `subtract revert`, on particles whose projections RELION made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verglas.benchmarks.subtract_cases import Case, make_case, read_subtracted
from verglas.errors import FileFormatError
from verglas.io.cryosparc import read_cs, write_cs
from verglas.io.mrc import read_mrc, read_mrc_header, write_mrc
from verglas.io.star import read_star, write_star
from verglas.steps.step import RunOptions, RunReport, run_step
from verglas.steps.subtract import SUBTRACT_STEP, SubtractParams
from verglas.steps.subtract_revert import SUBTRACT_REVERT_STEP, SubtractRevertParams

QUIET = RunOptions(quiet=True)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = make_case(tmp_path_factory.mktemp("subtract"), 150, 48, noise=2.0)
    if made is None:
        pytest.skip("RELION is not installed")
    return made


def run(case: Case, out: str, **changes: object) -> RunReport:
    given: dict[str, object] = {"particles": "particles.star", "map": "map.mrc", "remove": "remove.mrc"}
    given |= changes
    paths = {name: case.folder / value if isinstance(value, str) else value for name, value in given.items()}
    return run_step(SUBTRACT_STEP, SubtractParams(**paths), case.folder / out, options=QUIET)  # type: ignore[arg-type]


def energy_left(case: Case, star: Path) -> float:
    taken = read_mrc(case.folder / "particles.mrcs") - read_subtracted(star, case.folder)
    return float(((case.removed - taken) ** 2).sum() / (case.removed**2).sum())


@pytest.fixture(scope="module")
def plain(case: Case) -> RunReport:
    return run(case, "plain")


def test_the_removed_part_is_gone_at_each_contrast(case: Case, plain: RunReport) -> None:
    assert plain.summary is not None
    assert energy_left(case, case.folder / "plain/particles.star") < 0.02
    rows = read_star(case.folder / "plain/particles.star")["particles"]
    assert np.corrcoef(rows["vglSubtractScale"], case.contrast)[0, 1] > 0.95
    assert str(plain.summary.values["verdict"].value).startswith("it worked")
    assert abs(float(plain.summary.values["left"].value)) < 5
    assert float(plain.summary.values["kept"].value) == pytest.approx(100, abs=5)
    for name in ("averages", "maps", "particles", "scales"):
        assert (case.folder / f"plain/figures/{name}.png").stat().st_size > 10_000


def test_what_stays_may_be_named_instead(case: Case, plain: RunReport) -> None:
    run(case, "keep", remove=None, keep="stays.mrc")
    one, other = (
        read_subtracted(case.folder / f"{name}/particles.star", case.folder) for name in ("plain", "keep")
    )
    np.testing.assert_allclose(one, other, atol=1e-3 * one.std())


def test_each_half_set_loses_its_own_map(case: Case, plain: RunReport) -> None:
    empty = np.where(read_mrc(case.folder / "remove.mrc") > 0, 0, read_mrc(case.folder / "map.mrc"))
    write_mrc(case.folder / "kept_only.mrc", empty, voxel_size_angstrom=case.pixel_size_angstrom)
    # Of the map of half set 2 nothing lies in the removed region.
    run(case, "halves", map=None, half1="map.mrc", half2="kept_only.mrc")
    before = read_mrc(case.folder / "particles.mrcs")
    taken = before - read_subtracted(case.folder / "halves/particles.star", case.folder)
    share = (taken * case.removed).sum((1, 2)) / (case.removed**2).sum((1, 2))
    halves = np.arange(len(share)) % 2 + 1
    assert share[halves == 1].mean() == pytest.approx(1.0, abs=0.05)
    assert np.abs(share[halves == 2]).max() < 0.02


def test_new_centre_and_box(case: Case, plain: RunReport) -> None:
    report = run(case, "moved", recentre=True, box=32)
    assert not report.failed
    tables = read_star(case.folder / "moved/particles.star")
    assert tables["optics"]["rlnImageSize"].tolist() == [32]
    assert (tables["particles"]["rlnOriginXAngst"] == 0).all()
    images = read_subtracted(case.folder / "moved/particles.star", case.folder)
    assert images.shape[1:] == (32, 32)
    # The mean image of what is kept, whatever its pose, has its mass in the middle.
    mean = images.mean(axis=0)
    weight = np.clip(mean - np.median(mean), 0, None) ** 2
    y, x = np.mgrid[:32, :32] - 16
    assert abs((weight * y).sum() / weight.sum()) < 1
    assert abs((weight * x).sum() / weight.sum()) < 1
    assert read_mrc_header(case.folder / "moved/maps/kept.mrc").shape == (32, 32, 32)


def test_relion_reconstructs_what_is_written(
    case: Case, plain: RunReport, relion: Callable[..., str], tmp_path: Path
) -> None:
    relion("relion_reconstruct", "--i", case.folder / "plain/particles.star", "--o", "after.mrc", "--ctf")
    after = read_mrc(tmp_path / "after.mrc")
    kept, removed = (read_mrc(case.folder / f"{name}.mrc") for name in ("kept", "removed"))
    columns = np.stack([kept.ravel(), removed.ravel(), np.ones(kept.size)], axis=1)
    (of_kept, of_removed, _), *_ = np.linalg.lstsq(columns, after.ravel(), rcond=None)
    assert abs(of_removed / of_kept) < 0.05


def test_revert_restores_the_table_and_any_selection(case: Case, plain: RunReport, tmp_path: Path) -> None:
    def revert(particles: Path, out: str) -> Path:
        params = SubtractRevertParams(particles=particles, job=case.folder / "plain")
        assert not run_step(SUBTRACT_REVERT_STEP, params, tmp_path / out, options=QUIET).failed
        return tmp_path / out / "particles.star"

    original = case.folder / "particles.star"
    assert revert(case.folder / "plain/particles.star", "all").read_bytes() == original.read_bytes()
    blocks = read_star(case.folder / "plain/particles.star")
    chosen = blocks["particles"].iloc[[40, 7]]
    write_star(tmp_path / "few.star", {**blocks, "particles": chosen})
    rows = read_star(revert(tmp_path / "few.star", "few"))["particles"]
    expected = read_star(original)["particles"].iloc[[40, 7]].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)
    params = SubtractRevertParams(particles=original, job=case.folder / "plain")
    report = run_step(SUBTRACT_REVERT_STEP, params, tmp_path / "wrong", options=QUIET)
    assert "which is none of" in report.failed["revert"]


def test_cryosparc_in_and_out(case: Case, plain: RunReport) -> None:
    rows = read_star(case.folder / "particles.star")["particles"]
    count = len(rows)
    kind = [
        ("uid", "u8"),
        ("blob/path", "S8"),
        ("blob/idx", "u4"),
        ("blob/psize_A", "f4"),
        ("blob/shape", "u4", 2),
    ]
    kind += [(f"ctf/{name}", "f4") for name in ("df1_A", "df2_A", "df_angle_rad", "phase_shift_rad")]
    kind += [(f"ctf/{name}", "f4") for name in ("accel_kv", "cs_mm", "amp_contrast")]
    kind += [("alignments3D/pose", "f4", 3), ("alignments3D/shift", "f4", 2), ("alignments3D/psize_A", "f4")]
    kind += [("alignments3D/split", "u4"), ("ctf/tilt_A", "f4", 2), ("ctf/anisomag", "f4", 4)]
    records = np.zeros(count, dtype=kind)
    records["uid"] = np.arange(count) + 10
    records["blob/path"] = b"p.mrcs"
    shutil.copy(case.folder / "particles.mrcs", case.folder / "p.mrcs")
    records["blob/idx"] = np.arange(count)
    records["blob/psize_A"] = records["alignments3D/psize_A"] = case.pixel_size_angstrom
    records["blob/shape"] = 48
    records["ctf/df1_A"], records["ctf/df2_A"] = rows["rlnDefocusU"], rows["rlnDefocusV"]
    records["ctf/df_angle_rad"] = np.deg2rad(rows["rlnDefocusAngle"])
    records["ctf/accel_kv"], records["ctf/cs_mm"], records["ctf/amp_contrast"] = 300, 2.7, 0.1
    records["alignments3D/pose"] = rotation_vectors(rows)
    origins = rows[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy()
    records["alignments3D/shift"] = origins / case.pixel_size_angstrom
    records["ctf/tilt_A"] = 0.1
    write_cs(case.folder / "p.cs", records)
    report = run(case, "cs", particles="p.cs", recentre=True, box=40)
    assert report.summary is not None
    assert any("ctf/tilt_A, which are not applied" in one for one in report.summary.warnings)
    made = read_cs(case.folder / "cs/particles.cs")
    assert made["uid"].tolist() == records["uid"].tolist()
    assert (made["blob/shape"] == 40).all()
    assert (made["alignments3D/shift"] == 0).all()
    assert made["blob/path"][0].decode().endswith("cs/stacks/part_0001.mrcs")
    ours = read_mrc(case.folder / "cs/stacks/part_0001.mrcs")
    run(case, "star_moved", recentre=True, box=40)
    theirs = read_subtracted(case.folder / "star_moved/particles.star", case.folder)
    np.testing.assert_allclose(ours, theirs, atol=0.02 * theirs.std())


def rotation_vectors(rows: pd.DataFrame) -> np.ndarray:
    """cryoSPARC's poses of RELION's angles, by scipy."""
    from scipy.spatial.transform import Rotation

    angles = rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    # RELION's matrix takes the reference to the specimen; cryoSPARC's vector is that of the way back.
    return Rotation.from_euler("ZYZ", angles, degrees=True).as_rotvec()


def test_a_wrong_sign_and_a_shifted_mask_are_told(case: Case) -> None:
    blocks = read_star(case.folder / "particles.star")
    rows = blocks["particles"].copy()
    rows["rlnPhaseShift"] = 180.0
    write_star(case.folder / "flipped.star", {**blocks, "particles": rows})
    mask = np.roll(read_mrc(case.folder / "remove.mrc"), 5, axis=1)
    write_mrc(case.folder / "moved.mrc", mask, voxel_size_angstrom=case.pixel_size_angstrom)
    for out, change, told in (
        ("flipped", {"particles": "flipped.star"}, "opposite sign"),
        ("shifted", {"remove": "moved.mrc"}, "the mask cuts through the density"),
    ):
        summary = run(case, out, **change).summary
        assert summary is not None
        assert str(summary.values["verdict"].value).startswith("it did not work")
        assert any(told in warning for warning in summary.warnings)


def test_what_does_not_go_together_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="one of `keep` and `remove`"):
        SubtractParams(particles=case.folder / "particles.star", map=case.folder / "map.mrc")
    mask = case.folder / "remove.mrc"
    with pytest.raises(ValueError, match="`half1` and `half2`, or `map`"):
        SubtractParams(particles=case.folder / "particles.star", half1=case.folder / "map.mrc", remove=mask)
    write_mrc(case.folder / "other.mrc", read_mrc(case.folder / "map.mrc"), voxel_size_angstrom=3.0)
    report = run(case, "pixels", map="other.mrc")
    assert "pixels of 7.91667 Å and the map voxels of 3 Å" in report.failed["part_0001"]
    blocks = read_star(case.folder / "particles.star")
    optics = blocks["optics"].copy()
    optics["rlnOddZernike"] = "[1,two]"
    write_star(case.folder / "odd.star", {**blocks, "optics": optics})
    with pytest.raises(FileFormatError, match="rlnOddZernike '\\[1,two\\]'"):
        run(case, "odd", particles="odd.star")


def test_a_job_that_goes_on_with_another_map_finds_the_set_anew(case: Case, plain: RunReport) -> None:
    out = case.folder / "went_on"
    shutil.copytree(case.folder / "plain", out)
    first = json.loads((out / "set.json").read_text())
    for path in (out / "items").iterdir():
        path.unlink()  # as if it had been killed before its part was done
    volume = read_mrc(case.folder / "map.mrc")
    write_mrc(case.folder / "map.mrc", 2 * volume, voxel_size_angstrom=case.pixel_size_angstrom)
    try:
        assert not run(case, "went_on").failed
    finally:
        write_mrc(case.folder / "map.mrc", volume, voxel_size_angstrom=case.pixel_size_angstrom)
    second = json.loads((out / "set.json").read_text())
    assert second["made_from"] != first["made_from"]
    assert second["sets"]["0"]["mean"] == pytest.approx(first["sets"]["0"]["mean"] / 2, rel=0.01)
