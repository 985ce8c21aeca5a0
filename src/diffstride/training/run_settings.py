"""What tells one run from another: its settings, described and compared."""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffstride.training.data import Datasets
from diffstride.training.schedules import build_schedule

NOTED_SINCE = ("labels", "mean", "std", "strides", "scheduled")
"""Facts that runs did not note at first: one that has not is not held to them."""


def describe_run(
    data: Datasets,
    network: nn.Module,
    build_optimizer: Callable[[], Optimizer],
    schedule: Callable[..., LRScheduler] | None,
    *,
    num_epochs: int,
    label_smoothing: float,
    seed: int,
    budget: float | None,
    stride_penalty: float,
    weight_averaging: float | None,
    stride_phase: tuple[float, float],
) -> dict[str, Any]:
    """The settings that decide how a run ends, as JSON can hold them.

    Network, optimiser and schedule as they describe themselves. Precision, accelerator and the like
    take no part: a run may go on on another machine.
    """
    settings = {
        "dataset": data.name,
        "batch_size": data.train.batch_size,
        **data.settings,
        "num_epochs": num_epochs,
        "label_smoothing": label_smoothing,
        "seed": seed,
        "network": repr(network),
        "strides": _all_strides(network),  # the description rounds them
        **({"budget": budget} if budget else {}),
        **({"stride_penalty": stride_penalty} if stride_penalty else {}),
        **({"weight_averaging": weight_averaging} if weight_averaging is not None else {}),
        **({"stride_phase": [*stride_phase]} if tuple(stride_phase) != (0, 1) else {}),
        **_describe_optimization(build_optimizer, schedule, num_epochs * len(data.train)),
    }
    return as_python(settings)


def as_python(value: Any) -> Any:
    """Numbers of NumPy, of a sweep for instance, as those of Python, in containers too.

    >>> as_python({"lr": np.float64(0.1), "strides": [np.int64(2), 1.5]})
    {'lr': 0.1, 'strides': [2, 1.5]}
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {as_python(key): as_python(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(as_python, value))
    return value


def check_settings(workdir: Path, found: Any, expected: dict[str, Any]) -> None:
    """Refuse to go on in a folder whose run was made with other settings.

    Arguments:
        workdir: the folder, to be named.
        found: the settings of the run it holds, as read.
        expected: those that were asked for.

    Raises:
        ValueError: they differ; names each that does, with both values.

    >>> check_settings(Path("runs/a"), {"seed": 0, "budget": 0.5}, {"seed": 1})
    Traceback (most recent call last):
    ...
    ValueError: runs/a holds a run that differs in seed (0 there, 1 asked for), budget (0.5 there,
    None asked for): choose another workdir, or remove this one
    """
    found = found if isinstance(found, dict) else {}
    names = [name for name in [*expected, *found] if name in found or name not in NOTED_SINCE]
    pairs = {name: (found.get(name), expected.get(name)) for name in names}
    different = [
        f"{name} ({_first_difference(there, asked)})"
        for name, (there, asked) in pairs.items()
        if there != asked
    ]
    if different:
        raise ValueError(
            f"{workdir} holds a run that differs in {', '.join(different)}: "
            "choose another workdir, or remove this one"
        )


def _first_difference(there: Any, asked: Any) -> str:
    """Both values; of two descriptions of many lines the first ones that differ."""
    if isinstance(there, str) and isinstance(asked, str):
        lines = zip_longest(there.splitlines(), asked.splitlines(), fillvalue="")
        pairs = ((one.strip(), two.strip()) for one, two in lines)
        there, asked = next((pair for pair in pairs if pair[0] != pair[1]), (there, asked))
    return f"{there!r} there, {asked!r} asked for"


def _describe_optimization(
    build_optimizer: Callable[[], Optimizer],
    schedule: Callable[..., LRScheduler] | None,
    total_steps: int,
) -> dict[str, str]:
    # On an optimiser to throw away: a schedule rewrites the learning rates of the one it is given.
    optimizer = build_optimizer()
    description = {"optimizer": repr(optimizer), "schedule": "constant"}
    if schedule is not None:
        state = build_schedule(schedule, optimizer, total_steps).state_dict()
        description["schedule"] = "\n".join(f"{name}: {state[name]!r}" for name in sorted(state))
        # Some keep what they were given there: the least rate, the momentum's limits.
        description["scheduled"] = repr(optimizer)
    return description


def _all_strides(network: nn.Module) -> str:
    layers = {name: getattr(each, "strides", None) for name, each in network.named_modules()}
    values = {
        name: strides.tolist() if isinstance(strides, Tensor) else strides
        for name, strides in layers.items()
        if isinstance(strides, (Tensor, tuple))
    }
    return "\n".join(f"{name}: {strides}" for name, strides in values.items())
