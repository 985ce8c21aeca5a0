"""Groups of runs in a grid: the options of a group, and checks of their values."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from diffstride.resnet import ORDERS
from diffstride.spectral.axis_plan import EDGES
from experiments.values import (
    Rule,
    are_stage_strides,
    check_values,
    is_budget,
    is_fold,
    is_integer,
    is_list,
    is_name,
    is_stride,
    list_of,
    one_of,
)


class Pooling(NamedTuple):
    """A layer: the value that Gin binds, its name in tables, and whether it learns strides.

    ``budgeted`` says whether a budget can hold these strides.
    """

    binding: str
    label: str
    learned: bool = False
    budgeted: bool = False


POOLINGS = {
    "strided": Pooling("None", "strided convolution"),
    "spectral": Pooling("@pooling.FixedSpectralPooling", "spectral pooling"),
    "diffstride": Pooling("@pooling.DiffStride", "DiffStride", learned=True, budgeted=True),
    "dynopool": Pooling("@resizing.DynOPool", "DynOPool", learned=True, budgeted=True),
    "shape adaptor": Pooling(
        "@resizing.ShapeAdaptor", "Shape Adaptor", learned=True, budgeted=True
    ),
    "reference": Pooling("@reference.DiffStride", "the published layer", learned=True),
    "max": Pooling("@pooling.MaxPooling", "max pooling"),
    "blur": Pooling("@pooling.BlurPooling", "blur pooling"),
}
RESERVED = ":;>"  # in the names of tables in pages
COMBINED = ("dataset", "pooling", "edge", "budget", "order", "fold")
NEEDED = ("dataset", "pooling", "strides")
Group = Mapping[str, Any]


def _one_of(values: Sequence[str]) -> Callable[[Any], bool]:
    return list_of(one_of(values))


def _are_strides(value: Any) -> bool:
    return list_of(is_stride)(value) or list_of(are_stage_strides)(value)


OPTIONS = {
    "config": Rule(
        lambda value: is_name(value) and not set(value) & set(RESERVED),
        "a name such as 'cifar10_small', without : ; or >",
    ),
    "dataset": Rule(list_of(is_name), "a name such as 'cifar10', or a list of names"),
    "pooling": Rule(_one_of([*POOLINGS]), f"one of {', '.join(POOLINGS)}, or a list of them"),
    "edge": Rule(_one_of(EDGES), f"one of {', '.join(map(repr, EDGES))}, or a list of them"),
    "budget": Rule(
        list_of(is_budget),
        "None, 'strided', a number above 0 such as 35.05e6, or a list of these",
    ),
    "order": Rule(_one_of(ORDERS), f"one of {', '.join(map(repr, ORDERS))}, or a list of them"),
    "fold": Rule(
        list_of(is_fold),
        "None for the split of the data set, a whole number from 0, or a list of these",
    ),
    "strides": Rule(
        _are_strides,
        "a list of strides of at least 1 such as [1, 1, 2, 2, 2], or a list of such lists. Strides "
        "that differ between height and width need the list of lists: [[1, 1, (2.4, 2.5), 2, 2]]",
    ),
    "seeds": Rule(list_of(is_integer), "a list of whole numbers such as [0, 1, 2]"),
    "bindings": Rule(
        lambda value: value in ([], ()) or list_of(is_name)(value),
        "a list of Gin bindings such as ['train.stride_learning_rate = 0.01']",
    ),
}


def complete_group(group: Group, defaults: Group) -> dict[str, Any]:
    """Check a group and add the defaults; ``strides`` and each of `COMBINED` become lists.

    Raises:
        ValueError: a key is unknown or missing, or has an invalid value.
    """
    _check_keys(group)
    full = {"budget": None, "fold": None, "bindings": [], **defaults, **group}
    listed = {key: _as_list(value) if key in COMBINED else value for key, value in full.items()}
    check_values(listed, OPTIONS, full)
    if full["bindings"] and "config" not in group:
        raise ValueError(
            "a group with bindings needs a 'config' of its own: its rows would pass for those of "
            f"{defaults.get('config')!r} without the bindings"
        )
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
    return list(value) if is_list(value) else [value]


def _stride_lists(strides: Sequence[Any]) -> list[tuple[Any, ...]]:
    lists = strides if all(map(is_list, strides)) else [strides]
    return [tuple(tuple(s) if is_list(s) else s for s in each) for each in lists]


def format_stride(stride: Any) -> str:
    """A stride as text; strides of two axes as height x width.

    >>> format_stride(2.0), format_stride((2.46, 2.5))
    ('2', '2.46x2.5')
    """
    if is_list(stride):
        return "x".join(map(format_stride, stride))
    return str(stride).removesuffix(".0")
