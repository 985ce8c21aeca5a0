"""Atomic writing of files, and locks on folders for one process at a time."""

import errno
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

LOCK = ".lock"
NO_LOCKS = errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK


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
def atomic_file(path: Path, backup: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces ``path`` once it is complete and on the disk.

    A symbolic link stays, and the file that it points to is replaced. After an error nothing has
    changed, and no partial file is left.

    Args:
        path: the file to replace; its folder is created.
        backup: new path of the file that is replaced, if there is one.

    Raises:
        OSError: the file cannot be written, for instance as the disk is full; names ``path``.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers"
    >>> with atomic_file(path) as file:
    ...     _ = file.write(b"42")
    >>> path.read_bytes()
    b'42'
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.partial")
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


def expand_home(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` stands for the home folder, as in shells.

    Raises:
        ValueError: it begins with ``~`` and a name that is no user's.

    >>> expand_home("runs/a~b").as_posix()
    'runs/a~b'
    """
    expanded = os.path.expanduser(path)
    if str(expanded).startswith("~"):
        raise ValueError(f"{str(path)!r} begins with a home folder that is not known: write ./~…")
    return Path(expanded)


@contextmanager
def explain_write_errors(folder: Path, name: str) -> Iterator[None]:
    """Raise errors of writing to a folder with the folder and the option that names it.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to {name} {str(folder)!r} ({error.strerror}): choose another folder"
        ) from error


def check_writable(folder: Path, name: str) -> None:
    """Create a folder if it is missing, and refuse one that cannot be written to.

    Args:
        folder: the folder.
        name: the option that names it, for the error message.

    Raises:
        OSError: the folder cannot be written to.
    """
    with explain_write_errors(folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a folder; yields whether this process got it.

    The lock is on a file ``.lock`` in the folder, which stays. The operating system releases it
    when the process ends, also by a kill. On a network file system it holds for all machines where
    that system supports `flock`. Where it does not, a warning says so and the block runs unlocked.

    Args:
        folder: an existing folder that can be written to.
        wait: whether to wait until the lock is free; if not, the block runs without it.
    """
    # No fallback to a file that marks the folder as taken: it would outlive a killed process.
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, fallback_to_soft=False)
    with ExitStack() as stack:
        free = True
        try:
            stack.enter_context(lock)
        except Timeout:
            free = False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): make sure that only "
                "one process works there at a time",
                stacklevel=3,
            )
        yield free
