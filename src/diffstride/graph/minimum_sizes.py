"""Minimum sizes of maps: at which strides a network cannot run, since a map becomes too small."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from math import floor

from torch import fx, nn

from diffstride._torch_compat import CircularPad, Conv, InstanceNorm, ReflectionPad
from diffstride.graph.map_sizes import MapSizes, Number, SizeExpression
from diffstride.graph.perturbed_runs import SizeMismatchError, probe
from diffstride.graph.perturbed_sizes import Dim
from diffstride.graph.stride_groups import StrideGroups
from diffstride.pooling.base import SizedPooling

MAP_FUNCTIONS = "conv", "pool", "interpolate", "pad"  # in names
BOUNDED_MODULES = nn.AvgPool3d, ReflectionPad, CircularPad
BOUNDED_FUNCTIONS = "pad", "avg_pool3d"
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
    paddings and others need more, see `minimum_size`. Slices of maps, and values computed from
    them, may be empty.
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
    dims = groups.dims(node)
    sources = [source for source in node.all_input_nodes if source in groups.values]
    module = groups.trace.module(node)
    if isinstance(module, SizedPooling):
        dims += groups.dims(node.all_input_nodes[0])
    if isinstance(module, InstanceNorm):  # refuses maps of one sample, so each axis keeps two
        dims += [Dim(d.size - 1, tuple(n - 1 for n in d.perturbed)) for d in dims]
    if _may_need_more(groups, node) and len(sources) == 1:
        for axis, dim in enumerate(groups.dims(sources[0])):
            if dim.growth and (more := minimum_size(groups, node, sources[0], axis) - 1):
                dims.append(Dim(dim.size - more, tuple(size - more for size in dim.perturbed)))
    yield from (dim for dim in dims if dim.growth and dim.size > 0)


def _may_need_more(groups: StrideGroups, node: fx.Node) -> bool:
    """Whether a node may fail on a small map although its output would have a sample."""
    module = groups.trace.module(node)
    if isinstance(module, Conv):
        return module.padding_mode != "zeros"
    if module is None:
        return getattr(node.target, "__name__", "") in BOUNDED_FUNCTIONS
    of_torch = type(module).__module__.startswith("torch.nn.")
    return isinstance(module, BOUNDED_MODULES) or not (of_torch or isinstance(module, SizedPooling))


def minimum_size(groups: StrideGroups, node: fx.Node, source: fx.Node, axis: int) -> int:
    """The smallest size of an axis of its input at which a node runs: 1 for most.

    It is found by running the node: 3 for a reflection of 2 samples, whatever does it.
    """

    def runs(size: int) -> bool:
        try:
            shapes = probe(groups, node, source, axis, size - given)
        except SizeMismatchError:
            return False
        return all(min(shape, default=1) > 0 for shape in shapes)

    given = groups.trace.values[source].shape[axis]
    if runs(1):
        return 1
    return bisect_left(range(given), True, lo=1, key=runs)


def _may_be_empty(size: SizeExpression) -> bool:
    """Whether a size is below 1 where all pooling layers return one sample, their minimum."""
    ones: Mapping[Hashable, Number] = defaultdict(lambda: 1.0)
    return size.exact is not None or size.at(ones) < ONE_SAMPLE
