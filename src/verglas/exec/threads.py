"""The thread budget of a process."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Give torch and numba `count` threads for the length of the block, here and in the processes it starts.

    Libraries that are loaded already are told; others find it in the environment. Nothing is loaded for its
    sake, because torch alone takes seconds.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    torch, numba = sys.modules.get("torch"), sys.modules.get("numba")
    torch_before = torch.get_num_threads() if torch else 0
    numba_before = numba.get_num_threads() if numba else 0
    os.environ.update(dict.fromkeys(_VARIABLES, str(count)))
    try:
        if numba:
            # Threads that numba has started cannot become more.
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        if torch:
            # After numba, which may set torch's to all cores as it starts its own.
            torch.set_num_threads(count)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if numba:
            numba.set_num_threads(numba_before)
        if torch:
            torch.set_num_threads(torch_before)
