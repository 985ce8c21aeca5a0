"""Atomic writing of files."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def name_errors(path: Path, hidden: str | None = None) -> Iterator[None]:
    """Give the path to errors of writing that have none, as those of a full disk.

    Args:
        path: the file or folder that is written to.
        hidden: a file name that stands for ``path``.

    Raises:
        OSError: the error, with a file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, hidden):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def atomic_file(
    path: Path, backup: Path | None = None, several: bool = False
) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces ``path`` once it is complete and on the disk.

    A symbolic link stays, and the file that it points to is replaced. After an error nothing has
    changed, and no partial file is left.

    Args:
        path: the file to replace; its folder is created.
        backup: new path of the file that is replaced, if there is one.
        several: whether several processes may write the file at a time; the last one wins. After a
            kill, their partial files stay.

    Raises:
        OSError: the file cannot be written, for instance as the disk is full, or ``path`` is a
            folder or a device; names ``path``.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers"
    >>> with atomic_file(path) as file:
    ...     _ = file.write(b"42")
    >>> path.read_bytes()
    b'42'
    """
    target = Path(os.path.realpath(path))
    process = f".{os.getpid()}" if several else ""
    partial = target.with_name(f".{target.name}{process}.partial")
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    try:
        with name_errors(path, str(partial)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if backup and target.exists():
                os.replace(target, os.path.realpath(backup))
            os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
