"""Hold a network to a budget of multiply-adds while its strides learn."""

from collections.abc import Iterable, Mapping
from math import exp, log
from numbers import Real
from typing import Any

import torch
from torch import nn

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.cost.projection import project_step
from diffstride.cost.size_search import SizeSearch
from diffstride.cost.stride_space import Logs, StrideSpace, as_stored, scale_to_budget
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import CPU

TOLERANCE = 0.01  # share of the budget that may stay unused
LIMIT = 1e-6  # distance at which a stride counts as at its limit


class CostBudget:
    """Holds the multiply-adds of a network to a budget during training.

    `project_`, to be called after each step of the optimiser, does four things:

    1. It projects the step onto constant cost (`diffstride.cost.projection`), so that strides learn
       how to share the budget: gradient descent, with momentum or without, converges where no
       exchange of one stride for another lowers the loss. Adam and other optimisers that rescale
       gradients need `project_gradients_` before each step for that.
    2. It multiplies the logarithms of all strides by one factor, within the limits of their layers,
       such that the cost meets the budget. A stride of 1, where nothing is pooled, stays.
    3. Maps have whole numbers of samples, so the cost moves in steps, on small maps in large ones.
       Where more than a hundredth of the budget would stay unused, it moves the strides to the
       nearest map sizes that use it up. Only where maps are so few and small that no sizes near by
       do so, more stays unused. The budget is never exceeded.
    4. It writes the strides, and remembers those of step 2: small steps of the optimiser add up
       until they change a size.

    In networks without padding, strides stay below those at which a map would be empty; the first
    layers get the strides asked for first.

    In a plain loop::

        budget = CostBudget(model, images)
        ...
        budget.project_gradients_()  # for Adam and similar optimisers
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
        ValueError: if the budget is not positive, too small or more than the network can cost, if
            no stride learns, or if the cost does not follow from the strides.

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
        self._space = StrideSpace(self.cost, self._layers)
        self._size_search = SizeSearch(self._space)
        self._check_reachable()
        self.project_()

    def project_(self) -> None:
        """Project the last step onto constant cost and scale the strides to the budget, in place.

        Weights loaded from a checkpoint count as a step: load the budget's state, too.

        Raises:
            ValueError: a stride is not finite; nothing is changed then.
        """
        self._check_finite()
        wanted, limits = self._moved(), (self._least, self.multiply_adds)
        try:
            wanted = scale_to_budget(wanted, self._space, *limits)
        except ValueError:  # no factor leads there
            if self._space.value(self._written) > self.multiply_adds:
                raise
            wanted = self._written
        self._write(self._size_search.use_up(wanted, *limits))
        self._wanted = wanted

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Project the gradients of the strides onto constant cost, in place.

        Call it before each step of an optimiser that rescales gradients. Layers without a gradient
        count as having one of 0.
        """
        strides = [layer.strides for layer in self._layers.values()]
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in strides]
        projected = -self._project(-torch.cat(gradients).to(CPU, torch.float64))
        for gradient, part in zip(gradients, projected.split(list(map(len, strides))), strict=True):
            gradient.copy_(part)

    level_gradients_ = project_gradients_  # its name in 0.1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to continue like an uninterrupted one."""
        return {
            "multiply_adds": self.multiply_adds,
            "wanted": dict(self._wanted),
            "written": dict(self._written),
            "size_search": {"last": self._size_search.last},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, strides included.

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
        # States of 0.1 have the key "spending".
        self._size_search.last = (state.get("size_search") or state["spending"])["last"]
        self._write(state["written"])

    def _read(self) -> Logs:
        return {
            name: [log(max(stride, 1.0)) for stride in layer.strides.tolist()]
            for name, layer in self._layers.items()
        }

    def _check_reachable(self) -> None:
        most, now = self._space.value(self._space.smallest()), self.cost.value()
        if most < self._least:
            raise ValueError(
                f"a budget of {self.multiply_adds:,.0f} multiply-adds, "
                f"{self.multiply_adds / now:.3g} times the present {now:,}, is more than the "
                f"network costs at its smallest strides, {most:,}; up to 100 a budget is a "
                "fraction of the present cost, above that a number of multiply-adds"
            )

    def _check_finite(self) -> None:
        for name, layer in self._layers.items():
            if not layer.strides.isfinite().all():
                raise ValueError(
                    f"the strides of {name!r} are {layer.strides.tolist()}: training has diverged; "
                    "load the last checkpoint, and lower their learning rate"
                )

    def _moved(self) -> Logs:
        """The strides wanted, moved by the optimiser's last step, projected onto constant cost."""
        written = [exp(each) for logs in self._written.values() for each in logs]
        # As the parameters hold them.
        at = torch.tensor(written, dtype=torch.float32, device=CPU).double()
        # Unclamped: how far a step would lead below the limit is part of the gradient.
        now = torch.cat([layer.strides.detach().to(at) for layer in self._layers.values()])
        # No step makes a stride less than half as large.
        moves = (self._project(now - at) / at).clamp(min=-0.5).log1p()
        each = iter(moves.tolist())
        return {name: [log + next(each) for log in self._wanted[name]] for name in self._written}

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _project(self, steps: torch.Tensor) -> torch.Tensor:
        """The part of steps from the strides in use along which the cost stays constant."""
        strides = {
            name: torch.tensor(logs, dtype=torch.float64, device=CPU).exp().requires_grad_()
            for name, logs in self._written.items()
        }
        slopes = torch.cat(torch.autograd.grad(self.cost(strides), list(strides.values())))
        at = torch.cat(list(strides.values())).detach()
        limits = [self._space.limits(name) for name, logs in self._written.items() for _ in logs]
        low, high = torch.tensor(limits, dtype=torch.float64, device=CPU).exp().T
        at_limits = (at <= low + LIMIT).tolist(), (at >= high - LIMIT).tolist()
        return steps.new_tensor(project_step(steps.tolist(), slopes.tolist(), *at_limits))

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
                f"{other!r} and {name!r} are two layers with one parameter for their strides, "
                "which a budget cannot move: use one layer for both"
            )
