"""What a process may use."""

import gc
import subprocess
import sys

from verglas.runtime import rest_collector, set_aside_objects


def test_garbage_is_not_sought_among_what_was_there() -> None:
    gc.unfreeze()
    known = len(gc.get_objects())
    with set_aside_objects():
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < known / 10
    assert gc.get_freeze_count() == 0


def test_garbage_is_not_sought_while_libraries_load() -> None:
    assert gc.isenabled()
    with rest_collector():
        assert not gc.isenabled()
        with rest_collector():
            pass
        # The inner block leaves it as it found it.
        assert not gc.isenabled()
    assert gc.isenabled()


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
