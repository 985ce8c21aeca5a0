"""Runs of a traced network at larger and smaller strides, where growing maps show no conflict.

Growing maps are always large enough for ``x[..., :12, :12]``, and for a map that is enlarged by 2
and cut to the size of another. At larger strides such slices return less. Operators of other
libraries may accept sizes on shapes alone that they refuse when they run.
"""

import operator
from bisect import bisect_left
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._torch_compat import tree_map_only
from diffstride._wording import one_line
from diffstride.graph.group_search import find_stride_groups
from diffstride.graph.perturbed_runs import SizeMismatchError, run_with_sizes
from diffstride.graph.restoring import restoring
from diffstride.graph.slices import axis_slices
from diffstride.graph.stride_conflicts import StrideConflictError
from diffstride.graph.stride_groups import Run, StrideGroups, UnlearnedAxes, source_of
from diffstride.graph.tracer import Trace

GROWING_FACTORS = 1.3, 2.0, 4.0, 16.0  # until a map gets too small
FALLING_FACTOR, MOST_FALLS = 0.95, 60  # until a stored tensor is too short, at strides from 1 to 20


def find_groups_at_all_strides(
    trace: Trace, unlearned: Mapping[fx.Node, UnlearnedAxes], **options: Any
) -> StrideGroups:
    """As `find_stride_groups`; then strides move apart, and the groups' runs contain that.

    Raises:
        StrideConflictError: as `find_stride_groups`, and if a slice returns a size that the network
            cannot take, or an operator fails on data; it holds the calls to leave out.
    """
    groups = find_stride_groups(trace, unlearned, **options)
    if doubtful := _doubtful_nodes(groups):
        leaders = list(dict.fromkeys(groups.leaders.values()))
        moved = [run for signs in _directions(leaders) for run in _runs(groups, signs, doubtful)]
        groups.runs[:0] = moved  # the last run stays the last
    return groups


def least_factor(groups: StrideGroups, cut: fx.Node, leaders: Collection[fx.Node]) -> float:
    """How far the strides of some leaders may fall until a stored tensor is too short.

    At strides times this factor, the same for all, no map is longer than what the network cuts to
    its size by ``cut``, such as the positions of a sequence.
    """
    stored, needed = groups.trace.values[source_of(cut)], set(groups.sources(cut))
    nodes = [node for node in groups.trace.graph.nodes if node in needed]

    def is_too_short(step: int) -> bool:
        factors = dict.fromkeys(groups.leaders.values(), 1.0)
        factors |= dict.fromkeys(leaders, FALLING_FACTOR ** (step + 1))
        values = ChainMap(_run(groups, factors, nodes).values, groups.trace.values)
        index = fx.map_arg(cut.args[1], lambda n: values[n])
        slices = axis_slices(index, stored.dim())
        return not all(each.fits(stored.shape[each.axis]) for each in slices)

    return FALLING_FACTOR ** bisect_left(range(MOST_FALLS), True, key=is_too_short)


def _directions(leaders: Sequence[fx.Node]) -> Iterator[dict[fx.Node, int]]:
    """Strides that all grow, all shrink, or do both in turns: 1 where a stride grows, else -1."""
    for larger in ({0, 1}, set(), {0}, {1}):
        yield {leader: 1 if i % 2 in larger else -1 for i, leader in enumerate(leaders)}


def _runs(
    groups: StrideGroups, signs: Mapping[fx.Node, int], doubtful: set[fx.Node]
) -> Iterator[Run]:
    """Runs with strides that are multiplied by each factor, as far as maps are large enough."""
    for factor in GROWING_FACTORS:
        try:
            yield _run(groups, {leader: factor**sign for leader, sign in signs.items()})
        except SizeMismatchError as mismatch:
            node = mismatch.node
            met = [groups.values.get(source) for source in node.all_input_nodes]
            meeting = sum(isinstance(value, Tensor) for value in met) > 1
            if node in doubtful and (meeting or factor == GROWING_FACTORS[0]):
                raise _conflict(groups, mismatch) from mismatch
            return


def _conflict(groups: StrideGroups, mismatch: SizeMismatchError) -> StrideConflictError:
    last = [groups.leaders[call] for call in groups.upstream(mismatch.node)[-1:]]
    return StrideConflictError(
        f"{groups.trace.label(mismatch.node)} fails at other strides ({mismatch.why})",
        [call for call, leader in groups.leaders.items() if leader in last],
    )


def _doubtful_nodes(groups: StrideGroups) -> set[fx.Node]:
    """Slices of maps, operators of other libraries, and what follows from them."""
    doubtful: set[fx.Node] = set()
    for node in groups.values:
        first = node in groups.trace.foreign or _cuts(groups, node)
        if first or doubtful.intersection(node.all_input_nodes):
            doubtful.add(node)
    return doubtful


def _cuts(groups: StrideGroups, node: fx.Node) -> bool:
    """Whether a node is a slice that begins or ends within an axis that strides change."""
    if node.target is not operator.getitem or not isinstance(groups.values[node], Tensor):
        return False
    dims = groups.dims(source_of(node))
    return any(
        any(end is not None for end in (each.start, each.stop))
        and (dims[each.axis].growth or not groups.values.keys().isdisjoint((each.start, each.stop)))
        for each in axis_slices(node.args[1], len(dims))
    )


def _run(
    groups: StrideGroups,
    factors: Mapping[fx.Node, float],
    nodes: Iterable[fx.Node] | None = None,
) -> Run:
    """A run with strides that are larger by these factors; operators of others run on data, too."""
    run, nodes = Run({}, {}), groups.trace.graph.nodes if nodes is None else nodes

    def length(call: fx.Node, axis: int) -> int:
        source, at = source_of(call), 2 + axis
        before = groups.trace.values[source]
        old, new = before.shape[at], run.values.get(source, before).shape[at]
        out, factor = groups.trace.values[call].shape[at], factors[groups.leaders[call]]
        return min(new, max(1, ceil(new * out / old / factor)))

    run_with_sizes(groups, nodes, run, length)
    for node in groups.trace.foreign & run.values.keys():
        _run_on_zeros(groups, node, run)
    return run


def _run_on_zeros(groups: StrideGroups, node: fx.Node, run: Run) -> None:
    """Run a call on tensors with data, at its own sizes and, if that works, at those of a run."""
    if _error_on_zeros(groups, node, groups.trace.values) is None:
        error = _error_on_zeros(groups, node, ChainMap(run.values, groups.trace.values))
        if error is not None:
            raise SizeMismatchError(node, [], one_line(error)) from error


def _error_on_zeros(
    groups: StrideGroups, node: fx.Node, values: Mapping[fx.Node, Any]
) -> Exception | None:
    def zeros(x: Tensor) -> Tensor:
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)

    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    with restoring(groups.trace.module(node) or nn.Module()), torch.no_grad():
        try:
            groups.trace.run(node, *tree_map_only(Tensor, zeros, (args, kwargs)))
        except Exception as error:
            return error
    return None
