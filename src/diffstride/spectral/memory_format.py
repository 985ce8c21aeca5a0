"""The memory format of a tensor, and the dtype in which it is multiplied."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from diffstride._torch_compat import is_wrapped, multiplies_fast

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
FULL_PRECISION = (torch.float32, torch.float64)
_FAST_ON_CPU = {*FULL_PRECISION, *filter(multiplies_fast, (torch.bfloat16, torch.float16))}
FIRST_DIM = 1  # the first dimension of a dense view that is pooled


class Layout(NamedTuple):
    """How to view a tensor as a dense one, with its dimensions in the order of memory.

    ``enter`` gives that view, ``(maps, N_1, …, N_n)`` or, channels-last, ``(B, N_1, …, N_n, C)``;
    ``leave`` undoes it and restores the dtype.
    """

    channels_last: bool
    leading: tuple[int, ...]
    dtype: torch.dtype
    compute_dtype: torch.dtype

    def enter(self, x: Tensor) -> Tensor:
        if self.channels_last:
            return x.movedim(1, -1).contiguous()
        axes = x.shape[len(self.leading) :]
        return x.contiguous().view(math.prod(self.leading), *axes)

    def leave(self, dense: Tensor) -> Tensor:
        dense = dense.to(self.dtype)
        if self.channels_last:
            return dense.movedim(-1, 1)
        return dense.view(*self.leading, *dense.shape[FIRST_DIM:])


def layout_of(x: Tensor, num_axes: int) -> Layout:
    """The layout of ``x``, whose last ``num_axes`` logical axes are spatial."""
    memory_format = CHANNELS_LAST.get(num_axes)
    channels_last = (
        memory_format is not None
        and x.dim() == num_axes + 2
        and not is_wrapped(x)  # such a tensor does not know its memory format
        and x.is_contiguous(memory_format=memory_format)
        and not x.is_contiguous()
    )
    leading = tuple(x.shape[: x.dim() - num_axes])
    return Layout(channels_last, leading, x.dtype, compute_dtype(x.dtype, x.device.type))


def compute_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """The dtype of the products: float32 where a CPU has only scalar loops for ``dtype``."""
    if device_type == "cpu" and dtype not in _FAST_ON_CPU:
        return torch.float32
    return dtype


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context without autocast: products with ``x`` keep its dtype, as all pooling does."""
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
