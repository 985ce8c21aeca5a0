"""The processes of a training: how many there are, and which one this is."""

from torch import distributed

# Asked at every call: networks, budgets and loaders may be built before the group of processes.


def has_process_group() -> bool:
    """Whether this process belongs to a group, which may be one of this process alone."""
    return distributed.is_available() and distributed.is_initialized()


def process_count() -> int:
    """How many processes train together.

    >>> process_count()
    1
    """
    return distributed.get_world_size() if has_process_group() else 1


def process_rank() -> int:
    """The index of this process among them."""
    return distributed.get_rank() if has_process_group() else 0
