"""Check that the analysis of a network holds for the network itself, at its and at other strides.

Where ``forward`` turns a size into a number, with ``int()`` or an ``if``, the number is a constant
of the traced network, but not of the network itself. Most such numbers are harmless, in a check of
shapes for example. A run of the network at other strides finds the others, and whatever else the
trace does not show.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

from diffstride._arguments import clamp_strides
from diffstride.graph.fake_run import NetworkRun, NetworkRunError
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.graph.stride_groups import StrideGroups
from diffstride.graph.tracer import Trace

STRIDE_FACTORS = 1.3, 1 / 1.3  # an ``if`` may branch on larger or on smaller maps
# An ``if`` may branch on odd maps at some of these.
MORE_STRIDE_FACTORS = 1.05, 1.1, 1.2, 1.5, 1.7, 0.95, 0.9, 0.7
COST_TOLERANCE = 0.02


def check_costs(
    groups: StrideGroups,
    layers: Collection[Any],
    expected: Callable[[], float],
    run: Callable[[], NetworkRun],
) -> None:
    """Run a network itself, at its own and at other strides, and compare shapes and costs.

    Args:
        groups: of the traced network.
        layers: its pooling layers.
        expected: the cost of one sample at the strides that the layers have, without the layers.
        run: runs the network.

    Raises:
        ValueError: it fails, returns another shape or costs something else.
    """
    with suppress(NetworkRunError):  # it reads numbers: only its parts can be traced
        _check_same(groups.trace, run())
        readers = _numbers_read(groups)
        for factor in (*STRIDE_FACTORS, *MORE_STRIDE_FACTORS * bool(readers)):
            with scaled_strides(layers, factor) as moved, suppress(EmptyMapError):
                if moved:
                    _check_at(factor, expected(), run, groups.trace.batch, readers)


def _check_at(
    factor: float, expected: float, run: Callable[[], NetworkRun], batch: int, readers: list[str]
) -> None:
    """Compare costs at the strides that the layers have now, ``factor`` times their own."""
    try:
        actual = run().costs[""] / batch
    except NetworkRunError as error:
        if factor in STRIDE_FACTORS:
            raise ValueError(failed_at(factor, error, readers)) from error
        return
    if abs(expected - actual) > COST_TOLERANCE * actual:
        raise ValueError(
            "the cost of the network does not follow from its strides alone: at "
            f"{factor:.2f} times the strides {expected:,.0f} multiply-adds were expected, but "
            f"there are {actual:,.0f}{_numbers(readers)}"
        )


def _check_same(trace: Trace, run: NetworkRun) -> None:
    """Check that a network does what was traced: shapes and multiply-adds, at its own strides.

    Raises:
        ValueError: if it does not; names the innermost module that differs.
    """
    if trace.shapes != run.shapes:
        raise ValueError(
            f"the network returns shapes {run.shapes}, but {trace.shapes} where it is traced: it "
            "does something else while torch.fx traces it"
        )
    if run.costs[""] != sum(trace.multiply_adds.values()):
        traced = {name: _traced_cost(trace, name) for name in run.costs}
        name = max((name for name in run.costs if run.costs[name] != traced[name]), key=len)
        raise ValueError(
            f"{repr(name) if name else 'the model itself'} costs {run.costs[name]:,} "
            f"multiply-adds for the batch, but {traced[name]:,} where it is traced: "
            "it does something else while torch.fx traces it; exclude it with leaf_modules"
        )


def _traced_cost(trace: Trace, name: str) -> int:
    """The cost of a module and those inside it, for the whole batch."""
    prefix = f"{name}." if name else ""
    return sum(
        cost
        for node, cost in trace.multiply_adds.items()
        if f"{trace.module_name(node)}.".startswith(prefix)
    )


def failed_at(factor: float, error: NetworkRunError, readers: list[str]) -> str:
    """The message for a network that fails at strides multiplied by a factor."""
    return (
        f"at {factor:.2f} times the strides {error.where} fails ({error.why}): use adaptive "
        "pooling before it, or leave out the strided modules before it with filter_fn"
        f"{_numbers(readers)}"
    )


def _numbers(readers: list[str]) -> str:
    if not readers:
        return ""
    return (
        ". A size is turned into a number by int(), float(), math, range(), by counting parts or "
        f"an `if` in {' and '.join(readers[:3])}: use the size itself, as in F.pad(x, (0, "
        "x.shape[-1] % 2)) for odd sizes, without an `if`"
    )


def _numbers_read(groups: StrideGroups) -> list[str]:
    """The modules whose ``forward`` turned a size that depends on strides into a number."""
    constants = {n: o for n, o in groups.trace.constants.items() if n in groups.values}
    # Whether a size is odd may not have changed: then all that read such numbers are named.
    moved = {n: o for n, o in constants.items() if _moves(groups.trace.values[n], groups.values[n])}
    owners = dict.fromkeys((moved or constants).values())
    return [repr(owner) if owner else "the model itself" for owner in owners]


def _moves(value: Any, moved: Any) -> bool:
    if isinstance(value, Tensor):
        return value.shape != moved.shape
    if isinstance(value, tuple | list):
        return len(value) != len(moved)
    return isinstance(value, bool) or (isinstance(value, (int, float)) and value != moved)


@contextmanager
def scaled_strides(layers: Iterable[Any], factor: float) -> Iterator[bool]:
    """Multiply the learnable strides, within their limits, inside the context.

    Gives whether any of them changed. They are replaced, not written to, so that optimisers and
    autograd do not see it.
    """
    learning = (each for each in layers if each.strides.requires_grad and not each.strides.is_meta)
    kept = [(layer, layer.strides.data) for layer in learning]
    try:
        for layer, data in kept:
            limits = (getattr(layer, f"{end}_limit_stride", None) for end in ("lower", "upper"))
            scaled = clamp_strides((data * factor).tolist(), *limits)
            _set_strides(layer, data.new_tensor(scaled))
        yield any(not data.equal(layer.strides.data) for layer, data in kept)
    finally:
        for layer, data in kept:
            _set_strides(layer, data)


def _set_strides(layer: Any, data: Tensor) -> None:
    layer.strides.data = data
    layer.train(layer.training)  # has the layer read its strides
