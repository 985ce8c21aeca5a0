"""Group the strided calls of a network that share one pooling layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import fx, nn

from diffstride._torch_compat import Conv
from diffstride.conversion.enlarging_modules import find_mirrors
from diffstride.conversion.pooled_module import CropPad
from diffstride.conversion.strided_call import StridedCall, common_size
from diffstride.graph.fake_run import shapes_of
from diffstride.graph.mirror import Mirror
from diffstride.graph.moved_strides import find_groups_at_all_strides, least_factor
from diffstride.graph.stride_conflicts import StrideConflictError, one_size_only
from diffstride.graph.stride_groups import StrideGroups, UnlearnedAxes, unlearned_axes
from diffstride.graph.tracer import Trace
from diffstride.pooling.base import SizedPooling
from diffstride.strides import stride_layers

# Strides that a stored tensor does not let fall below this share are not limited: one is pinned.
PINNED_ABOVE = 0.8
SEVERAL = "is called several times, on maps that cannot share a stride: use one for each"


class Pinned(NamedTuple):
    """Calls that are pinned together: along ``axes`` their maps keep their present length."""

    calls: list[fx.Node]
    axes: frozenset[int]


@dataclass
class PooledGroup:
    """Strided calls that share one pooling layer, which may exist already.

    ``crop_pads`` give the maps of all modules the same ``size`` before they are pooled. Strides may
    fall to ``least_factor`` times what they are, see `least_factor`.
    """

    calls: list[StridedCall]
    crop_pads: dict[nn.Module, tuple[CropPad, ...]]
    pooling: nn.Module | None
    size: tuple[int, ...]
    unlearned: UnlearnedAxes
    least_factor: float = 0.0

    def sharers(self, call: StridedCall, trace: Trace) -> int:
        """For how many modules the layer pools the map that this call pools."""
        source = call.node.args[0]
        if any(map(trace.changes_input, source.users)):  # type: ignore[union-attr]
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
    traced: Trace,
    calls: list[StridedCall],
    include: Sequence[str],
    square: bool,
) -> tuple[list[PooledGroup], dict[fx.Node, Mirror], dict[str, str]]:
    """Group calls that share a layer, and leave out those whose strides conflict.

    Where an operation accepts maps of one size only, the calls before it are pinned: along the axes
    whose length it does not accept if these are known, else along those along which the calls
    stride, and if that is not enough along all.

    Args:
        traced: the network.
        calls: the strided calls.
        include: names of modules that must not be left out.
        square: whether all axes share a stride.

    Returns:
        The groups, the strided call that each enlarging call mirrors, and the reason for each
        module that is left out.
    """
    layers, mirrors = _layers_called(traced), find_mirrors(traced, calls)
    pinned: list[Pinned] = []
    conflicts: dict[str, str] = {}
    while True:
        by_node = {call.node: call for call in calls}
        unlearned = layers | {node: _unlearned(call, pinned) for node, call in by_node.items()}
        try:
            found = find_groups_at_all_strides(traced, unlearned, mirrors=mirrors, square=square)
            return _pooled_groups(found, pinned, by_node), mirrors, conflicts
        except StrideConflictError as error:
            more = _with_more_pinned(pinned, error, by_node, square)
            if any(_learns(call, more, include) for call in calls if more):
                whole = [call for call in calls if not _learned(call, more)]
                _refuse_included(whole, include, error)
                pinned = more
                continue
            names = {by_node[node].name for node in error.calls if node in by_node}
            if not names:
                raise
            _refuse_included([by_node[n] for n in error.calls if n in by_node], include, error)
            conflicts |= dict.fromkeys(sorted(names), str(error))
            calls = [call for call in calls if call.name not in names]
            mirrors = find_mirrors(traced, calls)
            left = {call.node for call in calls}
            kept = [Pinned([n for n in each.calls if n in left], each.axes) for each in pinned]
            pinned = [each for each in kept if each.calls]


def _layers_called(traced: Trace) -> dict[fx.Node, UnlearnedAxes]:
    """The calls of layers that the network has already, whose strides learn or set no size."""
    learning = set(stride_layers(traced.model).values())
    found = {}
    for node in traced.graph.nodes:
        layer = traced.module(node)
        is_sized = isinstance(layer, SizedPooling)
        if layer in learning or (is_sized and layer.fixes_size):
            found[node] = unlearned_axes(layer) if is_sized else UnlearnedAxes()
    return found


def _unlearned(call: StridedCall, pinned: list[Pinned]) -> UnlearnedAxes:
    fixed = frozenset().union(*(each.axes for each in pinned if call.node in each.calls))
    return UnlearnedAxes(fixed, call.kept - fixed)


def _with_more_pinned(
    pinned: list[Pinned],
    error: StrideConflictError,
    by_node: dict[fx.Node, StridedCall],
    square: bool,
) -> list[Pinned]:
    """Pins as an error asks for, else the same along all axes; empty if there are these already."""
    calls = set(error.to_pin)
    if calls and by_node.keys() >= calls:
        met = [each for each in pinned if calls.intersection(each.calls)]
        before = frozenset().union(*(each.axes for each in met))
        axes = before.union(error.axes or _strided_axes(by_node[node] for node in calls))
        if square:
            axes = axes.union(_all_axes(by_node[error.to_pin[0]]))
        together = calls.union(*(each.calls for each in met))
        one = Pinned([node for node in by_node if node in together], axes)
        if one not in pinned:
            return [*(each for each in pinned if each not in met), one]
    whole = [each._replace(axes=_all_axes(by_node[each.calls[0]])) for each in pinned]
    return whole if whole != pinned else []


def _learned(call: StridedCall, pinned: list[Pinned]) -> frozenset[int]:
    return _all_axes(call).difference(*_unlearned(call, pinned))


def _learns(call: StridedCall, pinned: list[Pinned], include: Sequence[str]) -> bool:
    """Whether a call learns in place of a stride, or as a module that is included."""
    axes = _learned(call, pinned)
    return any(call.strides[axis] > 1 or call.name in include for axis in axes)


def _strided_axes(calls: Iterable[StridedCall]) -> frozenset[int]:
    return frozenset(i for call in calls for i, stride in enumerate(call.strides) if stride > 1)


def _all_axes(call: StridedCall) -> frozenset[int]:
    return frozenset(range(len(call.strides)))


def _refuse_included(
    calls: list[StridedCall], include: Sequence[str], error: StrideConflictError
) -> None:
    if refused := sorted({call.name for call in calls}.intersection(include)):
        message = f"include: {refused[0]!r} cannot have a stride of its own: {error}"
        raise ValueError(message) from error


def _pooled_groups(
    stride_groups: StrideGroups, pinned: list[Pinned], by_node: dict[fx.Node, StridedCall]
) -> list[PooledGroup]:
    """One group for each stride group, joined where a module is called in several of them."""
    groups: list[PooledGroup] = []
    _check_whole_kernels(stride_groups, by_node)
    factors = _least_factors(stride_groups, by_node)
    whole = ([n for n in each.calls if n not in stride_groups.leaders] for each in pinned)
    for nodes in (*stride_groups.members(), *filter(None, whole)):
        group = _pooled_group(stride_groups, nodes, by_node)
        group.least_factor = factors.get(nodes[0], 0.0)
        modules = {call.module for call in group.calls}
        for other in [other for other in groups if modules & other.crop_pads.keys()]:
            if _apart(other, group):
                continue
            groups.remove(other)
            group = _join(other, group)
        groups.append(group)
    order = list(by_node)
    return sorted(
        (group for group in groups if group.calls),
        key=lambda group: order.index(group.calls[0].node),
    )


def _check_whole_kernels(stride_groups: StrideGroups, by_node: dict[fx.Node, StridedCall]) -> None:
    """Check that no strides change a map that the kernel of a convolution covers.

    Such a convolution is a linear layer: its output of one sample would become one of several, and
    with it what the network returns. Where that stays, as behind a global pooling, all is well.

    Raises:
        StrideConflictError: some do.
    """
    returned = stride_groups.trace.graph.output_node().all_input_nodes
    now, before = stride_groups.values, stride_groups.trace.values
    if all(shapes_of(now.get(node, before[node])) == shapes_of(before[node]) for node in returned):
        return
    for node in now:
        module = stride_groups.trace.module(node)
        if not isinstance(module, Conv) or node in stride_groups.leaders:
            continue
        kernel = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        outputs = stride_groups.dims(node)[2:]
        axes = zip(kernel, stride_groups.input_dims(node), outputs, strict=False)  # without a batch
        covered = [size for k, size, out in axes if k == size.size > 1 == out.size and out.growth]
        why = "its kernel covers the whole map, and would not cover a larger one"
        for dim in covered:
            call, axis = stride_groups.origins.get((dim.perturbed[-1] - dim.size,), (None, 0))
            if call in by_node and by_node[call].strides[axis] > 1:
                raise StrideConflictError(
                    one_size_only(stride_groups, node, why),
                    to_pin=[n for n, leader in stride_groups.leaders.items() if leader is call],
                    axes=[axis],
                )


def _least_factors(
    stride_groups: StrideGroups, by_node: dict[fx.Node, StridedCall]
) -> dict[fx.Node, float]:
    """For the first call of each group that comes before a cut of a stored tensor.

    Raises:
        StrideConflictError: if the tensor is too short for strides to learn.
    """
    members = {calls[0]: calls for calls in stride_groups.members()}
    # Others start at a stride of 1, on top of their own, or are layers that have their limits.
    new = {
        leader
        for leader, calls in members.items()
        if by_node.keys() >= set(calls)
        and _settled(by_node[leader], len(calls) == 1).placement != "on top"
    }
    factors: dict[fx.Node, float] = {}
    for cut in (node for node in stride_groups.values if node in stride_groups.stored_slices):
        before = [stride_groups.leaders[call] for call in stride_groups.upstream(cut)]
        falling = new.intersection(before)
        factor = least_factor(stride_groups, cut, falling) if falling else 0.0
        if factor > PINNED_ABOVE:
            raise StrideConflictError(
                f"{stride_groups.trace.label(cut)} cuts a stored tensor that is too short for "
                "smaller strides, as positions for no longer sequences are: store more of them, or "
                "put adaptive pooling before it",
                to_pin=members[next(each for each in reversed(before) if each in falling)],
            )
        factors |= {leader: max(factor, factors.get(leader, 0.0)) for leader in falling}
    return factors


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
    layer = trace.module(pooled[0]) if pooled else None
    return PooledGroup(calls, crop_pads, layer, size, stride_groups.unlearned[nodes[0]])


def _settled(call: StridedCall, alone: bool) -> StridedCall:
    """The call, pooled on top of its stride only if no other has to share the layer."""
    if call.placement != "on top":
        return call
    return call.on_top() if alone else replace(call, placement="before")


def _apart(one: PooledGroup, two: PooledGroup) -> bool:
    """Whether calls of one module in both groups may have a layer each: they pin other axes."""
    shared = one.crop_pads.keys() & two.crop_pads.keys()
    calls = [call for call in (*one.calls, *two.calls) if call.module in shared]
    resampled = any(call.placement == "before" and not call.pointwise for call in calls)
    return one.unlearned != two.unlearned and not resampled


def _join(one: PooledGroup, two: PooledGroup) -> PooledGroup:
    calls = one.calls + two.calls
    same = len({call.strides for call in calls}) == 1 and all(
        one.crop_pads[module] == two.crop_pads[module]
        for module in one.crop_pads.keys() & two.crop_pads.keys()
    )
    if not same or (one.pooling and two.pooling) or one.unlearned != two.unlearned:
        raise StrideConflictError(SEVERAL, [call.node for call in calls])
    return replace(
        one,
        calls=calls,
        crop_pads=one.crop_pads | two.crop_pads,
        pooling=one.pooling or two.pooling,
        least_factor=max(one.least_factor, two.least_factor),
    )
