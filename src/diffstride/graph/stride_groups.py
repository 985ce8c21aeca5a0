"""Find calls that must share a stride, by re-running the traced graph with perturbed sizes.

Some calls of a traced network *resize*: the size of their output depends on their stride. The graph
runs again on shapes alone, and each resizing call returns a map that is larger by a number of its
own, its *growth*. A dimension that grows by the same number follows that call. Where two operands
had equal sizes and no longer do, their calls must share a stride. No table of operators is needed.
Where strides round sizes, two may agree by chance: then the graph runs with several growths.

Two things set sizes without a stride. Some axes of a resizing call learn none: *fixed* ones have
one length, whatever comes in, *kept* ones that of the input. A *mirror* enlarges its map to the
size that went into another call, as the decoder of a U-Net does.
"""

import operator
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import combinations
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from diffstride._wording import one_line
from diffstride.graph.fake_run import first_argument, shapes_only
from diffstride.graph.mirror import Mirror, mirrored_size
from diffstride.graph.perturbed_sizes import REMAINDERS, Dim, draw_growths, proportional
from diffstride.graph.restoring import restoring
from diffstride.graph.slices import axis_slices, with_all_samples
from diffstride.graph.stride_conflicts import (
    SizeMismatchError,
    StrideConflictError,
    last_calls,
    raise_conflict,
)
from diffstride.graph.tracer import Trace
from diffstride.pooling.base import SizedPooling


class Run(NamedTuple):
    """Values of nodes that depend on a resizing call, and multiply-adds of their operations."""

    values: dict[fx.Node, Any]
    operations: dict[fx.Node, list[int]]


class UnlearnedAxes(NamedTuple):
    """The axes of a resizing call whose length no stride sets.

    ``fixed`` ones have one length, whatever comes in; ``kept`` ones grow as the input does.
    """

    fixed: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()


def unlearned_axes(layer: SizedPooling) -> UnlearnedAxes:
    """Those of the calls of a pooling layer."""
    return UnlearnedAxes(frozenset(layer.fixed_axes), frozenset(layer.kept_axes))


class StrideGroups:
    """Groups of resizing calls that share a stride, and the sizes in perturbed runs.

    Args:
        trace: the traced network.
        unlearned: the resizing calls, and the axes of each that learn no stride.
        mirrors: calls that enlarge their map, each with the call that it mirrors.
        square: whether all axes share a stride, so that square maps stay square.

    Attributes:
        trace: the traced network.
        leaders: the first call of the group, for each resizing call that learns some axis.
        unlearned: the axes of each resizing call that learn no stride.
        mirrors, square: as given; ``square`` only if all maps are.
        stored_slices: the slices of stored tensors, which are long enough in a perturbed run.
        growths: by how many samples the maps of a leader grow along each axis that learns, in the
            last run.
        runs: the perturbed runs.
    """

    def __init__(
        self,
        trace: Trace,
        unlearned: Mapping[fx.Node, UnlearnedAxes],
        mirrors: Mapping[fx.Node, Mirror] | None = None,
        square: bool = False,
    ) -> None:
        self.trace = trace
        self.unlearned = {n: unlearned[n] for n in trace.graph.nodes if n in unlearned}
        self.mirrors = dict(mirrors or {})
        self.leaders = {call: call for call in self.unlearned if self.learned_axes(call)}
        # Maps that are not square may become so by chance, at these strides.
        self.square = square and all(map(self._pools_square_maps, self.leaders))
        self.stored_slices = {node for node in trace.graph.nodes if _slices_stored(trace, node)}
        self.restart()

    def restart(self, seed: int = 0, remainder: int | None = None) -> None:
        """Forget all runs, and draw new growths, see `draw_growths`."""
        self.runs = [Run({}, {})]
        sizes = {
            (leader, axis): self.trace.values[leader].shape[2 + axis]
            for leader in dict.fromkeys(self.leaders.values())
            for axis in self.learned_axes(leader)
        }
        like = {key: self._like(*key) for key in sizes}
        drawn = {key: size for key, size in sizes.items() if like[key] == key}
        found = draw_growths(drawn, seed, remainder)
        self.growths = {key: found[like[key]] for key in sizes}
        self.origins: dict[tuple[int, ...], tuple[fx.Node, int]] = {
            (growth,): origin for origin, growth in found.items()
        }

    def _like(self, leader: fx.Node, axis: int) -> tuple[fx.Node, int]:
        """The first axis that grows like this one: of a square map with one stride, both do."""
        sizes, axes = self.trace.values[leader].shape[2:], self.learned_axes(leader)
        like = [each for each in axes if sizes[each] == sizes[axis]]
        return leader, like[0] if self.square else axis

    def _pools_square_maps(self, call: fx.Node) -> bool:
        maps = (self.trace.values[node] for node in (call, *call.all_input_nodes))
        return all(len(set(x.shape[2:])) <= 1 for x in maps if isinstance(x, Tensor))

    def learned_axes(self, call: fx.Node) -> tuple[int, ...]:
        """The axes of a resizing call whose length a stride sets."""
        axes = range(self.trace.values[call].dim() - 2)
        return tuple(axis for axis in axes if axis not in frozenset().union(*self.unlearned[call]))

    def returns_one_size(self, call: fx.Node) -> bool:
        """Whether all axes of a resizing call are fixed."""
        return len(self.unlearned[call].fixed) == self.trace.values[call].dim() - 2

    @property
    def values(self) -> dict[fx.Node, Any]:
        """The values of the last run."""
        return self.runs[-1].values

    def dims(self, node: fx.Node) -> list[Dim]:
        """The dimensions of the tensor that a node returns; empty for other values."""
        value = self.trace.values[node]
        if not isinstance(value, Tensor):
            return []
        perturbed = zip(*(run.values.get(node, value).shape for run in self.runs), strict=False)
        return list(map(Dim, value.shape, perturbed))

    def number(self, node: fx.Node) -> Dim:
        """A whole number that a node returns, in the form of a dimension."""
        value = self.trace.values[node]
        return Dim(value, tuple(run.values.get(node, value) for run in self.runs))

    def costs(self, node: fx.Node) -> list[Dim]:
        """The multiply-adds of each operation of a node, in the form of dimensions.

        The operations of one node, as of an attention module, may grow differently. They are one
        total where their number is not the same in all runs.
        """
        counts = self.trace.operations[node]
        perturbed = [run.operations.get(node, counts) for run in self.runs]
        if {len(counts)} != set(map(len, perturbed)):
            return [Dim(sum(counts), tuple(map(sum, perturbed)))]
        return [Dim(*each) for each in zip(counts, zip(*perturbed, strict=True), strict=True)]

    def input_dims(self, call: fx.Node) -> list[Dim]:
        """The spatial dimensions of the input of a resizing call."""
        return self.dims(source_of(call))[2:]

    def members(self) -> list[list[fx.Node]]:
        """The resizing calls, grouped by shared stride, in order of execution."""
        members: dict[fx.Node, list[fx.Node]] = {}
        for call, leader in self.leaders.items():
            members.setdefault(leader, []).append(call)
        return list(members.values())

    def probe(self, node: fx.Node, source: fx.Node, axis: int, added: int) -> tuple[int, ...]:
        """The shape that a node returns if only one axis of one operand grows."""
        shape = list(self.trace.values[source].shape)
        shape[axis] += added
        module = self.trace.module(node) or nn.Module()
        with restoring(module), shapes_only(self.trace.fake_mode):
            values = {source: self.trace.values[source].new_empty(shape)}
            return tuple(_try_node(self, node, ChainMap(values, self.trace.values)).shape)

    def upstream(self, node: fx.Node) -> list[fx.Node]:
        """The resizing calls that the size of a node depends on, in order of execution."""
        found = set(self.sources(node))
        return [call for call in self.leaders if call in found]

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """A node and those that its size depends on, the nearest first."""
        return with_sources(node, [*filter(self.returns_one_size, self.unlearned)])

    def refused_axes(self, node: fx.Node, leader: fx.Node) -> tuple[int, ...]:
        """The axes of a group's maps of which a node takes no other length, each tried alone."""
        nodes = list(self.trace.graph.nodes)
        between = nodes[nodes.index(leader) : nodes.index(node) + 1]

        def refuses(axis: int) -> bool:
            def length(call: fx.Node, at: int) -> int:
                grows = self.leaders[call] is leader and at == axis
                return self._given_length(call, at) + self.growths[leader, axis] * grows

            try:
                run_with_sizes(self, between, Run({}, {}), length)
            except SizeMismatchError:
                return True
            return False

        return tuple(filter(refuses, self.learned_axes(leader)))

    def grown_length(self, call: fx.Node, axis: int) -> int:
        """The length of an axis that learns, in a run where all grow."""
        return self._given_length(call, axis) + self.growths[self.leaders[call], axis]

    def _given_length(self, call: fx.Node, axis: int) -> int:
        return self.trace.values[call].shape[2 + axis]


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
        operands = [dim for source in node.all_input_nodes for dim in groups.dims(source)]
        known = groups.origins.keys() | {dim.growth for dim in operands} | {()}
        for dim in groups.dims(node):
            if dim.growth not in known:
                factors = proportional(dim, dict.fromkeys(operands), most=3)
                # A fraction of other sizes may be rounded where the growths do not show it.
                if not factors or dim.size % prod(factor.size for factor in factors):
                    return True
    return False


def run_with_sizes(
    groups: StrideGroups,
    nodes: Iterable[fx.Node],
    run: Run,
    length: Callable[[fx.Node, int], int],
) -> None:
    """Run those of ``nodes`` that depend on a resizing call.

    Args:
        groups: the stride groups.
        nodes: of the graph, in order.
        run: what has been run before; receives the values and costs.
        length: the output length of an axis that learns, of each resizing call.

    Raises:
        SizeMismatchError: if a node cannot run.
    """
    nodes = list(nodes)
    modules = filter(None, map(groups.trace.module, nodes))
    # They may store a tensor of this run's size. Modules of torch.nn do not.
    others = [each for each in modules if not type(each).__module__.startswith("torch.nn.")]
    with restoring(nn.ModuleList(others)), shapes_only(groups.trace.fake_mode) as counter:
        for node in nodes:
            if node in groups.unlearned:
                resized = _resized_output(groups, node, run, length)
                if node in groups.leaders or resized.shape != groups.trace.values[node].shape:
                    run.values[node] = resized  # a constant otherwise
            elif node.op != "output" and _depends_on_sizes(groups, node, run):
                before = len(counter.multiply_adds)
                values = ChainMap(run.values, groups.trace.values)
                run.values[node] = _try_node(groups, node, values)
                run.operations[node] = counter.multiply_adds[before:]
                if node in groups.mirrors:
                    run.values[node] = _mirrored(groups, node, values)


def _resized_output(
    groups: StrideGroups, call: fx.Node, run: Run, length: Callable[[fx.Node, int], int]
) -> Tensor:
    """The output of a resizing call; ``length`` gives that of axes that learn."""
    value, source = groups.trace.values[call], source_of(call)
    before = groups.trace.values[source].shape
    now = run.values.get(source, groups.trace.values[source]).shape
    if len(now) != len(before):  # an axis of one sample may have been squeezed away
        raise SizeMismatchError(call, [], f"gets {len(now)} dimensions")
    sizes = [*value.shape[2:]]
    for axis in groups.unlearned[call].kept:
        sizes[axis] = max(1, sizes[axis] + now[2 + axis] - before[2 + axis])
    for axis in groups.learned_axes(call):
        sizes[axis] = length(call, axis)
    # The batch may grow, too, where rows or patches have become samples.
    return value.new_empty((value.shape[0] + now[0] - before[0], value.shape[1], *sizes))


def _depends_on_sizes(groups: StrideGroups, node: fx.Node, run: Run) -> bool:
    """Whether a node takes what a run has computed, or mirrors its size."""
    mirror = groups.mirrors.get(node)
    more = [] if mirror is None else [source_of(mirror.call)]
    return any(source in run.values for source in (*node.all_input_nodes, *more))


def _mirrored(groups: StrideGroups, node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
    """The output of an enlarging call, which follows the input size of the call that it mirrors."""
    mirror = groups.mirrors[node]
    size = mirrored_size(values[source_of(mirror.call)].shape[2:], mirror.trips)
    if min(size) < 1:
        raise SizeMismatchError(node, [], "it would return an empty map")
    return values[node].new_empty((*values[node].shape[:2], *size))


def _try_node(groups: StrideGroups, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args: Any
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node in groups.mirrors:  # without a size that it is given
        args, kwargs = (first_argument(args, kwargs),), {}
    if node in groups.stored_slices:
        args = with_all_samples(*args)
    try:
        return groups.trace.run(node, args, kwargs)
    except Exception as error:
        raise SizeMismatchError(node, _disagreement(groups, node), one_line(error)) from error


def _slices_stored(trace: Trace, node: fx.Node) -> bool:
    """Whether a node cuts a tensor that depends on no input, by a number that may."""
    if node.target is not operator.getitem or len(node.all_input_nodes) < 2:
        return False
    stored = source_of(node)
    value, index = trace.values[stored], fx.map_arg(node.args[1], lambda n: trace.values[n])
    if not isinstance(value, Tensor):
        return False
    slices = list(axis_slices(index, value.dim()))
    fit = [each.is_plain and each.fits(value.shape[each.axis]) for each in slices]
    from_input = any(source.op == "placeholder" for source in with_sources(stored))
    return bool(fit) and all(fit) and not from_input


def _disagreement(groups: StrideGroups, node: fx.Node) -> list[Dim]:
    """The dimensions of two operands, counted from the last, that no longer agree."""
    operands = [groups.dims(source)[::-1] for source in node.all_input_nodes]
    for one, two in combinations(operands, 2):
        for dim, other in zip(one, two, strict=False):
            broadcast = 1 in (*dim.perturbed, *other.perturbed)
            if dim.size == other.size and dim.growth != other.growth and not broadcast:
                return [dim, other]
    return []


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


def with_sources(node: fx.Node, stop: Collection[fx.Node] = ()) -> list[fx.Node]:
    """A node and those that it depends on, the nearest first; not those before ``stop``."""
    found = {node: None}
    for each in (pending := [node]):
        for source in each.all_input_nodes if each not in stop else ():
            if source not in found:
                found[source] = None
                pending.append(source)
    return list(found)


def source_of(call: fx.Node) -> fx.Node:
    """The node whose map a resizing call takes."""
    source = first_argument(call.args, call.kwargs)
    assert isinstance(source, fx.Node)
    return source
