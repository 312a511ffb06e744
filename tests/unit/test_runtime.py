"""What a process may use."""

import gc

from verglas.runtime import set_aside_objects


def test_garbage_is_not_sought_among_what_was_there() -> None:
    gc.unfreeze()
    known = len(gc.get_objects())
    with set_aside_objects():
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < known / 10
    assert gc.get_freeze_count() == 0
