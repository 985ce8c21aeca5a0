"""Caches of tensors that are functions of a few numbers, safe in every mode of PyTorch."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from diffstride._torch_compat import disable_current_modes, disable_functorch, mark_constant

LARGE = 1 << 16  # elements of a matrix, from which on only a few are kept


def cached(many: int, few: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Cache a function of two lengths and more: the last ``many`` tensors, ``few`` large ones.

    A stride that learns makes a new matrix in every step; hundreds for a long axis would fill the
    memory.
    """

    def decorate(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        small, large = lru_cache(many)(outside_modes(make)), lru_cache(few)(outside_modes(make))

        @wraps(make)
        def kept(size: int, output_size: int, *args: Any) -> Tensor:
            keeper = large if size * output_size > LARGE else small
            return keeper(size, output_size, *args)

        return kept

    return decorate


def outside_modes(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run ``make`` outside fake-tensor, FLOP-counting, inference and functorch modes.

    A network may be analysed on fake tensors, validated in inference mode before it trains, or run
    inside a transform of `torch.func`. The cached tensor has to work after that.
    """

    def made(*args: Any) -> Tensor:
        # Not `is_compiling`: it is true in torch.export too, which runs this on fake tensors.
        if torch.compiler.is_dynamo_compiling():
            return make(*args)
        # A tensor made in inference mode cannot be used in training, and one made inside a
        # transform cannot be used outside it.
        with disable_functorch(), torch.inference_mode(False), disable_current_modes():
            return make(*args)

    return made


def as_constant(cached: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let compiled programs hold what ``cached`` returns for plain numbers as a constant.

    Otherwise the compiler traces through the cache and computes the tensor in every call. The
    tensor is returned in a tuple: the compiler gives bare ones equal names, which all backends but
    ``"eager"`` refuse.
    """

    def constant(*args: Any) -> tuple[Tensor]:
        return (cached(*args),)

    mark_constant(constant)
    return lambda *args: constant(*args)[0]
