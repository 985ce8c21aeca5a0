"""Modules that enlarge maps by a fixed factor: they return the size that they mirror instead.

The decoder of a U-Net doubles a map as often as its encoder has halved it, and joins the result
with a map of the encoder. Once strides learn, twice a map's size is no longer the size that it had.
So each module that enlarges *mirrors* a strided module before it: it returns the size of the map
that went into that one. Where a stride has rounded an odd size, what is enlarged may have some
samples more or less than that map, its *margin*, which is padded or cropped behind it. The margin
stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from diffstride._arguments import map_size
from diffstride._torch_compat import ConvTranspose
from diffstride.conversion.call_counting import PassStart as PassStart  # of networks pickled before
from diffstride.conversion.call_counting import calls_of, next_call, set_calls
from diffstride.conversion.mixed_classes import Mixin, mix_in
from diffstride.conversion.pooled_module import Slot
from diffstride.conversion.strided_call import StridedCall
from diffstride.conversion.strided_modules import maps_of
from diffstride.graph.leaf_modules import TracedInto
from diffstride.graph.stride_groups import source_of, with_sources
from diffstride.graph.tracer import Trace

ENLARGING = (nn.Upsample, ConvTranspose, nn.PixelShuffle)
LINEAR = {
    1: torch.ops.aten.upsample_linear1d,
    2: torch.ops.aten.upsample_bilinear2d,
    3: torch.ops.aten.upsample_trilinear3d,
}


class Mirroring(Mixin, TracedInto):
    """Mixed into the class of a module that enlarges maps: it returns the size that it mirrors.

    An ``nn.Upsample`` interpolates to that size; what other modules return is resized linearly.

    Attributes:
        sizes: a slot for each call in a pass, into which the mirrored module writes the sizes of
            its input and its output. While it is empty, the module enlarges as it did.
        margins: how many samples more than went into the mirrored module each call returns, along
            each axis; empty if all return as many.
        calls, call_index: how many calls a pass has, and how many of them have been made.
    """

    class_prefix = "Mirroring"
    sizes: list[Slot]
    margins: Sequence[Sequence[int]] = ()
    calls: int
    call_index: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        index = self._index_of_call(x)
        if not self.sizes[index]:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        size = self.sizes[index][0]
        if self.margins and any(self.margins[index]):
            size = tuple(n + more for n, more in zip(size, self.margins[index], strict=True))
        if isinstance(self, nn.Upsample):
            return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)
        # Without the size that a transposed convolution may be given, which it mirrors.
        return resize_linearly(super().forward(x), size)  # type: ignore[misc]

    def _index_of_call(self, x: Tensor) -> int:
        """The call whose mirrored module has returned maps of this size, or else the next one.

        A pass may make other calls than at conversion, as one in training or of a part alone.
        """
        following = next_call(self)
        if len(self.sizes) == 1 or isinstance(x, fx.Proxy):
            return following
        size = map_size(x)
        fitting = [i for i, slot in enumerate(self.sizes) if slot and slot[1] == size]
        return following if following in fitting or not fitting else fitting[-1]


def resize_linearly(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a map to another size by linear interpolation, as ``F.interpolate`` does."""
    if not isinstance(x, fx.Proxy) and map_size(x) == tuple(size):
        return x
    # Not F.interpolate: functions that become modules are found by counting their calls.
    return LINEAR[len(x.shape) - 2](x, size, False)


def find_mirrors(trace: Trace, calls: Sequence[StridedCall]) -> dict[fx.Node, fx.Node]:
    """Each enlarging call, and the strided call it mirrors.

    That is the last one before it whose input has the size that the enlarging call returns. If
    there is none, it is the last one whose output has the size that is enlarged and whose input has
    the size that is returned but for less than a stride.
    """
    order = {node: i for i, node in enumerate(trace.graph.nodes)}
    nodes = sorted((call.node for call in calls), key=order.__getitem__, reverse=True)
    enlarging = [node for node in trace.graph.nodes if _enlarges(trace, node)]
    strides = {call.node: call.strides for call in calls}
    found = {node: _mirrored(trace, node, nodes, strides) for node in enlarging}
    # A module that is called several times has to know for each call.
    unknown = {trace.module(node) for node, call in found.items() if call is None}
    return {
        node: call
        for node, call in found.items()
        if call is not None and trace.module(node) not in unknown
    }


def _mirrored(
    trace: Trace,
    node: fx.Node,
    calls: Iterable[fx.Node],
    strides: Mapping[fx.Node, Sequence[int]],
) -> fx.Node | None:

    def size(of: fx.Node) -> tuple[int, ...]:
        return tuple(trace.values[of].shape[2:])

    """The first of these calls that precedes an enlarging call and that it mirrors."""
    sources = set(with_sources(node))
    before = [call for call in calls if call in sources and len(size(call)) == len(size(node))]
    for call in before:
        if not any(_margin(trace, node, call)):
            return call
    for call in before:
        reversed_sizes = trace.values[call].shape[2:] == trace.values[source_of(node)].shape[2:]
        margins = zip(_margin(trace, node, call), strides[call], strict=True)
        if reversed_sizes and all(abs(margin) < stride for margin, stride in margins):
            return call
    return None


def _margin(trace: Trace, node: fx.Node, mirrored: fx.Node) -> tuple[int, ...]:
    """How many samples more an enlarging call returns than go into the call that it mirrors."""
    sizes = trace.values[node].shape[2:], trace.values[source_of(mirrored)].shape[2:]
    return tuple(returned - taken for returned, taken in zip(*sizes, strict=True))


def attach_mirrors(trace: Trace, mirrors: Mapping[fx.Node, fx.Node]) -> None:
    """Have enlarging modules return the size that goes into pooled modules, in place.

    Args:
        trace: the network before it was pooled.
        mirrors: as from `find_mirrors`.
    """
    calls = calls_of(trace, [*mirrors, *mirrors.values()])
    for module, nodes in calls.items():
        slots: list[Any] = [[] for _ in nodes]
        if nodes[0] in mirrors:
            mix_in(module, Mirroring)
            module.sizes = slots  # type: ignore[assignment]
            module.margins = [  # type: ignore[assignment]
                _margin(trace, node, mirrors[node]) if node in mirrors else () for node in nodes
            ]
        else:
            module.slots = slots  # type: ignore[assignment]
        set_calls(module, len(nodes))
    for node, mirrored in mirrors.items():
        enlarging: Any = trace.module(node)
        pooled: Any = trace.module(mirrored)
        slot = enlarging.sizes[calls[enlarging].index(node)]
        pooled.slots[calls[pooled].index(mirrored)].append(slot)


def _enlarges(trace: Trace, node: fx.Node) -> bool:
    module, maps = trace.module(node), maps_of(trace, node)
    if not isinstance(module, ENLARGING) or maps is None or "forward" in vars(module):
        return False
    before, after = (value.shape[2:] for value in maps)
    return after != before and all(new >= old for new, old in zip(after, before, strict=True))
