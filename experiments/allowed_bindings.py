"""What the command line of the tables may bind: how runs are made, and not what they are."""

from collections.abc import Iterator, Sequence

from gin import config_parser
from gin.config import ParserDelegate

TRAINING = (
    "accelerator",
    "channels_last",
    "precision",
    "progress_bar",
    "threads",
)
ALLOWED = (*(f"train.train.{name}" for name in TRAINING), "data.load_datasets.root")
OF_THE_TABLE = "table."


def check_overrides(bindings: Sequence[str]) -> None:
    """Refuse bindings that would make other runs under the names of those of the grid.

    A row says by ``config`` which recipe it is of, and holds none of the recipe's settings.

    Raises:
        ValueError: a binding is none of `ALLOWED`, nor of the table itself.

    >>> check_overrides(["train.threads = 1", "table.grid.seeds = [0]"])
    >>> check_overrides(["train.num_epochs = 1"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: --gin_bindings=train.num_epochs = 1 changes what the runs are, ...
    """
    for binding in bindings:
        if not all(map(_is_allowed, _bound_names(binding))):
            raise ValueError(
                f"--gin_bindings={binding} changes what the runs are, which no column of the "
                "results would tell: put it into the 'bindings' of a group that has a 'config' of "
                f"its own. Here may stand {OF_THE_TABLE}*, {', '.join(ALLOWED)}"
            )


def _bound_names(binding: str) -> Iterator[str]:
    """The names that a line, or several, bind; those of macros, files and modules as they are."""
    for statement in config_parser.ConfigParser(binding, ParserDelegate()):
        if isinstance(statement, config_parser.BindingStatement):
            yield f"{statement.selector}.{statement.arg_name}"
        else:
            yield ""


def _is_allowed(name: str) -> bool:
    # Gin takes names without their first words: train.threads is train.train.threads.
    return name.startswith(OF_THE_TABLE) or any(f".{each}".endswith(f".{name}") for each in ALLOWED)
