"""Builds the network of a run, checks its strides and resolves its budget."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from diffstride import reference
from diffstride.convnet import ConvNet
from diffstride.resnet import identity
from diffstride.strides import stride_layers
from diffstride.training.data import Datasets
from diffstride.training.network_cost import measure_cost

STRIDED = "strided"
WHITENING_PIXELS = 2_048_000
"""Number of pixels that the whitening is computed from: 2,000 images of 32 x 32."""


def build_network(model: Callable[..., nn.Module], data: Datasets, seed: int) -> nn.Module:
    """Build the network with ``model`` from a seed; if ``model`` is a network, return it.

    The whitening of a `ConvNet` is computed from the first training images.

    Raises:
        ValueError: the network has an output activation, but the loss needs logits.
    """
    if isinstance(model, nn.Module):
        return model
    torch.manual_seed(seed)
    network = model(**model_arguments(data.num_classes, data.image_shape))
    if getattr(network, "output_activation", identity) is not identity:
        raise ValueError(
            f"the loss applies the softmax, but output_activation is "
            f"{network.output_activation!r}: set it to None"
        )
    if isinstance(network, ConvNet):
        network.whiten_(data.sample(max(1, WHITENING_PIXELS // prod(data.image_shape[1:]))))
    return network


def model_arguments(classes: int, image_shape: Sequence[int]) -> dict[str, int]:
    """The arguments that ``model`` gets for a number of classes and the shape of an example.

    >>> model_arguments(10, (3, 32, 32)), model_arguments(10, (1, 8000))["num_axes"]
    ({'num_output_classes': 10, 'in_channels': 3}, 1)
    """
    channels, *size = image_shape
    # Models of others need not know num_axes to train on images.
    axes = {"num_axes": len(size)} if len(size) != 2 else {}
    return {"num_output_classes": classes, "in_channels": channels, **axes}


def count_strides(network: nn.Module) -> int:
    """The number of strides that a budget can move: those of learning layers that crop."""
    layers: list[Any] = [*stride_layers(network).values()]
    return sum(len(each.strides) for each in layers if getattr(each, "learns_size", False))


def check_strides(network: nn.Module, **options: Any) -> None:
    """Refuse options for learnable strides if the network has none.

    Raises:
        ValueError: an option is set, but the network has no learnable strides; or a budget is set,
            but the layers are the published ones, whose cost is not known as a function of strides.
    """
    layers = [each for each in stride_layers(network).values() if each.strides.requires_grad]  # pyright: ignore
    published = [each for each in layers if isinstance(each, reference.DiffStride)]
    for name, value in options.items():
        if value and (not layers or (name == "budget" and published)):
            found = "only those of reference.DiffStride" if layers else "none"
            raise ValueError(
                f"{name}={value!r} needs learnable strides, but the network has {found}: set its "
                "pooling to pooling.DiffStride with trainable=True, or leave the option out"
            )


def resolve_budget(
    budget: float | str, network: nn.Module, model: Callable[..., nn.Module], data: Datasets
) -> float:
    """A budget as a number of multiply-adds per image.

    Args:
        budget: up to 100 a fraction of the network's multiply-adds, above 100 their number;
            `STRIDED` for those of the same network with strided convolutions.
        network: the network at its initial strides.
        model: built the network; called again with ``pooling_cls=None`` for `STRIDED`.
        data: data sets of the run.

    Raises:
        ValueError: the budget is not above 0 or another word, or the budget is `STRIDED` and the
            strided network cannot be built.
    """
    if isinstance(budget, (int, float)) and budget > 0:
        if budget > 100:
            return budget
        return budget * measure_cost(network, data.image_shape).multiply_adds
    if budget != STRIDED or isinstance(model, nn.Module):
        known = " ('before' is a word of CostBudget)" if budget == "before" else ""
        raise ValueError(
            "budget must be a number above 0, or 'strided' with a model that takes pooling_cls, "
            f"but got {budget!r}{known}"
        )
    try:
        strided = build_network(partial(model, pooling_cls=None), data, seed=0)
    except TypeError as error:
        raise ValueError(
            f"budget='strided' needs a model that takes pooling_cls ({error}): give a number"
        ) from error
    except ValueError as error:
        raise ValueError(
            "budget='strided' needs the same network with strided convolutions, which cannot be "
            f"built ({error}): start from whole strides, or give a number"
        ) from error
    return measure_cost(strided, data.image_shape).multiply_adds


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
