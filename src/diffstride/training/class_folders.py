"""Lists files in one folder per class, and leaves nothing out without a word."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from diffstride.training.data_error import DataError

ADVICE = "correct or remove it"


def find_files(folder: Path) -> dict[str, list[str]]:
    """The paths of files ``folder/CLASS/FILE`` by class, both sorted by name.

    Symbolic links are followed. Names that begin with a dot are hidden and left out.

    Raises:
        DataError: a folder or file cannot be opened, a class has a folder, a file lies beside the
            classes or is no regular one, or a name is not UTF-8.
    """
    found = {}
    for name, path, mode in _entries(folder):
        if not stat.S_ISDIR(mode):
            raise DataError(f"{path!r} lies beside the class folders: move it into one of them")
        found[name] = [_file(*entry) for entry in _entries(path)]
    return found


def _file(name: str, path: str, mode: int) -> str:
    if stat.S_ISDIR(mode):
        raise DataError(f"{path!r} is a folder inside a class: move its files into the class")
    _check_regular(path, mode)
    return path


def has_folders(folder: Path) -> bool:
    """Whether a folder holds folders that are not hidden; False if it does not exist.

    Raises:
        DataError: as in `find_files`.
    """
    return folder.exists() and any(stat.S_ISDIR(mode) for _, _, mode in _entries(folder))


def check_files(folder: Path) -> None:
    """Refuse a folder with files that a reader would leave out, or wait for without end.

    Raises:
        DataError: a folder or file below cannot be opened, is no regular file, or is a link to a
            folder.
    """
    for _, path, mode in _entries(folder):
        if not stat.S_ISDIR(mode):
            _check_regular(path, mode)
        elif os.path.islink(path):
            raise DataError(f"{path!r} is a link to a folder, which is not followed: {ADVICE}")
        else:
            check_files(Path(path))


def _check_regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DataError(f"{path!r} is no regular file: {ADVICE}")


def _entries(folder: str | os.PathLike[str]) -> Iterator[tuple[str, str, int]]:
    """Name, path and mode of all that a folder holds and that is not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            shown = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"cannot open {str(folder)!r} ({error.strerror}): {ADVICE}") from error
    for entry in shown:
        try:
            entry.name.encode()
            yield entry.name, entry.path, entry.stat().st_mode
        except UnicodeEncodeError as error:
            raise DataError(f"the name of {entry.path!r} is not UTF-8: rename it") from error
        except OSError as error:
            raise DataError(f"cannot open {entry.path!r} ({error.strerror}): {ADVICE}") from error
