"""Find the calls of a network whose stride can be learned, and why others are left out.

A stride can be replaced by pooling at stride 1 if the strided output is the output at stride 1,
sampled. That is measured on noise, not looked up by type, so modules of any library are accepted.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from diffstride._arguments import per_axis
from diffstride._torch_compat import Conv, ConvTranspose
from diffstride._wording import counted, one_line
from diffstride.conversion.kernel_resampling import CoarseTaps, coarse_taps
from diffstride.conversion.pooled_module import CropPad, Pooled, set_stride
from diffstride.graph.leaf_modules import Leaf, is_among
from diffstride.graph.restoring import restoring
from diffstride.graph.tracer import Trace
from diffstride.pooling.base import SizedPooling

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Filter = Callable[[nn.Module, str], bool]


@dataclass
class StridedCall:
    """One call of a module whose stride can be learned. Strides and sizes are per spatial axis.

    Attributes:
        node, module: the call, and the module that it calls.
        strides: the stride to replace.
        input_size: size of the input map.
        full_size: size of the output at stride 1, without its first ``crop`` samples.
        crop: how many samples the output at stride 1 has before the first strided one.
        strided_size: size of the strided output.
        affine: whether the module is an affine function of its input, if it is a convolution.
        placement: where the pooling goes, see `diffstride.conversion.placement`.
        kept: the axes that keep their samples, of stride 1.
    """

    node: fx.Node
    module: nn.Module
    strides: tuple[int, ...]
    input_size: tuple[int, ...]
    full_size: tuple[int, ...]
    crop: tuple[int, ...]
    strided_size: tuple[int, ...]
    affine: bool = True
    placement: str = "after"
    kept: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """The name of the module."""
        return str(self.node.target)

    @property
    def pointwise(self) -> bool:
        """Whether the module is a convolution that may be called after the pooling."""
        return (
            isinstance(self.module, Conv)
            and self.affine
            and max(self.module.kernel_size) == 1
            and self.full_size == self.input_size
        )

    @property
    def patchifies(self) -> bool:
        """Whether the patches of a convolution do not overlap along some axis."""
        kernels = per_axis(self.module, "kernel_size", len(self.strides))
        return isinstance(self.module, Conv) and patchifies(kernels, self.strides)

    @property
    def fits_coarse_grid(self) -> bool:
        """Whether taps as far apart as those of a convolution exist on the coarse grid."""
        dilations = per_axis(self.module, "dilation", len(self.strides))
        return all(d == 1 or d % s == 0 for d, s in zip(dilations, self.strides, strict=True))

    def crop_pad_to(self, size: Sequence[int]) -> tuple[CropPad, ...]:
        """How to crop or pad the map that is pooled to this size."""
        crops, sizes = self.crop, self.full_size
        if self.placement == "before":
            # Cropped so that the middle tap of the first sample lies on the map's first sample.
            crops = tuple(max(0, int(middle)) for middle in self._middles)
            sizes = tuple(size - c for size, c in zip(self.input_size, crops, strict=True))
        each = zip(crops, sizes, size, strict=True)
        return tuple(CropPad(crop, new - old) for crop, old, new in each)

    @property
    def _middles(self) -> list[float]:
        """Where the middle of the kernel lies on the input for the first output, per axis."""
        conv: Any = self.module
        each = zip(conv.dilation, conv.kernel_size, _padding_before(conv), strict=True)
        return [dilation * (size - 1) / 2 - padding for dilation, size, padding in each]

    def coarse_taps(self, size: Sequence[int], crop_pads: Sequence[CropPad]) -> list[CoarseTaps]:
        """The taps of the convolution on the pooled map, which is made of one of ``size``."""
        conv: Any = self.module
        kernels = zip(conv.kernel_size, conv.dilation, _padding_before(conv), strict=True)
        spacings = [old / new for old, new in zip(size, self.strided_size, strict=True)]
        return [
            coarse_taps(length, dilation, padding, crop, spacing)
            for (length, dilation, padding), (crop, _), spacing in zip(
                kernels, crop_pads, spacings, strict=True
            )
        ]

    def on_top(self) -> "StridedCall":
        """The same call with its stride as it is, to be pooled on top from a stride of 1."""
        zeros, ones = (0,) * len(self.strides), (1,) * len(self.strides)
        sizes = {"input_size": self.strided_size, "full_size": self.strided_size}
        return replace(self, strides=ones, crop=zeros, placement="on top", **sizes)


def _padding_before(conv: Any) -> Sequence[int]:
    """How many samples a convolution pads before each axis."""
    if not isinstance(conv.padding, str):
        return conv.padding
    same = int(conv.padding == "same")
    each = zip(conv.dilation, conv.kernel_size, strict=True)
    return tuple(same * (dilation * (size - 1) // 2) for dilation, size in each)


def common_size(calls: Sequence[StridedCall], axis: int) -> int:
    """The size to crop or pad outputs to before a layer that these calls share.

    It must give the strided size after pooling. Of the input and output sizes that do, the one
    closest to stride times that size shifts samples least.
    """
    stride, wanted = calls[0].strides[axis], calls[0].strided_size[axis]
    sizes = [size[axis] for call in calls for size in (call.input_size, call.full_size)]
    fitting = [size for size in sizes if ceil(size / stride) == wanted]
    return min(fitting, key=lambda n: abs(n - stride * wanted), default=(wanted - 1) * stride + 1)


def stride_of(module: nn.Module, axes: int = 1) -> tuple[int, ...]:
    """The integer stride of a module per axis; ones if it has none or upsamples.

    >>> stride_of(nn.MaxPool2d(2), axes=2), stride_of(nn.ReLU(), axes=2)
    ((2, 2), (1, 1))
    """
    values = per_axis(module, "stride", axes)
    integers = bool(values) and all(isinstance(value, Integral) for value in values)
    if not integers or isinstance(module, ConvTranspose):
        return (1,) * axes
    return tuple(map(int, values))  # NumPy has integers of its own


def patchifies(kernels: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the windows of a module do not overlap along some axis."""
    return any(1 < k <= s for k, s in zip(kernels, strides, strict=True))


def maps_of(trace: Trace, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """The first argument and the result of a call, if they are maps of as many axes."""
    first = node.args[0] if node.args else None
    source = trace.values[first] if isinstance(first, fx.Node) else None
    result = trace.values[node]
    if not isinstance(source, Tensor) or not isinstance(result, Tensor):
        return None
    return (source, result) if source.dim() == result.dim() > 2 else None


PATCHIFIES = "patchifying convolution: its patches do not overlap (patchify=True takes it)"


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
    used = trace.used()
    for node in trace.graph.nodes:
        module, name = trace.module(node), str(node.target)
        if module is None:
            if reason := _strided_function(trace, node):
                left_out[trace.label(node)] = reason
        elif name in included or (
            not isinstance(module, SizedPooling) and max(stride_of(module)) > 1
        ):
            reason = "in leaf_modules" if is_among(leaf_modules, name, module) else None
            reason = reason or (None if node in used else "its output is not used")
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


def _reason_to_skip(
    trace: Trace, node: fx.Node, module: nn.Module, filter_fn: Filter | None, patchify: bool
) -> str | None:
    """Why a module is left out, as far as known without measuring."""
    maps = maps_of(trace, node)
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
    if filter_fn is not None and not filter_fn(module, str(node.target)):
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
    if not patchify and patchifies(kernels, strides):
        return PATCHIFIES
    return None


def takes_whole_maps(trace: Trace, node: fx.Node) -> bool:
    """Whether the window covers the whole map in every call of a module.

    One pooling module may be called on several maps, the last as small as its window.
    """
    module = trace.module(node)
    calls = [call for call in trace.graph.nodes if trace.module(call) is module]
    sizes = [maps[0].shape[2:] for call in calls if (maps := maps_of(trace, call))]
    if module is None or not sizes:
        return False
    kernels = per_axis(module, "kernel_size", len(sizes[0]))
    return all(k >= size for each in sizes for k, size in zip(kernels, each, strict=False))


def _strided_function(trace: Trace, node: fx.Node) -> str | None:
    """Why a function or a slice is left out, None if it does not stride."""
    name, maps = getattr(node.target, "__name__", ""), maps_of(trace, node)
    if node.op != "call_function" or maps is None:
        return None
    if isinstance(trace.modules[trace.owners[node]], Pooled):
        return None  # pooled on top of its stride
    pairs = list(zip(maps[0].shape[2:], maps[1].shape[2:], strict=True))
    if name == "getitem":
        index = node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        skips = any(isinstance(part, slice) and part.step not in (None, 1) for part in parts)
        # With a single spatial axis, the last may be channels.
        if skips and len(pairs) > 1 and all(new <= (old + 1) // 2 for old, new in pairs):
            return "a slice, whose step stays: call nn.AvgPool2d(1, 2), for example, to convert it"
        return None
    pools = ("pool" in name or "conv" in name) and "adaptive" not in name
    if pools and any(1 < new <= (old + 1) // 2 for old, new in pairs):
        return "a function, whose stride stays: call a module instead to convert it"
    return None


def _never_called(trace: Trace) -> dict[str, str]:
    called = {str(node.target) for node in trace.graph.nodes if node.op == "call_module"}
    return {
        name: "not called in the forward pass, or inside one of leaf_modules"
        for name, module in trace.modules.items()
        if name not in called and not any(module.children()) and max(stride_of(module)) > 1
    }


@torch.no_grad()
def measure_call(trace: Trace, node: fx.Node, module: nn.Module) -> StridedCall | str:
    """Measure a call of a module; returns a reason if its stride cannot be replaced."""
    source = trace.values[node.args[0]]  # type: ignore[index]
    strides = stride_of(module, source.dim() - 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, *source.shape[1:]), generator=generator, device=generator.device)
    noise = noise.to(source.device, source.dtype)
    args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda n: trace.values[n])
    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return "takes more than one tensor"
    # Spectral norm changes its weight from one call to the next in training, unless it is cached.
    with restoring(module), torch.random.fork_rng(devices=[]), parametrize.cached():
        try:
            with trace.autocast(node):
                run = partial(_run_on, module, args, kwargs)
                strided = full = run(noise)
                # Without a stride, nothing to compare; dropout would not return the same twice.
                if hasattr(module, "stride"):
                    set_stride(module, 1)
                    full = run(noise)
                # A class of its own may do more, such as an activation, that pooling must follow.
                affine = not isinstance(module, Conv) or convolves(module) or _is_affine(run, noise)
        except Exception as error:
            return f"cannot be measured at stride 1 ({one_line(error, most=150)})"
    crop = _first_sample(strided, full, strides)
    if crop is None:
        return "its output is not its output at stride 1, sampled"
    return StridedCall(
        node,
        module,
        strides,
        input_size=tuple(source.shape[2:]),
        full_size=tuple(size - c for size, c in zip(full.shape[2:], crop, strict=True)),
        crop=crop,
        strided_size=tuple(strided.shape[2:]),
        affine=affine,
    )


def _run_on(module: Any, args: Any, kwargs: Any, x: Tensor) -> Tensor:
    return module.forward(x, *args, **kwargs)


def convolves(module: nn.Module) -> bool:
    """Whether a module computes what a convolution of torch computes, as its class tells."""
    return (
        isinstance(module, CONVOLUTIONS)
        and any(type(module).forward is kind.forward for kind in CONVOLUTIONS)
        and any(type(module)._conv_forward is kind._conv_forward for kind in CONVOLUTIONS)
        and "forward" not in vars(module)
    )


def _is_affine(function: Callable[[Tensor], Tensor], noise: Tensor) -> bool:
    """Whether ``f(a + b) + f(0) = f(a) + f(b)``, up to rounding, for numbers of any sign."""
    a, b = noise - 0.5, 1 - 2 * noise.flip(-1)
    together, apart = function(a + b) + function(0 * a), function(a) + function(b)
    return _are_close(together, apart, apart.abs().max().item())


def _are_close(one: Tensor, other: Tensor, largest: float) -> bool:
    """Whether two results agree up to rounding, for weights that may be tiny."""
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 2e-2
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest)


def _first_sample(strided: Tensor, full: Tensor, strides: Sequence[int]) -> tuple[int, ...] | None:
    """The index of the first strided sample in the output at stride 1; None if samples differ.

    Extra samples at the end, due to ``ceil_mode``, are not compared.
    """
    largest = strided.abs().max().item()  # weights may be tiny
    for start in product(*map(range, strides)):
        window = [slice(first, None, step) for first, step in zip(start, strides, strict=True)]
        sampled = full[(..., *window)]
        common = [slice(min(sizes)) for sizes in zip(sampled.shape, strided.shape, strict=True)]
        one, other = sampled[tuple(common)], strided[tuple(common)]
        if one.numel() and _are_close(one, other, largest):
            return start
    return None
