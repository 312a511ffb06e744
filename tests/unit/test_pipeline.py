"""Pipelines from files: order, names, cycles, references, and what is refused before anything runs."""

from pathlib import Path

import pytest

from tests.steps.tiny import STEP
from verglas.cli.app import main
from verglas.cli.validation import build_params
from verglas.errors import JobMismatchError, UserError
from verglas.pipeline import read_pipeline, run_pipeline
from verglas.steps.step import RunOptions

QUIET = RunOptions(device="cpu", quiet=True)


def load(name):
    if name != "tiny":
        raise UserError(f"there is no step {name!r}; expected one of tiny")
    return STEP


def read(folder, text):
    (folder / "pipeline.toml").write_text(text)
    return read_pipeline(
        folder / "pipeline.toml",
        folder / "out",
        load,
        lambda model, values: build_params(model, values, None),
    )


@pytest.fixture
def numbers(tmp_path):
    folder = tmp_path / "numbers"
    folder.mkdir()
    for name, text in (("a", "1 2 3"), ("b", "4 5")):
        (folder / f"{name}.txt").write_text(text)
    return tmp_path


CHAIN = """
[[jobs]]
step = "tiny"
input = "numbers"

[[jobs]]
cycles = 2
[[jobs.jobs]]
step = "tiny"
name = "more"
input = "numbers"
scale = 2.0
"""


def test_jobs_come_in_order_and_cycles_are_numbered(numbers):
    jobs = read(numbers, CHAIN)
    assert [job.name for job in jobs] == ["tiny", "more_01", "more_02"]
    assert jobs[0].params.input == numbers / "numbers"
    assert jobs[1].params.scale == 2.0
    assert jobs[2].folder == numbers / "out/more_02"


def test_what_is_done_is_not_done_again(numbers):
    told = []
    jobs = read(numbers, CHAIN)
    ran, failed = run_pipeline(jobs, QUIET, lambda job, report: told.append((job.name, report.done)))
    assert ran == jobs
    assert not failed
    assert told == [("tiny", ("a", "b")), ("more_01", ("a", "b")), ("more_02", ("a", "b"))]
    told.clear()
    run_pipeline(read(numbers, CHAIN), QUIET, lambda job, report: told.append((job.name, report.done)))
    assert [done for _, done in told] == [(), (), ()]


def test_changed_jobs_are_refused_or_done_again_when_asked(numbers):
    run_pipeline(read(numbers, CHAIN), QUIET, lambda *_: None)
    changed = CHAIN.replace("scale = 2", "scale = 3")
    with pytest.raises(JobMismatchError, match=r"more_01.*`scale` = 2\.0, and it is 3\.0 now"):
        run_pipeline(read(numbers, changed), QUIET, lambda *_: None)
    done = []
    run_pipeline(
        read(numbers, changed),
        QUIET,
        lambda job, report: done.append((job.name, len(report.done))),
        renew=True,
    )
    assert done == [("tiny", 0), ("more_01", 2), ("more_02", 2)]


def test_a_name_stands_for_the_latest_folder(numbers):
    text = CHAIN + '\n[[jobs]]\nstep = "tiny"\nname = "last"\ninput = "{other|more}/sums"\n'
    jobs = read(numbers, text)
    assert jobs[-1].params.input == numbers / "out/more_02/sums"


def test_one_bad_item_does_not_stop_the_rest_but_a_job_without_any_does(numbers):
    (numbers / "numbers/c.txt").write_text("no number")
    ran, failed = run_pipeline(read(numbers, CHAIN), QUIET, lambda *_: None)
    assert failed
    assert len(ran) == 3
    alone = numbers / "alone"
    (alone / "numbers").mkdir(parents=True)
    (alone / "numbers/c.txt").write_text("no number")
    ran, failed = run_pipeline(read(alone, CHAIN), QUIET, lambda *_: None)
    assert failed
    assert [job.name for job in ran] == ["tiny"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds nothing; expected"),
        ("jobs = 3", "holds jobs; expected"),
        ("[[jobs]\n", "is no TOML"),
        ('title = "x"\n[[jobs]]\nstep = "tiny"\n', "holds title, jobs; expected"),
        ('[[jobs]]\ninput = "numbers"\n', "has no `step`"),
        ('[[jobs]]\nstep = "typo"\n', "there is no step 'typo'"),
        ('[[jobs]]\nstep = "tiny"\n', "job 'tiny'.*input"),
        ('[[jobs]]\nstep = "tiny"\ninput = "numbers"\nscale = -1\n', "job 'tiny'.*scale.*-1"),
        ('[[jobs]]\nstep = "tiny"\ninput = "none"\n', "needs '.*none', which does not exist"),
        ('[[jobs]]\nstep = "tiny"\ninput = "{later}/x"\n', r"refers to \{later\}; expected a job.*none"),
        ('[[jobs]]\nstep = "tiny"\nname = "../x"\ninput = "numbers"\n', r"\.\./x"),
        ('[[jobs]]\nstep = "tiny"\ninput = "numbers"\n' * 2, "two jobs of the name 'tiny'"),
        (
            "[[jobs]]\ncycles = 0\n[[jobs.jobs]]\nstep = 'tiny'\n",
            "`cycles`.*is 0; expected a number from 1 to 99",
        ),
        ("[[jobs]]\ncycles = 2\n", "must hold"),
    ],
)
def test_mistakes_are_told_before_anything_runs(numbers, text, words):
    with pytest.raises(UserError, match=words):
        read(numbers, text)
    assert not (numbers / "out").exists()


def test_the_command_checks_and_runs(tmp_path, capsys):
    (tmp_path / "p.toml").write_text(
        '[[jobs]]\nstep = "simulate"\nimage_size = [64, 64]\ntilt-step = 30\ncopies = 2\nvesicles = 0\ngold = 0\n'
        'thickness = 400\n[[jobs]]\nstep = "reconstruct"\ntilt_series = "{simulate}/truth/tilt_series.star"\n'
        "thickness = 400\n"
    )
    assert main(["run", str(tmp_path / "p.toml"), "--out", str(tmp_path / "out"), "--check"]) == 0
    assert capsys.readouterr().out == "simulate: simulate\nreconstruct: reconstruct\n"
    assert not (tmp_path / "out").exists()
    assert main(["run", str(tmp_path / "p.toml"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "out/report.html"
    assert "reconstruct" in page.read_text()
    assert (tmp_path / "out/reconstruct/tomograms/TS_01.mrc").exists()
    assert main(["run", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
