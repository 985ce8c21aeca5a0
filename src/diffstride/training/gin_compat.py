"""What the project uses of Gin beyond its public functions: search path, parser, values in use.

Tried with gin-config 0.5.0, the only release from 0.5 on so far.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin.config
from gin.config import ConfigurableReference, ParserDelegate
from gin.config_parser import BindingStatement, ConfigParser, ImportStatement

__all__ = [
    "BindingStatement",
    "ConfigParser",
    "ConfigurableReference",
    "ImportStatement",
    "ParserDelegate",
    "bound_values",
    "macros_defined",
    "macros_used",
    "refuse_overruled_bindings",
    "search_path",
]

MACRO = "/gin.macro"  # after the name of a macro, where Gin refers to it


@contextmanager
def search_path(folders: Sequence[Path]) -> Iterator[None]:
    """Have Gin look for included files in these folders only, without a log line per miss."""
    prefixes = gin.config._LOCATION_PREFIXES  # the public function only adds to this list
    before = list(prefixes)
    # Absolute paths: Gin takes the folder of a relative one for a Python package.
    prefixes[:] = [str(folder.resolve()) for folder in folders]
    logging.getLogger().addFilter(_is_not_about_missing_path)
    try:
        yield
    finally:
        prefixes[:] = before
        logging.getLogger().removeFilter(_is_not_about_missing_path)


def _is_not_about_missing_path(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Path not found")


def bound_values() -> Iterator[tuple[str, str, Any]]:
    """Name, argument and value of all bindings whose value is known before anything is called.

    Macros are resolved. A reference to a function or class is that function or class, called in the
    scope of the reference.
    """
    for (_, name), bound in gin.config._CONFIG.items():
        for argument, value in bound.items():
            try:
                known = _known(value)
            except (LookupError, ValueError):  # also of a macro without a value, which Gin tells
                continue
            yield name, argument, known


def _known(value: Any) -> Any:
    """A bound value; raises `LookupError` if it depends on a call."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_known, value))
    if not isinstance(value, ConfigurableReference):
        return value
    if value.selector == "gin.macro":
        return _known(gin.query_parameter(f"{value.scoped_selector}.value"))
    if value.evaluate:
        raise LookupError(value)
    wrapper = gin.config._REGISTRY[value.selector].wrapper
    return value.scoped_configurable_fn if value.scopes else wrapper


def macros_defined(text: str) -> Iterator[str]:
    """The names of the macros that a configuration defines, without those of its includes."""
    for each in ConfigParser(text, ParserDelegate()):
        if isinstance(each, BindingStatement) and not each.arg_name:
            yield f"{each.scope}/{each.selector}".lstrip("/")


def macros_used() -> set[str]:
    """The names of the macros that bound values refer to."""
    found = [each.scoped_selector for each in gin.config.iterate_references(gin.config._CONFIG)]
    return {each.removesuffix(MACRO) for each in found if each.endswith(MACRO)}


def refuse_overruled_bindings(*but: str) -> None:
    """Refuse bindings of functions that were called, all of whose callers gave other values.

    Args:
        but: functions whose callers may overrule bindings.

    Raises:
        ValueError: there is such a binding, which had no effect.
    """
    used = gin.config._OPERATIVE_CONFIG  # the values of all calls, without those of the callers
    for (scope, name), bound in gin.config._CONFIG.items():
        inner = f"{scope}/" * bool(scope)  # a binding holds in scopes inside of its own
        calls = [
            values
            for (inside, of), values in used.items()
            if of == name and f"{inside}/".startswith(inner)
        ]
        for argument in bound if calls and name not in but else ():
            if not any(argument in values for values in calls):
                raise ValueError(_no_effect(name, argument, used))


def _no_effect(name: str, argument: str, used: dict[tuple[str, str], dict[str, Any]]) -> str:
    others = sorted({f"{of}.{argument}" for (_, of), values in used.items() if argument in values})
    instead = f", and bind {' or '.join(others)} instead" if others else ""
    return (
        f"{name}.{argument} is bound, but has no effect, as what calls {name} sets it: remove the "
        f"binding{instead}"
    )
