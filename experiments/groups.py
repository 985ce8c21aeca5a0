"""Groups of runs in a grid: the options of a group, and checks of their values."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from diffstride.resnet import ORDERS
from diffstride.spectral.axis_plan import EDGES
from diffstride.training.network import STRIDED


class Pooling(NamedTuple):
    """A layer: the value that Gin binds, its name in tables, and whether it learns strides."""

    binding: str
    label: str
    learned: bool = False


POOLINGS = {
    "strided": Pooling("None", "strided convolution"),
    "spectral": Pooling("@pooling.FixedSpectralPooling", "spectral pooling"),
    "diffstride": Pooling("@pooling.DiffStride", "DiffStride", learned=True),
    "reference": Pooling("@reference.DiffStride", "the published layer", learned=True),
    "max": Pooling("@pooling.MaxPooling", "max pooling"),
    "blur": Pooling("@pooling.BlurPooling", "blur pooling"),
}
RESERVED = ":;>"  # in the names of tables in pages
COMBINED = ("dataset", "pooling", "edge", "budget", "order")
NEEDED = ("dataset", "pooling", "strides")
Group = Mapping[str, Any]


class Option(NamedTuple):
    """The values that an option of a group may have: a test, and a description for errors."""

    is_valid: Callable[[Any], bool]
    expected: str


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_budget(value: Any) -> bool:
    return value is None or value == STRIDED or (_is_number(value) and value > 0)


def _is_stride(value: Any) -> bool:
    return _is_number(value) and value >= 1


def _list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test for lists of at least one valid value."""
    return lambda value: _is_list(value) and len(value) > 0 and all(map(is_valid, value))


def _one_of(values: Sequence[str]) -> Callable[[Any], bool]:
    return _list_of(lambda value: value in list(values))


def _are_strides(value: Any) -> bool:
    lists = _list_of(_list_of(lambda stride: _is_stride(stride) or _list_of(_is_stride)(stride)))
    return _list_of(_is_stride)(value) or lists(value)


OPTIONS = {
    "config": Option(
        lambda value: _is_name(value) and not set(value) & set(RESERVED),
        "a name such as 'cifar10_small', without : ; or >",
    ),
    "dataset": Option(_list_of(_is_name), "a name such as 'cifar10', or a list of names"),
    "pooling": Option(_one_of([*POOLINGS]), f"one of {', '.join(POOLINGS)}, or a list of them"),
    "edge": Option(_one_of(EDGES), f"one of {', '.join(map(repr, EDGES))}, or a list of them"),
    "budget": Option(
        _list_of(_is_budget),
        "None, 'strided', a number above 0 such as 35.05e6, or a list of these",
    ),
    "order": Option(_one_of(ORDERS), f"one of {', '.join(map(repr, ORDERS))}, or a list of them"),
    "strides": Option(
        _are_strides,
        "a list of strides of at least 1 such as [1, 1, 2, 2, 2], or a list of such lists. Strides "
        "that differ between height and width need the list of lists: [[1, 1, (2.4, 2.5), 2, 2]]",
    ),
    "seeds": Option(_list_of(_is_integer), "a list of whole numbers such as [0, 1, 2]"),
    "bindings": Option(
        lambda value: value in ([], ()) or _list_of(_is_name)(value),
        "a list of Gin bindings such as ['train.stride_learning_rate = 0.01']",
    ),
}


def complete_group(group: Group, defaults: Group) -> dict[str, Any]:
    """Check a group and add the defaults; ``strides`` and each of `COMBINED` become lists.

    Raises:
        ValueError: a key is unknown or missing, or has an invalid value.
    """
    _check_keys(group)
    full = {"budget": None, "bindings": [], **defaults, **group}
    listed = {key: _as_list(value) if key in COMBINED else value for key, value in full.items()}
    for key, option in OPTIONS.items():
        if not option.is_valid(listed[key]):
            raise ValueError(f"{key!r} must be {option.expected}, but got {full[key]!r}")
    if "edge" in group and "reference" in listed["pooling"] and "passband" not in listed["edge"]:
        raise ValueError(
            f"'edge' is {group['edge']!r}, but the pooling 'reference' needs 'passband'"
        )
    return listed | {"strides": _stride_lists(listed["strides"])}


def _check_keys(group: Group) -> None:
    for key in group:
        if key not in OPTIONS:
            close = difflib.get_close_matches(str(key), OPTIONS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown key {key!r}: expected one of {', '.join(OPTIONS)}{hint}")
    for key in NEEDED:
        if group.get(key) is None:
            raise ValueError(f"the key {key!r} is missing")


def _as_list(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _stride_lists(strides: Sequence[Any]) -> list[tuple[Any, ...]]:
    lists = strides if all(map(_is_list, strides)) else [strides]
    return [tuple(tuple(s) if _is_list(s) else s for s in each) for each in lists]


def format_stride(stride: Any) -> str:
    """A stride as text; strides of two axes as height x width.

    >>> format_stride(2.0), format_stride((2.46, 2.5))
    ('2', '2.46x2.5')
    """
    if _is_list(stride):
        return "x".join(map(format_stride, stride))
    return str(stride).removesuffix(".0")
