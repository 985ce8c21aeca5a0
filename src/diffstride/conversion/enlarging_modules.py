"""Modules that enlarge maps by a fixed factor: they return the size that they mirror instead.

The decoder of a U-Net doubles a map as often as its encoder has halved it, and joins the result
with a map of the encoder. Once strides learn, twice a map's size is no longer the size that it had.
So each module that enlarges *mirrors* a strided module before it: it returns the size of the map
that went into that one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from diffstride._arguments import map_size
from diffstride._torch_compat import ConvTranspose
from diffstride.conversion.mixed_classes import Mixin, mix_in
from diffstride.conversion.pooled_module import Pooled
from diffstride.conversion.strided_modules import StridedCall, maps_of
from diffstride.graph.leaf_modules import TracedInto
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
        sizes: a slot for each call in a pass. The mirrored module writes the size of its input into
            it and whether that has not been used yet. While a slot is empty, the module enlarges as
            it did.
    """

    class_prefix = "Mirroring"
    sizes: list[list[Any]]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        size = self._size()
        if size is not None and isinstance(self, nn.Upsample):
            return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)
        y = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return y if size is None else resize_linearly(y, size)

    def _size(self) -> Any:
        """The size to return in this call, None if it is not known."""
        for slot in self.sizes:
            size, unused = slot
            # A module that is called once may be called again, without what it mirrors.
            if unused or len(self.sizes) == 1:
                slot[1] = False
                return size
        return None


def resize_linearly(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a map to another size by linear interpolation, as ``F.interpolate`` does."""
    if not isinstance(x, fx.Proxy) and map_size(x) == tuple(size):
        return x
    # Not F.interpolate: functions that become modules are found by counting their calls.
    return LINEAR[len(x.shape) - 2](x, size, False)


def find_mirrors(trace: Trace, calls: Iterable[StridedCall]) -> dict[fx.Node, fx.Node]:
    """Each enlarging call, and the strided call it mirrors.

    That is the last one before it whose input has the size that the enlarging call returns.
    """
    order = {node: i for i, node in enumerate(trace.graph.nodes)}
    nodes = sorted((call.node for call in calls), key=order.__getitem__, reverse=True)
    enlarging = [node for node in trace.graph.nodes if _enlarges(trace, node)]
    found = {node: _mirrored(trace, node, nodes) for node in enlarging}
    # A module that is called several times has to know for each call.
    unknown = {trace.module(node) for node, call in found.items() if call is None}
    return {
        node: call
        for node, call in found.items()
        if call is not None and trace.module(node) not in unknown
    }


def _mirrored(trace: Trace, node: fx.Node, calls: Iterable[fx.Node]) -> fx.Node | None:
    """The first of these calls that precedes a call and takes maps of the size that it returns."""
    before, size = _ancestors(node), trace.values[node].shape[2:]
    for call in calls:
        if call in before and trace.values[call.args[0]].shape[2:] == size:  # type: ignore[index]
            return call
    return None


def attach_mirror(module: nn.Module, mirrored: nn.Module) -> None:
    """Have the next call of an enlarging module return the size that goes into a pooled module.

    Both change in place. A module that is called several times is given a mirror for each call, in
    order.
    """
    assert isinstance(mirrored, Pooled)
    if not isinstance(module, Mirroring):
        mix_in(module, Mirroring)
        module.sizes = []  # type: ignore[assignment]
    slot: list[Any] = [None, False]
    mirrored.slots.append(slot)
    module.sizes.append(slot)  # type: ignore[union-attr]


def _enlarges(trace: Trace, node: fx.Node) -> bool:
    module, maps = trace.module(node), maps_of(trace, node)
    if not isinstance(module, ENLARGING) or maps is None or "forward" in vars(module):
        return False
    before, after = (value.shape[2:] for value in maps)
    return after != before and all(new >= old for new, old in zip(after, before, strict=True))


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen, pending = {node}, [node]
    while pending:
        new = set(pending.pop().all_input_nodes) - seen
        seen |= new
        pending += new
    return seen
