"""Measure whether the stride of a module can be replaced by pooling its output at stride 1.

That is so if the strided output is the output at stride 1, sampled. It is measured on noise, not
looked up by type, so modules of any library are accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._torch_compat import Conv, ConvTranspose
from diffstride.conversion.pooled_module import CropPad, set_stride
from diffstride.graph.fake_run import restoring
from diffstride.graph.tracer import Trace


@dataclass
class StridedCall:
    """One call of a module whose stride can be learned. Strides and sizes are per spatial axis.

    Attributes:
        node: the call.
        name, module: the module that it calls.
        strides: the stride to replace.
        input_size: size of the input map.
        full_size: size of the output at stride 1, without its first ``crop`` samples.
        crop: how many samples the output at stride 1 has before the first strided one.
        strided_size: size of the strided output.
    """

    node: fx.Node
    name: str
    module: nn.Module
    strides: tuple[int, ...]
    input_size: tuple[int, ...]
    full_size: tuple[int, ...]
    crop: tuple[int, ...]
    strided_size: tuple[int, ...]

    @property
    def pointwise(self) -> bool:
        """Whether the module is a convolution that may be called after the pooling."""
        return (
            isinstance(self.module, Conv)
            and max(self.module.kernel_size) == 1
            and self.full_size == self.input_size
        )

    def crop_pad_to(self, size: Sequence[int]) -> tuple[CropPad, ...]:
        """How to crop or pad the output at stride 1 to this size."""
        return tuple(
            CropPad(crop, new - old)
            for crop, old, new in zip(self.crop, self.full_size, size, strict=True)
        )


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
    integers = bool(values) and all(isinstance(value, int) for value in values)
    return values if integers and not isinstance(module, ConvTranspose) else (1,) * axes


def per_axis(module: nn.Module, name: str, axes: int) -> tuple[int, ...]:
    """An attribute of a module, ``"stride"`` or ``"kernel_size"``, for each spatial axis."""
    value: Any = getattr(module, name, 1)
    if value is None:  # pooling layers stride by their window
        value = getattr(module, "kernel_size", None) or 1
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def source_of(trace: Trace, node: fx.Node) -> Tensor | None:
    """The first argument of a call, if it is a tensor."""
    first = node.args[0] if node.args else None
    value = trace.values[first] if isinstance(first, fx.Node) else None
    return value if isinstance(value, Tensor) else None


@torch.no_grad()
def measure_call(trace: Trace, node: fx.Node, module: nn.Module) -> StridedCall | str:
    """Measure a call of a module; returns a reason if its stride cannot be replaced."""
    source = source_of(trace, node)
    assert source is not None
    strides = stride_of(module, source.dim() - 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, *source.shape[1:]), generator=generator, device=generator.device)
    noise = noise.to(source.device, source.dtype)
    args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda n: trace.values[n])
    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return "takes more than one tensor"
    with restoring(module), torch.random.fork_rng(devices=[]):
        strided = full = module.forward(noise, *args, **kwargs)
        # Without a stride, nothing to compare; dropout would not return the same twice.
        if hasattr(module, "stride"):
            full = _at_stride_1(module, noise, args, kwargs)
    crop = _first_sample(strided, full, strides)
    if crop is None:
        return "its output is not its output at stride 1, sampled"
    return StridedCall(
        node,
        str(node.target),
        module,
        strides,
        input_size=tuple(source.shape[2:]),
        full_size=tuple(size - c for size, c in zip(full.shape[2:], crop, strict=True)),
        crop=crop,
        strided_size=tuple(strided.shape[2:]),
    )


def _at_stride_1(module: nn.Module, x: Tensor, args: Any, kwargs: Any) -> Tensor:
    attributes = dict(vars(module))
    set_stride(module, 1)
    try:
        return module.forward(x, *args, **kwargs)
    finally:
        vars(module).clear()  # removes a stride that only the class had
        vars(module).update(attributes)


def _first_sample(strided: Tensor, full: Tensor, strides: Sequence[int]) -> tuple[int, ...] | None:
    """The index of the first strided sample in the output at stride 1; None if samples differ.

    Extra samples at the end, due to ``ceil_mode``, are not compared.
    """
    tolerance = 1e-4 if strided.dtype in (torch.float32, torch.float64) else 2e-2
    largest = strided.abs().max().item()  # weights may be tiny
    for start in product(*map(range, strides)):
        window = [slice(first, None, step) for first, step in zip(start, strides, strict=True)]
        sampled = full[(..., *window)]
        common = [slice(min(sizes)) for sizes in zip(sampled.shape, strided.shape, strict=True)]
        one, other = sampled[tuple(common)], strided[tuple(common)]
        if one.numel() and torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest):
            return start
    return None
