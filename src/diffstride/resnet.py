"""The pre-activation networks of the published system, with any pooling for integer strides."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._arguments import as_strides

Stride = float | Sequence[float]
Activation = Callable[[Tensor], Tensor]
PoolingFactory = Callable[..., nn.Module]

ORDERS = ("after", "before")


def identity(x: Tensor) -> Tensor:
    return x


# Functions and not modules: a module here would be a part of every network, and share its mode.
ACTIVATIONS: dict[Any, Activation] = {
    None: identity,
    "softmax": partial(torch.softmax, dim=-1),
}


def he_normal_(weight: Tensor) -> Tensor:
    """Fill a kernel with a normal truncated at two sigma, standard deviation sqrt(2 / fan_in).

    As ``he_normal`` does in Keras: the normal is widened by 1 / 0.8796, what the cut takes off.
    """
    sigma = (2.0 / weight[0].numel()) ** 0.5 / 0.87962566
    return nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma)


def batch_norm(channels: int, momentum: float = 0.9, epsilon: float = 1e-5) -> nn.BatchNorm2d:
    """Batch norm as published; ``momentum`` is the share of the old statistics that is kept.

    >>> batch_norm(4, momentum=0.75).momentum
    0.25
    """
    return nn.BatchNorm2d(channels, eps=epsilon, momentum=1.0 - momentum)


def _conv2d(in_channels: int, filters: int, kernel_size: int, strides: Stride = 1) -> nn.Conv2d:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, to keep a map's size, but got {kernel_size}")
    height, width = as_strides(strides)
    if height % 1 or width % 1:
        raise ValueError(
            f"a strided convolution needs whole strides, but got {strides!r}; for fractional ones "
            "set pooling_cls, for example to DiffStride"
        )
    # Centred windows, so that the 3 x 3 and the 1 x 1 sample the same pixels. TensorFlow's "same"
    # pads an even map after its end only; the size, ceil(N / s), is equal.
    padding, stride = kernel_size // 2, (int(height), int(width))
    conv = nn.Conv2d(in_channels, filters, kernel_size, stride, padding, bias=False)
    he_normal_(conv.weight)
    return conv


def downsampling(strides: Stride, pooling_cls: PoolingFactory | None) -> tuple[Stride, nn.Module]:
    """The stride that is left to the convolutions, and the module that pools."""
    pair = as_strides(strides)
    if len(pair) != 2:
        raise ValueError(f"a stride must be one number or (height, width), but got {strides!r}")
    return (pair, nn.Identity()) if pooling_cls is None else (1, pooling_cls(strides=pair))


def check_order(order: str | None) -> None:
    """Refuse what is no place for a pooling layer."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, but got {order!r}")


def check_num_layers(num_layers: int) -> None:
    """Refuse a block without layers."""
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, but got {num_layers}")


def parse_strides(strides: str | Sequence[Stride]) -> Sequence[Stride]:
    """The strides of a network's stages, also from a string, as published Gin files write them.

    >>> parse_strides("1, 1, 2, 1.5")
    [1.0, 1.0, 2.0, 1.5]
    """
    if not isinstance(strides, str):
        return strides
    try:
        return [float(number) for number in strides.split(",")]
    except ValueError:
        raise ValueError(
            "strides must be numbers, as [1, 1, 2, 2, 2] or as '1, 1, 2, 2, 2', "
            f"but got {strides!r}"
        ) from None


def check_filters(filters: Sequence[int], strides: Sequence[Stride]) -> None:
    """Refuse a network whose stages have not one number of channels and one stride each."""
    if not len(filters) == len(strides) > 0:
        raise ValueError(
            f"filters and strides must be equally many, but got {list(filters)} and {list(strides)}"
        )


class ResidualLayer(nn.Module):
    """Two convolutions, each after batch norm and ReLU, and a shortcut around them.

    ``y = conv(relu(norm(pool(conv(relu(norm(x))))))) + project(pool(x))``, where one pooling layer
    serves both branches. A layer that does not project neither pools nor strides, and its shortcut
    is the identity. The published layer pools after its 1 x 1 projection; without a bias the two
    commute, and pooling first costs a fraction.

    Args:
        in_channels: channels of the input; equal to ``filters`` unless ``project``.
        filters: channels of the output.
        kernel_size: size of the two convolutions, odd.
        strides: one number or (height, width), at least 1; whole without ``pooling_cls``.
            Ignored unless ``project``.
        pooling_cls: builds the pooling layer as ``pooling_cls(strides=(s, s))``. With None the
            first convolution and the projection are strided instead, with ``kernel_size // 2``
            zeros on every side of the map and an output of ``ceil(N / s)``.
        project: whether the shortcut has a 1 x 1 convolution, and the layer may pool.
        order: ``"after"`` pools the output of the first convolution (published); ``"before"``
            pools the layer's input once, for both branches, so that all convolutions are cheap.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, filters, H', W')``.

    Raises:
        ValueError: if an argument is out of its range, or the shortcut would change the channels.

    >>> ResidualLayer(3, 8, strides=2, project=True)(torch.zeros(1, 3, 9, 9)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        kernel_size: int = 3,
        strides: Stride = 1,
        pooling_cls: PoolingFactory | None = None,
        project: bool = False,
        order: str = "after",
    ) -> None:
        super().__init__()
        check_order(order)
        if not project and in_channels != filters:
            raise ValueError(
                f"a layer without projection cannot turn {in_channels} channels into {filters}; "
                "set project=True"
            )
        self.order = order
        if not project:
            strides, pooling_cls = 1, None
        strides, self.pooling = downsampling(strides, pooling_cls)
        self.first_norm = batch_norm(in_channels)
        self.first_conv = _conv2d(in_channels, filters, kernel_size, strides)
        self.second_norm = batch_norm(filters)
        self.second_conv = _conv2d(filters, filters, kernel_size)
        # A strided 1 x 1 convolution, as a choice of pixels and a convolution of stride 1: oneDNN
        # corrupts memory in the gradient of the former for few channels-last channels
        # (https://github.com/uxlfoundation/oneDNN/issues/6035).
        height, width = map(int, as_strides(strides))
        strided = max(height, width) > 1
        self.subsampling = nn.AvgPool2d(1, (height, width)) if strided else nn.Identity()
        self.shortcut = _conv2d(in_channels, filters, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooling(x)
        if self.order == "before":
            y = self.first_conv(torch.relu(self.first_norm(pooled)))
        else:
            y = self.pooling(self.first_conv(torch.relu(self.first_norm(x))))
        shortcut = self.shortcut(self.subsampling(pooled))
        return self.second_conv(torch.relu(self.second_norm(y))) + shortcut

    def extra_repr(self) -> str:
        return f"order={self.order!r}"


class ResnetBlock(nn.Sequential):
    """Residual layers of equal width, of which only the first may project and pool.

    ``num_layers`` (at least 1) layers of ``filters`` channels; the first projects if
    ``project_first``, and then has the block's ``strides``. ``kwargs`` go to every `ResidualLayer`.

    >>> [layer.first_conv.stride for layer in ResnetBlock(4, 8, strides=2)]
    [(2, 2), (1, 1)]
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        strides: Stride,
        num_layers: int = 2,
        project_first: bool = True,
        **kwargs: Any,
    ) -> None:
        check_num_layers(num_layers)
        first = {"strides": strides, "project": project_first}
        super().__init__(
            ResidualLayer(in_channels, filters, **first, **kwargs),
            *(ResidualLayer(filters, filters, **kwargs) for _ in range(num_layers - 1)),
        )


class Resnet(nn.Module):
    """Pre-activation residual network: convolution, blocks, global average, dense layer.

    ``y = activation(dense(mean(relu(norm(blocks(pool(conv(x))))))))``; every block but those in
    ``id_only`` projects in its first layer, and pools there by its stride.

    Reference: He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, 2016,
    https://arxiv.org/abs/1603.05027.

    Args:
        filters: channels of the first convolution, then of each block.
        strides: strides of the same, each one number or (height, width), at least 1; or a string
            of numbers such as ``"1, 1, 2, 2, 2"``.
        num_output_classes: number of outputs.
        output_activation: None, ``"softmax"`` or a callable on the outputs.
        id_only: indices of the blocks, from 0, that do not project.
        pooling_cls: builds the pooling layers as ``pooling_cls(strides=(s, s))``. None strides the
            convolutions instead.
        pool_stem: whether the first convolution is followed by a pooling layer (published); if not,
            it is strided itself.
        weight_decay: for `parameter_groups`; kept as an attribute.
        num_layers, kernel_size, order: as for `ResnetBlock` and `ResidualLayer`.
        in_channels: channels of the images.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, num_output_classes)``.

    Raises:
        ValueError: if ``filters`` and ``strides`` differ in length, or an argument is out of
            its range.

    >>> network = Resnet([8, 16], [1, 2], num_output_classes=5, in_channels=1)
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        filters: Sequence[int],
        strides: str | Sequence[Stride],
        num_output_classes: int,
        output_activation: str | Activation | None = None,
        id_only: Sequence[int] = (),
        pooling_cls: PoolingFactory | None = None,
        weight_decay: float = 5e-4,
        num_layers: int = 2,
        kernel_size: int = 3,
        in_channels: int = 3,
        order: str = "after",
        pool_stem: bool = True,
    ) -> None:
        super().__init__()
        strides = parse_strides(strides)
        check_filters(filters, strides)
        activation = ACTIVATIONS.get(output_activation, output_activation)
        if not callable(activation):
            raise ValueError(
                "output_activation must be None, 'softmax' or a callable, "
                f"but got {output_activation!r}"
            )
        self.weight_decay = weight_decay
        stride, pooling = downsampling(strides[0], pooling_cls if pool_stem else None)
        conv = _conv2d(in_channels, filters[0], 3, stride)
        self.stem = nn.Sequential(OrderedDict(conv=conv, pooling=pooling))
        block = partial(
            ResnetBlock,
            num_layers=num_layers,
            kernel_size=kernel_size,
            pooling_cls=pooling_cls,
            order=order,
        )
        self.blocks = nn.Sequential(
            *(
                block(*channels, strides[index + 1], project_first=index not in id_only)
                for index, channels in enumerate(pairwise(filters))
            )
        )
        self.norm = batch_norm(filters[-1])
        self.dense = nn.Linear(filters[-1], num_output_classes)
        he_normal_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        self.output_activation = activation

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.blocks(self.stem(x))))
        return self.output_activation(self.dense(features.mean(dim=(-2, -1))))


def resnet18(
    strides: str | Sequence[Stride] | None = None, width: int = 64, **kwargs: Any
) -> Resnet:
    """ResNet-18 of the published system: 5 strides, by default 1, 1, 2, 2, 2.

    Filters are ``width`` times 1, 1, 2, 4, 8, two layers a block; the first block has no
    projection, hence no use for its stride. ``kwargs`` go to `Resnet`.

    >>> sum(parameter.numel() for parameter in resnet18(num_output_classes=10).parameters())
    11172170
    """
    strides = (1, 1, 2, 2, 2) if strides is None else strides
    filters = [width, width, 2 * width, 4 * width, 8 * width]
    return Resnet(filters, strides, id_only=(0,), num_layers=2, kernel_size=3, **kwargs)


def resnet56(
    strides: str | Sequence[Stride] | None = None, width: int = 16, **kwargs: Any
) -> Resnet:
    """ResNet-56 of the published system: 4 strides, by default 1, 1, 2, 2.

    Filters are ``width`` times 1, 1, 2, 4, nine layers a block. ``kwargs`` go to `Resnet`.

    >>> sum(parameter.numel() for parameter in resnet56(num_output_classes=10).parameters())
    855834
    """
    strides = (1, 1, 2, 2) if strides is None else strides
    filters = [width, width, 2 * width, 4 * width]
    return Resnet(filters, strides, num_layers=9, kernel_size=3, **kwargs)
