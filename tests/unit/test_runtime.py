"""What a process may use."""

import gc
import subprocess
import sys
import threading

import pytest
import torch

from verglas.runtime import map_threads, set_aside_objects


def test_garbage_is_not_sought_among_what_was_there() -> None:
    gc.unfreeze()
    known = len(gc.get_objects())
    before, searched = gc.get_threshold(), gc.get_stats()
    with set_aside_objects():
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < known / 10
        # As many new objects as libraries make, all to stay: the young are searched, all of them never.
        stay = [[k] for k in range(300_000)]
        young, middle, full = (
            now["collections"] - then["collections"]
            for then, now in zip(searched, gc.get_stats(), strict=True)
        )
        assert young > 100
        assert middle > 10
        assert full == 0
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
    assert len(stay) == 300_000


def test_threads_keep_the_order_and_have_one_thread_of_torch_each() -> None:
    usual = torch.get_num_threads()
    found = map_threads(lambda item: (item, torch.get_num_threads(), threading.get_ident()), range(20), 3)
    assert [item for item, *_ in found] == list(range(20))
    assert {count for _, count, _ in found} == {1}
    assert threading.get_ident() not in {ident for *_, ident in found}
    assert torch.get_num_threads() == usual
    with pytest.raises(ZeroDivisionError):
        map_threads(lambda item: 1 / item, [1, 0], 2)
    assert torch.get_num_threads() == usual


def test_garbage_is_not_sought_as_a_command_ends() -> None:
    # Of the functions at exit the first is called last.
    code = (
        "import atexit, gc; atexit.register(lambda: print(len(gc.get_objects()) < gc.get_freeze_count() / 10)); "
        "from verglas.cli import main; main(['--version'])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.split()[-1] == "True"
