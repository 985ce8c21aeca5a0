"""Copy a network, with what refers to it and in its modes, and refuse one inside a wrapper."""

import copy
import functools
from collections.abc import Mapping
from types import CellType, FunctionType
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from diffstride._torch_compat import hook_dictionaries
from diffstride._wording import one_line
from diffstride.graph.example_inputs import check_has_shapes
from diffstride.graph.restoring import set_modes

Model = TypeVar("Model", bound=nn.Module)

WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel"}


def deep_copy(model: Model) -> Model:
    """A deep copy of a network, in its mode.

    Hooks and replaced ``forward`` functions that refer to the network by a variable around them
    refer to the copy.

    Raises:
        ValueError: if it cannot be copied; says why and what to do.
    """
    advice = (
        "replace torch.nn.utils.weight_norm or spectral_norm by those of "
        "torch.nn.utils.parametrizations, or remove them first; make a pruned weight a plain "
        'one by torch.nn.utils.prune.remove(module, "weight")'
    )
    check_has_shapes(model)
    for name, module in model.named_modules():
        if any(
            isinstance(hook, WeightNorm | SpectralNorm)
            for hook in module._forward_pre_hooks.values()
        ):
            raise ValueError(f"{name!r} has a weight that a hook computes in each call: {advice}")
    memo: dict[int, Any] = {}
    try:
        copied = copy.deepcopy(model, memo)
    except RuntimeError as error:
        why = f"{one_line(error, most=80)}…"
        raise ValueError(
            f"this {type(model).__name__} cannot be copied ({why}): {advice}"
        ) from error
    modes = {memo[id(module)]: module.training for module in model.modules() if id(module) in memo}
    set_modes(modes)  # the copy of a module may be in training mode, as of torchvision's extractors
    for module in copied.modules():
        holders: list[dict[Any, Any]] = [vars(module), *hook_dictionaries(module)]
        for functions in holders:
            for name, function in functions.items():
                if isinstance(function, FunctionType) and function.__closure__:
                    functions[name] = _refer_to_copies(function, memo)
    return copied


def _refer_to_copies(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function whose variables from around it are the copies of modules, if there are any."""

    def copied(cell: CellType) -> CellType:
        try:
            value = cell.cell_contents
        except ValueError:  # no value yet
            return cell
        return CellType(memo.get(id(value), value)) if isinstance(value, nn.Module) else cell

    cells = tuple(map(copied, function.__closure__ or ()))
    if cells == function.__closure__:
        return function
    name, defaults = function.__name__, function.__defaults__
    other = FunctionType(function.__code__, function.__globals__, name, defaults, cells)
    other.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(other, function)
    return other


def replace_modules(root: nn.Module, replacements: Mapping[Any, nn.Module]) -> None:
    """Put other modules in the place of some, wherever these are children."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a network inside a wrapper for distributed training.

    The wrapper has collected the parameters, so strides added later would not be synchronised. One
    of several devices of a process gives its names to what is saved.
    """
    if type(model).__name__ == "DataParallel":
        raise ValueError(
            "this network is inside a DataParallel, under whose names nothing could be loaded: "
            "pass model.module, and wrap the result"
        )
    for name, module in model.named_modules():
        kinds = {
            cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch.")
        }
        if wrappers := kinds & WRAPPERS:
            what, inner = (f"{name!r}", f"model.{name}") if name else ("this network", "model")
            raise ValueError(
                f"{what} is inside a {wrappers.pop()}, which would not synchronise new layers: "
                f"pass {inner}.module, and wrap the result"
            )
