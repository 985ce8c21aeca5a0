"""A module that pools what it returns, and is otherwise the module it was.

Conversion must not rename anything: checkpoints, hooks and optimisers know modules by their names
and classes. So a converted ``Conv2d`` stays the same object with the same parameters; only its
class becomes ``PooledConv2d``, a subclass of ``Conv2d``, and the pooling layer its child.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from diffstride.spectral.memory_format import full_precision


class Margin(NamedTuple):
    """What makes an axis fit: samples dropped at its start, then added (or dropped) at its end."""

    drop: int = 0
    add: int = 0


class Pooled(nn.Module):
    """Mixed into the class of a module: ``y = pooling(fit(module(x)))``.

    With ``pool_first`` it is ``y = module(pooling(fit(x)))``: the same for a pointwise convolution,
    since the pooling keeps constants, and much cheaper.
    """

    pooling: nn.Module
    margins: tuple[Margin, ...]
    pool_first: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.pool_first:
            return super().forward(self.pooling(fit(x, self.margins)), *args, **kwargs)  # type: ignore
        return self.pooling(fit(super().forward(x, *args, **kwargs), self.margins))  # type: ignore

    def __reduce_ex__(self, protocol: Any) -> tuple:
        function, args, *state = super().__reduce_ex__(protocol)
        bases = type(self).__bases__
        # The class is made at run time, so that pickle could not find it by its name. One that
        # others derived from it, for a parametrization say, is theirs to restore, or to refuse.
        if bases[0] is Pooled:
            function, args = _restore, bases[1:]
        return function, args, *state


def attach_pooling(
    module: nn.Module, pooling: nn.Module, margins: Sequence[Margin], pool_first: bool = False
) -> None:
    """Let ``module`` run at stride 1 and pool, in place.

    >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> attach_pooling(conv, nn.AvgPool2d(4), [Margin(), Margin()])
    >>> conv
    PooledConv2d(
      3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)
      (pooling): AvgPool2d(kernel_size=4, stride=4, padding=0)
    )
    >>> isinstance(conv, nn.Conv2d), list(conv.state_dict())
    (True, ['weight', 'bias'])
    """
    set_stride(module, 1)
    base = type(module)
    module.__class__ = parametrized_class(base) if is_parametrized(module) else pooled_class(base)
    module.pooling = pooling
    module.margins = tuple(margins)  # type: ignore[assignment]
    module.pool_first = pool_first  # type: ignore[assignment]


def set_stride(module: nn.Module, stride: int) -> None:
    """Set ``module.stride`` on all axes, keeping its type; a module without one is left alone."""
    if hasattr(module, "stride"):
        old = module.stride
        many = isinstance(old, (tuple, list))
        module.stride = type(old)(stride for _ in old) if many else stride  # type: ignore


@cache
def pooled_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``base`` that pools; always the same one, so that types compare equal."""
    namespace = {"__doc__": f"{base.__name__} followed by a pooling layer."}
    return type(f"Pooled{base.__name__}", (Pooled, base), namespace)


def parametrized_class(base: type[nn.Module]) -> type[nn.Module]:
    """The pooling counterpart of the class that torch has made for one parametrized module.

    torch takes parametrizations off again with the outermost class, so it has to stay that: it is
    derived anew, from the pooling subclass of what it was derived from.
    """
    pooled = pooled_class(base.__bases__[0])
    own = {k: v for k, v in vars(base).items() if k not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{pooled.__name__}", (pooled,), own)


def fit(x: Tensor, margins: Sequence[Margin]) -> Tensor:
    """Drop samples at the start of each spatial axis and repeat, or drop, the last at its end.

    Operations on parallel branches may leave maps of slightly different sizes at stride 1 (an even
    kernel, no padding, ``ceil_mode``); fitted to one size, they stay equal at every stride.

    >>> import torch
    >>> fit(torch.arange(4.0).reshape(1, 1, 4), [Margin(drop=1, add=2)])
    tensor([[[1., 2., 3., 3., 3.]]])
    """
    for axis, (drop, add) in enumerate(margins):
        if drop or add < 0:
            dim = 2 + axis
            x = x.narrow(dim, drop, x.shape[dim] - drop + min(add, 0))
    if any(add > 0 for _, add in margins):
        pads = [pad for _, add in reversed(margins) for pad in (0, max(add, 0))]
        with full_precision(x):  # autocast would pad in float32 and leave it so
            x = F.pad(x, pads, mode="replicate")
    return x


def _restore(base: type[nn.Module]) -> nn.Module:
    cls = pooled_class(base)
    return cls.__new__(cls)
