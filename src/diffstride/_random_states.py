"""The global random states of torch, NumPy and Python, put back after something drew from them."""

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def kept_random_states(devices: Iterable[int] = ()) -> Iterator[None]:
    """Restore the random states of torch, Python and NumPy at the end.

    Args:
        devices: the CUDA devices whose states are restored, too.
    """
    numpy: Any = sys.modules.get("numpy")  # which torch runs without
    of_python, of_numpy = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(of_python)
            if numpy:
                numpy.random.set_state(of_numpy)


def seed_python_and_numpy(seed: int) -> None:
    """Seed the random numbers of Python, and of NumPy where it is loaded."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
