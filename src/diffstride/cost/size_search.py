"""Find whole map sizes that use up a budget, with strides as near as possible to those wanted.

Maps have whole numbers of samples, so the cost of a network moves in steps, and on small maps one
sample is several hundredths of it. The effect of one sample more or less on the cost hardly depends
on the other maps, once the strides of the layers behind keep their maps as they were. So the
effects of single samples are measured one by one, and added up to see which of them fill a gap.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffstride.cost.stride_space import Key, Logs, StrideSpace
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.spectral.axis_plan import CPU, Axis

OutputSizes = dict[Key, int]

AXES = 9  # how many axes take part in changes that are made together
TRIES = 30
IDLE = 1e-6  # logarithm up to which a stride counts as 1
STAY = 2.0  # map sizes stay until other strides are nearer by this factor


class Choice(NamedTuple):
    """Strides, the map sizes and the MACs they lead to, and their distance from those wanted."""

    logs: Logs
    sizes: OutputSizes
    cost: int
    distance: float


class Change(NamedTuple):
    """One map of another size, its effect on the MACs, and how far the strides have to move."""

    sizes: OutputSizes
    effect: float
    distance: float


class SizeSearch:
    """Moves strides to the nearest map sizes at which a network uses up a budget."""

    def __init__(self, space: StrideSpace) -> None:
        self._space = space
        self._keys = {
            name: [(name, i) for i in range(len(layer.strides))]
            for name, layer in space.layers.items()
        }
        # Strides and axes of layers in this step, by input and output sizes.
        self._chosen: dict[tuple[Any, ...], tuple[list[float], list[Axis]]] = {}
        # The sizes at the strides wanted, and those chosen, in the last step.
        self.last: tuple[OutputSizes, OutputSizes] = {}, {}

    def use_up(self, wanted: Logs, least: float, most: float) -> Logs:
        """The strides nearest to ``wanted`` that cost from ``least`` to ``most``.

        If none is near, those of the highest cost below ``least`` that were found.

        Args:
            wanted: strides that cost at most ``most``.
            least, most: limits of the MACs.
        """
        self._chosen.clear()
        start = self._choice(wanted, {})
        if start is None or start.cost >= least:
            return wanted
        every, start = start, start._replace(sizes=_without_idle(start.sizes, wanted))
        # Keep the sizes that were chosen last: maps that flicker disturb the layers behind them.
        again = self._choice(wanted, self.last[1]) if self.last[1] else None
        if again and again.cost <= most and self.last[0] == start.sizes:
            return again.logs
        limits = least, most
        chosen = self._change_several(wanted, start, *limits) or self._grow(wanted, start, *limits)
        chosen = chosen._replace(sizes=_without_idle(chosen.sizes, wanted))
        if chosen.cost < least and every.sizes != start.sizes:
            chosen = self._change_several(wanted, every, *limits) or chosen
        if again and least <= again.cost <= most and again.distance < STAY * chosen.distance:
            chosen = again
        self.last = start.sizes, chosen.sizes
        return chosen.logs

    def _change_several(
        self, wanted: Logs, start: Choice, least: float, most: float
    ) -> Choice | None:
        """Make several maps one sample larger or smaller: the nearest strides within the limits."""
        options = []
        for key, size in start.sizes.items():
            others = [self._choice(wanted, start.sizes | {key: size + by}) for by in (-1, 1)]
            option = [
                Change({key: each.sizes[key]}, each.cost - start.cost, each.distance)
                for each in others
                if each and each.cost != start.cost
            ]
            options += [option] if option else []
        if not options:
            return None
        options.sort(key=lambda option: min(change.distance for change in option))
        gap = least - start.cost, most - start.cost
        for sizes in combinations(options[:AXES], *gap):
            choice = self._choice(wanted, start.sizes | sizes)
            if choice and least <= choice.cost <= most:
                return choice
        return None

    def _grow(self, wanted: Logs, start: Choice, least: float, most: float) -> Choice:
        """Enlarge one map after the other, always the one of most MACs per distance."""
        keys = list(start.sizes)
        while start.cost < least:
            choices = {
                key: self._choice(wanted, start.sizes | {key: start.sizes[key] + 1}) for key in keys
            }
            larger = {key: each for key, each in choices.items() if each and each.cost <= most}
            keys = list(larger)  # what is too much now is too much once other maps are larger
            fitting = [each for each in larger.values() if each.cost > start.cost]
            if not fitting:
                break
            worths = [
                (each.cost - start.cost) / max(each.distance - start.distance, 1e-4)
                for each in fitting
            ]
            start = fitting[worths.index(max(worths))]
        return start

    def _choice(self, wanted: Logs, sizes: OutputSizes) -> Choice | None:
        """The strides nearest to those wanted that lead to these map sizes, where they can.

        None if a map would be empty.
        """

        def choose(
            name: str, logs: list[float], incoming: list[int]
        ) -> tuple[list[float], list[Axis]]:
            # Most choices of a step differ in two layers only.
            key = name, *incoming, *map(sizes.get, self._keys[name])
            if key not in self._chosen:
                self._chosen[key] = self._space.nearest_each(name, logs, incoming, sizes)
            return self._chosen[key]

        try:
            logs, cost, maps = self._space.fit(wanted, choose)
        except EmptyMapError:
            return None
        reached = {
            key: axis.output_size
            for name, keys in self._keys.items()
            for key, axis in zip(keys, maps[name], strict=False)
        }
        moved = (abs(a - b) for name in logs for a, b in zip(logs[name], wanted[name], strict=True))
        return Choice(logs, reached, cost, sum(moved))


def _without_idle(sizes: OutputSizes, wanted: Logs) -> OutputSizes:
    """The sizes without those of layers at strides of 1, which follow the maps that come in.

    Such a layer costs nothing. One sample less, and it would spend the budget on its own products.

    >>> _without_idle({("a", 0): 8, ("b", 0): 4}, {"a": [0.0], "b": [0.7]})
    {('b', 0): 4}
    """
    idle = {name for name, logs in wanted.items() if max(logs) <= IDLE}
    return {key: size for key, size in sizes.items() if key[0] not in idle}


def combinations(
    options: Sequence[Sequence[Change]], least: float, most: float
) -> Iterator[OutputSizes]:
    """Combinations of one change or none of each option, with effects that add up as wanted.

    They are in order of distance, at most `TRIES`.

    Args:
        options: the one or two possible changes of each map; at least one map.
        least, most: limits of the sum of the effects.

    >>> larger, smaller = Change({"a": 9}, 8.0, 0.1), Change({"b": 4}, -3.0, 0.2)
    >>> list(combinations([[larger], [smaller]], 4.0, 8.0))
    [{'a': 9}, {'a': 9, 'b': 4}]
    """
    never = Change({}, inf, inf)
    choices = [[Change({}, 0.0, 0.0), *option, *[never] * (2 - len(option))] for option in options]
    numbers = [[(change.effect, change.distance) for change in choice] for choice in choices]
    parts = torch.tensor(numbers, dtype=torch.float64, device=CPU).movedim(-1, 0)
    half = len(choices) // 2  # sums of halves, then of both: few additions of long vectors
    effect, distance = _outer_sum(_sums(parts[:, :half]), _sums(parts[:, half:]))
    (fitting,) = torch.where((effect >= least) & (effect <= most))
    nearest = distance[fitting].topk(min(TRIES, len(fitting)), largest=False).indices
    for index in fitting[nearest].tolist():
        sizes: OutputSizes = {}
        for choice in reversed(choices):
            index, i = divmod(index, len(choice))
            sizes = choice[i].sizes | sizes
        yield sizes


def _sums(parts: Tensor) -> Tensor:
    """All sums of one number of each part, the last part changing fastest: (2, parts, numbers)."""
    return reduce(_outer_sum, parts.unbind(1), parts.new_zeros(2, 1))


def _outer_sum(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, :, None] + b[:, None]).flatten(1)
