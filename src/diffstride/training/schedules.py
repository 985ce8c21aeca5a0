"""Learning-rate schedules by step that scale every parameter group alike."""

import inspect
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, PolynomialLR

KNOWN = ("total_steps", "T_max", "max_lr")
UNSUITED = ("ChainedScheduler", "ReduceLROnPlateau", "SequentialLR")
"""Those of torch that are not made from an optimiser and numbers, or not advanced by steps."""


class Multiples:
    """``factors[i]`` where ``i`` boundaries are smaller than the step."""

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
    """Constant multiples of the learning rate between given steps; by default as published.

    Arguments:
        optimizer: its groups' learning rates are what gets multiplied.
        boundaries: the last step of each multiple but the last one, increasing.
        factors: one more than boundaries.

    Raises:
        ValueError: the lengths do not fit, or the boundaries do not increase.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> multi_step(optimizer, boundaries=[2], factors=[0.5, 1.0]).get_last_lr()
    [0.05]
    """
    if len(factors) != len(boundaries) + 1 or sorted(set(boundaries)) != list(boundaries):
        raise ValueError(
            "multi_step needs increasing boundaries and one factor more than boundaries, "
            f"got boundaries={list(boundaries)} and factors={list(factors)}"
        )
    return LambdaLR(optimizer, Multiples(boundaries, factors))


def build_schedule(
    schedule: Callable[..., LRScheduler], optimizer: Optimizer, total_steps: int
) -> LRScheduler:
    """Call a schedule, ours or one of torch, with what it asks for and only the run knows.

    ``total_steps`` and ``T_max``, and ``total_iters`` of `torch.optim.lr_scheduler.PolynomialLR`,
    are the length of the training, ``max_lr`` the learning rates of the parameter groups:
    `torch.optim.lr_scheduler.OneCycleLR` peaks at them.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    known: dict[str, Any] = dict(zip(KNOWN, (total_steps, total_steps, rates), strict=True))
    # Of a class wrapped by Gin only the constructor shows its arguments.
    signature = inspect.signature(schedule.__init__ if isinstance(schedule, type) else schedule)
    if is_polynomial(schedule):  # of others it is the length of a part of the training
        known["total_iters"] = total_steps
    return schedule(optimizer, **{k: v for k, v in known.items() if k in signature.parameters})


def is_polynomial(schedule: object) -> bool:
    """Whether it is `torch.optim.lr_scheduler.PolynomialLR`, as it is or wrapped by Gin."""
    return isinstance(schedule, type) and issubclass(schedule, PolynomialLR)
