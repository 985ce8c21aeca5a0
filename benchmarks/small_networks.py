"""Networks of torchvision and timm, narrow and with the stem for small images."""

from collections.abc import Callable
from typing import Any

from torch import nn

WIDTH_DIVISOR = 4


def resnet18(num_classes: int, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-18 with a quarter of its width, the first convolution of 3 x 3."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            if planes == 64:
                self.inplanes = planes // WIDTH_DIVISOR
            return super()._make_layer(block, planes // WIDTH_DIVISOR, *args, **kwargs)

    network = Narrow(BasicBlock, [2, 2, 2, 2], num_classes)
    width = 64 // WIDTH_DIVISOR
    network.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    network.fc = nn.Linear(8 * width, num_classes)
    return network


def resnet18_strided_stem(num_classes: int, in_channels: int = 3) -> nn.Module:
    """The same, whose first convolution strides by 2, as that for large images does."""
    network: Any = resnet18(num_classes, in_channels)
    network.conv1.stride = (2, 2)
    return network


def mobilenet_v2(num_classes: int, in_channels: int = 3) -> nn.Module:
    """torchvision's MobileNetV2 at half width and with 13 blocks, three of which stride."""
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(
        num_classes=num_classes,
        width_mult=0.5,
        dropout=0.0,
        # Expansion, channels, blocks and stride of each stage.
        inverted_residual_setting=[
            [1, 16, 1, 1],
            [6, 24, 2, 1],
            [6, 32, 3, 2],
            [6, 64, 2, 2],
            [6, 96, 2, 1],
            [6, 160, 2, 2],
            [6, 320, 1, 1],
        ],
    )
    old = network.features[0][0]  # type: ignore[index]
    network.features[0][0] = nn.Conv2d(in_channels, old.out_channels, 3, 1, 1, bias=False)  # type: ignore
    return network


def regnety_002(num_classes: int, in_channels: int = 3) -> nn.Module:
    """timm's RegNetY-200MF, the first convolution without a stride."""
    import timm

    network: Any = timm.create_model("regnety_002", num_classes=num_classes, in_chans=in_channels)
    network.stem.conv.stride = (1, 1)
    return network


def vgg11_bn(num_classes: int, in_channels: int = 3) -> nn.Module:
    """torchvision's VGG-11 with a quarter of its width and a head of one linear layer."""
    from torchvision.models.vgg import VGG, cfgs, make_layers

    widths = [each // WIDTH_DIVISOR if isinstance(each, int) else each for each in cfgs["A"]]
    features = make_layers(widths, batch_norm=True)
    features[0] = nn.Conv2d(in_channels, 64 // WIDTH_DIVISOR, 3, padding=1)
    network = VGG(features, num_classes)
    network.avgpool = nn.AdaptiveAvgPool2d(1)  # type: ignore[assignment]
    network.classifier = nn.Linear(512 // WIDTH_DIVISOR, num_classes)  # type: ignore[assignment]
    return network


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "torchvision resnet18": resnet18,
    "torchvision resnet18, strided stem": resnet18_strided_stem,
    "timm regnety_002": regnety_002,
    "torchvision mobilenet_v2": mobilenet_v2,
    "torchvision vgg11_bn": vgg11_bn,
}
