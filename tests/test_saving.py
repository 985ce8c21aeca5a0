"""A converted or frozen network is saved with its recipe, and loaded into a plain one."""

import copy
import errno
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from diffstride import (
    CostBudget,
    DiffStride,
    MultiplyAdds,
    convert,
    freeze,
    load,
    rebuild,
    recipe,
    report,
    save,
    stride_layers,
)
from diffstride.conversion import saving


class Block(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(8, channels, 3, stride, 1)
        self.short = nn.Conv2d(8, channels, 1, stride)

    def forward(self, x):
        return F.relu(self.conv(x) + self.short(x))


class UNet(nn.Module):
    """A function that pools, one that enlarges, and a skip."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(8, 2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x, scale=1.0):
        fine = self.stem(x * scale)
        coarse = F.interpolate(self.block(F.max_pool2d(fine, 2)), scale_factor=2)
        y = F.avg_pool2d(fine + self.up(coarse), 2)
        return self.head(F.avg_pool2d(y, 2).flatten(1))


class Leaf(nn.Module):
    def forward(self, x):
        return x * float(x.shape[-1] > 1)


EXAMPLE = torch.zeros(1, 3, 32, 32)


def unet():
    return UNet()


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(16, 2), Leaf(), nn.Conv2d(16, 8, 3, 2, 1), Block(8, 2)
    )


def move(network):
    """Give weights and strides other values."""
    with torch.no_grad():
        for each in network.parameters():
            each.add_(0.1 * torch.randn_like(each))
        for factor, layer in enumerate(stride_layers(network).values()):
            layer.strides.copy_(torch.tensor([1.7, 1.9])[: len(layer.strides)] + 0.1 * factor)
    return network


def check_equal(loaded, network, *inputs):
    inputs = inputs or (torch.randn(2, 3, 32, 32),)
    torch.testing.assert_close(loaded(*inputs), network(*inputs), rtol=0, atol=0)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert [type(each).__name__ for each in loaded.modules()] == [
        type(each).__name__ for each in network.modules()
    ]


CASES = {
    "default": (convolutions, {}),
    "after": (convolutions, {"order": "after", "smoothness_factor": 2.0}),
    "filter": (convolutions, {"filter_fn": lambda module, name: name.startswith("1")}),
    "leaves": (convolutions, {"leaf_modules": [Leaf, "3"], "shared_stride": True}),
    "limits": (convolutions, {"upper_limit_stride": 2.5, "include": ["0"]}),
    "unet": (unet, {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("pt", marks=pytest.mark.slow)])
def test_a_converted_network_is_loaded_into_a_plain_one(tmp_path, name, suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    build, options = CASES[name]
    converted = move(convert(build(), EXAMPLE, **options))
    save(converted, tmp_path / f"net.{suffix}")
    plain = build()
    before = {key: value.clone() for key, value in plain.state_dict().items()}

    loaded = load(plain, tmp_path / f"net.{suffix}")

    check_equal(loaded, converted)
    assert report(loaded) == report(converted)
    assert MultiplyAdds(loaded, EXAMPLE).value() == MultiplyAdds(converted, EXAMPLE).value()
    assert recipe(loaded) == recipe(converted)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_network_is_loaded_into_a_plain_one(tmp_path, name):
    build, options = CASES[name]
    frozen = freeze(move(convert(build(), EXAMPLE, **options)), EXAMPLE)
    save(frozen, tmp_path / "frozen.pt")
    loaded = load(build(), tmp_path / "frozen.pt")
    check_equal(loaded, frozen)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    torch.export.export(loaded.eval(), (EXAMPLE,))


def test_a_frozen_network_of_double_precision_keeps_its_precision(tmp_path):
    frozen = freeze(move(convert(convolutions().double(), EXAMPLE)), EXAMPLE)
    save(frozen, tmp_path / "frozen.pt")
    check_equal(
        load(convolutions().double(), tmp_path / "frozen.pt"),
        frozen,
        torch.randn(2, 3, 32, 32, dtype=torch.float64),
    )


def test_rounded_strides_are_loaded_as_rounded(tmp_path):
    frozen = freeze(move(convert(convolutions(), EXAMPLE)), EXAMPLE, round_to=1)
    save(frozen, tmp_path / "frozen.pt")
    loaded = load(convolutions(), tmp_path / "frozen.pt")
    check_equal(loaded, frozen)
    assert MultiplyAdds(loaded, EXAMPLE).value() == MultiplyAdds(frozen, EXAMPLE).value()


def test_a_frozen_single_layer_is_rebuilt_with_numbers_of_numpy():
    layer = DiffStride(2.0, smoothness_factor=np.float32(4))
    frozen = freeze(layer, torch.zeros(1, 1, 32, 32), round_to=np.int64(2))
    again = rebuild(DiffStride(2.0), json.loads(json.dumps(recipe(frozen))))
    assert repr(again) == repr(frozen) == "FrozenPooling((32, 32) -> (16, 16))"


def test_a_part_that_was_converted_or_frozen_is_rebuilt_in_its_place(tmp_path):
    def build():
        return nn.ModuleDict({"backbone": convolutions(), "head": nn.Conv2d(8, 2, 1)})

    network = build()
    network["backbone"] = move(convert(network["backbone"], EXAMPLE))
    save(network, tmp_path / "part.pt")
    check_equal(load(build(), tmp_path / "part.pt")["backbone"], network["backbone"])

    network["backbone"] = freeze(network["backbone"], EXAMPLE)
    save(network, tmp_path / "part.pt")
    check_equal(load(build(), tmp_path / "part.pt")["backbone"], network["backbone"])


def test_a_frozen_part_may_have_shared_a_layer_with_one_that_learns(tmp_path):
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), Block(8, 2))

    network = move(convert(build(), EXAMPLE))
    network[1].conv.pooling = freeze(network[1].conv.pooling, torch.zeros(1, 8, 32, 32))
    save(network, tmp_path / "net.pt")
    loaded = load(build(), tmp_path / "net.pt")
    check_equal(loaded, network)
    assert list(stride_layers(loaded)) == ["1.short.pooling"]


def test_a_part_of_a_converted_network_was_converted_first(tmp_path):
    network = convolutions()
    network[1] = convert(network[1], torch.zeros(1, 8, 32, 32), order="after")
    network = move(convert(network, EXAMPLE))
    save(network, tmp_path / "net.pt")
    check_equal(load(convolutions(), tmp_path / "net.pt"), network)


def test_a_part_that_meets_the_rest_of_the_network_was_converted_first(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(16, 2))
    plain = copy.deepcopy(network)
    network[1].conv = convert(nn.Sequential(network[1].conv), torch.zeros(1, 8, 32, 32))
    plain[1].conv = nn.Sequential(plain[1].conv)
    network = move(convert(network, EXAMPLE))
    save(network, tmp_path / "net.pt")
    check_equal(load(plain, tmp_path / "net.pt"), network)


def test_classes_of_leaf_modules_that_the_network_lacks_are_no_part_of_it(tmp_path):
    network = move(convert(convolutions(), EXAMPLE, leaf_modules=[nn.LSTM, Leaf]))
    save(network, tmp_path / "net.pt")
    check_equal(load(convolutions(), tmp_path / "net.pt"), network)


def test_conversions_in_several_calls_are_repeated_in_order(tmp_path):
    network = convert(convolutions(), EXAMPLE, filter_fn=lambda module, name: name == "3")
    network = move(convert(network, EXAMPLE, order="after", trainable=False))
    save(network, tmp_path / "net.pt")
    loaded = load(convolutions(), tmp_path / "net.pt")
    check_equal(loaded, network)
    assert [each["modules"].keys() for each in recipe(loaded)["conversions"]] == [
        {"3"},
        {"1.conv", "1.short", "4.conv", "4.short"},
    ]


def test_a_recipe_goes_through_json_and_says_what_was_done():
    converted = convert(unet(), (EXAMPLE, 0.5))
    made = json.loads(json.dumps(recipe(converted)))
    assert made["format"] == 1
    (step,) = made["conversions"]
    assert step["example"] == {"tuple": [{"tensor": [1, 3, 32, 32], "dtype": "float32"}, 0.5]}
    assert step["modules"]["block.conv"] == {"stride": [2, 2], "pooled": "before"}
    again = rebuild(unet(), made)
    again.load_state_dict(converted.state_dict())
    check_equal(again, converted)


def test_a_loaded_network_trains_under_a_budget(tmp_path):
    save(convert(convolutions(), EXAMPLE), tmp_path / "net.pt")
    loaded = load(convolutions(), tmp_path / "net.pt")
    optimizer = torch.optim.SGD(loaded.parameters(), 0.01)
    budget = CostBudget(loaded, EXAMPLE, "before")
    budget.attach(optimizer)
    loaded(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert MultiplyAdds(loaded, EXAMPLE).value() <= loaded.conversion.multiply_adds[""]


def test_a_network_is_converted_again_in_the_mode_of_then(tmp_path):
    def forward(net, x):
        b = net.b(net.a(x))
        y = net.c(b).mean((2, 3))
        return (y, net.aux(b.flatten(1))) if net.training else y

    def build():
        layers = {name: nn.Conv2d(8, 8, 3, stride=2, padding=1) for name in "abc"}
        return Net(forward, **layers, aux=nn.Linear(8 * 8 * 8, 2))

    x = torch.rand(2, 8, 32, 32)
    model = convert(build().eval(), x).train()
    save(model, tmp_path / "net.pt")
    loaded = load(build(), tmp_path / "net.pt")
    assert loaded.training
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_modes_and_requires_grad_are_those_of_the_plain_network(tmp_path):
    save(convert(convolutions(), EXAMPLE), tmp_path / "net.pt")
    plain = convolutions().eval()
    plain[0].weight.requires_grad_(False)
    loaded = load(plain, tmp_path / "net.pt")
    assert not any(module.training for module in loaded.modules())
    assert not loaded[0].weight.requires_grad


def test_another_head_is_refused_by_its_shape(tmp_path):
    def build(classes):
        return nn.Sequential(convolutions(), nn.Flatten(), nn.Linear(8 * 16, classes))

    converted = move(convert(build(10), EXAMPLE))
    save(converted, tmp_path / "net.pt")
    message = r"2\.weight is \(10, 128\) there and \(5, 128\) in this one, 2\.bias.*same number of"
    with pytest.raises(RuntimeError, match=message):
        load(build(5), tmp_path / "net.pt")
    with pytest.raises(RuntimeError, match=r"Missing key.* \"3\.weight"):  # as torch tells
        load(nn.Sequential(*build(10), nn.Linear(10, 5)), tmp_path / "net.pt")
    loaded = load(build(10), tmp_path / "net.pt")
    loaded[2] = nn.Linear(8 * 16, 5)
    assert loaded(EXAMPLE).shape[1] == 5


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_the_network_inside_a_wrapper_is_saved(tmp_path, wrap):
    converted = move(convert(convolutions(), EXAMPLE))
    save(wrap(converted), tmp_path / "net.pt")
    check_equal(load(convolutions(), tmp_path / "net.pt"), converted)


def test_tied_weights_need_another_format(tmp_path):
    pytest.importorskip("safetensors")

    def build():
        net = nn.Sequential(*convolutions(), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1))
        net[-1].weight = net[-2].weight
        return net

    converted = convert(build(), EXAMPLE)
    with pytest.raises(ValueError, match=r"share memory.*choose a name that ends with \.pt"):
        save(converted, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
    save(converted, tmp_path / "net.pt")
    loaded = load(build(), tmp_path / "net.pt")
    assert loaded[-1].weight is loaded[-2].weight


def test_a_network_without_conversions_has_no_recipe(tmp_path):
    with pytest.raises(ValueError, match="nothing to rebuild: save its state_dict"):
        save(convolutions(), tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []


def test_another_network_is_refused(tmp_path):
    save(convert(convolutions(), EXAMPLE), tmp_path / "net.pt")
    other = convolutions()
    other[3].stride = (1, 1)
    with pytest.raises(ValueError, match=r"differs from the one that was converted .*'3'"):
        load(other, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="differs from the one that was converted"):
        load(unet(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="converted or frozen already: pass one that was built"):
        load(convert(convolutions(), EXAMPLE), tmp_path / "net.pt")


def test_a_part_that_is_missing_is_named(tmp_path):
    network = nn.ModuleDict({"backbone": convert(convolutions(), EXAMPLE)})
    save(network, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="it has no 'backbone'"):
        load(nn.ModuleDict({"body": convolutions()}), tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_without_a_recipe_are_refused(tmp_path, suffix):
    path, state = tmp_path / f"net.{suffix}", convolutions().state_dict()
    if suffix == "pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    with pytest.raises(ValueError, match=rf"net.{suffix}' has no recipe"):
        load(convolutions(), path)


@pytest.mark.parametrize("wrong", [{}, [], {"format": 2, "conversions": [], "frozen": {}}])
def test_wrong_recipes_are_refused(wrong):
    message = "this version reads formats up to 1" if wrong else "expected a recipe"
    with pytest.raises(ValueError, match=message):
        rebuild(convolutions(), wrong)


def test_an_example_of_other_kinds_has_no_recipe():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)

        def forward(self, x, kind):
            return self.conv(x) if kind is Block else x

    converted = convert(Scaled(), (EXAMPLE, Block))
    with pytest.raises(ValueError, match="example of a conversion holds a type, which JSON"):
        recipe(converted)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    save(convert(convolutions(), EXAMPLE), path)
    before = path.read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving.torch, "save", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*net.pt"):
        save(convert(convolutions(), EXAMPLE), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_needs_neither_filelock_nor_lightning():
    code = "import sys, diffstride; print({'filelock', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_device_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    converted = convert(convolutions(), EXAMPLE)
    with pytest.raises(OSError, match=r"is no regular file: '.*folder'"):
        save(converted, tmp_path / "folder")


@pytest.mark.slow
def test_processes_that_save_at_once_do_not_disturb_each_other(tmp_path):
    code = (
        "import sys, torch; from torch import nn; from diffstride import convert, save\n"
        "net = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1))\n"
        "net = convert(net, torch.zeros(1, 8, 16, 16))\n"
        "for _ in range(40): save(net, sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "net.pt")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [each.communicate(timeout=120)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], errors
    assert list(tmp_path.iterdir()) == [tmp_path / "net.pt"]
    load(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1)), tmp_path / "net.pt")


def test_a_resampled_kernel_that_was_parametrised_is_refused_with_a_way_that_works(tmp_path):
    def build():
        return nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1))

    x = torch.rand(1, 8, 32, 32)
    model = convert(build(), x)
    weight_norm(model[2])
    with pytest.raises(ValueError, match=r"kernel of '2' was parametrised .* remove the param"):
        save(model, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())
    again = rebuild(build(), recipe(model))
    weight_norm(again[2])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_a_parametrised_bias_is_refused_too_as_its_convolution_is_not_pooled_before(tmp_path):
    model = convert(nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1)), torch.rand(1, 8, 32, 32))
    weight_norm(model[0], "bias", dim=None)
    with pytest.raises(ValueError, match=r"bias of '0' was parametrised"):
        save(model, tmp_path / "net.pt")


def test_modes_of_single_modules_stay(tmp_path):
    """Norms in evaluation mode, as where their statistics are kept."""
    norms = [nn.BatchNorm2d(8) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), norms[0], norms[1])
    norms[0].eval()
    save(convert(net, torch.rand(1, 8, 16, 16)), tmp_path / "net.pt")
    loaded = load(net, tmp_path / "net.pt")
    assert [each.training for each in loaded] == [True, False, True]
    assert loaded[0].pooling.training
