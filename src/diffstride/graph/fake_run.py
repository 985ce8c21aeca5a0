"""Running single calls of a network on shapes alone, and what of it must leave no trace."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from diffstride._torch_compat import (
    FAKE_TENSOR_LOGGER,
    BatchNorm,
    FakeTensorMode,
    disable_current_modes,
)
from diffstride.pooling.base import SizedPooling

CONTAINERS = list, deque, dict, set, tuple


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what running parts of a model does to it.

    Its buffers are written to, the statistics of a norm say, and a ``forward`` may store what it
    meets, which may be a fake tensor or a proxy, as an attribute or in a list or dictionary.
    """
    with ExitStack() as stack:  # whatever one restoration raises, the others are made
        for buffer in model.buffers():
            if not buffer.is_meta:
                stack.callback(_restore_buffer, buffer, buffer.clone())
        seen: set[int] = set()
        for module in model.modules():
            for container in _containers(vars(module), seen):
                stack.callback(_restore, container, _content(container))
        yield


def _containers(value: Any, seen: set[int]) -> Iterator[Any]:
    """A container and those in it, however deep, each once."""
    if not isinstance(value, CONTAINERS) or id(value) in seen:
        return
    seen.add(id(value))
    if not isinstance(value, tuple):
        yield value
    for held in value.values() if isinstance(value, dict) else value:
        yield from _containers(held, seen)


def _content(container: Any) -> list[Any]:
    return list(container.items() if isinstance(container, dict) else container)


def _restore(container: Any, content: list[Any]) -> None:
    # What is as it was is not touched: it may be read-only.
    if _identities(_content(container)) != _identities(content):
        container.clear()
        add = container.extend if isinstance(container, list | deque) else container.update
        add(content)


def _identities(content: list[Any]) -> list[Any]:
    return [tuple(map(id, each)) if type(each) is tuple else id(each) for each in content]


@torch.no_grad()
def _restore_buffer(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape:
        buffer.data = value
    elif not torch.equal(buffer, value):  # a norm's kernels do not count the version up
        buffer.copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode, and each of its modules in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def shapes_only(model: nn.Module, fake_mode: FakeTensorMode) -> Iterator[FlopCounterMode]:
    """Run parts of a model on fake tensors, with their cost counted and nothing changed."""
    # torch logs errors on fake tensors with their traceback; here they are answers, or raised
    # again in plain words.
    logger = logging.getLogger(FAKE_TENSOR_LOGGER)
    disabled, logger.disabled = logger.disabled, True
    counter = FlopCounterMode(display=False)
    try:
        # Fake tensors do not keep a module from counting its batches in a buffer, say.
        with unchanged(model), torch.no_grad(), _autocast_uncached(), fake_mode, counter:
            yield counter
    finally:
        logger.disabled = disabled


@contextmanager
def _autocast_uncached() -> Iterator[None]:
    """Keep `torch.autocast` from remembering the fake casts of weights, for the network to meet."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()  # a forward pass may have an autocast of its own


def first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, by position or by keyword."""
    return (*args, *kwargs.values())[0]


def execute(module: nn.Module | None, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What a node returns for these arguments; modules are run without their hooks."""
    if isinstance(module, BatchNorm) or node.target is F.batch_norm:
        # Slower on fake tensors than all the rest, and in training it refuses single values.
        return torch.empty_like(first(args, kwargs))
    if isinstance(module, SizedPooling):
        return _pooled(module, first(args, kwargs))
    if module is not None:
        return module.forward(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _pooled(layer: SizedPooling, x: Tensor) -> Tensor:
    # Never run the layer itself on fake tensors: it reads its strides and caches its matrices.
    with disable_current_modes():
        size = layer.output_size(x.shape[2:])
    return x.new_empty((*x.shape[:2], *size))
