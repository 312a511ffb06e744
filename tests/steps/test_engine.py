"""The engine: killed runs continue to the same bytes, one bad item is one bad item, nothing is ever mixed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.steps.tiny import STEP, TinyParams
from verglas import jobs
from verglas.errors import JobLockedError, JobMismatchError, UserError
from verglas.runtime import available_cores
from verglas.steps.step import Item, RunOptions, Step, run_step

QUIET = RunOptions(quiet=True)


@pytest.fixture
def numbers(tmp_path):
    return write_numbers(tmp_path / "numbers", 4)


def write_numbers(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        (folder / f"T_{k + 1:02d}.txt").write_text(" ".join(str(n * 0.1) for n in range(k + 3)))
    return folder


def results(out: Path) -> dict[str, str]:
    """Digest of every file whose bytes a run promises: all but those that hold times."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent.name != "items" and path.name not in {"job.json", "log.txt"}
        if not path.name.endswith(".lock")
    }


def start(numbers: Path, out: Path, seconds: float, *, workers: int = 2) -> subprocess.Popen:
    code = (
        # A shell's background jobs, which tests may be, ignore Ctrl-C, and so do their children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.steps.tiny import *\n"
        "from verglas.steps.step import RunOptions, run_step\n"
        f"params = TinyParams(input=Path({str(numbers)!r}), seconds={seconds})\n"
        f"run_step(STEP, params, {str(out)!r}, options=RunOptions(workers={workers}, quiet=True))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )


def test_run_writes_what_it_says(numbers, tmp_path):
    out = tmp_path / "out"
    report = run_step(STEP, TinyParams(input=numbers, scale=2), out, options=QUIET)
    assert report.done == ("T_01", "T_02", "T_03", "T_04")
    assert not report.failed
    assert report.summary.values["total"].value == pytest.approx(2 * 0.1 * (3 + 6 + 10 + 15))
    np.testing.assert_allclose(np.load(out / "sums/T_02.npy"), 2 * np.array([0, 0.1, 0.3, 0.6]))
    job = json.loads((out / "job.json").read_text())
    assert job["state"] == "done"
    assert job["changed"] == ["input", "scale"]
    assert job["params"] == {"input": str(numbers), "scale": 2.0, "seconds": 0.0}
    assert [Path(item["path"]).name for item in job["inputs"]] == [f"T_0{k}.txt" for k in (1, 2, 3, 4)]
    log = (out / "log.txt").read_text()
    assert "scale = 2.0" in log
    assert "seconds" not in log


def test_second_run_does_nothing(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    before = {path: path.stat().st_mtime_ns for path in (out / "sums").iterdir()}
    report = run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    assert report.done == ()
    assert report.skipped == ("T_01", "T_02", "T_03", "T_04")
    assert before == {path: path.stat().st_mtime_ns for path in (out / "sums").iterdir()}
    assert len(jobs.read_job(out / "job.json").runs) == 2


def test_one_item_gets_all_cores_and_no_process_of_its_own(tmp_path):
    params = TinyParams(input=write_numbers(tmp_path / "numbers", 1))
    run_step(STEP, params, tmp_path / "out", options=RunOptions(workers=2, quiet=True))
    (run,) = jobs.read_job(tmp_path / "out/job.json").runs
    assert (run.workers, run.threads) == (1, available_cores())


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_damaged_output_is_made_again(numbers, tmp_path, damage):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    before = results(out)
    victim = out / "sums/T_03.npy"
    victim.unlink() if damage == "gone" else victim.write_bytes(victim.read_bytes()[:-1])
    assert run_step(STEP, TinyParams(input=numbers), out, options=QUIET).done == ("T_03",)
    assert results(out) == before


def test_killed_runs_continue_to_the_same_bytes(tmp_path):
    numbers = write_numbers(tmp_path / "numbers", 16)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(numbers, whole, 0.05).wait() == 0
    chance = random.Random()
    for kill in range(3):
        run = start(numbers, killed, 0.05, workers=2 - kill % 2)
        while len(list(killed.glob("items/[!.]*.json"))) < 1 + 2 * kill:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        run.kill()
        run.wait()
        assert jobs.read_job(killed / "job.json").state == "running"
    assert start(numbers, killed, 0.05).wait() == 0
    assert results(killed) == results(whole)
    assert len(results(whole)) == 16 + 3
    assert not list(killed.rglob(".*.tmp*"))
    assert jobs.read_job(killed / "job.json").state == "done"


def test_workers_end_with_their_parent(numbers, tmp_path):
    run = start(numbers, tmp_path / "out", 30)
    deadline = time.monotonic() + 60
    while len(children := list_children(run.pid)) < 3:  # two workers and Python's resource tracker
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run.kill()
    run.wait()
    while any(is_alive(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The dead process's lock is gone with it.
    with jobs.hold_lock(tmp_path / "out/.job.lock"):
        pass


def list_children(pid: int) -> list[int]:
    # The children of every thread: Dask starts its workers from threads.
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_item_costs_itself_alone(numbers, tmp_path, workers):
    (numbers / "T_02.txt").write_text("bug")
    (numbers / "T_03.txt").write_text("no numbers")
    out = tmp_path / "out"
    options = RunOptions(workers=workers, quiet=True)
    report = run_step(STEP, TinyParams(input=numbers), out, options=options)
    assert report.done == ("T_01", "T_04")
    assert report.failed == {"T_02": "KeyError: 'T_02'", "T_03": "'T_03' holds no numbers"}
    assert report.summary.values["total"].value == pytest.approx(0.3 + 1.5)
    assert jobs.read_item(out / "items/T_02.json").traceback.startswith("Traceback")
    assert jobs.read_item(out / "items/T_03.json").traceback == ""
    assert jobs.read_job(out / "job.json").state == "failed"
    # The user mends one file; only what failed is run again, although that input changed.
    (numbers / "T_03.txt").write_text("1 2")
    report = run_step(STEP, TinyParams(input=numbers), out, options=options)
    assert (report.done, report.skipped) == (("T_03",), ("T_01", "T_04"))
    assert list(report.failed) == ["T_02"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_later_costs_its_item_alone(numbers, tmp_path, workers):
    (numbers / "T_02.txt").write_text("-1")
    out = tmp_path / "out"
    report = run_step(STEP, TinyParams(input=numbers), out, options=RunOptions(workers=workers, quiet=True))
    assert report.done == ("T_01", "T_03", "T_04")
    assert report.failed == {"T_02": "'T_02' holds negative numbers"}
    assert sorted(path.name for path in (out / "sums").iterdir()) == ["T_01.npy", "T_03.npy", "T_04.npy"]
    assert jobs.read_item(out / "items/T_02.json").state == "failed"


def test_killed_worker_costs_only_its_item(numbers, tmp_path):
    (numbers / "T_01.txt").write_text("die")
    (numbers / "T_02.txt").write_text("die once")
    report = run_step(
        STEP, TinyParams(input=numbers), tmp_path / "out", options=RunOptions(workers=2, quiet=True)
    )
    assert list(report.failed) == ["T_01"]
    assert "killed again when the item was tried alone" in report.failed["T_01"]
    assert report.done == ("T_02", "T_03", "T_04")


def test_other_parameters_are_refused(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    before = results(out)
    with pytest.raises(JobMismatchError, match=r"`scale` = 1\.0, and it is 3\.0 now"):
        run_step(STEP, TinyParams(input=numbers, scale=3), out, options=QUIET)
    assert results(out) == before


def test_a_job_of_which_all_failed_does_not_stand_in_the_way(numbers, tmp_path):
    out = tmp_path / "out"
    for path in numbers.glob("*.txt"):
        path.write_text("words")
    assert run_step(STEP, TinyParams(input=numbers), out, options=QUIET).done == ()
    (numbers / "T_01.txt").write_text("1 2")
    other = TinyParams(input=numbers, scale=3)
    with pytest.raises(JobMismatchError, match="scale"):
        run_step(STEP, other, out, options=RunOptions(quiet=True, shard=(1, 2)))
    assert run_step(STEP, other, out, options=QUIET).done == ("T_01",)
    # Now there is something to lose.
    with pytest.raises(JobMismatchError, match="scale"):
        run_step(STEP, TinyParams(input=numbers, scale=4), out, options=QUIET)


def test_other_inputs_are_refused(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    (numbers / "T_02.txt").write_text("5 5 5")
    with pytest.raises(JobMismatchError, match=r"'T_02' made from .*T_02\.txt' of \d+ bytes"):
        run_step(STEP, TinyParams(input=numbers), out, options=QUIET)


def test_touched_input_is_the_same(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    os.utime(numbers / "T_02.txt", (1, 1))
    assert run_step(STEP, TinyParams(input=numbers), out, options=QUIET).done == ()


def test_deleted_input_of_a_finished_item_is_forgiven_only_while_listed(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    (numbers / "T_02.txt").unlink()
    with pytest.raises(JobMismatchError, match="'T_02', which the inputs no longer list"):
        run_step(STEP, TinyParams(input=numbers), out, options=QUIET)


def test_other_record_is_refused(numbers, tmp_path):
    def with_records(value):
        items = [Item("A", value, (numbers / "T_01.txt",))]
        return Step(STEP.name, TinyParams, lambda _: items, STEP.run_item, STEP.summarise, STEP.estimate)

    out = tmp_path / "out"
    run_step(with_records({"defocus": 1.0}), TinyParams(input=numbers), out, options=QUIET)
    run_step(with_records({"defocus": 1.0}), TinyParams(input=numbers), out, options=QUIET)
    with pytest.raises(JobMismatchError, match="other metadata"):
        run_step(with_records({"defocus": 2.0}), TinyParams(input=numbers), out, options=QUIET)


def test_other_step_and_major_version_are_refused(numbers, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    other = Step("other", TinyParams, STEP.list_items, STEP.run_item, STEP.summarise, STEP.estimate)
    with pytest.raises(JobMismatchError, match="step 'tiny', not 'other'"):
        run_step(other, TinyParams(input=numbers), out, options=QUIET)
    monkeypatch.setattr("verglas.steps.step.__version__", "7.0.0")
    with pytest.raises(JobMismatchError, match=r"this is 7\.0\.0"):
        run_step(STEP, TinyParams(input=numbers), out, options=QUIET)


def test_new_items_are_added(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    (numbers / "T_09.txt").write_text("7")
    report = run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    assert report.done == ("T_09",)
    assert "_T_09" in (out / "sums.star").read_text()


def test_overwrite_removes_what_the_job_wrote_and_nothing_else(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    (out / "notes.md").write_text("mine")
    (numbers / "T_04.txt").unlink()
    options = RunOptions(overwrite=True, quiet=True)
    report = run_step(STEP, TinyParams(input=numbers, scale=3), out, options=options)
    assert report.done == ("T_01", "T_02", "T_03")
    assert (out / "notes.md").read_text() == "mine"
    assert sorted(path.name for path in (out / "sums").iterdir()) == ["T_01.npy", "T_02.npy", "T_03.npy"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_something_else_is_left_alone(numbers, tmp_path, overwrite):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"holds 'thesis\.tex' but no job"):
        run_step(STEP, TinyParams(input=numbers), out, options=RunOptions(overwrite=overwrite))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_shards_together_are_the_whole(numbers, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_step(STEP, TinyParams(input=numbers), whole, options=QUIET)
    for index, names in ((2, ("T_02",)), (3, ("T_03",)), (1, ("T_01", "T_04"))):
        report = run_step(
            STEP, TinyParams(input=numbers), parts, options=RunOptions(shard=(index, 3), quiet=True)
        )
        assert report.done == names
        # The last one that runs, and no other, summarises.
        assert (report.summary is not None) == (index == 1)
        assert (parts / "sums.star").exists() == (index == 1)
    assert results(parts) == results(whole)
    job = jobs.read_job(parts / "job.json")
    assert job.state == "done"
    assert [run.shard for run in job.runs] == ["2/3", "3/3", "1/3"]


def test_shards_run_beside_each_other_and_whole_runs_alone(numbers, tmp_path):
    out = tmp_path / "out"
    one = RunOptions(shard=(1, 2), quiet=True)
    run_step(STEP, TinyParams(input=numbers), out, options=one)
    lock = out / ".job.lock"
    with jobs.hold_lock(lock, shared=True):
        run_step(STEP, TinyParams(input=numbers), out, options=RunOptions(shard=(2, 2), quiet=True))
        with pytest.raises(JobLockedError, match=f"being written by process {os.getpid()} on"):
            run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    with jobs.hold_lock(lock), pytest.raises(JobLockedError):
        run_step(STEP, TinyParams(input=numbers), out, options=one)
    assert run_step(STEP, TinyParams(input=numbers), out, options=QUIET).done == ()


def test_two_shards_at_the_same_time(tmp_path):
    numbers = write_numbers(tmp_path / "numbers", 6)
    code = (
        "import sys\n"
        "from tests.steps.tiny import *\n"
        "from verglas.steps.step import RunOptions, run_step\n"
        f"params = TinyParams(input=Path({str(numbers)!r}), seconds=0.1)\n"
        f"options = RunOptions(shard=(int(sys.argv[1]), 2), quiet=True)\n"
        f"run_step(STEP, params, {str(tmp_path / 'out')!r}, options=options)\n"
    )
    shards = [
        subprocess.Popen([sys.executable, "-c", code, str(k)], cwd=Path(__file__).parents[2]) for k in (1, 2)
    ]
    assert [shard.wait() for shard in shards] == [0, 0]
    run_step(STEP, TinyParams(input=numbers, seconds=0.1), tmp_path / "whole", options=QUIET)
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert jobs.read_job(tmp_path / "out/job.json").state == "done"


def test_stale_temporary_files_are_swept(numbers, tmp_path):
    out = tmp_path / "out"
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    stale = out / "sums/.T_01.abcd_123.tmp.npy"
    stale.write_bytes(b"half")
    run_step(STEP, TinyParams(input=numbers), out, options=QUIET)
    assert not stale.exists()


def test_interrupt_stops_at_once_and_continues(numbers, tmp_path):
    out = tmp_path / "out"
    run = start(numbers, out, 30)
    deadline = time.monotonic() + 60
    while not (out / "sums").exists() and len(list_children(run.pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) in {-signal.SIGINT, 1}
    assert jobs.read_job(out / "job.json").state == "running"


def test_moved_project_continues(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "one.txt").write_text("1 2 3")

    class OneFile(TinyParams):
        pass

    step = Step(
        "one",
        OneFile,
        lambda params: [Item("one", None, (params.input,))],
        STEP.run_item,
        STEP.summarise,
        STEP.estimate,
    )
    run_step(step, OneFile(input=here / "one.txt"), here / "out", options=QUIET)
    here.rename(there)
    assert run_step(step, OneFile(input=there / "one.txt"), there / "out", options=QUIET).done == ()
    (there / "one.txt").write_text("3 2 1")
    with pytest.raises(JobMismatchError):
        run_step(step, OneFile(input=there / "one.txt"), there / "out", options=QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(workers=0), "`workers` must be at least 1"),
        (RunOptions(shard=(3, 2)), "got 3/2"),
        (RunOptions(shard=(1, 2), overwrite=True), "`overwrite` cannot go with `shard`"),
        (RunOptions(device="cuda:99"), "cuda:99"),
        (RunOptions(device="tpu"), "tpu"),
    ],
)
def test_bad_options_are_refused(numbers, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_step(STEP, TinyParams(input=numbers), tmp_path / "out", options=options)


def test_bad_items_are_refused(numbers, tmp_path):
    def step(*names):
        items = [Item(name, None) for name in names]
        return Step("x", TinyParams, lambda _: items, STEP.run_item, STEP.summarise, STEP.estimate)

    for names, message in (
        ((), "nothing to do"),
        (("A", "A"), "'A' twice"),
        (("../A",), r"input '\.\./A' cannot name files"),
    ):
        with pytest.raises(UserError, match=message):
            run_step(step(*names), TinyParams(input=numbers), tmp_path / "out", options=QUIET)
    assert not (tmp_path / "out").exists()
