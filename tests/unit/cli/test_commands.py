"""What the user types, and what comes back: exit status, one sentence, flags over files."""

import ctypes
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.steps import tiny
from verglas.cli.app import build_app, main
from verglas.cli.registry import COMMANDS, TILT_SERIES, StepCommand
from verglas.cli.step_command import exit_status
from verglas.errors import UserError
from verglas.steps.step import RunReport, Step

TINY = StepCommand("tiny", "tests.steps.tiny.STEP", TILT_SERIES, "Sum numbers.")
BROKEN = Step(
    "broken", tiny.TinyParams, lambda _: [][0], tiny.STEP.run_item, tiny.STEP.summarise, tiny.STEP.estimate
)


@pytest.fixture
def numbers(tmp_path):
    folder = tmp_path / "numbers"
    folder.mkdir()
    for k in (1, 2, 3):
        (folder / f"T_{k}.txt").write_text(f"{k} {k}")
    return folder


def call(*tokens: object) -> int:
    app = build_app((TINY, StepCommand("broken", f"{__name__}.BROKEN", TILT_SERIES, "Break.")), COMMANDS)
    return main(list(map(str, tokens)), app)


def test_help_loads_neither_steps_nor_heavy_libraries():
    code = (
        "import sys, verglas.cli\n"
        "try:\n"
        "    verglas.cli.main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    heavy = {"torch", "numba", "numpy", "pandas", "polars", "matplotlib", "scipy", "dask", "distributed"}
    assert not loaded & (heavy | {"pydantic", "verglas.steps", "verglas.jobs", "verglas.exec"})
    assert len(loaded) < 600
    for name in ("reconstruct", "estimate", "doctor", "bench", "report"):
        assert name in done.stdout


def test_run_and_run_again(numbers, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("tiny", numbers, "--out", out, "--scale", 2) == 0
    told = capsys.readouterr().err
    assert "1/3 T_1 done in" in told
    assert "tiny: 3 done, 0 done before, 0 failed" in told
    assert "total: 24.0 e" in told
    assert (out / "report.html").is_file()
    assert call("tiny", numbers, "--out", out, "--scale", 2, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_failed_items_give_status_1_and_their_names(numbers, tmp_path, capsys):
    (numbers / "T_2.txt").write_text("words")
    assert call("tiny", numbers, "--out", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "1 of 3 items failed: T_2" in told
    # Quiet takes the progress away, not the reason.
    assert call("tiny", numbers, "--out", tmp_path / "quiet", "--quiet") == 1
    quiet = capsys.readouterr().err
    assert quiet.startswith("1 of 3 items failed: T_2\n  T_2: ")
    assert "done" not in quiet
    assert "'T_2' holds no numbers" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (["tiny", "--out", "{out}"], "`input` is required"),
        (["tiny", "{in}"], "--out"),
        (["tiny", "{in}", "--out", "{out}", "--scale", "-1"], "`scale` must be greater than 0; got -1.0"),
        (["tiny", "{in}", "--out", "{out}", "--scale", "much"], "much"),
        (["tiny", "{in}", "--out", "{out}", "--tilt", "1"], "--tilt"),
        (["tiny", "{in}", "--out", "{out}", "--shard", "two"], "`shard` must be i/n, such as 2/8; got 'two'"),
        (["tiny", "{in}", "--out", "{out}", "--shard", "3/2"], "got 3/2"),
        (["tiny", "{in}", "--out", "{out}", "--params", "{in}/no.toml"], "no.toml' does not exist"),
        (["tiny", "{in}", "--out", "{in}"], "but no job of verglas"),
        (["tiny", "{in}/none", "--out", "{out}"], "there is nothing to do"),
        (["tiny", "{in}", "--out", "{in}/T_1.txt/out"], "cannot be made: Not a directory"),
        (["typo"], "typo"),
        (["bench", "typo"], "there is no benchmark 'typo'; expected one of "),
        (["report", "{in}"], "holds no job.json"),
    ],
)
def test_user_errors_are_one_sentence_and_status_2(numbers, tmp_path, capsys, tokens, sentence):
    filled = [token.format(**{"in": numbers, "out": tmp_path / "out"}) for token in tokens]
    assert call(*filled) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("verglas: ")
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_bug_keeps_its_traceback_and_asks_for_a_report(numbers, tmp_path, capsys):
    assert call("broken", numbers, "--out", tmp_path / "out") == 70
    told = capsys.readouterr().err
    assert "IndexError: list index out of range" in told
    assert "please report it" in told


def test_interrupt_says_how_to_continue(numbers, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("verglas.cli.step_command.run_step", interrupt)
    assert call("tiny", numbers, "--out", tmp_path / "out") == 130
    assert "run the same command again to continue" in capsys.readouterr().err


def test_file_of_parameters_gives_way_to_flags(numbers, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(f'input = "{numbers}"\nscale = 5\nseconds = 0.001\n')
    out = tmp_path / "out"
    assert call("tiny", "--params", file, "--scale", 3, "--out", out, "--quiet") == 0
    params = json.loads((out / "job.json").read_text())["params"]
    assert params == {"input": str(numbers), "scale": 3.0, "seconds": 0.001}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("scale = ", "is not TOML"),
        ("scales = 3", "`scales` is not one of the parameters"),
        ("scale = []", "`scale`"),
    ],
)
def test_bad_file_of_parameters(numbers, tmp_path, capsys, text, sentence):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    assert call("tiny", numbers, "--params", file, "--out", tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err


def test_shards_make_the_whole(numbers, tmp_path, capsys):
    out = tmp_path / "out"
    for shard in ("1/2", "2/2"):
        assert call("tiny", numbers, "--out", out, "--shard", shard) == 0
    assert "total: 12.0 e" in capsys.readouterr().err
    assert (out / "sums.star").is_file()


def test_other_parameters_need_overwrite(numbers, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("tiny", numbers, "--out", out, "--quiet") == 0
    assert call("tiny", numbers, "--out", out, "--scale", 2, "--quiet") == 2
    assert (
        "`scale` = 1.0, and it is 2.0 now; give another `--out` or `--overwrite`" in capsys.readouterr().err
    )
    assert call("tiny", numbers, "--out", out, "--scale", 2, "--quiet", "--overwrite") == 0


def test_estimate_prints_memory_disk_and_time_and_writes_nothing(numbers, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("estimate", "tiny", numbers, "--seconds", 30, "--workers", 2) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["items"].split() == ["items", "3"]
    assert "2.0 MiB" in lines["memory"]
    assert "2.9 KiB" in lines["disk"]
    assert "90.0 s  with 2 workers" in lines["time"]
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]


def test_help_of_a_step_tells_its_parameters(capsys):
    assert call("tiny", "--help") == 0
    told = capsys.readouterr().out
    assert "Folder of text files with one number a line [required]" in " ".join(
        told.replace("│", " ").split()
    )
    assert "[default: 1]" in told
    for flag in ("--scale", "--out", "--params", "--device", "--workers", "--shard", "--overwrite"):
        assert flag in told


def test_doctor_tells_the_machine(capsys):
    assert call("doctor") == 0
    told = capsys.readouterr().out
    for name in ("cores", "memory free", "torch", "GPU", "relion_reconstruct"):
        assert name in told


def test_report_of_two_jobs(numbers, tmp_path, capsys):
    for name in ("one", "two"):
        assert call("tiny", numbers, "--out", tmp_path / name, "--quiet") == 0
    page = tmp_path / "both.html"
    assert call("report", tmp_path / "one", tmp_path / "two", "--out", page) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text().count('<section class="job"') == 2


def test_bench_prints_a_json_line_a_figure(capsys, monkeypatch):
    from verglas.benchmarks.harness import Figure

    figures = [
        Figure("x.time", 2.0, "s", "below 3 s", True, "peer", 4.0, 2.0),
        Figure("x.size", 1.0, "MB", "", False),
    ]
    monkeypatch.setattr("verglas.benchmarks.harness.load_benchmark", lambda name: lambda quick: iter(figures))
    assert call("bench", "x", "--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["x.time", "x.size"]
    assert lines[0]["ratio"] == 2.0
    assert lines[0]["machine"]["cores"] >= 1
    assert call("bench", "x") == 1
    assert "x.time" in capsys.readouterr().out


def test_every_registered_command_imports_or_says_why():
    from verglas.cli.registry import STEPS
    from verglas.cli.step_command import load_step

    for command in STEPS:
        assert load_step(command.step).name == command.name
    with pytest.raises(TypeError, match="expected a Step"):
        load_step("tests.steps.tiny.list_items")


def test_validators_of_steps_speak_for_themselves(tmp_path):
    from pydantic import field_validator

    from verglas.cli.validation import build_params

    class Picky(tiny.TinyParams):
        @field_validator("scale")
        @classmethod
        def check_scale(cls, value):
            if value == 13:
                raise UserError("`scale` must not be 13; got 13")
            return value

    with pytest.raises(UserError, match=r"^`scale` must not be 13; got 13$"):
        build_params(Picky, {"input": Path(), "scale": 13}, None)


@pytest.mark.parametrize(
    ("done", "failed", "bugs", "status"),
    [
        (("a",), {}, (), 0),
        (("a",), {"b": "no file"}, (), 1),
        ((), {"a": "no file", "b": "no file"}, (), 2),
        ((), {"a": "no file", "b": "KeyError: x"}, ("b",), 1),
    ],
)
def test_exit_status_tells_what_the_user_can_mend(
    done: tuple[str, ...], failed: dict[str, str], bugs: tuple[str, ...], status: int
) -> None:
    assert exit_status(RunReport(done, (), failed, 1.0, bugs)) == status


def test_a_folder_in_place_of_a_file_is_told(tmp_path, capsys):
    for tokens in (
        ("run", tmp_path, "--out", tmp_path / "out"),
        ("report", tmp_path / "job", "--out", tmp_path),
    ):
        if tokens[0] == "report":
            (tmp_path / "numbers").mkdir()
            (tmp_path / "numbers/T_1.txt").write_text("1")
            assert call("tiny", tmp_path / "numbers", "--out", tmp_path / "job", "--quiet") == 0
        assert call(*tokens) == 2
        told = capsys.readouterr().err
        assert f"{str(tmp_path)!r} is a folder; expected a file" in told
        assert "Traceback" not in told


def test_an_interrupt_that_a_callback_swallows_ends_the_run(capsys):
    def interrupted():
        raise KeyboardInterrupt

    callback = ctypes.CFUNCTYPE(None)(interrupted)

    def run(tokens, **options):
        callback()
        time.sleep(30)

    # A shell's background jobs, which tests may be, ignore Ctrl-C.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    try:
        assert main([], run) == 130
    finally:
        signal.signal(signal.SIGINT, usual)
    assert time.monotonic() - started < 20
    assert "interrupted; run the same command again to continue" in capsys.readouterr().err


def test_a_misspelt_parameter_is_answered_with_the_right_one(numbers, tmp_path, capsys):
    (tmp_path / "p.toml").write_text("scal = 3\n")
    assert call("tiny", numbers, "--out", tmp_path / "out", "--params", tmp_path / "p.toml") == 2
    assert "`scal` is not one of the parameters; did you mean 'scale'?" in capsys.readouterr().err
