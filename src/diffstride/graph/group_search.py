"""Find calls that must share a stride, by re-running the traced graph with perturbed sizes."""

import operator
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from diffstride.graph.perturbed_runs import SizeMismatchError, run_with_sizes
from diffstride.graph.perturbed_sizes import REMAINDERS, Dim, proportional
from diffstride.graph.restoring import restoring
from diffstride.graph.stride_conflicts import (
    StrideConflictError,
    last_calls,
    raise_conflict,
)
from diffstride.graph.stride_groups import StrideGroups, UnlearnedAxes
from diffstride.graph.tracer import Trace


def find_stride_groups(
    trace: Trace, unlearned: Mapping[fx.Node, UnlearnedAxes], **options: Any
) -> StrideGroups:
    """Find which resizing calls must share a stride, so that shapes agree at every stride.

    Args:
        trace: the traced network.
        unlearned: the resizing calls, and the axes of each that learn no stride.
        **options: ``mirrors`` and ``square`` of `StrideGroups`.

    Raises:
        StrideConflictError: if two maps meet and only one follows a stride; it holds the calls to
            leave out. Or if an operation accepts maps of one size only; it holds the calls that
            could be pinned.

    >>> import torch
    >>> from torch import nn
    >>> from diffstride.graph.tracer import trace
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = nn.Conv2d(3, 3, 3, stride=2, padding=1)
    ...         self.shortcut = nn.Conv2d(3, 3, 1, stride=2)
    ...     def forward(self, x):
    ...         return self.body(x) + self.shortcut(x)
    >>> traced = trace(Residual(), torch.zeros(1, 3, 8, 8))
    >>> calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    >>> find_stride_groups(traced, dict.fromkeys(calls, UnlearnedAxes())).members()
    [[body, shortcut]]
    """
    groups = StrideGroups(trace, unlearned, **options)
    with restoring(trace.model):
        _merge_until_consistent(groups)
        first = groups.runs
        # Two sizes may grow in proportion by chance: a second run shows whether they do.
        if not _may_round(groups) and not _perturb(groups, [(1, None)]):
            groups.runs = first + groups.runs
            return groups
        # Sizes rounded up and down may agree by chance, as halves of an even number do.
        while _perturb(groups, enumerate(REMAINDERS)):
            pass
    return groups


def _perturb(groups: StrideGroups, draws: Iterable[tuple[int, int | None]]) -> bool:
    """Run with each of these seeds and remainders of growths; whether any groups were merged."""
    changed, runs = False, []
    for seed, remainder in draws:
        groups.restart(seed, remainder)
        changed = _merge_until_consistent(groups) or changed
        runs += groups.runs
    groups.runs = runs
    return changed


def _merge_until_consistent(groups: StrideGroups) -> bool:
    """Run with perturbed sizes, and merge groups until all sizes agree; whether any were merged."""
    nodes = list(groups.trace.graph.nodes)
    start, changed = nodes[0], False
    while True:
        try:
            rest = nodes[nodes.index(start) :]
            run_with_sizes(groups, rest, groups.runs[-1], groups.grown_length)
            _check_inputs(groups)
            _check_batch(groups)
        except SizeMismatchError as mismatch:
            start, changed = _merge(groups, mismatch), True
        else:
            return changed


def _may_round(groups: StrideGroups) -> bool:
    """Whether a size may be more than a product of others or one with a constant margin."""
    for node in groups.values:
        if _is_cut_or_padded_by_a_number(groups, node):
            return True
        operands = [dim for source in node.all_input_nodes for dim in groups.dims(source)]
        known = groups.origins.keys() | {dim.growth for dim in operands} | {()}
        for dim in groups.dims(node):
            if dim.growth not in known:
                factors = proportional(dim, dict.fromkeys(operands), most=3)
                # A fraction of other sizes may be rounded where the growths do not show it.
                if not factors or dim.size % prod(factor.size for factor in factors):
                    return True
    return False


def _is_cut_or_padded_by_a_number(groups: StrideGroups, node: fx.Node) -> bool:
    """Whether ``forward`` computes how much of a map is kept or added: a remainder, perhaps."""
    values = groups.trace.values
    return (
        node.target in (F.pad, operator.getitem)
        and isinstance(values[node], Tensor)
        and any(
            isinstance(values[n], int) and n.target not in ("size", operator.getitem)  # as it is
            for n in node.all_input_nodes
            if n in groups.values
        )
    )


def _check_inputs(groups: StrideGroups) -> None:
    """Calls of one group must also have equal input sizes, up to a constant margin."""
    for one, *others in groups.members():
        for call in others:
            for axis in groups.learned_axes(one):
                dim, other = groups.input_dims(one)[axis], groups.input_dims(call)[axis]
                if dim.growth != other.growth:
                    why = (
                        f"{one.target} and {call.target} meet, but their inputs have passed "
                        "different strides, so they cannot share one"
                    )
                    raise SizeMismatchError(call, [dim, other], why, [groups.leaders[call]])


def _check_batch(groups: StrideGroups) -> None:
    """What the network returns must not have more samples: ``view(-1, 400)`` would make them."""
    output = groups.trace.graph.output_node()
    for source in output.all_input_nodes:
        as_large = [dim for dim in groups.dims(source) if dim.size == groups.trace.batch]
        # Another dimension of this size that stays is the batch, as behind a transposition.
        if as_large and as_large[0] is groups.dims(source)[0] and all(d.growth for d in as_large):
            why = f"the number of samples becomes {as_large[0].perturbed[-1]}"
            raise SizeMismatchError(output, [], why)


def _merge(groups: StrideGroups, mismatch: SizeMismatchError) -> fx.Node:
    """Merge the groups of the calls that caused a mismatch; returns the first call changed."""
    origins = [
        (dim, groups.origins[dim.growth]) for dim in mismatch.dims if dim.growth in groups.origins
    ]
    blamed = [call for _, (call, _) in origins]
    if not _can_share(groups, origins):
        blamed = mismatch.blamed or blamed
        last = [] if mismatch.blamed else last_calls(groups, mismatch.node)
        _check_fixed_alike(groups, mismatch, last)
        if len(last) < 2 or len({_maps_of(groups, call) for call in last}) > 1:
            raise_conflict(groups, mismatch, blamed)
        blamed = last[:2]
    keep, drop = sorted(blamed, key=list(groups.leaders).index)
    for call, leader in groups.leaders.items():
        groups.leaders[call] = keep if leader is drop else leader
    return drop


def _check_fixed_alike(
    groups: StrideGroups, mismatch: SizeMismatchError, leaders: list[fx.Node]
) -> None:
    """Where maps of one size meet, and an axis of one alone is fixed, that of all has to be.

    Raises:
        StrideConflictError: with the calls of these groups, to be pinned where they are not.
    """
    fixed = {groups.unlearned[leader].fixed for leader in leaders}
    if len(fixed) > 1 and len({groups.trace.values[each].shape[2:] for each in leaders}) == 1:
        label = groups.trace.label(mismatch.node)
        axes = frozenset().union(*fixed)
        calls = [call for call, leader in groups.leaders.items() if leader in leaders]
        raise StrideConflictError(
            f"{label} adds or joins maps of which one alone has a length that stays",
            calls,
            to_pin=[call for call in calls if groups.unlearned[call].fixed != axes],
            axes=axes,
        )


def _can_share(groups: StrideGroups, origins: list[tuple[Dim, tuple[fx.Node, int]]]) -> bool:
    """Whether both dimensions follow the same axis of maps of equal size, by the same margin."""
    found = set()
    for dim, (call, axis) in origins:
        shape, unlearned = _maps_of(groups, call)
        found.add((shape, unlearned, axis, dim.size - shape[axis]))
    return len(origins) == 2 and len(found) == 1


def _maps_of(groups: StrideGroups, call: fx.Node) -> tuple[Any, UnlearnedAxes]:
    """The size of the maps of a call and its unlearned axes, which calls of one group share."""
    return groups.trace.values[call].shape[2:], groups.unlearned[call]
