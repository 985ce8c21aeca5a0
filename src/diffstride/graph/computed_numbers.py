"""Numbers that a forward pass works out of sizes: ``F.interpolate(x, size=x.shape[2] // 4)``."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from diffstride.graph.stride_groups import Dim, Resolutions

ShapeAt = Callable[[Mapping[Hashable, Any]], torch.Size]


class WorkedOut:
    """Such a number, worked out again for other sizes by the same calls.

    Args:
        node: the last of these calls.
        found: the network it is in.
        shape_of: returns, for a node with a tensor, its shape as a function of the sizes known.

    Raises:
        LookupError: if the number takes more from a tensor than its shape.
    """

    def __init__(
        self, node: fx.Node, found: Resolutions, shape_of: Callable[[fx.Node], ShapeAt]
    ) -> None:
        self._node, self._found = node, found
        self._shapes: dict[fx.Node, ShapeAt] = {}
        self._seen: set[tuple[fx.Node, fx.Node]] = set()
        self.moving: list[Dim] = []
        self._find(node, shape_of)

    def _find(self, node: fx.Node, shape_of: Callable[[fx.Node], ShapeAt]) -> None:
        for source in node.all_input_nodes:
            if source not in self._found.values or (node, source) in self._seen:
                continue  # a constant, or known
            self._seen.add((node, source))
            if not isinstance(self._found.trace.values[source], Tensor):
                self._find(source, shape_of)
            elif _asks_for_shape(node):
                self._shapes[source] = shape_of(source)
                self.moving += [dim for dim in self._found.dims(source) if dim.shift]
            else:
                raise LookupError(f"{node} takes more from {source} than its shape")

    def __call__(self, known: Mapping[Hashable, Any]) -> float:
        """The number for these sizes."""
        return self._value(self._node, known, {})

    def _value(self, node: fx.Node, known: Mapping[Hashable, Any], made: dict[fx.Node, Any]) -> Any:
        if node not in made:
            made[node] = self._make(node, known, made)
        return made[node]

    def _make(self, node: fx.Node, known: Mapping[Hashable, Any], made: dict[fx.Node, Any]) -> Any:
        if node not in self._found.values:
            return self._found.trace.values[node]
        if node.args and node.args[0] in self._shapes:
            shape = self._shapes[node.args[0]](known)  # type: ignore[index]
            axes = [*node.args[1:], *node.kwargs.values()] if node.op == "call_method" else []
            return shape[axes[0]] if axes else shape  # type: ignore[call-overload]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._value(n, known, made))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    return node.target is getattr and str(node.args[1]) == "shape"
