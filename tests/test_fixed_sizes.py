"""Networks that enlarge maps by fixed factors, or accept maps of one size only."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import RELEASE
from networks import Net, counted, move_strides, strided
from torch import nn

from diffstride import (
    AdaptiveSpectralPooling,
    CostBudget,
    DiffStride,
    MultiplyAdds,
    convert,
    freeze,
    report,
    stride_layers,
)
from diffstride.conversion.function_modules import CallsModules
from diffstride.conversion.record import Conversion

X = torch.rand(2, 4, 32, 32)


def check(net, x=X, names=(), keeps_size=True, fraction=0.8, **options):
    """Convert a network and try all that users do; returns it, at its first strides."""
    net = net.eval()
    converted = convert(net, x, **options)
    assert tuple(converted.conversion.strides) == tuple(names)
    expected = net(x).shape
    again = copy.deepcopy(converted)
    if isinstance(net, nn.Sequential):  # others hold a function
        again = pickle.loads(pickle.dumps(again))
    assert again(x).equal(converted(x))
    trained = copy.deepcopy(converted).train()
    cost = MultiplyAdds(trained, x)
    for seed in range(4):
        move_strides(trained, seed)
        assert not keeps_size or trained(x).shape == expected
        assert cost.value() == counted(trained.eval(), x)
        trained.train()(x).square().mean().backward()
        for name, layer in stride_layers(trained).items():
            assert layer.strides.grad is not None, name
    budget = CostBudget(trained, x, fraction)
    assert budget.cost.value() <= budget.multiply_adds
    frozen = freeze(trained.eval(), x)
    torch.testing.assert_close(frozen(x), trained(x), rtol=1e-4, atol=1e-5)
    assert counted(frozen, x) == MultiplyAdds(frozen, x).value()
    if x.dim() > 3:  # frozen signals are multiplied with matrices
        assert counted(frozen, x) == budget.cost.value()
    return converted


# Maps that are enlarged


def enlargers(channels=4):
    """Modules that double a map."""
    return {
        "transposed": nn.ConvTranspose2d(channels, channels, 2, 2),
        "overlapping": nn.ConvTranspose2d(channels, channels, 4, 2, padding=1),
        "odd": nn.ConvTranspose2d(channels, channels, 3, 2, padding=1, output_padding=1),
        "nearest": nn.Upsample(scale_factor=2),
        "bilinear": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        "bilinear of old": nn.UpsamplingBilinear2d(scale_factor=2),
        "shuffle": nn.Sequential(nn.Conv2d(channels, 4 * channels, 1), nn.PixelShuffle(2)),
    }


def unet(up, again):
    def forward(net, x):
        a = net.a(x)
        b = net.b(a)
        b = torch.cat([b, net.up(net.c(b))], 1)
        return net.last(torch.cat([a, net.again(net.mix(b))], 1))

    layers = {name: strided() for name in "abc"}
    mixers = {"mix": nn.Conv2d(8, 4, 3, padding=1), "last": nn.Conv2d(8, 3, 1)}
    return Net(forward, **layers, **mixers, up=up, again=again)


@pytest.mark.parametrize(
    "kind",
    [
        *("odd", "nearest", "shuffle"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("transposed", "overlapping", "bilinear", "bilinear of old")
        ),
    ],
)
def test_unets(kind):
    converted = check(unet(enlargers()[kind], enlargers()[kind]), names="abc", keeps_size=False)
    assert list(converted.conversion.mirrors.values()) == [("c",), ("b",)]


class PaddingUNet(nn.Module):
    """Its decoder pads what it has enlarged to the map of the encoder, as much copied ones do."""

    def __init__(self, up):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pools = nn.ModuleList([nn.MaxPool2d(2), nn.AvgPool2d(2)])
        self.ups = nn.ModuleList([up, copy.deepcopy(up)])
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(self.pools[0](a))
        b = b + self.enlarged(0, self.pools[1](b), b)
        return self.last(torch.cat([a, self.enlarged(1, b, a)], 1))

    def enlarged(self, i, x, like):
        x = self.ups[i](x)
        rows, columns = like.size(2) - x.size(2), like.size(3) - x.size(3)
        left, top = columns // 2, rows // 2
        self.padded = columns, rows
        return F.pad(x, [left, columns - left, top, rows - top])


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("nearest", (30, 41)),
        ("transposed", (27, 27)),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("nearest", (27, 27)),
                ("transposed", (30, 41)),
                ("bilinear", (30, 41)),
                ("bilinear", (27, 27)),
            )
        ),
    ],
)
def test_unets_that_pad_odd_maps(kind, size):
    x = torch.rand(2, 4, *size)
    net = PaddingUNet(enlargers()[kind]).eval()
    converted = check(net, x, names=("pools.0", "pools.1"))
    assert converted.conversion.mirrors == {"ups.0": ("pools.1",), "ups.1": ("pools.0",)}
    net(x)
    padded = tuple(map(int, net.padded))
    assert padded == (size[1] % 2, size[0] % 2)
    for stride in (2.0, 1.3, 3.7):
        for pool in converted.pools:
            pool.pooling.strides.data.fill_(stride)
        assert converted(x).shape == (2, 3, *size)
        assert tuple(map(int, converted.padded)) == padded


def test_a_decoder_that_pads_returns_the_sizes_that_it_had_at_all_input_sizes():
    net = PaddingUNet(enlargers()["transposed"]).eval()
    converted = convert(net, torch.rand(2, 4, 30, 41), order="after")
    ramp = torch.linspace(0, 1, 48)
    smooth = (ramp[:, None] + ramp.cos()).expand(1, 4, 48, 48)
    for rows, columns in ((30, 41), (30, 42), (32, 32), (47, 47)):
        x = smooth[..., :rows, :columns]
        assert converted(x).shape == net(x).shape
        assert tuple(map(int, converted.padded)) == tuple(map(int, net.padded))


def test_an_autoencoder_of_odd_maps_returns_the_sizes_that_it_had():
    ups = [nn.ConvTranspose2d(4, 4, 2, 2) for _ in range(2)]
    net = nn.Sequential(strided(), nn.ReLU(), strided(), *ups)
    converted = convert(net, torch.rand(1, 4, 37, 50))
    assert converted.conversion.mirrors == {"3": ("2",)}
    for size in ((37, 50), (64, 64), (36, 48), (40, 50), (39, 41)):
        x = torch.rand(1, 4, *size)
        assert converted(x).shape == net(x).shape


@pytest.mark.parametrize("length", [61, 100, 256])
def test_a_decoder_without_padding_to_which_the_skip_is_cut(length):
    def forward(net, x):
        a = net.a(x)
        y = net.again(net.b(a))
        return net.last(y + a[..., : y.shape[-1]])

    down = {name: nn.Conv1d(c, 8, 8, stride=4) for name, c in (("a", 2), ("b", 8))}
    up = {name: nn.ConvTranspose1d(8, c, 8, stride=4) for name, c in (("again", 8), ("last", 2))}
    net, x = Net(forward, **down, **up), torch.rand(2, 2, length)
    converted = convert(net, x)
    assert converted(x).shape == net(x).shape


def test_an_enlarging_module_mirrors_maps_of_as_many_axes():
    def forward(net, x):
        x = net.a(x)
        rows = net.rows(x.mean(3))
        return net.up(net.b(x)) + rows.mean(2)[..., None, None]

    rows = nn.Conv1d(4, 4, 3, stride=2, padding=1)
    net = Net(forward, a=strided(), b=strided(), rows=rows, up=nn.Upsample(scale_factor=2))
    converted = convert(net, X)
    assert converted.conversion.mirrors == {"up": ("b",)}
    assert converted(X).shape == net(X).shape


class DeepSupervision(nn.Module):
    """One module enlarges at all places, at one more in training, and in a part alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.up = strided(), strided(), nn.Upsample(scale_factor=2)

    def features(self, x):
        a = self.a(x)
        return a + self.up(self.b(a))

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        auxiliary = self.up(b.relu()) if self.training else None
        y = self.up(a + self.up(b))
        return (y, auxiliary) if self.training else y


@pytest.mark.parametrize("training", [True, False])
def test_passes_may_make_other_calls_than_at_conversion(training):
    converted = convert(DeepSupervision().train(training), X)
    for stride in (2.0, 1.6):
        converted.a.pooling.strides.data.fill_(stride)
        for _ in range(2):
            assert converted.eval()(X).shape == X.shape
            y, auxiliary = converted.train()(X)
            assert y.shape == X.shape
            assert auxiliary.shape == converted.features(X).shape


def test_transposed_convolutions_may_be_given_the_size_that_they_mirror():
    def forward(net, x):
        a = net.a(x)
        b = net.b(a)
        y = net.up(net.c(b), output_size=b.shape[2:]) + b
        return net.again(y, output_size=list(a.shape[2:])) + a

    layers = {"a": nn.Conv2d(4, 4, 3, padding=1), "b": strided(), "c": strided()}
    ups = {name: nn.ConvTranspose2d(4, 4, 2, 2) for name in ("up", "again")}
    converted = check(Net(forward, **layers, **ups), names="bc", fraction=0.9)
    assert converted.conversion.mirrors == {"up": ("c",), "again": ("b",)}


def test_a_unet_may_have_a_smallest_map_of_one_size():
    def forward(net, x):
        a = net.a(x)
        b = net.b(a)
        c = net.c(b)
        c = (c.flatten(2) + net.positions).reshape(c.shape)
        return net.again(net.up(c) + b) + a

    ups = {name: nn.ConvTranspose2d(4, 4, 2, 2) for name in ("up", "again")}
    net = Net(forward, a=strided(), b=strided(), c=strided(), **ups)
    net.positions = nn.Parameter(torch.rand(1, 1, 16))
    converted = check(net, names="abc", keeps_size=False)
    assert isinstance(converted.c.pooling, AdaptiveSpectralPooling)


@pytest.mark.parametrize("last", [nn.MaxPool2d((4, 1)), nn.Conv2d(4, 4, 5, (4, 1), padding=2)])
def test_maps_are_pinned_along_the_axes_that_stride_alone(last):
    """As in a network that reads lines of text of any width."""

    def forward(net, x):
        return net.read(net.last(net.b(net.a(x).relu())).squeeze(2))

    net = Net(forward, a=strided(), b=strided(), last=last, read=nn.Conv1d(4, 4, 3, padding=1))
    x = torch.rand(1, 4, 16, 40)
    converted = check(net, x, names=("a", "b", "last"), keeps_size=False)
    assert converted.last.pooling.fixed_size == (1, None)
    for width in (20, 40, 72):
        x = torch.rand(2, 4, 16, width)
        assert converted(x).shape == net(x).shape


def test_maps_are_pinned_along_all_axes_where_that_is_not_enough():
    def forward(net, x):
        return net.read(net.last(net.b(net.a(x))).flatten(1))

    last = nn.Conv2d(4, 4, 5, (4, 1), padding=2)
    net = Net(forward, a=strided(), b=strided(), last=last, read=nn.Linear(4 * 10, 3))
    converted = check(net, torch.rand(1, 4, 16, 40), names=("a", "b", "last"))
    assert converted.last.pooling.fixed_size == (1, 10)


def test_an_axis_of_one_sample_may_be_squeezed_away():
    def forward(net, x):
        return net.c(net.b(net.a(x)).squeeze(2))

    volumes = {name: nn.Conv3d(4, 4, 3, stride=2, padding=1) for name in "ab"}
    x = torch.rand(1, 4, 4, 32, 32)
    converted = check(Net(forward, **volumes, c=strided()), x, names="abc", keeps_size=False)
    assert converted.b.pooling.fixed_size == (1, None, None)


def test_one_module_that_enlarges_at_several_places():
    up = nn.ConvTranspose2d(4, 4, 2, 2)
    converted = check(unet(up, up), names="abc", keeps_size=False)
    assert converted.conversion.mirrors == {"up": ("c", "b")}


def test_one_module_that_pools_at_several_places():
    def forward(net, x):
        sizes = [net.a(x)]
        for _ in range(2):
            sizes.append(net.mix(net.pool(sizes[-1])))
        y = sizes.pop()
        while sizes:
            y = net.up(y) + sizes.pop()
        return y

    for up in (nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 2, 2)):
        mix = nn.Conv2d(4, 4, 3, padding=1)
        net = Net(forward, a=nn.Conv2d(4, 4, 1), pool=nn.MaxPool2d(2), mix=mix, up=up)
        converted = check(net, names=("pool",), fraction=0.95)
        assert converted.conversion.mirrors == {"up": ("pool", "pool")}


def test_a_failed_pass_does_not_disturb_the_next():
    up = nn.Upsample(scale_factor=2)
    converted = convert(unet(up, up).eval(), X)
    move_strides(converted)
    expected = converted(X)
    kept, converted.mix.forward = converted.mix.forward, None
    with pytest.raises(TypeError):
        converted(X)  # after one of two calls
    converted.mix.forward = kept
    assert converted(X).equal(expected)


def test_a_module_alone_enlarges_as_it_did():
    up = nn.Upsample(scale_factor=2)
    converted = convert(unet(up, nn.Upsample(scale_factor=2)).eval(), X)
    assert converted.up(torch.rand(1, 4, 5, 5)).shape == (1, 4, 10, 10)


def test_unchanged_at_the_first_strides():
    net = unet(nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 2, 2)).eval()
    converted = convert(net, X)
    for name in "abc":  # compare what follows, not the pooled kernels
        getattr(net, name).forward = getattr(converted, name).forward
    torch.testing.assert_close(converted(X), net(X))


def test_autoencoders_return_the_size_of_their_input():
    def forward(net, x):
        x = net.c(net.b(net.a(x)).relu())
        return net.up(net.up(F.interpolate(x, scale_factor=2.0, mode="bilinear")))

    net = Net(forward, a=strided(), b=strided(), c=strided(), up=nn.ConvTranspose2d(4, 4, 2, 2))
    converted = check(net, names="abc")
    assert converted.conversion.mirrors == {"upsample_0": ("c",), "up": ("b", "a")}


def test_one_factor_for_several_strides():
    def forward(net, x):
        return net.stem(x) + net.up(net.b(net.a(net.stem(x))))

    up = nn.Upsample(scale_factor=4, mode="bicubic")
    net = Net(forward, stem=nn.Conv2d(4, 4, 1), a=strided(), b=nn.MaxPool2d(2), up=up)
    assert check(net, names="ab").conversion.mirrors == {"up": ("a",)}


def test_signals_and_volumes():
    def forward(net, x):
        return net.stem(x) + net.up(net.a(x))

    signal = Net(
        forward,
        stem=nn.Conv1d(2, 3, 1),
        a=nn.Conv1d(2, 3, 5, 4, padding=2),
        up=nn.ConvTranspose1d(3, 3, 4, 4),
    )
    check(signal, torch.rand(2, 2, 64), names="a", order="after")
    volume = Net(
        forward,
        stem=nn.Conv3d(2, 3, 1),
        a=nn.Conv3d(2, 3, 3, 2, padding=1),
        up=nn.ConvTranspose3d(3, 3, 2, 2),
    )
    check(volume, torch.rand(2, 2, 8, 8, 12), names="a", order="after")


def test_enlarging_before_any_stride_is_left_alone():
    net = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())
    assert not convert(net, X).conversion.mirrors


# Maps of one size


def lenet():
    layers = [nn.Conv2d(4, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 10))


def test_the_last_stride_before_a_flattened_map_is_pinned():
    converted = check(lenet(), names=("2", "5"))
    assert converted[5].pooling.fixed_size == (5, 5)
    assert list(stride_layers(converted)) == ["2.pooling"]


def test_one_pooling_module_before_and_at_a_flattened_map():
    def forward(net, x):  # as in tutorials
        x = net.pool(net.one(x).relu())
        x = net.pool(net.two(x).relu())
        return net.f(x.flatten(1))

    one, two = nn.Conv2d(4, 6, 5), nn.Conv2d(6, 16, 5)
    net = Net(forward, one=one, two=two, pool=nn.MaxPool2d(2), f=nn.Linear(400, 10))
    converted = check(net, names=("pool",))
    assert list(stride_layers(converted)) == ["pool.pooling"]
    assert converted.pool.pooling_1.fixed_size == (5, 5)
    assert "pinned" in str(report(converted))


def test_it_enlarges_where_the_map_is_smaller():
    converted = convert(lenet(), X)
    converted[2].pooling.strides.data.fill_(3.5)
    assert converted(X).shape == (2, 10)


def test_the_function_is_kept():
    net = nn.Sequential(*list(lenet())[3:]).eval()
    net[0] = nn.Conv2d(4, 16, 5)
    net = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Flatten())
    x = torch.ones(2, 4, 32, 32)
    torch.testing.assert_close(convert(net, x)(x), net(x))


def views(view, features=64):
    layers = {"a": strided(), "b": strided(), "c": strided()}
    return Net(
        lambda net, x: net.f(view(net.c(net.b(net.a(x))))), **layers, f=nn.Linear(features, 5)
    )


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.flatten(1),
        lambda x: x.view(-1, 64),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(len(x), 64),
        lambda x: F.avg_pool2d(x, 1).flatten(1),
    ],
)
def test_ways_to_flatten(view):
    assert check(views(view), names="abc").c.pooling.fixed_size == (4, 4)


def test_a_view_that_would_make_samples_of_pixels():
    assert check(views(lambda x: x.view(-1, 4)[:2], 4), names="abc") is not None


def test_stored_positions():
    def forward(net, x):
        tokens = net.c(net.b(net.a(x))).flatten(2).mT + net.positions
        return net.mix(tokens.mT)

    net = Net(forward, a=strided(), b=strided(), c=strided(), mix=nn.Linear(16, 16))
    net.positions = nn.Parameter(torch.zeros(1, 16, 4))
    converted = check(net, names="abc")
    assert isinstance(converted.c.pooling, AdaptiveSpectralPooling)


class Sequence(nn.Module):
    """Two strided convolutions, and positions for sequences of up to ``longest`` samples."""

    def __init__(self, longest, cut=lambda positions, n: positions[:, :n]):
        super().__init__()
        self.a, self.b = (nn.Conv1d(c, 16, 8, stride=4, padding=2) for c in (1, 16))
        self.positions = nn.Parameter(torch.rand(1, longest, 16))
        self.cut, self.out = cut, nn.Linear(16, 4)

    def forward(self, x):
        z = self.b(self.a(x)).mT
        return self.out(z + self.cut(self.positions, z.shape[1]))


@pytest.mark.parametrize(
    "cut",
    [
        lambda positions, n: positions[:, :n],
        lambda positions, n: positions[:, -n:],
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                lambda positions, n: positions[0, :n],
                lambda positions, n: positions[..., :n, :],
                lambda positions, n: positions[0][None, 0:n],
                lambda positions, n: positions[:, (128 - n) // 2 : (128 - n) // 2 + n],
            )
        ),
    ],
)
def test_positions_cut_to_a_sequence_limit_how_far_strides_fall(cut):
    """128 positions for 50 samples: their product may fall to 16 * 50 / 128, 2.5 for each."""
    x = torch.rand(2, 1, 800)
    net = Sequence(128, cut)
    model = convert(net, x, min_channels=0)
    layers = stride_layers(model)
    limits = [layer.lower_limit_stride for layer in layers.values()]
    assert limits == pytest.approx([2.5, 2.5], rel=0.05)
    for layer in layers.values():
        layer.strides.data.fill_(1.0)
        layer.project_()
    assert 110 < model(x).shape[1] <= 128
    assert MultiplyAdds(model, x).value() == counted(model.eval(), x)


@pytest.mark.parametrize("longest", [2000, 800])
def test_many_positions_limit_no_stride(longest):
    layers = stride_layers(convert(Sequence(longest), torch.rand(2, 1, 800), min_channels=0))
    assert [layer.lower_limit_stride for layer in layers.values()] == [None, None]


def test_a_stem_on_top_of_its_stride_takes_no_part_in_the_limit():
    """Its stride starts at 1, so the other one may fall as far as the positions reach."""
    layers = stride_layers(convert(Sequence(128), torch.rand(2, 1, 800))).values()
    assert [layer.stride_values() for layer in layers] == [(1.0,), (4.0,)]
    first, second = (layer.lower_limit_stride for layer in layers)
    assert first is None
    assert second == pytest.approx(4 * 50 / 128, rel=0.05)


def test_a_given_limit_stays_where_it_is_higher():
    x = torch.rand(2, 1, 800)
    model = convert(Sequence(128), x, min_channels=0, lower_limit_stride=3)
    assert [layer.lower_limit_stride for layer in stride_layers(model).values()] == [3, 3]


def test_the_limit_of_a_shared_stride_is_one_number():
    options = {"min_channels": 0, "shared_stride": True}
    layers = stride_layers(convert(Sequence(128), torch.rand(2, 1, 800), **options)).values()
    limits = [layer.lower_limit_stride for layer in layers]
    assert limits == pytest.approx([2.5, 2.5], rel=0.05)


def test_a_network_at_its_limits_may_be_converted_again():
    x = torch.rand(2, 1, 800)
    model = convert(Sequence(128), x, min_channels=0)
    for layer in stride_layers(model).values():
        layer.strides.data.fill_(1.0)
        layer.project_()
    again = convert(model, x, min_channels=0)
    assert stride_layers(again).keys() == stride_layers(model).keys()


@pytest.mark.parametrize("longest", [50, 55])
def test_positions_for_hardly_more_samples_pin_the_last_stride(longest):
    x = torch.rand(2, 1, 800)
    model = convert(Sequence(longest), x, min_channels=0)
    assert isinstance(model.a.pooling, DiffStride)
    assert model.b.pooling.fixed_size == (50,)
    check(Sequence(longest), x, names="ab", min_channels=0)


def test_positions_that_skip_some_are_no_cut():
    """Of those the network takes every second one, whatever the length of the sequence."""

    class Skipping(Sequence):
        def forward(self, x):
            z = self.b(self.a(x)).mT
            return self.out(z).mean(1) + self.positions[:, : 2 * z.shape[1] : 2, :4].mean(1)

    model = convert(Skipping(128), torch.rand(2, 1, 800), min_channels=0)
    assert [layer.lower_limit_stride for layer in stride_layers(model).values()] == [None, None]


def test_positions_that_are_too_few_for_the_only_stride_are_explained():
    net = Sequence(200)
    net.b = nn.Conv1d(16, 16, 3, padding=1)
    message = "getitem.* cuts a stored tensor that is too short for smaller strides.*store more"
    with pytest.raises(ValueError, match=message):
        convert(net, torch.rand(2, 1, 800), min_channels=0)


def test_positions_that_a_longer_map_is_cut_by_stay_as_many():
    """Where a sequence is cut to the positions, not they to it, all strides learn."""

    def forward(net, x):
        z = net.b(net.a(x))[..., :40]
        return net.out(z + net.positions[..., : z.shape[2]])

    net = Net(forward, a=nn.Conv1d(1, 8, 8, 4, 2), b=nn.Conv1d(8, 8, 8, 4, 2), out=nn.Identity())
    net.positions = nn.Parameter(torch.zeros(1, 8, 40))
    layers = stride_layers(convert(net, torch.rand(2, 1, 800))).values()
    assert [layer.lower_limit_stride for layer in layers] == [None, None]


@pytest.mark.parametrize("last", [nn.Flatten(1), nn.Flatten(0)])
def test_a_kernel_that_covers_the_map_is_a_linear_layer(last):
    """Else the number of logits would follow the strides, and no loss would tell."""
    net = nn.Sequential(strided(), strided(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 4), last)
    converted = check(net, names="012")
    assert isinstance(converted[1].pooling, DiffStride)
    assert converted[2].pooling.fixed_size == (4, 4)


def test_a_kernel_that_covers_the_map_may_move_on_in_front_of_a_global_pooling():
    layers = strided(), strided(), nn.Conv2d(4, 5, 8), nn.AdaptiveAvgPool2d(1)
    model = convert(nn.Sequential(*layers), X)
    assert list(stride_layers(model)) == ["0.pooling", "1.pooling"]


def test_a_kernel_that_covers_an_axis_without_strides_pins_nothing():
    """As of an EEG: a convolution over all electrodes at each time."""
    layers = nn.Conv2d(4, 4, (1, 9), (1, 4), (0, 4)), nn.Conv2d(4, 4, (8, 1)), nn.ReLU()
    model = convert(nn.Sequential(*layers), torch.rand(2, 4, 8, 64))
    assert isinstance(model[0].pooling, DiffStride)


def test_two_heads():
    def forward(net, x):
        x = net.a(x)
        y = net.b(x)
        z = net.c(y)
        return net.one(y.flatten(1)) + net.two(z.flatten(1))

    layers = {"a": strided(), "b": strided(), "c": strided()}
    heads = {"one": nn.Linear(256, 5), "two": nn.Linear(64, 5)}
    converted = check(Net(forward, **layers, **heads), names="abc")
    assert converted.b.pooling.fixed_size == (8, 8)
    assert converted.c.pooling.fixed_size == (4, 4)


def test_a_pinned_residual_stage():
    def forward(net, x):
        x = net.a(x)
        return net.f((net.b(x) + net.shortcut(x)).flatten(1))

    layers = {"a": strided(), "b": strided(), "shortcut": strided(1)}
    converted = check(Net(forward, **layers, f=nn.Linear(256, 5)), names=("a", "b", "shortcut"))
    assert converted.b.pooling is converted.shortcut.pooling


def test_autoencoder_with_a_flat_code():
    def forward(net, x):
        code = net.code(net.c(net.b(net.a(x))).flatten(1))
        return net.up2(net.up1(code.unflatten(1, (4, 4, 4))))

    layers = {"a": strided(), "b": strided(), "c": strided(), "code": nn.Linear(64, 64)}
    ups = {"up1": nn.ConvTranspose2d(4, 4, 2, 2), "up2": nn.Upsample(scale_factor=4)}
    check(Net(forward, **layers, **ups), names="abc")


def test_one_stride_alone_is_refused():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten(), nn.Linear(1024, 5))
    with pytest.raises(ValueError, match="accepts maps of one size only"):
        convert(net, X)


def test_included_modules_are_not_pinned():
    with pytest.raises(ValueError, match="include: '1' cannot have a stride of its own"):
        convert(
            nn.Sequential(strided(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(1024, 2)),
            X,
            include=["1"],
        )


@pytest.mark.parametrize("pool", [nn.AvgPool2d(8), nn.MaxPool2d(8), nn.AvgPool2d((8, 8), 1)])
def test_poolings_of_the_whole_map_are_global(pool):
    net = nn.Sequential(strided(), strided(), pool, nn.Flatten(), nn.Linear(4, 5))
    converted = check(net, names="01")
    assert len(stride_layers(converted)) == 2
    assert converted[2](torch.rand(1, 4, 9, 7)).shape == (1, 4, 1, 1)


# Functions


def test_functions_become_modules():
    def forward(net, x):
        x = F.max_pool2d(net.one(x).relu(), 2)
        x = F.avg_pool2d(net.two(x), kernel_size=3, stride=2, padding=1)
        x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)
        return F.avg_pool2d(x, 4).flatten(1)

    net = Net(forward, one=nn.Conv2d(4, 8, 3, padding=1), two=nn.Conv2d(8, 4, 3, padding=1))
    names = ("maxpool2d_0", "avgpool2d_1", "maxpool2d_2", "avgpool2d_3")
    converted = check(net, names=names)
    assert isinstance(converted, CallsModules)
    assert type(converted).__name__ == type(net).__name__
    assert not isinstance(net, CallsModules)
    assert converted.maxpool2d_2.pooling is converted.avgpool2d_3.pooling
    assert net.state_dict().keys() <= converted.state_dict().keys()


def test_functions_beside_modules_with_the_same_function():
    def inner(net, x):
        return F.max_pool2d(net.pool(x), 2)

    def outer(net, x):
        return F.max_pool2d(net.inner(net.pool(x)), 2)

    inside = Net(inner, pool=nn.MaxPool2d(2))
    converted = check(
        Net(outer, pool=nn.MaxPool2d(2), inner=inside),
        names=("pool", "inner.pool", "inner.maxpool2d_0", "maxpool2d_0"),
        keeps_size=False,
    )
    again = convert(converted, X)
    assert again.conversion.strides == converted.conversion.strides


EVERY_OTHER = slice(None, None, 2)


@pytest.mark.parametrize("first", [(...,), (slice(None), slice(None))])
def test_slices_with_steps_become_modules(first):
    index = (*first, slice(0, None, 2), EVERY_OTHER)

    def forward(net, x):
        x = net.stem(x)
        short = F.pad(x[index], (0, 0, 0, 0, 0, 4))  # as in the original ResNets for CIFAR
        return short + net.conv(x)[:, :, :]

    net = Net(forward, stem=nn.Conv2d(4, 4, 1), conv=nn.Conv2d(4, 8, 3, 2, 1))
    converted = check(net, names=("avgpool2d_0", "conv"), fraction=0.95, keeps_size=False)
    assert converted.conv.pooling is converted.avgpool2d_0.pooling


class Auxiliary(nn.Module):
    """Pools once more in training, and by an argument."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x, size=2):
        y = self.a(x)
        aux = F.max_pool2d(y, 8) if self.training else None
        return self.b(F.max_pool2d(y, size)), aux


def test_calls_with_other_arguments_than_at_conversion_call_the_function():
    converted = convert(Auxiliary().eval(), X)
    converted.maxpool2d_0.pooling.strides.data.fill_(1.6)
    assert converted(X)[0].shape[2:] == (20, 20)
    main, aux = converted.train()(X)
    assert main.shape[2:] == (20, 20)
    assert aux.shape[2:] == (4, 4)
    assert converted(X, 4)[0].shape[2:] == (8, 8)


class Slices(nn.Module):
    """Slices with steps of channels, along one axis, that are written to, and of a mask."""

    def __init__(self):
        super().__init__()
        self.a, self.b = strided(), strided()

    def forward(self, x, mask):
        y = self.b(self.a(x)).clone()
        tokens = y.flatten(2).mT[:, :, ::2].sum()
        heads = y[:, :, ::2, :].sum()
        y[:, :, ::2, ::2].mul_(0)
        return tokens + heads + y.sum() + mask[:, :, ::2, ::2].float().sum()


def test_slices_that_are_no_strides_stay():
    converted = convert(Slices().eval(), (X, X > 0.5), order="after")
    assert set(converted.conversion.strides) == set("ab")
    assert not isinstance(converted, CallsModules)


@pytest.mark.skipif(
    RELEASE < (2, 11), reason="functions of torch 2.8 refuse stand-ins for tuples of sizes"
)
def test_functions_with_sizes_of_the_map_stay():
    def forward(net, x):
        x = net.b(net.a(x))
        return F.avg_pool2d(x, x.shape[2:]) + F.max_pool2d(x, (x.shape[2], x.shape[3]))

    converted = check(Net(forward, a=strided(), b=strided()), names="ab")
    assert not isinstance(converted, CallsModules)


def test_square_maps_with_one_stride():
    def forward(net, x):
        x = net.b(net.a(x))
        return F.avg_pool2d(x, x.size(3)).flatten(1)

    check(Net(forward, a=strided(), b=strided()), names="ab", fraction=0.97, shared_stride=True)


def test_axes_of_stride_1_can_be_kept():
    def forward(net, x):
        x = net.one(net.stem(x))
        return net.both(x) + net.shortcut(x)

    net = Net(
        forward,
        stem=nn.Conv2d(4, 8, 3, padding=1),
        one=nn.Conv2d(8, 8, 3, (1, 2), 1),
        both=nn.Conv2d(8, 8, 3, 2, 1),
        shortcut=nn.Conv2d(8, 8, 1, 2),
    )
    converted = check(
        net, names=("one", "both", "shortcut"), keep_ones=True, keeps_size=False, fraction=0.6
    )
    within = convert(net, X, keep_ones=True, lower_limit_stride=1.5)
    assert within.one.pooling.limits == [(1.0, 1.0), (1.5, float("inf"))]
    layer = converted.one.pooling
    assert layer.limits == [(1.0, 1.0), (1.0, float("inf"))]
    budget = CostBudget(converted, X, 0.5)
    layer.strides.data.copy_(torch.tensor([3.0, 2.5]))
    budget.project_()
    assert budget.cost.value() <= budget.multiply_adds
    assert layer.stride_values()[0] == 1.0
    assert converted.both.pooling.stride_values()[0] > 1.0
    layer.strides.data.copy_(torch.tensor([3.0, 0.5]))
    layer.project_()
    assert layer.strides.tolist() == [1.0, 1.0]
    assert layer.output_size((8, 8)) == (8, 8)


# What stands around


def test_report():
    converted = convert(lenet(), X)
    text = str(report(converted))
    assert "pinned" in text
    assert "10 x 10 -> 5 x 5" in text
    up = nn.Upsample(scale_factor=2)
    assert "up: enlarges to the size that enters c, b" in str(report(convert(unet(up, up), X)))


def test_converting_twice_changes_nothing():
    for net in (lenet(), unet(nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 2, 2))):
        converted = convert(net.eval(), X)
        again = convert(converted, X)
        assert again(X).equal(converted(X))
        assert list(again.state_dict()) == list(converted.state_dict())
        assert isinstance(again.conversion, Conversion)


def test_export_and_compile():
    for net in (lenet(), unet(nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 2, 2))):
        converted = convert(net.eval(), X)
        move_strides(converted)
        frozen = freeze(converted, X)
        program = torch.export.export(frozen, (X,))
        torch.testing.assert_close(program.module()(X), frozen(X))
        with warnings.catch_warnings():
            # Newer releases of torch say that tracing is deprecated.
            warnings.filterwarnings("ignore", ".*deprecated")
            traced = torch.jit.trace(converted, X)
        torch.testing.assert_close(traced(X), converted(X))


class Functions(nn.Module):
    """Calls functions, with an argument that has a name and one with a default."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, image, scale=2.0):
        x = F.max_pool2d(self.conv(image), 2)
        return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0) * scale


def test_the_signature_of_a_network_is_kept():
    converted = convert(Functions().eval(), X)
    assert inspect.signature(converted.forward) == inspect.signature(Functions().forward)
    assert converted(image=X, scale=1.0).equal(converted(X, 1.0))
    frozen, batch = freeze(converted, X), torch.export.Dim("batch", min=1)
    for shapes in (({0: batch},), {"image": {0: batch}}):
        program = torch.export.export(frozen, (X,), dynamic_shapes=shapes).module()
        other = torch.rand(3, 4, 32, 32)
        torch.testing.assert_close(program(other), frozen(other))


def test_attributes_with_our_names_are_kept():
    conv = strided()
    conv.slots = "mine"
    converted = convert(nn.Sequential(conv, strided()), X)
    assert converted[0].slots == "mine"
    assert "attribute of its own named slots" in converted.conversion.left_out["0"]
