"""Hold a network to a budget of multiply-adds while its strides learn."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from diffstride._stride_text import strides_text
from diffstride._torch_compat import uncompiled
from diffstride.cost.attached_budget import AttachedBudget
from diffstride.cost.budget_amount import (
    MOST_TIMES,
    asked_amount,
    known_cost_before,
    warn_of_larger_budget,
    warn_of_raised_strides,
)
from diffstride.cost.forgotten_calls import ForgottenProjection
from diffstride.cost.multiply_adds import MultiplyAdds, on_host
from diffstride.cost.size_thresholds import as_stored
from diffstride.cost.strides_on_budget import StridesOnBudget
from diffstride.strides import StepHooks


class CostBudget(StridesOnBudget):
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

    With several processes, every process calls `project_` after each step, and all need the same
    strides and budget from the start. Build the budget after `DistributedDataParallel`, which makes
    the networks equal, with ``ddp.module``.

    In networks without padding, strides stay below those at which a map would be empty; the first
    layers get the strides asked for first.

    In any loop, `attach` does the rest::

        budget = CostBudget(model, images, "before")
        budget.attach(optimizer)

    or by hand::

        budget.project_gradients_()  # for Adam and similar optimisers
        optimizer.step()
        budget.project_()

    With Lightning, add `diffstride.callbacks.BudgetCallback`.

    Args:
        model: a network with `DiffStride` layers.
        example: an input, or several as for `convert`; only shapes matter.
        budget: ``"before"`` for the cost before `convert`; or a number, up to 100 a fraction of the
            present multiply-adds, above that their number for one sample.
        leaf_modules: as for `convert`.
        fraction: instead of ``budget``, a fraction of the present multiply-adds. Above 1 the
            strides become smaller, and the network costs more than now. A ``budget`` above 1 and up
            to 100 does the same and warns, as it may be meant as a number of multiply-adds.
        multiply_adds: instead of ``budget``, a number of multiply-adds for one sample.

    Raises:
        ValueError: if the budget is not positive, too small or more than the network can cost, or
            not given in one way; if no stride learns, or if the cost does not follow from the
            strides.

    Warns:
        UserWarning: ``"before"`` makes a stride at least twice as large; or later, if an
            optimiser moves the strides and nothing holds the budget.

    >>> from diffstride import DiffStride
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
        budget: float | Literal["before"] | None = None,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        *,
        fraction: float | None = None,
        multiply_adds: float | None = None,
    ) -> None:
        amount, of_present = asked_amount(model, example, budget, fraction, multiply_adds)
        cost = MultiplyAdds(model, example, leaf_modules)
        self._present = cost.value()
        allowed = float(amount) * (self._present if of_present else 1)  # NumPy's, too
        super().__init__(uncompiled(model), cost, allowed)
        self._before, before = known_cost_before(self.model, example), self.in_use
        self._hooks: list[StepHooks] = []
        costs = self.cost.by_module() if budget == "before" else {}
        self.aim_(before)
        self.held.compute_gradients(True)
        self._start_watch()
        if budget == "before":
            warn_of_raised_strides(self.model, before, self.in_use, costs)
        elif budget is not None and 1 < budget <= MOST_TIMES:
            warn_of_larger_budget(budget, self.multiply_adds, self._present)

    def _start_watch(self) -> None:
        self.watch = ForgottenProjection(self.held.parameters, self._explain_forgotten)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files have: no optimiser holds them, as copies of it have no hooks."""
        return vars(self) | {"_hooks": [], "watch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_watch()

    def __repr__(self) -> str:
        try:
            return self._text()
        except ValueError as error:  # a map is empty, or a stride is not finite
            return f"CostBudget({self.multiply_adds:,.0f} multiply-adds; cost unknown: {error})"

    def _text(self) -> str:
        sizes = {name: [axis.size for axis in axes] for name, axes in self.cost.maps().items()}
        strides = ", ".join(
            f"{name}: {strides_text(layer.stride_values(), sizes.get(name, ()))}"
            for name, layer in self.held.layers.items()
        )
        used, limit = self.cost.value(), self.multiply_adds
        times = limit / self._present
        more = f", {times:.3g} times the {self._present:,} at first" * (times > 1)
        if self._before:
            share = f"{limit / self._before:.3g}"
            joint = " and" if more else ","
            more += f"{joint}{f' {share} times' * (share != '1')} the cost before conversion"
        now = self.held.by_layer(on_host(self.held.parameters).tolist())
        moved = any(values != as_stored(self.in_use[name]) for name, values in now.items())
        advice = "; moved since project_(), which attach(optimizer) calls after each step" * moved
        return (
            f"CostBudget({used:,} of {limit:,.0f} multiply-adds, {used / limit:.1%}{more}; "
            f"strides {strides}{advice})"
        )

    def _explain_forgotten(self) -> str:
        return (
            "an optimizer moves the strides, but nothing holds their budget of "
            f"{self.multiply_adds:,.0f} multiply-adds: the network now costs "
            f"{self.cost.value():,}. Call attach(optimizer) of the CostBudget once, or after each "
            "step its project_(), or step(loss) of a MeasuredStrides"
        )

    def attach(self, optimizer: torch.optim.Optimizer) -> "StepHooks":
        """Have an optimiser call `project_gradients_` before and `project_` after each step.

        Batches that only accumulate gradients call neither. Steps that a ``GradScaler`` skips
        change nothing: it does not call the optimiser, or a fused one skips the step itself.
        An optimiser that computes gradients inside its step, by a closure as LBFGS does, is held
        after it. The state of the budget is in that of the optimiser, under "diffstride_budgets",
        so that training resumes from a checkpoint of both network and optimiser.

        Args:
            optimizer: any optimiser; wrappers of other libraries call its ``step``.

        Returns:
            The hooks; ``remove()`` takes them off.

        Raises:
            TypeError: if it is no optimiser, but a class of such, for instance.
            ValueError: if this budget, or another of the same layers, is attached to the optimiser
                already, or if the optimiser has none of the strides.

        >>> from diffstride import DiffStride
        >>> net = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 256, 3, padding=1))
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        >>> budget = CostBudget(net, torch.zeros(1, 1, 64, 64), fraction=0.9)
        >>> hooks = budget.attach(optimizer)
        >>> net(torch.rand(1, 1, 64, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> budget.cost.value() <= budget.multiply_adds
        True
        """
        hooks = AttachedBudget(optimizer, self)
        self.watch.stop()
        self.held.compute_gradients(True)
        self._hooks.append(hooks)
        return hooks

    def project_(self) -> None:
        """Project the last step onto constant cost and scale the strides to the budget, in place.

        Weights loaded from a checkpoint count as a step: load the budget's state, too.

        Raises:
            ValueError: a stride is not finite, some strides were fixed by ``requires_grad`` after
                the budget was made and others not, or the budgets of several processes differ;
                nothing is changed then.
        """
        self.held.check_learn_alike()
        strides = self.held.read()
        self.watch.stop()
        self.check_processes()
        self.aim_(self._moved_wanted(strides))

    @property
    def is_attached(self) -> bool:
        """Whether an optimiser moves the strides, by `attach`."""
        return not all(hooks.removed for hooks in self._hooks)

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Project the gradients of the strides onto constant cost, in place.

        Call it before each step of an optimiser that rescales gradients. Layers without a gradient
        count as having one of 0.

        Raises:
            ValueError: some strides were fixed after the budget was made, and others not.
        """
        self.held.check_learn_alike()
        strides = self.held.parameters
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in strides]
        steps = [-gradient for gradient in on_host(gradients).tolist()]
        projected = gradients[0].new_tensor([-step for step in self._projected(steps)])
        parts = projected.split(list(map(len, strides)))
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to continue like an uninterrupted one."""
        return {
            "multiply_adds": self.multiply_adds,
            "wanted": dict(self.wanted),
            "written": dict(self.in_use),
            "size_search": {"last": self._size_search.last},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, strides included.

        Raises:
            ValueError: if it is that of a network with other strides or limits, or not of a budget.
        """
        self.check_state(state)
        self.multiply_adds = state["multiply_adds"]
        self.wanted = dict(state["wanted"])
        self._size_search.last = state["size_search"]["last"]
        self.held.write_(state["written"])
        self._compared = False

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that is not of a budget, or is that of another network.

        Raises:
            ValueError: it is; says how the networks differ.
        """
        if "written" not in state:
            raise ValueError(
                f"the state has {', '.join(state)}, and is not of a CostBudget: pass what its "
                "state_dict() returned; that of MeasuredStrides belongs into MeasuredStrides"
            )
        written, present = state["written"], self.in_use
        there, here = ({name: len(each) for name, each in x.items()} for x in (written, present))
        if there != here:
            raise ValueError(
                f"the state is of a network with the strides {there}, by layer, but this one has "
                f"{here}: continue with that of the same network, with the same layers learning"
            )
        self.held.check_limits(written)
