"""Groups of calls that share a stride, and the sizes of maps in runs with perturbed sizes.

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
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx

from diffstride.graph.fake_run import first_argument
from diffstride.graph.mirror import Mirror
from diffstride.graph.perturbed_sizes import Dim, draw_growths
from diffstride.graph.slices import axis_slices
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

    def upstream(self, node: fx.Node) -> list[fx.Node]:
        """The resizing calls that the size of a node depends on, in order of execution."""
        found = set(self.sources(node))
        return [call for call in self.leaders if call in found]

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """A node and those that its size depends on, the nearest first."""
        return with_sources(node, [*filter(self.returns_one_size, self.unlearned)])

    def grown_length(self, call: fx.Node, axis: int) -> int:
        """The length of an axis that learns, in a run where all grow."""
        return self.given_length(call, axis) + self.growths[self.leaders[call], axis]

    def given_length(self, call: fx.Node, axis: int) -> int:
        return self.trace.values[call].shape[2 + axis]


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
