"""States of converted and frozen networks: saved once, and loaded into what they fit."""

import copy
import pickle
import tempfile

import pytest
import torch
from networks import IMAGE, Block, move_strides
from torch import nn

from diffstride import convert, freeze
from diffstride.pooling.frozen import FrozenPooling

X = torch.rand(IMAGE)


def block(channels=8):
    """A residual block behind a convolution of so many channels that its kernels are resampled."""
    return nn.Sequential(nn.Conv2d(3, channels, 1), Wide(channels)).eval()


class Wide(nn.Module):
    """A residual block; its shortcut comes first in `named_modules`, and last in ``forward``."""

    def __init__(self, channels):
        super().__init__()
        self.shortcut = nn.Conv2d(channels, channels, 3, 2, 1)
        self.conv = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


def converted(moved=True, **options):
    torch.manual_seed(0)
    network = convert(block(), X, **options)
    if moved:
        move_strides(network)
    return network


@pytest.mark.parametrize("freezing", [False, True])
def test_every_tensor_is_saved_once(freezing):
    network = freeze(converted(), X) if freezing else converted()
    state = network.state_dict()
    assert len({each.data_ptr() for each in state.values()}) == len(state)
    names = [name for name in state if "pooling." in name]
    assert all(name.startswith("1.shortcut.pooling.") for name in names)
    assert {name for name, _ in network.named_parameters()} <= state.keys()


@pytest.mark.parametrize("freezing", [False, True])
def test_states_load_strictly(freezing):
    network, other = converted(), converted(moved=False)
    if freezing:
        network, other = freeze(network, X), freeze(copy.deepcopy(network), X)
        for parameter in other.parameters():
            parameter.data.zero_()
    other.load_state_dict(network.state_dict())
    assert other(X).equal(network(X))


def test_a_state_with_the_layer_under_each_name_loads():
    network, other = converted(), converted(moved=False)
    state = network.state_dict()
    state["1.conv.pooling.strides"] = state["1.shortcut.pooling.strides"]
    other.load_state_dict(state)
    assert other(X).equal(network(X))


def test_loading_does_not_change_the_state():
    state = block().state_dict()
    before = dict(state)
    converted().load_state_dict(state, strict=False)
    assert state.keys() == before.keys()
    assert all(value is before[name] for name, value in state.items())


def test_loading_of_an_unconverted_network_resamples_once():
    plain, network = block(), converted(moved=False)
    expected = convert(plain, X)(X)
    missing = network.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["1.shortcut.pooling.strides", "1.conv.pooling.strides"]
    assert network(X).equal(expected)
    network.load_state_dict(network.state_dict())
    assert network(X).equal(expected)
    frozen = freeze(converted(moved=False), X)
    frozen.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(frozen(X), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_states_load_in_other_dtypes(dtype):
    network, other = converted().to(dtype), converted(moved=False)
    other.load_state_dict(network.state_dict())
    assert other[1].conv.weight.equal(network[1].conv.weight.float())


def test_kernels_of_one_coarse_grid_are_refused_for_another():
    state = converted(order="before").state_dict()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"the kernel of 1\.conv in the checkpoint is for"):
            converted(order="after").load_state_dict(state, strict=strict)
    wide = convert(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)), torch.rand(1, 3, 9, 9)
    )
    other = convert(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)), torch.rand(1, 3, 8, 8)
    )
    with pytest.raises(RuntimeError, match="same order and an example of the same size"):
        other.load_state_dict(wide.state_dict())


def test_kernels_of_the_original_grid_are_resampled():
    after, before = converted(order="after"), converted(order="before", moved=False)
    with pytest.warns(UserWarning, match=r"1\.shortcut, but no coarse_taps: its kernel is taken"):
        before.load_state_dict(after.state_dict())
    expected = converted(order="before")  # of the same weights, and with the same strides
    assert before(X).equal(expected(X))


def test_a_part_alone_has_its_layer():
    network = converted()
    assert "pooling.strides" in network[1].conv.state_dict()
    assert "conv.pooling.strides" not in network[1].state_dict()
    branches = nn.Sequential(network[1].conv), nn.Sequential(network[1].shortcut)
    other = converted(moved=False)
    other[1].conv.load_state_dict(network[1].conv.state_dict())
    assert other[1].conv.pooling.strides.equal(network[1].conv.pooling.strides)
    assert all("0.pooling.strides" in branch.state_dict() for branch in branches)
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.pooling\.strides"):
        branches[0].load_state_dict({})


class Shared(nn.Module):
    """One pooling module: its first call alone, its second beside a shortcut, at a flat map."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Conv2d(3, 3, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(3 * 64, 4)

    def forward(self, x):
        x = self.pool(x)
        return self.head((self.pool(x) + self.shortcut(x)).flatten(1))


@pytest.mark.parametrize("freezing", [False, True])
def test_layers_of_single_calls_are_saved_once(freezing):
    network, other = convert(Shared(), X, order="after"), convert(Shared(), X, order="after")
    assert network.pool.pooling_1 is network.shortcut.pooling
    move_strides(network)
    if freezing:
        network, other = freeze(network, X), freeze(network, X)
        other.head.weight.data.zero_()
    state = network.state_dict()
    assert len({each.data_ptr() for each in state.values()}) == len(state)
    other.load_state_dict(state)
    assert other(X).equal(network(X))


def test_a_module_with_two_names_loads_from_a_state_with_one():
    files = pytest.importorskip("safetensors.torch")

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Conv2d(8, 8, 3, 2, 1)
            self.alias = self.b

        def forward(self, x):
            return self.alias(self.b(x))

    x = torch.rand(2, 8, 32, 32)
    network, other = convert(Twice(), x), convert(Twice(), x)
    move_strides(network)
    with tempfile.TemporaryDirectory() as folder:
        files.save_model(network, f"{folder}/state.safetensors")
        files.load_model(other, f"{folder}/state.safetensors")
    assert other(x).equal(network(x))


def test_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    network, other = converted(), converted(moved=False)
    files.save_file(network.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(files.load_file(tmp_path / "state.safetensors"))
    assert other(X).equal(network(X))


def test_averages_by_state_move_shared_strides_once():
    average, network = converted(moved=False), converted()
    start = average[1].conv.pooling.strides.clone()
    with torch.no_grad():
        for old, new in zip(
            average.state_dict().values(), network.state_dict().values(), strict=True
        ):
            old.copy_(0.9 * old + 0.1 * new)
    expected = 0.9 * start + 0.1 * network[1].conv.pooling.strides
    torch.testing.assert_close(average[1].conv.pooling.strides, expected)


def test_assigning_a_state():
    network, other = converted(), converted(moved=False)
    other.load_state_dict(network.state_dict(), assign=True)
    assert other[1].conv.pooling is other[1].shortcut.pooling
    assert other(X).equal(network(X))


def test_a_converted_network_inside_another():
    network = nn.Module()
    network.inner = convert(Block(), X)
    again = nn.Module()
    again.inner = convert(Block(), X)
    again.load_state_dict(network.state_dict())
    assert again.inner.eval()(X).equal(network.inner.eval()(X))


@pytest.mark.parametrize("assign", [True, False])
def test_a_network_on_the_meta_device_is_filled_with_its_state(assign):
    model = convert(block(), X)
    state = model.state_dict()
    empty = copy.deepcopy(model).to("meta")
    if not assign:
        empty = empty.to_empty(device="cpu")
    empty.load_state_dict(state, assign=assign)
    assert torch.equal(empty.eval()(X), model(X))


class OfAnother(nn.Identity):
    """A module that a user has named as the library names its layers."""

    def get_extra_state(self):
        return {"version": 1}


def test_an_extra_state_beside_converted_modules_is_saved():
    net = nn.ModuleDict({"pooling": OfAnother(), "body": nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1))})
    net["body"] = convert(net["body"], X)
    assert net.state_dict()["pooling._extra_state"] == {"version": 1}


def test_a_frozen_network_pickled_by_version_0_2_runs():
    """Its layers had sizes and orders in place of plans, and a plain tuple of settings."""
    frozen = freeze(convert(block(), X), X)
    expected = frozen(X)
    for layer in frozen.modules():
        if isinstance(layer, FrozenPooling):
            plans = vars(layer).pop("plans")
            layer.sizes = {key: tuple(a.output_size for a in axes) for key, axes in plans.items()}
            layer.orders = {key: [0, 1] for key in plans}
            layer._rounded, layer.settings = (2.0, 2.0), tuple(layer.settings)
    again = pickle.loads(pickle.dumps(frozen))
    assert torch.equal(again(X), expected)
    assert "sizes" not in vars(next(m for m in again.modules() if isinstance(m, FrozenPooling)))
