"""A network in which one map has a few samples more or less: its cost, and how far strides move."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffstride.cost.stride_space import Key, Logs, OutputSizes, StrideSpace
from diffstride.spectral.axis_plan import Axis


class Choice(NamedTuple):
    """Strides, the maps and the MACs they lead to, and their distance from those wanted.

    ``sizes`` are those of the maps whose sizes are chosen.
    """

    logs: Logs
    maps: Mapping[str, Sequence[Axis]]
    sizes: OutputSizes
    cost: int
    distance: float


class Change(NamedTuple):
    """One map of another size, its effect on the MACs, and how far the strides have to move."""

    sizes: OutputSizes
    effect: float
    distance: float


class SingleChanges:
    """What one map of another size changes in a network.

    The maps behind it stay as they are, as far as strides within their limits can keep them. So
    only the layers that pool changed maps have to be looked at: all other costs are linear in the
    sizes, as one axis of a map enters a product once.

    Args:
        space: the strides of the network.
        wanted: the strides wanted, from which distances are measured.
        start: what is changed.
    """

    def __init__(self, space: StrideSpace, wanted: Logs, start: Choice) -> None:
        self._space, self._wanted, self._start = space, wanted, start
        self._slopes = space.size_slopes(start.logs)
        self._costs = {name: space.cost.pooling_cost(name, start.maps[name]) for name in wanted}
        self._distances = {name: distance(start.logs[name], wanted[name]) for name in wanted}

    def least_move(self, key: Key) -> float:
        """How far its own stride moves at least, if the map has one sample more or less."""
        (name, i), size = key, self._start.sizes[key]
        at, incoming = self._wanted[name][i], self._start.maps[name][i].size
        ends = [self._space.nearest(key, at, incoming, size + by) for by in (-1, 1)]
        return min(abs(end - at) for end in ends)

    def change(self, key: Key, by: int) -> Change | None:
        """The map of this stride with so many samples more; None if a map would be empty."""
        space, maps, effect, moved = self._space, self._start.maps, 0.0, 0.0
        sizes = self._start.sizes | {key: self._start.sizes[key] + by}
        grown: dict[Key | None, int] = {}  # the maps that change, by how many samples
        for name, firsts in space.layers_behind[key[0]]:
            more = [grown.get(first, 0) for first in firsts]
            if name != key[0] and not any(more):
                continue
            incoming = [axis.size + step for axis, step in zip(maps[name], more, strict=True)]
            if min(incoming) < 1:
                return None
            logs, axes = space.nearest_each(name, self._wanted[name], incoming, sizes)
            for i, (axis, before) in enumerate(zip(axes, maps[name], strict=True)):
                if axis.output_size != before.output_size:
                    grown[name, i] = axis.output_size - before.output_size
                    effect += self._slopes[name, i] * grown[name, i]
            effect += space.cost.pooling_cost(name, axes) - self._costs[name]
            moved += distance(logs, self._wanted[name]) - self._distances[name]
        return Change({key: self._start.sizes[key] + grown.get(key, 0)}, effect, moved)


def distance(logs: Sequence[float], wanted: Sequence[float]) -> float:
    """How far strides are from those wanted, in logarithms."""
    return sum([abs(a - b) for a, b in zip(logs, wanted, strict=True)])
