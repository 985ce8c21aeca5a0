"""Pooling layers as the ``aa_layer`` of timm's networks."""

import copyreg
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


class _AaLayerType(type):
    """The type of the classes: pickle cannot find them by name, since they are made at run time."""

    make: Callable[[], Any]


copyreg.pickle(_AaLayerType, lambda made: (made.make, ()))  # networks of timm store their arguments


def timm_aa_layer(pooling: type[nn.Module], **options: Any) -> type[nn.Module]:
    """A class for the argument ``aa_layer`` of timm's networks, which makes layers of ``pooling``.

    A network of timm with an ``aa_layer`` runs its strided modules at stride 1 and calls the layer
    after them. timm makes one by ``aa_layer(channels, stride)``. The class returns a layer of
    ``pooling`` itself, so that checkpoints, pickles and `convert` see nothing else. Where the
    network does not stride, as in dilated stages, it returns an ``nn.Identity``.

    The shortcuts of residual networks (ResNet, ResNeXt) keep strides of their own. Call
    `diffstride.convert` on such a network with `DiffStride` layers, which makes the shortcuts share
    them. Until then the network fails as soon as a map changes its size.

    Reference: timm, https://github.com/huggingface/pytorch-image-models.

    Args:
        pooling: a class whose constructor takes ``strides``: `DiffStride`, `FixedSpectralPooling`,
            `BlurPooling`, `MaxPooling`, `SpatialPooling`, or one of yours.
        options: further arguments of that class, for example ``upper_limit_stride=4.0``.

    Returns:
        The class.

    Raises:
        TypeError: if ``pooling`` is not a class, or its constructor does not take the arguments.
        ValueError: if it refuses their values at a stride of 2.

    >>> from diffstride import DiffStride
    >>> aa_layer = timm_aa_layer(DiffStride, upper_limit_stride=4.0)
    >>> aa_layer(channels=64, stride=2).stride_values()
    (2.0, 2.0)
    >>> aa_layer(channels=64, stride=1)
    Identity()
    """
    if not isinstance(pooling, type):
        raise TypeError(
            f"pooling must be a class, such as DiffStride, but got {pooling!r}; pass the arguments "
            "of its constructor to timm_aa_layer"
        )
    pooling(strides=2, **options)  # refused now: timm would retry with other arguments

    # A class, since timm asks whether it is a subclass of AvgPool2d.
    class AaLayer(nn.Module, metaclass=_AaLayerType):
        make = partial(timm_aa_layer, pooling, **options)

        def __new__(
            cls,
            channels: int | None = None,
            stride: int = 2,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
        ) -> Any:
            layer = pooling(strides=stride, **options) if stride > 1 else nn.Identity()
            return layer.to(device=device, dtype=dtype)

    return AaLayer
