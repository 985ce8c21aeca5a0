"""Checks the options of a training before anything is built, and chooses the rule of strides."""

from collections.abc import Mapping
from math import inf
from numbers import Integral, Real
from typing import Any, Literal

from diffstride.callbacks import StridePhase
from diffstride.training.trainer import check_strategy

StrideRule = Literal["gradient", "measured"]

RANGES: dict[str, tuple[float, float, type[Real]]] = {
    "num_epochs": (1, inf, Integral),
    "seed": (0, 2**63 - 1, Integral),
    "label_smoothing": (0, 1, Real),
    "stride_penalty": (0, inf, Real),
    "weight_decay": (0, inf, Real),
    "threads": (1, 1024, Integral),  # more than machines have cores; many more end the process
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `diffstride.training.run.train` that are out of range or clash.

    Raises:
        ValueError: names the option, what it is and what to do.
    """
    for name in RANGES:
        if options[name] is not None:
            check_range(name, options[name])
    of_gradients = options["stride_phase"], options["stride_penalty"]
    _check_rule(options["stride_rule"], options["budget"], _set_for_gradients(*of_gradients))
    StridePhase(*options["stride_phase"])  # raises if a share is out of its range
    check_strategy(options["strategy"])
    _check_optimizer(options["optimizer"])
    if options["weight_averaging"] is not None:
        _check_averaging(options["weight_averaging"], str(options["precision"]))


def check_range(name: str, value: float) -> None:
    """Refuse a number out of its range of `RANGES`.

    >>> check_range("label_smoothing", 1.5)
    Traceback (most recent call last):
    ...
    ValueError: label_smoothing must be a number from 0 to 1, but got 1.5
    """
    lowest, highest, kind = RANGES[name]
    if isinstance(value, kind) and lowest <= value <= highest and value != inf:
        return
    what = "a whole number" if kind is Integral else "a number"
    limits = f"of at least {lowest}" if highest == inf else f"from {lowest} to {highest}"
    raise ValueError(f"{name} must be {what} {limits}, but got {value!r}")


def choose_rule(
    shared_out: int, stride_phase: tuple[float, float], stride_penalty: float
) -> StrideRule:
    """The rule of a training that names none: measured losses where they have a choice.

    Args:
        shared_out: the number of strides among which a budget is shared out; 0 without a budget.
        stride_phase, stride_penalty: as of the training; set, they ask for gradients.

    >>> choose_rule(2, (0.0, 1.0), 0.0), choose_rule(2, (0.0, 0.5), 0.0)
    ('measured', 'gradient')
    """
    for_gradients = _set_for_gradients(stride_phase, stride_penalty)
    return "measured" if shared_out > 1 and not for_gradients else "gradient"


def _set_for_gradients(phase: tuple[float, float], penalty: float) -> dict[str, Any]:
    """The options that are set and act on the gradients of the strides alone."""
    set_phase = {"stride_phase": phase} if tuple(phase) != (0, 1) else {}
    return set_phase | ({"stride_penalty": penalty} if penalty else {})


def _check_rule(rule: StrideRule | None, budget: Any, for_gradients: dict[str, Any]) -> None:
    if rule != "measured":
        return
    if budget is None:
        raise ValueError(
            "stride_rule='measured' shares out a budget, but there is none: set budget='strided' "
            "or a number of multiply-adds, or leave stride_rule out"
        )
    if for_gradients:
        name, value = next(iter(for_gradients.items()))
        raise ValueError(
            f"{name}={value!r} is for strides that learn by their gradients, but stride_rule is "
            "'measured': leave one of them out"
        )


def _check_averaging(decay: float, precision: str) -> None:
    if not (isinstance(decay, Real) and 0 <= decay < 1):
        raise ValueError(f"weight_averaging must be at least 0 and below 1, but got {decay!r}")
    if precision in ("bf16-true", "16-true", "64-true", "64"):
        other = "32-true" if "64" in precision else precision.replace("true", "mixed")
        raise ValueError(
            f"weight_averaging={decay!r} needs weights in float32, but precision is "
            f"{precision!r}: use {other!r}"
        )


def _check_optimizer(optimizer: Any) -> None:
    if "weight_decay" in getattr(optimizer, "keywords", {}):
        raise ValueError(
            "the weight_decay of the optimizer would have no effect, as every parameter group has "
            "its own: set the weight_decay of the training instead"
        )
