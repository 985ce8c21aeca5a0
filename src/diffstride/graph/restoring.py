"""Leave a network as it was after parts of it have run."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._torch_compat import hook_dictionaries
from diffstride.graph.outer_caches import is_plain_object, kept_out_of_caches

CONTAINERS = list, deque, dict, set, tuple

# torch.fx patches `nn.Module` for the whole process while it traces: two threads at once would
# leave it patched for good. The same thread may enter again, to run a part of a network.
_ONE_THREAD = threading.RLock()


@contextmanager
def restoring(model: nn.Module) -> Iterator["Snapshot"]:
    """Restore the buffers and attributes of a model after parts of it have run.

    A norm updates its statistics, and even on fake tensors a true buffer, such as a count of
    batches. A ``forward`` or a hook may store a value, here a fake tensor or a proxy, as attribute
    or in a list or dictionary, or in a cache outside of the model (`kept_out_of_caches`). Inside
    another such context of the same model, its snapshot serves.
    Other threads that would run a model here wait until this one has ended.
    """
    with _ONE_THREAD, kept_out_of_caches(model):
        outer = _SNAPSHOTS.get(model)
        snapshot = _SNAPSHOTS[model] = outer or Snapshot(model)
        try:
            yield snapshot
        finally:
            if outer is None:
                del _SNAPSHOTS[model]
            snapshot.restore()


class Snapshot:
    """The buffers of a model, and the content of all containers that it holds."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(each, each.clone()) for each in model.buffers() if not each.is_meta]
        held = [each for module in model.modules() for each in _held_by(module)]
        self._contents = [(each, _content(each)) for each in _containers(held)]

    def restore(self) -> None:
        with ExitStack() as stack:  # if one restoration raises, the others still run
            for buffer, value in self._buffers:
                stack.callback(restore_buffer, buffer, value)
            for container, content in self._contents:
                # A container without changes is not written to: it may be read-only.
                if (container or content) and _changed(container, content):
                    stack.callback(_restore, container, content)

    def stores_others(self) -> bool:
        """Whether the model holds other values than it did, or another number of them."""
        return any(_changed(container, content) for container, content in self._contents)


# Of the models that are being analysed: a snapshot of a large model takes half a second.
_SNAPSHOTS: dict[nn.Module, Snapshot] = {}


def _held_by(module: nn.Module) -> Iterator[Any]:
    """What a module can write to, and its hooks: variables around them, and their object."""
    yield vars(module)
    yield from (vars(value) for value in [*vars(module).values()] if is_plain_object(value))
    for hook in (hook for hooks in hook_dictionaries(module) for hook in hooks.values()):
        function = getattr(hook, "__func__", hook)
        with suppress(ValueError):  # a variable that has no value yet
            yield from [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        yield getattr(getattr(hook, "__self__", hook), "__dict__", None)


def _containers(held: list[Any]) -> list[Any]:
    """The containers among these values and nested in them, each once."""
    seen: set[int] = set()
    found, pending = [], list(held)
    while pending:
        value = pending.pop()
        if isinstance(value, CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, tuple):
                found.append(value)
            pending += value.values() if isinstance(value, dict) else value
    return found


def _content(container: Any) -> dict[Any, Any] | list[Any]:
    return dict(container) if isinstance(container, dict) else list(container)


def _restore(container: Any, content: Any) -> None:
    container.clear()
    add = container.extend if isinstance(container, list | deque) else container.update
    add(content)


def _changed(container: Any, content: Any) -> bool:
    return _identities(container) != _identities(content)


def _identities(container: Any) -> list[int]:
    values = [*container, *container.values()] if isinstance(container, dict) else container
    return list(map(id, values))


@torch.no_grad()
def restore_buffer(buffer: Tensor, value: Tensor) -> None:
    """Write a value to a buffer that has another one; those that are expanded refuse writes."""
    if buffer.shape != value.shape:
        buffer.data = value
    elif not torch.equal(buffer, value):  # its version does not show writes of norms
        buffer.copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and each of its modules back to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        set_modes(modes)


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Set each module to a mode of its own, training or evaluation, the outer modules first."""
    for module, training in modes.items():
        if module.training is not training:
            module.train(training)  # a module may do more than set the attribute
    for module, training in modes.items():
        module.training = training
