"""Freeze learned strides for deployment: constant matrices in place of pooling layers."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from diffstride._arguments import check_network
from diffstride.conversion.network_copies import Model, deep_copy, replace_modules
from diffstride.conversion.recipes import keep_in_config
from diffstride.graph.example_inputs import cast_to_weights
from diffstride.graph.fake_run import first_argument
from diffstride.graph.restoring import evaluating
from diffstride.pooling.base import SpectralPooling
from diffstride.pooling.frozen import FrozenPooling, is_frozen


@torch.inference_mode(mode=False)  # inference tensors could not be trained afterwards
def freeze(model: Model, example: Any, round_to: float | None = None) -> Model:
    """Replace the pooling layers of a network by constant matrices.

    The outputs stay the same for inputs of the example's size and any batch size; strides no longer
    learn. `torch.export`, ``torch.compile(fullgraph=True)`` and ``torch.onnx.export(dynamo=True)``
    accept the result. The given model is not changed.

    Args:
        model: a network with `DiffStride` (or `FixedSpectralPooling`) layers.
        example: an input, or several as for `convert`, of the size that will be used. It is cast
            to the dtype of the weights if they have a single one.
        round_to: round strides to 1 or a multiple of this number, in such a way that every map
            gets the nearest size: 1 for integer strides, 2 for even ones. This changes the
            outputs. By default strides stay as learned.

    Returns:
        A copy, in the mode of the model, with `FrozenPooling` layers.

    Raises:
        ValueError: if ``round_to`` is not positive or the model has no layer to freeze.

    >>> from diffstride import DiffStride
    >>> net = nn.Sequential(DiffStride(1.9), nn.Flatten(2))
    >>> freeze(net, torch.zeros(1, 1, 32, 32))
    Sequential(
      (0): FrozenPooling((32, 32) -> (17, 17))
      (1): Flatten(start_dim=2, end_dim=-1)
    )
    >>> freeze(net, torch.zeros(1, 1, 32, 32), round_to=1)[0]
    FrozenPooling((32, 32) -> (16, 16))
    """
    if round_to is not None and not round_to > 0:
        raise ValueError(f"round_to must be positive or None, but got {round_to!r}")
    check_network(model)
    root = nn.Sequential(deep_copy(model))  # so that a single layer has a parent, too
    frozen = {
        layer: FrozenPooling.of(layer, round_to).train(model.training)
        for layer in root.modules()
        if isinstance(layer, SpectralPooling)
    }
    if not frozen:
        raise ValueError(_why_not(model))
    replace_modules(root, frozen)
    with ExitStack() as hooks, torch.no_grad(), evaluating(root):
        for layer in frozen.values():
            hooks.callback(layer.register_forward_pre_hook(_add_size, with_kwargs=True).remove)
        root[0](*cast_to_weights(example, model))
    keep_in_config(root[0])
    return root[0]  # type: ignore[return-value]


def _why_not(model: nn.Module) -> str:
    """Why a network has nothing to freeze, and what to do."""
    if is_frozen(model):
        return (
            f"this {type(model).__name__} is frozen already: use it as it is, or freeze the "
            "network that it was made of again, for another size or round_to"
        )
    return (
        f"{type(model).__name__} has no pooling layer to freeze: pass a network that "
        "diffstride.convert returned, or one with DiffStride layers"
    )


def _add_size(layer: FrozenPooling, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = first_argument(args, kwargs)
    size = tuple(x.shape[2:])
    if size not in layer.plans:
        layer.add_size(size, x.dtype, x.device)
