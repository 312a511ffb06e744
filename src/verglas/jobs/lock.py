"""Locks that end with the process that holds them."""

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verglas.errors import JobLockedError

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def hold_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock on the file `path`, made when missing, for the length of the block.

    The kernel drops it when the process ends in whatever way, so there are no stale locks. The file stays:
    removing it would let two processes lock two files of the same name.

    Parameters
    ----------
    path
        The lock file.
    shared
        Others may hold it shared at the same time.
    wait
        Wait for others instead of raising.

    Raises
    ------
    JobLockedError
        When another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            raise JobLockedError(
                f"job folder {str(path.parent)!r} is being written by {holder or 'another process'}; "
                "wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {str(path.parent)!r} has no locks: "
                "take care that only one run writes there",
                RuntimeWarning,
                stacklevel=3,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
