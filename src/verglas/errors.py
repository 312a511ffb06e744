"""Errors a user can mend, told in one sentence each.

A :class:`UserError` is the user's to mend: commands print its message alone and exit with status 2.
Any other exception is a bug and keeps its traceback. The classes also subclass the builtin that a
caller of the API would expect.
"""


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
