"""Minimum sizes of maps: at which strides a network cannot run, since a map becomes too small."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from math import floor
from typing import Any

from torch import fx, nn

from diffstride._torch_compat import CircularPad, Conv, ReflectionPad, conv_padding
from diffstride.graph.map_sizes import MapSizes, Number, SizeExpression
from diffstride.graph.perturbed_sizes import Dim
from diffstride.graph.stride_groups import StrideGroups

MAP_FUNCTIONS = "conv", "pool", "interpolate"  # in the names of functions
BOUNDED_MODULES = nn.AvgPool3d, Conv, ReflectionPad, CircularPad
ONE_SAMPLE = 1 - 1e-6


class EmptyMapError(ValueError):
    """Strides are so large that a map has less than one sample."""

    def __init__(self, where: str, size: float) -> None:
        super().__init__(
            f"at these strides {where} would have {floor(size + 1e-6)} samples along an axis, but "
            "needs at least one: use smaller strides, or set upper_limit_stride"
        )


class MinimumSizes:
    """The maps of a network that large strides can make too small, and a check of their sizes.

    Outputs of modules and of functions that return maps need one sample along every axis. Inputs of
    some modules need more, see `minimum_size`. Slices of maps, and values computed from them, may
    be empty.
    """

    def __init__(self, groups: StrideGroups, sizes: MapSizes) -> None:
        smallest: dict[tuple[int, ...], tuple[Dim, fx.Node]] = {}
        for node in filter(_returns_map, groups.trace.graph.nodes):
            for dim in _bounded_dims(groups, node):
                # Of sizes that differ by a constant, the smallest is empty first.
                least, _ = smallest.setdefault(dim.growth, (dim, node))
                if dim.size < least.size:
                    smallest[dim.growth] = dim, node
        self._sizes: list[tuple[SizeExpression, str]] = []
        for dim, node in smallest.values():
            with suppress(LookupError):  # an unknown size is not checked
                size = sizes.read(dim)
                if _may_be_empty(size):
                    self._sizes.append((size, f"the output of {groups.trace.label(node)}"))

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def check(self, known: Mapping[Hashable, Number]) -> None:
        """Check that no map is too small for these sizes of pooled maps.

        Raises:
            EmptyMapError: if one is.
        """
        for expression, where in self._sizes:
            size = expression.at(known)
            if size < ONE_SAMPLE:
                raise EmptyMapError(where, size)


def _returns_map(node: fx.Node) -> bool:
    """Whether a node calls a module, or a function that returns no empty map."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_module" or any(word in name for word in MAP_FUNCTIONS)


def _bounded_dims(groups: StrideGroups, node: fx.Node) -> Iterator[Dim]:
    """Dimensions that must stay at least 1; input sizes are reduced by minimum size - 1."""
    module, dims = groups.trace.module(node), groups.dims(node)
    if isinstance(module, BOUNDED_MODULES):
        for axis, dim in enumerate(groups.input_dims(node)):
            if more := minimum_size(module, axis) - 1:
                dims.append(Dim(dim.size - more, tuple(size - more for size in dim.perturbed)))
    yield from (dim for dim in dims if dim.growth and dim.size > 0)


def minimum_size(module: Any, axis: int) -> int:
    """The smallest input size of a module along a spatial axis; 1 for most modules.

    >>> minimum_size(nn.AvgPool3d(3), 0), minimum_size(nn.ReflectionPad1d(2), 0)
    (3, 3)
    >>> conv = nn.Conv2d(1, 1, (1, 5), padding=(0, 2), padding_mode="circular")
    >>> minimum_size(conv, 0), minimum_size(conv, 1), minimum_size(nn.ReLU(), 0)
    (1, 2, 1)
    """
    if isinstance(module, nn.AvgPool3d):
        kernel = module.kernel_size
        return kernel if isinstance(kernel, int) else kernel[axis]
    padding, mode = [], ""
    if isinstance(module, Conv):
        padding, mode = conv_padding(module), module.padding_mode
    elif isinstance(module, (ReflectionPad, CircularPad)):
        mode = "reflect" if isinstance(module, ReflectionPad) else "circular"
        padding = module.padding
    if mode not in ("reflect", "circular"):
        return 1
    last = len(padding) - 2 * axis  # pairs of both ends, the last axis first
    most = max(padding[last - 2 : last])
    return most + 1 if mode == "reflect" else max(1, most)


def _may_be_empty(size: SizeExpression) -> bool:
    """Whether a size is below 1 where all pooling layers return one sample, their minimum."""
    ones: Mapping[Hashable, Number] = defaultdict(lambda: 1.0)
    return size.exact is not None or size.at(ones) < ONE_SAMPLE
