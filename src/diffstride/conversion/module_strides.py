"""The strides and windows of modules: read for each axis, and set."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn

from diffstride._torch_compat import ConvTranspose


def per_axis(module: nn.Module, name: str, axes: int) -> tuple[int, ...]:
    """An attribute of a module of torch, such as ``"kernel_size"``, for each spatial axis."""
    value: Any = getattr(module, name, 1)
    if value is None:  # pooling layers stride by their window
        value = getattr(module, "kernel_size", None) or 1
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


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


def set_stride(module: nn.Module, stride: int) -> None:
    """Set ``module.stride`` on all axes, keeping its type; do nothing if there is none."""
    if hasattr(module, "stride"):
        old = module.stride
        many = isinstance(old, (tuple, list))
        module.stride = type(old)(stride for _ in old) if many else stride  # type: ignore


def patchifies(kernels: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the windows of a module do not overlap along some axis."""
    return any(1 < k <= s for k, s in zip(kernels, strides, strict=True))
