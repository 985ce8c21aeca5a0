"""By how many samples maps grow in a perturbed run, such that each growth shows its origin."""

from collections.abc import Hashable, Iterator, Mapping
from itertools import count
from random import Random
from typing import TypeVar

DIVISOR = 96
REMAINDERS = (1, 11, 19, 95, 66, 6)
"""Remainders of the perturbed sizes modulo `DIVISOR`, one for each run. In four halvings in a row,
each has an odd input for one of 1, 11, 19 and 95 (-1), however those before it round: there,
rounding up and down differ. 66 and 6 are 2 and 6 modulo 8, and multiples of three, unlike the
others."""
FACTORS = (1, 2, 3, 4, 6, 8, 16)  # between the sizes of maps in one network

Key = TypeVar("Key", bound=Hashable)


def draw_growths(
    sizes: Mapping[Key, int], seed: int = 0, remainder: int | None = None
) -> dict[Key, int]:
    """Draw a growth for each size, at least as large as the size itself.

    So a map behind strides grows, too. Growths differ so much that neither strides nor upsampling
    make two of them equal.

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
    draws = _draws(seed)
    for key, size in sizes.items():
        adjusted = (_adjust(size, size + drawn, remainder) for drawn in draws)
        growths[key] = next(growth for growth in adjusted if growth not in taken)
        taken |= _similar(growths[key])
    return growths


def _draws(seed: int) -> Iterator[int]:
    """Random numbers of at least 101 without an end, no larger than need be.

    Some operations grow much faster than maps: memory for attention over images by the fourth
    power of their height, steps of recurrent layers as the length of a signal.
    """
    random = Random(seed)
    for drawn in count():
        yield random.randrange(101, 301 + 50 * drawn)


def _adjust(size: int, growth: int, remainder: int | None) -> int:
    """The next larger growth that is odd, or makes a size with this remainder."""
    return growth | 1 if remainder is None else growth + (remainder - size - growth) % DIVISOR


def _similar(growth: int) -> set[int]:
    """Growths of maps behind one with this growth, after strides or upsampling."""
    margin = 2 * max(FACTORS)  # closer growths may become equal behind strides
    larger = {factor * growth + d for factor in FACTORS for d in range(-2 * factor, 2 * factor + 1)}
    smaller = {growth // factor + d for factor in FACTORS for d in range(-2, 3)}
    return larger | smaller | set(range(growth - margin, growth + margin + 1))
