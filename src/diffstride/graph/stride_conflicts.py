"""Explain strides that cannot be learned, since sizes would no longer agree."""

from collections.abc import Iterable, Sequence
from typing import NoReturn

from torch import fx

from diffstride.graph.perturbed_runs import SizeMismatchError, refused_axes
from diffstride.graph.stride_groups import StrideGroups


class StrideConflictError(ValueError):
    """The strides of ``calls`` cannot be learned: sizes would no longer agree.

    ``to_pin`` are calls that would have to return maps of one size, so that those before can learn,
    and ``axes`` the axes along which, as far as known.
    """

    def __init__(
        self,
        message: str,
        calls: Iterable[fx.Node] = (),
        to_pin: Iterable[fx.Node] = (),
        axes: Iterable[int] = (),
    ) -> None:
        super().__init__(message)
        self.calls, self.to_pin, self.axes = list(calls), list(to_pin), tuple(axes)


def raise_conflict(
    groups: StrideGroups, mismatch: SizeMismatchError, blamed: list[fx.Node]
) -> NoReturn:
    """Raise an error with the calls to leave out: those blamed, or the last group before."""
    node, label = mismatch.node, groups.trace.label(mismatch.node)
    if not mismatch.dims or _meets_constant(groups, node):
        nearest, axes = _to_pin(groups, node)
        raise StrideConflictError(
            one_size_only(groups, node, mismatch.why),
            to_pin=[call for call, leader in groups.leaders.items() if leader is nearest],
            axes=axes,
        )
    # One at a time: without the last one, those before it may agree.
    blamed = blamed or sorted(last_calls(groups, node), key=list(groups.leaders).index)[-1:]
    meeting = f"meets maps in {label} whose size does not follow its stride"
    raise StrideConflictError(
        mismatch.why if mismatch.blamed else meeting,
        [call for call, leader in groups.leaders.items() if leader in blamed],
    )


def one_size_only(groups: StrideGroups, node: fx.Node, why: str) -> str:
    """The message for an operation that accepts maps of one size only."""
    shapes = [[dim.size for dim in groups.dims(source)] for source in node.all_input_nodes]
    sizes = " and ".join(str(tuple(shape)) for shape in shapes if shape)
    here = f", here {sizes}" if sizes else ""  # a check of sizes has no map as operand
    return (
        f"{groups.trace.label(node)} accepts maps of one size only{here}, but learned "
        f"strides change it ({why}): {_advice(groups, node)}"
    )


def last_calls(groups: StrideGroups, node: fx.Node) -> list[fx.Node]:
    """The leader of the last call before each operand that grows: it may be a product of sizes."""
    operands = [n for n in node.all_input_nodes if any(dim.growth for dim in groups.dims(n))]
    last = [groups.upstream(operand)[-1] for operand in operands]
    return list(dict.fromkeys(groups.leaders[call] for call in last))


def _advice(groups: StrideGroups, node: fx.Node) -> str:
    """What to do about maps that must have one size: fix it, or leave modules as they are."""
    calls = {str(call.target): call for call in groups.upstream(node)}
    layers = [name for name, call in calls.items() if groups.trace.is_pooling(call)]
    if not layers:
        names = ", ".join(map(repr, list(calls)[:3])) + " and others" * (len(calls) > 3)
        return f"put adaptive pooling before it, or leave out {names} with filter_fn"
    last = layers[-1]
    size = tuple(groups.trace.values[calls[last]].shape[2:])
    return (
        f"put nn.AdaptiveAvgPool2d({size}) behind {last!r} "
        f"({type(groups.trace.module(calls[last])).__name__}), whose map has this size now, or "
        f"diffstride.AdaptiveSpectralPooling({size}) in its place"
    )


def _meets_constant(groups: StrideGroups, node: fx.Node) -> bool:
    """Whether a node takes a tensor that depends on no input, such as stored positions."""
    return any(
        not any(dim.growth for dim in dims)
        and all(each.op != "placeholder" for each in groups.sources(source))
        for source in node.all_input_nodes
        if (dims := groups.dims(source))
    )


def _to_pin(groups: StrideGroups, node: fx.Node) -> tuple[fx.Node | None, Sequence[int]]:
    """The group whose maps would have to keep their size, and along which axes if that is known."""
    if node.op != "output":  # which takes all sizes
        leaders = dict.fromkeys(groups.leaders[call] for call in reversed(groups.upstream(node)))
        for leader in leaders:
            if axes := refused_axes(groups, node, leader):
                return leader, axes
    return _nearest_leader(groups, node), ()


def _nearest_leader(groups: StrideGroups, node: fx.Node) -> fx.Node | None:
    """The group whose size a node sees: that of the nearest map before it, or the last one."""
    for source in groups.sources(node):
        for dim in groups.dims(source):
            if dim.growth in groups.origins:
                return groups.origins[dim.growth][0]
    return next((groups.leaders[call] for call in reversed(groups.upstream(node))), None)
