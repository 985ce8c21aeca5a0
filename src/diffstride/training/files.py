"""Folders that can be written to, and locks on them for one process at a time."""

import errno
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
NO_LOCKS = errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK


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
def removed_if_unused(folder: Path, lock: Path, own: Sequence[str]) -> Iterator[None]:
    """Remove a folder that the block made, if the block fails before it writes results into it.

    Files and folders that were there stay, and so does everything if one of ``own`` was there.

    Args:
        folder: the folder; need not exist.
        lock: the folder inside it that the block locks, or itself.
        own: paths in ``folder`` that the block writes before its results, the innermost first.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    before = _names(folder)
    roots = {Path(name).parts[0] for name in own}
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if not before & roots and _names(folder) - before <= roots:
                _remove_own(folder, lock, own)
        for each in missing:
            with suppress(OSError):  # something is in it
                each.rmdir()
        raise


def _names(folder: Path) -> set[str]:
    """What is in a folder; nothing if it cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _remove_own(folder: Path, lock: Path, own: Sequence[str]) -> None:
    with locked(lock, wait=False) as free:
        for path in (folder / name for name in own if free):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


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
