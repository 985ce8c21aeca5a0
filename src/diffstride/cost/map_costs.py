"""What each map of a network costs by itself."""

from math import exp

from diffstride.cost.budget import CostBudget
from diffstride.cost.stride_space import Key


def map_costs(budget: CostBudget) -> dict[Key, float]:
    """What each map costs by itself: the derivative of the cost by the logarithm of its size.

    That of a stride contains the maps behind, which shrink with the map. Where they keep their
    sizes, their strides have to fall by as much as its own rises.

    Args:
        budget: of the network, at the strides in use.
    """
    _, slopes = budget.cost.slopes()
    costs = {
        (name, i): -slopes[name][i] * exp(at)
        for name, logs in budget.in_use.items()
        for i, at in enumerate(logs)
    }
    own = dict(costs)
    for key, first in budget.space.maps_before.items():
        own[first] -= costs.get(key, 0.0)  # a shared stride has the cost of all its axes
    return own
