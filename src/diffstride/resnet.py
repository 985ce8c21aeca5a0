"""The pre-activation networks of the published system, with any pooling layer."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._arguments import as_strides, as_whole_numbers, check_counts
from diffstride._wording import counted

Stride = float | Sequence[float]
Activation = Callable[[Tensor], Tensor]
PoolingFactory = Callable[..., nn.Module]
ORDERS = ("after", "before")  # of convolution and pooling


def identity(x: Tensor) -> Tensor:
    return x


# Functions and not modules: all networks would share a module, and its mode.
ACTIVATIONS: dict[Any, Activation] = {None: identity, "softmax": partial(torch.softmax, dim=-1)}


def he_normal_(weight: Tensor) -> Tensor:
    """Fill a kernel as ``he_normal`` in Keras: a truncated normal with variance ``2 / fan_in``."""
    # The cut at two sigma shrinks the standard deviation by 0.8796.
    sigma = (2.0 / weight[0].numel()) ** 0.5 / 0.87962566
    return nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # by their number of axes
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def batch_norm(
    channels: int, momentum: float = 0.9, epsilon: float = 1e-5, num_axes: int = 2
) -> nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d:
    """Batch norm as published; ``momentum`` is the weight of the old statistics.

    >>> batch_norm(4, momentum=0.75).momentum
    0.25
    """
    return NORMS[num_axes - 1](channels, eps=epsilon, momentum=1.0 - momentum)


def _conv(
    in_channels: int, filters: int, kernel_size: int, strides: Stride = 1, num_axes: int = 2
) -> nn.Module:
    check_counts(in_channels=in_channels, filters=filters, kernel_size=kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, to keep a map's size, but got {kernel_size}")
    # Centred windows, so that the 3 x 3 and the 1 x 1 sample the same pixels. TensorFlow's "same"
    # pads an even map after its end only, and also gives the size ceil(N / s).
    whole = whole_strides(strides, num_axes)
    convolution = CONVOLUTIONS[num_axes - 1]
    conv = convolution(in_channels, filters, kernel_size, whole, kernel_size // 2, bias=False)  # pyright: ignore[reportArgumentType]
    he_normal_(conv.weight)
    return conv


def whole_strides(strides: Stride, num_axes: int = 2) -> tuple[int, ...]:
    """The stride of a convolution along each axis."""
    return as_whole_numbers(_each_axis(strides, num_axes), "strides of a convolution")


def _each_axis(strides: Stride, num_axes: int) -> tuple[float, ...]:
    """The stride of each axis, from one for all or from one for each."""
    each = as_strides(strides)
    if isinstance(strides, Real):
        each = each[:1] * num_axes
    if len(each) != num_axes:
        expected = "one number or (height, width)" if num_axes == 2 else f"{num_axes} numbers"
        expected = "one number" if num_axes == 1 else expected
        raise ValueError(f"a stride must be {expected}, but got {strides!r}")
    return each


def downsampling(
    strides: Stride, pooling_cls: PoolingFactory | None, num_axes: int = 2
) -> tuple[Stride, nn.Module]:
    """The stride of the convolutions, and the pooling layer."""
    each = _each_axis(strides, num_axes)
    return (each, nn.Identity()) if pooling_cls is None else (1, pooling_cls(strides=each))


def check_num_axes(num_axes: Any) -> None:
    """Refuse numbers of spatial axes that no convolution has."""
    if num_axes not in (1, 2, 3):
        raise ValueError(f"num_axes must be 1, 2 or 3, but got {num_axes!r}")


def check_block(num_layers: int = 1, order: str = "after") -> None:
    """Refuse a block without layers, or with an unknown order of pooling and convolution."""
    check_counts(num_layers=num_layers)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, but got {order!r}")


def parse_strides(strides: str | Sequence[Stride], filters: Sequence[int]) -> Sequence[Stride]:
    """The strides of a network's stages, one for each of ``filters``, also from a string.

    >>> parse_strides("1, 2, 1.5", filters=[8, 8, 16])
    [1.0, 2.0, 1.5]
    """
    if isinstance(strides, str):
        try:
            strides = [float(number) for number in strides.split(",")]
        except ValueError:
            raise ValueError(
                "strides must be numbers, as [1, 1, 2, 2, 2] or as '1, 1, 2, 2, 2', "
                f"but got {strides!r}"
            ) from None
    if not len(filters) == len(strides) > 0:
        raise ValueError(
            "filters and strides must have the same length above 0, but got "
            f"{list(filters)} and {list(strides)}"
        )
    return strides


class ResidualLayer(nn.Module):
    """Two convolutions, each after batch norm and ReLU, and a shortcut around them.

    ``y = conv(relu(norm(pool(conv(relu(norm(x))))))) + project(pool(x))``, where one pooling layer
    serves both branches. Without projection the layer does not shrink the map, and its shortcut is
    the identity. The published layer pools after its 1 x 1 projection: the result is the same, at a
    higher cost.

    Args:
        in_channels: channels of the input; equal to ``filters`` unless ``project``.
        filters: channels of the output.
        kernel_size: size of the two convolutions, odd.
        strides: one number or (height, width), at least 1; whole without ``pooling_cls``.
            Ignored unless ``project``.
        pooling_cls: builds the pooling layer as ``pooling_cls(strides=(s, s))``. With None the
            first convolution and the projection are strided instead, to ``ceil(N / s)`` samples.
        project: whether the shortcut has a 1 x 1 convolution, and the layer may pool.
        order: ``"after"`` pools the output of the first convolution (published); ``"before"``
            pools the layer's input, which makes all convolutions cheaper.
        num_axes: 1 for sequences, 2 for images, 3 for volumes.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, filters, H', W')``, or with another number of axes.

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
        num_axes: int = 2,
    ) -> None:
        super().__init__()
        check_block(order=order)
        check_num_axes(num_axes)
        if not project and in_channels != filters:
            raise ValueError(
                f"a layer without projection cannot turn {counted(in_channels, 'channel')} into "
                f"{filters}; set project=True"
            )
        self.order = order
        if not project:
            strides, pooling_cls = 1, None
        strides, self.pooling = downsampling(strides, pooling_cls, num_axes)
        norm, conv = partial(batch_norm, num_axes=num_axes), partial(_conv, num_axes=num_axes)
        self.first_norm = norm(in_channels)
        self.first_conv = conv(in_channels, filters, kernel_size, strides)
        self.second_norm = norm(filters)
        self.second_conv = conv(filters, filters, kernel_size)
        # Subsampled before a convolution of stride 1. For few channels-last channels
        # oneDNN corrupts memory in the gradient of a strided 1 x 1 convolution
        # (https://github.com/uxlfoundation/oneDNN/issues/6035).
        whole, average = whole_strides(strides, num_axes), AVERAGES[num_axes - 1]
        self.subsampling = average(1, whole) if max(whole) > 1 else nn.Identity()  # pyright: ignore[reportArgumentType]
        self.shortcut = conv(in_channels, filters, 1) if project else nn.Identity()

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

    ``num_layers`` (at least 1) layers of ``filters`` channels. If ``project_first``, the first
    projects and has the block's ``strides``. ``kwargs`` go to every `ResidualLayer`.

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
        check_block(num_layers)
        first = {"strides": strides, "project": project_first}
        super().__init__(
            ResidualLayer(in_channels, filters, **first, **kwargs),
            *(ResidualLayer(filters, filters, **kwargs) for _ in range(num_layers - 1)),
        )


class Resnet(nn.Module):
    """Pre-activation residual network: convolution, blocks, global average, dense layer.

    ``y = activation(dense(mean(relu(norm(blocks(pool(conv(x))))))))``

    Reference: *Identity Mappings in Deep Residual Networks*, 2016,
    https://arxiv.org/abs/1603.05027.

    Args:
        filters: channels of the first convolution, then of each block.
        strides: stride of each of these, one number or one for each axis, at least 1; or a
            string of numbers such as ``"1, 1, 2, 2, 2"``.
        num_output_classes: number of outputs.
        output_activation: None, ``"softmax"`` or a callable on the outputs.
        id_only: indices, from 0, of blocks that neither project nor pool.
        pooling_cls, num_layers, kernel_size, order: as for `ResnetBlock` and `ResidualLayer`.
        weight_decay: for `parameter_groups`; kept as an attribute.
        in_channels: channels of the images.
        pool_stem: whether a pooling layer follows the first convolution (published); if not, the
            convolution is strided.
        stem_kernel_size: size of the first convolution, odd.
        num_axes: 1 for sequences such as sounds, 2 for images, 3 for volumes.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, num_output_classes)``, or with another number of axes.

    Raises:
        ValueError: if ``filters`` and ``strides`` differ in length, or an argument is out of range.

    >>> network = Resnet([8, 16], [1, 2], num_output_classes=5, in_channels=1)
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    >>> of_sounds = Resnet([8, 16], [4, 2], num_output_classes=5, in_channels=1, num_axes=1)
    >>> of_sounds(torch.zeros(2, 1, 8000)).shape
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
        stem_kernel_size: int = 3,
        num_axes: int = 2,
    ) -> None:
        super().__init__()
        check_num_axes(num_axes)
        strides = parse_strides(strides, filters)
        activation = ACTIVATIONS.get(output_activation, output_activation)
        if not callable(activation):
            known = "None, 'softmax' or a callable"
            raise ValueError(f"output_activation must be {known}, but got {output_activation!r}")
        self.weight_decay = weight_decay
        stride, pooling = downsampling(strides[0], pooling_cls if pool_stem else None, num_axes)
        conv = _conv(in_channels, filters[0], stem_kernel_size, stride, num_axes)
        self.stem = nn.Sequential(OrderedDict(conv=conv, pooling=pooling))
        options = {"kernel_size": kernel_size, "pooling_cls": pooling_cls, "order": order}
        options["num_axes"] = num_axes
        self.blocks = nn.Sequential()
        for index, channels in enumerate(pairwise(filters)):
            project = index not in id_only
            block = ResnetBlock(*channels, strides[index + 1], num_layers, project, **options)
            self.blocks.append(block)
        self.norm = batch_norm(filters[-1], num_axes=num_axes)
        self.dense = nn.Linear(filters[-1], num_output_classes)
        he_normal_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        self.output_activation = activation
        self.spatial_dims = tuple(range(-num_axes, 0))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.blocks(self.stem(x))))
        return self.output_activation(self.dense(features.mean(dim=self.spatial_dims)))


def resnet18(
    strides: str | Sequence[Stride] | None = None, width: int = 64, **kwargs: Any
) -> Resnet:
    """ResNet-18 of the published system: 5 strides, by default 1, 1, 2, 2, 2.

    Filters are ``width`` times 1, 1, 2, 4, 8, two layers a block. The first block does not project
    and ignores its stride. ``kwargs`` go to `Resnet`.

    >>> sum(parameter.numel() for parameter in resnet18(num_output_classes=10).parameters())
    11172170
    """
    check_counts(width=width)
    strides = (1, 1, 2, 2, 2) if strides is None else strides
    filters = [width, width, 2 * width, 4 * width, 8 * width]
    return Resnet(filters, strides, id_only=(0,), num_layers=2, **kwargs)


def resnet56(
    strides: str | Sequence[Stride] | None = None, width: int = 16, **kwargs: Any
) -> Resnet:
    """ResNet-56 of the published system: 4 strides, by default 1, 1, 2, 2.

    Filters are ``width`` times 1, 1, 2, 4, nine layers a block. ``kwargs`` go to `Resnet`.

    >>> sum(parameter.numel() for parameter in resnet56(num_output_classes=10).parameters())
    855834
    """
    check_counts(width=width)
    strides = (1, 1, 2, 2) if strides is None else strides
    filters = [width, width, 2 * width, 4 * width]
    return Resnet(filters, strides, num_layers=9, **kwargs)
