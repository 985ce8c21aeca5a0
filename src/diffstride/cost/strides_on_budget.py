"""Strides at which a network uses up a number of multiply-adds."""

from math import exp, log, log1p

import torch
import torch.distributed as dist
from torch import nn

from diffstride._processes import process_count
from diffstride.cost.budget_amount import advise_on_placement
from diffstride.cost.budget_scaling import UnreachableBudgetError, scale_to_budget
from diffstride.cost.held_strides import HeldStrides
from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.cost.projection import project_step
from diffstride.cost.size_search import Goal, SizeSearch
from diffstride.cost.size_thresholds import as_stored
from diffstride.cost.stride_space import Logs, StrideSpace, by_key

UNUSED_SHARE = 0.01  # share of the budget that may stay unused


class StridesOnBudget:
    """Base of `CostBudget`: what it and `MeasuredStrides` do to the strides.

    Args:
        model, cost: a network and its cost.
        multiply_adds: the budget for one sample.

    Attributes:
        held: the strides, read and written for all layers at once.
        space: the strides at which the network runs, and its cost there.
        wanted: the logarithms of the strides before map sizes are rounded.

    Raises:
        ValueError: the network has nothing to hold, or costs less than the budget at any strides.
    """

    def __init__(self, model: nn.Module, cost: MultiplyAdds, multiply_adds: float) -> None:
        self.model, self.cost, self.multiply_adds = model, cost, multiply_adds
        self.held = HeldStrides(cost)
        self.space = StrideSpace(cost, self.held.layers)
        self._size_search = SizeSearch(self.space)
        self.wanted = self.in_use
        self._check_reachable()
        self._compared = False  # not yet: the other processes may build none, or build it later

    def check_processes(self) -> None:
        """Refuse, once, budgets that differ between the processes of a training.

        Raises:
            ValueError: they do.
        """
        # DistributedDataParallel carries the strides of the first process to the others, but not
        # this budget, which would move them apart.
        if self._compared or process_count() == 1:
            return
        logs = [*self.in_use.values(), *self.wanted.values()]
        values = [log(self.multiply_adds), *(each for part in logs for each in part)]
        device = self.held.parameters[0].device
        own = torch.tensor(values, dtype=torch.float64, device=device)
        ends = [own.clone(), own.clone()]
        for end, operation in zip(ends, (dist.ReduceOp.MIN, dist.ReduceOp.MAX), strict=True):
            dist.all_reduce(end, operation)
        if not torch.equal(*ends):
            low, high = (end[0].exp().item() for end in ends)
            raise ValueError(
                f"the budgets of the processes differ ({low:,.0f} to {high:,.0f} multiply-adds), "
                "or the strides that they began with: build CostBudget after "
                "DistributedDataParallel, with ddp.module, or from equal networks"
            )
        self._compared = True

    @property
    def in_use(self) -> Logs:
        """The logarithms of the strides that the layers have."""
        return self.held.in_use

    def aim_(self, wanted: Logs, stay: bool = True) -> None:
        """Scale other `wanted` strides to the budget, and write those at which it is used up.

        Args:
            wanted: the logarithms of the strides.
            stay: whether map sizes stay until others are much nearer.
        """
        limits = self._least, self.multiply_adds
        try:
            self.wanted = scale_to_budget(wanted, self.space, *limits)
        except UnreachableBudgetError as error:
            if self.space.value(self.in_use) > self.multiply_adds:
                remedy = advise_on_placement(self.model, error.costliest)
                raise UnreachableBudgetError(f"{error}{remedy}", error.costliest) from None
            self.wanted = self.in_use
        if not stay:
            self._size_search.forget()
        self.held.write_(self._size_search.use_up(Goal(self.wanted, *limits)))

    def _moved_wanted(self, strides: list[float]) -> Logs:
        """The strides wanted, moved as the last step moved the strides, at constant cost."""
        before = [stride for logs in self.in_use.values() for stride in as_stored(logs)]
        # Unclamped: how far a step would lead below the limit is part of the gradient.
        steps = self._projected([now - at for now, at in zip(strides, before, strict=True)])
        # No step makes a stride less than half as large.
        moves = [log1p(max(step / at, -0.5)) for step, at in zip(steps, before, strict=True)]
        return {
            name: [at + move for at, move in zip(self.wanted[name], moved, strict=True)]
            for name, moved in self.held.by_layer(moves).items()
        }

    def _projected(self, steps: list[float]) -> list[float]:
        """The part of steps from the strides in use along which the cost stays constant."""
        logs = self.in_use
        _, slopes = self.cost.slopes({name: list(map(exp, each)) for name, each in logs.items()})
        flat = [slope for name in logs for slope in slopes[name]]
        at_lowest, at_highest = self.space.at_lowest(logs), self.space.at_highest(logs)
        keys = list(by_key(logs))
        limited = [[key in ends for key in keys] for ends in (at_lowest, at_highest)]
        return project_step(steps, flat, *limited)

    @property
    def _least(self) -> float:
        return (1 - UNUSED_SHARE) * self.multiply_adds

    def _check_reachable(self) -> None:
        now = self.cost.value()
        if not now:
            raise ValueError(
                "the network has no multiply-adds that count, as convolutions and linear layers "
                "have: there is nothing to hold"
            )
        most = max(now, self.space.largest_value())
        if most < self._least:
            raise ValueError(
                f"a budget of {self.multiply_adds:,.0f} multiply-adds, "
                f"{self.multiply_adds / now:.3g} times the present {now:,}, is more than the "
                f"network costs at small strides, {most:,}; up to 100 a budget is a "
                "fraction of the present cost, above that a number of multiply-adds"
            )
