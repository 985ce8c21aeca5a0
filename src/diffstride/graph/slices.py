"""Slices of tensors by the size of a map, as of the positions that a network stores for a sequence.

The positions are as many as the longest sequence has: ``x + positions[:, :x.shape[1]]``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class AxisSlice(NamedTuple):
    """A slice along one axis of a tensor, and which part of an index it is.

    >>> AxisSlice(0, 0, -5, None, None).asked(40), AxisSlice(0, 0, 10, 30, None).asked(25)
    (5, 20)
    >>> AxisSlice(0, 0, -5, -1, None).asked(40), AxisSlice(0, 0, 3, -1, None).asked(40)
    (4, 36)
    """

    part: int
    axis: int
    start: Any
    stop: Any
    step: Any

    @property
    def is_plain(self) -> bool:
        """Whether its ends are numbers, and it leaves out no sample between them."""
        ends = (end is None or isinstance(end, int) for end in (self.start, self.stop))
        return all(ends) and self.step in (None, 1)

    def asked(self, size: int) -> int:
        """How many samples it asks for, of an axis that may have fewer."""
        start, stop = self.start or 0, size if self.stop is None else self.stop
        if start < 0 and self.stop is None:
            return -start
        return (stop + size * (stop < 0)) - (start + size * (start < 0))

    def fits(self, size: int) -> bool:
        """Whether an axis of this size has all samples that it asks for."""
        return max(self.asked(size), self.stop or 0) <= size


def parts_of(index: Any, num_dims: int) -> list[Any]:
    """The parts of an index, with whole axes in place of an ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    for at, part in enumerate(parts):
        if part is ...:
            indexed = sum(each is not None for each in parts) - 1
            parts[at : at + 1] = [slice(None)] * (num_dims - indexed)
            break
    return parts


def axis_slices(index: Any, num_dims: int) -> Iterator[AxisSlice]:
    """The slices of an index up to its first tensor; their ends may be nodes of a graph.

    >>> list(axis_slices((0, ..., slice(2, 5)), 3))[-1]
    AxisSlice(part=2, axis=2, start=2, stop=5, step=None)
    """
    axis = 0
    for at, part in enumerate(parts_of(index, num_dims)):
        if isinstance(part, Sequence | Tensor | bool):
            return  # it may stand for several axes, or move them
        if isinstance(part, slice):
            yield AxisSlice(at, axis, part.start, part.stop, part.step)
        axis += part is not None


def with_all_samples(stored: Tensor, index: Any) -> tuple[Tensor, Any]:
    """A tensor like a stored one, and an index of it, that have all samples asked for."""
    shape, parts = list(stored.shape), parts_of(index, stored.dim())
    for each in axis_slices(index, stored.dim()):
        parts[each.part] = slice(each.asked(shape[each.axis]))
        shape[each.axis] = max(shape[each.axis], each.asked(shape[each.axis]))
    return stored.new_empty(shape), tuple(parts)
