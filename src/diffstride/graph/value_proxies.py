"""What a network computes with while it is traced: proxies that know the values they stand for."""

import math
import operator
from typing import TYPE_CHECKING, Any

from torch import fx

from diffstride._torch_compat import Attribute

if TYPE_CHECKING:
    from diffstride.graph.tracer import Tracer


class Known:
    """A proxy that knows the value it stands for, and answers where Python insists on one.

    An answer is a plain number, a constant from there on; the tracer takes note of it.
    """

    node: fx.Node
    tracer: "Tracer"

    def _value(self) -> Any:
        return self.tracer.values[self.node]

    def _number(self) -> Any:
        self.tracer.note_number(self.node)
        return self._value()

    def _call(self, function: Any, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    def __getattr__(self, name: str) -> Any:
        if name in ("device", "dtype", "ndim"):
            return getattr(self._value(), name)  # never depends on a stride
        if name.startswith("__"):
            raise AttributeError(name)  # torch asks whether this is an array of another library
        return KnownAttribute(self, name)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._number())

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    # Unlike int(), these may return what they like: the result goes on following the size.

    def __round__(self, *digits: int) -> Any:
        return self._call(round, *digits)

    def __ceil__(self) -> Any:
        return self._call(math.ceil)

    def __floor__(self) -> Any:
        return self._call(math.floor)

    def __trunc__(self) -> Any:
        return self._call(math.trunc)


class KnownProxy(Known, fx.Proxy):
    """What a call returned."""


class KnownAttribute(Known, Attribute):
    """An attribute of what a call returned; a node of its own only where it is not called."""
