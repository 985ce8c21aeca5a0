"""Checks of arguments against the annotations of the function that takes them."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, Literal, Union

import numpy as np

SHOWN = 200  # characters of a value in an error
NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "None",
    type: "a class",
    collections.abc.Callable: "a function or class",
    collections.abc.Sequence: "a list",
    collections.abc.Iterable: "a list",
    collections.abc.Mapping: "a dictionary",
    list: "a list",
    dict: "a dictionary",
}


def argument_kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument of a function or of a class's constructor.

    Where there is none, it is the type of the default; a number may then be of any kind. `Any`
    stands for arguments without both.
    """
    target = function.__init__ if isinstance(function, type) else function
    hints: dict[str, Any] = {}
    with suppress(Exception):  # text that names what the module has not imported
        hints = typing.get_type_hints(inspect.unwrap(target))
    parameters = inspect.signature(target).parameters
    return {name: hints.get(name, _kind_of(each)) for name, each in parameters.items()}


def _kind_of(parameter: inspect.Parameter) -> Any:
    kind = type(parameter.default)
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        return parameter.annotation
    return {bool: bool, int: float, float: float, str: str}.get(kind, Any)


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a type that the annotations of ``function`` exclude.

    Raises:
        ValueError: an argument has another type; names it, its value and what was expected.

    >>> def scale(width: int, names: list[str] | None = None): ...
    >>> check_arguments(scale, {"width": np.int64(2), "names": ["a"]})
    >>> check_arguments(scale, {"width": 2.5})
    Traceback (most recent call last):
    ...
    ValueError: width must be a whole number, but got 2.5
    """
    kinds = argument_kinds(function)
    for name, value in arguments.items():
        check_argument(name, value, kinds[name])


def check_at_least(least: float, **values: float | None) -> None:
    """Refuse numbers below ``least``, by name; None is no number.

    >>> check_at_least(1, batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size must be 1 or more, but got 0
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be {least} or more, but got {value}")


def check_argument(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that an annotation excludes; see `check_arguments`."""
    if not fits(value, kind):
        raise ValueError(f"{name} must be {describe(kind)}, but got {shorten(value)}")


def shorten(value: Any) -> str:
    """The text of a value, cut if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def fits(value: Any, kind: Any) -> bool:
    """Whether an annotation admits a value; a list stands for a tuple, and NumPy's numbers fit.

    >>> fits(1, float), fits(True, float), fits([0, 0.5], tuple[float, float])
    (True, False, True)
    """
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin in (bool, int, float):
        numbers = {bool: (bool, np.bool_), int: Integral, float: Real}[origin]
        return isinstance(value, numbers) and (origin is bool or not isinstance(value, bool))
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return _fits_list(value, origin, inner)
    return isinstance(value, origin) if isinstance(origin, type) else kind is not None or not value


def _fits_list(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, collections.abc.Iterable):
        return False
    if not isinstance(value, (list, tuple)):
        return True  # its elements may be taken only once
    if origin is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return not inner or all(fits(each, inner[0]) for each in value)


def describe(kind: Any) -> str:
    """An annotation in words.

    >>> describe(int | None), describe(tuple[float, float])
    ('a whole number or None', '2 values (a number, a number)')
    """
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe, inner)))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and inner and inner[-1] is not ...:
        return f"{len(inner)} values ({', '.join(map(describe, inner))})"
    name = NAMES.get(origin) or f"a {getattr(origin, '__name__', origin)}"
    return f"{name} of which each is {describe(inner[0])}" if name == "a list" and inner else name
