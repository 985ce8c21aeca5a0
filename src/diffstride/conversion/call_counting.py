"""Which call of a pass through the network it is, for modules whose calls in a pass differ."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from diffstride.conversion.mixed_classes import Mixin


class CountsCalls(Mixin):
    """Base of what is mixed into modules whose calls in a pass may differ."""


def set_calls(module: Any, calls: int) -> None:
    """Let a module know how many ``calls`` a pass makes; ``call_index`` of them have been made."""
    module.calls, module.call_index = calls, 0


def next_call(module: Any) -> int:
    """The index of a call in a pass, of a module whose ``calls`` in a pass differ."""
    index = module.call_index
    if module.calls > 1:
        module.call_index = (index + 1) % module.calls
    return index


class PassStart:
    """A hook of a network that begins to count the calls of these modules anew in each pass."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)

    def __call__(self, network: nn.Module, args: Any) -> None:
        for module in self.modules:
            module.call_index = 0  # type: ignore[assignment]


def count_calls_from_start(model: nn.Module) -> None:
    """Have modules whose calls in a pass differ count them anew in each pass of the network."""
    own: list[Any] = [module for module in model.modules() if isinstance(module, CountsCalls)]
    several = [module for module in own if module.calls > 1]
    hooks = model._forward_pre_hooks.values()
    known = [module for hook in hooks if isinstance(hook, PassStart) for module in hook.modules]
    if set(several) - set(known):
        model.register_forward_pre_hook(PassStart(several))
