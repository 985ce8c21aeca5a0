"""Find whole map sizes that use up a budget, with strides as near as possible to those wanted.

Maps have whole numbers of samples, so the cost of a network moves in steps, and on small maps one
sample is several hundredths of it. The effect of one sample more or less on the cost hardly depends
on the other maps, once the strides of the layers behind keep their maps as they were. So the
effects of single samples are measured one by one, and added up to see which of them fill a gap.
"""

from collections import ChainMap
from collections.abc import Iterator, Sequence
from functools import partial
from math import log
from typing import NamedTuple

import torch

from diffstride.cost.stride_space import BEHIND, Logs, StrideSpace, as_stored, threshold
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.spectral.axis_plan import CPU

OutputSizes = dict[tuple[str, int], int]  # by layer and axis, of a shared stride the first

AXES = 9  # how many axes take part in changes that are made together
TRIES = 30
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
        # The sizes at the strides wanted, and those chosen, in the last step.
        self.last: tuple[OutputSizes, OutputSizes] = {}, {}

    def use_up(self, wanted: Logs, least: float, most: float) -> Logs:
        """The strides nearest to ``wanted`` that cost from ``least`` to ``most``.

        If none is near, those of the highest cost below ``least`` that were found.

        Args:
            wanted: strides that cost at most ``most``.
            least, most: limits of the MACs.
        """
        start = self._choice(wanted, {})
        if start is None or start.cost >= least:
            return wanted
        # Keep the sizes that were chosen last: maps that flicker disturb the layers behind them.
        again = self._choice(wanted, self.last[1]) if self.last[1] else None
        if again and again.cost <= most and self.last[0] == start.sizes:
            return again.logs
        limits = least, most
        chosen = self._change_several(wanted, start, *limits) or self._grow(wanted, start, *limits)
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
        while start.cost < least:
            larger = [
                self._choice(wanted, start.sizes | {key: size + 1})
                for key, size in start.sizes.items()
            ]

            fitting = [each for each in larger if each and start.cost < each.cost <= most]
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
        logs: Logs = {}

        def fit(name: str, incoming: Sequence[int]) -> list[float]:
            if name not in logs:  # a layer may be called again, at another resolution
                logs[name] = [
                    self._nearest(name, value, size, sizes.get((name, i)))
                    for i, (value, size) in enumerate(zip(wanted[name], incoming, strict=False))
                ]
            return as_stored(logs[name])

        try:
            maps = self._space.cost.maps({name: partial(fit, name) for name in wanted})
        except EmptyMapError:
            return None
        reached = {
            (name, i): maps[name][i].output_size
            for name, values in wanted.items()
            for i in range(len(values))
        }
        moved = (abs(a - b) for name in logs for a, b in zip(logs[name], wanted[name], strict=True))
        return Choice(logs, reached, self._space.value(logs), sum(moved))

    def _nearest(self, name: str, value: float, incoming: int, size: int | None) -> float:
        """The logarithm nearest to ``value`` of a stride that makes ``size`` of ``incoming``."""
        layer, (low, high) = self._space.layers[name], self._space.limits(name)

        def size_at(at: float) -> int:
            (stride,) = as_stored([at])
            return layer.plan_axis(incoming, stride).output_size

        size = size_at(value) if size is None else size
        if size_at(value) > size:
            high = max(value, min(high, log(2 * incoming)))
            return threshold(lambda at: size_at(at) <= size, value, high)
        if size_at(value) < size:
            return max(low, threshold(lambda at: size_at(at) < size, low, value) - BEHIND)
        return value


def combinations(
    options: Sequence[Sequence[Change]], least: float, most: float
) -> Iterator[OutputSizes]:
    """Combinations of one change or none of each option, with effects that add up as wanted.

    They are in order of distance.

    Args:
        options: the possible changes of each map.
        least, most: limits of the sum of the effects.

    >>> larger, smaller = Change({"a": 9}, 8.0, 0.1), Change({"b": 4}, -3.0, 0.2)
    >>> list(combinations([[larger], [smaller]], 4.0, 8.0))
    [{'a': 9}, {'a': 9, 'b': 4}]
    """
    choices = [[Change({}, 0.0, 0.0), *option] for option in options]
    rows = torch.cartesian_prod(*(torch.arange(len(choice), device=CPU) for choice in choices))
    rows = rows.view(-1, len(choices))
    effect, distance = torch.zeros(2, len(rows), dtype=torch.float32, device=CPU)
    for choice, column in zip(choices, rows.T, strict=True):
        numbers = [(change.effect, change.distance) for change in choice]
        effects, distances = torch.tensor(numbers, dtype=torch.float32, device=CPU).T
        effect += effects[column]
        distance += distances[column]
    (fitting,) = torch.where((effect >= least) & (effect <= most))
    for row in rows[fitting[distance[fitting].argsort()][:TRIES]].tolist():
        changes = [choice[i].sizes for choice, i in zip(choices, row, strict=True)]
        yield dict(ChainMap(*reversed(changes)))
