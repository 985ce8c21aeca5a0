"""Which tensors of a network share a resolution, found out by moving sizes and looking.

Some calls of a traced network *resize*: their output would have another size if their stride
changed. To learn what depends on each, the network is run once more on shapes alone, and every
resizing call returns maps that are larger by an amount of its own. Wherever a dimension has grown
by that amount, it follows that call, whatever reshaping lies in between; and where two operands
that agreed no longer do, their calls must share one stride. No table of operators is needed.
Where sizes are rounded on the way, two may agree by chance: the network is then moved repeatedly.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations_with_replacement, count
from math import prod
from random import Random
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from diffstride.graph.fake_run import execute, first, shapes_only
from diffstride.graph.tracer import Trace

DIVISOR = 96
REMAINDERS = (1, 11, 19, 95, 66, 6)
"""Of the sizes that maps are moved to, by `DIVISOR`. Of four halvings in a row, each tells rounding
up from rounding down at one of 1, 11, 19 and 95 (that is -1), however those before it round; 66 and
6 are 2 and 6 modulo 8 and multiples of three, which the others are not."""
FACTORS = (1, 2, 3, 4, 6, 8, 16)  # by which maps may follow others


class Dim(NamedTuple):
    """A dimension of a tensor: its size in the network, and the sizes after each move."""

    size: int
    moved: tuple[int, ...]

    @property
    def shift(self) -> tuple[int, ...]:
        """By how much it grew in each move; empty if in none."""
        shift = tuple(moved - self.size for moved in self.moved)
        return shift if any(shift) else ()


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
    ``moves`` holds, for each time the network was moved, what the nodes that depend on a resizing
    call returned, and ``costs`` their multiply-adds (for the whole batch). ``values`` and
    ``multiply_adds`` are those of the last time.
    """

    def __init__(self, trace: Trace, calls: Iterable[fx.Node]) -> None:
        self.trace = trace
        self.leaders = {call: call for call in calls}
        self.start_move()

    def start_move(self, seed: int = 0, remainder: int | None = None) -> None:
        """Forget all moves, and draw by how much the maps of each leader grow along each axis.

        Odd numbers, so that adding two of them gives no third; with a ``remainder`` such that the
        sizes after growing leave it when divided by `DIVISOR`.
        """
        self.values: dict[fx.Node, Any] = {}
        self.multiply_adds: dict[fx.Node, int] = {}
        self.moves, self.costs = [self.values], [self.multiply_adds]
        self.shifts: dict[tuple[fx.Node, int], int] = {}
        draws, taken = _draws(seed), set()
        for leader in dict.fromkeys(self.leaders.values()):
            for axis, size in enumerate(self.trace.values[leader].shape[2:]):
                # By the whole size at least: what strides leave of it then moves, too.
                suiting = (_suiting(size, size + drawn, remainder) for drawn in draws)
                shift = next(each for each in suiting if each not in taken)
                self.shifts[leader, axis] = shift
                taken |= _akin(shift)
        self.origins: dict[tuple[int, ...], tuple[fx.Node, int]] = {
            (shift,): origin for origin, shift in self.shifts.items()
        }

    def dims(self, node: fx.Node) -> list[Dim]:
        """The dimensions of the tensor that a node returns; none for other values."""
        value = self.trace.values[node]
        if not isinstance(value, Tensor):
            return []
        moved = zip(*(values.get(node, value).shape for values in self.moves), strict=False)
        return list(map(Dim, value.shape, moved))

    def number(self, node: fx.Node) -> Dim:
        """A whole number that a node returns, as if it were a dimension."""
        value = self.trace.values[node]
        return Dim(value, tuple(values.get(node, value) for values in self.moves))

    def cost(self, node: fx.Node) -> Dim:
        """The multiply-adds of a node, as if they were a dimension."""
        cost = self.trace.multiply_adds[node]
        return Dim(cost, tuple(costs.get(node, cost) for costs in self.costs))

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


def _draws(seed: int) -> Iterator[int]:
    """Numbers of at least 101 without an end, no larger than need be.

    For some operations grow much faster than the maps: attention over images needs memory by the
    fourth power of their sides, recurrent layers take as many steps as a signal is long.
    """
    random = Random(seed)
    for drawn in count():
        yield random.randrange(101, 301 + 50 * drawn)


def _suiting(size: int, shift: int, remainder: int | None) -> int:
    """The least shift from this one on that is odd, or leaves the remainder."""
    return shift | 1 if remainder is None else shift + (remainder - size - shift) % DIVISOR


def _akin(shift: int) -> set[int]:
    """By how much maps may grow that follow one with this shift, by strides or enlarging."""
    far = 2 * max(FACTORS)  # what is nearer may have grown as much behind strides
    larger = {factor * shift + d for factor in FACTORS for d in range(-2 * factor, 2 * factor + 1)}
    smaller = {shift // factor + d for factor in FACTORS for d in range(-2, 3)}
    return larger | smaller | set(range(shift - far, shift + far + 1))


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
    >>> resolve(traced, calls).classes()
    [[body, shortcut]]
    """
    found = Resolutions(trace, calls)
    _settle(found)
    if not _rounds(found):
        # Sizes may still happen to grow in proportion: one move more tells them apart.
        moves, costs = found.moves, found.costs
        found.start_move(seed=1)
        if not _settle(found):
            found.moves, found.costs = moves + found.moves, costs + found.costs
            return found
    # Sizes that are rounded to different sides agree by chance, as halves of an even number do.
    changed = True
    while changed:
        changed, moves, costs = False, [], []
        for seed, remainder in enumerate(REMAINDERS):
            found.start_move(seed, remainder)
            changed = _settle(found) or changed
            moves.append(found.values)
            costs.append(found.multiply_adds)
        found.moves, found.costs = moves, costs
    return found


def _settle(found: Resolutions) -> bool:
    """Move the network, and let calls share a resolution until all agrees; whether any had to."""
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


def _rounds(found: Resolutions) -> bool:
    """Whether a map may follow others in another way than by a product or a constant margin."""
    for node in found.values:
        operands = [dim for source in node.all_input_nodes for dim in found.dims(source)]
        known = found.origins.keys() | {dim.shift for dim in operands} | {()}
        for dim in found.dims(node):
            if dim.shift not in known:
                factors = proportional(dim, dict.fromkeys(operands), most=3)
                # A fraction of others may be what rounding made of them, where it did not show.
                if not factors or dim.size % prod(factor.size for factor in factors):
                    return True
    return False


def proportional(total: Dim, dims: Iterable[Dim], most: int) -> tuple[Dim, ...] | None:
    """Those of ``dims`` (a dimension may count twice) to whose product ``total`` is proportional.

    >>> proportional(Dim(60, (180,)), [Dim(4, (6,)), Dim(5, (10,))], most=3)
    (Dim(size=4, moved=(6,)), Dim(size=5, moved=(10,)))
    """
    dims = list(dims)
    for number in range(1, most + 1):
        for factors in combinations_with_replacement(dims, number):
            size, *moved = (prod(values) for values in zip(*map(_sizes, factors), strict=True))
            pairs = zip(total.moved, moved, strict=True)
            if all(one * size == total.size * other for one, other in pairs):
                return factors
    return None


def _sizes(dim: Dim) -> tuple[int, ...]:
    return dim.size, *dim.moved


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
                broadcast = 1 in (*dim.moved, *other.moved)
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
