"""The sizes of maps as functions of the sizes that pooling layers return."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from math import floor, prod

import torch
from torch import Tensor, fx

from diffstride.resolution import ClashError, Dim, Resolutions
from diffstride.worked_out import WorkedOut

Number = float | Tensor


@dataclass(frozen=True)
class Size:
    """``scale * product(sources) + offset``, rounded down if ``rounded``.

    A source is another size, or names one that is known (a call and an axis of what it returns).
    Where ``exact`` is given, the size is what that says plus ``offset``, and about the product.
    """

    sources: tuple[Hashable, ...] = ()
    scale: float = 1.0
    offset: float = 0.0
    rounded: bool = False
    exact: Callable[[Mapping[Hashable, Number]], float] | None = None

    def at(self, known: Mapping[Hashable, Number]) -> Number:
        """The value for these known sizes, differentiable in them.

        >>> half = Size(("rows",), 0.5, 0.5, rounded=True)
        >>> half.at({"rows": 7}), half.at({"rows": 8})
        (4, 4)
        """
        parts = (s.at(known) if isinstance(s, Size) else known[s] for s in self.sources)
        value = prod(parts) * self.scale + self.offset
        if self.exact is not None:
            return straight_through(self.exact(known) + self.offset, value)
        return straight_through(floor(number(value) + 1e-6), value) if self.rounded else value


def straight_through(exact: float, smooth: Number) -> Number:
    """The exact number, with the gradient of the smooth one where that is a tensor."""
    return exact + smooth - smooth.detach() if isinstance(smooth, Tensor) else exact


def number(value: Number) -> float:
    """The value of a number or a scalar tensor."""
    return float(value.detach() if isinstance(value, Tensor) else value)


class Sizes:
    """Reads off the dimensions of a network's tensors which sizes they follow, and how.

    >>> import torch
    >>> from torch import nn
    >>> from diffstride import DiffStride
    >>> from diffstride.resolution import resolve
    >>> from diffstride.tracing import trace
    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(3, 3, 3), nn.Flatten(2))
    >>> traced = trace(net, torch.zeros(1, 3, 8, 10))
    >>> pool, conv, flat = [node for node in traced.graph.nodes if node.op == "call_module"]
    >>> found = resolve(traced, [pool])
    >>> tokens = Sizes(found).read(found.dims(flat)[2], flat)
    >>> tokens.at({(pool, 0): 4, (pool, 1): 5}), tokens.at({(pool, 0): 6, (pool, 1): 7})
    (6.0, 20.0)
    """

    def __init__(self, found: Resolutions) -> None:
        self._found = found
        # By call and axis: what two calls return may grow by the same amount for other reasons.
        self._known: dict[tuple[fx.Node, int], Size] = {}
        for node in found.trace.graph.nodes:
            for axis, dim in enumerate(found.dims(node)):
                size = self._follow(node, axis, dim) if dim.shift else None
                if size is not None:
                    self._known[node, axis] = size

    def read(self, dim: Dim, *nodes: fx.Node) -> Size:
        """The size of a dimension as a function of those that pooling layers return.

        Args:
            dim: the dimension.
            nodes: among whose dimensions it is, or one that is larger or smaller by a constant.

        Raises:
            LookupError: if it does not follow from them in a way that is understood.
        """
        if not dim.shift:
            return Size(scale=0.0, offset=dim.size)
        alike = [
            (other.size, self._known[node, axis])
            for node in nodes
            for axis, other in enumerate(self._found.dims(node))
            if other.shift == dim.shift and (node, axis) in self._known
        ]
        if not alike:
            raise LookupError(f"a dimension of {dim.size} grew to {dim.moved}")
        base, size = min(alike, key=lambda pair: abs(pair[0] - dim.size))
        return replace(size, offset=size.offset + dim.size - base)

    def _follow(self, node: fx.Node, axis: int, dim: Dim) -> Size | None:
        leader = self._found.leaders.get(node)
        if leader is not None and (leader, axis - 2) in self._found.shifts:
            return Size(((leader, axis - 2),))
        try:
            return self.read(dim, *self._tensors(node))
        except LookupError:
            return self._learn(node, axis, dim)

    def _tensors(self, node: fx.Node) -> Iterator[fx.Node]:
        """The tensors that a node takes, or takes parts or sizes of."""
        for source in node.all_input_nodes:
            if isinstance(self._found.trace.values[source], Tensor):
                yield source
            else:
                yield from self._tensors(source)

    def _learn(self, node: fx.Node, axis: int, dim: Dim) -> Size | None:
        operands = [
            (source, i, operand)
            for source in node.all_input_nodes
            for i, operand in enumerate(self._found.dims(source))
            if (source, i) in self._known
        ]
        number = self._worked_out(node, dim)
        size = None
        # First, for what is rounded may be a whole fraction at both of the sizes that are known.
        for source, i, operand in operands if number is None else ():
            size = size or self._strided(node, axis, source, i, operand)
        if size is None:
            owners = {operand: source for source, _, operand in operands}
            factors = proportional(dim, owners, most=3)
            if factors is None and number is not None:
                owners = {operand: source for source, operand in number.moving}
                factors = tuple(owners)[:1]  # about so
            if not factors:
                return None
            scale = dim.size / prod(factor.size for factor in factors)
            size = Size(tuple(self.read(factor, owners[factor]) for factor in factors), scale)
        return replace(size, exact=number)

    def _worked_out(self, node: fx.Node, dim: Dim) -> WorkedOut | None:
        """The number by which ``forward`` gives a dimension its size, if it does."""
        values, moved = self._found.trace.values, self._found.values
        for source in node.all_input_nodes:
            value = values[source]
            if isinstance(value, int) and Dim(value, moved.get(source, value)) == dim:
                try:
                    return WorkedOut(source, self._found, self._shape_of)
                except LookupError:
                    continue
        return None

    def _shape_of(self, node: fx.Node) -> Callable[[Mapping[Hashable, Number]], torch.Size]:
        sizes = [self.read(dim, node) for dim in self._found.dims(node)]
        return lambda known: torch.Size(round(number(size.at(known))) for size in sizes)

    def _strided(
        self, node: fx.Node, axis: int, source: fx.Node, source_axis: int, operand: Dim
    ) -> Size | None:
        """``floor((n + a) / s)``: what strided operations that stay as they are return."""
        dim = self._found.dims(node)[axis]
        stride = round(operand.shift / dim.shift)
        least = dim.size * stride - operand.size
        steps = range(stride + 1)  # the last, for it to be this axis that it follows
        possible = [
            a for a in range(least, least + stride) if (operand.moved + a) // stride == dim.moved
        ]
        if stride < 2 or not possible:
            return None
        try:
            grown = [self._found.probe(node, source, source_axis, step)[axis] for step in steps]
        except ClashError:  # it takes other sizes together with its other operands alone
            return None
        for added in possible:
            if [(operand.size + step + added) // stride for step in steps] == grown:
                follows = (self._known[source, source_axis],)
                return Size(follows, 1 / stride, added / stride, rounded=True)
        return None


def proportional(total: Dim, dims: Iterable[Dim], most: int) -> tuple[Dim, ...] | None:
    """Those of ``dims`` (a dimension may count twice) to whose product ``total`` is proportional.

    >>> proportional(Dim(60, 180), [Dim(4, 6), Dim(5, 10)], most=3)
    (Dim(size=4, moved=6), Dim(size=5, moved=10))
    """
    dims = list(dims)
    for count in range(1, most + 1):
        for factors in combinations_with_replacement(dims, count):
            size, moved = (prod(values) for values in zip(*factors, strict=True))
            if total.moved * size == total.size * moved:
                return factors
    return None


def moving_dims(node: fx.Node, found: Resolutions) -> list[Dim]:
    """The dimensions of a node's output, then inputs, that move; without repetition."""
    nodes = (node, *node.all_input_nodes)
    return list(dict.fromkeys(dim for n in nodes for dim in found.dims(n) if dim.shift))
