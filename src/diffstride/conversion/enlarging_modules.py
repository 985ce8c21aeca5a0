"""Modules that enlarge maps by a fixed factor: they return the size that they mirror instead.

The decoder of a U-Net doubles a map as often as its encoder has halved it, and joins the result
with a map of the encoder. Once strides learn, twice a map's size is no longer the size that it had.
So each module that enlarges *mirrors* a strided module before it: it returns the size of the map
that went into that one. Where that is not the size that it had, as a stride has rounded, it returns
what it would at the strides that the network had (`diffstride.graph.mirror`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from diffstride._arguments import map_size
from diffstride._torch_compat import ConvTranspose
from diffstride.conversion.call_counting import CountsCalls, next_call, set_calls
from diffstride.conversion.call_counting import PassStart as PassStart  # of networks pickled before
from diffstride.conversion.mixed_classes import mix_in
from diffstride.conversion.pooled_module import Slot
from diffstride.conversion.strided_call import StridedCall
from diffstride.graph.leaf_modules import TracedInto
from diffstride.graph.mirror import Mirror, RoundTrip, mirrored_size
from diffstride.graph.perturbed_runs import SizeMismatchError, probe
from diffstride.graph.stride_groups import StrideGroups, source_of, with_sources
from diffstride.graph.tracer import Trace

ENLARGING = (nn.Upsample, ConvTranspose, nn.PixelShuffle)
LINEAR = {
    1: torch.ops.aten.upsample_linear1d,
    2: torch.ops.aten.upsample_bilinear2d,
    3: torch.ops.aten.upsample_trilinear3d,
}


class Mirroring(CountsCalls, TracedInto):
    """Mixed into the class of a module that enlarges maps: it returns the size that it mirrors.

    An ``nn.Upsample`` interpolates to that size; what other modules return is resized linearly.

    Attributes:
        sizes: a slot for each call in a pass, into which the mirrored module writes the sizes of
            its input and its output. While it is empty, the module enlarges as it did.
        trips: how the size of each call follows from that of the input, if it is another; empty if
            all are the same.
        calls, call_index: how many calls a pass has, and how many of them have been made.
    """

    class_prefix = "Mirroring"
    sizes: list[Slot]
    trips: Sequence[Sequence[RoundTrip]] = ()
    calls: int
    call_index: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        index = self._index_of_call(x)
        if not self.sizes[index]:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        size = mirrored_size(self.sizes[index][0], self.trips[index] if self.trips else ())
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


def find_mirrors(trace: Trace, calls: Sequence[StridedCall]) -> dict[fx.Node, Mirror]:
    """Each enlarging call, and the strided call it mirrors.

    That is the last one before it whose input has the size that the enlarging call returns. If
    there is none, it is the last one whose output has the size that is enlarged and whose input has
    the size that is returned but for less than a stride.
    """
    enlarging = [node for node in trace.graph.nodes if _enlarges(trace, node)]
    found = {node: _mirrored(trace, node, calls) for node in enlarging}
    # A module that is called several times has to know for each call.
    unknown = {trace.module(node) for node, mirror in found.items() if mirror is None}
    return {
        node: mirror
        for node, mirror in found.items()
        if mirror is not None and trace.module(node) not in unknown
    }


def _mirrored(trace: Trace, node: fx.Node, calls: Sequence[StridedCall]) -> Mirror | None:
    """The last of these calls that precedes an enlarging call and that it mirrors."""
    sources = set(with_sources(node))
    enlarged, size = (tuple(trace.values[each].shape[2:]) for each in (source_of(node), node))
    before = [c for c in reversed(calls) if c.node in sources and len(c.strides) == len(size)]
    for call in before:
        if call.input_size == size:
            return Mirror(call.node)
    for call in before:
        axes = zip(size, call.input_size, call.strides, strict=True)
        within_a_stride = all(abs(n - taken) < stride for n, taken, stride in axes)
        if within_a_stride and call.strided_size == enlarged:
            return _with_trips(trace, node, call.node, call.strides)
    return None


def _with_trips(
    trace: Trace, node: fx.Node, call: fx.Node, strides: Sequence[int]
) -> Mirror | None:
    """The mirror of a call whose stride has rounded the size; None if sizes follow another law."""
    groups = StrideGroups(trace, {}, mirrors={node: Mirror(call)})
    trips = []
    for axis, stride in enumerate(strides, start=2):
        given, shortened, enlarged = (
            trace.values[each].shape[axis] for each in (source_of(call), call, node)
        )
        try:
            grown = [
                probe(groups, call, source_of(call), axis, more)[0][axis]
                for more in range(1 + stride)
            ]
            factor = probe(groups, node, source_of(node), axis, 1)[0][axis] - enlarged
        except SizeMismatchError:
            return None
        if grown[0] != shortened or grown[-1] != shortened + 1:
            return None
        phase = sum(each > shortened for each in grown) - 1
        trips.append(RoundTrip(given, enlarged, stride, factor, phase))
    return Mirror(call, tuple(trips))


def attach_mirrors(trace: Trace, mirrors: Mapping[fx.Node, Mirror]) -> None:
    """Have enlarging modules return the size that goes into pooled modules, in place.

    Args:
        trace: the network before it was pooled.
        mirrors: as from `find_mirrors`.
    """
    ends: list[Any] = [*mirrors, *(mirror.call for mirror in mirrors.values())]
    calls = {module: trace.calls(module) for module in map(trace.module, ends) if module}
    for module, nodes in calls.items():
        slots: list[Any] = [[] for _ in nodes]
        if nodes[0] in mirrors:
            mix_in(module, Mirroring)
            module.sizes = slots  # type: ignore[assignment]
            module.trips = [  # type: ignore[assignment]
                mirrors[node].trips if node in mirrors else () for node in nodes
            ]
        else:
            module.slots = slots  # type: ignore[assignment]
        set_calls(module, len(nodes))
    for node, mirror in mirrors.items():
        enlarging: Any = trace.module(node)
        pooled: Any = trace.module(mirror.call)
        slot = enlarging.sizes[calls[enlarging].index(node)]
        pooled.slots[calls[pooled].index(mirror.call)].append(slot)


def _enlarges(trace: Trace, node: fx.Node) -> bool:
    module, maps = trace.module(node), trace.maps(node)
    if not isinstance(module, ENLARGING) or maps is None or "forward" in vars(module):
        return False
    before, after = (value.shape[2:] for value in maps)
    return after != before and all(new >= old for new, old in zip(after, before, strict=True))
