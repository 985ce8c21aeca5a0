"""Find the calls of a network whose stride can be learned, and why others are left out."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, fx, nn

from diffstride._torch_compat import Conv, ConvTranspose
from diffstride.conversion.pooled_module import Pooled
from diffstride.conversion.strided_call import (
    StridedCall,
    measure_call,
    per_axis,
    source_of,
    stride_of,
)
from diffstride.graph.leaf_modules import Leaf, is_among
from diffstride.graph.tracer import Trace
from diffstride.pooling.base import SizedPooling

Filter = Callable[[nn.Module, str], bool]


def find_strided_calls(
    trace: Trace,
    filter_fn: Filter | None,
    include: Iterable[str],
    patchify: bool,
    leaf_modules: Sequence[Leaf] = (),
) -> tuple[list[StridedCall], dict[str, str]]:
    """The strided calls to convert, and the reason for each module that is left out."""
    included = set(include)
    if unknown := included - {str(node.target) for node in trace.graph.nodes if trace.module(node)}:
        raise ValueError(
            f"include: the forward pass calls no single operation named {unknown.pop()!r}; name a "
            "convolution, pooling, norm or activation as in named_modules()"
        )
    calls, left_out = [], {}
    for node in trace.graph.nodes:
        module, name = trace.module(node), str(node.target)
        if module is None:
            if reason := _strided_function(trace, node):
                left_out[trace.label(node)] = reason
        elif name in included or (
            not isinstance(module, SizedPooling) and max(stride_of(module)) > 1
        ):
            reason = "in leaf_modules" if is_among(leaf_modules, name, module) else None
            reason = reason or _reason_to_skip(trace, node, module, filter_fn, patchify)
            result = reason or measure_call(trace, node, module)
            if isinstance(result, StridedCall):
                calls.append(result)
            elif name in included:
                raise ValueError(f"include: {trace.label(node)} cannot be converted: {result}")
            else:
                left_out[name] = result
        elif isinstance(module, SizedPooling) and _has_fixed_strides(module):
            left_out[name] = "a pooling layer of fixed strides: put a DiffStride in its place"
    return calls, left_out | _never_called(trace)


def _has_fixed_strides(module: SizedPooling) -> bool:
    """Whether a pooling layer of this library has strides that cannot learn."""
    strides = getattr(module, "strides", ())
    return isinstance(strides, tuple) and max(strides, default=1) > 1


def _reason_to_skip(
    trace: Trace, node: fx.Node, module: nn.Module, filter_fn: Filter | None, patchify: bool
) -> str | None:
    """Why a module is left out, as far as known without measuring."""
    value, source = trace.values[node], source_of(trace, node)
    maps = isinstance(source, Tensor) and isinstance(value, Tensor)
    if node.kwargs and not node.args:
        return "is given its map by keyword: pass it by position"
    if source is None or not (maps and source.dim() == value.dim() >= 3):
        return "does not map one batch of maps to another"
    if isinstance(module, SizedPooling):
        return "is a pooling layer already"
    if isinstance(module, Pooled) or hasattr(module, "pooling"):
        return "has a module of its own named pooling"
    if filter_fn is not None and not filter_fn(module, str(node.target)):
        return "left out by filter_fn"
    if isinstance(module, ConvTranspose) and max(module.stride) > 1:
        return "upsamples its input"
    sizes = source.shape[2:]
    kernels, strides = per_axis(module, "kernel_size", len(sizes)), stride_of(module, len(sizes))
    if not len(kernels) == len(strides) == len(sizes):
        return f"strides along {len(strides)} axes, but its maps have {len(sizes)}"
    pairs = zip(kernels, strides, strict=True)
    if not isinstance(module, Conv):
        if _takes_whole_maps(trace, node, kernels):
            return "pools the whole map"
    elif not patchify and any(1 < kernel <= stride for kernel, stride in pairs):
        return "patchifying convolution: its patches do not overlap (patchify=True takes it)"
    return None


def _takes_whole_maps(trace: Trace, node: fx.Node, kernels: Sequence[int]) -> bool:
    """Whether the window covers the whole map in every call of a module.

    One pooling module may be called on several maps, the last as small as its window.
    """
    calls = [call for call in trace.graph.nodes if trace.module(call) is trace.module(node)]
    sources = [source for call in calls if (source := source_of(trace, call)) is not None]
    pairs = [pair for source in sources for pair in zip(kernels, source.shape[2:], strict=False)]
    return all(kernel >= size for kernel, size in pairs)


def _strided_function(trace: Trace, node: fx.Node) -> str | None:
    name = getattr(node.target, "__name__", "")
    if name == "getitem" and _skips_samples(trace, node):
        return (
            "a slice, whose step stays: call nn.AvgPool2d(1, 2) instead, for example, to convert it"
        )
    if node.op != "call_function" or not ("pool" in name or "conv" in name) or "adaptive" in name:
        return None
    source, value = source_of(trace, node), trace.values[node]
    if source is None or not isinstance(value, Tensor) or value.dim() != source.dim():
        return None
    pairs = zip(source.shape[2:], value.shape[2:], strict=True)
    if any(1 < new <= (old + 1) // 2 for old, new in pairs):
        return "a function, whose stride stays: call a module instead to convert it"
    return None


def _skips_samples(trace: Trace, node: fx.Node) -> bool:
    """Whether an index takes every second sample, or fewer, along each spatial axis of a map."""
    source, value, index = source_of(trace, node), trace.values[node], node.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    if source is None or not any(isinstance(p, slice) and p.step not in (None, 1) for p in parts):
        return False
    if not isinstance(value, Tensor) or not value.dim() == source.dim() > 3:
        return False  # with fewer axes, the last may be channels
    pairs = zip(source.shape[2:], value.shape[2:], strict=True)
    return all(new <= (old + 1) // 2 for old, new in pairs)


def _never_called(trace: Trace) -> dict[str, str]:
    called = {str(node.target) for node in trace.graph.nodes if node.op == "call_module"}
    return {
        name: "not called in the forward pass, or inside one of leaf_modules"
        for name, module in trace.modules.items()
        if name not in called and not any(module.children()) and max(stride_of(module)) > 1
    }
