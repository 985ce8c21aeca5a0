"""Networks that are hard to trace: what is analysed is what runs, at all strides."""

import functools
import math

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, strided
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, freeze, stride_layers
from diffstride._torch_compat import FakeTensorMode, OperationCounter, tree_leaves
from diffstride.graph.fake_run import shapes_only
from diffstride.graph.fast_shapes import FastFunctions
from diffstride.graph.tracer import trace

X = torch.rand(2, 4, 32, 32)


def counted(model, *inputs):
    """Multiply-adds of one sample, counted while the model runs on data."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        model(*inputs)  # fills the caches of matrices: making them is not part of the cost
        with OperationCounter() as counter:
            model(*inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    return sum(counter.multiply_adds) / len(inputs[0])


def check_costs(model, *inputs, strides=(2.0, 1.4, 3.1)):
    """The cost is the one counted, at these strides of all layers."""
    cost = MultiplyAdds(model, inputs)
    for stride in strides:
        for layer in stride_layers(model).values():
            layer.strides.data.fill_(stride)
        assert cost.value() == counted(model, *inputs)


def check(net, *inputs, names=("a", "b")):
    """Convert a network; the modules converted are ``names``, and costs are right."""
    converted = convert(net, inputs)
    assert tuple(converted.conversion.strides) == names
    with torch.no_grad():
        assert converted(*inputs).shape == net(*inputs).shape
    check_costs(converted, *inputs)
    return converted


def two(forward, **modules):
    """A network of two strided convolutions, and others."""
    return Net(forward, a=strided(), b=strided(), **modules).eval()


# Products that torch's counter takes to be free


def test_bilinear_layers_count_as_the_sums_of_products_they_are():
    def forward(m, x):
        pixels = m.b(m.a(x)).movedim(1, -1)
        return m.bilinear(pixels, pixels)

    converted = check(two(forward, bilinear=nn.Bilinear(4, 4, 5)), X)
    cost = MultiplyAdds(converted, X)
    pixels = math.prod(axis.output_size for axis in cost.maps()["b.pooling"])
    assert cost.by_module()["bilinear"] == pixels * 4 * 4 * 5


VECTOR = torch.rand(8)


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda x: x @ VECTOR, 2 * 3 * 8),
        (lambda x: x[0, 0] @ VECTOR, 8),
        (lambda x: torch.addmv(torch.zeros(3), x[0], VECTOR), 3 * 8),
        (lambda x: torch.addbmm(torch.zeros(3, 3), x, x.mT), 2 * 3 * 3 * 8),
        (lambda x: F.bilinear(x, x, torch.ones(5, 8, 8)), 2 * 3 * 5 * 8 * 8),
        (lambda x: torch.vdot(x[0, 0], VECTOR), 8),
        (lambda x: torch.zeros(3).addmv_(x[0], VECTOR), 3 * 8),
        (lambda x: torch.zeros(3, 3).addbmm_(x, x.mT), 2 * 3 * 3 * 8),
        (lambda x: torch.zeros(3, 3).addmm_(x[0], x[0].mT), 3 * 3 * 8),
        (lambda x: torch.zeros(2, 3, 3).baddbmm_(x, x.mT), 2 * 3 * 3 * 8),
    ],
    ids=[
        "matrix·vector",
        "dot",
        "addmv",
        "addbmm",
        "bilinear",
        "vdot",
        "addmv_",
        "addbmm_",
        "addmm_",
        "baddbmm_",
    ],
)
def test_products_count_as_often_as_numbers_are_multiplied(product, expected):
    with OperationCounter() as counter:
        product(torch.rand(2, 3, 8))
    assert sum(counter.multiply_adds) == expected


# Parametrized modules


@pytest.mark.parametrize("of", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("training", [True, False])
def test_parametrized_convolutions_are_converted_and_their_cost_follows_strides(of, training):
    net = nn.Sequential(of(strided()), nn.LeakyReLU(), of(strided())).train(training)
    converted = check(net, X, names=("0", "2"))
    CostBudget(converted, X, 0.9)
    assert type(freeze(converted, X)(X)) is torch.Tensor


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gain = strided(), nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, x):
        return self.a(x) * self.gain


def test_a_block_with_a_parametrization_of_its_own_is_traced_into():
    net = nn.Sequential(Gain(), strided())
    parametrize.register_parametrization(net[0], "gain", nn.Softplus())
    check(net, X, names=("0.a", "1"))


def test_a_data_parallel_part_is_traced_into():
    part = nn.DataParallel(nn.Sequential(strided(), nn.ReLU(), nn.MaxPool2d(2)))
    check(nn.Sequential(part, nn.Conv2d(4, 2, 1)), X, names=("0.module.0", "0.module.2"))


# Tensors, sizes and numbers in forward


def branch(m, x):
    x = m.a(x)
    assert isinstance(x, torch.Tensor)
    assert torch.is_tensor(x)
    assert not isinstance(x, nn.Parameter)
    assert isinstance(m.a.weight, nn.Parameter)
    assert isinstance(x.shape, tuple)
    assert isinstance(x.shape[2], int)
    return m.b(x)


def zeros(m, x):
    x = m.a(x)
    b, c, h, w = x.shape
    state = torch.zeros(b, c, h, w, dtype=x.dtype, device=x.device)
    return m.b(x + state) + torch.tensor([h, w]).sum() + torch.tensor(c)


def formatted(m, x):
    x = m.a(x)
    whole, rest = divmod(x.shape[2], 3)
    assert f"{x.shape[2]:03d}".isdigit()
    return m.b(x / float(np.prod(x.shape[2:])) + whole + rest)


def assigned(m, x):
    x = m.a(x)
    out = torch.zeros_like(x)
    out[:, :2] = x[:, 2:]
    out[:, 2:] += x[:, :2]
    out += 1
    return m.b(out)


def made(m, x):
    x = nn.ReLU()(nn.ZeroPad2d(1)(m.a(x)))
    return nn.Upsample(size=x.shape[2:])(m.b(x[:, :, 1:-1, 1:-1]))


@torch.fx.wrap
def shifted(x, size):
    size[0] = min(size[0], x.shape[2])
    return torch.roll(x, size, (2, 3))


def rolled(m, x):
    return m.b(shifted(m.a(x), [2, 2]))


def expanded(m, x):
    x = m.a(x)
    gains = torch.arange(4.0).roll(x.shape[2]).expand(len(x), 4)
    grid = torch.linspace(-1, 1, 64)[None, None, : x.shape[2], None]
    return m.b(x * gains[:, :, None, None] + grid.new_ones(len(x), 1, *x.shape[2:]) * grid)


FORWARDS = [branch, zeros, formatted, assigned, rolled, expanded]


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_tensors_and_sizes_may_be_used_as_in_the_network(forward):
    check(two(forward), X)


class Storing(nn.Module):
    """Adds a grid of the size of a map, which it stores until a map of another size comes."""

    def __init__(self, grid, fits):
        super().__init__()
        self.register_buffer("grid", grid, persistent=False)
        self.fits = fits

    def forward(self, x):
        if self.grid is None or not self.fits(self.grid, x):
            self.grid = torch.ones(1, 1, *x.shape[2:])
        return x + self.grid[:, :, : x.shape[2], : x.shape[3]]


class StoringPlainTensors(Storing):
    def __init__(self, grid, fits):
        nn.Module.__init__(self)
        self.grid, self.fits = grid, fits


@pytest.mark.parametrize("ran_before", [True, False])
@pytest.mark.parametrize("kind", [Storing, StoringPlainTensors])
@pytest.mark.parametrize("grid", [None, torch.ones(1, 1, 1, 1)])
@pytest.mark.parametrize("size", ["same", "at least"])
def test_tensors_made_anew_for_maps_of_another_size_follow_strides(kind, grid, size, ran_before):
    def fits(grid, x):
        if size == "same":
            return grid.shape[2:] == x.shape[2:]
        return grid.shape[2] >= x.shape[2] and grid.shape[3] >= x.shape[3]

    net = two(lambda m, x: m.b(m.grid(m.a(x))), grid=kind(grid, fits))
    if ran_before:
        net(X)
    converted = check(net, X)
    CostBudget(converted, X)  # which runs it on shapes again
    assert type(converted.grid.grid) is torch.Tensor


def test_a_network_that_stores_sizes_and_fails_at_twice_its_size_is_as_it_was():
    def forward(m, x):
        m.sizes.append(x.shape[2:])
        if x.shape[2] == 64:
            raise ValueError("too large")
        return m.b(m.a(x))

    net = two(forward)
    net.sizes = []
    check(net, X)
    assert net.sizes == [X.shape[2:]]


def test_modules_made_in_forward_are_run():
    net = two(made)
    assert list(convert(net, X).conversion.strides) == ["a", "b"]
    check_costs(convert(net, X, filter_fn=lambda _, name: name == "a"), X)


def test_parts_of_a_sequential_are_run():
    body = nn.Sequential(strided(), nn.ReLU(), strided())
    check(Net(lambda m, x: m.body[:2](x), body=body), X, names=("body.0",))


def test_modules_with_weights_that_are_no_part_of_the_network_are_refused():
    convs = [strided()]
    with pytest.raises(ValueError, match=r"a Conv2d with weights .* no part .* in __init__"):
        convert(two(lambda m, x: m.b(convs[0](x))), X)


class Padded(nn.Module):
    """Works out its padding from a buffer, as EnCodec does."""

    def __init__(self, kernel, stride):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, kernel, stride)
        self.register_buffer("total", torch.tensor(kernel - stride), persistent=False)

    def forward(self, x):
        left = self.total // 2
        return self.conv(F.pad(x, (int(left), int(self.total - left))))


def test_numbers_in_buffers_are_known():
    signal, net = torch.rand(2, 4, 640), nn.Sequential(Padded(7, 2), nn.ELU(), Padded(8, 4))
    assert list(convert(net, signal).conversion.strides) == ["0.conv", "2.conv"]


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = strided(stride=1)

    def forward(self, x):
        return x + self.a(x) if not self.training or torch.rand(()) > 0.1 else x


def test_layers_dropped_at_random_are_refused_in_training_with_advice():
    net = nn.Sequential(strided(), Dropping())
    assert convert(net.eval(), X)
    for leaf_modules in ((), ("1",)):
        with pytest.raises(ValueError, match=r"'1' \(Dropping\).*call model\.eval\(\)"):
            convert(net.train(), X, leaf_modules=leaf_modules)


# Convolutions that hold their padding


class SamePadded(nn.Conv2d):
    """As in efficientnet_pytorch."""

    def __init__(self):
        super().__init__(4, 4, 3, 2)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


class Blur(nn.Module):
    """As in antialiased-cnns."""

    def __init__(self):
        super().__init__()
        self.stride, self.pad = 2, nn.ReflectionPad2d(1)
        self.register_buffer("filter", torch.full((4, 1, 3, 3), 1 / 9))

    def forward(self, x):
        return F.conv2d(self.pad(x), self.filter, stride=self.stride, groups=4)


def test_convolutions_that_hold_their_padding_are_converted():
    check(nn.Sequential(SamePadded(), nn.ReLU(), Blur(), strided()), X, names=("0", "2", "3"))


# Hooks, and functions in the place of forward


def test_hooks_that_change_sizes_are_part_of_the_network():
    net = nn.Sequential(strided(), strided())
    pad = functools.partial(F.pad, pad=(3, 3, 3, 3), mode="reflect")
    net[0].register_forward_pre_hook(lambda module, args: pad(args[0]))
    net[0].register_forward_hook(lambda module, args, kwargs, out: pad(out), with_kwargs=True)
    net[1].register_forward_pre_hook(lambda m, a, k: (a, k), with_kwargs=True)
    check(net, X, names=("0", "1"))


class Collecting(nn.Module):
    """Reads what a hook has kept, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.kept = strided(), strided(), []
        self.a.register_forward_hook(lambda module, args, out: self.kept.append(out))

    def forward(self, x):
        self.kept.clear()
        return self.b(self.a(x)).mean((2, 3)) + self.kept[0].mean((2, 3))


def test_hooks_that_collect_maps_belong_to_the_copy():
    net = Collecting()
    converted = check(net, X)
    del net.a._forward_hooks[next(iter(net.a._forward_hooks))]
    converted(X)


def test_what_hooks_keep_is_restored_and_hooks_that_read_numbers_are_left_out():
    kept, read = [], []

    class Watching:
        seen = None

        def __call__(self, module, args, out):
            self.seen = out

    net, watching = nn.Sequential(strided(), strided()), Watching()
    for hook in (
        lambda *args: kept.append(args),
        lambda *args: read.append(args[-1].item()),
        watching,
    ):
        net[0].register_forward_hook(hook)
    net[0]._forward_hooks.pop(list(net[0]._forward_hooks)[1])
    trace(net, X)
    assert (kept, read, watching.seen) == ([], [], None)
    net[1].register_forward_hook(lambda *args: read.append(args[-1].mean().item()))
    MultiplyAdds(net, X)
    assert read == []


def test_a_forward_that_refers_to_the_network_refers_to_the_copy():
    net = nn.Sequential(DiffStride(2.0), strided())
    net.forward = lambda x: net[1](net[0](x))
    converted = check(net, X, names=("1",))
    net[0] = net[1] = nn.Identity()
    converted(X)


# Attention


@pytest.mark.parametrize(
    ("training", "weights"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_attention_modules_cost_a_sum_of_products_in_both_modes(training, weights):
    def forward(m, x):
        x = m.a(x).flatten(2).transpose(1, 2)
        return m.attend(x, x, x, need_weights=weights)[0]

    attend = nn.MultiheadAttention(4, 2, batch_first=True)
    converted = convert(Net(forward, a=strided(), attend=attend).train(training), X)
    cost, tokens = MultiplyAdds(converted, X), 16 * 16
    parts = cost.by_module()
    assert parts["attend"] == 4 * tokens * 4 * 4 + 2 * tokens**2 * 4
    check_costs(converted, X)
    CostBudget(converted, X, 0.9)


def test_transformer_layers_cost_the_same_in_both_modes():
    def forward(m, x):
        return m.encode(m.a(x).flatten(2).transpose(1, 2))

    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net = Net(forward, a=strided(), encode=nn.TransformerEncoder(layer, 2)).eval()
    evaluated = MultiplyAdds(converted := convert(net, X), X).value()
    assert evaluated == MultiplyAdds(converted.train(), X).value()
    check_costs(converted, X)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"bidirectional": True}),
        (nn.LSTM, {"num_layers": 2, "dropout": 0.1}),
        (nn.GRU, {}),
        (nn.GRU, {"num_layers": 2, "bias": False}),
        (nn.RNN, {"bidirectional": True}),
        (nn.RNN, {"nonlinearity": "relu"}),
    ],
)
def test_recurrent_layers_cost_two_products_a_gate_and_step(kind, options):
    def forward(m, x):
        return m.recur(m.a(x).mean(2).transpose(1, 2))[0]

    recur, x = kind(4, 6, batch_first=True, **options), X[..., :12, :12]
    converted = convert(Net(forward, a=strided(), recur=recur), x)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    products = gates * 6 * (4 + 6) * (2 if "bidirectional" in options else 1)
    products += gates * 6 * (6 + 6) * ("num_layers" in options)
    assert MultiplyAdds(converted, x).by_module()["recur"] == 6 * products
    check_costs(converted, x)
    CostBudget(converted, x)


def test_a_batch_may_be_as_large_as_a_sequence_is_long():
    def forward(m, x):
        return m.recur(m.a(x).permute(2, 0, 1))[0]

    x = torch.rand(16, 4, 32)
    convolution = nn.Conv1d(4, 4, 3, stride=2, padding=1)
    converted = convert(Net(forward, a=convolution, recur=nn.GRU(4, 6)), x)
    assert isinstance(converted.a.pooling, DiffStride)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.GRU(4, 6), (5, 2, 4)),
        (nn.GRU(4, 6, 2, bidirectional=True, batch_first=True), (2, 5, 4)),
        (nn.RNN(4, 6), (5, 4)),
        (nn.LSTM(4, 6, 2, bidirectional=True), (5, 2, 4)),
        (nn.LSTM(4, 6, proj_size=3, bias=False), (5, 2, 4)),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_run_all_steps_at_once_on_shapes(layer, shape):
    x = torch.rand(shape)
    with torch.no_grad():
        expected = [each.shape for each in tree_leaves(layer(x))]
    for steps in (x.shape, [1000 if size == 5 else size for size in x.shape]):
        with shapes_only(FakeTensorMode(allow_non_fake_inputs=True)) as counter, FastFunctions():
            found = layer(torch.empty(steps))
        matrices = [weight for weight in layer.parameters() if weight.dim() == 2]
        assert len(counter.multiply_adds) == len(matrices)
        if steps == x.shape:
            assert [each.shape for each in tree_leaves(found)] == expected


@pytest.mark.parametrize("contiguous", [True, False])
def test_attention_costs_the_same_however_its_operands_lie_in_memory(contiguous):
    def forward(m, x):
        x = m.a(x).flatten(2).transpose(1, 2)[:, None]
        x = x.contiguous() if contiguous else x
        return F.scaled_dot_product_attention(x, x, x)

    cost = MultiplyAdds(convert(Net(forward, a=strided()), X), X)
    stem = MultiplyAdds(convert(Net(lambda m, x: m.a(x), a=strided()), X), X)
    assert cost.value() - stem.value() == 2 * 256 * 256 * 4


# Autocast, scripted parts, modes


def autocasting(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        x = m.b(m.a(x).relu())
    return x.float()


def test_a_forward_with_an_autocast_of_its_own():
    converted = check(two(autocasting), X)
    converted(X).sum().backward()
    own = Net(autocasting, a=nn.Sequential(strided(), DiffStride(2.0)), b=strided())
    check_costs(own, X)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning")
def test_scripted_parts_are_left_as_they_are():
    part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()))
    net = nn.Sequential(strided(), part, strided(), torch.jit.script(strided()))
    converted = check(net, X, names=("0", "2"))
    assert converted.conversion.left_out["3"].startswith("cannot be measured at stride 1")


def test_feature_extractors_keep_their_mode():
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    net = create_feature_extractor(torchvision.models.resnet18(), {"layer2": "out"}).eval()
    converted = convert(net, X[:, :3])
    frozen = freeze(converted, X[:, :3])
    assert not any(module.training for each in (converted, frozen) for module in each.modules())
    assert torch.allclose(converted(X[:, :3])["out"], frozen(X[:, :3])["out"], atol=1e-4)
    freeze(converted.train(), X[:, :3])
    assert converted.graph is converted.train_graph


# Slices that cut maps, and operators that check nothing on shapes alone


def test_a_map_cut_to_a_size_costs_what_is_left_of_it():
    net = two(lambda m, x: m.b(m.a(x)[:, :, :12, 2:14]))
    converted = convert(net, X, order="after")
    cost = MultiplyAdds(converted, X)
    for stride in (1.2, 2.0, 2.4, 3.5):
        converted.a.pooling.strides.data.copy_(torch.tensor([stride, 2.0]))
        assert cost.value() == counted(converted, X)
        assert cost().backward() is None


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def enlarged(m, x):
    x = m.a(x)
    up = doubled(m.b(x))
    return m.c(x + up[..., : x.shape[2], : x.shape[3]])


def cut(m, x):
    x = m.a(x)
    up = doubled(m.b(x))
    return m.c(x[..., : up.shape[2], : up.shape[3]] + up)


@pytest.mark.filterwarnings("ignore:of this Net only 'c' learns")
@pytest.mark.parametrize(
    ("forward", "size", "names"),
    [(enlarged, 32, ("a", "c")), (enlarged, 15, ("a", "c")), (cut, 32, ("c",))],
)
def test_maps_cut_to_the_size_of_another_agree_at_all_strides_or_are_left_out(forward, size, names):
    x, modules = torch.rand(2, 4, size, size), {name: strided() for name in "abc"}
    converted = check(Net(forward, **modules), x, names=names)
    if forward is enlarged:
        assert "fails at other strides" in converted.conversion.left_out["b"]
    for one in (1.1, 2.3, 3.0):
        for layer, stride in zip(stride_layers(converted).values(), (one, 4 - one), strict=False):
            layer.strides.data.fill_(stride)
        converted(x)


def test_a_network_with_own_layers_that_cuts_too_small_maps_has_no_cost():
    def forward(m, x):
        up = F.interpolate(m.pool(x), scale_factor=2.0)
        return x + up[..., : x.shape[2], : x.shape[3]]

    with pytest.raises(ValueError, match="add in the model itself fails at other strides"):
        MultiplyAdds(Net(forward, pool=DiffStride(2.0)), X)


@pytest.mark.filterwarnings("ignore:of this Net only 'a' learns")
def test_operators_that_check_nothing_on_shapes_alone_are_run():
    torchvision = pytest.importorskip("torchvision")

    def forward(m, x):
        x = m.a(x)
        return m.deform(x, m.offset(x))

    deform = torchvision.ops.DeformConv2d(4, 4, 3, 2, 1)
    net = Net(forward, a=strided(), offset=strided(channels=18), deform=deform)
    converted = convert(net, X)
    assert list(converted.conversion.strides) == ["a"]
    assert "deform (DeformConv2d) fails at oth" in converted.conversion.left_out["offset"]
    for stride in (1.3, 2.9):
        converted.a.pooling.strides.data.fill_(stride)
        converted(X)


# What the trace does not show


class Unlike(nn.Module):
    """Does something else while it is traced."""

    def __init__(self, change):
        super().__init__()
        self.a, self.b, self.change = strided(), strided(), change

    def forward(self, x):
        x = self.a(x)
        return x if isinstance(x, torch.fx.Proxy) else self.change(self.b, x)


def test_networks_that_do_something_else_while_they_are_traced_are_refused():
    for change in (lambda b, x: b(x), lambda b, x: (x, b(x))):
        net = nn.Sequential(Unlike(change), DiffStride(2.0))
        with pytest.raises(ValueError, match=r"returns shapes .* something else while torch"):
            MultiplyAdds(net[0], X)
    net = nn.Sequential(Unlike(lambda b, x: x + b(x).mean()), DiffStride(2.0))
    with pytest.raises(ValueError, match=r"'0\.b' costs 18,432 .* but 0 where it is traced"):
        MultiplyAdds(net, X)


def of_at_most(size):
    def forward(m, x):
        x = m.a(x)
        if x.shape[2] > size:
            raise RuntimeError(f"maps of {x.shape[2]} are too large")
        return m.b(x)

    return forward


def of_at_least(size):
    def forward(m, x):
        x = m.a(x)
        if int(x.shape[2]) < size:
            raise RuntimeError("maps are too small")
        return m.b(x)

    return forward


@pytest.mark.parametrize(("forward", "factor"), [(of_at_most(17), 0.77), (of_at_least(14), 1.3)])
def test_networks_that_fail_at_other_strides_are_refused(forward, factor):
    with pytest.raises(ValueError, match=rf"at {factor:.2f} times the strides .* fails .maps"):
        convert(two(forward), X, order="after")


def test_networks_without_padding_may_fail_at_larger_strides():
    net = nn.Sequential(strided(), strided(), nn.Conv2d(4, 4, 8), nn.AdaptiveAvgPool2d(1))
    assert MultiplyAdds(convert(net, X), X).has_empty_maps


def test_an_if_on_odd_sizes_is_refused():
    def forward(net, x):
        x = net.a(x)
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1, 0, 1))
        return net.b(x)

    converted = convert(two(forward), X, order="before")
    with pytest.raises(ValueError, match=r"times the strides .* an `if` in the model .* F\.pad"):
        MultiplyAdds(converted, X)


def test_a_network_that_knows_the_size_of_its_first_input_is_converted():
    def forward(m, x):
        m.size = getattr(m, "size", None) or tuple(x.shape)
        if tuple(x.shape) != m.size:
            raise ValueError(f"made for {m.size}")
        return m.b(m.a(x))

    assert list(convert(two(forward), X).conversion.strides) == ["a", "b"]


def test_a_strided_convolution_without_padding_behind_a_slice_has_a_cost():
    def forward(m, x):
        x = m.b(m.a(x))
        return m.c(x[..., : x.shape[-1] // 2 * 2])

    names = ("a", "b", "c")
    net = Net(forward, **{name: nn.Conv2d(4, 4, 3, 2) for name in names}).eval()
    x = torch.rand(2, 4, 48, 60)
    budget = CostBudget(convert(net, x, order="before"), x, fraction=0.8)
    assert budget.cost.value() == counted(budget.model, x)


@pytest.mark.parametrize("calls", [3, [], None])
def test_attributes_of_the_user_may_have_the_names_of_ours(calls):
    net = two(lambda m, x: m.b(m.a(x)))
    net.calls, net.call_index = calls, 7
    converted = convert(net, X)
    converted(X)
    assert (converted.calls, converted.call_index) == (calls, 7)


class Octave(nn.Module):
    """A leaf of two results, as of networks of two resolutions, the second of which is missing."""

    def __init__(self):
        super().__init__()
        self.stride, self.weight = 1, nn.Parameter(torch.rand(4, 4, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight), None


def test_a_missing_result_of_a_module_is_none():
    def forward(m, x):
        high, low = m.octave(m.a(x))
        if low is not None:
            high = high + low
        return m.b(high)

    net = two(forward)
    net.octave = Octave()
    check(net, X)


def test_a_network_that_reads_arrays_of_numpy_is_told_to_be_converted_in_part():
    net = two(lambda m, x: m.b(m.a(x)) * float(x.detach().cpu().numpy().mean()))
    with pytest.raises(ValueError, match=r"depends on the data, .* convert the part of"):
        convert(net, X)


def test_a_number_of_a_plain_tensor_is_told_to_become_a_buffer():
    net = two(lambda m, x: m.b(m.a(x)) * float(m.scales.max()))
    net.scales = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"a plain attribute, make it a buffer by self\.register"):
        convert(net, X)
    scales = net.scales
    del net.scales
    net.register_buffer("scales", scales)
    check(net, X)


def of_even_size(m, x):
    x = m.a(x)
    return m.b(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


def in_windows(m, x):
    """Attention in windows of four samples, of a map that is padded to whole windows."""
    x = m.a(x)
    b, c, h, w = x.shape
    x = F.pad(x, (0, -w % 4, 0, -h % 4))
    rows, columns = x.shape[2] // 4, x.shape[3] // 4
    windows = x.view(b, c, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    windows = (windows @ windows.mT) @ windows
    x = windows.view(b, rows, columns, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return m.b(x.reshape(b, c, 4 * rows, 4 * columns)[:, :, :h, :w])


@pytest.mark.parametrize("forward", [of_even_size, in_windows])
def test_maps_padded_to_a_multiple_have_a_cost(forward):
    converted = check(two(forward), X)
    for layer in stride_layers(converted).values():
        layer.strides.data.fill_(1.5)
    budget = CostBudget(converted, X, fraction=0.9)
    assert 0.9 < budget.cost.value() / budget.multiply_adds <= 1  # windows are a coarse step


def test_numbers_in_buffers_may_be_compared():
    def forward(net, x):
        left = net.size // 2
        more = max(left, net.size - left)
        return net.b(F.pad(net.a(x), (int(left), int(more))))

    net = two(forward)
    net.register_buffer("size", torch.tensor(5))
    check(net, X)


class Sequences(nn.Module):
    """Strided convolutions, and a transformer of torch behind them."""

    def __init__(self, run):
        super().__init__()
        layer = functools.partial(nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True)
        self.a, self.b = (nn.Conv1d(c, 8, 9, 4, 4) for c in (8, 8))
        self.encoder = nn.TransformerEncoder(layer(), 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1
        )
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(64))
        self.queries = nn.Parameter(torch.rand(1, 3, 8))
        self.run = run

    def forward(self, x):
        return self.run(self, self.b(self.a(x)).mT)


def causal_mask(size):
    return nn.Transformer.generate_square_subsequent_mask(size)


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(
            lambda m, z: m.encoder(z, mask=m.mask[: z.size(1), : z.size(1)]),
            marks=pytest.mark.slow,
        ),
        lambda m, z: m.encoder(z, mask=causal_mask(z.size(1))),
        pytest.param(
            lambda m, z: m.decoder(m.queries.expand(z.size(0), -1, -1), z),
            marks=pytest.mark.slow,
        ),
        lambda m, z: m.decoder(m.queries.repeat(2, 1, 1), z, tgt_mask=causal_mask(3)),
    ],
)
def test_masks_and_queries_of_transformers(run):
    net, x = Sequences(run).eval(), torch.rand(2, 8, 256)
    detects = nn.modules.transformer._detect_is_causal_mask
    model = convert(net, x)
    assert list(model.conversion.strides) == ["a", "b"]
    for stride in (2.5, 4.0, 7.0):
        for layer in stride_layers(model).values():
            layer.strides.data.fill_(stride)
        assert MultiplyAdds(model, x).value() == networks.counted(model, x)
    assert nn.modules.transformer._detect_is_causal_mask is detects
