"""Checks of the arguments that functions and layers share."""

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._torch_compat import is_jit_tracing, outside_jit_trace
from diffstride._wording import counted
from diffstride.spectral.axis_plan import check_edge

MAX_AXES = 3
Limit = float | Sequence[float | None] | None
"""A limit of strides: of all axes, of each, or none."""


def check_network(model: Any) -> None:
    """Refuse anything but a network where one is expected.

    >>> check_network("resnet18")
    Traceback (most recent call last):
    TypeError: expected a network (torch.nn.Module), but got the text 'resnet18': build it first, as
    in torchvision.models.resnet18() or timm.create_model('resnet18')
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, str):
        got = f"the text {model!r}: build it first, as in torchvision.models.{model}() or "
        got += f"timm.create_model({model!r})"
    elif isinstance(model, type):
        got = f"the class {model.__name__}: build it first, as in {model.__name__}(...)"
    elif callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        got = f"the function {name}: call it first, as in {name}(), and pass what it returns"
    elif isinstance(model, Iterator):
        got = f"a {type(model).__name__}: pass the network itself, as in model, not "
        got += "model.parameters()"
    else:
        got = f"a {type(model).__name__}: pass the network first, then its example"
    raise TypeError(f"expected a network (torch.nn.Module), but got {got}")


def as_strides(strides: Sequence[float] | float, name: str = "strides") -> tuple[float, ...]:
    """One float per axis, each finite and at least 1; a single number means two axes.

    >>> as_strides(2), as_strides([1.5, 2, 3])
    ((2.0, 2.0), (1.5, 2.0, 3.0))
    """
    if isinstance(strides, Tensor):
        raise TypeError(f"{name} must be numbers, but got {strides!r}: pass {name}.tolist()")
    pair = (strides, strides) if isinstance(strides, Real) else strides
    values: tuple[Any, ...] = tuple(pair) if isinstance(pair, Iterable) else (pair,)
    if not 1 <= len(values) <= MAX_AXES:
        raise ValueError(
            f"{name} must be a number or a sequence of 1 to {MAX_AXES} numbers, one per spatial "
            f"axis, but has {len(values)}: {strides!r}"
        )
    for value in values:
        if not isinstance(value, Real) or not math.isfinite(value) or value < 1:
            raise ValueError(f"{name} must be finite numbers of at least 1, but got {strides!r}")
    return tuple(float(value) for value in values)


def as_whole_numbers(values: Sequence[float] | float, name: str = "strides") -> tuple[int, ...]:
    """One integer per axis; arguments as for `as_strides`.

    >>> as_whole_numbers(2.0)
    (2, 2)
    """
    numbers = as_strides(values, name)
    if any(value % 1 for value in numbers):
        others = "; DiffStride and FixedSpectralPooling take fractional strides"
        raise ValueError(
            f"{name} must be whole numbers, but got {values!r}{others * (name == 'strides')}"
        )
    return tuple(map(int, numbers))


def refuse_data_format(data_format: Any) -> None:
    """Refuse ``data_format``, an argument of the published layers."""
    if data_format is not None:
        raise ValueError(
            f"data_format={data_format!r} is not supported: the axes are (batch, channels, height, "
            "width) in either memory format. Leave data_format out, and permute an array of shape "
            "(batch, height, width, channels) with x.permute(0, 3, 1, 2)"
        )


def as_fixed_size(
    fixed_size: Any, strides: Sequence[float], cropping: bool, shared_stride: bool
) -> tuple[int | None, ...]:
    """A length in samples for some axes, None for others; strides of fixed axes must be 1.

    >>> as_fixed_size([None, 5], (2.0, 1.0), cropping=True, shared_stride=False)
    (None, 5)
    """
    sizes = as_lengths(fixed_size, "fixed_size") if isinstance(fixed_size, Sequence) else ()
    if len(sizes) != len(strides):
        expected = counted(len(strides), "axis", "axes")
        raise ValueError(
            f"fixed_size must have a whole number or None for each of {expected}, but got "
            f"{fixed_size!r}"
        )
    fixed = [stride for stride, size in zip(strides, sizes, strict=True) if size is not None]
    if len(fixed) in (0, len(strides)):
        raise ValueError(
            f"fixed_size must fix some axes and leave others, but got {fixed_size!r}: leave it out "
            "to fix none, and use AdaptiveSpectralPooling to fix all"
        )
    if max(fixed) > 1:
        raise ValueError(
            f"strides must be 1 on the axes that fixed_size={fixed_size!r} fixes, but got "
            f"{tuple(strides)}"
        )
    if shared_stride or not cropping:
        option = "shared_stride=True" if shared_stride else "cropping=False"
        raise ValueError(f"fixed_size={fixed_size!r} cannot be combined with {option}")
    return sizes


def as_lengths(sizes: Sequence[Any], name: str) -> tuple[int | None, ...]:
    """Lengths of axes in samples, None for some.

    >>> as_lengths([5, None], "output_size")
    (5, None)
    """
    given = [each for each in sizes if each is not None]
    if not all(isinstance(each, Integral) and int(each) >= 1 for each in given):
        raise ValueError(
            f"{name} must be whole numbers of at least 1, one per axis, or None for some, but got "
            f"{sizes!r}"
        )
    return tuple(None if each is None else int(each) for each in sizes)


def each_limit(limit: Limit, axes: int) -> tuple[float | None, ...]:
    """A limit for each axis, from one for all or from one for each."""
    return tuple(limit) if isinstance(limit, Sequence) else (limit,) * axes


def check_limits(lower: Limit, upper: Limit, axes: int | None = None) -> None:
    """Refuse limits below 1 or in the wrong order; None means no limit.

    If ``axes`` is given, limits may also be sequences of so many, one for each stride.
    """
    for name, limit in (("lower_limit_stride", lower), ("upper_limit_stride", upper)):
        if isinstance(limit, Sequence) and len(limit) != axes:
            expected = "a number or None" if axes is None else f"one number or {axes}"
            raise ValueError(f"{name} must be {expected}, but got {limit!r}")
        for each in each_limit(limit, 1):
            if each is not None and not (isinstance(each, Real) and each >= 1):
                raise ValueError(
                    f"{name} must be a number of at least 1, or None, but got {limit!r}"
                )
    for low, high in zip(each_limit(lower, axes or 1), each_limit(upper, axes or 1), strict=True):
        if low is not None and high is not None and low > high:
            raise ValueError(f"lower_limit_stride={lower!r} exceeds upper_limit_stride={upper!r}")


def check_window(
    smoothness_factor: float, edge: str, cropping: bool = True, straight_through: bool = False
) -> None:
    """Refuse a transition width or an edge that no window has, and a layer that does nothing."""
    factor = smoothness_factor
    if not (isinstance(factor, Real) and math.isfinite(factor) and factor > 0):
        raise ValueError(
            f"smoothness_factor must be a finite number of bins above 0, but got {factor!r}"
        )
    check_edge(edge)
    if straight_through and not cropping:
        raise ValueError(
            "cropping=False with straight_through=True would return the input: set "
            "straight_through=False for a low-pass filter, or cropping=True"
        )


def clamp_strides(values: Sequence[float], lower: Limit, upper: Limit) -> tuple[float, ...]:
    """Clamp strides to their limits; None means 1 and no upper limit."""
    for value in values:
        if not math.isfinite(value):
            raise ValueError(
                f"the strides have become {tuple(values)}: training has diverged; look whether the "
                "loss and the weights are finite, and lower their learning rate or that of the "
                "strides"
            )
    lows, highs = (each_limit(limit, len(values)) for limit in (lower, upper))
    each = zip(values, lows, highs, strict=True)
    return tuple(min(max(value, low or 1.0), high or math.inf) for value, low, high in each)


def pooled_sizes(x: Tensor, num_axes: int) -> tuple[int, ...]:
    """The lengths of the axes to pool, the last ``num_axes`` of ``x``."""
    check_tensor(x)
    sizes = map_size(x, x.dim() - num_axes) if x.dim() >= num_axes else ()
    if not x.is_floating_point():
        raise TypeError(f"pooling needs a floating-point tensor, but got {x.dtype}")
    if len(sizes) < num_axes or 0 in sizes:
        raise ValueError(
            f"pooling {counted(num_axes, 'axis', 'axes')} needs an input with as many axes at its "
            f"end that are not empty, but got shape {tuple(x.shape)}"
        )
    return sizes


def check_tensor(x: Any) -> None:
    """Refuse an array of NumPy, which torch does not convert by itself.

    >>> import numpy
    >>> check_tensor(numpy.zeros((1, 3, 8, 8)))
    Traceback (most recent call last):
    TypeError: expected a tensor, but got a numpy.ndarray of shape (1, 3, 8, 8): pass
    torch.from_numpy(x), of the dtype of the weights
    """
    # By its name, as torch runs without NumPy.
    if not isinstance(x, Tensor) and type(x).__module__ == "numpy":
        raise TypeError(
            f"expected a tensor, but got a numpy.ndarray of shape {x.shape}: pass "
            "torch.from_numpy(x), of the dtype of the weights"
        )


def map_size(x: Tensor, first: int = 2) -> tuple[int, ...]:
    """The lengths of the axes from ``first`` on, as constants of a program that is being traced."""
    if not is_jit_tracing():
        size = tuple(x.shape[first:])
        if torch.compiler.is_exporting() and any(isinstance(each, torch.SymInt) for each in size):
            raise ValueError(
                f"the size of a map is dynamic in this export ({', '.join(map(str, size))}), but "
                "pooling matrices hold for one size: leave the batch size alone dynamic"
            )
        return size
    with outside_jit_trace():
        return tuple(x.shape[first:])


def check_input(layer: Any, x: Tensor) -> None:
    """Refuse an input without one spatial axis per stride of the layer."""
    check_tensor(x)
    if x.dim() != layer.num_axes + 2:
        raise ValueError(
            f"{type(layer).__name__} with {counted(layer.num_axes, 'stride')} expects an input of "
            f"shape (batch, channels, {counted(layer.num_axes, 'spatial axis', 'spatial axes')}), "
            f"but got {tuple(x.shape)}"
        )


def check_input_size(layer: Any, input_size: Sequence[int]) -> None:
    """Refuse a size without one positive length per stride of the layer."""
    if len(input_size) != layer.num_axes or min(input_size) < 1:
        raise ValueError(
            f"input_size must be {layer.num_axes} positive lengths, but got {tuple(input_size)}"
        )


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Refuse numbers that are not whole, or below ``least``.

    >>> check_counts(width=0)
    Traceback (most recent call last):
    ValueError: width must be a whole number of at least 1, but got 0
    """
    for name, count in counts.items():
        if not isinstance(count, Integral) or int(count) < least:
            raise ValueError(
                f"{name} must be a whole number of at least {least}, but got {count!r}"
            )
