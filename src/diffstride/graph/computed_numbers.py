"""Numbers that ``forward`` computes from sizes: ``F.interpolate(x, size=x.shape[2] // 4)``."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from diffstride.graph.dims import Dim
from diffstride.graph.fake_run import run_node
from diffstride.graph.stride_groups import StrideGroups

ShapeAt = Callable[[Mapping[Hashable, Any]], torch.Size]


class ComputedNumber:
    """A number that is computed again, by the same calls, for other sizes.

    ``moving_dims`` are the dimensions it depends on whose size depends on strides.

    Args:
        node: the last of these calls.
        groups: the stride groups of the network.
        shape_of: returns the shape of a node's tensor as a function of known sizes.

    Raises:
        LookupError: if the number depends on more of a tensor than its shape.
    """

    def __init__(
        self, node: fx.Node, groups: StrideGroups, shape_of: Callable[[fx.Node], ShapeAt]
    ) -> None:
        self._node, self._groups = node, groups
        self._shapes: dict[fx.Node, ShapeAt] = {}
        self._seen: set[tuple[fx.Node, fx.Node]] = set()
        self.moving_dims: list[Dim] = []
        self._find_shapes(node, shape_of)

    def _find_shapes(self, node: fx.Node, shape_of: Callable[[fx.Node], ShapeAt]) -> None:
        for source in node.all_input_nodes:
            if source not in self._groups.values or (node, source) in self._seen:
                continue  # a constant, or seen before
            self._seen.add((node, source))
            if not isinstance(self._groups.trace.values[source], Tensor):
                self._find_shapes(source, shape_of)
            elif _reads_shape(node):
                self._shapes[source] = shape_of(source)
                self.moving_dims += [dim for dim in self._groups.dims(source) if dim.growth]
            else:
                raise LookupError(f"{node} depends on more of {source} than its shape")

    def __call__(self, known: Mapping[Hashable, Any]) -> float:
        """The number for these sizes."""
        return self._value(self._node, known, {})

    def _value(self, node: fx.Node, known: Mapping[Hashable, Any], done: dict[fx.Node, Any]) -> Any:
        if node not in done:
            done[node] = self._compute(node, known, done)
        return done[node]

    def _compute(
        self, node: fx.Node, known: Mapping[Hashable, Any], done: dict[fx.Node, Any]
    ) -> Any:
        if node not in self._groups.values:
            return self._groups.trace.values[node]
        if node.args and node.args[0] in self._shapes:
            shape = self._shapes[node.args[0]](known)  # type: ignore[index]
            axes = [*node.args[1:], *node.kwargs.values()] if node.op == "call_method" else []
            return shape[axes[0]] if axes else shape  # type: ignore[call-overload]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._value(n, known, done))
        return run_node(None, node, args, kwargs)


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    return node.target is getattr and str(node.args[1]) == "shape"
