"""The strides that a budget holds, read and written for all layers at once."""

from collections.abc import Mapping
from itertools import islice
from math import isfinite, log
from typing import Any

import torch
from torch import nn

from diffstride._arguments import clamp_strides
from diffstride.cost.multiply_adds import MultiplyAdds, on_host
from diffstride.cost.size_thresholds import as_stored, in_float32
from diffstride.cost.stride_space import Logs
from diffstride.pooling.learnable import DiffStride

ROUNDING = 1e-5  # of a stride, with a margin: the nearest number of single precision


class HeldStrides:
    """The strides that learn in a network.

    Reading and writing take one transfer from or to an accelerator for all layers together.

    Args:
        cost: of the network.

    Attributes:
        layers: the layers that hold them, by name.
        in_use: the logarithms of the strides, as they were at first or as last written.

    Raises:
        ValueError: none learns, two layers have one parameter, or a stride is not finite.
    """

    def __init__(self, cost: MultiplyAdds) -> None:
        used = cost.maps()
        self.layers: dict[str, DiffStride] = {
            name: layer
            for name, layer in cost.layers.items()
            if name in used and getattr(layer, "learns_size", False)
        }
        if not self.layers:
            raise ValueError(_without_learning_layers(cost.layers))
        _check_apart(self.layers)
        self.in_use: Logs = _logs(self.by_layer(self.read()))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The strides of each layer, one layer after the other."""
        return [layer.strides for layer in self.layers.values()]

    def by_layer(self, numbers: list[float]) -> dict[str, list[float]]:
        """Numbers of all strides, one layer after the other, by layer."""
        each = iter(numbers)
        return {
            name: list(islice(each, len(parameter)))
            for name, parameter in zip(self.layers, self.parameters, strict=True)
        }

    @torch.no_grad()
    def read(self) -> list[float]:
        """All strides as they are now, one layer after the other.

        Raises:
            ValueError: if one is not finite.
        """
        strides = on_host(self.parameters).tolist()
        if not all(map(isfinite, strides)):
            for name, values in self.by_layer(strides).items():
                if not all(map(isfinite, values)):
                    raise ValueError(
                        f"the strides of {name!r} are {values}: training has diverged; load the "
                        "last checkpoint, look whether the loss and the weights were finite, and "
                        "lower their learning rate or that of the strides"
                    )
        return strides

    @torch.no_grad()
    def write_(self, logs: Logs) -> None:
        """Write strides within the limits of their layers; nothing is read back.

        Args:
            logs: the logarithms of those of all layers.
        """
        stored = {
            name: _within_limits(layer, as_stored(logs[name]))
            for name, layer in self.layers.items()
        }
        flat = [value for values in stored.values() for value in values]
        parts = self.parameters[0].new_tensor(flat).split(list(map(len, self.parameters)))
        for (name, layer), part in zip(self.layers.items(), parts, strict=True):
            layer.write_(part, stored[name])
        self.in_use = _logs(stored)

    def check_limits(self, logs: Logs) -> None:
        """Refuse strides that the limits of their layers do not allow.

        Args:
            logs: the logarithms of those of all layers.

        Raises:
            ValueError: some are.
        """
        for name, layer in self.layers.items():
            strides = as_stored(logs[name])
            if any(
                abs(allowed - stride) > ROUNDING * stride
                for allowed, stride in zip(_within_limits(layer, strides), strides, strict=True)
            ):
                raise ValueError(
                    f"the strides of {name!r} in the state are {strides}, outside of its limits "
                    f"{layer.limits}: give the layer the limits that it had"
                )

    def check_learn(self) -> None:
        """Refuse strides that were fixed after the budget was made.

        Raises:
            ValueError: some were.
        """
        fixed = [name for name, layer in self.layers.items() if not layer.strides.requires_grad]
        if fixed:
            raise ValueError(
                f"the strides of {', '.join(map(repr, fixed))} have requires_grad=False, but the "
                "budget was made to move them: fix them before CostBudget, or, to leave strides at "
                "which the budget starts, train without MeasuredStrides and attach"
            )

    def check_learn_alike(self) -> None:
        """Refuse some strides that were fixed, as the budget would move them for the others.

        Raises:
            ValueError: some were, and others not.
        """
        if any(layer.strides.requires_grad for layer in self.layers.values()):
            self.check_learn()

    def are_replaced(self) -> bool:
        """Whether the layers have other strides than those in use, as after a checkpoint.

        Nothing is read from an accelerator, unless strides have changed.
        """
        now = {  # of a shared stride once; a limit may have more digits than a parameter
            name: in_float32([*layer.stride_values()][: len(self.in_use[name])])
            for name, layer in self.layers.items()
        }
        return _logs(now) != self.in_use

    @property
    def have_gradients(self) -> bool:
        """Whether backward passes compute gradients of them."""
        return any(layer.has_stride_gradient for layer in self.layers.values())

    def compute_gradients(self, on: bool) -> None:
        """Whether backward passes compute gradients of them; without, they save time."""
        for layer in self.layers.values():
            layer.has_stride_gradient = on
            if not on:
                layer.strides.grad = None  # optimisers skip None


def _logs(strides: Mapping[str, list[float]]) -> Logs:
    return {name: [log(max(each, 1.0)) for each in values] for name, values in strides.items()}


def _within_limits(layer: DiffStride, strides: list[float]) -> list[float]:
    limits = layer.lower_limit_stride, layer.upper_limit_stride
    return in_float32(clamp_strides(strides, *limits))


def _without_learning_layers(layers: Mapping[str, Any]) -> str:
    fixed = [name for name, layer in layers.items() if getattr(layer, "cropping", False)]
    if fixed:
        return (
            f"no stride of the model learns: those of {', '.join(map(repr, fixed))} have "
            "requires_grad=False; set that of their strides, as in "
            f"model.get_submodule({fixed[0]!r}).strides.requires_grad_(True)"
        )
    return (
        "the model has no DiffStride layer whose strides learn and crop: call diffstride.convert "
        "first, or give its layers trainable=True and cropping=True"
    )


def _check_apart(layers: Mapping[str, DiffStride]) -> None:
    holders: dict[int, str] = {}
    for name, layer in layers.items():
        other = holders.setdefault(id(layer.strides), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} are two layers with one parameter for their strides, "
                "which a budget cannot move: use one layer for both"
            )
