"""Tracing with known values, and which tensors share a resolution."""

import io
import itertools
from collections import defaultdict, deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds, convert
from diffstride.conversion.pooled_module import Margin, fit
from diffstride.graph.fake_run import unchanged
from diffstride.graph.map_sizes import Size, Sizes
from diffstride.graph.stride_groups import UnshareableError, resolve
from diffstride.graph.tracer import trace


def strided(kernel_size=3, stride=2, channels=4, in_channels=4):
    return nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2)


class Net(nn.Module):
    """A network from modules and a function of them and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def found(net, size=(16, 20), names=None):
    traced = trace(net, torch.zeros(2, 4, *size))
    calls = [
        node
        for node in traced.graph.nodes
        if node.op == "call_module"
        and (node.target in names if names else hasattr(traced.module(node), "stride"))
    ]
    return resolve(traced, calls)


def classes(net, **kwargs):
    return [[str(call.target) for call in calls] for calls in found(net, **kwargs).classes()]


def shuffle(x, groups=2):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


MEETINGS = {
    "addition": lambda m, x: m.a(x) + m.b(x),
    "concatenation": lambda m, x: torch.cat([m.a(x), m.b(x)], dim=1),
    "product after a shuffle": lambda m, x: shuffle(m.a(x)) * F.relu(m.b(x)),
    "channels last": lambda m, x: m.a(x).permute(0, 2, 3, 1) + m.b(x).permute(0, 2, 3, 1),
    "flattened": lambda m, x: m.a(x).flatten(2) + m.b(x).flatten(2),
    "matrix product": lambda m, x: m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2),
    "stack": lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_branches_that_meet_share_a_resolution(meeting):
    net = Net(MEETINGS[meeting], a=strided(3), b=strided(1))
    assert classes(net) == [["a", "b"]]


def test_calls_in_a_row_and_branches_that_pool_globally_do_not():
    net = Net(
        lambda m, x: m.b(m.a(x)).mean((2, 3)) + m.c(x).amax((2, 3)),
        a=strided(),
        b=strided(),
        c=strided(),
    )
    assert classes(net) == [["a"], ["b"], ["c"]]


def test_a_gate_of_size_one_does_not_tie_its_map():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), strided(1, stride=1), nn.Sigmoid())
    net = Net(lambda m, x: m.a(x) * m.gate(m.b(x)), a=strided(), b=strided(), gate=gate)
    assert classes(net, names=("a", "b")) == [["a"], ["b"]]


def test_sharing_downstream_is_sharing_upstream():
    """The second strides of two branches share, so the first ones must."""
    net = Net(
        lambda m, x: m.a2(m.a1(x)) + m.b2(m.b1(x)),
        a1=strided(),
        a2=strided(),
        b1=strided(1),
        b2=strided(1),
    )
    assert sorted(classes(net)) == [["a1", "b1"], ["a2", "b2"]]


def test_identity_shortcut_refuses_a_stride():
    net = Net(lambda m, x: x + m.b(F.relu(m.a(x))), a=strided(stride=1), b=strided(stride=1))
    with pytest.raises(UnshareableError, match=r"meets maps in add in the model itself") as error:
        found(net)
    assert [call.target for call in error.value.calls] == ["b"]


def test_two_strides_against_one_are_refused():
    net = Net(lambda m, x: m.b(m.a(x)) + m.c(x), a=strided(), b=strided(), c=strided(1, stride=4))
    with pytest.raises(UnshareableError, match="b and c meet, but what comes into them has passed"):
        found(net)


def test_upsampling_by_a_factor_is_refused_and_to_a_size_is_not():
    by_factor = Net(lambda m, x: F.interpolate(m.a(x), scale_factor=2.0) + x, a=strided())
    with pytest.raises(UnshareableError, match="meets maps in add") as error:
        found(by_factor)
    assert [call.target for call in error.value.calls] == ["a"]
    to_size = Net(lambda m, x: F.interpolate(m.a(x), size=x.shape[-2:]) + x, a=strided())
    assert classes(to_size) == [["a"]]


@pytest.mark.parametrize("learned", [1, 2, 3])
@pytest.mark.parametrize("staying", [1, 2, 3])
@pytest.mark.parametrize("meet", ["rounded down", "enlarged"])
def test_sizes_that_agree_by_chance_are_told_apart(learned, staying, meet):
    """Where a half is rounded up beside one that is rounded down, or doubled, half of all fit."""

    def forward(m, x):
        x = m.down(m.stem(x))
        if meet == "enlarged":
            return torch.cat([x, F.interpolate(m.body(x), scale_factor=2)], 1)
        return m.body(x) + F.avg_pool1d(x, 2)

    def halvings(count):
        return nn.Sequential(*(nn.Conv1d(8, 8, 3, 2, 1) for _ in range(count)))

    net = Net(forward, stem=halvings(learned), down=halvings(staying), body=halvings(1))
    traced = trace(net, torch.zeros(1, 8, 512))
    calls = [node for node in traced.graph.nodes if str(node.target).startswith("stem")]
    with pytest.raises(UnshareableError, match=r"meets maps in .* whose size its stride does"):
        resolve(traced, calls)


def test_attention_over_volumes_is_followed():
    def forward(m, x):
        tokens = m.a(x).flatten(2)
        return torch.softmax(tokens.transpose(1, 2) @ tokens, -1)

    net = Net(forward, a=nn.Conv3d(1, 4, 3, 2, 1))
    traced = trace(net, torch.zeros(1, 1, 8, 16, 16))
    calls = [node for node in traced.graph.nodes if str(node.target) == "a"]
    assert resolve(traced, calls).classes() == [calls]


def test_an_operation_of_one_size_says_what_it_complained_about():
    net = Net(lambda m, x: m.head(m.a(x).flatten(1)), a=strided(), head=nn.Linear(320, 5))
    with pytest.raises(UnshareableError, match=r"learned strides change it \(.* X .*\): put ad"):
        found(net)


def test_flattening_into_a_linear_layer_names_it():
    net = Net(lambda m, x: m.head(m.a(x).flatten(1)), a=strided(), head=nn.Linear(4 * 8 * 10, 5))
    with pytest.raises(
        UnshareableError, match=r"head \(Linear\) accepts .* leave out 'a'"
    ) as error:
        found(net)
    assert error.value.calls == []
    pooled = Net(lambda m, x: m.head(m.pool(m.a(x)).flatten(1)), a=strided(),
                 pool=nn.AdaptiveAvgPool2d(2), head=nn.Linear(16, 5))  # fmt: skip
    assert classes(pooled, names=("a",)) == [["a"]]


@pytest.mark.parametrize("size", [(16, 20), (17, 23)])
def test_sizes_follow_operations_that_stay(size):
    """Sizes read off at one stride predict those at others, through all kinds of operations."""
    net = Net(
        lambda m, x: F.interpolate(m.c(F.max_pool2d(m.b(m.a(x)), 3, 2)), scale_factor=3).flatten(2),
        a=strided(),
        b=nn.Conv2d(4, 4, 3),
        c=nn.Conv2d(4, 4, 3, stride=2, padding=1),
    )
    resolutions = found(net, size, names=("a",))
    (call,) = resolutions.leaders
    nodes = {node.name: node for node in resolutions.trace.graph.nodes}
    sizes = Sizes(resolutions)
    for height in range(7, 24):
        maps = F.max_pool2d(net.b(torch.zeros(1, 4, height, 15)), 3, 2)
        rows = sizes.read(resolutions.dims(nodes["c"])[2]).at({(call, 0): height, (call, 1): 15})
        assert rows == net.c(maps).shape[2]
        tokens = sizes.read(resolutions.dims(nodes["flatten"])[2])
        expected = 9 * net.c(maps).shape[2:].numel()
        assert tokens.at({(call, 0): height, (call, 1): 15}) == expected


def test_control_flow_on_shapes_is_followed():
    def forward(m, x):
        if x.shape[-1] % 2 == 0 and len(x.shape) == 4:
            x = F.pad(x, (0, 1))
        for _ in range(x.size(1) - 2):
            x = m.a(x)
        return x

    traced = trace(Net(forward, a=strided(stride=1)), torch.zeros(1, 4, 8, 8))
    names = [
        node.name for node in traced.graph.nodes if node.op in ("call_module", "call_function")
    ]
    assert names.count("pad") == 1
    assert [name for name in names if name.startswith("a")] == ["a", "a_1"]
    assert traced.values[next(reversed(traced.values))].shape == (1, 4, 8, 9)


class Choosy(nn.Module):
    """Takes more than its maps, as networks of users do."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleDict({"a": strided(), "b": strided()})

    def forward(self, x, mask=None, way="a", *more, scale=None, **options):
        assert mask is None or mask.dim() == 3
        for other in more:
            x = x + other
        x = self.ways[way](x) if mask is None else self.ways[way](x * mask)
        return x if scale is None and not options else x * scale


def test_arguments_that_the_example_lacks_keep_their_defaults():
    x, mask = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8)

    def inputs_and_modules(*inputs):
        nodes = trace(Choosy(), inputs).graph.nodes
        return [str(n.target) for n in nodes if n.op in ("placeholder", "call_module")]

    assert inputs_and_modules(x) == ["x", "ways.a"]
    assert inputs_and_modules(x, mask) == ["x", "mask", "ways.a"]
    assert inputs_and_modules(x, None, "b") == ["x", "ways.b"]
    everything = ["x", "mask", "more_0", "more_1", "ways.b"]
    assert inputs_and_modules(x, mask, "b", x, x) == everything


class Pair(nn.Module):
    def forward(self, x, y, scale=1.0):
        return x + y * scale


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, r"holds 1 input, but Pair.forward\(self, x, y, scale=1.0\) takes 2 to 3 inputs"),
        (4, r"holds 4 inputs, but .* takes 2 to 3 inputs .*: pass a tuple with one for each"),
    ],
)
def test_examples_of_another_number_of_inputs_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        trace(Pair(), (torch.zeros(1, 4, 8, 8),) * count)


def test_tracing_leaves_the_model_alone():
    def forward(m, x):
        m.norm.num_batches_tracked.add_(1)
        return m.norm(m.inner(x)) * torch.tensor([0.5]) + m.norm.running_mean[0]

    inner = nn.Sequential(strided(), nn.Dropout())
    net = Net(forward, norm=nn.BatchNorm2d(4), inner=inner)
    seen = []
    inner.register_forward_hook(lambda *args: seen.append(args))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attributes, random = set(vars(net)), torch.get_rng_state()
    trace(net, torch.zeros(1, 4, 2, 2))
    assert set(vars(net)) == attributes
    assert seen == []
    assert torch.equal(random, torch.get_rng_state())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


class ReadOnly(dict):
    """As configurations are in some libraries."""

    def clear(self):
        raise TypeError("read-only")

    update = clear


class Keeping(nn.Module):
    """Stores what it meets, as networks do for pictures, auxiliary losses or running means."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.conv, self.seen = nn.Conv2d(3, 4, 3, padding=1), []
        self.maps, self.levels = defaultdict(list), ([[], deque(maxlen=2)],)
        self.settings = ReadOnly({"channels": 4})

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        x = self.conv(x - self.mean.view(1, -1, 1, 1))
        self.feature = x
        self.maps["conv"].append(x)
        for kept in (self.seen, *self.levels[0]):
            kept.append(x.mean())
        return x


@pytest.mark.parametrize("analyse", [convert, MultiplyAdds])
def test_tracing_leaves_no_trace_in_networks_that_keep_what_they_meet(analyse):
    pool = nn.MaxPool2d(2) if analyse is convert else DiffStride(2.0)
    model, x = nn.Sequential(Keeping(), pool), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
    mean = model[0].mean.clone()
    analysed = analyse(model, x)
    for keeping in (model[0], analysed[0] if analyse is convert else model[0]):
        assert [type(value) for value in keeping.seen] == [torch.Tensor]
        assert type(keeping.feature) is torch.Tensor
        for kept in (keeping.maps["conv"], *keeping.levels[0]):
            assert [type(value) for value in kept] == [torch.Tensor]
        assert keeping.levels[0][1].maxlen == 2
        assert keeping.settings == {"channels": 4}
        assert torch.equal(keeping.mean, mean)
    torch.save(model.state_dict(), io.BytesIO())
    model(x)


def test_a_buffer_that_changes_its_size_has_it_again_afterwards():
    norm = nn.BatchNorm1d(3)
    before, buffer = norm.running_mean.clone(), norm.running_mean
    with unchanged(norm):
        buffer.resize_(5).fill_(1.0)
    assert norm.running_mean is buffer
    assert torch.equal(buffer, before)


def test_a_method_named_output_size_does_not_make_a_pooling_layer():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

        def forward(self, x):
            return self.conv(x)

        def output_size(self, size):
            return tuple((n + 1) // 2 for n in size)

    model = convert(Block(), torch.zeros(1, 3, 8, 8))
    assert list(model.conversion.strides) == ["conv"]
    assert model.conversion.multiply_adds[""] == 8 * 27 * 16


def test_tracing_leaves_autocast_alone():
    """Fake casts of the weights must not stay where autocast keeps them for the next call."""

    def forward(m, x):
        with m.own:
            return m.conv(x)

    net, x = nn.Sequential(strided(), Net(forward, conv=strided())), torch.rand(1, 4, 8, 8)
    net[1].own = torch.autocast("cpu", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_cache_enabled()
        trace(net, x)
        assert torch.is_autocast_cache_enabled()
        out = net(x)
    assert type(out) is torch.Tensor
    assert out.dtype is torch.bfloat16


def test_multiply_adds_are_counted_by_node():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Flatten(2), nn.Linear(16, 5))
    traced = trace(net, torch.zeros(2, 4, 8, 8))
    counts = {str(node.target): count for node, count in traced.multiply_adds.items() if count}
    assert counts == {"0": 2 * 16 * 8 * 4 * 9, "2": 2 * 8 * 16 * 5}


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if x.mean().item() > 0 else x


def test_what_cannot_be_followed_is_named():
    net = nn.Sequential(strided(), nn.Sequential(DataDependent()))
    with pytest.raises(ValueError, match=r"into '1\.0' \(DataDependent\).*leaf_modules=\['1\.0'\]"):
        trace(net, torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="no module named 'nowhere'"):
        trace(net, torch.zeros(1, 4, 8, 8), leaf_modules=["nowhere"])
    with pytest.raises(ValueError, match="check that the example has the shape"):
        trace(strided(), torch.zeros(1, 3, 8, 8))


def make(m, x):
    return torch.zeros(x.shape[0], 1, *x.shape[2:])


def insist(m, x):
    assert isinstance(x, torch.Tensor)
    return x


@pytest.mark.parametrize(("forward", "line"), [(make, "return torch.zeros"), (insist, "assert")])
def test_what_cannot_be_followed_is_shown_with_its_line(forward, line):
    net, x = Net(forward), torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=rf"at '{line}.* line \d+\).*module of its own.*leaf_modu"):
        trace(net, x)
    with pytest.raises(ValueError, match=rf"at '{line}.* line \d+\).*leaf_modules=\['0'\]"):
        trace(nn.Sequential(net), x)


def test_leaf_modules_is_no_way_out_for_what_depends_on_data():
    net, x = nn.Sequential(strided(), DataDependent()), torch.zeros(1, 4, 8, 8)
    for leaf in ("1", DataDependent):
        with pytest.raises(ValueError, match=r"'1' .* is in leaf_modules, but .* on the data") as e:
            trace(net, x, leaf_modules=[leaf])
        assert "leaf_modules=[" not in str(e.value)
    with pytest.raises(
        ValueError, match=r"'0' \(Conv2d\) cannot be run .* check that the exa"
    ) as e:
        trace(net, torch.zeros(1, 3, 8, 8))
    assert "leaf_modules" not in str(e.value)


def test_leaf_modules_by_name_and_class_are_not_looked_into():
    net = nn.Sequential(nn.Sequential(strided(), nn.ReLU()), strided())
    for leaf in ("0", nn.Sequential):
        nodes = trace(net, torch.zeros(1, 4, 8, 8), leaf_modules=[leaf]).graph.nodes
        assert [node.target for node in nodes if node.op == "call_module"] == ["0", "1"]


def test_leaf_modules_of_a_conversion_are_remembered():
    x = torch.rand(1, 4, 16, 16)
    converted = convert(nn.Sequential(strided(), Net(insist)), x, leaf_modules=["1"])
    assert MultiplyAdds(converted, x).value() == CostBudget(converted, x).cost.value()
    trace(Net(lambda m, x: m.net(x), net=converted), x)
    assert convert(converted, x).conversion.leaf_modules == ("1",)
    with pytest.raises(ValueError, match="cannot be followed into '1'"):
        MultiplyAdds(converted, x, leaf_modules=["0"])


def test_pooling_layers_are_calls_of_their_own():
    pool = DiffStride(2.0, edge="stopband")
    net = Net(lambda m, x: m.conv(m.pool(x)) + m.pool(m.other(x)), pool=pool,
              conv=strided(stride=1), other=strided(stride=1))  # fmt: skip
    assert classes(net, names=("pool",)) == [["pool", "pool"]]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_fit_drops_and_repeats_samples_of_its_axis(axes):
    x = torch.arange(5.0).expand(1, 1, *(5,) * axes)
    others = [Margin()] * (axes - 1)
    for margin, expected in [
        (Margin(), [0, 1, 2, 3, 4]),
        (Margin(drop=2, add=1), [2, 3, 4, 4]),
        (Margin(drop=1, add=-2), [1, 2]),
    ]:
        got = fit(x, [*others, margin])
        assert torch.equal(got, torch.tensor(expected).float().expand(*x.shape[:-1], -1))


def test_sizes_are_rounded_down_as_by_integers():
    for stride, added in itertools.product(range(2, 12), range(-6, 7)):
        size = Size(("n",), 1 / stride, added / stride, rounded=True)
        for n in range(12, 200):
            assert size.at({"n": n}) == (n + added) // stride
