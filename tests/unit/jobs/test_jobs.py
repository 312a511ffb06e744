"""Locks, records and the folder itself."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from verglas.errors import FileFormatError, JobLockedError, UserError
from verglas.jobs import (
    ItemRecord,
    JobFolder,
    append_log,
    hold_lock,
    read_item,
    read_job,
    to_json,
    write_json,
)
from verglas.jobs.folder import prepare_folder, remove_job, sweep_temporary


def test_lock_excludes_and_shares(tmp_path):
    lock = tmp_path / ".job.lock"
    with hold_lock(lock):
        for shared in (False, True):
            with (
                pytest.raises(JobLockedError, match=r"being written by process \d+ on"),
                hold_lock(lock, shared=shared),
            ):
                pass
    with hold_lock(lock, shared=True), hold_lock(lock, shared=True), pytest.raises(JobLockedError):
        hold_lock(lock).__enter__()


def test_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom verglas.jobs import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    lock = tmp_path / ".job.lock"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(JobLockedError, match=f"process {holder.pid} on"), hold_lock(lock):
            pass
        holder.kill()
        holder.wait()
        with hold_lock(lock):
            pass


def test_file_system_without_locks_warns(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    lock = tmp_path / ".job.lock"
    with pytest.warns(RuntimeWarning, match="has no locks"), hold_lock(lock):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_json_holds_plain_values(tmp_path):
    value = {
        "path": Path("a"),
        "number": np.float32(0.5),
        "count": np.int64(3),
        "array": np.eye(2),
        "nan": math.nan,
        "inf": [np.inf, (1, True)],
    }
    path = tmp_path / "a.json"
    write_json(path, value)
    assert json.loads(path.read_text()) == {
        "path": str(Path("a").absolute()),
        "number": 0.5,
        "count": 3,
        "array": [[1.0, 0.0], [0.0, 1.0]],
        "nan": None,
        "inf": [None, [1, True]],
    }
    with pytest.raises(TypeError, match="JSON cannot hold a set"):
        to_json({1})


def test_item_comes_back_as_it_was(tmp_path):
    item = ItemRecord("a", "done", "00", (), {"b.mrc": 5}, {"x": 0.1 + 0.2}, ("hm",), 1.5)
    write_json(tmp_path / "a.json", item)
    assert read_item(tmp_path / "a.json") == item
    assert read_item(tmp_path / "b.json") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"inputs": [3], "runs": []}'])
def test_damaged_records_are_named(tmp_path, text):
    path = tmp_path / "job.json"
    path.write_text(text)
    for read in (read_job, read_item):
        with pytest.raises(FileFormatError, match=r"job\.json"):
            read(path)


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_folder(JobFolder(tmp_path / "a"))


def test_folder_of_a_run_killed_at_its_start_is_ours(tmp_path):
    for name in (".job.lock", ".start.lock", "log.txt", ".job.k3_a9xyz.tmp.json"):
        (tmp_path / name).write_text("")
    prepare_folder(JobFolder(tmp_path))
    assert sweep_temporary(JobFolder(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".job.lock", ".start.lock", "log.txt"]


def test_sweep_leaves_other_hidden_files(tmp_path):
    for name in (".tmp", ".hidden.txt", ".a.tmp.mrc", "a.abcdefgh.tmp.mrc"):
        (tmp_path / name).write_text("")
    assert sweep_temporary(JobFolder(tmp_path)) == 0


def test_record_that_points_outside_removes_nothing(tmp_path):
    outside = tmp_path / "precious.mrc"
    outside.write_text("")
    folder = JobFolder(tmp_path / "job")
    write_json(folder.item("a"), ItemRecord("a", "done", outputs={"../precious.mrc": 0}))
    with pytest.raises(UserError, match="outside the folder"):
        remove_job(folder)
    assert outside.exists()
    assert folder.item("a").exists()


def test_log_has_a_time_on_each_line(tmp_path):
    append_log(JobFolder(tmp_path), "one\ntwo")
    append_log(JobFolder(tmp_path), "three")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["one", "two", "three"]
    assert all(line[:2] == "20" and "T" in line[:11] for line in lines)
