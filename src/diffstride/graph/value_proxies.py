"""Proxies of `torch.fx` that know the value they stand for."""

import math
import operator
from typing import TYPE_CHECKING, Any

from torch import fx

from diffstride._torch_compat import Attribute

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
        return self._value()

    def _call(self, function: Any, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    def __getattr__(self, name: str) -> Any:
        if name in ("device", "dtype", "ndim"):
            return getattr(self._value(), name)  # does not depend on strides
        if name.startswith("__"):
            raise AttributeError(name)  # torch looks for methods of other array libraries
        return ValueAttribute(self, name)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._constant())

    def __index__(self) -> int:
        return operator.index(self._constant())

    def __int__(self) -> int:
        return int(self._constant())

    def __float__(self) -> float:
        return float(self._constant())

    # Python lets these return any object, unlike __int__: the result stays in the graph.

    def __round__(self, *digits: int) -> Any:
        return self._call(round, *digits)

    def __ceil__(self) -> Any:
        return self._call(math.ceil)

    def __floor__(self) -> Any:
        return self._call(math.floor)

    def __trunc__(self) -> Any:
        return self._call(math.trunc)


class ValueProxy(ValueProxyBase, fx.Proxy):
    """The result of a call."""


class ValueAttribute(ValueProxyBase, Attribute):
    """An attribute of a result; it becomes a node only where it is used without being called."""
