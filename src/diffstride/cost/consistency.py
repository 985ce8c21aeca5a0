"""Check that the analysis of a network holds at other strides than those it was made at.

Where ``forward`` turns a size into a number, with ``int()`` or an ``if``, the number is a constant
of the traced network, but not of the network itself. Most such numbers are harmless, in a check of
shapes for example. Tracing at other strides finds the others.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from diffstride._arguments import clamp_strides
from diffstride.graph.stride_groups import StrideGroups

FACTORS = 1.3, 1 / 1.3  # an ``if`` may branch on larger or on smaller maps
TOLERANCE = 0.02


def numbers_read(found: StrideGroups) -> list[str]:
    """The modules whose ``forward`` turned a size that depends on strides into a number."""
    owners = {
        owner: None
        for node, owner in found.trace.constants.items()
        if node in found.values and _moves(found.trace.values[node], found.values[node])
    }
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
            _replace(layer, data.new_tensor(scaled))
        yield any(not data.equal(layer.strides.data) for layer, data in kept)
    finally:
        for layer, data in kept:
            _replace(layer, data)


def _replace(layer: Any, data: Tensor) -> None:
    layer.strides.data = data
    layer.train(layer.training)  # has the layer read its strides
