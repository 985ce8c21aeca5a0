"""Sizes in perturbed runs: by how much maps grow, and dimensions before and after."""

from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations_with_replacement, count
from math import prod
from random import Random
from typing import NamedTuple, TypeVar

DIVISOR = 96
REMAINDERS = (1, 11, 19, 95, 66, 6)
"""Remainders of the perturbed sizes modulo `DIVISOR`, one for each run. In four halvings in a row,
each has an odd input for one of 1, 11, 19 and 95 (-1), however those before it round: there,
rounding up and down differ. 66 and 6 are 2 and 6 modulo 8, and multiples of three, unlike the
others."""
SIZE_RATIOS = (1, 2, 3, 4, 6, 8, 16)  # between the sizes of maps in one network

Key = TypeVar("Key", bound=Hashable)


class Dim(NamedTuple):
    """A dimension of a tensor: its size in the network, and in each perturbed run."""

    size: int
    perturbed: tuple[int, ...]

    @property
    def growth(self) -> tuple[int, ...]:
        """By how many samples it grew in each run; empty if it never grew."""
        growth = tuple(perturbed - self.size for perturbed in self.perturbed)
        return growth if any(growth) else ()


def proportional(total: Dim, dims: Iterable[Dim], most: int) -> tuple[Dim, ...] | None:
    """Up to ``most`` of ``dims`` whose product is proportional to ``total`` in every run.

    A dimension may occur several times. None if there are no such dimensions.

    >>> proportional(Dim(60, (180,)), [Dim(4, (6,)), Dim(5, (10,))], most=3)
    (Dim(size=4, perturbed=(6,)), Dim(size=5, perturbed=(10,)))
    """
    dims = list(dims)
    for number in range(1, most + 1):
        for factors in combinations_with_replacement(dims, number):
            size = prod(dim.size for dim in factors)
            perturbed = map(prod, zip(*(dim.perturbed for dim in factors), strict=True))
            pairs = zip(total.perturbed, perturbed, strict=True)
            if all(one * size == total.size * other for one, other in pairs):
                return factors
    return None


def draw_growths(
    sizes: Mapping[Key, int], seed: int = 0, remainder: int | None = None
) -> dict[Key, int]:
    """Draw by how many samples each size grows: at least as many as it has.

    So a map behind strides grows, too. Growths differ so much that neither strides nor upsampling
    make two of them equal. They are no larger than need be: memory for attention over images grows
    by the fourth power of their height, steps of recurrent layers as the length of a signal.

    Args:
        sizes: sizes before growing.
        seed: of the random numbers.
        remainder: of the sizes after growing, divided by `DIVISOR`. By default growths are odd
            instead, so that no sum of two is a third.

    >>> draw_growths({"height": 8, "width": 8})
    {'height': 207, 'width': 303}
    """
    growths: dict[Key, int] = {}
    taken: set[int] = set()
    random = Random(seed)
    tries = count()
    for key, size in sizes.items():
        while key not in growths:
            growth = size + random.randrange(101, 301 + 50 * next(tries))
            if remainder is None:
                growth |= 1
            else:
                growth += (remainder - size - growth) % DIVISOR
            if growth not in taken:
                growths[key] = growth
        taken |= _similar(growths[key])
    return growths


def _similar(growth: int) -> set[int]:
    """Growths of maps behind one with this growth, after strides or upsampling."""
    margin = 2 * max(SIZE_RATIOS)  # closer growths may become equal behind strides
    larger = {
        factor * growth + d for factor in SIZE_RATIOS for d in range(-2 * factor, 2 * factor + 1)
    }
    smaller = {growth // factor + d for factor in SIZE_RATIOS for d in range(-2, 3)}
    return larger | smaller | set(range(growth - margin, growth + margin + 1))
