"""Networks that conversion is tested on, the test of one, and parts of small networks."""

import torch
from torch import Tensor, nn

from benchmarks.network_checks import counted as counted
from benchmarks.network_checks import move_strides, outputs_of, step
from benchmarks.network_checks import operation_counter as operation_counter
from benchmarks.sweep_networks import Net as Net
from diffstride._named_networks import build_network
from diffstride.conversion.converter import convert

# Networks with most kinds of strided modules, which take little time.
QUICK = (
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "timm/resnet18d",
)
THOROUGH = (
    "timm/ghostnet_050",
    "timm/repvgg_a0",
    "timm/tf_efficientnet_lite0",
    "torchvision/alexnet",
    "torchvision/googlenet",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
    "torchvision/efficientnet_v2_s",
    "torchvision/inception_v3",
    "torchvision/mnasnet0_5",
    "torchvision/mobilenet_v2",
    "torchvision/regnet_x_400mf",
    "torchvision/regnet_y_400mf",
    "torchvision/resnet50",
    "torchvision/resnext50_32x4d",
    "torchvision/squeezenet1_1",
    "torchvision/vgg11",
    "torchvision/vgg11_bn",
    "torchvision/wide_resnet50_2",
    "torchvision/convnext_tiny",
    "torchvision/fcn_resnet50",
    "torchvision/deeplabv3_mobilenet_v3_large",
    "torchvision/r3d_18",
    "timm/convnext_atto",
    "timm/cspdarknet53",
    "timm/cspresnet50",
    "timm/densenet121",
    "timm/dla34",
    "timm/dm_nfnet_f0",
    "timm/dpn68",
    "timm/efficientvit_b0",
    "timm/ese_vovnet19b_dw",
    "timm/fastvit_t8",
    "timm/gernet_s",
    "timm/hgnetv2_b0",
    "timm/hrnet_w18_small",
    "timm/inception_resnet_v2",
    "timm/inception_v4",
    "timm/mixnet_s",
    "timm/mobileone_s0",
    "timm/mobilevit_xxs",
    "timm/nf_resnet50",
    "timm/poolformer_s12",
    "timm/regnety_002",
    "timm/res2net50_14w_8s",
    "timm/resnest14d",
    "timm/resnetblur50",
    "timm/resnetv2_50",
    "timm/rexnet_100",
    "timm/seresnet50",
    "timm/skresnet18",
    "timm/xception41",
)
SIZES = {
    "torchvision/inception_v3": 299,
    "torchvision/alexnet": 96,
    "timm/inception_v4": 128,
    "timm/inception_resnet_v2": 128,
}
PATCHIFYING = ("convnext", "poolformer")


IMAGE = (2, 3, 32, 32)


class Block(nn.Module):
    """A stem and a residual block with a strided shortcut, named as in most libraries."""

    def __init__(self, shortcut: nn.Module | None = None, body: nn.Module | None = None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv = body or nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.shortcut = shortcut or nn.Conv2d(8, 8, 1, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        return self.head((self.conv(x) + self.shortcut(x)).mean((2, 3)))


class Several(nn.Module):
    """One pooling module called on two sizes of maps."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(self.pool(x))


def strided(kernel_size=3, stride=2, channels=4, in_channels=4):
    """A padded convolution."""
    return nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2)


def example(name: str, size: int | None = None) -> Tensor:
    """A small batch of inputs for a network."""
    size = size or SIZES.get(name, 64)
    return torch.rand(2, 3, 8, size, size) if "r3d" in name else torch.rand(2, 3, size, size)


def check(name: str) -> None:
    """Convert a network, train a step, change its strides, train a step, and convert again."""
    torch.manual_seed(0)
    model, x = build_network(name), example(name)
    patchify = any(kind in name for kind in PATCHIFYING)
    converted = convert(model, x, patchify=patchify)
    loaded = converted.load_state_dict(model.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all(key.endswith(".pooling.strides") for key in loaded.missing_keys)
    strided, pooled = outputs_of(model.eval()(x)), outputs_of(converted.eval()(x))
    assert [a.shape for a in strided] == [b.shape for b in pooled]
    converted.train()
    step(converted, x)
    move_strides(converted)
    step(converted, x)
    again = convert(converted, x, patchify=patchify)
    assert list(again.state_dict()) == list(converted.state_dict())
    assert [type(m) for m in again.modules()] == [type(m) for m in converted.modules()]
