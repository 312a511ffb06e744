"""Files appear whole or not at all, and never outside the folder they belong to."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verglas.errors import MissingFileError, UserError

_NAME = re.compile(r"[A-Za-z0-9_+=@%,-][A-Za-z0-9._+=@%,-]*")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name when the block ends well.

    The file is flushed to disk before it is renamed, and the folder after, so that a crash leaves either
    the old file or the new one. When the block raises, the temporary file is removed.

    Parameters
    ----------
    path
        Where the finished file goes; its folder is made when missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, because many writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    # Made by us and nobody else, with the permissions that the user gives to new files.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_name(name: str, what: str = "name") -> str:
    """Return `name` when it can safely name a file inside a folder.

    Raises
    ------
    UserError
        When it is empty, hidden, holds a path separator or characters that shells and other programs mistake.
    """
    if not _NAME.fullmatch(name) or len(name) > 200:
        raise UserError(
            f"the {what} {name!r} cannot name files; expected up to 200 of the letters a to z, digits and "
            "any of . _ + = @ % , - not starting with a dot"
        )
    return name


def check_inside(folder: Path | str, name: str) -> Path:
    """Return `folder / name` when that lies inside `folder`.

    Raises
    ------
    UserError
        When `name` is absolute or leads out of the folder.
    """
    folder = Path(folder)
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"path {name!r} leads outside the folder {str(folder)!r}; expected a path inside it")
    return path


def check_exists(path: Path | str, what: str = "file") -> Path:
    """Return `path` when it exists.

    Raises
    ------
    MissingFileError
        When it does not.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{what} {str(path)!r} does not exist")
    return path


def check_file(path: Path | str, what: str = "file") -> Path:
    """Return `path` when it is a file.

    Raises
    ------
    MissingFileError
        When there is nothing.
    UserError
        When it is a folder.
    """
    path = check_exists(path, what)
    if path.is_dir():
        raise UserError(f"{what} {str(path)!r} is a folder; expected a file")
    return path
