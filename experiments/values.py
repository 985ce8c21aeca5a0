"""Tests of single values, of the groups of a grid and of the rows of results."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

from diffstride.training.network import STRIDED


class Rule(NamedTuple):
    """The values that are valid: a test, and a description for errors."""

    is_valid: Callable[[Any], bool]
    expected: str


def check_values(values: Any, rules: dict[str, Rule], given: Any = None) -> None:
    """Test the values of a dictionary by the rules for its keys.

    Args:
        values: the dictionary.
        rules: a rule for each key.
        given: the values to quote in an error, if they are not ``values``.

    Raises:
        ValueError: a value is not valid; names the key, the value and what was expected.

    >>> check_values({"seed": 0.5}, {"seed": Rule(is_integer, "a whole number")})
    Traceback (most recent call last):
    ...
    ValueError: 'seed' must be a whole number, but got 0.5
    """
    for key, rule in rules.items():
        if not rule.is_valid(values[key]):
            shown = (given or values)[key]
            raise ValueError(f"{key!r} must be {rule.expected}, but got {shown!r}")


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return is_integer(value) and value >= 1


def is_fold(value: Any) -> bool:
    return value is None or (is_integer(value) and value >= 0)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_budget(value: Any) -> bool:
    return value is None or value == STRIDED or (is_number(value) and value > 0)


def is_stride(value: Any) -> bool:
    return is_number(value) and value >= 1


def list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test for lists of at least one valid value."""
    return lambda value: is_list(value) and len(value) > 0 and all(map(is_valid, value))


def one_of(values: Sequence[Any]) -> Callable[[Any], bool]:
    """A test for one of these values."""
    return lambda value: value in list(values)


def are_stage_strides(value: Any) -> bool:
    """Whether it is a list of strides, each a number or one number for each axis."""
    return list_of(lambda stride: is_stride(stride) or list_of(is_stride)(stride))(value)
