"""Which size a module of a decoder returns: that of the map which a strided module has taken.

Where a stride has rounded an odd length, a decoder enlarges to another length, and pads or crops
what it gets. Then it returns what it would return at the strides that the network had.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx


class RoundTrip(NamedTuple):
    """The length of an axis that a stride has shortened and a module has enlarged again.

    ``enlarged + factor * floor((n - given + phase) / stride)`` for ``n`` samples: ``given`` samples
    become ``enlarged`` ones. Lengths are whole numbers, or stand for them in a traced program.

    >>> trip = RoundTrip(given=37, enlarged=38, stride=2, factor=2, phase=0)
    >>> [trip.length(n) for n in (36, 37, 38, 39)]
    [36, 38, 38, 40]
    """

    given: int
    enlarged: int
    stride: int
    factor: int
    phase: int

    def length(self, n: int) -> int:
        """The length for ``n`` samples."""
        return self.enlarged + (n - self.given + self.phase) // self.stride * self.factor


class Mirror(NamedTuple):
    """The strided call that an enlarging call mirrors.

    Without ``trips``, one for each axis, it returns the size that goes into that call.
    """

    call: fx.Node
    trips: tuple[RoundTrip, ...] = ()


def mirrored_size(taken: Sequence[int], trips: Sequence[RoundTrip]) -> tuple[int, ...]:
    """The size to return where the mirrored call has taken a map of this size."""
    if not trips:
        return tuple(taken)
    return tuple(trip.length(n) for trip, n in zip(trips, taken, strict=True))
