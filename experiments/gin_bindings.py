"""Values that Gin has bound, and the bindings that the command line of the tables may set."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import gin

from diffstride.training.gin_compat import (
    BindingStatement,
    ConfigParser,
    ConfigurableReference,
    ParserDelegate,
    macros_defined,
)
from diffstride.training.gin_errors import suggest_setting

TABLE = "table."
ALLOWED = (
    "train.train.accelerator",
    "train.train.channels_last",
    "train.train.precision",
    "train.train.progress_bar",
    "train.train.threads",
    "data.load_datasets.root",
)


def check_overrides(bindings: Sequence[str]) -> None:
    """Refuse bindings of the command line that would change what the runs train.

    A row names its recipe by ``config`` and has no column for the other settings of the recipe. So
    a changed setting would give other accuracies under the same names.

    Raises:
        ValueError: a binding is neither in `ALLOWED` nor of the table, or is a macro.

    >>> check_overrides(["train.threads = 1", "table.grid.seeds = [0]"])
    >>> check_overrides(["train.num_epochs = 1"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: --gin_bindings=train.num_epochs = 1 changes the training, but no column ...
    >>> check_overrides(["threads = 1"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: --gin_bindings=threads = 1: 'threads' names no setting; did you mean
    'train.train.threads'? Here you can bind table.* and ...
    """
    allowed = f"you can bind {TABLE}* and {', '.join(ALLOWED)}"
    for binding in bindings:
        for name in macros_defined(binding):
            raise ValueError(
                f"--gin_bindings={binding}: {name!r} names no setting{suggest_setting(name)} "
                f"Here {allowed}"
            )
        if not all(map(_is_allowed, _bound_names(binding))):
            raise ValueError(
                f"--gin_bindings={binding} changes the training, but no column of the results "
                "shows it: set it in the 'bindings' of a group with a 'config' of its own. Here "
                f"{allowed}"
            )


def _bound_names(binding: str) -> Iterator[str]:
    """The names that a text binds; an empty name for each include and import."""
    for statement in ConfigParser(binding, ParserDelegate()):
        if isinstance(statement, BindingStatement):
            yield f"{statement.selector}.{statement.arg_name}"
        else:
            yield ""


def _is_allowed(name: str) -> bool:
    # Gin takes names without their first words: train.threads is train.train.threads.
    return name.startswith(TABLE) or any(f".{each}".endswith(f".{name}") for each in ALLOWED)


def is_bound(name: str) -> bool:
    """Whether Gin has a binding for an argument."""
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True


def bound_value(name: str) -> Any:
    """The value that Gin binds to an argument, else its default. Macros are resolved."""
    if not is_bound(name):
        function, _, argument = name.rpartition(".")
        parameter = inspect.signature(gin.get_configurable(function)).parameters.get(argument)
        return None if parameter is None else parameter.default
    value = gin.query_parameter(name)
    while getattr(value, "selector", None) == "gin.macro":
        value = gin.query_parameter(f"{value.scoped_selector}.value")
    return value


def plain_value(name: str) -> Any:
    """The value of an argument, as `bound_value`, where it can stand in a row.

    Raises:
        ValueError: the argument is bound to a function or class.
    """
    value = bound_value(name)
    if isinstance(value, ConfigurableReference):
        raise ValueError(f"{name} is bound to {value!r}: expected a number, or a %MACRO for one")
    return value


def check_unscoped(*names: str) -> None:
    """Refuse references in a Gin scope, because the bindings of a grid have no scope.

    Raises:
        ValueError: an argument is bound to a reference with a scope.
    """
    for name in names:
        reference = bound_value(name)
        if "/" in getattr(reference, "scoped_selector", ""):
            raise ValueError(
                f"{name} is bound to {reference!r}, but the bindings of the grid have no scope and "
                "would not reach it: remove the scope"
            )
