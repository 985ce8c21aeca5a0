"""Counts the multiply-adds and map sizes of a network at its current strides."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._torch_compat import OperationCounter
from diffstride.graph.restoring import evaluating
from diffstride.pooling.base import SpectralPooling
from diffstride.strides import AXIS_SUFFIXES, stride_layers


@dataclass(frozen=True)
class NetworkCost:
    """Multiply-adds of one image, and the map sizes of each layer with learnable strides.

    Args:
        multiply_adds: their number.
        map_sizes: the size of the output.
        input_sizes: the size of the input; empty if it has several.
    """

    multiply_adds: int
    map_sizes: dict[str, tuple[int, ...]]
    input_sizes: dict[str, tuple[int, ...]]

    def scalars(self) -> dict[str, float]:
        """The same as named numbers for a logger."""
        maps = {
            f"map/{name}{axis}": size
            for name, sizes in self.map_sizes.items()
            for axis, size in zip(AXIS_SUFFIXES[len(sizes)], sizes, strict=True)
        }
        return {"multiply_adds": self.multiply_adds, **maps}


@torch.no_grad()
def measure_cost(network: nn.Module, image_shape: tuple[int, ...]) -> NetworkCost:
    """Count multiply-adds and map sizes with one blank image.

    Matrix products, convolutions and what is made of them count, and pooling layers as for a
    budget, by `diffstride.MultiplyAdds`. The FFTs of `diffstride.reference` do not. The network
    runs in evaluation mode.

    >>> measure_cost(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32)).multiply_adds
    221184
    """
    image = next(network.parameters()).new_zeros(1, *image_shape)
    sizes: dict[str, tuple[int, ...]] = {}
    given: dict[str, tuple[int, ...]] = {}

    def note_size(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        sizes[name] = tuple(output.shape[2:])
        size = tuple(inputs[0].shape[2:])
        given[name] = size if given.get(name, size) == size else ()

    with ExitStack() as hooks, evaluating(network):
        for name, layer in stride_layers(network).items():
            hooks.callback(layer.register_forward_hook(partial(note_size, name)).remove)
        network(image)  # builds the pooling matrices, which are cached: not part of the cost
        with OperationCounter() as counter, _pooling_planned(network, counter.multiply_adds):
            network(image)
    return NetworkCost(round(sum(counter.multiply_adds)), sizes, given)


@contextmanager
def _pooling_planned(network: nn.Module, counts: list[Any]) -> Iterator[None]:
    """Count what each pooling layer plans: of its operations, transforms would count nothing."""
    before: list[int] = []

    def begin(layer: SpectralPooling, inputs: Any) -> None:
        before.append(len(counts))

    def end(layer: SpectralPooling, inputs: Any, output: Tensor) -> None:
        (samples, channels, *sizes), outputs = inputs[0].shape, output.shape[2:]
        of_channel = layer.multiply_adds(layer.plan(sizes), sizes, outputs)
        counts[before.pop() :] = [samples * channels * of_channel]

    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, SpectralPooling):
                hooks.callback(layer.register_forward_pre_hook(begin).remove)
                hooks.callback(layer.register_forward_hook(end).remove)
        yield
