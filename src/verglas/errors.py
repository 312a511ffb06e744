"""Errors a user can mend, told in one sentence each.

A :class:`UserError` is the user's to mend: commands print its message alone and exit with status 2.
Any other exception is a bug and keeps its traceback. The classes also subclass the builtin that a
caller of the API would expect.
"""

import errno
from collections.abc import Iterable


class VerglasError(Exception):
    """Root of all errors raised on purpose by verglas."""


class UserError(VerglasError, ValueError):
    """Input, parameter or file that cannot be used; the message names it, its value and what was expected."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FileFormatError(UserError):
    """A file that exists but does not hold what its format promises."""


class JobMismatchError(UserError):
    """A job folder that holds the result of other parameters, inputs or another step."""


class JobLockedError(UserError):
    """A job folder that another process is writing."""


class OutOfMemoryError(VerglasError, MemoryError):
    """Work that does not fit in memory even in its smallest batch."""


# What the machine refuses is for the user to mend, not a bug.
_REFUSED = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}


def tell_nearest(name: str, known: Iterable[str]) -> str:
    """Ask at the end of a sentence for one of the known names that is like `name`; empty when none is."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def tell_refusal(error: OSError) -> str:
    """One sentence on what the user can mend of what the system refused; empty when it is a bug."""
    if error.errno == errno.EISDIR:
        return f"{str(error.filename2 or error.filename)!r} is a folder; expected a file"
    if error.errno == errno.ENOTDIR:
        return f"{str(error.filename)!r} leads through a file; expected folders up to its last name"
    return f"{error.strerror}: {str(error.filename)!r}" if error.errno in _REFUSED else ""
