"""The networks: their size, what their layers compute, and that every stride learns."""

import copy
import math
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffstride import pooling, reference, resnet
from diffstride.convnet import ConvNet
from diffstride.resnet import ResidualLayer, Resnet, ResnetBlock
from diffstride.strides import stride_layers

POOLINGS = [
    pooling.DiffStride,
    pooling.FixedSpectralPooling,
    pooling.SpatialPooling,
    reference.DiffStride,
    reference.FixedSpectralPooling,
]
ORDERS = ("after", "before")


def small(*args, **kwargs) -> Resnet:
    return resnet.resnet18(*args, width=4, **{"num_output_classes": 5, **kwargs})


def map_sizes(network: Resnet, image: Tensor) -> list[tuple[int, ...]]:
    """Spatial sizes after the stem and after every block."""
    sizes = []
    hooks = [
        part.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[2:])))
        for part in (network.stem, *network.blocks)
    ]
    with torch.no_grad():
        network.eval()(image)
    for hook in hooks:
        hook.remove()
    return sizes


def set_random_statistics(network: nn.Module) -> None:
    """Give every batch norm other statistics, for evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)


@pytest.mark.parametrize(
    ("build", "pooling_cls", "count"),
    [
        (resnet.resnet18, None, 11_172_170),
        (resnet.resnet18, pooling.DiffStride, 11_172_178),
        (resnet.resnet18, reference.DiffStride, 11_172_178),
        (resnet.resnet56, None, 855_834),
        (resnet.resnet56, pooling.DiffStride, 855_842),
    ],
)
def test_parameter_count_is_the_published_one(
    build: Callable[..., Resnet], pooling_cls: type | None, count: int
) -> None:
    network = build(num_output_classes=10, pooling_cls=pooling_cls)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("pooling_cls", "sizes"),
    [
        (None, [32, 32, 16, 8, 4]),
        (pooling.DiffStride, [32, 32, 16, 8, 4]),
        (partial(pooling.DiffStride, **PUBLISHED), [32, 32, 24, 20, 18]),
        (reference.DiffStride, [32, 32, 24, 20, 18]),
        (partial(pooling.DiffStride, edge="stopband"), [32, 32, 16, 8, 4]),
        (pooling.SpatialPooling, [32, 32, 16, 8, 4]),
        (pooling.MaxPooling, [32, 32, 16, 8, 4]),
        (pooling.BlurPooling, [32, 32, 16, 8, 4]),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_map_sizes_of_resnet18(
    pooling_cls: Callable[..., nn.Module] | None, sizes: list[int], order: str
) -> None:
    network = small(pooling_cls=pooling_cls, order=order)
    assert map_sizes(network, torch.zeros(1, 3, 32, 32)) == [(size, size) for size in sizes]


def test_strides_of_the_convolutions_and_rounded_up_sizes() -> None:
    network = small(strides=[2, 5, (3, 1), 1, 2])
    sizes = map_sizes(network, torch.zeros(1, 3, 29, 30))
    # The first block does not project, so its stride of 5 is ignored.
    assert sizes == [(15, 15), (15, 15), (5, 15), (5, 15), (3, 8)]


def test_multiply_adds_of_strided_resnet18() -> None:
    network = resnet.resnet18(num_output_classes=10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(0.555e9, rel=1e-3)


def channels_of_layers(network: Resnet) -> list[int]:
    layers = [module for module in network.modules() if isinstance(module, ResidualLayer)]
    return [layer.second_conv.out_channels for layer in layers]


def test_width_scales_every_block() -> None:
    assert channels_of_layers(small()) == [4, 4, 8, 8, 16, 16, 32, 32]
    fiftysix = resnet.resnet56(width=2, num_output_classes=5)
    assert channels_of_layers(fiftysix) == [2] * 9 + [4] * 9 + [8] * 9


def test_pooling_layers_are_where_the_published_network_has_them() -> None:
    names = list(stride_layers(small(pooling_cls=pooling.DiffStride)))
    assert names == ["stem.pooling", *(f"blocks.{block}.0.pooling" for block in (1, 2, 3))]
    names = list(stride_layers(resnet.resnet56(num_output_classes=2, pooling_cls=POOLINGS[0])))
    assert names == ["stem.pooling", *(f"blocks.{block}.0.pooling" for block in (0, 1, 2))]


def test_without_a_pooling_layer_the_stem_is_strided_itself() -> None:
    network = small(strides=[2, 1, 2, 2, 1], pooling_cls=pooling.DiffStride, pool_stem=False)
    assert list(stride_layers(network)) == [f"blocks.{block}.0.pooling" for block in (1, 2, 3)]
    assert network.stem.conv.stride == (2, 2)
    assert map_sizes(network, torch.zeros(1, 3, 32, 32))[0] == (16, 16)
    with pytest.raises(ValueError, match="strides of a convolution must be whole numbers, but got"):
        small(strides=[1.5, 1, 2, 2, 1], pooling_cls=pooling.DiffStride, pool_stem=False)


def literal_layer(layer: ResidualLayer, x: Tensor) -> Tensor:
    """The published formula, with the pooling after the projection; the layer projects."""
    assert isinstance(layer.shortcut, nn.Conv2d)
    if layer.order == "before":
        x = layer.pooling(x)
    pool = layer.pooling if layer.order == "after" else nn.Identity()
    y = pool(layer.first_conv(layer.first_norm(x).clamp(min=0)))
    y = layer.second_conv(layer.second_norm(y).clamp(min=0))
    shortcut = F.conv2d(x, layer.shortcut.weight, stride=layer.first_conv.stride)
    return y + pool(shortcut)


@pytest.mark.parametrize("pooling_cls", [None, *POOLINGS])
@pytest.mark.parametrize("order", ORDERS)
def test_projecting_layer_equals_the_formula(pooling_cls: type | None, order: str) -> None:
    layer = ResidualLayer(3, 4, strides=2, pooling_cls=pooling_cls, project=True, order=order)
    set_random_statistics(layer.eval())
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(layer(x), literal_layer(layer, x), rtol=1e-4, atol=1e-5)


def test_identity_layer_neither_pools_nor_strides() -> None:
    layer = ResidualLayer(3, 3, strides=2, pooling_cls=pooling.DiffStride).eval()
    set_random_statistics(layer)
    x = torch.randn(2, 3, 9, 9)
    y = layer.first_conv(layer.first_norm(x).relu())
    y = layer.second_conv(layer.second_norm(y).relu())
    torch.testing.assert_close(layer(x), y + x)
    assert not stride_layers(layer)


def test_network_equals_the_formula() -> None:
    network = small(pooling_cls=pooling.DiffStride).eval()
    set_random_statistics(network)
    x = torch.randn(2, 3, 16, 16)
    y = network.stem.get_submodule("pooling")(network.stem.get_submodule("conv")(x))
    for layer in network.modules():
        if isinstance(layer, ResidualLayer):
            y = layer(y)
    expected = network.dense(network.norm(y).relu().flatten(2).mean(2))
    torch.testing.assert_close(network(x), expected)


def test_strided_branches_sample_the_same_pixels() -> None:
    layer = ResidualLayer(1, 1, strides=2, project=True)
    assert isinstance(layer.shortcut, nn.Conv2d)
    nn.init.dirac_(layer.first_conv.weight)
    nn.init.ones_(layer.shortcut.weight)
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    torch.testing.assert_close(layer.first_conv(x), layer.shortcut(layer.subsampling(x)))


@pytest.mark.parametrize("build", [resnet.resnet18, resnet.resnet56])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pooling_cls", [pooling.DiffStride, reference.DiffStride])
def test_gradient_reaches_every_parameter(
    build: Callable[..., Resnet], order: str, pooling_cls: type
) -> None:
    network = build(width=2, num_output_classes=3, pooling_cls=pooling_cls, order=order)
    loss = network(torch.randn(4, 3, 16, 16))
    nn.functional.cross_entropy(loss, torch.tensor([0, 1, 2, 0])).backward()
    assert len(stride_layers(network)) == 4
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("strides"):
            assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("pooling_cls", [None, pooling.DiffStride])
@pytest.mark.parametrize("order", ORDERS)
def test_channels_last_is_kept_through_the_network(pooling_cls: type | None, order: str) -> None:
    network = small(pooling_cls=pooling_cls, order=order).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    lost = []

    def check(module: nn.Module, _: object, y: Tensor) -> None:
        if y.ndim == 4 and not y.is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in network.modules():
        module.register_forward_hook(check)
    y = network(x.to(memory_format=torch.channels_last))
    assert lost == []
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_reloaded_network_equals_the_saved_one() -> None:
    network = small(pooling_cls=pooling.DiffStride).eval()
    with torch.no_grad():
        for layer in stride_layers(network).values():
            nn.init.uniform_(layer.get_parameter("strides"), 1.5, 2.5)
    x = torch.randn(1, 3, 32, 32)
    reloaded = small(pooling_cls=pooling.DiffStride).eval()
    reloaded.load_state_dict(network.state_dict())
    assert torch.equal(reloaded(x), network(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_kernels_are_he_normal_and_the_dense_bias_zero() -> None:
    network = resnet.resnet18(num_output_classes=100, width=32)
    for weight in (network.get_parameter("blocks.3.1.first_conv.weight"), network.dense.weight):
        sigma = math.sqrt(2 / weight[0].numel())
        assert weight.std().item() == pytest.approx(sigma, rel=0.02)
        assert abs(weight.mean().item()) < 0.02 * sigma
        assert weight.abs().max().item() <= 2 * sigma / 0.8796
    assert not network.dense.bias.any()


def test_output_activation() -> None:
    x = torch.randn(2, 3, 8, 8)
    network = small().eval()
    logits = network(x)
    for activation, expected in (("softmax", logits.softmax(1)), (torch.tanh, logits.tanh())):
        active = small(output_activation=activation).eval()
        active.load_state_dict(network.state_dict())
        torch.testing.assert_close(active(x), expected)


def test_batch_norm_has_the_published_constants() -> None:
    norms = [module for module in small().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 17
    assert all(norm.eps == 1e-5 and norm.momentum == pytest.approx(0.1) for norm in norms)


def test_weight_decay_is_the_published_one_unless_given() -> None:
    assert small().weight_decay == 5e-4
    assert small(weight_decay=0.1).weight_decay == 0.1


def test_batch_norm_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    # A Gin registry replaces batch_norm like this, to bind its momentum for all networks.
    monkeypatch.setattr(resnet, "batch_norm", partial(resnet.batch_norm, momentum=0.99))
    norms = [module for module in small().modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == pytest.approx(0.01) for norm in norms)


@pytest.mark.parametrize("pooling_cls", [None, pooling.FixedSpectralPooling])
@pytest.mark.parametrize(
    ("build", "strides"),
    [
        (partial(resnet.resnet18, width=4), [1, 1, 2, 3, 2]),
        (partial(resnet.resnet56, width=2), [1, 2, 3, 1]),
        (partial(Resnet, [4, 8]), [2, 3]),
        (partial(ConvNet, [4, 8]), [3, 2]),
    ],
)
def test_strides_may_be_a_string(build, strides, pooling_cls) -> None:
    options = {"num_output_classes": 3, "pooling_cls": pooling_cls}
    text = ", ".join(map(str, strides))
    assert repr(build(strides=text, **options)) == repr(build(strides=strides, **options))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(strides=[1, 2, 2]), "[4, 4, 8, 16, 32] and [1, 2, 2]"),
        (lambda: small(strides="1, 2, 2"), "[4, 4, 8, 16, 32] and [1.0, 2.0, 2.0]"),
        (lambda: small(strides="[1, 1]"), "or as '1, 1, 2, 2, 2', but got '[1, 1]'"),
        (lambda: small(strides="1, 1, 1.5, 2, 2"), "must be whole numbers, but got (1.5, 1.5)"),
        (lambda: small(strides=[1, 1, 1.5, 2, 2]), "must be whole numbers, but got (1.5, 1.5)"),
        (lambda: small(strides=[1, 1, 0.5, 2, 2]), "at least 1, but got 0.5"),
        (lambda: small(strides=[1, 1, (2, 2, 2), 2, 2]), "one number or (height, width)"),
        (lambda: small(order="between"), "('after', 'before'), but got 'between'"),
        (lambda: small(output_activation="sofmax"), "a callable, but got 'sofmax'"),
        (lambda: Resnet([], [], 10), "but got [] and []"),
        (lambda: Resnet([4, 8], [1, 2], 10, id_only=[0]), "4 channels into 8; set project=True"),
        (
            lambda: ResnetBlock(4, 4, 1, num_layers=0),
            "num_layers must be a whole number",
        ),
        (lambda: ResidualLayer(4, 4, kernel_size=4), "kernel_size must be odd"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_number_of_classes_is_required() -> None:
    with pytest.raises(TypeError, match="num_output_classes"):
        resnet.resnet18()


def test_networks_share_no_module() -> None:
    one, other = (resnet.resnet18(width=8, num_output_classes=3) for _ in range(2))
    assert not {id(module) for module in one.modules()} & {id(module) for module in other.modules()}


def test_strides_of_two_axes_are_height_then_width():
    pooling_cls = partial(pooling.DiffStride, edge="stopband")
    strides = [1, 1, (3, 2), 1, 2]
    network = resnet.resnet18(strides, 4, num_output_classes=10, pooling_cls=pooling_cls)
    values = [layer.stride_values() for layer in stride_layers(network).values()]
    assert (3.0, 2.0) in values
    assert (2.0, 3.0) not in values


def test_kernel_size_applies_to_all_convolutions_of_a_block():
    network = Resnet([4, 8], [1, 2], num_output_classes=3, kernel_size=5)
    block = network.blocks[0][0]
    assert block.first_conv.kernel_size == block.second_conv.kernel_size == (5, 5)
    assert network.blocks(torch.zeros(1, 4, 9, 9)).shape[2:] == (5, 5)


@pytest.mark.parametrize(
    "pooling_cls", [None, pooling.DiffStride, pooling.MaxPooling, pooling.BlurPooling]
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_network_of_one_axis_is_that_of_images_of_one_row(
    pooling_cls: Callable[..., nn.Module] | None, order: str
) -> None:
    """The same weights in the middle rows of the kernels, on images with one row."""
    options = {"num_output_classes": 3, "pooling_cls": pooling_cls, "order": order, "width": 4}
    line = resnet.resnet18([2, 1, 2, 2, 2], num_axes=1, in_channels=1, **options).eval()
    flat = resnet.resnet18([(1, 2), 1, (1, 2), (1, 2), (1, 2)], in_channels=1, **options).eval()
    state = flat.state_dict()
    for name, value in line.state_dict().items():
        if value.ndim == 3:
            state[name] = torch.zeros_like(state[name])
            state[name][:, :, state[name].shape[2] // 2] = value
        elif not name.endswith(("strides", "kernel")):
            state[name] = value
    flat.load_state_dict(state)
    x = torch.randn(2, 1, 96)
    torch.testing.assert_close(line(x), flat(x[:, :, None]), rtol=1e-4, atol=1e-4)


def test_numbers_of_axes_are_checked() -> None:
    with pytest.raises(ValueError, match="num_axes must be 1, 2 or 3, but got 4"):
        Resnet([4, 8], [1, 2], 10, num_axes=4)
    with pytest.raises(ValueError, match=r"a stride must be one number, but got \(2, 2\)"):
        Resnet([4, 8], [1, (2, 2)], 10, num_axes=1)
    with pytest.raises(ValueError, match="a stride must be 3 numbers"):
        Resnet([4, 8], [1, (2, 2)], 10, num_axes=3)
    assert Resnet([4, 8], [1, 2], 10, num_axes=3)(torch.zeros(1, 3, 5, 6, 7)).shape == (1, 10)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("pooling_cls", [*POOLINGS[:3], pooling.MaxPooling, pooling.BlurPooling])
@pytest.mark.parametrize(
    "build", [partial(ConvNet, [4, 4], [2, 2]), partial(small, [1, 1, 2, 2, 1])]
)
def test_every_pooling_serves_networks_of_other_axes(build, pooling_cls, axes):
    network = build(num_output_classes=5, in_channels=1, num_axes=axes, pooling_cls=pooling_cls)
    assert network(torch.randn(2, 1, *[8] * axes)).shape == (2, 5)
