"""The training command behind its flags (`diffstride.cli`): configuration, errors in one line."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gin

from diffstride._commands import CONFIGS, KILLED_BY, USAGE_ERROR, advise_bindings
from diffstride._wording import suggest
from diffstride.training import gin_registry
from diffstride.training.files import expand_home
from diffstride.training.gin_compat import search_path
from diffstride.training.gin_errors import (
    BindingError,
    check_macros,
    check_macros_of_file,
    explain,
)
from diffstride.training.lightning_compat import exceptions
from diffstride.training.published_gin import check_published_names

REFUSED = ValueError, TypeError, OSError, ModuleNotFoundError  # mistakes of the user


def configure(
    gin_config: Sequence[str],
    gin_bindings: Sequence[str] = (),
    workdir: str | None = None,
    seed: int | None = None,
    configs_folder: str | None = None,
    more_folders: Sequence[Path] = (),
) -> None:
    """Load Gin files and bindings; the arguments are those of the flags.

    Files are looked up in the working folder, in ``configs_folder``, in ``more_folders`` and among
    the packaged files, in this order.

    Raises:
        FileNotFoundError: a file or ``configs_folder`` does not exist.
        PublishedNamesError: a file or binding has names of the published system.
        ValueError: a bound value has another type than its argument, files include each other, or
            a file sets an argument without its function.
        BindingError: Gin refuses one of ``gin_bindings``, or it sets a macro that nothing uses.
        Exception: Gin cannot parse a file or does not know a name; it raises many types.
    """
    given = [expand_home(configs_folder)] if configs_folder else []
    folders = [Path(), *given, *more_folders, CONFIGS]
    if given and not given[0].is_dir():
        raise FileNotFoundError(
            f"configs_folder={configs_folder!r} does not exist: give an existing folder"
        )
    gin.clear_config()
    files = [_find_config(name, folders) for name in gin_config]
    check_published_names(files, gin_bindings)
    try:
        with search_path(folders):
            gin.parse_config_files_and_bindings(files, [], finalize_config=False)
            _parse_bindings(gin_bindings)
        for path in files:
            check_macros_of_file(path)
    except RecursionError as error:
        text = ""
        with suppress(RecursionError):  # on Python 3.10 Gin's text is nested too deeply itself
            text = str(error)
        among = dict.fromkeys(re.findall(r'In file "([^"]+)"', text)) or files
        raise ValueError(
            f"the Gin files {', '.join(among)} include each other, or nest values too deeply: "
            "remove one of the includes"
        ) from error
    for name, value in (("workdir", workdir), ("seed", seed)):
        if value is not None:
            gin.bind_parameter(f"train.train.{name}", value)
    gin.finalize()
    gin_registry.check_bindings()


def _parse_bindings(bindings: Sequence[str]) -> None:
    for binding in bindings:
        try:
            gin.parse_config(binding)
        except RecursionError:
            raise
        except Exception as error:  # Gin raises many types
            raise BindingError(binding) from error
    for binding in bindings:  # after all of them, as the next one may use a macro
        check_macros(binding)


def _find_config(name: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        if (path := folder / expand_home(name)).is_file():
            return str(path)
    if advice := advise_bindings([name]):
        raise FileNotFoundError(f"there is no Gin file {name!r}{advice}")
    packaged = sorted(path.name for path in CONFIGS.glob("*.gin"))
    raise FileNotFoundError(
        f"there is no Gin file {name!r} in {', '.join(str(folder) for folder in folders)}"
        f"{suggest(name, packaged)}; packaged files are {', '.join(packaged)}"
    )


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USAGE_ERROR


def _silence_datasets() -> None:
    """Keep warnings and, in log files, progress bars of `datasets` out; call before its import."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it logs every retry, twice
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def train(gin_config: Sequence[str], *, verbosity: int = 0, **flags: Any) -> int:
    """Train as the flags say, and return the exit code.

    Args:
        gin_config: as for `configure`.
        verbosity: 1 to print the traceback of an error.
        flags: further arguments of `configure`.
    """
    try:
        configure(gin_config, **flags)
    except Exception as error:  # Gin raises many types, all for mistakes of the user
        return _fail(explain(error))
    _silence_datasets()
    try:
        gin_registry.train()
    except exceptions.SIGTERMException:
        return KILLED_BY + signal.SIGTERM
    except (*REFUSED, exceptions.MisconfigurationException) as error:  # pyright: ignore[reportPrivateImportUsage]
        if verbosity > 0:
            traceback.print_exc()
        return _fail(explain(error))
    return 0
