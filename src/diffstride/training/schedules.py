"""Learning-rate schedules per step, the same for all parameter groups."""

import inspect
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, PolynomialLR

FROM_RUN = ("total_steps", "T_max", "max_lr")
"""Arguments of schedules that the run sets."""

UNSUPPORTED = ("ChainedScheduler", "ReduceLROnPlateau", "SequentialLR")
"""Schedules of torch that need more than an optimiser and numbers, or are not stepped per batch."""


class Multiples:
    """A function of the step: ``factors[i]`` if ``i`` boundaries are smaller than the step."""

    def __init__(self, boundaries: Sequence[int], factors: Sequence[float]) -> None:
        self.boundaries = list(boundaries)
        self.factors = list(factors)

    def __call__(self, step: int) -> float:
        return self.factors[bisect_left(self.boundaries, step)]


def multi_step(
    optimizer: Optimizer,
    boundaries: Sequence[int] = (400, 18_000, 32_000),
    factors: Sequence[float] = (0.1, 1.0, 0.1, 0.01),
) -> LambdaLR:
    """Piecewise constant schedule of factors of the learning rate; by default the published one.

    Args:
        optimizer: optimiser, the learning rates of whose groups are multiplied.
        boundaries: the last step of each factor except the last one, increasing.
        factors: factors of the learning rate, one more than boundaries.

    Raises:
        ValueError: the lengths do not match, or the boundaries do not increase.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> multi_step(optimizer, boundaries=[2], factors=[0.5, 1.0]).get_last_lr()
    [0.05]
    """
    if len(factors) != len(boundaries) + 1 or sorted(set(boundaries)) != list(boundaries):
        raise ValueError(
            "multi_step needs increasing boundaries and one factor more than boundaries, but "
            f"got boundaries={list(boundaries)} and factors={list(factors)}"
        )
    return LambdaLR(optimizer, Multiples(boundaries, factors))


def build_schedule(
    schedule: Callable[..., LRScheduler], optimizer: Optimizer, total_steps: int
) -> LRScheduler:
    """Build a schedule, ours or one of torch, with the arguments that only the run knows.

    ``total_steps`` and ``T_max``, and ``total_iters`` of `torch.optim.lr_scheduler.PolynomialLR`,
    become the number of training steps. ``max_lr``, the peak of
    `torch.optim.lr_scheduler.OneCycleLR`, becomes the learning rates of the parameter groups. What
    a `functools.partial` sets stays.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    known: dict[str, Any] = dict(zip(FROM_RUN, (total_steps, total_steps, rates), strict=True))
    # Only the constructor of a class wrapped by Gin shows its arguments.
    signature = inspect.signature(schedule.__init__ if isinstance(schedule, type) else schedule)
    if is_polynomial(schedule):  # in others it is the length of a part of the training
        known["total_iters"] = total_steps
    given = schedule.keywords if isinstance(schedule, partial) else {}
    missing = signature.parameters.keys() - given.keys()
    return schedule(optimizer, **{k: v for k, v in known.items() if k in missing})


def is_polynomial(schedule: object) -> bool:
    """Whether it is `torch.optim.lr_scheduler.PolynomialLR`, also wrapped by Gin or partial."""
    if isinstance(schedule, partial):
        schedule = schedule.func
    return isinstance(schedule, type) and issubclass(schedule, PolynomialLR)
