"""Kernels on the coarse grid: the mathematics, and convolutions that are pooled before."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from diffstride import MultiplyAdds, convert, freeze, spectral_pool, stride_layers
from diffstride.conversion.kernel_resampling import coarse_taps, resampling_matrix


def response(taps, kernel, frequencies):
    """The response of a kernel at frequencies of the coarse grid."""
    waves = torch.exp(2j * math.pi * torch.outer(frequencies, torch.tensor(taps, dtype=float)))
    return waves @ kernel.to(waves.dtype)


CASES = [
    (3, 1, 1, 2.0),
    (3, 1, 1, 1.5),
    (5, 1, 2, 2.0),
    (7, 1, 3, 2.0),
    (4, 1, 1, 2.0),
    (3, 2, 2, 3),
]


@pytest.mark.parametrize(("size", "dilation", "padding", "spacing"), CASES)
def test_resampling_is_the_best_fit_of_the_response(size, dilation, padding, spacing):
    """No other kernel that keeps constants is nearer, measured on the frequencies themselves."""
    taps = coarse_taps(size, dilation, padding, 0, spacing)
    matrix = resampling_matrix(taps.old, taps.new)
    frequencies = torch.arange(1, 65, dtype=torch.float64) / 128
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        kernel = torch.randn(size, generator=generator, dtype=torch.float64)
        wanted = response(taps.old, kernel, frequencies)

        def distance(new, wanted=wanted):
            return (response(taps.new, new, frequencies) - wanted).abs().square().mean().item()

        best = matrix @ kernel
        assert best.sum().item() == pytest.approx(kernel.sum().item(), abs=1e-9)
        for _ in range(8):
            other = torch.randn(size, generator=generator, dtype=torch.float64)
            other -= other.mean()  # the response to constants is kept
            assert distance(best) < distance(best + 1e-3 * other)


def test_a_kernel_on_its_own_grid_stays_as_it_is():
    for size, dilation in ((3, 1), (4, 1), (5, 3), (1, 1)):
        taps = coarse_taps(size, dilation, dilation * (size - 1) // 2, 0, 1.0)
        assert taps.dilation == dilation
        torch.testing.assert_close(
            resampling_matrix(taps.old, taps.new), torch.eye(size, dtype=torch.float64)
        )


def test_the_matrix_is_differentiable_in_the_positions():
    old = torch.tensor([-0.4, 0.1, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda old: resampling_matrix(old, (-1, 0, 1)), old)


def test_convolving_after_cropping_is_near_convolving_before():
    """On periodic signals of falling spectrum; a kernel as it is would be far off."""
    generator = torch.Generator().manual_seed(0)
    bins = torch.randn(256, 1, 33, generator=generator, dtype=torch.cfloat)
    x = torch.fft.irfft(bins / torch.arange(33).clamp(min=1), n=64)
    for size, spacing, most in ((3, 2, 0.15), (3, 3, 0.15), (5, 2, 0.1), (7, 2, 0.1)):
        conv = nn.Conv1d(1, 64, size, padding=size // 2, padding_mode="circular", bias=False)
        taps = coarse_taps(size, 1, size // 2, 0, spacing)
        matrix = resampling_matrix(taps.old, taps.new).float()
        pooled = spectral_pool(x, [float(spacing)])
        with torch.no_grad():
            wanted, bare = spectral_pool(conv(x), [float(spacing)]), conv(pooled)
            conv.weight.copy_(conv.weight @ matrix.T)
            error = (conv(pooled) - wanted).norm() / wanted.norm()
            assert error < most
            assert error < 0.6 * (bare - wanted).norm() / wanted.norm()


CONVOLUTIONS = {
    "3 x 3": nn.Conv2d(8, 8, 3, stride=2, padding=1),
    "without bias": nn.Conv2d(8, 4, 3, stride=2, padding=1, bias=False),
    "without padding": nn.Conv2d(8, 8, 3, stride=2),
    "much padding": nn.Conv2d(8, 8, 3, stride=2, padding=2),
    "even": nn.Conv2d(8, 8, 4, stride=2, padding=1),
    "patches": nn.Conv2d(8, 8, 2, stride=2),
    "grouped": nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
    "depthwise": nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8),
    "dilated": nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2),
    "widely dilated": nn.Conv2d(8, 8, 3, stride=2, padding=4, dilation=4),
    "asymmetric": nn.Conv2d(8, 8, (3, 5), stride=(2, 1), padding=(1, 2)),
    "stride of 3": nn.Conv2d(8, 8, 5, stride=3, padding=2),
    "reflecting": nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect"),
    "wrapping, even": nn.Conv2d(8, 8, 4, stride=2, padding=1, padding_mode="circular"),
    "one axis": nn.Conv1d(8, 8, 9, stride=4, padding=4),
    "three axes": nn.Conv3d(8, 8, 3, stride=2, padding=1),
}


def smooth_map(axes, size):
    """A random map without fine detail, ``(2, 8, size, …)``."""
    x = torch.randn(2, 8, *(6,) * axes, generator=torch.Generator().manual_seed(1))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    return nn.functional.interpolate(x, size=(size,) * axes, mode=mode, align_corners=True)


@pytest.mark.parametrize("size", [36, 35])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_pooled_before_keeps_sizes_and_about_its_function(name, size):
    torch.manual_seed(0)
    conv = copy.deepcopy(CONVOLUTIONS[name])
    conv.reset_parameters()
    axes = len(conv.kernel_size)
    x = smooth_map(axes, size if axes < 3 else size // 3)
    converted = convert(nn.Sequential(conv), x, order="before", patchify=True)
    assert converted[0].pool_first
    with torch.no_grad():
        wanted, found = conv(x), converted(x)
    assert found.shape == wanted.shape
    if axes < 3 and size % 2 == 0:
        inner = (..., *(slice(3, -3),) * axes)  # away from the borders
        deviation = wanted[inner] - wanted[inner].mean()
        assert (found - wanted)[inner].norm() < 0.2 * deviation.norm()
    strides = next(iter(stride_layers(converted).values())).strides
    strides.data.fill_(2.6)
    converted(x).square().mean().backward()
    assert strides.grad.isfinite().all()
    assert (strides.grad != 0).all()


def test_kinds_of_modules_and_where_they_are_pooled():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.abs())

    x = torch.rand(1, 8, 16, 16)
    strided = {"kernel_size": 3, "stride": 2, "padding": 1}
    tied = nn.Sequential(nn.Conv2d(8, 8, **strided), nn.Conv2d(8, 8, **strided))
    tied[1].weight = tied[0].weight
    for network, placements in [
        (nn.Sequential(nn.Conv2d(8, 8, **strided)), {"0": "before"}),
        (nn.Sequential(nn.Conv2d(8, 8, 1, stride=2)), {"0": "before"}),
        (nn.Sequential(nn.MaxPool2d(2)), {"0": "after"}),
        (nn.Sequential(Own(8, 8, **strided)), {"0": "after"}),
        (nn.Sequential(weight_norm(nn.Conv2d(8, 8, **strided))), {"0": "after"}),
        (nn.Sequential(nn.Conv2d(8, 8, 2, stride=2)), {"0": "after"}),
        (tied, {"0": "after", "1": "after"}),
    ]:
        converted = convert(network, x, patchify=True)
        assert converted.conversion.placements == placements
        assert converted(x).shape == network(x).shape
        after = convert(network, x, patchify=True, order="after").conversion.placements
        pointwise = isinstance(network[0], nn.Conv2d) and network[0].kernel_size == (1, 1)
        assert set(after.values()) == {"before" if pointwise else "after"}
    with pytest.raises(ValueError, match="order must be one of 'auto', 'before', 'after', but got"):
        convert(network, x, order="first")


def test_convolutions_of_few_channels_keep_their_stride_and_are_pooled_on_top():
    x, net = torch.rand(1, 3, 32, 32), nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    converted = convert(net, x)
    assert converted[0].stride == (2, 2)
    assert converted[0].pooling.stride_values() == (1.0, 1.0)
    torch.testing.assert_close(converted(x), net(x))
    assert converted.conversion.strides == {"0": (2, 2)}
    again = convert(converted, x)
    assert again.conversion.placements == {"0": "on top"}
    assert again.conversion.left_out == {}
    assert convert(net, x, min_channels=3).conversion.placements == {"0": "before"}
    converted[0].pooling.strides.data.fill_(1.5)
    assert converted(x).shape == (1, 8, 11, 11)
    torch.testing.assert_close(freeze(converted.eval(), x)(x), converted(x))
    for options in ({"straight_through": False}, {"edge": "passband"}, {"lower_limit_stride": 1.5}):
        # A layer that is no identity at first, or may not start at 1, replaces the stride.
        assert convert(net, x, **options)[0].stride == (1, 1)


def test_a_checkpoint_from_before_conversion_is_resampled_and_one_from_after_is_not():
    x = torch.rand(2, 8, 16, 16)
    one, two = (nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 2)) for _ in range(2))
    converted, other = convert(one, x), convert(two, x)
    missing, unexpected = other.load_state_dict(one.state_dict(), strict=False)
    assert (len(missing), unexpected) == (2, [])
    torch.testing.assert_close(other(x), converted(x))
    third = convert(two, x)
    third.load_state_dict(converted.state_dict())
    torch.testing.assert_close(third(x), converted(x))


def test_the_state_of_a_frozen_network_is_not_resampled_again():
    x = torch.rand(2, 8, 16, 16)
    converted = convert(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1)), x).eval()
    converted[0].pooling.strides.data.fill_(1.0)  # a frozen layer without a matrix
    one, two = freeze(converted, x), freeze(converted, x)
    two[0].weight.data.zero_()
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(two(x), converted(x))


class Residual(nn.Module):
    """A block whose two convolutions stride over the same map."""

    def __init__(self, between=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.between = between or (lambda x: None)

    def forward(self, x):
        x = self.stem(x)
        y = self.body(x)
        self.between(x)
        return y + self.shortcut(x)


def count_calls(layer):
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_map_that_two_modules_pool_is_pooled_once():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    shared = convert(Residual(), x)
    assert shared.body.pooling is shared.shortcut.pooling
    assert shared.body.sharers == 2
    apart = copy.deepcopy(shared)
    apart.body.sharers = apart.shortcut.sharers = 1
    once, twice = count_calls(shared.body.pooling), count_calls(apart.body.pooling)
    for _ in range(2):  # the second step works on the same images
        for network in (shared, apart):
            network.zero_grad()
            network(x).square().sum().backward()
        for (name, one), two in zip(shared.named_parameters(), apart.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4, msg=name)
    assert (len(once), len(twice)) == (2, 4)
    with torch.inference_mode():
        torch.testing.assert_close(shared(x), apart(x))


def test_a_map_that_changes_between_two_modules_is_pooled_again():
    def moved(network):
        network.body.pooling.strides.data.fill_(2.4)

    x = torch.rand(2, 3, 16, 16)
    for between in (lambda x: x.mul_(2), lambda x: x.data.mul_(1)):
        shared = convert(Residual(between), x)
        apart = copy.deepcopy(shared)
        apart.body.sharers = apart.shortcut.sharers = 1
        for network in (shared, apart):
            moved(network)
        with torch.no_grad():
            torch.testing.assert_close(shared(x), apart(x))
        with torch.inference_mode():
            torch.testing.assert_close(shared(x), apart(x))


def test_a_module_that_is_called_again_pools_again():
    x = torch.rand(2, 3, 16, 16)
    network = convert(Residual(), x)
    stem = network.stem(x).detach().requires_grad_() + 1
    for _ in range(2):
        network.body(stem).square().sum().backward()  # the graph of the first pass is gone
    given = [torch.full((2,), 2.0, requires_grad=True) for _ in range(2)]
    for strides in given:
        y = torch.func.functional_call(network.body, {"pooling.strides": strides}, (stem,))
    y.square().sum().backward()
    assert given[0].grad is None
    assert given[1].grad is not None


@pytest.mark.parametrize("both", [True, False])
def test_a_module_in_a_checkpoint_pools_for_itself(both):
    class Checkpointed(Residual):
        def forward(self, x):
            x = self.stem(x)
            y = checkpoint(self.body, x, use_reentrant=False) if both else self.body(x)
            return y + checkpoint(self.shortcut, x, use_reentrant=False)

    x = torch.rand(2, 3, 16, 16)
    plain = convert(Residual(), x)
    network = copy.deepcopy(plain)
    network.__class__ = Checkpointed
    for each in (plain, network):
        each(x).square().sum().backward()
    for one, two in zip(plain.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), lambda x: x.mul_(2), torch.relu_])
def test_a_map_that_is_written_to_is_pooled_for_each_module(between):
    x = torch.rand(1, 3, 32, 32)
    network = convert(Residual(between), x).eval()
    assert network.body.sharers == 1
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    assert MultiplyAdds(network, x).value() == counter.get_total_flops() // 2


@pytest.mark.parametrize("kernel", [3, 4, (5, 3)])
def test_an_included_convolution_of_same_padding_keeps_its_function(kernel):
    x = torch.rand(2, 8, 20, 20)
    network = nn.Sequential(nn.Conv2d(8, 8, kernel, padding="same"), nn.ReLU())
    converted = convert(network, x, include=["0"])
    assert converted[0].pool_first
    torch.testing.assert_close(converted(x), network(x), rtol=1e-4, atol=1e-4)


def test_dilations_that_do_not_fit_the_coarse_grid_are_pooled_after():
    x = torch.rand(1, 8, 32, 32)
    for dilation, placement in ((1, "before"), (2, "before"), (3, "after"), (4, "before")):
        conv = nn.Conv2d(8, 8, 3, stride=2, padding=dilation, dilation=dilation)
        assert convert(nn.Sequential(conv), x).conversion.placements == {"0": placement}
