"""Which modules are converted, and why others are left out."""

import re
import types

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Block, Several
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffstride import (
    BlurPooling,
    CostBudget,
    DiffStride,
    FixedSpectralPooling,
    MaxPooling,
    SpatialPooling,
    stride_layers,
)
from diffstride.conversion.converter import convert
from diffstride.conversion.reporting import report
from diffstride.cost.multiply_adds import MultiplyAdds


def test_patchifying_convolutions_are_left_out_unless_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, stride=2, padding=1))
    x = torch.rand(IMAGE)
    converted = convert(model, x)
    assert converted.conversion.strides == {"1": (2, 2)}
    assert "patchifying" in converted.conversion.left_out["0"]
    every = convert(model, x, patchify=True)
    assert every.conversion.strides == {"0": (4, 4), "1": (2, 2)}
    assert every[0](x).shape == model[0](x).shape


def test_include_adds_a_layer_at_stride_1():
    x = torch.rand(IMAGE)
    model = convert(Block(), x, include=["stem"])
    assert model.stem.pooling.stride_values() == (1.0, 1.0)
    assert model.stem.stride == (1, 1)
    networks.move_strides(model)
    networks.step(model, x)
    norm = convert(Block(), x, include=["norm"])
    assert isinstance(norm.norm, nn.BatchNorm2d)
    assert norm.norm.pooling.stride_values() == (1.0, 1.0)
    # The module was run to measure its output, in training mode as well.
    assert norm.norm.running_mean.eq(0).all()
    assert norm.norm.num_batches_tracked == 0


class NormThatPools(nn.BatchNorm2d):
    def forward(self, input):
        return F.max_pool2d(super().forward(input), 2)


def executed(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "options", "name"),
    [
        (nn.BatchNorm2d(8), {"include": ["1"]}, "1.pooling"),
        (NormThatPools(8), {}, "1.maxpool2d_0.pooling"),
    ],
)
def test_a_pooled_norm_counts_with_the_map_that_it_returns(norm, options, name, training):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm, nn.Conv2d(8, 8, 3, 2, 1))
    x = torch.rand(1, 3, 32, 32)
    model = convert(net.train(training), x, **options)
    assert name in stride_layers(model)
    budget = CostBudget(model, x, fraction=0.9)
    assert budget.cost.value() == executed(model, x)
    with torch.no_grad():
        stride_layers(model)[name].strides.fill_(1.5)
    assert budget.cost.value() == executed(model, x)


class ConvolutionThatPools(nn.Conv2d):
    def forward(self, input):
        return F.max_pool2d(super().forward(input), 2)


def test_a_convolution_that_makes_its_map_smaller_by_itself_is_reported():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), ConvolutionThatPools(8, 8, 3, 1, 1))
    once = convert(net, torch.rand(IMAGE))
    assert list(once.conversion.left_out) == ["1"]
    assert once.conversion.left_out["1"].startswith("makes its map smaller by its own forward")
    # Converted modules do that by their pooling.
    again = convert(convert(Block(), torch.rand(IMAGE)), torch.rand(IMAGE), include=["stem"])
    assert again.conversion.left_out == {}


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2)
        self.last = nn.Conv2d(6, 6, 3, stride=2, padding=1)

    def forward(self, x):
        pooled = F.lp_pool2d(x, 2.0, 3, 2)
        return self.last(torch.cat([self.conv(x), pooled], 1))


def test_strides_of_functions_without_a_module_stay_and_are_reported():
    x = torch.rand(IMAGE)
    with pytest.warns(UserWarning, match="of this Functional only 'last' learns, on top of its"):
        model = convert(Functional(), x)
    assert model.conversion.left_out == {
        "lp_pool2d in the model itself": "a function, whose stride stays: call a module "
        "instead to convert it",
        "conv": "meets maps in cat in the model itself whose size does not follow its stride",
    }
    networks.move_strides(model)
    networks.step(model, x)


class Subsampled(nn.Module):
    """The shortcut without parameters of the original ResNets for CIFAR."""

    def __init__(self):
        super().__init__()
        self.conv, self.down = nn.Conv2d(3, 8, 3, 2, 1), nn.AvgPool2d(1, 2)

    def forward(self, x):
        shortcut = x[:, :, 1::2, ::2] if self.down is None else self.down(x)
        return self.conv(x) + F.pad(shortcut, (0, 0, 0, 0, 0, 5))


def test_a_slice_that_skips_samples_is_named_with_its_replacement():
    x, model = torch.rand(IMAGE), Subsampled()
    assert set(convert(model, x).conversion.strides) == {"conv", "down"}
    model.down = None
    with pytest.raises(
        ValueError, match=r"getitem in the model itself: a slice.*nn.AvgPool2d\(1, 2"
    ):
        convert(model, x)


@pytest.mark.parametrize("of_module", [True, False])
def test_interpolation_to_a_smaller_map_is_reported(of_module):
    def forward(net, x):
        smaller = net.resize(x) if of_module else F.interpolate(x, scale_factor=0.5, mode="area")
        return net.conv(F.interpolate(smaller, scale_factor=3.0))

    conv, resize = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Upsample(scale_factor=0.5)
    converted = convert(networks.Net(forward, conv=conv, resize=resize), torch.rand(IMAGE))
    left_out = converted.conversion.left_out
    assert list(left_out) == ["resize" if of_module else "upsample_0"]
    assert "put a DiffStride in its place" in next(iter(left_out.values()))


def test_interpolation_to_a_constant_size_is_not_reported_and_may_be_included():
    convs = (nn.Conv2d(8 if i else 3, 8, 3, stride=2, padding=1) for i in range(2))
    net = nn.Sequential(next(convs), nn.Upsample(size=(12, 12)), next(convs))
    assert convert(net, torch.rand(2, 3, 64, 64)).conversion.left_out == {}
    converted = convert(net, torch.rand(2, 3, 64, 64), include=["1"])
    assert converted.conversion.strides["1"] == (1, 1)


def test_slices_of_channels_and_of_the_batch_are_no_strides():
    class Gated(nn.Module):
        def forward(self, x):
            x = x[:, 0::2] * x[:, 1::2]
            return torch.cat([x[::2], x[1::2]])

    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), Gated())
    assert convert(net, torch.rand(IMAGE)).conversion.left_out == {}


class NotSampling(nn.Module):
    """Has a stride that does not sample its output at stride 1."""

    def __init__(self):
        super().__init__()
        self.stride = 2

    def forward(self, x):
        return F.avg_pool2d(x, self.stride)


def test_a_stride_that_does_not_sample_is_left_out():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), NotSampling())
    converted = convert(model, torch.rand(IMAGE))
    assert converted.conversion.strides == {"0": (2, 2)}
    assert converted.conversion.left_out["1"].startswith("its output is not its output")


class Activated(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride)


@pytest.mark.parametrize("order", ["auto", "before", "after"])
@pytest.mark.parametrize(
    ("kind", "placement"), [(Activated, "after"), (Standardised, "before")], ids=str
)
def test_pointwise_convolutions_of_own_classes_are_pooled_where_that_is_exact(
    order, kind, placement
):
    network = nn.Sequential(kind(8, 8, 1, stride=2))
    converted = convert(network, torch.rand(1, 8, 32, 32), order=order)
    assert converted.conversion.placements == {"0": placement}
    low = torch.rand(1, 8, 1, 1).expand(1, 8, 32, 32)  # a constant map loses nothing by pooling
    torch.testing.assert_close(converted(low), network(low))


def test_blur_pooling_of_timm_is_converted():
    from timm.layers import BlurPool2d

    model = convert(nn.Sequential(BlurPool2d(3, filt_size=4, stride=2)), torch.rand(IMAGE))
    assert model.conversion.strides == {"0": (2, 2)}
    assert model(torch.rand(IMAGE)).shape == (2, 3, 17, 17)


@pytest.mark.parametrize("layer", [MaxPooling, BlurPooling, SpatialPooling, FixedSpectralPooling])
def test_pooling_layers_of_fixed_strides_are_left_out(layer):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), layer(strides=2), layer(strides=1))
    converted = convert(net, torch.rand(IMAGE))
    assert list(converted.conversion.left_out) == ["1"]
    with pytest.raises(ValueError, match=r"no stride to convert; 1: .*put a DiffStride"):
        convert(net[1:], torch.rand(IMAGE))


def test_leaf_modules_keep_their_strides():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.Sequential(nn.MaxPool2d(2), nn.ReLU()))
    converted = convert(model, torch.rand(IMAGE), leaf_modules=["1"])
    assert list(converted.conversion.strides) == ["0"]
    assert "leaf_modules" in converted.conversion.left_out["1.0"]
    assert "leaf_modules" in str(report(converted))


@pytest.mark.parametrize("leaf", ["1", nn.MaxPool2d])
def test_a_strided_leaf_module_is_not_converted(leaf):
    model = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.MaxPool2d(2), nn.ReLU())
    converted = convert(model, torch.rand(IMAGE), leaf_modules=[leaf])
    assert type(converted[1]) is nn.MaxPool2d
    assert converted[1].stride == 2
    assert converted.conversion.strides == {"0": (2, 2)}
    assert converted.conversion.left_out == {"1": "in leaf_modules"}


class Upsampling(nn.Module):
    """One module of each kind that ``include`` refuses, after a strided convolution."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.patches = nn.Conv2d(4, 4, 2, stride=2)
        self.own = DiffStride(2.0, edge="stopband")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.own(self.patches(self.up(self.down(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("up", {}, r"up \(ConvTranspose2d\) cannot be converted: upsamples its input"),
        ("head", {}, r"head \(Linear\) cannot be converted: does not map one batch of maps"),
        ("own", {}, r"own \(DiffStride\) cannot be converted: is a pooling layer already"),
        ("patches", {}, r"patches \(Conv2d\) cannot be converted: patchifying .*patchify=True"),
        ("down", {"leaf_modules": ["down"]}, r"down \(Conv2d\) cannot be .*: in leaf_modules"),
        (
            "down",
            {"filter_fn": lambda module, name: name != "down"},
            r"down \(Conv2d\) cannot be converted: left out by filter_fn",
        ),
    ],
)
def test_include_refuses_modules_with_the_reason(name, options, message):
    with pytest.raises(ValueError, match=f"include: {message}"):
        convert(Upsampling(), torch.rand(IMAGE), include=[name], **options)


@pytest.mark.parametrize("training", [True, False])
def test_including_dropout_draws_no_random_numbers(training):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Dropout(0.5))
    x = torch.rand(IMAGE)
    state = torch.get_rng_state()
    converted = convert(model.train(training), x, include=["1"])
    assert torch.equal(torch.get_rng_state(), state)
    assert converted[1].pooling.stride_values() == (1.0, 1.0)
    networks.move_strides(converted)
    networks.step(converted, x)


class StrideOfTheClass(NotSampling):
    stride = 2

    def __init__(self):
        nn.Module.__init__(self)


def test_a_stride_of_the_class_is_restored_after_measuring():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), StrideOfTheClass())
    converted = convert(model, torch.rand(IMAGE))
    assert converted.conversion.left_out["1"].startswith("its output is not its output")
    assert converted[1].stride == 2


class Doubling(nn.Module):
    """A module with a stride that it does not use."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return 2 * x


def test_strides_that_are_none_or_of_other_axes_are_left_out():
    down = nn.Conv2d(3, 3, 3, stride=2, padding=1)
    model = nn.Sequential(down, Doubling(None), Doubling((2, 2, 2)), nn.ReLU())
    converted = convert(model, torch.rand(IMAGE))
    assert converted.conversion.strides == {"0": (2, 2)}
    assert converted.conversion.left_out == {"2": "strides along 3 axes, but its maps have 2"}
    assert converted[1].stride is None
    assert converted[2].stride == (2, 2, 2)


@torch.fx.wrap
def mean_pool(x):
    return x.mean((2, 3))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return mean_pool(self.conv(x))


def test_functions_that_pool_whole_axes_have_no_stride():
    x = torch.rand(IMAGE)
    converted = convert(Wrapped(), x)
    assert converted.conversion.left_out == {}
    networks.move_strides(converted)
    networks.step(converted, x)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x):
        return self.conv(input=self.norm(input=self.first(x)))


def test_maps_passed_by_keyword_are_traced_and_not_converted():
    x = torch.rand(IMAGE)
    converted = convert(ByKeyword().eval(), x)
    assert list(converted.conversion.strides) == ["first"]
    assert converted.conversion.left_out == {
        "conv": "is given its map by keyword: pass it by position"
    }
    assert converted(x).shape == ByKeyword()(x).shape
    pool = DiffStride(2.0, edge="stopband")
    net = nn.Sequential(pool, nn.Conv2d(3, 3, 1))
    net.forward = lambda x: net[1](net[0](x=x))
    assert MultiplyAdds(net, x).value() == MultiplyAdds(nn.Sequential(*net), x).value()


def test_a_module_whose_output_is_not_used_is_left_out():
    def forward(m, x):
        m.unused(x)
        out = torch.zeros_like(y := m.conv(x))
        out[:] = m.written(x)
        return out + y

    modules = {name: networks.strided() for name in ("conv", "written", "unused")}
    converted = convert(networks.Net(forward, **modules), torch.rand(2, 4, 16, 16))
    assert list(converted.conversion.strides) == ["conv", "written"]
    assert converted.conversion.left_out == {"unused": "its output is not used"}
    networks.step(converted, torch.rand(2, 4, 16, 16))


def test_a_module_whose_forward_was_replaced_is_left_out():
    conv, x = networks.strided(), torch.rand(2, 4, 16, 16)
    conv.forward = types.MethodType(lambda self, x: F.conv2d(x, self.weight, None, 2, 1), conv)
    net = nn.Sequential(conv, networks.strided())
    converted = convert(net, x)
    assert converted(x).shape == net(x).shape
    assert "forward was replaced on the object" in converted.conversion.left_out["0"]


def test_strides_may_be_integers_of_numpy():
    strides = np.array([2, 2])
    net = nn.Sequential(nn.Conv2d(3, 8, 3, strides[0], 1), nn.AvgPool2d(2, tuple(strides)))
    converted = convert(net, torch.rand(IMAGE))
    assert converted.conversion.strides == {"0": (2, 2), "1": (2, 2)}
    assert all(type(s) is int for s in converted.conversion.strides["0"])


class Halving(NotSampling):
    """Its stride cannot be set."""

    stride = property(lambda self: 2)

    def __init__(self):
        nn.Module.__init__(self)


def as_integers(m, x):
    return m.conv(m.pool((9 * x).long()).float())


def as_complex(m, x):
    return m.conv(m.twice(x * 1j).abs())


@pytest.mark.parametrize(
    ("net", "name", "reason"),
    [
        (
            nn.Sequential(Halving(), networks.strided()),
            "0",
            "cannot be measured at stride 1 .*(setter|can't set attribute)",
        ),
        (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(2),
                nn.MaxPool2d(3, 2, ceil_mode=True),
                nn.Sequential(nn.ConvTranspose2d(4, 4, 9), networks.strided()),
            ),
            "1",
            "pools the whole map|cannot be measured",
        ),
        (
            networks.Net(as_integers, pool=nn.MaxPool2d(2), conv=networks.strided()),
            "pool",
            "its maps are of torch.int64",
        ),
        (
            networks.Net(as_complex, twice=Doubling(2), conv=networks.strided()),
            "twice",
            "its maps are of torch.complex64",
        ),
    ],
)
def test_modules_that_cannot_be_measured_are_left_out(net, name, reason):
    converted = convert(net, torch.rand(2, 4, 16, 16))
    assert list(converted.conversion.left_out) == [name]
    assert re.match(reason, converted.conversion.left_out[name])


def test_a_module_that_once_pools_the_whole_map_is_converted():
    levels = nn.Sequential(Several(nn.MaxPool2d(2)), nn.AdaptiveAvgPool2d(1))
    x = torch.rand(2, 3, 4, 4)
    converted = convert(levels, x)
    assert converted.conversion.strides == {"0.pool": (2, 2)}
    assert converted.conversion.left_out == {}
    assert converted(x).shape == (2, 3, 1, 1)
    with pytest.raises(ValueError, match="0: pools the whole map"):
        convert(nn.Sequential(nn.MaxPool2d(4)), x)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    "again",
    [
        lambda pool, x: pool(x[0]).mean((1, 2)),
        lambda pool, x: pool(input=x).mean((2, 3)),
    ],
)
def test_a_module_of_which_one_call_cannot_be_converted_is_left_out(again, used):
    def forward(m, x):
        x = m.conv(x)
        other, _ = again(m.pool, x), m.pool(x)
        y = m.pool(x).mean((2, 3))
        return y + other if used else y

    net = networks.Net(forward, conv=networks.strided(), pool=nn.MaxPool2d(2))
    converted = convert(net, torch.rand(1, 4, 16, 16))
    assert list(converted.conversion.strides) == ["conv"]
    assert list(converted.conversion.left_out) == ["pool"]


def test_a_module_with_another_call_that_is_not_used_is_converted():
    def forward(m, x):
        y = m.pool(m.conv(x))
        m.pool(x)
        return y

    net = networks.Net(forward, conv=networks.strided(), pool=nn.MaxPool2d(2))
    converted = convert(net, torch.rand(1, 4, 16, 16))
    assert list(converted.conversion.strides) == ["conv", "pool"]
    assert converted.conversion.left_out == {}
