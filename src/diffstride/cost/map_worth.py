"""What the last sample of a map is worth for its cost, and how map sizes should move for that."""

from collections.abc import Container, Iterable, Mapping
from math import expm1, hypot, log
from typing import NamedTuple

from diffstride.cost.stride_space import Key

CLEAR = 2.4  # standard errors, of many samples, beyond which a difference counts
FACTOR = 5.0  # a map worth so many times more or less than the others moves furthest
APART = 0.3  # how far the axes of a layer move apart, as a share of how far they move together


class Worth(NamedTuple):
    """What the last sample of a map is worth: the rise of the loss without it, and a prior.

    Args:
        mean: the mean rise over the batches measured, for a change of 1 of the logarithm of the map
            size, and a share of the loss for the share of the cost that this saves.
        error: its standard error, with few batches larger by `few_samples`.
        cost: the multiply-adds that the same change saves, the maps behind as they are.
    """

    mean: float
    error: float
    cost: float


def few_samples(count: int) -> float:
    """How many times further chance leads with a standard error of so few samples.

    The quantile of Student's t at the level of `CLEAR`, over `CLEAR`. That of t with ``n`` degrees
    of freedom is about ``sqrt(n * expm1(CLEAR^2 * (n - 5/6) / (n - 2/3 + 1 / (10 n))^2))``.

    >>> [round(few_samples(count), 2) for count in (3, 5, 10, 40)]
    [3.36, 1.67, 1.23, 1.05]
    """
    free = count - 1
    power = CLEAR**2 * (free - 5 / 6) / (free - 2 / 3 + 1 / (10 * free)) ** 2
    return (free * expm1(power)) ** 0.5 / CLEAR


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
    price = _price(worth.values()) if worth else 0.0
    if price == 0:
        return dict.fromkeys(worth, 0.0)
    layers: dict[str, list[Worth]] = {}
    for (name, _), each in worth.items():
        layers.setdefault(name, []).append(each)
    moves = {}
    for key, each in worth.items():
        layer = layers[key[0]]
        share = _share(_together(layer), price) + APART * _share(each, _price(layer))
        moves[key] = largest * min(max(share, -1.0), 1.0)
    return {key: 0.0 if move < 0 and key in held else move for key, move in moves.items()}


def _price(worth: Iterable[Worth]) -> float:
    """What a multiply-add is worth on average; a map that is better smaller is worth nothing."""
    worth = list(worth)
    return sum(max(each.mean, 0.0) for each in worth) / sum(each.cost for each in worth)


def _together(worth: Iterable[Worth]) -> Worth:
    means, errors, costs = zip(*worth, strict=True)
    return Worth(sum(means), hypot(*errors), sum(costs))


def _share(worth: Worth, price: float) -> float:
    """From -1: how far what a multiply-add is worth lies above or below a price, if clearly."""
    value = worth.mean / worth.cost
    if price == 0 or abs(value - price) <= CLEAR * worth.error / worth.cost:
        return 0.0
    return log(max(value / price, 1 / FACTOR)) / log(FACTOR)


def at_constant_cost(
    moves: Mapping[Key, float], worth: Mapping[Key, Worth], held: Container[Key]
) -> dict[Key, float]:
    """Moves at which the cost stays: all that may pay move together by what the others gain.

    Args:
        moves: as from `wanted_moves`.
        worth: of each axis.
        held: the axes that must not become smaller.

    >>> worth = {("a", 0): Worth(0.4, 0.01, 100.0), ("b", 0): Worth(0.1, 0.01, 200.0)}
    >>> at_constant_cost({("a", 0): 0.1, ("b", 0): 0.0}, worth, [("a", 0)])
    {('a', 0): 0.1, ('b', 0): -0.05}
    """
    spent = sum(worth[key].cost * move for key, move in moves.items())
    paying = [key for key in moves if key not in held or spent < 0]
    shift = -spent / sum(worth[key].cost for key in paying) if paying else 0.0
    return {key: move + shift if key in paying else move for key, move in moves.items()}
