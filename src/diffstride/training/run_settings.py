"""Describes the settings of a run and compares them with those of a run folder."""

import warnings
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

OF_SCHEDULE = ("schedule", "scheduled")
OFF = {
    "budget": None,
    "stride_rule": "gradient",
    "stride_penalty": 0.0,
    "weight_averaging": None,
    "stride_phase": [0.0, 1.0],
}
"""Settings that are left out at these values, as runs before them lack them."""

SETS_SCHEDULE = ("num_epochs", "batch_size", "images", "mixup_alpha", "optimizer")
"""Settings from which those `OF_SCHEDULE` follow: the number of steps and the learning rates."""


def describe_run(
    data: Datasets,
    network: nn.Module,
    build_optimizer: Callable[[], Optimizer],
    schedule: Callable[..., LRScheduler] | None,
    *,
    num_epochs: int,
    stride_phase: tuple[float, float],
    **options: Any,
) -> dict[str, Any]:
    """The settings that determine the result of a run, as values for JSON.

    Network, optimiser and schedule are described by their ``repr``. Precision, accelerator and
    devices are left out, as a run may be resumed on another machine.
    """
    options["stride_phase"] = [*stride_phase]
    settings = {
        "dataset": data.name,
        "batch_size": data.train.batch_size,
        **data.settings,
        "num_epochs": num_epochs,
        "network": repr(network),
        "strides": _all_strides(network),  # repr(network) rounds them
        **{name: value for name, value in options.items() if name not in OFF or value != OFF[name]},
        **_describe_optimization(build_optimizer, schedule, num_epochs * len(data.train)),
    }
    return as_python(settings)


def describe_examples(data: Datasets) -> dict[str, Any]:
    """What a trained network needs to know of its images or sounds, as values for JSON."""
    return {
        "class_names": [*data.class_names],
        "image_shape": [*data.image_shape],
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
    }


def as_python(value: Any) -> Any:
    """Convert NumPy numbers to Python numbers, also in dicts, lists and tuples.

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
    """Refuse to resume a run with other settings.

    Args:
        workdir: the run folder, for the error message.
        found: the settings saved in the folder.
        expected: the settings asked for.

    Raises:
        ValueError: the settings differ; the message has both values of each, without those of the
            schedule where they follow from another.

    >>> check_settings(Path("runs/a"), {"seed": 0, "budget": 0.5}, {"seed": 1})
    Traceback (most recent call last):
    ...
    ValueError: runs/a holds a run that differs in seed (0 there, 1 asked for), budget (0.5 there,
    None asked for): choose another workdir, or remove this one
    """
    found = found if isinstance(found, dict) else {}
    names = dict.fromkeys([*expected, *found])
    pairs = {name: (found.get(name), expected.get(name)) for name in names}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if any(name in different for name in SETS_SCHEDULE):
        different = {name: pair for name, pair in different.items() if name not in OF_SCHEDULE}
    if different:
        told = [f"{name} ({_first_difference(*pair)})" for name, pair in different.items()]
        raise ValueError(
            f"{workdir} holds a run that differs in {', '.join(told)}: "
            "choose another workdir, or remove this one"
        )


def _first_difference(there: Any, asked: Any) -> str:
    """Both values as text; for descriptions of many lines, the first lines that differ.

    Lines that begin with an underscore are internals of a schedule, and come last.
    """
    if isinstance(there, str) and isinstance(asked, str):
        pairs = zip_longest(_lines(there), _lines(asked), fillvalue="")
        there, asked = next((pair for pair in pairs if pair[0] != pair[1]), (there, asked))
    return f"{there!r} there, {asked!r} asked for"


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return sorted(lines, key=lambda line: line.startswith("_"))


def _describe_optimization(
    build_optimizer: Callable[[], Optimizer],
    schedule: Callable[..., LRScheduler] | None,
    total_steps: int,
) -> dict[str, str]:
    # On a separate optimiser, as building a schedule changes its learning rates.
    optimizer = build_optimizer()
    description = {"optimizer": repr(optimizer), "schedule": "constant"}
    if schedule is not None:
        built = build_schedule(schedule, optimizer, total_steps)
        state = built.state_dict()
        description["schedule"] = "\n".join(f"{name}: {state[name]!r}" for name in sorted(state))
        # Some schedules store arguments in the optimiser, such as min_lr or base_momentum.
        description["scheduled"] = repr(optimizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            built.step()  # now: some compute with their arguments only at the first step
    return description


def _all_strides(network: nn.Module) -> str:
    layers = {name: getattr(each, "strides", None) for name, each in network.named_modules()}
    values = {
        name: strides.tolist() if isinstance(strides, Tensor) else strides
        for name, strides in layers.items()
        if isinstance(strides, (Tensor, tuple))
    }
    return "\n".join(f"{name}: {strides}" for name, strides in values.items())
