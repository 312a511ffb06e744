"""`select`: rules, names and lists; what is kept goes on, and what was left out can come back."""

from pathlib import Path

import pandas as pd
import pytest

from verglas.errors import UserError
from verglas.io.star import read_star, write_star
from verglas.jobs import ItemRecord, JobFolder, JobRecord, fingerprint_file, write_json
from verglas.steps.select import SELECT_STEP, SelectParams, read_selection
from verglas.steps.select_rules import parse_rule
from verglas.steps.step import RunOptions, RunReport, run_step

VALUES = {"x": 3.0, "y": 40.0, "name": "TS_01", "missing": None}


@pytest.mark.parametrize(
    ("rule", "fulfilled"),
    [
        ("x < 6 and y < 40", False),
        ("x < 6 and y <= 40", True),
        ("x > 6 or y == 40", True),
        ("not x > 6", True),
        ("not (x < 6 and y < 100)", False),
        ("x > 6 or x < 4 and y > 100", False),
        ('name == "TS_01" and x != -1e2', True),
        ("missing < 6", False),
        ("missing > 6", False),
        ("name < 6", False),
        ("2 < x", True),
    ],
)
def test_rules(rule: str, fulfilled: bool) -> None:
    assert parse_rule(rule).test(VALUES) is fulfilled


@pytest.mark.parametrize(
    "rule",
    ["", "x", "x <", "x < 6 and", "(x < 6", "x < 6)", "x = 6", "__import__('os')", "x < 6; y", "x < 6 y < 7"],
)
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(UserError, match="rule"):
        parse_rule(rule)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A `motion` job and a `ctf` job on its micrographs, as the engine leaves them."""
    names = ["TS_01_000", "TS_01_039", "TS_02_000"]
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0]})
    table = pd.DataFrame(
        {
            "rlnMicrographName": [f"/data/{name}.mrc" for name in names],
            "rlnOpticsGroup": 1,
            "rlnDefocusU": 1e4,
        }
    )
    for step, key, values in (
        ("motion", "drift_angstrom", (10.0, 80.0, 20.0)),
        ("ctf", "fit_resolution_angstrom", (4.0, 5.0, 9.0)),
    ):
        folder = tmp_path / step
        star = "micrographs.star" if step == "motion" else "micrographs_ctf.star"
        write_star(folder / star, {"optics": optics, "micrographs": table})
        inputs = () if step == "motion" else (fingerprint_file(tmp_path / "motion/micrographs.star"),)
        write_json(JobFolder(folder).job, JobRecord("0", step, "done", {}, (), tuple(names), inputs))
        for name, value in zip(names, values, strict=True):
            write_json(JobFolder(folder).item(name), ItemRecord(name, "done", values={key: value}))
    return tmp_path


def select(jobs: Path, out: str, **parameters: object) -> RunReport:
    params = SelectParams(table=jobs / "ctf/micrographs_ctf.star", **parameters)  # type: ignore[arg-type]
    return run_step(SELECT_STEP, params, jobs / out, options=RunOptions(quiet=True))


def kept(jobs: Path, out: str) -> list[str]:
    blocks = read_star(jobs / out / "micrographs.star")
    return [Path(name).stem for name in blocks["micrographs"]["rlnMicrographName"]]  # type: ignore[index]


def test_rule_on_values_of_two_jobs(jobs: Path) -> None:
    report = select(jobs, "one", where="ctf_fit_resolution < 6 and drift < 40")
    assert kept(jobs, "one") == ["TS_01_000"]
    assert read_selection(jobs / "one/selection.star") == {
        "TS_01_000": True,
        "TS_01_039": False,
        "TS_02_000": False,
    }
    assert report.summary is not None
    assert report.summary.values["left out"].value == 2
    assert (jobs / "one/figures/selection.png").exists()
    table = read_star(jobs / "one/micrographs.star")["micrographs"]
    assert table["rlnDefocusU"].tolist() == [10000.0]  # type: ignore[index]


def test_names_and_lists(jobs: Path) -> None:
    select(jobs, "one", names=("TS_01*",))
    assert kept(jobs, "one") == ["TS_01_000", "TS_01_039"]
    (jobs / "bad.txt").write_text("TS_01_039\n\n")
    select(jobs, "two", listed=jobs / "bad.txt", action="drop")
    assert kept(jobs, "two") == ["TS_01_000", "TS_02_000"]


def test_what_was_left_out_can_come_back(jobs: Path) -> None:
    select(jobs, "one", where="drift < 15")
    select(jobs, "two", names=("TS_02*",), action="restore", base=jobs / "one/selection.star")
    assert kept(jobs, "two") == ["TS_01_000", "TS_02_000"]
    select(jobs, "three", names=("TS_01*",), action="drop", base=jobs / "two/selection.star")
    assert kept(jobs, "three") == ["TS_02_000"]


def test_tilt_series_are_selected_by_name(tmp_path: Path) -> None:
    index = pd.DataFrame(
        {"rlnTomoName": ["TS_01", "TS_03"], "rlnTomoTiltSeriesStarFile": ["a.star", "b.star"]}
    )
    write_star(tmp_path / "tilt_series.star", {"global": index})
    params = SelectParams(table=tmp_path / "tilt_series.star", where='name != "TS_03"')
    run_step(SELECT_STEP, params, tmp_path / "out", options=RunOptions(quiet=True))
    written = read_star(tmp_path / "out/tilt_series.star")["global"]
    assert written["rlnTomoName"].tolist() == ["TS_01"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "nothing to select by"),
        ({"where": "blur < 6"}, "'blur', which nothing before knows"),
        ({"names": ("*",), "action": "restore"}, "expected `base`"),
    ],
)
def test_what_cannot_be_selected(jobs: Path, parameters: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        select(jobs, "out", **parameters)
