"""What the last sample of a map is worth for its cost, and how map sizes should move for that."""

from collections.abc import Collection, Container, Iterable, Mapping
from math import expm1, hypot, log, pi, tan
from statistics import NormalDist
from typing import NamedTuple

from diffstride.cost.stride_space import Key

# A map that is worth so many times more or less than the others, per multiply-add, moves furthest.
RATIO_OF_LARGEST_MOVE = 5.0
# What all maps are worth in a trained network: at most so many times what was measured.
MOST_TIMES_MEASURED = 10.0
CHANCE = 1.5  # standard errors of many samples that stand for chance where there are few
MARGIN = 1.1  # how many times more an exchange of samples has to bring, as it disturbs the weights
# Between the axes of a layer, which are mostly alike, chance counts so many times,
AXIS_ERROR_FACTOR = 2.0
# and they move apart by this share of how far layers do.
AXIS_SHARE = 0.3


class Worth(NamedTuple):
    """What the last sample of a map is worth.

    Attributes:
        mean: the mean rise of the loss without it over the batches measured, for a change of 1 of
            the logarithm of the map size and without what disturbs the weights; after `with_prior`
            also what that adds.
        error: its standard error, with few batches larger by `few_samples`.
        cost: the multiply-adds that the same change saves.
        growth: how many times less a multiply-add of the next sample is worth, at least 1.
        weight: of the prior, see `diffstride.cost.smaller_maps.Smaller`.
    """

    mean: float
    error: float
    cost: float
    growth: float = 1.0
    weight: float = 1.0


def few_samples(count: int) -> float:
    """How many times further chance leads with a standard error of so few samples.

    The quantile of Student's t at `CHANCE` standard errors of many samples, over `CHANCE`. That of
    t with ``n`` degrees of freedom is about
    ``sqrt(n * expm1(CHANCE^2 * (n - 5/6) / (n - 2/3 + 1 / (10 n))^2))`` if ``n`` is at least 2.

    >>> [round(few_samples(count), 2) for count in (2, 3, 5, 10, 40)]
    [3.13, 1.62, 1.25, 1.1, 1.02]
    """
    free = count - 1
    if free == 1:
        return tan(pi * (NormalDist().cdf(CHANCE) - 0.5)) / CHANCE
    power = CHANCE**2 * (free - 5 / 6) / (free - 2 / 3 + 1 / (10 * free)) ** 2
    return (free * expm1(power)) ** 0.5 / CHANCE


def with_prior(worth: Mapping[Key, Worth], trained: float) -> dict[Key, Worth]:
    """What samples are worth with a prior: that of a map size follows from its weight alone.

    A change of the logarithm of a map size is worth its weight there, the root of the number of
    layers that run on the map, whatever it costs. So a multiply-add is worth the less the more of
    them a map has, and of maps with as many layers a budget is used best where they cost alike.
    Of the axes of a pooling layer the prior tells nothing: a multiply-add is worth the same on
    each.

    Args:
        worth: as measured, of each axis.
        trained: what all maps are worth in a trained network, about, for each of their
            multiply-adds; at most `MOST_TIMES_MEASURED` times what was measured counts.

    >>> worth = {("a", 0): Worth(0.4, 0.01, 100.0), ("b", 0): Worth(0.0, 0.01, 20.0)}
    >>> [round(each.mean, 2) for each in with_prior(worth, 0.005).values()]
    [0.7, 0.3]
    """
    if not any(each.weight for each in worth.values()):
        return dict(worth)
    layers, network = _layers(worth), _together(worth.values())
    of_each_mac = min(trained, MOST_TIMES_MEASURED * _price(worth.values()))
    of_weight_1 = of_each_mac * network.cost / network.weight

    def added(name: str, cost: float) -> float:
        return of_weight_1 * layers[name].weight * cost / layers[name].cost

    return {
        (name, i): each._replace(mean=each.mean + added(name, each.cost))
        for (name, i), each in worth.items()
    }


def able_to_move(worth: Mapping[Key, Worth], largest: Container[Key]) -> dict[Key, Worth]:
    """The worth of all axes but those that should grow and cannot.

    Others would pay for a growth that does not happen, at each decision anew. Without these maps a
    multiply-add is worth less on average, so more of them may be left out then.

    Args:
        worth: of each axis.
        largest: the axes that are as large as strides allow.

    >>> worth = {("a", 0): Worth(0.4, 0.01, 100.0), ("b", 0): Worth(0.1, 0.01, 100.0)}
    >>> list(able_to_move(worth, [("a", 0), ("b", 0)]))
    [('b', 0)]
    """
    able, left = {}, dict(worth)
    while left != able:
        able, price = left, _price(left.values())
        left = {
            key: each
            for key, each in able.items()
            if key not in largest or each.mean <= price * each.cost
        }
    return able


def wanted_moves(
    worth: Mapping[Key, Worth], held: Container[Key], largest: float
) -> dict[Key, float]:
    """How the logarithms of map sizes should move, each by itself.

    The axes of a layer move together by what a multiply-add is worth in the layer against all
    layers, and apart by what it is worth on the axis against the layer. So axes of one kind, whose
    worth differs by noise alone, stay alike.

    Args:
        worth: of each axis.
        held: the axes that must not become smaller.
        largest: the largest move.

    >>> worth = {("a", 0): Worth(0.4, 0.01, 100.0), ("b", 0): Worth(0.1, 0.01, 100.0)}
    >>> {key: round(move, 2) for key, move in wanted_moves(worth, [], 0.2).items()}
    {('a', 0): 0.06, ('b', 0): -0.11}
    """
    axes, layers = _axes(worth), _layers(worth)
    moves = {}
    for key, each in worth.items():
        unsure = each._replace(error=AXIS_ERROR_FACTOR * each.error)
        together = _log_ratio_to_price(layers[key[0]], layers.values())
        apart = _log_ratio_to_price(unsure, axes[key[0]])
        moves[key] = largest * min(max(together + AXIS_SHARE * apart, -1.0), 1.0)
    return {key: 0.0 if move < 0 and key in held else move for key, move in moves.items()}


def _price(worth: Collection[Worth]) -> float:
    """What a multiply-add is worth on average; a map that is better smaller is worth nothing."""
    cost = sum(each.cost for each in worth)
    return sum(max(each.mean, 0.0) for each in worth) / cost if cost else 0.0


def _axes(worth: Mapping[Key, Worth]) -> dict[str, list[Worth]]:
    axes: dict[str, list[Worth]] = {}
    for (name, _), each in worth.items():
        axes.setdefault(name, []).append(each)
    return axes


def _layers(worth: Mapping[Key, Worth]) -> dict[str, Worth]:
    """What all axes of each layer are worth together."""
    return {name: _together(each) for name, each in _axes(worth).items()}


def _together(worth: Iterable[Worth]) -> Worth:
    means, errors, costs, growths, weights = zip(*worth, strict=True)
    return Worth(sum(means), hypot(*errors), sum(costs), max(growths), sum(weights))


def _log_ratio_to_price(worth: Worth, all_of_them: Collection[Worth]) -> float:
    """The logarithm of the ratio of what a multiply-add is worth to the price, at least -1.

    To the base `RATIO_OF_LARGEST_MOVE`; 0 where no whole sample is worth an exchange.

    A map grows for its next sample, of which a multiply-add is worth less than of its last one. It
    becomes smaller for the next samples of the others.
    """
    price = _price(all_of_them)
    if price == 0:
        return 0.0
    value = _shrunk(worth.mean / worth.cost, price, worth.error / worth.cost)
    of_next = [each._replace(mean=each.mean / each.growth) for each in all_of_them]
    if _price(of_next) <= MARGIN * value and value <= MARGIN * worth.growth * price:
        return 0.0
    return log(max(value / price, 1 / RATIO_OF_LARGEST_MOVE)) / log(RATIO_OF_LARGEST_MOVE)


def _shrunk(value: float, towards: float, error: float) -> float:
    """An uncertain value, nearer to another one: the difference times ``1 - (error / it)^2``.

    A difference smaller than the error is none.

    >>> _shrunk(3.0, 1.0, error=1.0), _shrunk(3.0, 1.0, error=2.0)
    (2.5, 1.0)
    """
    difference = value - towards
    share = (error / difference) ** 2 if difference else 1.0
    return towards + difference * max(0.0, 1 - share)


def at_constant_cost(
    moves: Mapping[Key, float], worth: Mapping[Key, Worth], held: Container[Key]
) -> dict[Key, float]:
    """Moves at which the cost stays: all that are worth less than the price pay for the others.

    What moves would save goes to all maps, by the same move of each.

    Args:
        moves: as from `wanted_moves`.
        worth: of each axis.
        held: the axes that must not become smaller.

    >>> worth = {("a", 0): Worth(0.4, 0.01, 100.0), ("b", 0): Worth(0.1, 0.01, 200.0)}
    >>> at_constant_cost({("a", 0): 0.1, ("b", 0): 0.0}, worth, [("a", 0)])
    {('a', 0): 0.1, ('b', 0): -0.05}
    """
    spent = sum(worth[key].cost * move for key, move in moves.items())
    price = _price(worth.values())

    def pays(key: Key) -> bool:
        is_cheap = worth[key].mean <= price * worth[key].cost
        return key not in held and moves[key] <= 0 and is_cheap

    moved = list(moves) if spent < 0 else list(filter(pays, moves))
    shift = -spent / sum(worth[key].cost for key in moved) if moved else 0.0
    return {key: move + shift if key in moved else move for key, move in moves.items()}
