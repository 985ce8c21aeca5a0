"""Multiply-adds of a network as a function of its strides."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._arguments import check_network
from diffstride._torch_compat import uncompiled
from diffstride.cost.consistency import check_costs
from diffstride.cost.cost_of_sizes import CostOfSizes
from diffstride.graph.fake_run import run_network
from diffstride.graph.moved_strides import find_groups_at_all_strides
from diffstride.graph.restoring import restoring
from diffstride.graph.stride_conflicts import StrideConflictError
from diffstride.graph.stride_groups import StrideGroups, unlearned_axes
from diffstride.graph.tracer import Trace, trace
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import CPU
from diffstride.strides import stride_layers

Strides = Mapping[str, Tensor | Sequence[float]]


class MultiplyAdds(CostOfSizes):
    """Multiply-adds (MACs) of a network for one sample, as a function of its strides.

    ``sum over operations of c * product of the sizes of their maps``. Convolutions, linear layers
    and matrix products count as in torch's ``FlopCounterMode``, whose count is twice as high;
    recurrent and bilinear layers and products with vectors as the products in them, on every
    device. The pooling layers count one matrix product per axis, in full, though from 320
    samples on it takes half of that. Axes of 1,024 samples and more, and signals, count as real
    Fourier transforms where these cost less, ``5/4 (N log2 N + M log2 M)`` for each line
    (`diffstride.spectral`). The value counts whole samples; its gradient is that of the sizes
    before rounding.

    The first input with spatial axes says how many samples there are. What several samples share,
    or each has many of (the frames of a video), counts as often as it is computed.

    The network is traced once, here; a call then takes well under a millisecond. The network itself
    runs on shapes alone, too, at its strides and at larger and smaller ones, to check the cost.

    Args:
        model: a network with `DiffStride` layers, its own or those of `convert`.
        example: an input, or several as for `convert`; only shapes matter.
        leaf_modules: as for `convert`; if there are none, those that it was given.

    Raises:
        ValueError: if the network cannot be traced, if branches with different strides meet, or if
            a cost does not follow from map sizes or a map size not from the strides.

    >>> from diffstride import DiffStride
    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(1, 1, 1))
    >>> cost = MultiplyAdds(net, torch.zeros(1, 1, 32, 32))
    >>> cost.value(), 16 * 32 * 32 + 16 * 16 * 32 + 16 * 16
    (24832, 24832)
    >>> cost.value({"0": (4.0, 4.0)})
    10304
    >>> cost().backward()
    >>> net[0].strides.grad
    tensor([-12416.,  -4224.])
    """

    def __init__(
        self, model: nn.Module, example: Any, leaf_modules: Iterable[str | type[nn.Module]] = ()
    ) -> None:
        check_network(model)
        model = uncompiled(model)  # the network inside one that is compiled
        _refuse_single_layer(model)
        layers: dict[str, Any] = stride_layers(model)
        with restoring(model):
            traced = trace(model, example, leaf_modules)
            calls = [node for node in traced.graph.nodes if traced.is_pooling(node)]
            groups = _find_groups(traced, calls, layers)
            _check_shared(groups)
            super().__init__(groups, calls, layers)
            check_costs(
                groups,
                layers.values(),
                expected=lambda: self._sum(self._pool({})[0]),
                run=lambda: run_network(model, example, groups.trace.fake_mode),
            )

    def __call__(self, strides: Strides | None = None) -> Tensor:
        """The cost as a float64 scalar, differentiable in the strides.

        Args:
            strides: strides to use instead of the layers' own, by the name of the layer.

        Raises:
            ValueError: if a map is empty at these strides.
        """
        own = {name: layer.strides for name, layer in self.layers.items()}
        given = own | dict(strides or {})
        for name, values in given.items():
            self._check(name, values)
        vectors = on_host([as_vector(values) for values in given.values()])
        each = iter(vectors.tolist())
        cost, slopes = self.slopes({n: list(islice(each, len(given[n]))) for n in given})
        flat = vectors.new_tensor([slope for name in given for slope in slopes[name]])
        return cost + flat @ (vectors - vectors.detach())

    def value(self, strides: Strides | None = None) -> int:
        """The cost as a whole number without a gradient, for searches; otherwise as a call."""
        return self.evaluate(self._as_numbers(strides or {}))[0]

    def _as_numbers(self, strides: Strides) -> dict[str, list[float]]:
        """Strides from outside as numbers, checked."""
        for name, values in strides.items():
            self._check(name, values)
        return {name: as_vector(values).tolist() for name, values in strides.items()}

    def _check(self, name: str, strides: Any) -> None:
        if name not in self.layers:
            raise ValueError(f"strides: the model has no stride layer named {name!r}")
        kind = type(self.layers[name])
        if getattr(kind, "plan", SizedPooling.plan) is SizedPooling.plan:
            raise ValueError(
                f"{name!r} is a {kind.__module__}.{kind.__name__}, whose cost is known only at its "
                "own strides: use diffstride.DiffStride"
            )
        axes = self.layers[name].num_axes
        numbers = isinstance(strides, Sequence) or (isinstance(strides, Tensor) and strides.dim())
        if not (numbers and len(strides) in (1, axes)):
            raise ValueError(
                f"strides: {name!r} takes {axes}, one for each axis, but got {strides!r}: pass a "
                "sequence or a tensor of one dimension"
            )


def _find_groups(traced: Trace, calls: list[fx.Node], learning: Mapping[str, Any]) -> StrideGroups:
    """The stride groups of these calls of pooling layers.

    Fixed strides may meet strides of other modules, which are fixed as well. If so, the maps of
    their layers follow those before, and they are in no group.
    """
    layers: dict[fx.Node, Any] = {node: traced.module(node) for node in calls}
    unlearned = {node: unlearned_axes(layer) for node, layer in layers.items()}
    square = all(getattr(each, "shared_stride", each.fixes_size) for each in layers.values())
    others = [layer for layer in layers.values() if not layer.fixes_size]
    try:
        return find_groups_at_all_strides(traced, unlearned, square=square)
    except StrideConflictError:
        fixed = set(others).difference(learning.values())
        if not fixed:
            raise
        left = {node: axes for node, axes in unlearned.items() if layers[node] not in fixed}
        return find_groups_at_all_strides(traced, left, square=square)


def _refuse_single_layer(model: nn.Module) -> None:
    if isinstance(model, SizedPooling):
        kind = type(model).__name__
        raise ValueError(
            f"the model is a single {kind}, whose own maps have no name: put it into a network, as "
            f"in nn.Sequential({kind}(...)); {kind}.output_size((32, 32)) is the size of its maps"
        )


def as_vector(strides: Tensor | Sequence[Any]) -> Tensor:
    """Strides as one tensor, differentiable in those that are tensors."""
    if isinstance(strides, Tensor):
        return strides
    return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=CPU) for each in strides])


def on_host(vectors: Sequence[Tensor]) -> Tensor:
    """All vectors as one on the CPU, in float64; off the CPU by one transfer."""
    if not vectors:
        return torch.zeros(0, dtype=torch.float64, device=CPU)
    return torch.cat([each.to(vectors[0].device) for each in vectors]).to(CPU, torch.float64)


def _check_shared(groups: StrideGroups) -> None:
    for calls in groups.members():
        names = {str(call.target) for call in calls}
        if len(names) > 1:
            raise ValueError(
                f"the maps of {' and '.join(sorted(map(repr, names)))} meet, but these layers do "
                "not share their strides: use one pooling layer for both"
            )
