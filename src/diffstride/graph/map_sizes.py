"""Sizes of maps as functions of the sizes that pooling layers return."""

import operator
from collections import ChainMap
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import floor, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from diffstride.graph.fake_run import run_node
from diffstride.graph.perturbed_runs import SizeMismatchError, probe
from diffstride.graph.perturbed_sizes import Dim, proportional
from diffstride.graph.stride_groups import StrideGroups

Number = float


@dataclass(frozen=True)
class SizeExpression:
    """``scale * product(sources) + offset``, rounded down if ``rounded``.

    A source is another expression, or the key of a known size: the name of a node, which calls a
    pooling layer, and an axis of its output.
    If ``exact`` is given, the size is ``exact(known) + offset``, and the product only gives its
    slopes.
    """

    sources: tuple[Hashable, ...] = ()
    scale: float = 1.0
    offset: float = 0.0
    rounded: bool = False
    exact: Callable[[Mapping[Hashable, Number]], float] | None = None

    def at(self, known: Mapping[Hashable, Number]) -> Number:
        """The value for these known sizes.

        >>> half = SizeExpression(("rows",), 0.5, 0.5, rounded=True)
        >>> half.at({"rows": 7}), half.at({"rows": 8})
        (4, 4)
        """
        if self.exact is not None:
            return self.exact(known) + self.offset
        value = prod(self._parts(known)) * self.scale + self.offset
        return floor(value + 1e-6) if self.rounded else value

    @property
    def simplest(self) -> "Source":
        """The key of a known size if that is all there is, else the expression."""
        factor_alone = (self.scale, self.offset, self.rounded, self.exact) == (1, 0, False, None)
        return self.sources[0] if factor_alone and len(self.sources) == 1 else self

    def add_slopes(
        self, known: Mapping[Hashable, Number], factor: float, slopes: dict[Hashable, float]
    ) -> None:
        """Add ``factor`` times the derivative by each known size, without the rounding.

        >>> tokens, slopes = SizeExpression(("rows", "columns")), {"rows": 0.0, "columns": 0.0}
        >>> tokens.add_slopes({"rows": 7, "columns": 5}, 2.0, slopes)
        >>> slopes
        {'rows': 10.0, 'columns': 14.0}
        """
        if not self.sources:
            return
        parts = self._parts(known)
        for i, source in enumerate(self.sources):
            slope = factor * self.scale * prod(parts[:i] + parts[i + 1 :])
            if isinstance(source, SizeExpression):
                source.add_slopes(known, slope, slopes)
            else:
                slopes[source] += slope

    def _parts(self, known: Mapping[Hashable, Number]) -> list[Number]:
        return [size_at(source, known) for source in self.sources]


Source = SizeExpression | Hashable


def size_at(source: Source, known: Mapping[Hashable, Number]) -> Number:
    """The size that an expression or a key stands for."""
    return source.at(known) if isinstance(source, SizeExpression) else known[source]


def product(sizes: Iterable[SizeExpression]) -> SizeExpression:
    """The product of sizes, with all constants in one factor."""
    moving, scale = [], 1.0
    for size in sizes:
        if size.sources or size.exact:
            moving.append(size.simplest)
        else:
            scale *= size.offset
    return SizeExpression(tuple(moving), scale)


class MapSizes:
    """Expressions for the sizes of all maps of a network, from how they grow in perturbed runs.

    >>> import torch
    >>> from torch import nn
    >>> from diffstride import DiffStride
    >>> from diffstride.graph.stride_groups import UnlearnedAxes
    >>> from diffstride.graph.group_search import find_stride_groups
    >>> from diffstride.graph.tracer import trace
    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(3, 3, 3), nn.Flatten(2))
    >>> traced = trace(net, torch.zeros(1, 3, 8, 10))
    >>> pool, conv, flat = [node for node in traced.graph.nodes if node.op == "call_module"]
    >>> groups = find_stride_groups(traced, {pool: UnlearnedAxes()})
    >>> tokens = MapSizes(groups).read(groups.dims(flat)[2])
    >>> tokens.at({("_0", 0): 4, ("_0", 1): 5}), tokens.at({("_0", 0): 6, ("_0", 1): 7})
    (6.0, 20.0)
    """

    def __init__(self, groups: StrideGroups) -> None:
        self._groups = groups
        # An expression and the size it gives in the network, by growth. Sizes of equal growth in
        # all runs differ by a constant only.
        self._known: dict[tuple[int, ...], tuple[SizeExpression, int]] = {}
        for node in groups.trace.graph.nodes:
            for axis, dim in enumerate(groups.dims(node)):
                if (node, axis - 2) in groups.growths and groups.leaders[node] is node:
                    key = node.name, axis - 2
                    self._known[dim.growth] = SizeExpression((key,)), dim.size
                elif dim.growth and dim.growth not in self._known:
                    self._learn(node, axis, dim)

    def read(self, dim: Dim) -> SizeExpression:
        """The size of a dimension as a function of those that pooling layers return.

        Raises:
            LookupError: if no such function is known.
        """
        if not dim.growth:
            return SizeExpression(scale=0.0, offset=dim.size)
        if dim.growth not in self._known:
            raise LookupError(f"a dimension of {dim.size} grew to {max(dim.perturbed)}")
        size, base = self._known[dim.growth]
        return replace(size, offset=size.offset + dim.size - base)

    def _learn(self, node: fx.Node, axis: int, dim: Dim) -> None:
        operands = [
            (source, i, operand)
            for source in node.all_input_nodes
            for i, operand in enumerate(self._groups.dims(source))
            if operand.growth in self._known
        ]
        factors = proportional(dim, dict.fromkeys(dim for *_, dim in operands), most=3)
        number = self._number(node, axis, dim, is_product=factors is not None)
        if factors is None and number is not None:  # about proportional to what it comes from
            same_axis = [operand for _, i, operand in operands if i == axis]
            factors = (same_axis or number.moving_dims)[:1]
        size = None
        if factors:
            scale = dim.size / prod(factor.size for factor in factors)
            size = SizeExpression(tuple(map(self.read, factors)), scale)
        for source, i, operand in operands:
            size = size or self._strided(node, axis, source, i, operand)
        if size is not None:
            self._known[dim.growth] = replace(size, exact=number), dim.size

    def _number(
        self, node: fx.Node, axis: int, dim: Dim, is_product: bool
    ) -> "ComputedNumber | None":
        """The number that ``forward`` passes for this size; else that of a slice or a padded map.

        A slice is shorter where the map is smaller than its end, and a map may be padded by as many
        samples as it lacks. ``is_product`` says that the size is a product of others.
        """
        values = self._groups.trace.values
        passed = [
            source
            for source in node.all_input_nodes
            if isinstance(values[source], int) and self._groups.number(source) == dim
        ]
        candidates: list[tuple[fx.Node, int | None]] = [(source, None) for source in passed]
        if not is_product and node.target in (operator.getitem, F.pad):
            candidates.append((node, axis))
        for source, of_axis in candidates:
            with suppress(LookupError):
                return ComputedNumber(source, self._groups, self, of_axis)
        return None

    def _strided(
        self, node: fx.Node, axis: int, source: fx.Node, source_axis: int, operand: Dim
    ) -> SizeExpression | None:
        """``floor((n + a) / s)``: the size after an operation of constant stride."""
        dim = self._groups.dims(node)[axis]

        def grown(step: int) -> int:
            return probe(self._groups, node, source, source_axis, step)[0][axis]

        try:
            stride = self._stride(operand, dim, grown)
            # One step more than the stride, which shows that the size follows this axis alone.
            steps = range(stride + 1 if stride else 0)
            sizes = {operand.size + step: grown(step) for step in steps}
        except SizeMismatchError:  # other operands would have to grow, too
            return None
        sizes |= dict(zip(operand.perturbed, dim.perturbed, strict=True))
        least = dim.size * stride - operand.size
        for added in range(least, least + stride):
            if all((size + added) // stride == result for size, result in sizes.items()):
                return SizeExpression((self.read(operand),), 1 / stride, added / stride, True)
        return None

    def _stride(self, operand: Dim, dim: Dim, grown: Callable[[int], int]) -> int:
        """The stride from an operand to a dimension of the result, 0 if there is none."""
        most = max(zip(operand.growth, dim.growth, strict=True))
        if min(most) <= 0:
            return 0
        about = round(most[0] / most[1])
        far = 4 * about**2  # so far that one sample more or less gives the same stride
        more = grown(far) - dim.size
        return round(far / more) if about > 1 and more > 0 else 0


class ComputedNumber:
    """A number that ``forward`` computes from sizes: ``F.interpolate(x, size=x.shape[2] // 4)``.

    It is computed again, by the same calls, for other sizes. ``moving_dims`` are the dimensions it
    depends on whose size depends on strides. With ``axis``, it is that size of a node's result.

    Raises:
        LookupError: if the number depends on more of a tensor than its shape.
    """

    def __init__(
        self, node: fx.Node, groups: StrideGroups, sizes: MapSizes, axis: int | None = None
    ) -> None:
        self._groups, self._sizes, self._node, self._axis = groups, sizes, node, axis
        self._shapes: dict[fx.Node, list[SizeExpression]] = {}
        self._calls: dict[fx.Node, None] = {}  # in order of execution
        self.moving_dims: list[Dim] = []
        self._add(node)

    def _add(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source not in self._groups.values:
                continue  # a constant
            if not isinstance(self._groups.trace.values[source], Tensor):
                if source not in self._calls:
                    self._add(source)
            elif not _reads_shape(node) and (self._axis is None or node is not self._node):
                raise LookupError(f"{node} depends on more of {source} than its shape")
            elif source not in self._shapes:
                dims = self._groups.dims(source)
                self._shapes[source] = [self._sizes.read(dim) for dim in dims]
                self.moving_dims += [dim for dim in dims if dim.growth]
        self._calls[node] = None

    def __call__(self, known: Mapping[Hashable, Number]) -> float:
        """The number for these sizes, 0 for maps that are too small for its calls."""
        values: dict[fx.Node, Any] = {}
        for source, sizes in self._shapes.items():
            shape = [max(0, round(size.at(known))) for size in sizes]
            values[source] = torch.empty(shape, device="meta")
        found = ChainMap(values, self._groups.trace.values)
        try:
            for node in self._calls:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: found[n])
                values[node] = run_node(None, node, args, kwargs)
        except (RuntimeError, ArithmeticError):  # of a map that is empty or too small
            return 0.0
        result = values[self._node]
        return result if self._axis is None else result.shape[self._axis]


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target is getattr and str(node.args[1]) == "shape"


def moving_dims(node: fx.Node, groups: StrideGroups) -> list[Dim]:
    """The dimensions of a node's output and inputs whose size depends on strides, each once."""
    nodes = (node, *node.all_input_nodes)
    return list(dict.fromkeys(dim for n in nodes for dim in groups.dims(n) if dim.growth))
