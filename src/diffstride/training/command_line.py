"""The command: train as a Gin configuration says.

python3 -m diffstride.examples.main --gin_config=cifar10.gin \
    --gin_bindings="train.workdir = 'runs/resnet18'"
"""

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin
from absl import app, flags

from diffstride.training import gin_registry
from diffstride.training.gin_compat import search_path
from diffstride.training.lightning_compat import exceptions

PACKAGED = Path(__file__).parent / "configs"
USAGE_ERROR = 2
MISCONFIGURED = exceptions.MisconfigurationException  # pyright: ignore[reportPrivateImportUsage]
FATAL = -3  # what absl logs at least
KILLED_BY = 128  # plus the signal: how a shell reports the end of a program

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "gin_config",
    ["digits.gin"],
    "Gin file, looked up in the working folder, then in --configs_folder, then among the packaged "
    "ones; may be repeated.",
)
flags.DEFINE_multi_string(
    "gin_bindings", [], "Gin binding that overrides the files, may be repeated."
)
flags.DEFINE_string("workdir", None, "Folder of the run; overrides train.workdir where given.")
flags.DEFINE_integer("seed", None, "Overrides train.seed where given.")
flags.DEFINE_string("configs_folder", None, "Folder with Gin files.")
OWN_FLAGS = ("gin_config", "gin_bindings", "workdir", "seed", "configs_folder")


def configure(
    gin_config: Sequence[str],
    gin_bindings: Sequence[str] = (),
    workdir: str | None = None,
    seed: int | None = None,
    configs_folder: str | None = None,
    more_folders: Sequence[Path] = (),
) -> None:
    """Load Gin files and bindings, as the flags of the same names ask for.

    Files are looked up in the working folder, then in ``configs_folder``, in ``more_folders`` and
    among the packaged ones.

    Raises:
        FileNotFoundError: there is no such file, or no such folder.
        Exception: of many types, for whatever Gin cannot parse or does not know.
    """
    given = [Path(configs_folder)] if configs_folder else []
    folders = [Path(), *given, *more_folders, PACKAGED]
    if configs_folder and not Path(configs_folder).is_dir():
        raise FileNotFoundError(f"configs_folder is {configs_folder!r}: there is no such folder")
    gin.clear_config()
    with search_path(folders):
        gin.parse_config_files_and_bindings(
            [_find_config(name, folders) for name in gin_config],
            gin_bindings,
            finalize_config=False,
        )
    for name, value in (("workdir", workdir), ("seed", seed)):
        if value is not None:
            gin.bind_parameter(f"train.train.{name}", value)
    gin.finalize()


def _find_config(name: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    packaged = sorted(path.name for path in PACKAGED.glob("*.gin"))
    raise FileNotFoundError(
        f"there is no Gin file {name!r} in {', '.join(str(folder) for folder in folders)}"
        f"{_suggest(name, packaged)}; packaged are {', '.join(packaged)}"
    )


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(error: BaseException) -> str:
    """What went wrong in one line, with what may have been meant.

    >>> try:
    ...     configure([], ["resnet.resnet81.strides = None"])
    ... except ValueError as error:
    ...     print(explain(error))  # doctest: +ELLIPSIS
    No configurable matching 'resnet.resnet81'...; did you mean 'resnet.resnet18'?
    """
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    message, _, _ = message.partition(" in config string:")  # the whole configuration follows
    lines = [line.strip(" ^") for line in message.splitlines()]
    # Gin adds the calls an error came through, with the addresses of the functions.
    told = [line for line in lines if line and not line.startswith("In call to configurable")]
    return " ".join(told or [type(error).__name__]) + _meant(message)


def _meant(message: str) -> str:
    # In messages, Gin shortens the names it knows; the users may do so in theirs.
    if match := re.search(r"matching (?:reference )?'@?([^']+?)(?:\(\))?'", message):
        names = [*gin_registry.NAMES, *(name.rpartition(".")[2] for name in gin_registry.NAMES)]
        return _suggest(match[1], names)
    if match := re.search(r"'([^']+)' doesn't have a parameter named '([^']+)'", message):
        for name, arguments in gin_registry.NAMES.items():
            if f".{name}".endswith(f".{match[1]}"):
                return _suggest(match[2], arguments)
    return ""


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USAGE_ERROR


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        sys.exit(_fail(explain(error)))
    if FLAGS["verbosity"].using_default_value:
        FLAGS.verbosity = FATAL  # Gin logs an error for each folder an included file is not in
    return rest


def _keep_data_quiet() -> None:
    """Have `datasets`, not imported yet, leave errors to us and its bars out of log files."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it tells of every retry, twice
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def main(argv: Sequence[str]) -> int:
    """Train as the flags say; returns the exit code."""
    if len(argv) > 1:
        return _fail(f"unexpected argument {argv[1]!r}: flags start with --")
    try:
        given: dict[str, Any] = {name: FLAGS[name].value for name in OWN_FLAGS}
        configure(**given)
    except Exception as error:  # Gin raises what its parser happens to: any of it is the user's
        return _fail(explain(error))
    _keep_data_quiet()
    try:
        gin_registry.train()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return KILLED_BY + signal.SIGINT
    except exceptions.SIGTERMException:
        return KILLED_BY + signal.SIGTERM
    except (ValueError, TypeError, OSError, MISCONFIGURED) as error:
        if FLAGS.verbosity > 0:
            traceback.print_exc()
        return _fail(explain(error))
    return 0


def run() -> None:
    """Run the command with the arguments of this process, and exit."""
    app.run(main, flags_parser=_parse_flags)
