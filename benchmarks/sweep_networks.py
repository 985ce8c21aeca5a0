"""Small networks of many kinds, as users write them by hand, for `benchmarks.sweep`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Shape = tuple[int, ...]
BATCH = 2
# How to build each kind, and the shape of a sample of each of its inputs.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[Shape, ...]]] = {}


class Net(nn.Module):
    """A network of these modules whose ``forward`` is a function of itself and the input."""

    def __init__(self, forward: Callable[[Any, Any], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def kind(*shapes: Shape) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a function that builds a network under its name, with the shapes of its inputs."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        KINDS[build.__name__] = build, shapes
        return build

    return register


def conv(
    inputs: int, outputs: int, stride: int | tuple[int, int] = 1, kernel: int = 3, **options: Any
) -> nn.Module:
    """A padded convolution, batch norm and ReLU."""
    padding = options.pop("padding", kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def head(channels: int, classes: int = 10) -> nn.Module:
    """Average over the map, and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# Classifiers with a head of fixed size


@kind((1, 28, 28))
def lenet() -> nn.Module:
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)]
    features += [nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 10))


@kind((3, 32, 32))
def cifar_vgg_fixed_head() -> nn.Module:
    stages = [nn.Sequential(conv(a, b), nn.MaxPool2d(2)) for a, b in ((3, 16), (16, 32), (32, 64))]
    return nn.Sequential(
        *stages, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10)
    )


@kind((3, 32, 32))
def flatten_by_view() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.pool(F.relu(m.b(m.pool(F.relu(m.a(x))))))
        return m.head(x.view(x.size(0), -1))

    a, b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    return Net(forward, a=a, b=b, pool=nn.MaxPool2d(2), head=nn.Linear(16 * 64, 10))


@kind((4, 84, 84))
def nature_dqn() -> nn.Module:
    features = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()]
    features += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()]
    return nn.Sequential(*features, nn.Linear(512, 6))


@kind((1, 32, 128))
def eegnet() -> nn.Module:
    layers = [nn.Conv2d(1, 8, (1, 64), padding="same", bias=False), nn.BatchNorm2d(8)]
    layers += [nn.Conv2d(8, 16, (32, 1), groups=8), nn.BatchNorm2d(16), nn.ELU()]
    layers += [nn.AvgPool2d((1, 4)), nn.Conv2d(16, 16, (1, 16), padding="same", groups=16)]
    layers += [nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ELU(), nn.AvgPool2d((1, 8))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 4))


# Blocks of classifiers


class Residual(nn.Module):
    """A basic block; the shortcut strides by a convolution of one sample."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride), conv(outputs, outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def residual_stages() -> list[nn.Module]:
    return [conv(3, 16), Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]


@kind((3, 32, 32))
def resnet_blocks() -> nn.Module:
    return nn.Sequential(*residual_stages(), head(64))


@kind((3, 32, 32))
def resnet_fixed_pool() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.avg_pool2d(m.features(x), 8).flatten(1))

    return Net(forward, features=nn.Sequential(*residual_stages()), head=nn.Linear(64, 10))


@kind((3, 32, 32))
def resnet_pool_of_map_size() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.features(x)
        return m.head(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))

    return Net(forward, features=nn.Sequential(*residual_stages()), head=nn.Linear(64, 10))


@kind((3, 32, 32))
def resnet_option_a() -> nn.Module:
    """The shortcut of He et al. for CIFAR: a slice with steps, and channels of zeros."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(m.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))

    return Net(forward, stem=conv(3, 16), body=conv(16, 32, 2), head=head(32))


@kind((3, 32, 32))
def densenet_blocks() -> nn.Module:
    def dense(m: Any, x: Tensor) -> Tensor:
        for layer in m.children():
            x = torch.cat([x, layer(x)], 1)
        return x

    blocks = [Net(dense, a=conv(c, 8), b=conv(c + 8, 8)) for c in (16, 16)]
    transition = nn.Sequential(nn.Conv2d(32, 16, 1), nn.AvgPool2d(2))
    return nn.Sequential(conv(3, 16, 2), blocks[0], transition, blocks[1], head(32))


@kind((3, 64, 64))
def inception_blocks() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in m.children()], 1)

    def reduction(channels: int) -> nn.Module:
        double = nn.Sequential(conv(channels, 8), conv(8, 8, 2, padding=0))
        pool = nn.MaxPool2d(3, 2)
        return Net(forward, a=conv(channels, 16, 2, padding=0), b=double, c=pool)

    return nn.Sequential(conv(3, 16, 2), reduction(16), reduction(40), head(64))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a shortcut at stride 1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = 4 * inputs
        depthwise = conv(middle, middle, stride, groups=middle)
        self.body = nn.Sequential(
            conv(inputs, middle, 1, 1), depthwise, nn.Conv2d(middle, outputs, 1)
        )
        self.add = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


@kind((3, 64, 64))
def mobilenet_blocks() -> nn.Module:
    blocks = [
        InvertedResidual(*each) for each in ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2))
    ]
    return nn.Sequential(conv(3, 16, 2), *blocks, head(32))


class Shuffle(nn.Module):
    """The unit of ShuffleNetV2 that strides: two branches, then channels in turn."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise = conv(channels, channels, 2, groups=channels)
        self.a = nn.Sequential(depthwise, conv(channels, channels, 1, 1))
        depthwise = conv(channels, channels, 2, groups=channels)
        self.b = nn.Sequential(conv(channels, channels, 1, 1), depthwise)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@kind((3, 64, 64))
def shufflenet_blocks() -> nn.Module:
    return nn.Sequential(conv(3, 16, 2), nn.MaxPool2d(3, 2, 1), Shuffle(16), Shuffle(32), head(64))


@kind((3, 64, 64))
def squeeze_and_excitation() -> nn.Module:
    def excite(m: Any, x: Tensor) -> Tensor:
        x = m.body(x)
        b, c, _, _ = x.size()
        return x * m.gate(x.mean((2, 3))).view(b, c, 1, 1)

    def block(a: int, b: int) -> nn.Module:
        gate = nn.Sequential(nn.Linear(b, b // 4), nn.ReLU(), nn.Linear(b // 4, b), nn.Sigmoid())
        return Net(excite, body=conv(a, b, 2), gate=gate)

    return nn.Sequential(block(3, 16), block(16, 32), block(32, 64), head(64))


@kind((3, 64, 64))
def grouped_convolutions() -> nn.Module:
    return nn.Sequential(
        conv(3, 16, 2), conv(16, 32, 2, groups=4), conv(32, 64, 2, groups=8), head(64)
    )


@kind((3, 64, 64))
def dilated_convolutions() -> nn.Module:
    layers = [conv(3, 16, 2), conv(16, 32, 2, padding=2, dilation=2)]
    return nn.Sequential(*layers, conv(32, 32, padding=4, dilation=4), head(32))


class Blur(nn.Module):
    """Anti-aliased pooling (Zhang 2019): a fixed depthwise filter that strides."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (taps[:, None] * taps).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=x.shape[1])


@kind((3, 64, 64))
def blur_pooling() -> nn.Module:
    layers = [conv(3, 16), nn.MaxPool2d(2, 1), Blur(16), conv(16, 32), Blur(32), conv(32, 32, 2)]
    return nn.Sequential(*layers, head(32))


@kind((3, 64, 64))
def pooling_functions() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.a(x)), 2)
        return m.head(F.max_pool2d(F.relu(m.b(x)), kernel_size=2, stride=2))

    a, b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    return Net(forward, a=a, b=b, head=head(32))


@kind((3, 64, 64))
def pooling_functions_and_strides() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.b(F.max_pool2d(m.a(x), 2)))

    return Net(forward, a=conv(3, 16, 2), b=conv(16, 32, 2), head=head(32))


@kind((3, 64, 64))
def weight_norm() -> nn.Module:
    norm = parametrizations.weight_norm
    layers = [norm(nn.Conv2d(3, 16, 3, 2, 1)), nn.ReLU(), norm(nn.Conv2d(16, 32, 3, 2, 1))]
    return nn.Sequential(*layers, head(32))


@kind((3, 64, 64))
def channels_last() -> nn.Module:
    model = nn.Sequential(conv(3, 16, 2), Residual(16, 32, 2), nn.MaxPool2d(2), head(32))
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@kind((3, 64, 64))
def deformable_convolution() -> nn.Module:
    from torchvision.ops import DeformConv2d

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(m.deform(x, m.offset(x)))

    offset, deform = nn.Conv2d(16, 18, 3, 2, 1), DeformConv2d(16, 32, 3, 2, 1)
    return Net(forward, stem=conv(3, 16, 2), offset=offset, deform=deform, head=head(32))


# Transformers


class Tokens(nn.Module):
    """A transformer on the samples of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(channels, 4, 2 * channels, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(2).transpose(1, 2)).mean(1))


@kind((3, 64, 64))
def conv_stem_transformer() -> nn.Module:
    return nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), nn.MaxPool2d(3, 2, 1), Tokens(32))


@kind((3, 64, 64))
def conv_stem_and_positions() -> nn.Module:
    """A compact transformer with a learned embedding of 64 positions."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(1, 32, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2) + self.positions

    stem = [conv(3, 16, 2), conv(16, 32, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(
        *stem, Positions(), Net(lambda m, x: m.head(x.mean(2)), head=nn.Linear(32, 10))
    )


@kind((3, 64, 64))
def patchifying_stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 8, 8), Tokens(32))


@kind((3, 64, 64))
def windows() -> nn.Module:
    """Attention within windows of 4 x 4 samples, as in Swin, behind a convolutional stem."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        b, c, h, w = x.shape
        x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = m.attend(x).view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
        return m.head(m.merge(x.reshape(b, c, h, w)))

    attend = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    stem = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
    return Net(forward, stem=stem, attend=attend, merge=conv(32, 64, 2), head=head(64))


# Dense outputs


class UNet(nn.Module):
    """Two stages down and up; ``up`` makes a module, ``meet`` joins it with the skipped map."""

    def __init__(
        self, up: Callable[[int, int], nn.Module], meet: Callable[[Tensor, Tensor], Tensor]
    ):
        super().__init__()
        self.meet = meet
        self.a, self.b, self.c = conv(3, 16), conv(16, 32), conv(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up_b, self.up_a = up(64, 32), up(32, 16)
        self.merge_b, self.merge_a = conv(64, 32), conv(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.pool(a))
        c = self.c(self.pool(b))
        b = self.merge_b(self.meet(self.up_b(c), b))
        return self.out(self.merge_a(self.meet(self.up_a(b), a)))


def joined(up: Tensor, skipped: Tensor) -> Tensor:
    return torch.cat([up, skipped], 1)


def transposed(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)


def upsampled(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 1))


@kind((3, 64, 64))
def unet_transposed() -> nn.Module:
    return UNet(transposed, joined)


@kind((3, 64, 64))
def unet_upsample() -> nn.Module:
    return UNet(upsampled, joined)


@kind((3, 64, 64))
def unet_crop() -> nn.Module:
    return UNet(
        transposed, lambda up, skipped: joined(up, skipped[:, :, : up.shape[2], : up.shape[3]])
    )


@kind((3, 64, 64))
def unet_pad() -> nn.Module:
    """The skip of the widespread Pytorch-UNet: the upsampled map is padded to the other."""

    def padded(up: Tensor, skipped: Tensor) -> Tensor:
        dy, dx = skipped.size(2) - up.size(2), skipped.size(3) - up.size(3)
        return joined(F.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2]), skipped)

    return UNet(transposed, padded)


@kind((3, 64, 64))
def unet_interpolate_to_size() -> nn.Module:
    def resized(up: Tensor, skipped: Tensor) -> Tensor:
        return joined(F.interpolate(up, skipped.shape[2:], mode="bilinear"), skipped)

    return UNet(lambda a, b: nn.Conv2d(a, b, 1), resized)


@kind((3, 64, 64))
def interpolate_by_factor() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.down(x)
        return m.out(F.interpolate(x, scale_factor=2, mode="nearest"))

    down = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
    return Net(forward, down=down, out=nn.Conv2d(32, 3, 3, padding=1))


@kind((3, 64, 64))
def autoencoder() -> nn.Module:
    down = [conv(3, 16, 2), conv(16, 32, 2)]
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1)]
    return nn.Sequential(*down, *up, nn.Sigmoid())


@kind((3, 32, 32))
def variational_autoencoder() -> nn.Module:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = m.code(m.down(x)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return m.up(m.start(z).view(-1, 32, 8, 8)), mean, log_variance

    down = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), nn.Flatten())
    up = nn.Sequential(
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1)
    )
    return Net(forward, down=down, code=nn.Linear(2048, 32), start=nn.Linear(16, 2048), up=up)


class Pyramid(nn.Module):
    """A feature pyramid; with ``bottom_up`` maps go down again by strides, as in PANet and YOLO."""

    def __init__(self, bottom_up: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 16, 2), conv(16, 32, 2), conv(32, 64, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 16, 1) for c in (16, 32, 64)])
        self.down = nn.ModuleList([conv(16, 16, 2), conv(16, 16, 2)] if bottom_up else [])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        a, b, c = (lateral(x) for lateral, x in zip(self.lateral, maps, strict=True))
        b = b + F.interpolate(c, scale_factor=2.0)
        maps = [a + F.interpolate(b, scale_factor=2.0), b, c]
        for i, down in enumerate(self.down):
            maps[i + 1] = maps[i + 1] + down(maps[i])
        return maps


@kind((3, 64, 64))
def feature_pyramid() -> nn.Module:
    return Pyramid(bottom_up=False)


@kind((3, 64, 64))
def path_aggregation() -> nn.Module:
    return Pyramid(bottom_up=True)


@kind((3, 64, 64))
def feature_pyramid_to_size() -> nn.Module:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        a = m.a(x)
        b = m.b(a)
        up = F.interpolate(m.lateral_b(b), size=a.shape[-2:], mode="nearest")
        return {"a": m.lateral_a(a) + up, "b": b}

    lateral = {"lateral_a": nn.Conv2d(16, 8, 1), "lateral_b": nn.Conv2d(32, 8, 1)}
    return Net(forward, a=conv(3, 16, 2), b=conv(16, 32, 2), **lateral)


@kind((3, 64, 64))
def linknet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        a = m.a(x)
        b = m.b(a)
        return m.out(m.up_a(m.up_b(b) + a) + x)

    up_b = nn.ConvTranspose2d(64, 32, 3, 2, 1, output_padding=1)
    up_a = nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1)
    down = {"stem": conv(3, 16, 2, 7), "a": Residual(16, 32, 2), "b": Residual(32, 64, 2)}
    return Net(forward, up_a=up_a, up_b=up_b, out=nn.ConvTranspose2d(16, 2, 2, 2), **down)


@kind((3, 64, 64))
def segnet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x, first = m.pool(m.a(x))
        x, second = m.pool(m.b(x))
        return m.out(m.unpool(m.up(m.unpool(x, second)), first))

    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    convs = {"a": conv(3, 16), "b": conv(16, 32), "up": conv(32, 16), "out": nn.Conv2d(16, 2, 1)}
    return Net(forward, pool=pool, unpool=unpool, **convs)


@kind((3, 64, 64))
def deeplab_head() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.features(x)
        pooled = F.interpolate(m.pooled(y), size=y.shape[-2:])
        y = torch.cat([m.one(y), m.atrous(y), pooled], 1)
        return F.interpolate(m.out(y), size=x.shape[-2:], mode="bilinear", align_corners=False)

    features = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 32, 2))
    branches = {"one": conv(32, 16, 1, 1), "atrous": conv(32, 16, padding=6, dilation=6)}
    branches |= {"pooled": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1))}
    return Net(forward, features=features, out=nn.Conv2d(48, 2, 1), **branches)


@kind((3, 32, 32))
def pixel_shuffle() -> nn.Module:
    """Super-resolution by 4 behind a stride of 2."""
    layers = [conv(3, 32, 2), conv(32, 32), nn.Conv2d(32, 3 * 64, 3, padding=1), nn.PixelShuffle(8)]
    return nn.Sequential(*layers)


@kind((3, 64, 64))
def pixel_unshuffle() -> nn.Module:
    """Space to depth behind a stride, as in TResNet and YOLOv5's focus."""
    return nn.Sequential(conv(3, 16, 2), nn.PixelUnshuffle(2), conv(64, 64, 2), head(64))


@kind((64,))
def dcgan_generator() -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (64, 1, 1)), nn.ConvTranspose2d(64, 32, 4)]
    layers += [nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())


@kind((3, 64, 64))
def dcgan_discriminator() -> nn.Module:
    layers = [nn.Conv2d(a, b, 4, 2, 1) for a, b in ((3, 16), (16, 32), (32, 64), (64, 64))]
    pairs = [nn.Sequential(layer, nn.LeakyReLU(0.2)) for layer in layers]
    return nn.Sequential(*pairs, nn.Conv2d(64, 1, 4), nn.Flatten())


@kind((3, 64, 64))
def patch_discriminator() -> nn.Module:
    norm = parametrizations.spectral_norm
    layers = [norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in ((3, 16), (16, 32), (32, 64))]
    pairs = [nn.Sequential(layer, nn.LeakyReLU(0.2)) for layer in layers]
    return nn.Sequential(*pairs, nn.Conv2d(64, 1, 4, padding=1))


# Signals, spectrograms, volumes, sequences


@kind((1, 4096))
def m5() -> nn.Module:
    def block(a: int, b: int, kernel: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv1d(a, b, kernel, stride)
        return [layer, nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(4)]

    layers = [*block(1, 32, 80, 4), *block(32, 32, 3, 1), *block(32, 64, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))


class Gated(nn.Module):
    """A gated dilated causal convolution of WaveNet with its residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.layer = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.layer(F.pad(x, (self.dilation, 0))).chunk(2, 1)
        return x + a.tanh() * b.sigmoid()


@kind((1, 256))
def wavenet() -> nn.Module:
    layers = [nn.Conv1d(1, 16, 4, 2, 1), Gated(16, 1), Gated(16, 2), Gated(16, 4)]
    return nn.Sequential(*layers, nn.AvgPool1d(4), nn.Conv1d(16, 8, 1))


@kind((1, 2048))
def conv_tasnet() -> nn.Module:
    """A learned filter bank, a mask, and the transposed filter bank."""

    def forward(m: Any, x: Tensor) -> Tensor:
        code = F.relu(m.encoder(x))
        return m.decoder(code * m.mask(code).sigmoid())

    encoder, decoder = nn.Conv1d(1, 32, 16, 8), nn.ConvTranspose1d(32, 1, 16, 8)
    mask = nn.Sequential(nn.Conv1d(32, 32, 3, padding=1), nn.PReLU(), nn.Conv1d(32, 32, 1))
    return Net(forward, encoder=encoder, mask=mask, decoder=decoder)


@kind((1, 64, 100))
def spectrogram() -> nn.Module:
    """Strides along frequency alone."""
    layers = [nn.Conv2d(1, 16, 3, (2, 1), 1), nn.ReLU(), nn.Conv2d(16, 32, 3, (2, 1), 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d((1, 2)), nn.Conv2d(32, 32, 3, (1, 2), 1), head(32))


@kind((1, 64, 100))
def convolutional_recurrent() -> nn.Module:
    """A recurrent network over the time of a spectrogram; frequencies become features."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.features(x)
        return m.head(m.rnn(x.flatten(1, 2).transpose(1, 2))[0])

    features = nn.Sequential(conv(1, 16, (2, 1)), conv(16, 16, 2))
    return Net(
        forward, features=features, rnn=nn.GRU(256, 32, batch_first=True), head=nn.Linear(32, 5)
    )


@kind((1, 16, 32, 32))
def volumes() -> nn.Module:
    layers = [nn.Conv3d(1, 8, 3, (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 4)
    )


@kind((4, 3, 32, 32))
def conv_lstm() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        maps = [m.stem(frame) for frame in x.unbind(1)]
        hidden = cell = torch.zeros_like(maps[0])
        for each in maps:
            i, f, o, g = m.gates(torch.cat([each, hidden], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return m.head(hidden)

    stem = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2))
    return Net(forward, stem=stem, gates=nn.Conv2d(32, 64, 3, padding=1), head=head(16))


# Inputs, outputs and control flow


class Siamese(nn.Module):
    """One network called on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), head(32, 16))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.features(x) - self.features(y)).abs().sum(1)


@kind((3, 64, 64), (3, 64, 64))
def siamese() -> nn.Module:
    return Siamese()


@kind((3, 64, 64), (3, 48, 48))
def siamese_of_two_sizes() -> nn.Module:
    return Siamese()


class ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.embed = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2)), nn.Linear(5, 32)
        self.head = head(32)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.head(self.features(image) + self.embed(vector)[:, :, None, None])


@kind((3, 64, 64), (5,))
def image_and_vector() -> nn.Module:
    return ImageAndVector()


@kind((3, 64, 64))
def multi_scale_inputs() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        half = F.avg_pool2d(x, 2)
        return m.head(m.merge(torch.cat([m.a(x), m.b(half)], 1)))

    return Net(forward, a=conv(3, 16, 2), b=conv(3, 16), merge=conv(32, 32, 2), head=head(32))


@kind((3, 64, 64))
def dictionary_output() -> nn.Module:
    def forward(m: Any, x: Tensor) -> dict[str, Any]:
        x = m.stem(x)
        return {"map": x, "heads": {"class": m.head(x), "box": m.box(x)}}

    stem = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
    return Net(forward, stem=stem, head=head(32), box=nn.Conv2d(32, 4, 1))


@kind((3, 64, 64))
def keyword_calls() -> nn.Module:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = conv(3, 16, 2)

        def forward(self, image: Tensor, *, scale: float = 1.0) -> Tensor:
            return self.layer(image) * scale

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.b(input=m.part(image=x, scale=0.5)))

    return Net(forward, part=Part(), b=conv(16, 32, 2), head=head(32))


@kind((3, 64, 64))
def control_flow_on_shapes() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            if x.shape[-1] % 2:
                x = F.pad(x, (0, 1, 0, 1))
            x = layer(x)
        if min(x.shape[2:]) > 1:
            x = F.adaptive_avg_pool2d(x, 1)
        return m.head(x.flatten(1))

    layers = nn.ModuleList([conv(3, 16, 2), conv(16, 32, 2), conv(32, 32, 2)])
    return Net(forward, layers=layers, head=nn.Linear(32, 10))


@kind((3, 64, 64))
def padded_to_a_multiple() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        h, w = x.shape[-2:]
        y = m.body(F.pad(x, (0, -w % 8, 0, -h % 8)))
        return F.interpolate(y, scale_factor=8)[:, :, :h, :w] + x

    body = nn.Sequential(conv(16, 16, 2), conv(16, 16, 2), conv(16, 16, 2))
    return Net(forward, stem=conv(3, 16, 2), body=body)


@kind((3, 64, 64))
def positions_by_grid() -> nn.Module:
    """Coordinates as channels (CoordConv), made from the sizes of the map."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        h, w = x.shape[2:]
        rows, columns = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return m.head(m.body(torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], 1)))

    return Net(forward, stem=conv(3, 16, 2), body=conv(18, 32, 2), head=head(32))


@kind((3, 64, 64))
def data_dependent() -> nn.Module:
    """An `if` on values, which no trace can follow."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(m.body(x) if x.mean() > 0 else m.body(-x))

    return Net(forward, stem=conv(3, 16, 2), body=conv(16, 32, 2), head=head(32))
