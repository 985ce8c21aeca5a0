"""Convolutions and products of matrices on fake tensors, remembered by their shapes.

PyTorch takes a millisecond to tell the shape of a convolution on fake tensors, more than for all
else of an analysis. A network is analysed several times, and repeats its layers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffstride._torch_compat import FakeTensor, TorchDispatchMode

PRODUCTS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
}
MOST = 1 << 14  # results, of less than a kilobyte each


class Layout(NamedTuple):
    """All that a tensor without data has."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "Layout":
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


_known: dict[tuple[Any, ...], Layout] = {}  # of all networks


class RememberedShapes(TorchDispatchMode):
    """Returns what such an operation returned for the same layouts before, without running it.

    To be used inside of a `FakeTensorMode`.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        fake = all(issubclass(each, FakeTensor) for each in types)
        if func not in PRODUCTS or kwargs or not fake:
            return func(*args, **(kwargs or {}))
        key = func, *map(_as_key, args)
        if key in _known:
            return _known[key].empty()
        result = func(*args)
        if len(_known) >= MOST:
            _known.clear()
        _known[key] = Layout.of(result)
        return result


def _as_key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Layout.of(value)
    return tuple(value) if isinstance(value, list) else value
