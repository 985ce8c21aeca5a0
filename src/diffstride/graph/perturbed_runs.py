"""Runs of a traced network on shapes alone, with other sizes behind its resizing calls."""

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor, fx, nn

from diffstride._wording import one_line
from diffstride.graph.fake_run import first_argument, shapes_of, shapes_only
from diffstride.graph.mirror import mirrored_size
from diffstride.graph.perturbed_sizes import Dim
from diffstride.graph.restoring import restoring
from diffstride.graph.slices import with_all_samples
from diffstride.graph.stride_groups import Run, StrideGroups, source_of


class SizeMismatchError(Exception):
    """A node cannot run with perturbed sizes.

    ``dims`` are the dimensions of two operands that no longer agree, if there are any. ``blamed``
    are the calls to leave out if no shared stride makes them agree.
    """

    def __init__(
        self,
        node: fx.Node,
        dims: list[Dim],
        why: str,
        blamed: Sequence[fx.Node] = (),
    ) -> None:
        super().__init__(why)
        self.node, self.dims, self.why, self.blamed = node, dims, why, list(blamed)


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


def _disagreement(groups: StrideGroups, node: fx.Node) -> list[Dim]:
    """The dimensions of two operands, counted from the last, that no longer agree."""
    operands = [groups.dims(source)[::-1] for source in node.all_input_nodes]
    for one, two in combinations(operands, 2):
        for dim, other in zip(one, two, strict=False):
            broadcast = 1 in (*dim.perturbed, *other.perturbed)
            if dim.size == other.size and dim.growth != other.growth and not broadcast:
                return [dim, other]
    return []


def probe(
    groups: StrideGroups, node: fx.Node, source: fx.Node, axis: int, added: int
) -> list[tuple[int, ...]]:
    """The shapes of the tensors that a node returns if only one axis of one operand grows."""
    shape = list(groups.trace.values[source].shape)
    shape[axis] += added
    module = groups.trace.module(node) or nn.Module()
    with restoring(module), shapes_only(groups.trace.fake_mode):
        values = {source: groups.trace.values[source].new_empty(shape)}
        return shapes_of(_try_node(groups, node, ChainMap(values, groups.trace.values)))


def refused_axes(groups: StrideGroups, node: fx.Node, leader: fx.Node) -> tuple[int, ...]:
    """The axes of a group's maps of which a node takes no other length, each tried alone."""
    nodes = list(groups.trace.graph.nodes)
    between = nodes[nodes.index(leader) : nodes.index(node) + 1]

    def refuses(axis: int) -> bool:
        def length(call: fx.Node, at: int) -> int:
            grows = groups.leaders[call] is leader and at == axis
            return groups.given_length(call, at) + groups.growths[leader, axis] * grows

        try:
            run_with_sizes(groups, between, Run({}, {}), length)
        except SizeMismatchError:
            return True
        return False

    return tuple(filter(refuses, groups.learned_axes(leader)))
