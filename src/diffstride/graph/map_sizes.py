"""The sizes of maps as functions of the sizes that pooling layers return."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, prod

import torch
from torch import Tensor, fx

from diffstride.graph.computed_numbers import WorkedOut
from diffstride.graph.stride_groups import ClashError, Dim, Resolutions, proportional

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
    >>> from diffstride.graph.stride_groups import resolve
    >>> from diffstride.graph.tracer import trace
    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(3, 3, 3), nn.Flatten(2))
    >>> traced = trace(net, torch.zeros(1, 3, 8, 10))
    >>> pool, conv, flat = [node for node in traced.graph.nodes if node.op == "call_module"]
    >>> found = resolve(traced, [pool])
    >>> tokens = Sizes(found).read(found.dims(flat)[2])
    >>> tokens.at({(pool, 0): 4, (pool, 1): 5}), tokens.at({(pool, 0): 6, (pool, 1): 7})
    (6.0, 20.0)
    """

    def __init__(self, found: Resolutions) -> None:
        self._found = found
        # By growth in all moves: no two sizes that follow different ones grow alike in each.
        self._known: dict[tuple[int, ...], tuple[Size, int]] = {}
        for node in found.trace.graph.nodes:
            for axis, dim in enumerate(found.dims(node)):
                if (node, axis - 2) in found.shifts and found.leaders[node] is node:
                    self._known[dim.shift] = Size(((node, axis - 2),)), dim.size
                elif dim.shift and dim.shift not in self._known:
                    self._learn(node, axis, dim)

    def read(self, dim: Dim) -> Size:
        """The size of a dimension as a function of those that pooling layers return.

        Raises:
            LookupError: if it does not follow from them in a way that is understood.
        """
        if not dim.shift:
            return Size(scale=0.0, offset=dim.size)
        if dim.shift not in self._known:
            raise LookupError(f"a dimension of {dim.size} grew to {max(dim.moved)}")
        size, base = self._known[dim.shift]
        return replace(size, offset=size.offset + dim.size - base)

    def _learn(self, node: fx.Node, axis: int, dim: Dim) -> None:
        operands = [
            (source, i, operand)
            for source in node.all_input_nodes
            for i, operand in enumerate(self._found.dims(source))
            if operand.shift in self._known
        ]
        number = self._worked_out(node, dim)
        factors = proportional(dim, dict.fromkeys(dim for *_, dim in operands), most=3)
        if factors is None and number is not None:
            factors = tuple(number.moving[:1])  # about so
        size = self._multiple(dim, factors) if factors else None
        for source, i, operand in operands:
            size = size or self._strided(node, axis, source, i, operand)
        if size is not None:
            self._known[dim.shift] = replace(size, exact=number), dim.size

    def _multiple(self, dim: Dim, factors: Sequence[Dim]) -> Size:
        """The size as a multiple of the product of others."""
        scale = dim.size / prod(factor.size for factor in factors)
        return Size(tuple(map(self.read, factors)), scale)

    def _worked_out(self, node: fx.Node, dim: Dim) -> WorkedOut | None:
        """The number by which ``forward`` gives a dimension its size, if it does."""
        for source in node.all_input_nodes:
            value = self._found.trace.values[source]
            if isinstance(value, int) and self._found.number(source) == dim:
                try:
                    return WorkedOut(source, self._found, self._shape_of)
                except LookupError:
                    continue
        return None

    def _shape_of(self, node: fx.Node) -> Callable[[Mapping[Hashable, Number]], torch.Size]:
        sizes = [self.read(dim) for dim in self._found.dims(node)]
        return lambda known: torch.Size(round(number(size.at(known))) for size in sizes)

    def _strided(
        self, node: fx.Node, axis: int, source: fx.Node, source_axis: int, operand: Dim
    ) -> Size | None:
        """``floor((n + a) / s)``: what strided operations that stay as they are return."""
        dim = self._found.dims(node)[axis]

        def grown(step: int) -> int:
            return self._found.probe(node, source, source_axis, step)[axis]

        try:
            stride = self._stride(operand, dim, grown)
            least = dim.size * stride - operand.size
            # One step more than a stride, for it to be this axis alone that the size follows.
            steps = range(stride + 1 if stride else 0)
            found = {operand.size + step: grown(step) for step in steps}
        except ClashError:  # other operands would have to grow with it
            return None
        found |= dict(zip(operand.moved, dim.moved, strict=True))
        for added in range(least, least + stride):
            if all((size + added) // stride == result for size, result in found.items()):
                return Size((self.read(operand),), 1 / stride, added / stride, rounded=True)
        return None

    def _stride(self, operand: Dim, dim: Dim, grown: Callable[[int], int]) -> int:
        """How many samples of an operand make one more, 0 where none are known to."""
        most = max(zip(operand.shift, dim.shift, strict=True))
        if min(most) <= 0:
            return 0
        about = round(most[0] / most[1])
        far = 4 * about**2  # so far that one sample more or less makes no other stride
        more = grown(far) - dim.size
        return round(far / more) if about > 1 and more > 0 else 0


def moving_dims(node: fx.Node, found: Resolutions) -> list[Dim]:
    """The dimensions of a node's output, then inputs, that move; without repetition."""
    nodes = (node, *node.all_input_nodes)
    return list(dict.fromkeys(dim for n in nodes for dim in found.dims(n) if dim.shift))
