"""What each map of a network costs by itself."""

from collections.abc import Mapping
from math import exp, log

from diffstride.cost.budget import CostBudget
from diffstride.cost.stride_space import Key, StrideSpace

PROBE = log(2.0)


def maps_before(space: StrideSpace) -> dict[Key, Key]:
    """For each axis of a layer, that of the layer before it whose map it pools."""
    start = space.smallest()
    base = space.fit(start).maps
    before: dict[Key, Key] = {}
    for name in filter(start.__contains__, space.cost.order):
        for i in range(len(start[name])):
            moved = {each: list(logs) for each, logs in start.items()}
            low, high = space.limits[name][i]
            moved[name][i] = min(low + PROBE, high)
            maps = space.running(moved).maps
            for other, logs in start.items():
                for k in range(len(logs)):
                    if other != name and maps[other][k].size != base[other][k].size:
                        before[other, k] = name, i  # later layers come last and stay
    return before


def map_costs(budget: CostBudget, before: Mapping[Key, Key]) -> dict[Key, float]:
    """What each map costs by itself: the derivative of the cost by the logarithm of its size.

    That of a stride contains the maps behind, which shrink with the map. Where they keep their
    sizes, their strides have to fall by as much as its own rises.

    Args:
        budget: of the network, at the strides in use.
        before: as from `maps_before`.
    """
    _, slopes = budget.cost.slopes()
    costs = {
        (name, i): -slopes[name][i] * exp(at)
        for name, logs in budget.in_use.items()
        for i, at in enumerate(logs)
    }
    own = dict(costs)
    for key, first in before.items():
        own[first] -= costs[key]
    return own
