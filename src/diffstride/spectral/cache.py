"""Functions of a few numbers, each computed once, whatever is going on around the call."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from diffstride._torch_compat import disable_current_modes, disable_functorch, mark_constant

LARGE = 1 << 16  # samples in times samples out, from which a matrix weighs too much to keep many


def cached(many: int, few: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Keep the last ``many`` tensors that a function of two lengths and more returned.

    Of large ones, ``few``: a stride that learns makes a new matrix in every step, and some hundred
    of those of a long axis would fill the memory.
    """

    def decorate(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        small, large = lru_cache(many)(apart(make)), lru_cache(few)(apart(make))

        @wraps(make)
        def kept(size: int, output_size: int, *args: Any) -> Tensor:
            keeper = large if size * output_size > LARGE else small
            return keeper(size, output_size, *args)

        return kept

    return decorate


def apart(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have ``make`` compute on true tensors, uncounted, whatever is going on around it.

    A network may be run on fake tensors, to see its shapes, in inference mode, as Lightning
    validates before it trains, or inside a transform of `torch.func`: what is cached must be of use
    afterwards.
    """

    def made(*args: Any) -> Tensor:
        # While a program is traced, which is not what `is_compiling` says: that is true of
        # torch.export as well, which runs all this on fake tensors.
        if torch.compiler.is_dynamo_compiling():
            return make(*args)
        # What is made in inference mode could take part in no training later, and what is made in
        # a transform in nothing at all.
        with disable_functorch(), torch.inference_mode(False), disable_current_modes():
            return make(*args)

    return made


def as_constant(cached: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let compiled programs hold what ``cached`` returns for plain numbers as a constant.

    The tracer would look through a cache if it saw one, and compute what is at hand. Tensors alone
    it names after their function, all alike, which all backends but ``"eager"`` refuse; in a tuple
    each gets a name of its own.
    """

    def constant(*args: Any) -> tuple[Tensor]:
        return (cached(*args),)

    mark_constant(constant)
    return lambda *args: constant(*args)[0]
