"""Proxies of `torch.fx` that know the value they stand for."""

import math
import operator
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function

from diffstride._torch_compat import Attribute, empty_wrapper, has_function_mode

if TYPE_CHECKING:
    from diffstride.graph.tracer import Tracer


class ValueProxyBase:
    """Returns the value it stands for where Python needs a plain number, as in ``int(x)``.

    That number is a constant in the rest of the graph, so the tracer records it.
    """

    node: fx.Node
    tracer: "Tracer"

    def _value(self) -> Any:
        return self.tracer.values[self.node]

    def _constant(self) -> Any:
        self.tracer.record_constant(self.node)
        return self.tracer.known_value(self.node)

    def _call(self, function: Any, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    def __getattr__(self, name: str) -> Any:
        if name in ("device", "dtype", "ndim"):
            return getattr(self._value(), name)  # does not depend on strides
        # torch looks for methods of other array libraries, and a network for attributes of others.
        if name.startswith("__") or not hasattr(self._value(), name):
            raise AttributeError(name)
        return ValueAttribute(self, name)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._constant())

    def __index__(self) -> int:
        return operator.index(self._constant())

    def __int__(self) -> int:
        return int(self._constant())

    def __float__(self) -> float:
        return float(self._constant())

    def __format__(self, specification: str) -> str:
        return format(self._constant(), specification)

    # Python lets these return any object, unlike __int__: the result stays in the graph.

    def __round__(self, *digits: int) -> Any:
        return self._call(round, *digits)

    def __ceil__(self) -> Any:
        return self._call(math.ceil)

    def __floor__(self) -> Any:
        return self._call(math.floor)

    def __trunc__(self) -> Any:
        return self._call(math.trunc)

    def __divmod__(self, other: Any) -> Any:
        return self._call(divmod, other)

    def __rdivmod__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", divmod, (other, self), {})


class ValueProxy(ValueProxyBase, fx.Proxy):
    """The result of a call, other than a tensor; `isinstance` sees the class of the result."""

    @property
    def __class__(self) -> type:
        return type(self._value())


class TensorProxy(ValueProxyBase, fx.Proxy, Tensor):
    """A tensor that a call returned: ``isinstance(x, torch.Tensor)`` holds, as in the network.

    Its own memory is never read. Operators and functions of torch record a call, and so do its
    attributes and methods, by `__getattr__`.
    """

    @staticmethod
    def __new__(cls, node: fx.Node, tracer: "Tracer") -> "TensorProxy":
        return empty_wrapper(cls, tracer.values[node])

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_TENSORS:
            return ValueProxyBase.__getattr__(self, name)
        return super().__getattribute__(name)

    def __getitem__(self, index: Any) -> Any:
        if not has_function_mode():
            return super().__getitem__(index)
        return handle_torch_function(Tensor.__getitem__, (self,), self, index)

    @property
    def _is_param(self) -> bool:
        return isinstance(self._value(), nn.Parameter)  # asked for by the class of parameters

    @classmethod
    def __torch_dispatch__(cls, function: Any, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{function} reads a tensor of the network, which has no data here")


_OF_TENSORS = {name for name in dir(Tensor) if name[:2] != "__"} - set(dir(ValueProxy))


class ValueAttribute(ValueProxyBase, Attribute):
    """An attribute of a result; it becomes a node only where it is used without being called."""

    @property
    def __class__(self) -> type:
        return type(getattr(self.root._value(), self.attr))  # pyright: ignore
