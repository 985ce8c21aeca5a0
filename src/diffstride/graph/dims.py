"""Dimensions of tensors before and after perturbed runs, and products of them."""

from collections.abc import Iterable
from itertools import combinations_with_replacement
from math import prod
from typing import NamedTuple


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
