"""Run a loss of a network in training without a trace, and gather what processes measured."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from inspect import getclosurevars
from itertools import islice
from math import isfinite
from numbers import Real
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diffstride._processes import process_count
from diffstride._random_states import kept_random_states, seed_python_and_numpy
from diffstride.graph.restoring import restore_buffer, set_modes

ITEMS = 300  # of a container in which modules are looked for: others hold data
DEPTH = 4  # of functions and containers between a loss and a module that it names
Label = TypeVar("Label")


class NotFiniteError(ValueError):
    """The loss of a batch is no finite number."""


@contextmanager
def as_before(model: nn.Module, loss: Callable[[], Any]) -> Iterator[int]:
    """Run a loss without gradients; buffers, modes and random numbers are then as they were.

    Those of the model and of other modules that the loss names, such as a head behind it, and the
    random numbers of torch, NumPy and Python. Yields a seed for the runs.
    """
    modules = list({each: None for held in (model, *modules_of(loss)) for each in held.modules()})
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
        if not (buffer.is_meta or is_lazy(buffer))
    ]
    modes = {module: module.training for module in modules}
    weights = (each for module in modules for each in module.parameters(recurse=False))
    devices = {each.device.index for each in weights if each.is_cuda}
    with torch.no_grad(), kept_random_states(devices):
        try:
            yield int(torch.randint(1 << 31, ()))
        finally:
            set_modes(modes)
            for holder, name, buffer, value in buffers:
                holder[name] = buffer  # where `forward` has put another one
                restore_buffer(buffer, value)


def modules_of(loss: Any) -> list[nn.Module]:
    """The modules that a function can reach: by its variables and names, and its object's.

    Functions that it names are followed, too.

    >>> head = nn.Linear(2, 2)
    >>> modules_of(lambda: head(torch.ones(2)).sum())
    [Linear(in_features=2, out_features=2, bias=True)]
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    pending = [(loss, DEPTH)]
    while pending:
        value, depth = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth:
            pending += [(each, depth - 1) for each in _parts(value)]
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, MethodType):
        return value.__self__, value.__func__, *getattr(value.__self__, "__dict__", {}).values()
    if isinstance(value, list | tuple):
        return value[:ITEMS]
    if isinstance(value, dict):
        return islice(value.values(), ITEMS)
    if isinstance(value, FunctionType) and not value.__module__.startswith("torch."):
        with suppress(ValueError):  # a variable that has no value yet
            closure, names = getclosurevars(value)[:2]
            return *closure.values(), *names.values(), *(value.__defaults__ or ())
    return ()


def run_loss(loss: Callable[[], Any], seed: int, where: str = "") -> float:
    """The value of a loss, inside of `as_before`.

    Args:
        loss: returns a number, a tensor with one, or a dictionary with it under "loss".
        seed: from `as_before`.
        where: said in the error of a loss that is not finite.

    Raises:
        TypeError: the loss returns something else.
        ValueError: it asks for gradients.
        NotFiniteError: its value is not finite.
    """
    torch.manual_seed(seed)  # the same dropout for all,
    seed_python_and_numpy(seed)  # and the same random depth
    try:
        found: Any = loss()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ValueError(
            "the loss asks for gradients, with backward() perhaps, but runs without them: pass a "
            "function that returns the loss alone, and call backward() outside of it"
        ) from error
    if isinstance(found, dict) and "loss" in found:  # as from a `training_step` of Lightning
        found = found["loss"]
    is_tensor = isinstance(found, Tensor)
    if not (isinstance(found, Real) or (is_tensor and found.numel() == 1)):
        got = f"a tensor of shape {tuple(found.shape)}" if is_tensor else repr(found)
        raise TypeError(f"the loss must return one number or a tensor with one, but returned {got}")
    value = float(found)  # pyright: ignore[reportArgumentType]
    if not isfinite(value):
        raise NotFiniteError(
            f"the loss{where} is {value}: training has diverged, or the loss is not a number"
        )
    return value


def of_all_processes(
    rises: dict[Label, list[float]], device: torch.device
) -> dict[Label, list[float]]:
    """What all processes of a training have measured, each on batches of its own."""
    if process_count() == 1:
        return rises
    own = torch.tensor(list(rises.values()), dtype=torch.float64, device=device)
    parts = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(parts, own)
    return dict(zip(rises, torch.cat(parts, 1).tolist(), strict=True))
