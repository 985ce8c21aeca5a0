"""A budget in an optimiser: the hooks of its steps, and a place in its state."""

from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from diffstride.strides import StepHooks, check_optimizer

if TYPE_CHECKING:
    from diffstride.cost.budget import CostBudget

STATES = "diffstride_budgets"  # in the states of optimisers


class AttachedBudget(StepHooks):
    """The hooks by which an optimiser holds a `CostBudget`; `remove` takes them off.

    They project before and after each step. The state of the budget is in that of the optimiser,
    under `STATES`, by a number: budgets of several networks may have layers of the same names.

    Raises:
        TypeError, ValueError: as of `CostBudget.attach`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, budget: "CostBudget") -> None:
        check_optimizer(optimizer)
        attached: dict[str, AttachedBudget] = vars(optimizer).setdefault(STATES, {})
        for key, other in list(attached.items()):
            if other.removed:
                del attached[key]
            else:
                _check_apart(budget, other.budget)
        strides = [layer.strides for layer in budget.space.layers.values()]
        super().__init__(optimizer, strides, budget.project_gradients_, budget.project_)
        self.budget = budget
        self._key = next(number for number in map(str, count()) if number not in attached)
        self._loading: dict[str, Any] | None = None  # its state, while the optimiser loads
        attached[self._key] = self
        self.handles += [
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._find),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]

    def _save(self, optimizer: Any, state: dict[str, Any]) -> None:
        state.setdefault(STATES, {})[self._key] = self.budget.state_dict()

    def _find(self, optimizer: Any, state: dict[str, Any]) -> None:
        self._loading = state.get(STATES, {}).get(self._key)

    def _load(self, optimizer: Any) -> None:
        """Load the state that was found, now that the optimiser has taken its own."""
        if self._loading is not None:
            self.budget.load_state_dict(self._loading)
            self._loading = None


def _check_apart(budget: "CostBudget", other: "CostBudget") -> None:
    """Refuse two budgets of the same layers, or one twice."""
    if other is budget:
        raise ValueError(
            "this budget is attached to this optimizer already: attach it once, or call "
            "remove() of what attach returned before"
        )
    held = set(other.space.layers.values())
    for name, layer in budget.space.layers.items():
        if layer in held:
            raise ValueError(
                f"another budget, of {other.multiply_adds:,.0f} multiply-adds, is attached to "
                f"this optimizer and moves {name!r}, too: attach one, or call remove() of what "
                "attach returned for the other"
            )
