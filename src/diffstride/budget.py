"""A network's multiply-adds held to a budget while its strides learn how to share it out."""

from collections.abc import Iterable
from math import exp, log
from typing import Any

import torch
from torch import nn

from diffstride.cost import MultiplyAdds
from diffstride.pooling import DiffStride
from diffstride.sharing import level
from diffstride.spending import Logs, Spending, threshold

TOLERANCE = 0.01  # how much of the budget may stay unspent
LIMIT = 1e-6  # so near a stride counts as at its limit


class CostBudget:
    """Holds the multiply-adds of a network to a budget during training.

    At once, and after each step of the optimiser, `project_` multiplies all strides by one factor,
    within the limits of their layers, such that the cost meets the budget. Before, it takes from
    the step what would change the cost (see `diffstride.sharing.level`). So the strides go on
    learning how the budget is shared out, and come to rest where no other way to share it lowers
    the loss.

    A map has a whole number of samples, so the cost moves in steps, on small maps in large ones. It
    never exceeds the budget. Where it would stay below by more than a hundredth, the strides in use
    are moved to the nearest map sizes that spend it; what the optimiser asked for is remembered, so
    that small steps add up until they change a size. Only where maps are so few and small that no
    sizes near by spend it, more stays unspent.

    In a plain loop::

        budget = CostBudget(model, images)
        ...
        optimizer.step()
        budget.project_()

    With Lightning, add `diffstride.callbacks.BudgetCallback`.

    Args:
        model: a network with `DiffStride` layers.
        example: an input, or a tuple of inputs; only shapes matter.
        budget: up to 100 a fraction of the present multiply-adds, above that their number for one
            sample.
        leaf_modules: as for `convert`.

    Raises:
        ValueError: if the budget is not positive or too small, no stride learns, or the cost
            cannot be worked out.

    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(1, 256, 3, padding=1))
    >>> budget = CostBudget(net, torch.zeros(1, 1, 256, 256))
    >>> _ = net[0].strides.data.copy_(torch.tensor([1.8, 2.0]))
    >>> budget.project_()
    >>> net[0].strides
    Parameter containing:
    tensor([1.9180, 2.0984], requires_grad=True)
    >>> 0.99 <= budget.cost.value() / budget.multiply_adds <= 1
    True
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        budget: float = 1.0,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
    ) -> None:
        if not budget > 0:
            raise ValueError(f"budget must be positive, but got {budget!r}")
        self.cost = MultiplyAdds(model, example, leaf_modules)
        used = self.cost.maps()
        self._layers: dict[str, DiffStride] = {
            name: layer
            for name, layer in self.cost.layers.items()
            if name in used and isinstance(layer, DiffStride) and layer.strides.requires_grad
        }
        if not self._layers:
            raise ValueError("the model has no DiffStride layer whose strides learn")
        self.multiply_adds = budget if budget > 100 else budget * self.cost.value()
        self._written = self._read()
        self._wanted = self._read()
        self._spending = Spending(self.cost, self._layers)
        self.project_()

    def project_(self) -> None:
        """Level the last step and scale the strides so that the cost meets the budget, in place."""
        for name, moves in self._level_moves().items():
            pairs = zip(self._wanted[name], moves, strict=True)
            self._wanted[name] = [wanted + move for wanted, move in pairs]
        self._wanted = self._scaled(self._wanted)
        self._write(self._spending.spend(self._wanted, self._least, self.multiply_adds))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on as if it had not been interrupted."""
        return {
            "multiply_adds": self.multiply_adds,
            "wanted": dict(self._wanted),
            "written": dict(self._written),
            "spending": self._spending.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, strides included."""
        self.multiply_adds = state["multiply_adds"]
        self._wanted = dict(state["wanted"])
        self._spending.load_state_dict(state["spending"])
        self._write(state["written"])

    def _read(self) -> Logs:
        return {
            name: [log(max(stride, 1.0)) for stride in layer.strides.tolist()]
            for name, layer in self._layers.items()
        }

    def _level_moves(self) -> Logs:
        """How far the logarithms of the strides are to move, by what the optimiser made of them."""
        before = {
            name: torch.tensor(logs, dtype=torch.float64).exp().requires_grad_()
            for name, logs in self._written.items()
        }
        slopes = torch.autograd.grad(self.cost(before), list(before.values()))
        at = torch.cat([strides.detach() for strides in before.values()])
        # Unclamped: that a step would lead below the limit tells how much the loss is against more.
        now = torch.cat([layer.strides.detach().to(at) for layer in self._layers.values()])
        limits = [self._spending.limits(name) for name, logs in self._written.items() for _ in logs]
        low, high = torch.tensor(limits, dtype=torch.float64).exp().T
        moves = level(now - at, torch.cat(slopes), at <= low + LIMIT, at >= high - LIMIT)
        # No step makes a stride less than half as large.
        logs = (moves / at).clamp(min=-0.5).log1p().split([len(each) for each in before.values()])
        return {name: part.tolist() for name, part in zip(before, logs, strict=True)}

    @torch.no_grad()
    def _write(self, logs: Logs) -> None:
        for name, layer in self._layers.items():
            layer.strides.copy_(layer.strides.new_tensor([exp(value) for value in logs[name]]))
            layer.project_()
        self._written = self._read()

    @property
    def _least(self) -> float:
        return (1 - TOLERANCE) * self.multiply_adds

    def _scaled(self, logs: Logs) -> Logs:
        """All strides times the smallest factor that keeps the cost within the budget."""

        def scaled(amount: float) -> Logs:
            return {
                name: [min(max(value + amount, low), high) for value in values]
                for name, values in logs.items()
                for low, high in [self._spending.limits(name)]
            }

        def affordable(amount: float) -> bool:
            return self._spending.value(scaled(amount)) <= self.multiply_adds

        if self._least <= self._spending.value(scaled(0.0)) <= self.multiply_adds:
            return scaled(0.0)
        # The optimiser takes small steps: look nearby first.
        reach = 1e-3
        while reach < 16 and not (affordable(reach) and not affordable(-reach)):
            reach *= 4
        if not affordable(reach):
            least = self._spending.value(scaled(reach))
            raise ValueError(
                f"a budget of {self.multiply_adds:,.0f} multiply-adds cannot be met: with all "
                f"strides as large as they may be, the network costs {least:,}"
            )
        return scaled(threshold(affordable, -reach, reach))
