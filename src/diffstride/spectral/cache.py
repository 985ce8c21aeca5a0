"""Caches of tensors that are functions of a few numbers, safe in every mode of PyTorch."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from diffstride._torch_compat import disable_current_modes, disable_functorch, mark_constant
from diffstride.spectral.axis_plan import Axis

LARGE = 1 << 16  # elements from which a matrix counts as large

Make = Callable[..., Tensor]


def cached(many: int, few: int) -> Callable[[Make], Make]:
    """Cache a function of two lengths and more: the last ``many`` tensors, ``few`` large ones.

    A stride that learns makes a new matrix in every step; hundreds for a long axis would fill the
    memory.
    """

    def decorate(make: Make) -> Make:
        small, large = lru_cache(many)(outside_modes(make)), lru_cache(few)(outside_modes(make))

        @wraps(make)
        def kept(size: int, output_size: int, *args: Any) -> Tensor:
            keeper = large if size * output_size > LARGE else small
            return keeper(size, output_size, *args)

        return kept

    return decorate


def outside_modes(make: Make) -> Make:
    """Run ``make`` outside fake-tensor, FLOP-counting, inference and functorch modes.

    A network may run on fake tensors, in inference mode or inside a transform of `torch.func`
    before it trains. The cached tensor has to work after that.
    """

    def made(*args: Any) -> Tensor:
        # Not `is_compiling`: it is true in torch.export too, which runs this on fake tensors.
        if torch.compiler.is_dynamo_compiling():
            return make(*args)
        with disable_functorch(), torch.inference_mode(False), disable_current_modes():
            return make(*args)

    return made


def as_constant(cached: Make) -> Make:
    """Let compiled programs hold the tensors that ``cached`` returns as constants.

    Otherwise the compiler traces through the cache and computes the tensor in every call. The
    tensor is returned in a tuple: the compiler gives bare ones equal names, which all backends but
    ``"eager"`` refuse.
    """

    def constant(*args: Any) -> tuple[Tensor]:
        return (cached(*args),)

    mark_constant(constant)
    return lambda *args: constant(*args)[0]


def cached_per_axis(make: Make) -> Make:
    """Cache ``make(axis, dtype, device)``, and let compiled programs hold it as a constant.

    The caches hold the matrices of the last training steps, or in evaluation those of all layers.
    A flat axis has the same matrix at all strides that give the same length.
    """

    @as_constant
    @cached(256, 32)
    def kept(*args: Any) -> Tensor:
        *fields, dtype, device = args
        return make(Axis(*fields), dtype, device)

    return lambda axis, dtype, device: kept(*tuple(axis.without_ramp()), dtype, device)


def on_device(constant: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of the host in the dtype and on the device of a feature map.

    A GPU receives it without waiting for the work that is queued there.
    """
    return constant.to(device, dtype, non_blocking=device.type == "cuda")
