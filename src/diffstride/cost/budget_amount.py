"""How many multiply-adds a budget is, from what was asked for; warnings about surprising ones."""

from collections.abc import Mapping
from math import exp
from numbers import Real
from typing import Any
from warnings import warn

from torch import Tensor, nn

from diffstride._torch_compat import tree_leaves, uncompiled
from diffstride.cost.stride_space import Logs
from diffstride.graph.example_inputs import as_inputs, have_same_sizes

MOST_TIMES = 100  # the present cost: larger budgets are numbers of multiply-adds
MOST_RAISED = 2.0  # times a stride, by a budget that was to change nothing


def asked_amount(
    model: nn.Module, example: Any, budget: Any, fraction: Any, multiply_adds: Any
) -> tuple[float, bool]:
    """What the arguments of `CostBudget` ask for, and whether as a fraction of the present cost.

    Raises:
        ValueError: several are given, or one is no positive number or has no meaning here.
    """
    given = {"budget": budget, "fraction": fraction, "multiply_adds": multiply_adds}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"give one of {' and '.join(given)}, not both")
    ((name, value),) = given.items() or {"fraction": 1.0}.items()
    if name == "budget" and _is_before(value):
        return cost_before(model, example), False
    check_amount(name, value)
    return value, name == "fraction" or (name == "budget" and value <= MOST_TIMES)


def _is_before(value: Any) -> bool:
    return isinstance(value, str) and value == "before"


def warn_of_larger_budget(times: float, budget: float, present: float) -> None:
    """Warn of a small budget above 1, which may be meant as a number of multiply-adds."""
    warn(
        f"budget={times!r} is read as {times:g} times the present {present:,} multiply-adds: the "
        f"strides became smaller to use {budget:,.0f}. Give a number of multiply-adds in full; "
        f"CostBudget(…, fraction={times!r}) means this and does not warn",
        stacklevel=3,
    )


def warn_of_raised_strides(
    model: nn.Module, before: Logs, after: Logs, costs: Mapping[str, int]
) -> None:
    """Warn if the cost before conversion takes far larger strides, and say what costs more now.

    That may be pooling, which costs as much as its network where channels are few, or a module that
    runs at stride 1 and is pooled after.

    Args:
        model: as from `diffstride.convert`.
        before, after: the logarithms of the strides, as converted and under the budget.
        costs: multiply-adds of each module as converted.
    """
    times, name, old, new = max(
        (exp(new - old), name, exp(old), exp(new))
        for name in before
        for old, new in zip(before[name], after[name], strict=True)
    )
    if times < MOST_RAISED:
        return
    costs_before: dict[str, int] = model.conversion.multiply_adds  # type: ignore[assignment]
    risen = max(costs, key=lambda module: costs[module] - costs_before.get(module, 0))
    warn(
        f"at the cost before conversion a stride of {name!r} rises from {old:.3g} to {new:.3g}, "
        f"and its maps may be too small to learn from: as converted {risen!r} costs "
        f"{costs[risen]:,} of {sum(costs.values()):,} multiply-adds, and "
        f"{costs_before.get(risen, 0):,} before; leave it out with filter_fn, or give a larger "
        "budget",
        stacklevel=3,
    )


def advise_on_placement(model: nn.Module, name: str) -> str:
    """Where a converted module is pooled that holds a cost up, and how to change that."""
    record: Any = getattr(model, "conversion", None)
    placements: dict[str, str] = getattr(record, "placements", {})
    where = {"after": "after", "on top": "on top of a stride that it keeps"}
    if placements.get(name) not in where:
        return ""
    how = (
        "convert the original network with order='before' and min_channels=0, which pools it before"
    )
    why = record.only_after.get(name, "")
    if why or any(step.options.get("order") == "before" for step in record.steps):
        why = f", as {why}" if why else ""
        how = "convert the original network with a filter_fn that leaves it out"
    return f". It is pooled {where[placements[name]]}{why}: {how}"


def check_amount(name: str, value: Any) -> None:
    """Refuse a budget that is no positive number; ``"before"`` is one by its short name only.

    >>> import torch
    >>> check_amount("fraction", torch.zeros(1, 3, 8, 8))
    Traceback (most recent call last):
    ValueError: fraction must be a positive number, but got a Tensor of shape (1, 3, 8, 8)
    """
    number: Any = value
    if (isinstance(value, Real) and number > 0) or (name == "budget" and _is_before(value)):
        return
    words = " or 'before'" if name == "budget" else ""
    got = repr(value)
    if hasattr(value, "shape"):
        got = f"a {type(value).__name__} of shape {tuple(number.shape)}"
    if name == "budget" and isinstance(value, (Tensor, tuple, nn.Module)):
        got += ": pass the example before the budget"
    raise ValueError(f"{name} must be a positive number{words}, but got {got}")


def cost_before(model: nn.Module, example: Any) -> float:
    """The multiply-adds of a network before `diffstride.convert`, of one sample.

    Raises:
        ValueError: if it was not converted as a whole, or with an example of another size.
    """
    model = uncompiled(model)
    record: Any = getattr(model, "conversion", None)
    costs = getattr(record, "multiply_adds", None)
    if not isinstance(costs, dict):
        raise ValueError(
            f"budget='before' is the cost before conversion, but this {type(model).__name__} does "
            "not come from diffstride.convert: pass the network that does, or fraction= or "
            "multiply_adds="
        )
    if not have_same_sizes(as_inputs(model, example), record.example):
        sizes = [tuple(x.shape) for x in tree_leaves(record.example) if isinstance(x, Tensor)]
        raise ValueError(
            f"budget='before' is the cost before conversion, with an example of shape {sizes[0]}: "
            "pass one of that size, or multiply_adds="
        )
    return float(costs[""])


def known_cost_before(model: nn.Module, example: Any) -> float | None:
    """As `cost_before`; None where it does not know that."""
    try:
        return cost_before(model, example)
    except ValueError:
        return None
