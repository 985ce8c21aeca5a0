"""Run a network or single calls of it on fake tensors."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from diffstride._torch_compat import (
    FAKE_TENSOR_LOGGER,
    BatchNorm,
    FakeTensorMode,
    OperationCounter,
    causal_masks_unread,
    disable_current_modes,
    tree_leaves,
    tree_map_only,
)
from diffstride._wording import one_line
from diffstride.graph.example_inputs import as_inputs, empty_like_weights
from diffstride.graph.fast_shapes import FastFunctions, RememberedShapes
from diffstride.graph.restoring import restoring
from diffstride.pooling.base import SizedPooling

# On fake tensors these are slower than all else. They keep the dtype, under autocast, too.
SHAPE_KEEPING_MODULES = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Dropout, nn.Dropout2d),
}
SHAPE_KEEPING_FUNCTIONS = {F.relu, F.relu6, F.gelu, F.silu, F.dropout, torch.relu}


@contextmanager
def shapes_only(fake_mode: FakeTensorMode) -> Iterator[OperationCounter]:
    """Run calls on fake tensors, and count their operations; to be used inside of `restoring`."""
    # torch logs each error on fake tensors with its traceback. Here errors are expected, or raised
    # again with a message of our own.
    logger = logging.getLogger(FAKE_TENSOR_LOGGER)
    disabled, logger.disabled = logger.disabled, True
    # Fake casts of weights must not get into the cache of `torch.autocast`, which outlives the run.
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    # In evaluation, attention modules run as one operation, of which nothing would be counted.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            causal_masks_unread(),
            fake_mode,
            RememberedShapes(),
            OperationCounter() as counter,
        ):
            warnings.simplefilter("ignore")  # the network warns again when it runs
            yield counter
    finally:
        logger.disabled = disabled
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_autocast_cache_enabled(cached)
        torch.clear_autocast_cache()  # a forward pass may enter autocast itself


def first_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, by position or by keyword."""
    return (*args, *kwargs.values())[0]


def run_node(module: nn.Module | None, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Run a node on these arguments, a module without its hooks."""
    args, kwargs = _changeable(args), _changeable(kwargs)
    function_keeps_shape = module is None and node.target in SHAPE_KEEPING_FUNCTIONS
    if function_keeps_shape or (module is not None and _keeps_shape(module)):
        x = first_argument(args, kwargs)
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.empty_like(x)
    if isinstance(module, SizedPooling):
        return _pooled(module, first_argument(args, kwargs))
    with FastFunctions():
        if module is not None:
            return module.forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _changeable(value: Any) -> Any:
    """Arguments with lists and dictionaries that the function called may write to."""
    if isinstance(value, list):
        return [_changeable(each) for each in value]
    if isinstance(value, dict):
        return {key: _changeable(each) for key, each in value.items()}
    return tuple(map(_changeable, value)) if type(value) is tuple else value


def _keeps_shape(module: nn.Module) -> bool:
    """Whether a module does what its class in torch does; subclasses may do something else."""
    kind = type(module)
    forward = getattr(kind, "forward", None)  # scripted modules have none
    # Norms over several processes refuse tensors of a CPU.
    is_norm = forward is BatchNorm.forward or isinstance(module, nn.SyncBatchNorm)
    return (is_norm or kind in SHAPE_KEEPING_MODULES) and "forward" not in vars(module)


class NetworkRun(NamedTuple):
    """The shapes that a network returns, and what it costs without its pooling layers.

    ``costs`` are multiply-adds of the whole batch, with those of the modules inside, by module.
    """

    shapes: list[tuple[int, ...]]
    costs: dict[str, int]


class NetworkRunError(ValueError):
    """A network failed on shapes alone, in the module ``where``."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.where = repr(name) if name else "the model itself"
        self.why = why


def shapes_of(output: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors that a network returns."""
    return [tuple(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def run_network(
    model: nn.Module, example: Any, fake_mode: FakeTensorMode | None = None
) -> NetworkRun:
    """Run a network itself, not a trace of it, on shapes alone; with hooks, and in its mode.

    ``fake_mode`` is that of a trace, which knows the weights of the network already.

    Raises:
        NetworkRunError: if it fails, since it reads numbers for instance.
    """
    fake_mode = fake_mode or FakeTensorMode(allow_non_fake_inputs=True)
    with restoring(model), shapes_only(fake_mode) as counter:
        given = as_inputs(model, example)
        inputs = tree_map_only(Tensor, partial(empty_like_weights, model=model), given)
        try:
            output = call_on_shapes(model, inputs)
        except Exception as error:
            inside = counter.mod_tracker.parents - {"Global"}
            inner = max(inside, key=len, default="")
            raise NetworkRunError(inner.partition(".")[2], one_line(error)) from error
        costs = {
            name.partition(".")[2]: sum(counts.values()) // 2
            for name, counts in counter.flop_counts.items()
            if name != "Global"
        }
    return NetworkRun(shapes_of(output), costs | {"": counter.get_total_flops() // 2})


def call_on_shapes(model: nn.Module, inputs: tuple) -> Any:
    """What a network returns for fake inputs, inside of `shapes_only`."""
    replaced = []
    for module in model.modules():
        if "forward" not in vars(module):
            if isinstance(module, SizedPooling):
                vars(module)["forward"] = partial(_pooled, module)
            elif _keeps_shape(module):
                vars(module)["forward"] = torch.empty_like
            else:
                continue
            replaced.append(module)
    try:
        with FastFunctions():
            return model(*inputs)
    finally:
        for module in replaced:
            del vars(module)["forward"]


def _pooled(layer: SizedPooling, x: Tensor) -> Tensor:
    # The layer cannot run on fake tensors: it reads its strides and caches its matrices.
    with disable_current_modes():
        size = layer.output_size(x.shape[2:])
    return x.new_empty((*x.shape[:2], *size))
