"""What a process may use."""

import gc
import threading

import pytest
import torch

from verglas.runtime import map_threads, set_aside_objects


def test_garbage_is_not_sought_among_what_was_there() -> None:
    gc.unfreeze()
    known = len(gc.get_objects())
    with set_aside_objects():
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < known / 10
    assert gc.get_freeze_count() == 0


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
