"""Where the axes of a tensor lie in memory, and in which dtype they are multiplied."""

from typing import NamedTuple

import torch
from torch import Tensor

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class Layout(NamedTuple):
    """A dense view of a tensor: its dimensions in the order in which they lie in memory.

    ``enter`` gives that view, ``leave`` undoes it and restores the dtype.
    """

    channels_last: bool
    first_dim: int
    dtype: torch.dtype
    compute_dtype: torch.dtype

    def enter(self, x: Tensor) -> Tensor:
        dense = x.movedim(1, -1) if self.channels_last else x
        return dense.contiguous()

    def leave(self, dense: Tensor) -> Tensor:
        dense = dense.to(self.dtype)
        return dense.movedim(-1, 1) if self.channels_last else dense


def layout_of(x: Tensor, num_axes: int) -> Layout:
    """The layout of ``x``, whose last ``num_axes`` logical axes are spatial."""
    memory_format = _CHANNELS_LAST.get(num_axes)
    channels_last = (
        memory_format is not None
        and x.dim() == num_axes + 2
        and x.is_contiguous(memory_format=memory_format)
        and not x.is_contiguous()
    )
    first_dim = 1 if channels_last else x.dim() - num_axes
    return Layout(channels_last, first_dim, x.dtype, compute_dtype(x.dtype, x.device.type))


def compute_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """float32 in place of a half-precision type that a CPU would multiply in scalar loops."""
    if device_type == "cpu" and dtype not in _FAST_ON_THIS_CPU:
        return torch.float32
    return dtype


def _fast_on_this_cpu() -> set[torch.dtype]:
    fast = {torch.float32, torch.float64}
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False)
        if supported():
            fast.add(dtype)
    return fast


_FAST_ON_THIS_CPU = _fast_on_this_cpu()
