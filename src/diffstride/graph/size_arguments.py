"""Calls of torch that take sizes where it does not look for the proxies of `torch.fx`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import is_tensor_method_or_property

from diffstride._torch_compat import tree_leaves

# Functions that take sizes one by one, or in a list.
FACTORIES = (
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn, torch.randint),
    *(torch.eye, torch.arange, torch.linspace, torch.tensor, torch.as_tensor),
)

# Methods of constant tensors, those that are neither parameters nor buffers. A method left out
# takes sizes as a list, in which torch finds proxies.
METHODS = ("expand", "new_empty", "new_ones", "new_zeros", "roll", "__getitem__")


@contextmanager
def recording_methods() -> Iterator[None]:
    """A context in which `METHODS` are recorded if the tensor or an argument is a proxy."""
    is_tensor_method_or_property(Tensor.expand)  # torch remembers all methods from its first call
    with ExitStack() as stack:
        for name in METHODS:
            stack.callback(_put_back, name, vars(Tensor).get(name))
            setattr(Tensor, name, _recorded(name, getattr(Tensor, name)))
        yield


def _put_back(name: str, own: Any) -> None:
    if own is None:  # `Tensor` has inherited it
        delattr(Tensor, name)
    else:
        setattr(Tensor, name, own)


def _recorded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def record(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        proxy = _first_proxy([tensor, args, kwargs])
        if proxy is None:
            return method(tensor, *args, **kwargs)
        return proxy.tracer.create_proxy("call_method", name, (tensor, *args), kwargs)

    return record


def _first_proxy(values: Any) -> fx.Proxy | None:
    for value in tree_leaves(values):
        parts = (value.start, value.stop, value.step) if isinstance(value, slice) else (value,)
        for part in parts:
            if isinstance(part, fx.Proxy):
                return part
    return None
