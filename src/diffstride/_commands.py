"""What all commands share: exit codes, the packaged configurations, advice on wrong arguments."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

USAGE_ERROR = 2
KILLED_BY = 128  # plus the number of the signal, as in shells
STOPPED = KILLED_BY + 2  # by Ctrl+C
CONFIGS = Path(__file__).parent / "training" / "configs"
ONE_EACH = "each --gin_bindings takes one binding, in quotes if it has spaces"
SETTING = "settings are Gin bindings, as in --gin_bindings='train.num_epochs = 2'"
EXAMPLE = "--gin_bindings='train.threads = 1' --gin_bindings='train.progress_bar = False'"


def advise_bindings(arguments: Sequence[str]) -> str:
    """The end of an error about arguments without a flag; empty if none of them is of a binding.

    >>> advise_bindings(["digits.gin"])
    ''
    >>> print(advise_bindings(["train.seed=1"]))  # doctest: +ELLIPSIS
    : each --gin_bindings takes one binding, ... as in --gin_bindings='train.threads = 1' ...
    """
    is_binding = any("=" in each and not each.startswith("--") for each in arguments)
    return f": {ONE_EACH}, as in {EXAMPLE}" if is_binding else ""


def advise_settings(arguments: Sequence[str], flags: Sequence[str] = ()) -> str:
    """As `advise_bindings`, for a command with these flags that trains what its bindings say.

    >>> advise_settings(["--epochs=2"])
    ": settings are Gin bindings, as in --gin_bindings='train.num_epochs = 2'"
    >>> advise_settings(["--workdri=x"], ["seed", "workdir"])
    ': did you mean --workdir?'
    """
    for each in arguments:
        if each.startswith("--"):
            close = get_close_matches(each.strip("-").partition("=")[0], flags, n=1)
            return f": did you mean --{close[0]}?" if close else f": {SETTING}"
    return advise_bindings(arguments)
