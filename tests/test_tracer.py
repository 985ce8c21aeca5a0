"""Tracing: control flow on shapes, errors, and networks that are restored afterwards."""

import copy
import io
import sys
import threading
from collections import defaultdict, deque
from functools import cache, lru_cache, partial

import pytest
import torch
import torch.nn.functional as F
from conftest import RELEASE
from networks import Net, strided
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, report, stride_layers
from diffstride._torch_compat import FakeTensorMode
from diffstride.conversion.function_modules import _Recording
from diffstride.graph import fast_shapes
from diffstride.graph.fake_run import (
    SHAPE_KEEPING_MODULES,
    NetworkRunError,
    run_network,
    shapes_only,
)
from diffstride.graph.fast_shapes import Layout
from diffstride.graph.restoring import restoring
from diffstride.graph.tracer import trace


def test_control_flow_may_depend_on_shapes():
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


class ManyArguments(nn.Module):
    """Has arguments besides its map."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleDict({"a": strided(), "b": strided()})

    def forward(self, x, mask=None, way="a", *more, scale=None, **options):
        assert mask is None or mask.dim() == 3
        for other in more:
            x = x + other
        x = self.ways[way](x) if mask is None else self.ways[way](x * mask)
        return x if scale is None and not options else x * scale


def test_arguments_missing_in_the_example_keep_their_defaults():
    x, mask = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8)

    def inputs_and_modules(*inputs):
        nodes = trace(ManyArguments(), inputs).graph.nodes
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
        (1, r"holds 1 input\(s\), which Pair.forward\(x, y, scale=1.0\) .* argument: 'y'"),
        (4, r"holds 4 input\(s\), .* \(too many positional .*\): pass a tuple with one for each"),
    ],
)
def test_examples_with_a_wrong_number_of_inputs_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        trace(Pair(), (torch.zeros(1, 4, 8, 8),) * count)


def test_tracing_does_not_change_the_model():
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
    """A read-only dictionary, as some libraries use for configurations."""

    def clear(self):
        raise TypeError("read-only")

    update = clear


class Storing(nn.Module):
    """Stores values in its forward pass, for pictures, auxiliary losses or running means."""

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
def test_values_that_forward_stores_are_restored_after_tracing(analyse):
    pool = nn.MaxPool2d(2) if analyse is convert else DiffStride(2.0)
    model, x = nn.Sequential(Storing(), pool), torch.rand(2, 3, 8, 8)
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


@cache
def cached_ramp(size):
    return torch.arange(size)


@lru_cache(maxsize=2)
def cached_ramps(size):
    return [{"ramp": (torch.arange(size),)}]


def remembered_ramp(size, ramps={}):  # noqa: B006
    return ramps.setdefault(size, torch.arange(size))


RAMPS = {"by size": {}}
RAMPS["itself"] = RAMPS
LONGEST = []


class Ramps:
    """A plain object that keeps the longest ramp so far."""

    longest = torch.arange(0)

    def __call__(self, size):
        if len(self.longest) < size:
            self.longest = torch.arange(size)
        return self.longest[:size]


class Ramped(nn.Module):
    """Adds numbers that are kept outside of modules, by the size of the map."""

    last = ()

    def __init__(self, where):
        super().__init__()
        self.where, self.ramps = where, Ramps()
        self.cached_ramp = lru_cache(torch.arange)
        self.first, self.second = (nn.Conv1d(4, 4, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.second(self.first(x))
        size = x.shape[-1]
        if self.where == "cache":
            return x + cached_ramp(size)
        if self.where == "lru_cache":
            return x + cached_ramps(size)[0]["ramp"][0]
        if self.where == "dictionary of the file":
            if size not in RAMPS["by size"]:
                RAMPS["by size"][size] = torch.arange(size)
            return x + RAMPS["by size"][size]
        if self.where == "list of the file":
            LONGEST.append(torch.arange(size))
            return x + LONGEST[-1]
        if self.where == "class":
            Ramped.last = torch.arange(size) if len(Ramped.last) != size else Ramped.last
            return x + Ramped.last
        if self.where == "default argument":
            return x + remembered_ramp(size)
        if self.where == "cache of the module":
            return x + self.cached_ramp(size)
        return x + self.ramps(size)


PLACES = ["cache", "lru_cache", "dictionary of the file", "list of the file", "class", "object"]
PLACES += ["default argument", "cache of the module"]


@pytest.mark.parametrize("analyse", [convert, report])
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("where", PLACES)
def test_caches_outside_of_the_network_hold_true_tensors_after_tracing(where, ran_before, analyse):
    if where == "cache of the module" and RELEASE < (2, 11):
        pytest.skip("functions of torch 2.8 refuse stand-ins for numbers")
    cached_ramp.cache_clear()
    cached_ramps.cache_clear()
    RAMPS["by size"].clear()
    LONGEST.clear()
    remembered_ramp.__defaults__[0].clear()
    Ramped.last = ()
    net, x = Ramped(where), torch.rand(1, 4, 32)
    expected = net.second(net.first(x)) + torch.arange(8)
    if ran_before:
        net(x)
    analysed = analyse(net, x)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    if analyse is convert:
        for stride in (2.0, 2.6, 3.1):
            for layer in stride_layers(analysed).values():
                layer.strides.data.fill_(stride)
            assert type(analysed(x)) is torch.Tensor
        MultiplyAdds(analysed, x)
        assert type(analysed(x)) is torch.Tensor
    assert list(RAMPS) == ["by size", "itself"]
    assert all(type(each) is torch.Tensor for each in (*LONGEST, Ramped.last) if len(each))


class FirstMask(nn.Module):
    """Keeps a mask of the size of its first map."""

    def __init__(self):
        super().__init__()
        self.mask = None

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones_like(x)
        return x * self.mask


def test_a_leaf_module_may_store_a_tensor_of_the_size_of_a_run():
    net = nn.Sequential(strided(), FirstMask(), strided())
    converted = convert(net, torch.zeros(1, 4, 16, 16), leaf_modules=[FirstMask])
    assert MultiplyAdds(converted, torch.zeros(1, 4, 16, 16)).value()
    assert converted[1].mask is None


def test_a_buffer_that_changes_its_size_is_restored():
    norm = nn.BatchNorm1d(3)
    before, buffer = norm.running_mean.clone(), norm.running_mean
    with restoring(norm):
        buffer.resize_(5).fill_(1.0)
    assert norm.running_mean is buffer
    assert torch.equal(buffer, before)


def test_a_module_with_a_method_output_size_is_no_pooling_layer():
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


def test_tracing_does_not_fill_the_cache_of_autocast():
    """Fake casts of the weights must not stay in the cache, which the next call reads."""

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


@pytest.mark.parametrize("kind", sorted(SHAPE_KEEPING_MODULES, key=repr))
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", [nn.Module.train, nn.Module.eval])
def test_activations_that_are_not_run_keep_shape_dtype_and_memory_format(kind, autocast, mode):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), mode(kind())).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 8, 9).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", enabled=autocast):
        expected = net(x)
        traced = trace(net, x)
    last = [traced.values[node] for node in traced.graph.nodes if node.op == "call_module"][-1]
    assert (last.shape, last.dtype) == (expected.shape, expected.dtype)
    assert last.stride() == expected.stride()


def test_subclasses_of_activations_are_run():
    class Glued(nn.ReLU):
        def forward(self, x):
            return torch.cat([x, x.neg()], dim=1)

    traced = trace(nn.Sequential(Glued()), torch.zeros(1, 3, 8, 8), leaf_modules=[Glued])
    (node,) = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert traced.values[node].shape == (1, 6, 8, 8)


def test_a_module_that_cannot_be_traced_is_named():
    net = nn.Sequential(strided(), nn.Sequential(DataDependent()))
    with pytest.raises(ValueError, match=r"into '1\.0' \(DataDependent\).* on the data") as e:
        trace(net, torch.zeros(1, 4, 8, 8))
    assert "leaf_modules=[" not in str(e.value)  # which would not help
    with pytest.raises(ValueError, match="no module named 'nowhere'"):
        trace(net, torch.zeros(1, 4, 8, 8), leaf_modules=["nowhere"])
    with pytest.raises(ValueError, match="check that the example has the shape"):
        trace(strided(), torch.zeros(1, 3, 8, 8))


def insist(m, x):
    assert not isinstance(x, torch.fx.Proxy)
    return x


def test_calls_after_an_error_that_the_network_catches_have_their_own_owner():
    class Fast(nn.Module):
        def forward(self, x):
            return x.view(3, -1)

    def forward(m, x):
        try:
            return m.fast(x)
        except RuntimeError:
            return F.max_pool2d(x, 2)

    traced = trace(Net(forward, fast=Fast()), torch.zeros(1, 1, 8, 8))
    (pool,) = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert traced.owners[pool] == ""


def test_the_innermost_module_is_named_where_another_wraps_its_error():
    class Inner(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    def forward(m, x):
        try:
            return m.inner(x)
        except Exception as error:
            raise RuntimeError("block failed") from error

    net = Net(lambda m, x: m.outer(x), outer=Net(forward, inner=Inner()))
    with pytest.raises(ValueError, match=r"into 'outer\.inner' \(Inner\)"):
        trace(net, torch.zeros(1, 1, 8, 8))


def test_a_module_that_fails_in_place_of_another_is_named():
    class Fails(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    def forward(m, x):
        try:
            return m.fast(x)
        except Exception:
            return m.slow(x)

    net = Net(forward, fast=Fails(), slow=Fails())
    with pytest.raises(ValueError, match=r"into 'slow' \(Fails\)"):
        trace(net, torch.zeros(1, 1, 8, 8))


def test_the_line_that_cannot_be_traced_is_quoted():
    net, x = Net(insist), torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"at 'assert.* line \d+\).*module of its own.*leaf_modu"):
        trace(net, x)
    with pytest.raises(ValueError, match=r"at 'assert.* line \d+\).*leaf_modules=\['0'\]"):
        trace(nn.Sequential(net), x)


def test_leaf_modules_that_depend_on_data_are_refused():
    net, x = nn.Sequential(strided(), DataDependent()), torch.zeros(1, 4, 8, 8)
    for leaf in ("1", DataDependent):
        with pytest.raises(ValueError, match=r"into '1' .* on the data") as e:
            trace(net, x, leaf_modules=[leaf])
        assert "leaf_modules=[" not in str(e.value)
    with pytest.raises(ValueError, match=r"'0' \(Conv2d\) cannot run .* check that the exa") as e:
        trace(net, torch.zeros(1, 3, 8, 8))
    assert "leaf_modules" not in str(e.value)


def test_leaf_modules_by_name_and_class_are_one_node():
    net = nn.Sequential(nn.Sequential(strided(), nn.ReLU()), strided())
    for leaf in ("0", nn.Sequential):
        nodes = trace(net, torch.zeros(1, 4, 8, 8), leaf_modules=[leaf]).graph.nodes
        assert [node.target for node in nodes if node.op == "call_module"] == ["0", "1"]


def test_leaf_modules_of_a_conversion_are_used_again():
    x = torch.rand(1, 4, 16, 16)
    converted = convert(nn.Sequential(strided(), Net(insist)), x, order="after", leaf_modules=["1"])
    assert MultiplyAdds(converted, x).value() == CostBudget(converted, x).cost.value()
    trace(Net(lambda m, x: m.net(x), net=converted), x)
    assert convert(converted, x).conversion.leaf_modules == ("1",)
    with pytest.raises(ValueError, match="cannot be traced into '1'"):
        MultiplyAdds(converted, x, leaf_modules=["0"])


def test_leaf_modules_of_a_second_conversion_are_used_again_too():
    x = torch.rand(1, 4, 64, 64)
    net = nn.Sequential(strided(), strided(), Net(insist), strided())
    once = convert(net, x, filter_fn=lambda _, name: name == "0", leaf_modules=["2"])
    twice = convert(once, x, leaf_modules=["2", "3"])
    assert list(twice.conversion.strides) == ["0", "1"]
    assert twice.conversion.leaf_modules == ("2", "3")
    assert once.conversion.leaf_modules == ("2",)


def test_threads_trace_one_at_a_time_and_others_run_meanwhile():
    def build():
        return nn.Sequential(strided(stride=1), DiffStride(2.0), strided(stride=1))

    x, other, errors = torch.zeros(1, 4, 16, 16), build(), []
    stop = threading.Event()

    def attempt(action):
        try:
            action()
        except Exception as error:
            errors.append(error)

    def run():
        while not stop.is_set():
            attempt(lambda: other(x))

    tracing = [partial(attempt, partial(CostBudget, build(), x)) for _ in range(4)]
    threads = [threading.Thread(target=each) for each in tracing]
    running = threading.Thread(target=run)
    switched = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (running, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        running.join()
        sys.setswitchinterval(switched)
    assert errors == []
    assert other(x).shape == (1, 4, 8, 8)  # nn.Module is no longer patched


def test_modules_that_other_threads_run_are_not_recorded():
    recording, seen = _Recording(), []
    module = nn.Module()
    module.forward = lambda x: seen.append(len(recording.stack))
    with recording.of_modules():
        module(None)
        other = threading.Thread(target=module, args=(None,))
        other.start()
        other.join()
    assert seen == [1, 0]


def test_slices_are_found_inside_a_function_mode():
    """There ``x[…]`` calls a method, where an operator is called otherwise."""
    net, x = Net(lambda m, x: m.a(x[:, :, ::2, ::2]), a=strided()), torch.rand(1, 4, 32, 32)
    with torch.device("cpu"):
        inside = convert(net, x)
        assert MultiplyAdds(inside, x).value() == MultiplyAdds(convert(net, x), x).value()
    assert inside.conversion.strides == convert(net, x).conversion.strides
    assert len(inside.conversion.strides) == 2


# Products are remembered by their shapes


def in_float64(module, x):
    return module.double(), x.double()


def in_channels_last(module, x):
    return module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def on_meta(module, x):
    return module.to("meta"), x.to("meta")


PRODUCTS = {
    "convolution": (nn.Conv2d(4, 8, 3), (2, 4, 9, 8)),
    "without bias": (nn.Conv2d(4, 8, 3, bias=False), (2, 4, 9, 8)),
    "strided": (nn.Conv2d(4, 8, 3, stride=2), (2, 4, 9, 8)),
    "padded": (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 9, 8)),
    "dilated": (nn.Conv2d(4, 8, 3, dilation=2), (2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 8)),
    "transposed": (nn.ConvTranspose2d(4, 8, 3, stride=2), (2, 4, 9, 8)),
    "with more samples": (nn.Conv2d(4, 8, 3), (2, 4, 9, 9)),
    "linear": (nn.Linear(4, 8), (2, 4)),
    "linear without bias": (nn.Linear(4, 8, bias=False), (2, 4)),
}


@pytest.mark.parametrize("as_given", [lambda *given: given, in_float64, in_channels_last, on_meta])
def test_products_of_layouts_seen_before_have_the_same_layout_and_count(monkeypatch, as_given):
    monkeypatch.setattr(fast_shapes, "_known", {})
    for number, (module, shape) in enumerate(PRODUCTS.values(), start=1):
        if as_given is in_channels_last and len(shape) < 4:
            continue
        module, x = as_given(copy.deepcopy(module), torch.zeros(shape))
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, torch.no_grad():
            expected = Layout.of(module(mode.from_tensor(x)))
        found = []
        for _ in range(2):
            with shapes_only(FakeTensorMode(allow_non_fake_inputs=True)) as counter:
                found.append((Layout.of(module(torch.empty_like(x))), counter.multiply_adds))
            assert len(fast_shapes._known) == number
        assert found[0] == found[1]
        assert found[0][0] == expected


def test_products_of_shapes_that_do_not_fit_are_refused_each_time():
    for _ in range(2):
        with shapes_only(FakeTensorMode(allow_non_fake_inputs=True)):
            nn.Conv2d(4, 8, 3)(torch.empty(2, 4, 9, 8))
            with pytest.raises(RuntimeError, match="4 channels"):
                nn.Conv2d(4, 8, 3)(torch.empty(2, 5, 9, 8))


def test_few_products_are_remembered(monkeypatch):
    monkeypatch.setattr(fast_shapes, "_known", {})
    monkeypatch.setattr(fast_shapes, "MOST", 3)
    with shapes_only(FakeTensorMode(allow_non_fake_inputs=True)):
        for size in range(4, 12):
            nn.Conv2d(4, 8, 3)(torch.empty(2, 4, size, size))
            assert 1 <= len(fast_shapes._known) <= 3


def test_products_of_more_than_layouts_are_computed_each_time():
    """Of sparse tensors, and of numbers that the tracer knows."""

    def sparse(m, x):
        y = x.flatten(1)[:, :8]
        return m.a(x).mean((2, 3)).sum() + torch.eye(8).to_sparse_csr() @ y.t()

    def constant(m, x):
        half = torch.tensor([[float(x.shape[-1])]]) @ torch.tensor([[0.5]])
        return m.a(x)[:, :, : int(half)]

    for forward in (sparse, constant):
        for _ in range(2):
            net = convert(Net(forward, a=strided()), torch.zeros(2, 4, 8, 8))
            assert net.conversion.strides == {"a": (2, 2)}


def test_settings_that_choose_kernels_belong_to_the_layouts(monkeypatch):
    monkeypatch.setattr(fast_shapes, "_known", {})
    for enabled in (True, False, True):
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
        with shapes_only(FakeTensorMode(allow_non_fake_inputs=True)):
            nn.Conv2d(4, 8, 3)(torch.empty(2, 4, 9, 8))
    assert len(fast_shapes._known) == 2


@pytest.mark.parametrize("name", ["f", "pool", "a_long_name"])
def test_the_module_that_fails_in_a_run_on_shapes_is_named(name):
    class Reads(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    net = nn.Sequential()
    net.add_module(name, Reads())
    with pytest.raises(NetworkRunError) as caught:
        run_network(net, torch.zeros(1, 2))
    assert caught.value.where == repr(name)
