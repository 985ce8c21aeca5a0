"""A network's multiply-adds held to a budget while its strides learn how to share it out."""

from collections.abc import Iterable, Mapping
from math import exp, log
from numbers import Real
from typing import Any

import torch
from torch import nn

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.cost.projection import level
from diffstride.cost.scale_to_budget import scaled
from diffstride.cost.size_search import Logs, Spending, as_stored
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import CPU

TOLERANCE = 0.01  # how much of the budget may stay unspent
LIMIT = 1e-6  # so near a stride counts as at its limit


class CostBudget:
    """Holds the multiply-adds of a network to a budget during training.

    At once, and after each step of the optimiser, `project_` multiplies the logarithms of all
    strides by one factor, within the limits of their layers, such that the cost meets the budget: a
    stride of 1, where nothing is pooled, stays. Before, it takes from the step what would change
    the cost (see `diffstride.cost.projection`). So the strides go on learning how the budget is
    shared out, and under gradient descent, with momentum or without, come to rest where no other
    way to share it lowers the loss. Optimisers that rescale gradients, such as Adam, need
    `level_gradients_` before each step for that: their steps tell little of the gradient.

    A map has a whole number of samples, so the cost moves in steps, on small maps in large ones. It
    never exceeds the budget. Where it would stay below by more than a hundredth, the strides in use
    are moved to the nearest map sizes that spend it; what the optimiser asked for is remembered, so
    that small steps add up until they change a size. Only where maps are so few and small that no
    sizes near by spend it, more stays unspent. Where a network does not pad, strides stay below
    those at which a map would vanish; then the first layers go ahead.

    In a plain loop::

        budget = CostBudget(model, images)
        ...
        budget.level_gradients_()  # for Adam and its like
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
        ValueError: if the budget is not positive, too small or more than the network can spend,
            no stride learns, or the cost cannot be worked out.

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
        if not isinstance(budget, Real) or not budget > 0:
            raise ValueError(f"budget must be a positive number, but got {budget!r}")
        self.cost = MultiplyAdds(model, example, leaf_modules)
        used = self.cost.maps()
        self._layers: dict[str, DiffStride] = {
            name: layer
            for name, layer in self.cost.layers.items()
            if name in used and getattr(layer, "learns_size", False)
        }
        if not self._layers:
            raise ValueError("the model has no DiffStride layer whose strides learn and crop")
        _check_apart(self._layers)
        self.multiply_adds = budget if budget > 100 else budget * self.cost.value()
        self._written = self._read()
        self._wanted = self._read()
        self._spending = Spending(self.cost, self._layers)
        self._check_spendable()
        self.project_()

    def project_(self) -> None:
        """Level the last step and scale the strides so that the cost meets the budget, in place.

        Weights loaded from a checkpoint count as a step: load the budget's state, too.

        Raises:
            ValueError: a stride is not finite; nothing is changed then.
        """
        self._check_finite()
        moves = self._level_moves()
        moved = {
            name: [log + move for log, move in zip(logs, moves[name], strict=True)]
            for name, logs in self._wanted.items()
        }
        wanted = self._scaled(moved)
        self._write(self._spending.spend(wanted, self._least, self.multiply_adds))
        self._wanted = wanted

    def _scaled(self, moved: Logs) -> Logs:
        """These strides scaled to the budget, or those in use where no scaling leads there."""
        try:
            return scaled(moved, self._spending, self._least, self.multiply_adds)
        except ValueError:
            if self._spending.value(self._written) > self.multiply_adds:
                raise
            return self._written

    @torch.no_grad()
    def level_gradients_(self) -> None:
        """Take from the gradients of the strides what would change the cost, in place.

        To be called before the step of an optimiser that rescales gradients. Layers without a
        gradient count as not pulled at.
        """
        layers = self._layers.values()
        present = [layer.strides.grad for layer in layers]
        gradients = torch.cat(
            [
                torch.zeros_like(layer.strides) if gradient is None else gradient
                for layer, gradient in zip(layers, present, strict=True)
            ]
        )
        levelled = -self._level(-gradients.to(CPU, torch.float64))
        parts = levelled.split([len(layer.strides) for layer in layers])
        for gradient, part in zip(present, parts, strict=True):
            if gradient is not None:
                gradient.copy_(part)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on as if it had not been interrupted."""
        return {
            "multiply_adds": self.multiply_adds,
            "wanted": dict(self._wanted),
            "written": dict(self._written),
            "spending": self._spending.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, strides included.

        Raises:
            ValueError: if it is that of a network with other layers.
        """
        if state["written"].keys() != self._written.keys():
            raise ValueError(
                f"the state is of a network with the layers {', '.join(state['written'])}, but "
                f"this one has {', '.join(self._written)}"
            )
        self.multiply_adds = state["multiply_adds"]
        self._wanted = dict(state["wanted"])
        self._spending.load_state_dict(state["spending"])
        self._write(state["written"])

    def _read(self) -> Logs:
        return {
            name: [log(max(stride, 1.0)) for stride in layer.strides.tolist()]
            for name, layer in self._layers.items()
        }

    def _check_spendable(self) -> None:
        low = {
            name: [self._spending.limits(name)[0]] * len(logs)
            for name, logs in self._written.items()
        }
        most, now = self._spending.value(low), self.cost.value()
        if most < self._least:
            raise ValueError(
                f"a budget of {self.multiply_adds:,.0f} multiply-adds, "
                f"{self.multiply_adds / now:.3g} times the present {now:,}, cannot be spent: with "
                f"all strides as small as they may be, the network costs {most:,}; up to 100 a "
                "budget is a fraction of the present cost, above that a number of multiply-adds"
            )

    def _check_finite(self) -> None:
        for name, layer in self._layers.items():
            if not layer.strides.isfinite().all():
                raise ValueError(
                    f"the strides of {name!r} are {layer.strides.tolist()}: training has diverged; "
                    "go back to a checkpoint, and lower their learning rate"
                )

    def _level_moves(self) -> Logs:
        """How far the logarithms of the strides are to move, by what the optimiser made of them."""
        written = [exp(each) for logs in self._written.values() for each in logs]
        # As the parameters hold them.
        at = torch.tensor(written, dtype=torch.float32, device=CPU).double()
        # Unclamped: that a step would lead below the limit tells how much the loss is against more.
        now = torch.cat([layer.strides.detach().to(at) for layer in self._layers.values()])
        # No step makes a stride less than half as large.
        moves = (self._level(now - at) / at).clamp(min=-0.5).log1p()
        parts = moves.split([len(logs) for logs in self._written.values()])
        return {name: part.tolist() for name, part in zip(self._written, parts, strict=True)}

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _level(self, steps: torch.Tensor) -> torch.Tensor:
        """The part of steps from the strides in use that leaves the cost as it is."""
        strides = {
            name: torch.tensor(logs, dtype=torch.float64, device=CPU).exp().requires_grad_()
            for name, logs in self._written.items()
        }
        slopes = torch.cat(torch.autograd.grad(self.cost(strides), list(strides.values())))
        at = torch.cat(list(strides.values())).detach()
        limits = [self._spending.limits(name) for name, logs in self._written.items() for _ in logs]
        low, high = torch.tensor(limits, dtype=torch.float64, device=CPU).exp().T
        return level(steps, slopes, at <= low + LIMIT, at >= high - LIMIT)

    @torch.no_grad()
    def _write(self, logs: Logs) -> None:
        for name, layer in self._layers.items():
            layer.strides.copy_(layer.strides.new_tensor(as_stored(logs[name])))
            layer.project_()
        self._written = self._read()

    @property
    def _least(self) -> float:
        return (1 - TOLERANCE) * self.multiply_adds


def _check_apart(layers: Mapping[str, DiffStride]) -> None:
    holders: dict[int, str] = {}
    for name, layer in layers.items():
        other = holders.setdefault(id(layer.strides), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} hold one parameter for their strides, which a budget "
                "cannot move for both: use one layer in both places"
            )
