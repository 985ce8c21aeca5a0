"""Group the strided calls of a network that share one pooling layer."""

from dataclasses import dataclass, replace

from torch import fx, nn

from diffstride.conversion.pooled_module import CropPad
from diffstride.conversion.strided_modules import StridedCall, common_size
from diffstride.graph.moved_strides import find_groups_at_all_strides
from diffstride.graph.stride_groups import StrideConflictError, StrideGroups
from diffstride.graph.tracer import Trace
from diffstride.strides import stride_layers

SEVERAL = "is called several times, on maps that cannot share a stride"


@dataclass
class PooledGroup:
    """Strided calls that share one pooling layer, which may exist already.

    ``crop_pads`` give the maps of all modules the same ``size`` before they are pooled.
    """

    calls: list[StridedCall]
    crop_pads: dict[nn.Module, tuple[CropPad, ...]]
    pooling: nn.Module | None
    size: tuple[int, ...]
    trace: Trace

    def sharers(self, call: StridedCall) -> int:
        """For how many modules the layer pools the map that this call pools."""
        source = call.node.args[0]
        if any(map(self.trace.changes_input, source.users)):  # type: ignore[union-attr]
            return 1
        same = {
            other.module
            for other in self.calls
            if other.placement == call.placement == "before"
            and other.node.args[0] is source
            and self.crop_pads[other.module] == self.crop_pads[call.module]
        }
        return max(1, len(same))


def group_calls(
    traced: Trace, calls: list[StridedCall], left_out: dict[str, str], include: tuple[str, ...]
) -> list[PooledGroup]:
    """Group calls that share a layer; those whose strides conflict are added to ``left_out``."""
    pooled = set(stride_layers(traced.model).values())
    while True:
        by_node = {call.node: call for call in calls}
        nodes = [n for n in traced.graph.nodes if n in by_node or traced.module(n) in pooled]
        try:
            return _pooled_groups(find_groups_at_all_strides(traced, nodes), by_node)
        except StrideConflictError as error:
            names = {by_node[node].name for node in error.calls if node in by_node}
            if not names:
                raise
            if refused := sorted(names.intersection(include)):
                message = f"include: {refused[0]!r} cannot have a stride of its own: {error}"
                raise ValueError(message) from error
            left_out.update(dict.fromkeys(sorted(names), str(error)))
            calls = [call for call in calls if call.name not in names]


def _pooled_groups(
    stride_groups: StrideGroups, by_node: dict[fx.Node, StridedCall]
) -> list[PooledGroup]:
    """One group for each stride group, joined where a module is called in several of them."""
    groups: list[PooledGroup] = []
    for nodes in stride_groups.members():
        group = _pooled_group(stride_groups, nodes, by_node)
        modules = {call.module for call in group.calls}
        for other in [other for other in groups if modules & other.crop_pads.keys()]:
            groups.remove(other)
            group = _join(other, group)
        groups.append(group)
    return [group for group in groups if group.calls]


def _pooled_group(
    stride_groups: StrideGroups, nodes: list[fx.Node], by_node: dict[fx.Node, StridedCall]
) -> PooledGroup:
    trace = stride_groups.trace
    calls = [_settled(by_node[node], len(nodes) == 1) for node in nodes if node in by_node]
    pooled = [node for node in nodes if node not in by_node]
    if len({trace.module(node) for node in pooled}) > 1:
        names = " and ".join(dict.fromkeys(repr(str(node.target)) for node in pooled))
        raise StrideConflictError(f"the maps of {names} meet, but their strides are not shared")
    if len({call.strides for call in calls}) > 1:
        strides = ", ".join(f"{call.strides} in {call.name}" for call in calls)
        raise StrideConflictError(f"meets maps of another stride: {strides}", nodes)
    if pooled:
        size = tuple(dim.size for dim in stride_groups.input_dims(pooled[0]))
    else:
        size = tuple(common_size(calls, axis) for axis in range(len(calls[0].strides)))
    crop_pads = {call.module: call.crop_pad_to(size) for call in calls}
    if any(call.crop_pad_to(size) != crop_pads[call.module] for call in calls):
        raise StrideConflictError(SEVERAL, nodes)
    return PooledGroup(calls, crop_pads, trace.module(pooled[0]) if pooled else None, size, trace)


def _settled(call: StridedCall, alone: bool) -> StridedCall:
    """The call, pooled on top of its stride only if no other has to share the layer."""
    if call.placement != "on top":
        return call
    return call.on_top() if alone else replace(call, placement="before")


def _join(one: PooledGroup, two: PooledGroup) -> PooledGroup:
    calls = one.calls + two.calls
    same = len({call.strides for call in calls}) == 1 and all(
        one.crop_pads[module] == two.crop_pads[module]
        for module in one.crop_pads.keys() & two.crop_pads.keys()
    )
    if not same or (one.pooling and two.pooling):
        raise StrideConflictError(SEVERAL, [call.node for call in calls])
    return replace(
        one,
        calls=calls,
        crop_pads=one.crop_pads | two.crop_pads,
        pooling=one.pooling or two.pooling,
    )
