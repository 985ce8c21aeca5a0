"""Which maps of a network may be left without a sample, or with too few, by large strides."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from math import floor
from typing import Any

from torch import fx, nn

from diffstride._torch_compat import CircularPad, Conv, ReflectionPad, conv_padding
from diffstride.graph.map_sizes import Number, Size, Sizes, number
from diffstride.graph.stride_groups import Dim, Resolutions

MAKE_MAPS = "conv", "pool", "interpolate"  # in the names of functions
ASKING = nn.AvgPool3d, Conv, ReflectionPad, CircularPad
SMALLEST = 1 - 1e-6


class VanishedError(ValueError):
    """Strides so large that a map is left without a sample."""

    def __init__(self, where: str, left: float) -> None:
        super().__init__(
            f"at these strides {where} would have {floor(left + 1e-6)} samples along an axis, and "
            "needs one at least: take smaller strides, or set upper_limit_stride"
        )


class Remains:
    """What has to remain of a network's maps for it to run: one sample of each along every axis.

    Or as many more as a module asks for, see `needed`. What is cut out of a map, or calculated with
    parts of it, may be empty; what modules and functions of networks return may not.
    """

    def __init__(self, found: Resolutions, sizes: Sizes) -> None:
        smallest: dict[tuple[int, ...], tuple[Dim, fx.Node]] = {}
        for node in filter(_makes_maps, found.trace.graph.nodes):
            for dim in _needing(found, node):
                # Of those that differ by a constant, the smallest vanishes first.
                least, _ = smallest.setdefault(dim.shift, (dim, node))
                if dim.size < least.size:
                    smallest[dim.shift] = dim, node
        self._sizes = [
            (size, f"the map behind {found.trace.label(node)}")
            for dim, node in smallest.values()
            for size in _read(sizes, dim)
            if _may_vanish(size)
        ]

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def check(self, known: Mapping[Hashable, Number]) -> None:
        """Refuse sizes of pooled maps at which another one has too few samples.

        Raises:
            VanishedError: it has.
        """
        for size, where in self._sizes:
            left = number(size.at(known))
            if left < SMALLEST:
                raise VanishedError(where, left)


def _makes_maps(node: fx.Node) -> bool:
    """Whether a node calls a module, or a function that returns no empty map."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_module" or any(word in name for word in MAKE_MAPS)


def _needing(found: Resolutions, node: fx.Node) -> Iterator[Dim]:
    """The dimensions of which a sample has to remain."""
    module = found.trace.module(node)
    dims = [*found.dims(node)]
    for axis, dim in enumerate(found.input_dims(node) if isinstance(module, ASKING) else ()):
        more = needed(module, axis) - 1
        if more:
            dims.append(Dim(dim.size - more, tuple(moved - more for moved in dim.moved)))
    yield from (dim for dim in dims if dim.shift and dim.size > 0)


def needed(module: Any, axis: int) -> int:
    """How many samples a module needs along a spatial axis of its input, if not one.

    >>> needed(nn.AvgPool3d(3), 0), needed(nn.ReflectionPad1d(2), 0), needed(nn.ReLU(), 0)
    (3, 3, 1)
    >>> conv = nn.Conv2d(1, 1, (1, 5), padding=(0, 2), padding_mode="circular")
    >>> needed(conv, 0), needed(conv, 1)
    (1, 2)
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


def _read(sizes: Sizes, dim: Dim) -> list[Size]:
    try:
        return [sizes.read(dim)]
    except LookupError:
        return []


def _may_vanish(size: Size) -> bool:
    """Whether a size is below one sample where pooling layers return one, which is their least."""
    ones: Mapping[Hashable, Number] = defaultdict(lambda: 1.0)
    return size.exact is not None or number(size.at(ones)) < SMALLEST
