"""Which tensors of a network share a resolution, found out by moving sizes and looking.

Some calls of a traced network *resize*: their output would have another size if their stride
changed. To learn what depends on each, the network is run once more on shapes alone, and every
resizing call returns maps that are larger by an amount of its own. Wherever a dimension has grown
by that amount, it follows that call, whatever reshaping lies in between; and where two operands
that agreed no longer do, their calls must share one stride. No table of operators is needed.
"""

import itertools
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from random import Random
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from diffstride.execution import execute, first, shapes_only
from diffstride.tracing import Trace

DIVISOR = 32  # halvings in a row of which each is seen to round: five
FACTORS = (1, 2, 3, 4, 6, 8, 16)  # by which maps may follow others


class Dim(NamedTuple):
    """A dimension of a tensor: its size in the network, and the size after moving."""

    size: int
    moved: int

    @property
    def shift(self) -> int:
        return self.moved - self.size


class UnshareableError(ValueError):
    """The sizes of what ``calls`` return cannot be left to their strides."""

    def __init__(self, message: str, calls: Iterable[fx.Node] = ()) -> None:
        super().__init__(message)
        self.calls = list(calls)


class ClashError(Exception):
    """At ``node`` the ``dims`` of two operands no longer agree; without them, it failed alone.

    ``blamed`` are the calls to refuse if nothing can make the dimensions agree.
    """

    def __init__(
        self,
        node: fx.Node,
        dims: list[tuple[fx.Node, Dim]],
        why: str = "",
        blamed: Iterable[fx.Node] = (),
    ) -> None:
        super().__init__(why)
        self.node, self.dims, self.why, self.blamed = node, dims, why, list(blamed)


class Resolutions:
    """What `resolve` finds out about a traced network.

    ``leaders`` maps each resizing call to the first of those that share its resolution;
    ``values`` and ``multiply_adds`` hold, for the nodes that depend on a resizing call, what they
    return and cost (for the whole batch) after moving.
    """

    def __init__(self, trace: Trace, calls: Iterable[fx.Node]) -> None:
        self.trace = trace
        self.leaders = {call: call for call in calls}
        self.values: dict[fx.Node, Any] = {}
        self.multiply_adds: dict[fx.Node, int] = {}
        self.shifts: dict[tuple[fx.Node, int], int] = {}
        self.origins: dict[int, tuple[fx.Node, int]] = {}
        self.draw_shifts()

    def draw_shifts(self, remainder: int | None = None) -> None:
        """Draw by how much the maps of each leader grow along each axis.

        Odd numbers, so that adding two of them gives no third; with a ``remainder`` such that the
        sizes after growing leave it when divided by `DIVISOR`.
        """
        self.shifts, taken = {}, set()
        draws = _draws()
        for leader in dict.fromkeys(self.leaders.values()):
            for axis, size in enumerate(self.trace.values[leader].shape[2:]):
                suiting = (
                    drawn | 1 if remainder is None else drawn + (remainder - size - drawn) % DIVISOR
                    for drawn in draws
                )
                shift = next(each for each in suiting if each not in taken)
                self.shifts[leader, axis] = shift
                taken |= _akin(shift)
        self.origins = {shift: origin for origin, shift in self.shifts.items()}

    def dims(self, node: fx.Node) -> list[Dim]:
        """The dimensions of the tensor that a node returns; none for other values."""
        value = self.trace.values[node]
        if not isinstance(value, Tensor):
            return []
        return list(map(Dim, value.shape, self.values.get(node, value).shape))

    def input_dims(self, call: fx.Node) -> list[Dim]:
        """The spatial dimensions of the map that a resizing call takes."""
        return self.dims(_source(call))[2:]

    def classes(self) -> list[list[fx.Node]]:
        """The resizing calls, those of one resolution together, in order of execution."""
        members: dict[fx.Node, list[fx.Node]] = {}
        for call, leader in self.leaders.items():
            members.setdefault(leader, []).append(call)
        return list(members.values())

    def probe(self, node: fx.Node, source: fx.Node, axis: int, added: int) -> tuple[int, ...]:
        """The shape that a node returns if one axis of one of its operands grows alone."""
        shape = list(self.trace.values[source].shape)
        shape[axis] += added
        with shapes_only(self.trace.module(node) or nn.Module(), self.trace.fake_mode):
            operand = self.trace.values[source].new_empty(shape)
            return tuple(_run(self, node, ChainMap({source: operand}, self.trace.values)).shape)

    def upstream(self, node: fx.Node) -> list[fx.Node]:
        """The resizing calls that the value of a node depends on, in order of execution."""
        seen, pending = {node}, [node]
        while pending:
            for source in pending.pop().all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        return [call for call in self.leaders if call in seen]


def _draws() -> Iterator[int]:
    """Numbers of at least 101 without an end, no larger than need be.

    For some operations grow much faster than the maps: attention over images needs memory by the
    fourth power of their sides, recurrent layers take as many steps as a signal is long.
    """
    random = Random(0)
    for count in itertools.count():
        yield random.randrange(101, 301 + 50 * count)


def _akin(shift: int) -> set[int]:
    """By how much maps may grow that follow one with this shift, by strides or enlarging."""
    larger = {factor * shift + d for factor in FACTORS for d in range(-2 * factor, 2 * factor + 1)}
    return larger | {shift // factor + d for factor in FACTORS for d in range(-2, 3)}


def resolve(trace: Trace, calls: Iterable[fx.Node]) -> Resolutions:
    """Work out which resizing calls must share a resolution, so that shapes agree at any stride.

    Args:
        trace: the traced network.
        calls: the resizing calls, in order of execution.

    Raises:
        UnshareableError: if maps meet of which only one follows a stride (carries the calls to
            leave out), or if an operation accepts maps of one size only (carries none).

    >>> import torch
    >>> from torch import nn
    >>> from diffstride.tracing import trace
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = nn.Conv2d(3, 3, 3, stride=2, padding=1)
    ...         self.shortcut = nn.Conv2d(3, 3, 1, stride=2)
    ...     def forward(self, x):
    ...         return self.body(x) + self.shortcut(x)
    >>> traced = trace(Residual(), torch.zeros(1, 3, 8, 8))
    >>> calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    >>> resolve(traced, calls).classes()
    [[body, shortcut]]
    """
    found = Resolutions(trace, calls)
    _settle(found)
    # Sizes that are rounded to different sides agree by chance, as halves of an even number do. Of
    # remainder 1 a size stays odd however often it is halved and rounded up, of -1 rounded down.
    changed = _divides(found)
    while changed:
        changed = any([_settle(found, each) for each in (1, -1, None)])  # noqa: C419, all of them
    return found


def _settle(found: Resolutions, remainder: int | None = None) -> bool:
    """Let calls share a resolution until all agrees at sizes drawn anew; whether any had to."""
    found.draw_shifts(remainder)
    nodes = list(found.trace.graph.nodes)
    start, changed = nodes[0], False
    while True:
        try:
            _move(found, nodes[nodes.index(start) :])
            _check_inputs(found)
        except ClashError as clash:
            start, changed = _unite(found, clash), True
        else:
            return changed


def _divides(found: Resolutions) -> bool:
    """Whether a map follows others at less than their pace."""
    for node in found.values:
        shifts = {dim.shift for source in node.all_input_nodes for dim in found.dims(source)}
        own = {dim.shift for dim in found.dims(node)} - {0} - shifts - found.origins.keys()
        if own and min(own) < max(shifts, default=inf):
            return True
    return False


def _move(found: Resolutions, nodes: list[fx.Node]) -> None:
    """Run these nodes with moved sizes, as far as a resizing call reaches them."""
    values = found.values
    with shapes_only(found.trace.model, found.trace.fake_mode) as counter:
        for node in nodes:
            if node in found.leaders:
                values[node] = _grown(found, node)
            elif node.op != "output" and any(n in values for n in node.all_input_nodes):
                before = counter.get_total_flops()
                values[node] = _run(found, node, ChainMap(values, found.trace.values))
                found.multiply_adds[node] = (counter.get_total_flops() - before) // 2


def _grown(found: Resolutions, call: fx.Node) -> Tensor:
    value, leader = found.trace.values[call], found.leaders[call]
    batch = found.values.get(_source(call), value).shape[0]  # rows or patches may have joined it
    sizes = (size + found.shifts[leader, axis] for axis, size in enumerate(value.shape[2:]))
    return value.new_empty((batch, value.shape[1], *sizes))


def _run(found: Resolutions, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    module = found.trace.module(node)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    try:
        return execute(module, node, args, kwargs)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ClashError(node, _disagreement(found, node), why) from error


def _disagreement(found: Resolutions, node: fx.Node) -> list[tuple[fx.Node, Dim]]:
    """Two operands with a dimension, counted from the last, that was equal and no longer is."""
    operands = [(source, found.dims(source)[::-1]) for source in node.all_input_nodes]
    for i, (one, dims) in enumerate(operands):
        for two, others in operands[i + 1 :]:
            for dim, other in zip(dims, others, strict=False):
                broadcast = 1 in (dim.moved, other.moved)
                if dim.size == other.size and dim.shift != other.shift and not broadcast:
                    return [(one, dim), (two, other)]
    return []


def _check_inputs(found: Resolutions) -> None:
    """Calls that share a resolution must start from one, too, up to a constant margin."""
    for one, *others in found.classes():
        for call in others:
            for pair in zip(found.input_dims(one), found.input_dims(call), strict=True):
                if pair[0].shift != pair[1].shift:
                    dims = list(zip((_source(one), _source(call)), pair, strict=True))
                    why = (
                        f"{one.target} and {call.target} meet, but what comes into them has "
                        "passed different strides, so that they cannot share one"
                    )
                    raise ClashError(call, dims, why, blamed=[found.leaders[call]])


def _unite(found: Resolutions, clash: ClashError) -> fx.Node:
    """Let the calls that a clash is about share a resolution; returns the first one changed."""
    origins = [found.origins.get(dim.shift) for _, dim in clash.dims]
    blamed = [origin[0] for origin in origins if origin]
    if not _may_share(found, clash, origins):
        blamed = clash.blamed or blamed
        last = [] if clash.blamed else _last_calls(found, clash.node)
        if len(last) < 2 or len({found.trace.values[call].shape[2:] for call in last}) > 1:
            _refuse(found, clash, blamed)
        blamed = last[:2]
    order = list(found.leaders)
    keep, drop = sorted(blamed, key=order.index)
    for call, leader in found.leaders.items():
        found.leaders[call] = keep if leader is drop else leader
    return drop


def _may_share(
    found: Resolutions, clash: ClashError, origins: list[tuple[fx.Node, int] | None]
) -> bool:
    """Whether both dimensions follow a call, the same axis of maps of one size, as far away."""
    if len(origins) < 2 or None in origins:
        return False
    shapes, distances = set(), set()
    for (call, axis), (_, dim) in zip(filter(None, origins), clash.dims, strict=True):
        shape = tuple(found.trace.values[call].shape[2:])
        shapes.add(shape)
        distances.add((axis, dim.size - shape[axis]))
    return len(shapes) == len(distances) == 1


def _last_calls(found: Resolutions, node: fx.Node) -> list[fx.Node]:
    """The leaders of the last calls before each moving operand: it may be a product of sizes."""
    operands = [n for n in node.all_input_nodes if any(dim.shift for dim in found.dims(n))]
    last = [found.upstream(operand)[-1] for operand in operands]
    return list(dict.fromkeys(found.leaders[call] for call in last))


def _refuse(found: Resolutions, clash: ClashError, blamed: list[fx.Node]) -> None:
    """Blame the calls whose maps meet others in a clash; failing that, the last ones before."""
    label = found.trace.label(clash.node)
    if not clash.dims:
        names = list(dict.fromkeys(repr(str(call.target)) for call in found.upstream(clash.node)))
        shapes = [[dim.size for dim in found.dims(source)] for source in clash.node.all_input_nodes]
        here = " and ".join(str(tuple(shape)) for shape in shapes if shape)
        raise UnshareableError(
            f"{label} accepts maps of one size only, here {here}, but learned strides change it "
            f"({clash.why}): put adaptive pooling before it, or leave out {', '.join(names[:3])}"
            f"{' and others' * (len(names) > 3)} with filter_fn"
        )
    blamed = blamed or _last_calls(found, clash.node)
    meeting = f"meets maps in {label} whose size its stride does not decide"
    raise UnshareableError(
        clash.why if clash.blamed else meeting,
        [call for call, leader in found.leaders.items() if leader in blamed],
    )


def _source(call: fx.Node) -> fx.Node:
    source = first(call.args, call.kwargs)
    assert isinstance(source, fx.Node)
    return source
