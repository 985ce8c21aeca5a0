"""Find whole map sizes that use up a budget, with strides as near as possible to those wanted.

Maps have whole numbers of samples, so the cost of a network moves in steps, and on small maps one
sample is several hundredths of it. Where the strides of the layers behind keep their maps as they
were, the cost is linear in the size of each map, but for the pooling layers' own products. So the
effects of single samples are computed one by one, and added up to see which of them fill a gap.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from functools import reduce
from math import inf
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from diffstride.cost.single_changes import Change, Choice, SingleChanges, distance
from diffstride.cost.stride_space import Key, Logs, OutputSizes, StrideSpace
from diffstride.spectral.axis_plan import CPU

MOST_AXES = 9  # how many axes take part in changes that are made together
TRIES = 30
IDLE = 1e-6  # logarithm up to which a stride counts as 1
STAY = 2.0  # map sizes stay until other strides are nearer by this factor


class Goal(NamedTuple):
    """What map sizes are chosen for.

    Args:
        wanted: the logarithms of the strides that those of the map sizes shall be near to.
        least, most: limits of the multiply-adds.
    """

    wanted: Logs
    least: float
    most: float

    def is_met(self, choice: Choice) -> bool:
        """Whether the cost lies within the limits."""
        return self.least <= choice.cost <= self.most


class SizeSearch:
    """Moves strides to the nearest map sizes at which a network uses up a budget."""

    def __init__(self, space: StrideSpace) -> None:
        self._space = space
        # The sizes at the strides wanted, and those chosen, in the last step.
        self.last: tuple[OutputSizes, OutputSizes] = {}, {}

    def forget(self) -> None:
        """Let the next step choose its sizes without regard to those of the last one."""
        self.last = {}, {}

    def use_up(self, goal: Goal) -> Logs:
        """The strides nearest to those wanted at which the cost lies within the limits.

        If none is near, those of the highest cost below the limits that were found.

        Args:
            goal: its strides cost at most its upper limit.
        """
        wanted = goal.wanted
        start = self._choice(wanted, {})
        if start is None or start.cost >= goal.least:
            return wanted
        every, start = start, start._replace(sizes=_without_idle(start.sizes, wanted))
        # Keep the sizes that were chosen last: maps that flicker disturb the layers behind them.
        again = self._choice(wanted, self.last[1]) if self.last[1] else None
        if again and again.cost <= goal.most and self.last[0] == start.sizes:
            return again.logs
        chosen = self._change_several(goal, start) or self._grow(goal, start)
        chosen = chosen._replace(sizes=_without_idle(chosen.sizes, wanted))
        if chosen.cost < goal.least and every.sizes != start.sizes:
            chosen = self._change_several(goal, every) or chosen
        if again and goal.is_met(again) and again.distance < STAY * chosen.distance:
            chosen = again
        self.last = start.sizes, chosen.sizes
        return chosen.logs

    def _change_several(self, goal: Goal, start: Choice) -> Choice | None:
        """Make several maps one sample larger or smaller: the nearest strides within the limits."""
        options = self._nearest_options(goal.wanted, start)
        chosen = self._combine(goal, start, options)
        if chosen is None:  # the effects are not exact where a layer is called twice, for instance
            options = [self._exactly(goal.wanted, start, option) for option in options]
            chosen = self._combine(goal, start, list(filter(None, options)))
        return chosen

    def _combine(
        self, goal: Goal, start: Choice, options: Sequence[Sequence[Change]]
    ) -> Choice | None:
        """The nearest strides within the limits with one change or none of each option."""
        if not options:
            return None
        for sizes in combinations(options, goal.least - start.cost, goal.most - start.cost):
            choice = self._choice(goal.wanted, start.sizes | sizes)
            if choice and goal.is_met(choice):
                return choice
        return None

    def _exactly(self, wanted: Logs, start: Choice, option: Sequence[Change]) -> list[Change]:
        """An option with its effects on the cost of the whole network, if there are any."""
        exact = []
        for change in option:
            choice = self._choice(wanted, start.sizes | change.sizes)
            if choice and choice.cost != start.cost:
                moved = choice.distance - start.distance
                exact.append(Change(change.sizes, choice.cost - start.cost, moved))
        return exact

    def _nearest_options(self, wanted: Logs, start: Choice) -> list[list[Change]]:
        """One sample more and one less, of the `MOST_AXES` nearest maps whose cost changes."""
        single = SingleChanges(self._space, wanted, start)
        options: list[tuple[float, list[Change]]] = []  # in order of distance
        for bound, key in sorted((single.least_move(key), key) for key in start.sizes):
            if len(options) == MOST_AXES and options[-1][0] <= bound:
                break
            changes = [c for by in (-1, 1) if (c := single.change(key, by)) and c.effect]
            if changes:
                insort(options, (min(c.distance for c in changes), changes), key=itemgetter(0))
                del options[MOST_AXES:]
        return [changes for _, changes in options]

    def _grow(self, goal: Goal, start: Choice) -> Choice:
        """Enlarge one map after the other, always the one of most MACs per distance."""
        worths = dict.fromkeys(start.sizes, inf)  # computed anew where they are the largest
        while start.cost < goal.least:
            single = SingleChanges(self._space, goal.wanted, start)
            changes: dict[Key, Change] = {}
            while worths and (key := max(worths, key=worths.__getitem__)) not in changes:
                change = single.change(key, 1)
                if change and change.effect <= goal.most - start.cost:
                    changes[key] = change
                    worths[key] = change.effect / max(change.distance, 1e-4)
                else:  # what is too much now is too much once other maps are larger
                    del worths[key]
            if not worths:
                break
            choice = self._choice(goal.wanted, start.sizes | changes[key].sizes)
            if choice and start.cost < choice.cost <= goal.most:
                start = choice
                before = self._space.maps_before
                beside = {key, before.get(key)}
                beside |= {each for each in worths if before.get(each) == key}
                worths |= dict.fromkeys(worths.keys() & beside, inf)
            else:
                del worths[key]
        return start

    def _choice(self, wanted: Logs, sizes: OutputSizes) -> Choice | None:
        """The strides nearest to those wanted that lead to these map sizes, where they can.

        None if a map would be empty.
        """
        fit = self._space.at_sizes(wanted, sizes)
        if fit is None:
            return None
        moved = sum(distance(fit.logs[name], wanted[name]) for name in wanted)
        return Choice(fit.logs, fit.maps, fit.sizes, fit.cost, moved)


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
