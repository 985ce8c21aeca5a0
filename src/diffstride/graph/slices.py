"""Slices of tensors by the size of a map, as of the positions that a network stores for a sequence.

The positions are as many as the longest sequence has: ``x + positions[:, :x.shape[1]]``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class AxisSlice(NamedTuple):
    """A slice along one axis of a tensor, of which an index may have several."""

    axis: int
    start: Any
    stop: Any


def axis_slices(index: Any, num_dims: int) -> Iterator[AxisSlice]:
    """The slices of an index up to its first tensor; their ends may be nodes of a graph.

    >>> list(axis_slices((0, ..., slice(2, 5)), 3))
    [AxisSlice(axis=1, start=None, stop=None), AxisSlice(axis=2, start=2, stop=5)]
    """
    parts: list[Any] = list(index) if isinstance(index, tuple) else [index]
    for at, part in enumerate(parts):
        if part is ...:
            indexed = sum(each is not None for each in parts) - 1
            parts[at : at + 1] = [slice(None)] * (num_dims - indexed)
            break
    axis = 0
    for part in parts:
        if isinstance(part, Sequence | Tensor | bool):
            return  # it may stand for several axes, or move them
        if isinstance(part, slice):
            yield AxisSlice(axis, part.start, part.stop)
        axis += part is not None


def long_enough(stored: Tensor, index: Any) -> Tensor:
    """A tensor of the shape of a stored one, along which a slice is as long as it asks for."""
    shape = list(stored.shape)
    for each in axis_slices(index, stored.dim()):
        if isinstance(each.stop, int):
            shape[each.axis] = max(shape[each.axis], each.stop)
    return stored if shape == [*stored.shape] else stored.new_empty(shape)
