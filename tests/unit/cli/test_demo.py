"""The demo, small: a few jobs, one report, and nothing to do the second time."""

import json
import re
from pathlib import Path

import pytest

from verglas.cli import main
from verglas.cli.commands import demo
from verglas.cli.commands.run import load_step
from verglas.cli.validation import build_params
from verglas.pipeline import read_pipeline
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
PIPELINE = """
[[jobs]]
step = "reconstruct"
tilt_series = "simulate/truth/tilt_series.star"
pixel_size = 20.0
ctf = "flip"

[[jobs]]
step = "compare"
tomograms = "{reconstruct}/tomograms.star"
simulation = "simulate"
"""


def run_small(out, **options):
    return demo.run_demo(out, SMALL, PIPELINE, RunOptions(**options))


@pytest.fixture
def small(monkeypatch, tmp_path):
    (tmp_path / "small.toml").write_text(PIPELINE)
    monkeypatch.setattr(demo, "choose_simulation", lambda: SMALL)
    monkeypatch.setattr(demo, "PIPELINE", tmp_path / "small.toml")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    page, failed = run_small(out, quiet=True)
    assert not failed
    assert page == out / "report.html"
    return out


def test_one_report_tells_of_all_jobs(done):
    text = (done / "report.html").read_text()
    assert "simulate → reconstruct → compare" in text
    assert "judges the reconstruction alone" in text
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
    page, failed = run_small(done)
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
    assert not run_small(done, quiet=True)[1]
    assert tomogram.read_bytes() == before
    assert (done / "simulate/stacks/demo_01.mrc").stat().st_mtime_ns == stack


def test_the_command_prints_the_report(done, small, capsys):
    assert main(["demo", "--out", str(done), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{done / 'report.html'}\n"


def test_a_failure_ends_it_with_status_1(tmp_path, small, monkeypatch, capsys):
    # A vesicle that is thicker than the ice.
    monkeypatch.setattr(demo, "choose_simulation", lambda: SMALL.model_copy(update={"vesicles": 1}))
    assert main(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 1
    assert "the slab is 500 Å thick" in capsys.readouterr().err
    assert (tmp_path / "demo/report.html").exists()
    assert not (tmp_path / "demo/reconstruct").exists()


def test_what_the_user_gets_fits_in_the_ice():
    from verglas.steps.simulate import build_scene, list_items, plan_series

    params = demo.choose_simulation()
    for item in list_items(params):
        scheme = plan_series(item.name, item.record, params, Path("x.mrc"))
        field, _ = build_scene(item.name, item.record, params, scheme.truth)
        assert (len(field.particles), len(field.beads_angstrom), len(scheme.truth)) == (45, 12, 41)


def test_the_pipeline_goes_from_raw_stacks_to_the_truth(tmp_path):
    text = demo.PIPELINE.read_text()
    (tmp_path / "p.toml").write_text(text)
    jobs = read_pipeline(
        tmp_path / "p.toml", tmp_path, load_step, lambda model, values: build_params(model, values, None)
    )
    names = [job.step.name for job in jobs]
    assert names[0] == "align-tilts"
    assert names[-1] == "compare average"
    assert {"ctf", "reconstruct", "match", "particles", "average", "align"} <= set(names)
    # What the microscope knows, and nothing of the truth but the template.
    assert jobs[0].params.tilt_series == tmp_path / "simulate/tilt_series.star"
    assert text.count("truth/") == 1


@pytest.mark.slow
def test_the_whole_demo_finds_the_ribosome(tmp_path):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quiet"]) == 0
    values = json.loads((tmp_path / "demo/compare-average/items/average.json").read_text())["values"]
    assert values["truth_angstrom"] < 30
    assert values["turn_deg"] < 3
