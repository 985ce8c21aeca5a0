"""Whole map sizes that spend a budget, with strides as near as can be to those asked for.

Maps have whole numbers of samples, so the cost of a network moves in steps, and on small maps one
sample is several hundredths of it. What a change by one sample does to the cost hardly depends on
the other maps, once the strides of the layers behind it keep their own maps as they were. So
changes can be measured one by one and added up, to see which of them together fill a gap.
"""

from array import array
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import exp, inf, log
from typing import Any, NamedTuple

import torch

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.graph.minimum_sizes import VanishedError
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import CPU

Logs = dict[str, list[float]]  # logarithms of strides, by layer
MapSizes = dict[tuple[str, int], int]  # by layer and axis, of a shared stride the first

AXES = 9  # whose maps are considered for changes that are made together
TRIES = 30
STAY = 2.0  # map sizes are kept until others are nearer by this factor


class Choice(NamedTuple):
    """Strides, the sizes of the maps they lead to, what they cost, how far they are from others."""

    logs: Logs
    sizes: MapSizes
    cost: int
    distance: float


class Change(NamedTuple):
    """One map of another size: what it does to the cost, and how far the strides have to move."""

    sizes: MapSizes
    effect: float
    distance: float


class Spending:
    """Moves the strides of some layers such that a network costs what it may."""

    def __init__(self, cost: MultiplyAdds, layers: Mapping[str, DiffStride]) -> None:
        self._cost, self._layers = cost, layers
        self._order = [name for name in cost.order if name in layers]
        self._last: tuple[MapSizes, MapSizes] = {}, {}

    def value(self, logs: Logs) -> int:
        """The multiply-adds at these strides, or at `runnable` ones where a map vanishes."""
        try:
            return self._at(logs)
        except VanishedError:
            return self._at(self.runnable(logs))

    def _at(self, logs: Logs) -> int:
        return self._cost.value({name: as_stored(values) for name, values in logs.items()})

    @property
    def may_vanish(self) -> bool:
        """Whether there are strides at which a map is left without a sample."""
        return self._cost.may_vanish

    def limits(self, name: str) -> tuple[float, float]:
        """The logarithms of a layer's limits."""
        layer = self._layers[name]
        return log(layer.lower_limit_stride or 1.0), log(layer.upper_limit_stride or inf)

    def runnable(self, logs: Logs) -> Logs:
        """The nearest smaller strides at which no map vanishes, the first layers' as asked for.

        Layers further on get what those before them leave, since early strides save most.
        """
        if not self.may_vanish or self._runs(logs):
            return logs
        found = {name: [self.limits(name)[0]] * len(values) for name, values in logs.items()}
        for name in self._order:
            for axis, value in enumerate(logs[name]):
                self._raise(found, name, axis, value)
        return found

    def _raise(self, found: Logs, name: str, axis: int, value: float) -> None:
        """Raise a stride to a value, or as far as the network runs."""
        low = found[name][axis]

        def fails(at: float) -> bool:
            found[name][axis] = at
            return not self._runs(found)

        if fails(value):
            found[name][axis] = max(low, threshold(fails, low, value) - 2e-6)

    def _runs(self, logs: Logs) -> bool:
        try:
            self._cost.maps({name: as_stored(values) for name, values in logs.items()})
        except VanishedError:
            return False
        return True

    def spend(self, wanted: Logs, least: float, most: float) -> Logs:
        """The nearest strides that cost ``least`` to ``most``; ``wanted`` may cost less.

        If there are none within reach: those that cost the most below ``least`` that was found.
        """
        start = self._choice(wanted, {})
        if start is None or start.cost >= least:
            return wanted
        # Stay with what was chosen, or maps would flicker, and whatever is behind them with them.
        again = self._choice(wanted, self._last[1]) if self._last[1] else None
        if again and again.cost <= most and self._last[0] == start.sizes:
            return again.logs
        chosen = self._changed(wanted, start, least, most) or self._grown(
            wanted, start, least, most
        )
        if again and least <= again.cost <= most and again.distance < STAY * chosen.distance:
            chosen = again
        self._last = start.sizes, chosen.sizes
        return chosen.logs

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = state["last"]

    def _changed(self, wanted: Logs, start: Choice, least: float, most: float) -> Choice | None:
        """Several maps larger or smaller by a sample, the nearest that do it."""
        options = []
        for key, size in start.sizes.items():
            others = [self._choice(wanted, start.sizes | {key: size + by}) for by in (-1, 1)]
            options.append(
                [
                    Change({key: each.sizes[key]}, each.cost - start.cost, each.distance)
                    for each in others
                    if each and each.cost != start.cost
                ]
            )
        if not any(options):
            return None
        options = sorted(filter(None, options), key=lambda option: min(c.distance for c in option))
        gap = least - start.cost, most - start.cost
        for sizes in combinations(options[:AXES], *gap):
            choice = self._choice(wanted, start.sizes | sizes)
            if choice and least <= choice.cost <= most:
                return choice
        return None

    def _grown(self, wanted: Logs, start: Choice, least: float, most: float) -> Choice:
        """One map after the other larger, that which costs most for how far its strides move."""
        while start.cost < least:
            larger = [
                self._choice(wanted, start.sizes | {key: size + 1})
                for key, size in start.sizes.items()
            ]

            def worth(choice: Choice, start: Choice = start) -> float:
                return (choice.cost - start.cost) / max(choice.distance - start.distance, 1e-4)

            fitting = [each for each in larger if each and start.cost < each.cost <= most]
            if not fitting:
                break
            start = max(fitting, key=worth)
        return start

    def _choice(self, wanted: Logs, sizes: MapSizes) -> Choice | None:
        """The strides nearest to those wanted that make the maps so large, as far as they can.

        None if a map vanishes.
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
            maps = self._cost.maps({name: partial(fit, name) for name in wanted})
        except VanishedError:
            return None
        reached = {
            (name, i): maps[name][i].output_size
            for name, values in wanted.items()
            for i in range(len(values))
        }
        moved = (abs(a - b) for name in logs for a, b in zip(logs[name], wanted[name], strict=True))
        return Choice(logs, reached, self.value(logs), sum(moved))

    def _nearest(self, name: str, value: float, incoming: int, size: int | None) -> float:
        """The logarithm nearest to ``value`` of a stride that makes ``size`` of ``incoming``."""
        layer, (low, high) = self._layers[name], self.limits(name)

        def size_at(at: float) -> int:
            (stride,) = as_stored([at])
            return layer.plan_axis(incoming, stride).output_size

        size = size_at(value) if size is None else size
        if size_at(value) > size:
            high = max(value, min(high, log(2 * incoming)))
            return threshold(lambda at: size_at(at) <= size, value, high)
        if size_at(value) < size:
            return max(low, threshold(lambda at: size_at(at) < size, low, value) - 2e-6)
        return value


def as_stored(logs: Iterable[float]) -> list[float]:
    """The strides of these logarithms, rounded to float32 as in a layer.

    A budget that is spent has a stride at the edge of a map's size, where rounding decides.
    """
    return array("f", map(exp, logs)).tolist()


def combinations(
    options: Sequence[Sequence[Change]], least: float, most: float
) -> Iterator[MapSizes]:
    """Combinations, of each option one change or none, whose effects add up to a wanted sum.

    Those that move strides least come first.

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


def threshold(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition begins to hold, just above it; ``high`` if it holds nowhere below.

    >>> round(threshold(lambda x: x * x >= 2, 0.0, 4.0), 4)
    1.4142
    """
    if holds(low):
        return low
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high + 5e-7  # a stride is stored as float32: stay on the right side of the step
