"""Items run serially and in processes, shards, thread budgets, progress."""

import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.exec import (
    Later,
    Outcome,
    choose_worker_device,
    format_duration,
    limit_threads,
    open_progress,
    run_items,
    take_shard,
)


def halve(number):
    if number == 13:
        raise UserError("13 is not\nfor halving")
    return number / 2, os.getpid(), os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]


def divide(number):
    return 1 / number


def name_worker(_):
    time.sleep(0.3)
    return os.environ["VERGLAS_WORKER"]


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_run_and_errors_stay_with_their_item(workers):
    items = {"a": 2, "b": 13, "c": 6}
    outcomes = {outcome.name: outcome for outcome in run_items(halve, items, workers=workers, threads=3)}
    assert outcomes.keys() == items.keys()
    assert outcomes["b"].error == "13 is not for halving"
    assert outcomes["b"].traceback == ""
    values = [outcomes[name].value for name in ("a", "c")]
    assert [value[0] for value in values] == [1.0, 3.0]
    assert all((value[1] == os.getpid()) == (workers == 1) for value in values)
    assert all(value[2:] == ("3", "3") for value in values)


def test_what_is_left_for_later_is_done_while_the_next_item_runs():
    started, seen = threading.Event(), []

    def work(name):
        if name == "b":
            # The rest of the first item goes on now.
            seen.append(started.wait(20))
        return Later(lambda: finish(name))

    def finish(name):
        started.set()
        seen.append(name)
        if name == "b":
            raise UserError("there is no room")
        return name.upper()

    outcomes = list(run_items(work, {name: name for name in "abc"}))
    assert seen[:2] in (["a", True], [True, "a"])
    assert seen[2:] == ["b", "c"]
    assert [(outcome.name, outcome.value, outcome.error) for outcome in outcomes] == [
        ("a", "A", ""),
        ("b", None, "there is no room"),
        ("c", "C", ""),
    ]


def test_bug_keeps_its_traceback():
    (outcome,) = run_items(divide, {"a": 0})
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert "in divide" in outcome.traceback


@pytest.mark.parametrize("allocate", [np.empty, torch.empty])
def test_lack_of_memory_is_no_bug(allocate):
    (outcome,) = run_items(allocate, {"a": (2**55,)})
    assert outcome.error.startswith("it does not fit in memory")
    assert outcome.error.endswith("expected a smaller one or a larger machine")
    assert not outcome.traceback


def test_workers_know_their_numbers():
    outcomes = run_items(name_worker, dict.fromkeys("abcd"), workers=2)
    assert {outcome.value for outcome in outcomes} == {"0", "1"}


def test_nothing_to_run_starts_nothing():
    assert list(run_items(halve, {}, workers=4)) == []


def test_abandoned_run_ends_its_workers():
    running = run_items(name_worker, dict.fromkeys("abcdefgh"), workers=2)
    assert next(running).value in {"0", "1"}
    started = time.monotonic()
    running.close()
    assert time.monotonic() - started < 20
    assert subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], check=False).returncode == 1


def test_threads_are_given_back():
    import torch

    before = torch.get_num_threads()
    environment = os.environ.get("OMP_NUM_THREADS")
    with limit_threads(3):
        assert torch.get_num_threads() == 3
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert torch.get_num_threads() == before
    assert os.environ.get("OMP_NUM_THREADS") == environment


def test_threads_reach_libraries_that_load_later():
    code = (
        "from verglas.exec import limit_threads\n"
        "with limit_threads(1):\n"
        "    import torch, numba\n"
        "    print(torch.get_num_threads(), numba.get_num_threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setattr("verglas.exec.run._GPU_DRIVERS", ("/dev/null",))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_worker_device("auto") == "auto"
    dealt = []
    for worker in range(3):
        monkeypatch.setenv("VERGLAS_WORKER", str(worker))
        dealt.append(choose_worker_device("auto"))
    assert dealt == ["cuda:0", "cuda:1", "cuda:0"]
    assert choose_worker_device("cuda:7") == "cuda:7"
    assert choose_worker_device("cpu") == "cpu"


def test_shards_part_the_whole():
    names = [f"{k:02d}" for k in range(11)][::-1]
    parts = [take_shard(names, (k, 4)) for k in (1, 2, 3, 4)]
    assert parts[1] == ["01", "05", "09"]
    assert sorted(name for part in parts for name in part) == take_shard(names, None) == sorted(names)
    for shard in ((0, 4), (5, 4), (1, 0)):
        with pytest.raises(UserError, match="`shard` must be i/n"):
            take_shard(names, shard)


def test_plain_progress_is_a_line_an_item(monkeypatch):
    clock = iter([0.0, 10.0, 30.0])
    monkeypatch.setattr("verglas.exec.progress.time.monotonic", lambda: next(clock))
    file = io.StringIO()
    with open_progress("tiny", 3, file=file) as progress:
        progress.advance(Outcome("TS_01", seconds=12.12))
        progress.advance(Outcome("TS_02", error="no views"))
        progress.advance(Outcome("TS_03", seconds=100.0))
    assert file.getvalue().splitlines() == [
        "1/3 TS_01 done in 12.1 s, 20.0 s left",
        "2/3 TS_02 failed, 15.0 s left: no views",
        "3/3 TS_03 done in 1.7 min",
    ]


def test_terminal_shows_a_bar_and_failures(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    file = Terminal()
    with open_progress("tiny", 2, file=file) as progress:
        progress.advance(Outcome("TS_01"))
        progress.advance(Outcome("TS_02", error="[red] no views"))
    told = file.getvalue()
    assert "TS_02 failed: [red] no views" in told  # as the user wrote it, not as markup
    assert "2/2" in told
    assert "1 failed" in told


def test_quiet_progress_shows_nothing(capsys):
    with open_progress("tiny", 2, quiet=True) as progress:
        progress.advance(Outcome("TS_01"))
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.314, "0.31 s"), (12.12, "12.1 s"), (126, "2.1 min"), (12240, "3.4 h"), (172800, "2.0 d")],
)
def test_durations_are_written_for_people(seconds, told):
    assert format_duration(seconds) == told
