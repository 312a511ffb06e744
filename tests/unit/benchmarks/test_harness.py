"""Figures are JSON lines; times and peaks are those of what was measured."""

import json
import sys
import time

import numpy as np
import pytest

from verglas.benchmarks.harness import (
    BENCHMARKS,
    Figure,
    load_benchmark,
    measure_process,
    measure_time,
    to_line,
)
from verglas.errors import UserError


def test_figure_is_one_line():
    line = to_line(Figure("star.read", 1.5, "s", "below 3 s", True, "starfile", 9.0, 6.0))
    told = json.loads(line)
    assert "\n" not in line
    assert list(told)[:8] == ["name", "value", "unit", "target", "holds", "peer", "peer_value", "ratio"]
    assert told["machine"]["numpy"] == np.__version__


def test_time_is_a_median_of_its_rounds(monkeypatch):
    ticks = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0, 40.0, 45.0])
    monkeypatch.setattr("verglas.benchmarks.harness.time.perf_counter", lambda: next(ticks))
    calls = []
    timing = measure_time(lambda: calls.append(1), rounds=5, warm_up=2)
    assert len(calls) == 7
    assert (timing.median, timing.spread, timing.rounds) == (3.0, 2.0, 5)
    with pytest.raises(ValueError, match="`rounds`"):
        measure_time(time.time, rounds=0)


def test_peak_is_that_of_the_command_and_not_of_the_caller():
    ballast = np.ones(30_000_000)  # 240 MB here must not count there
    small = measure_process([sys.executable, "-S", "-c", "pass"])
    large = measure_process([sys.executable, "-S", "-c", "b = b'x' * 100_000_000"])
    assert ballast.nbytes > 2 * small.memory_bytes
    assert small.memory_bytes < 60e6
    assert 100e6 < large.memory_bytes - small.memory_bytes + 5e6 < 130e6
    assert small.seconds > 0


def test_failing_command_says_why():
    with pytest.raises(RuntimeError, match=r"status 3: .*oh no"):
        measure_process([sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(RuntimeError, match="no_such_program"):
        measure_process(["no_such_program"])


def test_unknown_benchmark_is_refused():
    with pytest.raises(
        UserError, match="there is no benchmark 'x'; expected one of " + ", ".join(sorted(BENCHMARKS))
    ):
        load_benchmark("x")


@pytest.mark.slow
def test_resume_holds():
    figures = {figure.name: figure for figure in load_benchmark("resume")(True)}
    assert figures["resume.identical"].holds
    assert figures["resume.kills"].value == 3
