"""Conversion: which modules share strides, what is refused, and the networks it works on."""

import copy
import math
import re

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Block, Net, Several
from torch import nn
from torch.nn.utils import prune

from diffstride import DiffStride
from diffstride.conversion.converter import convert
from diffstride.conversion.freezing import freeze
from diffstride.conversion.reporting import report
from diffstride.cost.budget import CostBudget
from diffstride.strides import stride_layers


def test_smooth_maps_give_the_output_of_the_strided_network():
    """Below the ramp of the window nothing is lost: the pooled samples are the strided ones."""
    position = 2 * math.pi * torch.arange(64.0) / 64
    rows, columns = torch.cos(2 * position + 1), torch.sin(3 * position)
    x = torch.stack([rows[:, None] * columns, rows[:, None] + columns])[None]
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular")
    for module in (conv, nn.Conv2d(2, 3, 1, stride=4)):
        converted = convert(nn.Sequential(module), x)
        torch.testing.assert_close(converted(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.1, 1e-7])
def test_even_kernels_and_same_padding_keep_their_samples_in_place(weight):
    """A kernel of 4 leaves 63 of 64 samples, "same" padding starts one sample later."""
    from timm.layers import Conv2dSame

    x = torch.cos(4 * math.pi * torch.arange(64.0) / 64).expand(1, 1, 64, 64)
    for conv in (nn.Conv2d(1, 1, 4, stride=2, padding=1), Conv2dSame(1, 1, 3, stride=2)):
        nn.init.constant_(conv.weight, weight)
        nn.init.zeros_(conv.bias)
        middle = (..., slice(8, 24), slice(8, 24))  # away from the borders, padded with zeros
        difference = (convert(nn.Sequential(conv), x)(x) - conv(x))[middle].abs().max()
        assert difference < 0.05 * conv(x)[middle].abs().max()


@pytest.mark.parametrize("before", [nn.Identity(), nn.ReflectionPad2d(1)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_convolutions_without_padding_see_no_zeros(before, kernel):
    conv = nn.Conv2d(8, 8, kernel, stride=2, bias=False)
    nn.init.constant_(conv.weight, 1 / (8 * kernel**2))
    ones = torch.ones(1, 8, 17, 17)
    converted = convert(nn.Sequential(before, conv), ones)
    assert converted.conversion.placements == {"1": "before"}
    torch.testing.assert_close(converted(ones), conv(before(ones)))


def test_kernels_that_the_network_reads_itself_are_not_resampled():
    def forward(net, x):
        return F.conv_transpose2d(net.b(net.a(x)), net.b.weight, stride=2, padding=1)

    net = Net(forward, a=nn.Conv2d(3, 16, 3, padding=1), b=nn.Conv2d(16, 16, 4, 2, padding=1))
    converted = convert(net, torch.rand(1, 3, 32, 32))
    assert converted.conversion.placements == {"b": "after"}
    assert torch.equal(converted.b.weight, net.b.weight)


BRANCHES = {
    "kernel 1": nn.Conv2d(8, 8, 1, stride=2),
    "even kernel": nn.Conv2d(8, 8, 2, stride=2),
    "average of 2": nn.AvgPool2d(2),
    "average, rounded up": nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "max": nn.MaxPool2d(3, 2, padding=1),
    "maximum, rounded up": nn.MaxPool2d(3, 2, ceil_mode=True),
    "two convolutions": nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5, 2, padding=2)),
}


@pytest.mark.parametrize("size", [32, 31])
@pytest.mark.parametrize("kind", BRANCHES)
def test_branches_agree_at_every_stride(kind, size):
    """Whatever the kernel, padding and rounding, maps that meet keep equal sizes."""
    branch = copy.deepcopy(BRANCHES[kind])
    body = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    if size % 2 and kind in ("even kernel", "average of 2", "maximum, rounded up"):
        body = nn.Conv2d(8, 8, 3, stride=2)  # the strided branches have to agree, too
    x = torch.rand(2, 3, size, size)
    model = convert(Block(branch, body), x, patchify=True)
    assert len(stride_layers(model)) == 1
    (layer,) = stride_layers(model).values()
    strided = Block(branch, body).eval()
    before = {}
    for name, net in (("strided", strided), ("converted", model)):
        net.conv.register_forward_hook(
            lambda *args, name=name: before.update({name: args[2].shape})
        )
        net(x)
    assert before["strided"] == before["converted"]
    for stride in (1.0, 1.07, 1.5, 1.99, 2.01, 2.7, 4.0, 30.0):
        layer.strides.data.fill_(stride)
        networks.step(model, x)


def test_checkpoints_of_both_networks_load():
    plain, x = Block(), torch.rand(IMAGE)
    converted = convert(Block(), x)
    loaded = converted.load_state_dict(plain.state_dict(), strict=False)
    assert loaded.missing_keys == ["conv.pooling.strides", "shortcut.pooling.strides"]
    assert loaded.unexpected_keys == []
    networks.move_strides(converted)
    other = convert(Block(), x)
    other.load_state_dict(converted.state_dict())
    assert torch.equal(other.eval()(x), converted.eval()(x))


def test_shared_strides_are_one_parameter_with_both_gradients():
    x = torch.rand(IMAGE)
    model = convert(Block(), x).double()
    assert model.conv.pooling is model.shortcut.pooling
    model.conv.pooling.float()
    strides = [p for name, p in model.named_parameters() if name.endswith("strides")]
    assert len(strides) == 1

    def gradient(cut):
        model.zero_grad()
        out = model.stem(x.double())
        a, b = model.conv(out), model.shortcut(out)
        (cut[0] * a.square().sum() + cut[1] * b.square().sum()).backward()
        return strides[0].grad

    both = gradient((1, 1)).clone()
    assert torch.allclose(both, gradient((1, 0)).clone() + gradient((0, 1)), rtol=1e-4)


def test_filter_leaves_out_a_module_and_those_it_meets():
    model = convert(
        nn.Sequential(nn.Conv2d(3, 3, 3, 2), Block()),
        torch.rand(1, 3, 40, 40),
        filter_fn=lambda module, name: not name.endswith("shortcut"),
    )
    assert list(model.conversion.strides) == ["0"]
    assert model.conversion.left_out == {
        "1.shortcut": "left out by filter_fn",
        "1.conv": "meets maps in add in 1 whose size does not follow its stride",
    }
    assert type(model[1].conv) is nn.Conv2d


class Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 3, 3, stride=2)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twice = nn.ReLU()

    def forward(self, x):
        x = self.twice(self.down(x))
        return x + self.twice(self.conv(x))


def test_include_refuses_modules_that_cannot_have_a_stride():
    x = torch.rand(IMAGE)
    with pytest.raises(
        ValueError,
        match="include: 'conv' cannot have a stride of its own: down and conv meet, but their",
    ):
        convert(Identity(), x, include=["conv"])
    with pytest.raises(ValueError, match=r"include: .* no single operation named 'nowhere'"):
        convert(Identity(), x, include="nowhere")


def test_converting_twice_equals_once_and_can_include_more():
    x = torch.rand(IMAGE)
    once = convert(Block(), x)
    networks.move_strides(once)
    twice = convert(once, x)
    assert list(twice.state_dict()) == list(once.state_dict())
    assert torch.equal(twice.eval()(x), once.eval()(x))
    assert twice.conversion.strides == once.conversion.strides
    more = convert(convert(once, x, include=["stem"]), x, include=["stem"])
    assert list(more.conversion.strides) == ["conv", "shortcut", "stem"]
    assert list(more.state_dict()) == list(convert(Block(), x, include=["stem"]).state_dict())
    assert more.conv.pooling.stride_values() == once.conv.pooling.stride_values()


def test_a_branch_converted_later_joins_the_existing_layer():
    x = torch.rand(IMAGE)
    model = convert(Block(), x)
    networks.move_strides(model)
    model.shortcut = nn.Conv2d(8, 8, 1, stride=2)
    model.conv.pooling.strides.data.fill_(2.0)
    joined = convert(model, x)
    assert joined.shortcut.pooling is joined.conv.pooling
    networks.move_strides(joined)
    networks.step(joined, x)


def test_a_module_called_twice_has_one_stride_or_is_refused():
    x = torch.rand(IMAGE)
    model = convert(Several(nn.MaxPool2d(3, 2, padding=1)), x)
    assert len(stride_layers(model)) == 1
    model.pool.pooling.strides.data.fill_(1.6)
    assert model(x).shape[2:] == (13, 13)
    with pytest.raises(ValueError, match="called several times, on maps that cannot share"):
        convert(Several(nn.MaxPool2d(3, 2, ceil_mode=True)), torch.rand(1, 3, 30, 30))


def test_a_map_of_fixed_size_is_refused_where_no_stride_could_learn():
    x = torch.rand(IMAGE)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    with pytest.raises(
        ValueError, match=r"2 \(Linear\) accepts maps of one size only, here \(2, 1024\)"
    ):
        convert(nn.Sequential(conv, nn.Flatten(), nn.Linear(1024, 5)), x)

    class Checked(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            torch._assert(y.shape[-2] % 8 + y.shape[-1] % 8 == 0, "whole windows")
            return y

    with pytest.raises(ValueError, match=r"_assert .*accepts maps of one size only, but learned"):
        convert(Checked(conv), x)
    pooled = nn.Sequential(conv, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5))
    networks.move_strides(converted := convert(pooled, x))
    networks.step(converted, x)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (IMAGE, r"tensor or a tuple of several, but got \(2, 3, 32, 32\): pass torch"),
        (None, "a tensor or a tuple of several, but got None"),
        (
            torch.rand(IMAGE[1:]),
            r"needs a batch axis: stem .* of shape \(3, 32, 32\); pass example",
        ),
        (
            torch.rand(2, 3, 32),
            r"needs 2 spatial axes: stem .* of shape \(2, 3, 32\), which have 1 behind batch and",
        ),
    ],
)
def test_wrong_examples_are_refused(example, message):
    with pytest.raises(ValueError, match=message):
        convert(Block(), example)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning")
def test_networks_that_cannot_be_traced_are_refused():
    x = torch.rand(IMAGE)
    for model in (torch.compile(Block()), torch.jit.trace(Block().eval(), x)):
        with pytest.raises(ValueError, match=r"compiled already .*: pass the network itself"):
            convert(model, x)
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet: call the network"):
        convert(nn.Sequential(nn.LazyConv2d(8, 3, stride=2)), x)
    with pytest.raises(ValueError, match=r"'1\.weight' has no shape yet: call the network"):
        convert(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), x)
    for affine, name in ((True, "weight"), (False, "running_mean")):
        norm = nn.LazyBatchNorm2d(affine=affine)
        with pytest.raises(ValueError, match=rf"'1\.{name}' has no shape yet: call the network"):
            convert(nn.Sequential(nn.Conv2d(3, 8, 3, 2), norm), x)


def test_networks_without_a_stride_to_convert_are_refused_with_reasons():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
    with pytest.raises(ValueError, match=r"Sequential has no stride to convert; 0: patchifying"):
        convert(model, torch.rand(IMAGE))


def test_layers_that_meet_without_sharing_are_refused():
    class Own(Block):
        def __init__(self):
            super().__init__(DiffStride(2.0, edge="stopband"), DiffStride(2.0, edge="stopband"))

    with pytest.raises(ValueError, match="maps of 'conv' and 'shortcut' meet, but their strides"):
        convert(Own(), torch.rand(IMAGE))


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(axes):
    conv = (nn.Conv1d, None, nn.Conv3d)[axes - 1]
    model = nn.Sequential(conv(2, 4, 3, stride=2, padding=1), conv(4, 4, 3, padding=1))
    x = torch.rand(1, 2, *(12,) * axes)
    converted = convert(model, x)
    assert converted(x).shape == model(x).shape
    networks.move_strides(converted)
    networks.step(converted, x)


def test_layer_options_are_passed_on():
    model = convert(
        Block(),
        torch.rand(IMAGE),
        edge="passband",
        smoothness_factor=2.0,
        trainable=False,
        shared_stride=True,
        lower_limit_stride=1.5,
        upper_limit_stride=3.0,
        straight_through=True,
    )
    expected = DiffStride(2.0, 2.0, True, False, True, 1.5, 3.0, "passband", True)
    assert repr(model.conv.pooling) == repr(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_equals_eager_while_strides_move():
    x = torch.rand(IMAGE)
    model = convert(Block(), x).eval()
    compiled = torch.compile(model, backend="aot_eager")
    for stride in (2.0, 1.5):
        model.conv.pooling.strides.data.fill_(stride)
        model.eval()
        torch.testing.assert_close(compiled(x), model(x))


def test_data_parallel_training_step():
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        x = torch.rand(IMAGE)
        model = convert(Block(), x)
        alone = copy.deepcopy(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(x).square().sum().backward()
        alone(x).square().sum().backward()
        torch.testing.assert_close(model.conv.pooling.strides.grad, alone.conv.pooling.strides.grad)
        with pytest.raises(ValueError, match=r"inside a Distributed.*pass model.module, and wrap"):
            convert(wrapped, x)
        with pytest.raises(
            ValueError, match=r"'0' is inside a Dist.*pass model.0.module, and wrap"
        ):
            convert(nn.Sequential(wrapped), x)
        torch.testing.assert_close(freeze(wrapped.eval(), x)(x), model.eval()(x))
        with pytest.raises(ValueError, match=r"example .*Parallel, .*: pass model\.module"):
            report(wrapped)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", networks.QUICK)
def test_networks(name):
    pytest.importorskip(name.split("/")[0])
    networks.check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.THOROUGH)
def test_many_networks(name):
    pytest.importorskip(name.split("/")[0])
    networks.check(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the ONNX exporter
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_example_gives_the_same_answers_in_onnxruntime(capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from diffstride.examples import convert_torchvision as example

    class Kept(example.CostBudget):
        def project_(self):
            super().project_()
            budgets.add(self)

    budgets = set()
    monkeypatch.setattr(example, "CostBudget", Kept)
    monkeypatch.chdir(tmp_path)
    example.main("digits", "resnet18", "3")
    printed = capsys.readouterr().out
    in_torch, elsewhere = re.findall(
        r"^(\d+) test images classified correctly", printed, re.MULTILINE
    )
    assert in_torch == elsewhere
    assert int(in_torch) > 180  # of 360
    cost = re.search(r"whole network +([\d.]+) M", printed)
    assert cost is not None
    assert 0.988 <= 1e6 * float(cost[1]) / budgets.pop().multiply_adds <= 1.002  # three digits
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["resnet18.onnx", "resnet18.onnx.data", "strides.png", "windows.png"]


class Own(nn.Module):
    """Has a child with the name of the attribute that stores a conversion."""

    def __init__(self):
        super().__init__()
        self.conversion = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x):
        return self.conversion(x)


def test_a_network_with_a_conversion_of_its_own_is_refused_unless_inside_another():
    x = torch.rand(IMAGE)
    with pytest.raises(ValueError, match="this Own has an attribute 'conversion' of its own"):
        convert(Own(), x)
    assert convert(nn.Sequential(Own()), x).conversion.strides == {"0.conversion": (2, 2)}


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(2)])
def test_a_single_strided_module_is_refused(model):
    with pytest.raises(ValueError, match=r"a single (Conv|MaxPool)2d, .*nn\.Sequential\(model\)"):
        convert(model, torch.rand(IMAGE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_limit_stride": 1.8}, r"'1' .*strides=\(1, 2, 2\) lie outside lower.*filter_fn"),
        ({"shared_stride": True}, r"'1' .*shared_stride needs equal strides, but got \(1, 2, 2\)"),
        ({"edge": "middle"}, "^edge must be one of"),
        ({"lower_limit_stride": 0.5}, "^lower_limit_stride must be a number of at least 1"),
    ],
)
def test_a_layer_with_wrong_options_names_its_module(options, message):
    model = nn.Sequential(nn.Conv3d(2, 3, 3, stride=2), nn.MaxPool3d(2, stride=(1, 2, 2)))
    x = torch.rand(1, 2, 12, 12, 12)
    with pytest.raises(ValueError, match=message):
        convert(model, x, **options)
    others = convert(model, x, filter_fn=lambda _, name: name == "0", shared_stride=True)
    assert others.conversion.strides == {"0": (2, 2, 2)}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm is deprecated
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("analyse", [convert, freeze])
def test_networks_that_cannot_be_copied_are_refused_with_advice(analyse, norm):
    net = nn.Sequential(DiffStride(2.0), norm(nn.Conv2d(3, 4, 3, stride=2)), nn.ReLU())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'1' has a weight that a hook computes.*parametriz"):
            analyse(net, torch.rand(IMAGE))
        with torch.no_grad():
            net(torch.rand(IMAGE))  # stores a weight that can be copied


@pytest.mark.parametrize("analyse", [convert, freeze])
def test_pruned_networks_are_refused_with_advice(analyse):
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
    prune.l1_unstructured(net[1], "weight", 0.5)
    net(torch.rand(IMAGE))  # stores a computed weight
    with pytest.raises(ValueError, match=r"prune\.remove\(module, \"weight\"\)"):
        analyse(net, torch.rand(IMAGE))
    prune.remove(net[1], "weight")
    analyse(net, torch.rand(IMAGE))


def test_networks_frozen_in_inference_mode_can_be_trained():
    x = torch.rand(IMAGE)
    converted = convert(Block(), x)
    with torch.inference_mode():
        frozen = freeze(converted, x)
        CostBudget(converted, x, 0.8)
    frozen.train()(x).square().sum().backward()
    assert frozen.conv.weight.grad.abs().sum() > 0


def test_analysis_ignores_the_default_device():
    x, net = torch.rand(IMAGE), Block()
    # As `set_default_device`, which PyTorch 2.8 cannot undo.
    with torch.device("meta"):  # which no CPU tensor can be mixed with
        converted = convert(net, x)
        budget = CostBudget(converted, x, 0.8)
        converted(x).square().sum().backward()
        budget.project_gradients_()
        with torch.no_grad():
            converted.conv.pooling.strides += 0.1
        budget.project_()
        assert budget.cost().device.type == "cpu"
    assert 0.98 <= budget.cost.value() / budget.multiply_adds <= 1


@pytest.mark.parametrize("analyse", [convert, report])
def test_a_model_on_the_meta_device_is_refused(analyse):
    with torch.device("meta"):
        model = Block()
    with pytest.raises(ValueError, match=r"'stem\.weight' is on the meta device .*to_empty"):
        analyse(model, torch.rand(IMAGE))


def test_networks_converted_in_inference_mode_can_be_trained():
    x = torch.rand(IMAGE)
    with torch.inference_mode():
        converted = convert(Block(), x)
        made_there = convert(nn.Sequential(nn.Conv2d(3, 3, 3, stride=2)), torch.rand(IMAGE))
    for model in (converted, made_there):
        networks.step(model, x)


class Meeting(nn.Module):
    """Two strided convolutions of one map whose outputs are added."""

    def __init__(self, change):
        super().__init__()
        self.one, self.two = (nn.Conv2d(3, 4, 3, stride=2, padding=1) for _ in range(2))
        self.change = change

    def forward(self, x):
        return self.change(self.one, self.two, x)


@pytest.mark.parametrize(
    "change",
    [
        lambda one, two, x: one(x) + two(x).transpose(2, 3),
        lambda one, two, x: one(x).mean(3) + two(x[..., :16]).mean(3),
    ],
    ids=["height and width", "maps of other widths"],
)
def test_modules_that_meet_along_other_axes_are_left_out(change):
    with pytest.raises(ValueError, match=r"no stride to convert; one: meets maps in add"):
        convert(Meeting(change), torch.rand(1, 3, 32, 32))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.mix = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.mix(self.mix(self.down(x)))


def test_costs_before_conversion_of_a_module_called_twice_add_up():
    costs = convert(Twice(), torch.rand(2, 3, 16, 16)).conversion.multiply_adds
    assert costs == {"down": 27 * 4 * 64, "mix": 2 * 16 * 64, "": 27 * 4 * 64 + 2 * 16 * 64}


def test_a_network_in_data_parallel_is_refused_as_a_whole():
    """What it would be saved under are the names of the wrapper."""
    plain = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))
    with pytest.raises(ValueError, match=r"inside a DataParallel.*pass model\.module, and wrap"):
        convert(nn.DataParallel(plain), torch.rand(1, 8, 32, 32))


def test_a_network_of_which_only_the_stem_learns_warns():
    """The shortcut strides along both axes at once, the other branch along one after the other."""

    def forward(net, x):
        x = net.stem(x)
        return net.columns(net.rows(x)) + net.shortcut(x)

    net = Net(
        forward,
        stem=nn.Conv2d(3, 8, 3, stride=2, padding=1),
        rows=nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0)),
        columns=nn.Conv2d(8, 8, (1, 3), stride=(1, 2), padding=(0, 1)),
        shortcut=nn.Conv2d(8, 8, 1, stride=2),
    )
    x = torch.rand(1, 3, 32, 32)
    with pytest.warns(UserWarning, match="only 'stem' learns.*3 other strided modules") as caught:
        converted = convert(net, x)
    assert caught[0].filename == __file__
    torch.testing.assert_close(converted(x), net(x))
