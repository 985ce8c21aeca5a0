"""Find the calls of a network whose stride can be learned, and why others are left out."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from torch import fx, nn

from diffstride._arguments import Limit
from diffstride._torch_compat import Conv, ConvTranspose
from diffstride._wording import counted
from diffstride.conversion.module_strides import patchifies, per_axis, stride_of
from diffstride.conversion.placement import Order
from diffstride.conversion.pooled_module import Pooled
from diffstride.conversion.stride_measurement import measure_call
from diffstride.conversion.strided_call import StridedCall
from diffstride.graph.leaf_modules import Leaf, is_among, is_of_torch
from diffstride.graph.tracer import Trace
from diffstride.pooling.base import SizedPooling

Filter = Callable[[nn.Module, str], bool]

UNUSED = "its output is not used"
FIXED = "a pooling layer of fixed strides: put a DiffStride in its place"
SCALES = "interpolates to a smaller map, whose scale stays: put a DiffStride in its place"
BY_ITSELF = "makes its map smaller by its own forward: call a pooling module there to convert it"
PATCHIFIES = "patchifying convolution: its patches do not overlap (patchify=True takes it)"


class Search(NamedTuple):
    """What to look for in a network: the arguments of `convert` of these names.

    ``min_channels`` is 0 where layers may not start at a stride of 1.
    """

    order: Order
    min_channels: int
    filter_fn: Filter | None
    include: tuple[str, ...]
    patchify: bool
    keep_ones: bool
    leaf_modules: Sequence[Leaf]
    shared_stride: bool
    upper_limit_stride: Limit


def find_strided_calls(
    trace: Trace, search: Search, include: Iterable[str]
) -> tuple[list[StridedCall], dict[str, str]]:
    """The strided calls to convert, and the reason for each module that is left out."""
    included = set(include)
    if unknown := included - {str(node.target) for node in trace.graph.nodes if trace.module(node)}:
        raise ValueError(
            f"include: the forward pass calls no single operation named {unknown.pop()!r}; name a "
            "convolution, pooling, norm or activation as in named_modules()"
        )
    calls: list[StridedCall] = []
    left_out: dict[str, str] = {}
    used = trace.used()
    for node in trace.graph.nodes:
        name = trace.label(node) if trace.module(node) is None else str(node.target)
        result = _examine(trace, node, included, search)
        if isinstance(result, StridedCall):
            if node in used:
                calls.append(result)
                continue
            result = left_out.get(name, UNUSED)
        if result and name in included:
            raise ValueError(f"include: {trace.label(node)} cannot be converted: {result}")
        if result:
            left_out[name] = result
    failed = {name for name, reason in left_out.items() if reason != UNUSED}
    calls = [call for call in calls if call.name not in failed]
    left_out = {n: why for n, why in left_out.items() if n not in {c.name for c in calls}}
    return calls, left_out | _never_called(trace)


def _examine(
    trace: Trace, node: fx.Node, included: set[str], search: Search
) -> StridedCall | str | None:
    """A node that strides, or the reason why its stride cannot be learned; None if it does not."""
    module, name = trace.module(node), str(node.target)
    if module is None:
        return _strided_function(trace, node)
    if name not in included and isinstance(module, SizedPooling):
        return FIXED if _has_fixed_strides(module) else None
    if name not in included and max(stride_of(module)) <= 1:
        return _why_smaller(trace, node, module)
    if is_among(search.leaf_modules, name, module):
        return "in leaf_modules"
    reason = _reason_to_skip(trace, node, module, search)
    return reason or measure_call(trace, node, module)


def check_filter(filter_fn: Any) -> None:
    """Refuse a filter that cannot be called with a module and its name.

    >>> check_filter(lambda module: True)
    Traceback (most recent call last):
    TypeError: filter_fn is called as filter_fn(module, name), with a module and its name, but got
    <lambda>(module): give it both arguments, as in lambda module, name: True
    """
    if filter_fn is None:
        return
    try:
        signature = inspect.signature(filter_fn)
    except (TypeError, ValueError):  # no function, or one without a signature
        if callable(filter_fn):
            return
        got = f"a {type(filter_fn).__name__}"
    else:
        with suppress(TypeError):
            signature.bind(nn.Identity(), "name")
            return
        got = f"{getattr(filter_fn, '__name__', type(filter_fn).__name__)}{signature}"
    raise TypeError(
        f"filter_fn is called as filter_fn(module, name), with a module and its name, but got "
        f"{got}: give it both arguments, as in lambda module, name: True"
    )


def _has_fixed_strides(module: SizedPooling) -> bool:
    """Whether a pooling layer of this library has strides that cannot learn."""
    strides = getattr(module, "strides", ())
    return isinstance(strides, tuple) and max(strides, default=1) > 1


def _why_smaller(trace: Trace, node: fx.Node, module: nn.Module) -> str | None:
    """Why a module without a stride makes its map smaller, if that could be pooling."""
    if isinstance(module, nn.Upsample) and module.scale_factor is not None:
        return SCALES if any(new < old for old, new in _map_sizes(trace, node)) else None
    if is_of_torch(module) or isinstance(module, Pooled):
        return None
    halves = hasattr(module, "stride") and any(map(_is_half, _map_sizes(trace, node)))
    return BY_ITSELF if halves else None


def _map_sizes(trace: Trace, node: fx.Node) -> list[tuple[int, int]]:
    """The sizes of the input and of the output of a call along each axis; empty without maps."""
    maps = trace.maps(node)
    return list(zip(maps[0].shape[2:], maps[1].shape[2:], strict=True)) if maps else []


def _is_half(sizes: tuple[int, int]) -> bool:
    old, new = sizes
    return 1 < new <= (old + 1) // 2


def _reason_to_skip(trace: Trace, node: fx.Node, module: nn.Module, search: Search) -> str | None:
    """Why a module is left out, as far as known without measuring."""
    maps = trace.maps(node)
    if node.kwargs and not node.args:
        return "is given its map by keyword: pass it by position"
    if maps is None:
        return "does not map one batch of maps to another"
    if not maps[1].is_floating_point():
        return f"its maps are of {maps[1].dtype}, and pooling needs real floating-point numbers"
    if "forward" in vars(module):
        return (
            "its forward was replaced on the object, where no pooling could follow it: convert the "
            "network before, or restore it (accelerate: remove_hook_from_module)"
        )
    if isinstance(module, SizedPooling):
        return "is a pooling layer already"
    if own := [name for name in Pooled.__annotations__ if hasattr(module, name)]:
        return f"has an attribute of its own named {own[0]}, which the conversion needs"
    if search.filter_fn is not None and not search.filter_fn(module, str(node.target)):
        return "left out by filter_fn"
    if isinstance(module, ConvTranspose) and max(module.stride) > 1:
        return "upsamples its input"
    sizes = maps[0].shape[2:]
    kernels, strides = per_axis(module, "kernel_size", len(sizes)), stride_of(module, len(sizes))
    if not len(kernels) == len(strides) == len(sizes):
        along = counted(len(strides), "axis", "axes")
        return f"strides along {along}, but its maps have {len(sizes)}"
    if not isinstance(module, Conv):
        return "pools the whole map" if takes_whole_maps(trace, node) else None
    if not search.patchify and patchifies(kernels, strides):
        return PATCHIFIES
    return None


def takes_whole_maps(trace: Trace, node: fx.Node) -> bool:
    """Whether the window covers the whole map in every call of a module.

    One pooling module may be called on several maps, the last as small as its window.
    """
    module = trace.module(node)
    if module is None:
        return False
    sizes = [maps[0].shape[2:] for call in trace.calls(module) if (maps := trace.maps(call))]
    if not sizes:
        return False
    kernels = per_axis(module, "kernel_size", len(sizes[0]))
    return all(k >= size for each in sizes for k, size in zip(kernels, each, strict=False))


def _strided_function(trace: Trace, node: fx.Node) -> str | None:
    """Why a function or a slice is left out, None if it does not stride."""
    name, pairs = getattr(node.target, "__name__", ""), _map_sizes(trace, node)
    if node.op != "call_function":
        return None
    if isinstance(trace.modules[trace.owners[node]], Pooled):
        return None  # pooled on top of its stride
    if name == "getitem":
        index = node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        skips = any(isinstance(part, slice) and part.step not in (None, 1) for part in parts)
        # With a single spatial axis, the last may be channels.
        if skips and len(pairs) > 1 and all(new <= (old + 1) // 2 for old, new in pairs):
            return "a slice, whose step stays: call nn.AvgPool2d(1, 2), for example, to convert it"
        return None
    pools = ("pool" in name or "conv" in name) and "adaptive" not in name
    if pools and any(map(_is_half, pairs)):
        return "a function, whose stride stays: call a module instead to convert it"
    return None


def _never_called(trace: Trace) -> dict[str, str]:
    called = {str(node.target) for node in trace.graph.nodes if node.op == "call_module"}
    return {
        name: "not called in the forward pass, or inside one of leaf_modules"
        for name, module in trace.modules.items()
        if name not in called and not any(module.children()) and max(stride_of(module)) > 1
    }
