"""The groups that a grid is made of: what each key may hold, checked before any run is made."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from diffstride.resnet import ORDERS
from diffstride.spectral.axis_plan import EDGES
from diffstride.training.network import STRIDED

POOLINGS = {
    "strided": "None",
    "spectral": "@pooling.FixedSpectralPooling",
    "diffstride": "@pooling.DiffStride",
    "reference": "@reference.DiffStride",
    "max": "@pooling.MaxPooling",
    "blur": "@pooling.BlurPooling",
}
LEARNED = ("diffstride", "reference")
MARKS = ":;>"  # of the places for tables, in pages
COMBINED = ("dataset", "pooling", "edge", "budget", "order")
NEEDED_KEYS = ("dataset", "pooling", "strides")
EXPECTED = {
    "config": "a name such as 'cifar10_small', without : ; or >",
    "dataset": "a name such as 'cifar10', or a list of names",
    "pooling": f"one of {', '.join(POOLINGS)}, or a list of them",
    "edge": f"one of {', '.join(map(repr, EDGES))}, or a list of them",
    "budget": "None, 'strided', a number above 0 such as 35.05e6, or a list of these",
    "order": f"one of {', '.join(map(repr, ORDERS))}, or a list of them",
    "strides": (
        "a list of strides of at least 1 such as [1, 1, 2, 2, 2], or a list of such lists, which "
        "strides of two axes need: [[1, 1, (2.4, 2.5), 2, 2]]"
    ),
    "seeds": "a list of whole numbers such as [0, 1, 2]",
    "bindings": "a list of Gin bindings such as ['train.stride_learning_rate = 0.01']",
}
Group = Mapping[str, Any]


def stride_text(stride: Any) -> str:
    """A stride in the words of a table, those of two axes as height x width.

    >>> stride_text(2.0), stride_text((2.46, 2.5))
    ('2', '2.46x2.5')
    """
    if isinstance(stride, (list, tuple)):
        return "x".join(map(stride_text, stride))
    return str(stride).removesuffix(".0")


def read_group(group: Group, defaults: Group) -> dict[str, Any]:
    """All that a group says, each of `COMBINED` and ``strides`` as a list.

    Args:
        group: as it stands in a Gin file.
        defaults: for keys that it does not have.

    Raises:
        ValueError: a key is unknown or missing, or its value none that it may have.
    """
    for key in group:
        if key not in EXPECTED:
            close = difflib.get_close_matches(str(key), EXPECTED, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown key {key!r}, known are {', '.join(EXPECTED)}{meant}")
    for key in NEEDED_KEYS:
        if group.get(key) is None:
            raise ValueError(f"no {key!r} is given")
    full = {"budget": None, "bindings": [], **defaults, **group}
    read = {key: _listed(value) if key in COMBINED else value for key, value in full.items()}
    for key, is_right in CHECKS.items():
        if not is_right(read[key]):
            raise ValueError(f"{key!r} must be {EXPECTED[key]}, but got {full[key]!r}")
    if "edge" in group and "reference" in read["pooling"] and "passband" not in read["edge"]:
        raise ValueError(f"'edge' is {group['edge']!r}, but 'reference' has the passband alone")
    return read | {"strides": _stride_lists(read["strides"])}


def _listed(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _stride_lists(strides: Sequence[Any]) -> list[tuple[Any, ...]]:
    lists = strides if all(map(_is_list, strides)) else [strides]
    return [tuple(tuple(s) if _is_list(s) else s for s in each) for each in lists]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_budget(value: Any) -> bool:
    return value is None or value == STRIDED or (_is_number(value) and value > 0)


def _is_stride(value: Any) -> bool:
    return _is_number(value) and value >= 1


def _are(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a list of at least one such thing."""
    return lambda value: _is_list(value) and len(value) > 0 and all(map(is_right, value))


def _are_strides(value: Any) -> bool:
    of_two_axes = _are(lambda each: _is_stride(each) or _are(_is_stride)(each))
    return _are(_is_stride)(value) or _are(of_two_axes)(value)


CHECKS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: _is_name(value) and not set(value) & set(MARKS),
    "dataset": _are(_is_name),
    "pooling": _are(lambda value: value in list(POOLINGS)),
    "edge": _are(lambda value: value in EDGES),
    "budget": _are(_is_budget),
    "order": _are(lambda value: value in ORDERS),
    "strides": _are_strides,
    "seeds": _are(lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "bindings": lambda value: value in ([], ()) or _are(_is_name)(value),
}
