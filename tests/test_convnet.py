"""ConvNet: whitening, blocks, gradients and errors."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffstride import DiffStride, FixedSpectralPooling, stride_layers
from diffstride.convnet import ConvBlock, ConvNet, ConvNormAct, whiten_
from diffstride.strides import parameter_groups

POOLING = partial(DiffStride, edge="stopband", smoothness_factor=1.0)


def smooth_images(count: int = 400, channels: int = 3) -> Tensor:
    """Images whose neighbouring pixels and whose channels are correlated."""
    images = torch.randn(count, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(images, 3, 1) + 0.1 * images[..., 1:-1, 1:-1]
    return blurred + 0.5 * blurred.mean(1, keepdim=True)


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (3, 2)])
def test_whitening_decorrelates_patches(channels: int, size: int) -> None:
    images = smooth_images(channels=channels)
    conv = nn.Conv2d(channels, 2 * channels * size**2, size, bias=False)
    whiten_(conv.weight.data, images, epsilon=1e-9)
    outputs = conv(images).detach().transpose(0, 1).flatten(1).double()
    half = len(outputs) // 2
    torch.testing.assert_close(outputs[half:], -outputs[:half])
    moments = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    torch.testing.assert_close(moments, torch.eye(half).double(), rtol=0, atol=1e-4)


def test_whitening_orders_filters_by_variance_and_keeps_noise_small() -> None:
    images = smooth_images()
    kernel = torch.empty(24, 3, 2, 2)
    whiten_(kernel, images, epsilon=0.05)
    outputs = F.conv2d(images, kernel[:12]).transpose(0, 1).flatten(1)
    variances = outputs.square().mean(1)  # l / (l + epsilon), which falls with l
    assert (variances.diff() < 1e-6).all()
    assert variances[0] > 0.8
    assert variances[-1] < 0.4


def test_whitening_refuses_an_epsilon_of_zero() -> None:
    with pytest.raises(ValueError, match="epsilon must be above 0, but got 0"):
        whiten_(torch.zeros(24, 3, 2, 2), smooth_images(), epsilon=0)


def test_whitening_in_parts_equals_whitening_at_once() -> None:
    images, kernel = smooth_images(130), torch.empty(24, 3, 2, 2)
    whiten_(kernel, images)
    patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
    moments = patches.T @ patches / len(patches)
    half = kernel[:12].flatten(1).double()
    expected = moments @ torch.linalg.inv(moments + 5e-4 * torch.eye(12).double())
    torch.testing.assert_close(half.T @ half @ moments, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "images"),
    [
        ((24, 3, 4), (5, 3, 8, 8)),
        ((12, 3, 2, 2), (5, 3, 8, 8)),
        ((24, 3, 2, 2), (5, 1, 8, 8)),
        ((24, 3, 2, 2), (5, 3, 1, 8)),
    ],
)
def test_whitening_refuses_shapes_that_do_not_fit(kernel: tuple, images: tuple) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {kernel} and {images}")):
        whiten_(torch.zeros(kernel), torch.zeros(images))


def test_a_new_layer_is_the_identity() -> None:
    layer = ConvNormAct(3, 8).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x)[:, :3], F.gelu(x / (1 + 1e-5) ** 0.5))


@pytest.mark.parametrize("order", ["after", "before"])
def test_block_pools_once_before_or_after_its_first_layer(order: str) -> None:
    block = ConvBlock(3, 8, 1.6, num_layers=3, pooling_cls=FixedSpectralPooling, order=order).eval()
    x, pool = torch.randn(2, 3, 16, 16), FixedSpectralPooling((1.6, 1.6))
    first = block.first(pool(x)) if order == "before" else pool(block.first(x))
    torch.testing.assert_close(block(x), block.others[1](block.others[0](first)))
    assert block(x).shape == (2, 8, 10, 10)


def test_without_a_pooling_the_first_convolution_is_strided() -> None:
    block = ConvBlock(3, 8, (2, 3)).eval()
    x = torch.randn(2, 3, 16, 16)
    conv, norm, _ = block.first
    dense = F.conv2d(x, conv.weight, padding=1)[:, :, ::2, ::3]
    torch.testing.assert_close(block.first(x), F.gelu(norm(dense)))


def test_network_equals_its_formula() -> None:
    network = ConvNet([8, 12], [2, 1.5], 5, pooling_cls=POOLING, in_channels=1).eval()
    nn.init.normal_(network.whitening.bias)
    x = torch.randn(3, 1, 17, 17)
    features = network.blocks[1](network.blocks[0](F.gelu(network.whitening(x))))
    expected = features.flatten(2).max(2).values @ network.dense.weight.T / 9
    torch.testing.assert_close(network(x), expected)
    assert features.shape == (3, 12, 6, 6)


def test_the_first_layer_keeps_the_pixels_before_whitening() -> None:
    x = torch.randn(1, 3, 4, 4)
    patches = ConvNet([8], [2]).whitening(x)
    torch.testing.assert_close(patches[:, :12].flatten(2), F.unfold(x, 2))
    torch.testing.assert_close(patches[:, 12:], -patches[:, :12])


def test_all_parameters_learn_except_whitening_and_scales() -> None:
    network = ConvNet([8, 16], [2, 2], 5, pooling_cls=POOLING)
    network.whiten_(smooth_images())
    network(torch.randn(4, 3, 16, 16)).logsumexp(1).sum().backward()
    fixed = {name for name, p in network.named_parameters() if p.grad is None}
    scales = {f"blocks.{i}.{part}.1.weight" for i in (0, 1) for part in ("first", "others.0")}
    assert fixed == {"whitening.weight", *scales}
    assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.grad is not None)
    assert len(stride_layers(network)) == 2


def test_biases_learn_at_their_own_rate() -> None:
    network = ConvNet([8], [2], 5, pooling_cls=POOLING)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    groups = parameter_groups(network, 0.0, stride_learning_rate=0.25, bias_learning_rate=4.0)
    torch.optim.SGD(groups, lr=0.1).step()
    moved = {name: (before[name] - p).mean().item() for name, p in network.named_parameters()}
    assert moved["blocks.0.first.1.bias"] == pytest.approx(4.0)
    assert moved["blocks.0.first.0.weight"] == pytest.approx(0.1, rel=1e-4)
    assert moved["blocks.0.pooling.strides"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvNet([8, 16], [2]), "[8, 16] and [2]"),
        (lambda: ConvNet([], []), "[] and []"),
        (lambda: ConvNet([8], [1.5]), "1.5"),
        (lambda: ConvNet([8], [0.5], pooling_cls=POOLING), "0.5"),
        (
            lambda: ConvNet([8], [2], num_layers=0),
            "num_layers must be a whole number",
        ),
        (lambda: ConvNet([8], [2], order="first"), "order must be one of"),
        (lambda: ConvNet([8], [(2, 2, 2)], pooling_cls=POOLING), "(height, width)"),
    ],
)
def test_wrong_arguments_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
