"""`ctf`: the tables that are written, what the user is told, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import starfile

from verglas.benchmarks import tilt_ctf
from verglas.errors import UserError
from verglas.io.emclarity import read_ctf_table
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.jobs import JobFolder, read_item
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.steps.ctf import CTF_STEP, CtfParams
from verglas.steps.import_series import IMPORT_STEP, ImportParams
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(quiet=True)
SIZE, VIEWS = 320, 15


def run(out: Path, star: Path, **parameters: object) -> RunReport:
    params = CtfParams(inputs=(star,), **parameters)  # type: ignore[arg-type]
    return run_step(CTF_STEP, params, out, options=QUIET)


def write_series(folder: Path, images: np.ndarray, *series: TiltSeries) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_mrc(folder / "stack.mrc", images, voxel_size_angstrom=3.0, is_stack=True)
    references = tuple(ImageReference(folder / "stack.mrc", i) for i in range(len(images)))
    return write_tilt_series(folder, [replace(one, images=references) for one in series])


@pytest.fixture(scope="module")
def case() -> tilt_ctf.Case:
    # Its true hand is -1; the table is told +1.
    made = tilt_ctf.make_case(2, SIZE, views=VIEWS, exposure_e_per_a2=20.0)
    assert made.truth.hand == -1
    return made


@pytest.fixture(scope="module")
def job(case: tilt_ctf.Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    """A series whose table has the wrong hand, and of which a view is left out."""
    folder = tmp_path_factory.mktemp("ctf")
    selected = np.ones(VIEWS, dtype=bool)
    selected[3] = False
    star = write_series(folder, case.images, replace(case.known, name="TS", selected=selected))
    return folder / "out", run(folder / "out", star, aligned_stack=True, ice_thickness=750.0)


def test_star_has_the_defocus_and_the_hand(case: tilt_ctf.Case, job: tuple[Path, RunReport]) -> None:
    out, report = job
    assert report.done == ("TS",)
    series = read_tilt_series(out / "tilt_series.star")["TS"]
    assert series.hand == -1
    assert len(series) == VIEWS
    difference = series.mean_defocus_angstrom - case.truth.mean_defocus_angstrom
    assert np.median(np.abs(difference)) < 150
    assert np.isfinite(series.defocus_u_angstrom[3])
    assert not series.selected[3]
    # Another reader finds RELION's labels.
    table = starfile.read(out / "tilt_series/TS.star")
    assert {"rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"} <= set(table.columns)
    index = starfile.read(out / "tilt_series.star")
    assert np.ravel(index["rlnTomoHand"]).tolist() == [-1]


def test_verdicts_are_told(job: tuple[Path, RunReport]) -> None:
    out, report = job
    item = read_item(JobFolder(out).item("TS"))
    assert item is not None
    assert item.values["hand_verdict"] == "flipped"
    assert any("the hand is flipped" in text and "table now has -1" in text for text in item.warnings)
    assert report.summary is not None
    assert report.summary.values["hand"].value == "1 flipped"


def test_figures_are_drawn(job: tuple[Path, RunReport]) -> None:
    out, _ = job
    for kind in ("search", "rings", "views", "hand"):
        assert (out / f"figures/TS_{kind}.png").stat().st_size > 10_000


def test_emclarity_table_has_its_23_columns(case: tilt_ctf.Case, job: tuple[Path, RunReport]) -> None:
    out, _ = job
    table = read_ctf_table(out / "emclarity/fixedStacks/ctf/TS_ali1_ctf.tlt")
    assert table.shape == (VIEWS - 1, 23)
    written = read_tilt_series(out / "tilt_series.star")["TS"]
    rows = table[:, 22].astype(int) - 1
    np.testing.assert_allclose(-table[:, 14] * 1e10, written.mean_defocus_angstrom[rows], atol=0.1)
    # The angle is that in the aligned stack, whose tilt axis is upright.
    turned = np.rad2deg(table[:, 12]) + written.z_rot_deg[rows] - written.defocus_angle_deg[rows]
    np.testing.assert_allclose((turned + 90) % 180 - 90, 0, atol=1e-3)


def test_aligned_stack_and_mask(case: tilt_ctf.Case, job: tuple[Path, RunReport]) -> None:
    out, _ = job
    stack = read_mrc(out / "emclarity/aliStacks/TS_ali1.fixed")
    mask = read_mrc(out / "emclarity/aliStacks/TS_ali1.samplingMask")
    assert stack.shape == mask.shape == (VIEWS - 1, SIZE, SIZE)
    assert set(np.unique(mask)) == {0, 1}
    assert (stack[mask == 0] == 0).all()
    series = read_tilt_series(out / "aligned.star")["TS"]
    assert (series.z_rot_deg == 0).all()
    assert series.images[0].path == out / "emclarity/aliStacks/TS_ali1.fixed"
    # 750 Å of ice at 60 and near 0 degrees; equal exposures. Turning an image keeps how its pixels scatter.
    middle = VIEWS // 2 - 1
    raw = case.images[[0, VIEWS // 2]].std(axis=(1, 2))
    spread = np.array([stack[row][mask[row] == 1].std() for row in (0, middle)])
    tilts = np.deg2rad(np.asarray(series.y_tilt_deg)[[0, middle]])
    expected = np.exp(-750 / 4000 * np.subtract(*(1 / np.cos(tilts))))
    assert (spread / raw)[0] / (spread / raw)[1] == pytest.approx(expected, rel=0.05)


def test_a_finished_job_is_not_done_again(job: tuple[Path, RunReport]) -> None:
    out, _ = job
    report = run(out, out.parent / "tilt_series.star", aligned_stack=True, ice_thickness=750.0)
    assert report.skipped == ("TS",)


def test_relion_reads_the_table(job: tuple[Path, RunReport], relion: Callable[..., str]) -> None:
    out, _ = job
    star = out / "tilt_series/TS.star"
    printed = relion("relion_star_printtable", star, "data_TS", "rlnDefocusU")
    values = [float(line) for line in printed.split()]
    series = read_tilt_series(out / "tilt_series.star")["TS"]
    np.testing.assert_allclose(values, series.defocus_u_angstrom, atol=0.01)


def test_what_cannot_be_fitted_is_refused(case: tilt_ctf.Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(27.0, case.images.shape).astype(np.float32)
    blank = case.images.copy()
    blank[4] = 5.0
    holed = case.images.copy()
    holed[2, 7, 9] = np.nan
    plain = replace(
        case.known,
        z_rot_deg=np.zeros(VIEWS),
        x_shift_angstrom=np.zeros(VIEWS),
        y_shift_angstrom=np.zeros(VIEWS),
    )
    none = replace(case.known, selected=np.zeros(VIEWS, dtype=bool))
    for name, images, series, told in (
        ("noise", counts, case.known, "show no rings of the CTF"),
        ("blank", blank, case.known, "view 5 of 'case_2' is blank"),
        ("holed", holed, case.known, "view 3 "),
        ("plain", case.images, plain, "has no alignment"),
        ("none", case.images, none, "has no selected view"),
    ):
        star = write_series(tmp_path / name, images, series)
        report = run(tmp_path / name / "out", star)
        assert report.done == ()
        assert not report.bugs
        assert told in report.failed["case_2"], name


def test_parameters_that_contradict_are_refused(tmp_path: Path) -> None:
    star = tmp_path / "tilt_series.star"
    with pytest.raises(UserError, match="`lowest_defocus` must be less"):
        run(tmp_path / "out", star, lowest_defocus=4.0, highest_defocus=3.0)
    with pytest.raises(UserError, match="expected `aligned_stack` too"):
        run(tmp_path / "out", star, ice_thickness=750.0)


def test_real_series_whose_pixels_are_too_coarse(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "tilt_series_empiar10499"
    stack = folder / "00254.stack.mrc"
    params = ImportParams(inputs=(folder / "00254.xml",), stack=stack)
    run_step(IMPORT_STEP, params, tmp_path / "import", options=QUIET)
    report = run(tmp_path / "ctf", tmp_path / "import/tilt_series.star")
    # At 10 Å a pixel the first zero of 1.6 to 1.9 µm lies at Nyquist.
    assert "show two zeros of the CTF only from 5.2 µm" in report.failed["00254"]


def test_real_micrograph(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "micrograph_epu" / "fei-extended.mrc"
    series = TiltSeries("epu", Optics(0.8537755), (3838, 3710), (ImageReference(path, 0),), np.zeros(1))
    report = run(tmp_path / "out", write_tilt_series(tmp_path, [series]))
    assert report.done == ("epu",)
    (u,) = read_tilt_series(tmp_path / "out/tilt_series.star")["epu"].mean_defocus_angstrom
    # A rough fit of one dimension with another program gave 1.06 µm.
    assert u == pytest.approx(10600, abs=150)
