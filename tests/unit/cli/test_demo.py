"""The demo, small: three jobs, one report, and nothing to do the second time."""

import json
import re
from pathlib import Path

import pytest

from verglas.cli import main
from verglas.cli.commands import demo
from verglas.steps.simulate import SimulateParams
from verglas.steps.step import RunOptions

SMALL = SimulateParams(
    name="demo",
    image_size=(64, 64),
    pixel_size=20.0,
    thickness=500.0,
    tilt_step=4.0,
    copies=8,
    vesicles=0,
    gold=1,
    seed=1,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    page, failed = demo.run_demo(out, SMALL, RunOptions(quiet=True))
    assert not failed
    assert page == out / "report.html"
    return out


def test_one_report_tells_of_all_jobs(done):
    text = (done / "report.html").read_text()
    assert "simulate → reconstruct → compare" in text
    assert "does not align tilt series itself" in text
    for caption in ("what no view measured is missing", "correlation of the tomogram with the truth"):
        assert caption in text
    assert len(re.findall(r'<img src="data:image/', text)) == 3 + 4 + 2
    # It opens anywhere: nothing is fetched.
    assert not re.search(r'(?:src|href)="https?:', text)


def test_the_tomogram_shows_the_truth(done):
    values = json.loads((done / "compare/items/demo_01.json").read_text())["values"]
    assert values["true_geometry"]
    assert values["largest_correlation"] > 0.8
    assert 40 < values["resolution_angstrom"] < 200


def test_again_there_is_nothing_to_do(done, capsys):
    names = ("simulate/stacks", "simulate/truth/volumes", "reconstruct/tomograms")
    files = {path: path.stat().st_mtime_ns for path in (done / name / "demo_01.mrc" for name in names)}
    page, failed = demo.run_demo(done, SMALL, RunOptions())
    assert not failed
    told = capsys.readouterr().err
    assert [line for line in told.splitlines() if "done before" in line] == [
        f"{name}: done before" for name in ("simulate", "reconstruct", "compare")
    ]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert page.exists()


def test_a_lost_tomogram_alone_is_made_again(done):
    stack = (done / "simulate/stacks/demo_01.mrc").stat().st_mtime_ns
    tomogram = done / "reconstruct/tomograms/demo_01.mrc"
    before = tomogram.read_bytes()
    tomogram.unlink()
    assert not demo.run_demo(done, SMALL, RunOptions(quiet=True))[1]
    assert tomogram.read_bytes() == before
    assert (done / "simulate/stacks/demo_01.mrc").stat().st_mtime_ns == stack


def test_the_command_prints_the_report(done, monkeypatch, capsys):
    monkeypatch.setattr(demo, "choose_simulation", lambda: SMALL)
    assert main(["demo", "--out", str(done), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{done / 'report.html'}\n"


def test_a_failure_ends_it_with_status_1(tmp_path, monkeypatch, capsys):
    # A vesicle that is thicker than the ice.
    monkeypatch.setattr(demo, "choose_simulation", lambda: SMALL.model_copy(update={"vesicles": 1}))
    assert main(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 1
    assert "the slab is 500 Å thick" in capsys.readouterr().err
    assert (tmp_path / "demo/report.html").exists()
    assert not (tmp_path / "demo/reconstruct").exists()


def test_what_the_user_gets_fits_in_the_ice():
    from verglas.steps.simulate import build_scene, list_items, plan_series, truth_shape

    params = demo.choose_simulation()
    (item,) = list_items(params)
    scheme = plan_series(item.name, item.record, params, Path("x.mrc"))
    field, _ = build_scene(item.name, item.record, params, scheme.truth)
    assert (len(field.particles), len(field.beads_angstrom), len(scheme.truth)) == (80, 12, 41)
    assert truth_shape(params) == (144, 384, 384)
    x, y, z, radius = field.vesicles_angstrom[0]
    assert max(abs(x), abs(y)) + radius < 1920
    assert abs(z) < 100
