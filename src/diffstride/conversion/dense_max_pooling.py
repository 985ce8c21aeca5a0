"""Max pooling of stride 1 on a CPU, where torch's kernels for contiguous maps are slow.

Converted max pooling runs at stride 1, with four times the windows of stride 2 in two dimensions.
Torch takes the samples of contiguous maps one by one there, and those of channels-last maps many at
a time, as elementwise maxima do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffstride._torch_compat import (
    has_function_mode,
    has_tangent,
    is_jit_tracing,
    is_transformed,
    is_transforming,
)
from diffstride.conversion.module_strides import per_axis
from diffstride.spectral.memory_format import CHANNELS_LAST

FORWARDS: dict[Any, int] = {nn.MaxPool2d.forward: 2, nn.MaxPool3d.forward: 3}
LEAST_SAMPLES = 1 << 12  # smaller maps are as fast in torch
LEAST_CHANNELS = 4  # of channels-last maps, likewise
WINDOW = "kernel_size", "padding", "dilation"
Window = tuple[int, int, int]  # these, of one axis


def dense_axes(module: Any) -> int:
    """The number of axes of a max pooling of stride 1, or 0 for all other modules.

    One-dimensional maps are no faster here.

    >>> dense_axes(nn.MaxPool2d(3, stride=1)), dense_axes(nn.MaxPool2d(3)), dense_axes(nn.ReLU())
    (2, 0, 0)
    """
    axes = FORWARDS.get(type(module).forward, 0)
    if not axes or module.return_indices:
        return 0
    settings = [per_axis(module, name, axes) for name in ("stride", *WINDOW)]
    plain = all(len(each) == axes and all(type(i) is int for i in each) for each in settings)
    return axes if plain and set(settings[0]) == {1} else 0


def pool_densely(module: Any, axes: int, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What ``forward`` of a max pooling of so many `dense_axes` returns, in the same format."""
    if not _is_plain(x) or x.dim() != axes + 2 or x.numel() < LEAST_SAMPLES:
        return forward(x)
    if axes == 3 and torch.is_autocast_enabled("cpu"):
        return forward(x)  # torch pools volumes in float32 there
    if not (torch.is_grad_enabled() and x.requires_grad):
        windows = list(zip(*(per_axis(module, name, axes) for name in WINDOW), strict=True))
        return _largest(x, windows) if _holds_a_window(x, windows) else forward(x)
    if not x.is_contiguous() or x.shape[1] < LEAST_CHANNELS:
        return forward(x)
    return forward(_ChannelsLast.apply(x)).contiguous()


class _ChannelsLast(torch.autograd.Function):
    """A contiguous tensor in the channels-last format, with a contiguous gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=CHANNELS_LAST[x.dim() - 2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.contiguous()


def _is_plain(x: Any) -> bool:
    """Whether a floating-point tensor on a CPU is being computed, and nothing follows how.

    Function modes count calls of torch's own pooling (`diffstride.conversion.function_modules`).
    """
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.is_floating_point()
        and not (is_jit_tracing() or is_transformed(x) or has_tangent(x))
        and not (is_transforming() or has_function_mode())
    )


def _largest(x: Tensor, windows: Sequence[Window]) -> Tensor:
    """The largest sample of each window, along one axis after the other."""
    paddings = [pad for _, pad, _ in reversed(windows) for _ in range(2)]
    if any(paddings):
        x = F.pad(x, paddings, value=-torch.inf)
    for dim, (taps, _, distance) in enumerate(windows, start=2):
        length = x.shape[dim] - (taps - 1) * distance
        first, *others = (x.narrow(dim, tap * distance, length) for tap in range(taps))
        x = torch.maximum(first, others[0]) if others else first
        for other in others[1:]:
            torch.maximum(x, other, out=x)  # new memory would take longer than the maxima
    return x


def _holds_a_window(x: Tensor, windows: Sequence[Window]) -> bool:
    """Whether the padded map is at least as long as a window, on each axis; torch tells if not."""
    return all(
        size + 2 * pad > (taps - 1) * distance
        for size, (taps, pad, distance) in zip(x.shape[2:], windows, strict=True)
    )
