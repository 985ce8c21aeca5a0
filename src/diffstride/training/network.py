"""The network of a run: built for its data, and the multiply-adds that it may have."""

from collections.abc import Callable
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
from diffstride.training.run_summary import measure_cost

STRIDED = "strided"
WHITENED = 2_048_000
"""Pixels that a whitening is taken from: 2,000 images of 32 x 32."""


def build_network(model: Callable[..., nn.Module], data: Datasets, seed: int) -> nn.Module:
    """What ``model`` builds for these data from a seed; a network is taken as it is.

    A `ConvNet` gets its whitening from the first training images.

    Raises:
        ValueError: its output has an activation, where the loss needs logits.
    """
    if isinstance(model, nn.Module):
        return model
    torch.manual_seed(seed)
    network = model(num_output_classes=data.num_classes, in_channels=data.image_shape[0])
    if getattr(network, "output_activation", identity) is not identity:
        raise ValueError(
            "the loss applies the softmax itself: leave output_activation of the network None"
        )
    if isinstance(network, ConvNet):
        network.whiten_(data.sample(max(1, WHITENED // prod(data.image_shape[1:]))))
    return network


def check_strides(network: nn.Module, **options: Any) -> None:
    """Refuse options that are set, by name, where there are no strides for them to act on.

    Raises:
        ValueError: one is set, and no layer of the network has strides that learn; or a budget, and
            they are those of the published layer, whose cost nobody can foresee.
    """
    layers = [each for each in stride_layers(network).values() if each.strides.requires_grad]  # pyright: ignore
    published = [each for each in layers if isinstance(each, reference.DiffStride)]
    for name, value in options.items():
        if value and (not layers or (name == "budget" and published)):
            found = "those of reference.DiffStride cannot keep" if layers else "the network has not"
            raise ValueError(
                f"{name}={value!r} needs strides that learn, which {found}: set its pooling to "
                "pooling.DiffStride with trainable=True, or leave the option out"
            )


def resolve_budget(
    budget: float | str, network: nn.Module, model: Callable[..., nn.Module], data: Datasets
) -> float:
    """The multiply-adds of one image that a budget stands for.

    Arguments:
        budget: up to 100 a fraction of the network's own, above that their number; `STRIDED` for
            those of the same network with strided convolutions.
        network: at the strides it starts from.
        model: what built it, called again with ``pooling_cls=None`` for `STRIDED`.
        data: whose images it is for.

    Raises:
        ValueError: not above 0, another word, or `STRIDED` of a model without ``pooling_cls``.
    """
    if isinstance(budget, (int, float)) and budget > 0:
        if budget > 100:
            return budget
        return budget * measure_cost(network, data.image_shape).multiply_adds
    if budget != STRIDED or isinstance(model, nn.Module):
        raise ValueError(
            "budget must be a number above 0, or 'strided' with a model that is built from "
            f"pooling_cls, but got {budget!r}"
        )
    try:
        strided = build_network(partial(model, pooling_cls=None), data, seed=0)
    except TypeError as error:
        raise ValueError(f"budget='strided' needs a model with pooling_cls: {error}") from error
    except ValueError as error:
        raise ValueError(
            "budget='strided' stands for the same network with strided convolutions, which cannot "
            f"be built ({error}): start from whole strides, or give a number"
        ) from error
    return measure_cost(strided, data.image_shape).multiply_adds


def count_parameters(network: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
