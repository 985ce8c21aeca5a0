"""A network's multiply-adds held to a budget while its strides learn how to share it out."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import exp, inf, log
from typing import Any

import torch
from torch import nn

from diffstride.cost import MultiplyAdds
from diffstride.pooling import DiffStride
from diffstride.spectrum import Axis, plan_axis

Logs = dict[str, list[float]]  # logarithms of strides, by layer
Moves = dict[tuple[str, int], float]  # changes of single ones of these

TOLERANCE = 0.01  # how much of the budget may stay unspent
NEAREST = 6  # map sizes that are considered for a change by one sample
TRIES = 400


class CostBudget:
    """Holds the multiply-adds of a network to a budget during training.

    At once, and after each step of the optimiser, `project_` multiplies all strides by one factor,
    within the limits of their layers, such that the cost meets the budget. So the strides go on
    learning, but only relative to each other: how the budget is shared out.

    A map has a whole number of samples, so the cost moves in steps, on small maps in large ones. It
    never exceeds the budget. Where it would stay below by more than a hundredth, the strides in use
    are moved to the nearest map sizes that spend it; what the optimiser asked for is remembered, so
    that small steps add up until they change a size.

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

    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(1, 8, 3))
    >>> budget = CostBudget(net, torch.zeros(1, 1, 32, 32))
    >>> _ = net[0].strides.data.fill_(1.5)
    >>> budget.project_()
    >>> net[0].strides
    Parameter containing:
    tensor([2.0000, 2.0000], requires_grad=True)
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
        self._remembered: tuple[tuple[int, ...], Moves] = (), {}
        self.project_()

    def project_(self) -> None:
        """Scale the strides so that the cost meets the budget, in place."""
        for name, now in self._read().items():
            steps = zip(self._wanted[name], now, self._written[name], strict=True)
            self._wanted[name] = [wanted + new - old for wanted, new, old in steps]
        self._wanted = self._scaled(self._wanted)
        self._write(self._spend(self._wanted))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on as if it had not been interrupted."""
        return {
            "multiply_adds": self.multiply_adds,
            "wanted": dict(self._wanted),
            "written": dict(self._written),
            "remembered": self._remembered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, strides included."""
        self.multiply_adds = state["multiply_adds"]
        self._wanted, self._remembered = dict(state["wanted"]), state["remembered"]
        self._write(state["written"])

    def _read(self) -> Logs:
        return {
            name: [log(max(stride, 1.0)) for stride in layer.strides.tolist()]
            for name, layer in self._layers.items()
        }

    @torch.no_grad()
    def _write(self, logs: Logs) -> None:
        for name, layer in self._layers.items():
            layer.strides.copy_(layer.strides.new_tensor([exp(value) for value in logs[name]]))
            layer.project_()
        self._written = self._read()

    @property
    def _least(self) -> float:
        return (1 - TOLERANCE) * self.multiply_adds

    def _value(self, logs: Logs) -> int:
        return self.cost.value({name: list(map(exp, values)) for name, values in logs.items()})

    def _maps(self, logs: Logs) -> dict[str, list[Axis]]:
        return self.cost.maps({name: list(map(exp, values)) for name, values in logs.items()})

    def _limits(self, name: str) -> tuple[float, float]:
        layer = self._layers[name]
        return log(layer.lower_limit_stride or 1.0), log(layer.upper_limit_stride or inf)

    def _scaled(self, logs: Logs) -> Logs:
        """All strides times the smallest factor that keeps the cost within the budget."""

        def scaled(amount: float) -> Logs:
            return {
                name: [min(max(value + amount, low), high) for value in values]
                for name, values in logs.items()
                for low, high in [self._limits(name)]
            }

        def affordable(amount: float) -> bool:
            return self._value(scaled(amount)) <= self.multiply_adds

        if self._least <= self._value(scaled(0.0)) <= self.multiply_adds:
            return scaled(0.0)
        # The optimiser takes small steps: look nearby first.
        reach = 1e-3
        while reach < 16 and not (affordable(reach) and not affordable(-reach)):
            reach *= 4
        if not affordable(reach):
            raise ValueError(
                f"a budget of {self.multiply_adds:,.0f} multiply-adds cannot be met: with all "
                f"strides as large as they may be, the network costs {self._value(scaled(reach)):,}"
            )
        return scaled(threshold(affordable, -reach, reach))

    def _spend(self, logs: Logs) -> Logs:
        """The strides of the nearest map sizes that leave no more unspent than tolerated."""
        most = self._value(logs)
        if not most < self._least:
            return logs
        maps = self._maps(logs)
        sizes = tuple(axis.output_size for axes in maps.values() for axis in axes)
        best = logs
        for moves in self._candidates(logs, maps, sizes):
            moved = _moved(logs, moves)
            if most < (cost := self._value(moved)) <= self.multiply_adds:
                best, most = moved, cost
                self._remembered = sizes, moves
            if most >= self._least:
                break
        return best

    def _candidates(
        self, logs: Logs, maps: dict[str, list[Axis]], sizes: tuple[int, ...]
    ) -> Iterator[Moves]:
        """Ways to change a few map sizes by one sample, the nearest first."""
        steps = {
            (name, i): self._steps(name, i, value, maps[name][i])
            for name, values in logs.items()
            for i, value in enumerate(values)
        }
        if self._remembered[0] == sizes:  # stay with what was chosen, or maps would flicker
            again = {key: steps[key][by > 0] for key, by in self._remembered[1].items()}
            if max(map(abs, again.values())) < inf:
                yield again
        nearest = sorted(steps, key=lambda key: min(map(abs, steps[key])))[:NEAREST]
        choices = [[0.0, *(by for by in steps[key] if abs(by) < inf)] for key in nearest]
        combined = sorted(product(*choices), key=lambda choice: sum(map(abs, choice)))
        for choice in combined[1:TRIES]:
            yield {key: by for key, by in zip(nearest, choice, strict=True) if by}

    def _steps(self, name: str, i: int, value: float, axis: Axis) -> tuple[float, float]:
        """How far, in logarithms, the stride is from those of the next larger and smaller map."""
        layer, (low, high) = self._layers[name], self._limits(name)

        def size(at: float) -> int:
            settings = (layer.smoothness_factor, layer.edge, layer.cropping)
            return plan_axis(axis.size, exp(at), *settings).output_size

        now, high = axis.output_size, max(value, min(high, log(2 * axis.size)))
        larger, smaller = -inf, inf
        if size(low) > now:
            larger = threshold(lambda at: size(at) <= now, low, value) - 2e-6 - value
        if size(high) < now:
            smaller = threshold(lambda at: size(at) < now, value, high) - value
        return larger, smaller


def _moved(logs: Logs, moves: Moves) -> Logs:
    return {
        name: [value + moves.get((name, i), 0.0) for i, value in enumerate(values)]
        for name, values in logs.items()
    }


def threshold(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition begins to hold, just above it; ``high`` if it holds nowhere below.

    >>> round(threshold(lambda x: x * x >= 2, 0.0, 4.0), 4)
    1.4142
    """
    if holds(low):
        return low
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high + 5e-7  # a stride is stored as float32: stay on the right side of the step
