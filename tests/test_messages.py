"""Mistakes of users, and the errors that say what to do instead."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import diffstride
from diffstride import CostBudget, DiffStride, convert, freeze, parameter_groups, report

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small_network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))


def network_with_head(features):
    """A plain `DiffStride`, and a linear layer built for one size of its maps."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), DiffStride(2.0), nn.Flatten(), nn.Linear(features, 10)
    )


class PatchNetwork(nn.Module):
    """Patches with a stored position each, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, 64, 8))

    def forward(self, x):
        return self.patches(x).flatten(2).transpose(1, 2) + self.positions


CALLS = {
    "convert": lambda model: convert(model, X),
    "report": lambda model: report(model, X),
    "freeze": lambda model: freeze(model, X),
    "CostBudget": lambda model: CostBudget(model, X),
    "parameter_groups": lambda model: parameter_groups(model, 1e-4),
    "project_strides": diffstride.project_strides,
    "recipe": diffstride.recipe,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (small_network, r"the function small_network: call it first, as in small_network\(\)"),
        (PatchNetwork, r"the class PatchNetwork: build it first, as in PatchNetwork\(...\)"),
        ("resnet18", r"the text 'resnet18': .* torchvision\.models\.resnet18\(\) or timm\.create"),
        (X, "a Tensor: pass the network first, then its example"),
    ],
    ids=["function", "class", "name", "tensor"],
)
def test_what_is_no_network_is_refused_with_what_to_pass(call, given, advice):
    with pytest.raises(TypeError, match=rf"expected a network .*, but got {advice}"):
        CALLS[call](given)


@pytest.mark.parametrize("call", [convert, report, CostBudget])
@pytest.mark.parametrize("features", [8 * 32 * 32, 8 * 8 * 8])
def test_a_linear_layer_for_other_maps_names_the_pooling_before_it(call, features):
    message = (
        rf"3 \(Linear\) takes {features:,} features, but gets 2,048, of maps that 1 "
        r"\(DiffStride\) pools to 16 x 16. If .*AdaptiveAvgPool2d\(1\)"
    )
    with pytest.raises(ValueError, match=message):
        call(network_with_head(features), X)


def test_a_linear_layer_for_other_channels_is_to_be_built_for_those_it_gets():
    conv, pool = nn.Conv2d(3, 8, 3), DiffStride(2.0)
    pooled = nn.Sequential(conv, pool, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    with pytest.raises(ValueError, match=r"takes 16 features, but gets 8, .*else build it for the"):
        CostBudget(pooled, X)


@pytest.mark.parametrize("call", [report, CostBudget])
def test_a_linear_layer_of_fixed_size_gets_advice_that_works(call):
    with pytest.raises(ValueError, match=r"AdaptiveAvgPool2d\(\(16, 16\)\) behind") as error:
        call(network_with_head(8 * 16 * 16), X)
    assert "diffstride.AdaptiveSpectralPooling((16, 16)) in its place" in str(error.value)
    assert "filter_fn" not in str(error.value)
    conv, pool, *head = network_with_head(8 * 16 * 16)
    call(nn.Sequential(conv, pool, nn.AdaptiveAvgPool2d((16, 16)), *head), X)
    report(nn.Sequential(conv, diffstride.AdaptiveSpectralPooling((16, 16)), *head), X)


@pytest.mark.parametrize("patchify", [False, True])
def test_patches_of_a_fixed_number_are_refused_without_wrong_advice(patchify):
    with pytest.raises(ValueError, match="PatchNetwork has no stride that could learn") as error:
        convert(PatchNetwork(), X, patchify=patchify)
    assert "'patches' cuts the image into patches" in str(error.value)
    assert "filter_fn" not in str(error.value)


def test_a_pooling_before_a_flattened_map_is_not_called_a_patch():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2)
    )
    network(X)
    with pytest.raises(ValueError, match="put adaptive pooling before it") as error:
        convert(network, X)
    assert "patches" not in str(error.value)


def test_patches_that_can_be_converted_are_named_with_the_option_that_takes_them():
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
    with pytest.raises(ValueError, match="patchify=True takes it"):
        convert(network, X)
    assert len(diffstride.stride_layers(convert(network, X, patchify=True))) == 1


def test_names_that_the_forward_does_not_have_are_shown_with_its_own():
    class Net(nn.Sequential):
        def forward(self, image):
            return super().forward(image)

    with pytest.raises(ValueError, match=r"dictionary of 'imgae', .*forward\(image\).*their names"):
        convert(Net(*small_network()), {"imgae": X})
    assert len(report(convert(Net(*small_network()), {"image": X}))) == 2


def test_a_batch_of_a_loader_as_example_is_named():
    batch = [torch.rand(2, 3, 32, 32), torch.tensor([0, 1])]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2))
    with pytest.raises(ValueError, match=r"a list of 2, .* images alone, as in example\[0\]"):
        convert(network, batch)
    with pytest.raises(ValueError, match=r"images alone, as in example\[0\]"):
        convert(network, tuple(batch))


@pytest.mark.parametrize("call", [report, CostBudget])
def test_a_single_layer_is_refused_with_a_network_around_it(call):
    with pytest.raises(ValueError, match=r"a single DiffStride.*nn\.Sequential\(DiffStride\("):
        call(DiffStride(2.0), X)
    call(nn.Sequential(nn.Conv2d(3, 8, 1), DiffStride(2.0)), X)


def test_a_second_budget_of_the_same_layers_is_refused():
    model = convert(small_network(), X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    budget = CostBudget(model, X, "before")
    hooks = budget.attach(optimizer)
    second = CostBudget(model, X, 0.9)
    with pytest.raises(ValueError, match="this budget is attached to this optimizer already"):
        budget.attach(optimizer)
    with pytest.raises(ValueError, match=r"another budget, of .* attached to this optimizer"):
        second.attach(optimizer)
    hooks.remove()
    second.attach(optimizer)


def test_a_budget_says_when_it_was_not_projected():
    model = convert(small_network(), X)
    budget = CostBudget(model, X)
    assert "project_" not in repr(budget)
    with torch.no_grad():
        model[1].pooling.strides -= 0.3
    assert re.search(r"strides .*; moved since project_\(\), which attach", repr(budget))
    budget.project_()
    assert "project_" not in repr(budget)
    shared = convert(small_network(), X, shared_stride=True)
    budget = CostBudget(shared, X)
    assert "project_" not in repr(budget)
    shared[1].pooling.strides.data -= 0.3
    assert "moved since project_()" in repr(budget)


@pytest.mark.parametrize("amount", [1.0, "before"])
def test_a_budget_callback_without_a_network_names_it(amount):
    pl = pytest.importorskip("lightning.pytorch")
    from diffstride.callbacks import BudgetCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = convert(small_network(), X)

    callback = BudgetCallback(X, amount)
    with pytest.raises(ValueError, match=r"pass network='net' to BudgetCallback, .* this Module"):
        callback.on_train_start(pl.Trainer(accelerator="cpu", logger=False), Module())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "1", "malformed"),
        (("conversions",), 3, "malformed"),
        (("conversions", 0, "part"), 3, "malformed"),
        (("conversions", 0, "options", "unknown"), 3, "unexpected keyword argument 'unknown'"),
        (("frozen", "0.pooling", "dtype"), "zz", "no attribute 'zz'"),
        (("conversions", 0, "modules"), None, "lacks 'modules'"),
        (("frozen", "0.pooling", "sizes"), None, "lacks 'sizes'"),
    ],
)
def test_a_malformed_recipe_is_refused_with_its_entry(path, value, message):
    made = diffstride.recipe(freeze(convert(small_network(), X), X))
    diffstride.rebuild(small_network(), made)
    *outer, last = path
    entry = made
    for name in outer:
        entry = entry[name]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    with pytest.raises(ValueError, match=f"the recipe .*{message}"):
        diffstride.rebuild(small_network(), made)


@pytest.mark.parametrize(
    "attach",
    [
        lambda model, x: diffstride.strides.attach(model, x),
        lambda model, x: CostBudget(model, X).attach(x),
    ],
)
@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (torch.optim.SGD, r"the class SGD: pass an optimiser, not its class, as in SGD\(model"),
        (0.1, "a float: pass the optimiser inside it"),
    ],
)
def test_what_is_no_optimiser_is_refused(attach, given, advice):
    model = convert(small_network(), X)
    with pytest.raises(TypeError, match=rf"needs a torch.optim.Optimizer, but got {advice}"):
        attach(model, given)


def test_parameters_in_place_of_a_network_are_refused():
    with pytest.raises(
        TypeError, match=r"a generator: pass the network itself, .* not model.param"
    ):
        parameter_groups(small_network().parameters(), 1e-4)  # pyright: ignore


def test_what_cannot_be_frozen_or_converted_says_what_it_is():
    frozen = freeze(convert(small_network(), X), X)
    with pytest.raises(ValueError, match="this Sequential is frozen already: use it as it is"):
        freeze(frozen, X)
    with pytest.raises(
        ValueError, match=r"was frozen by diffstride.freeze, .*: use it as it is, or"
    ):
        convert(frozen, X)
    with pytest.raises(ValueError, match="no pooling layer to freeze: pass a network that diffstr"):
        freeze(small_network(), X)


@pytest.mark.parametrize(
    ("name", "first", "other"),
    [
        ("order", "auto", "after"),
        ("order", "after", "before"),
        ("min_channels", 0, 4),
        ("upper_limit_stride", (3.0, 4.0), 3.0),
    ],
)
def test_arguments_that_would_have_no_effect_are_refused(name, first, other):
    options: dict = {name: first}
    converted = convert(small_network(), X, **options)
    for same in ({}, options):
        assert convert(converted, X, **same).conversion.strides == converted.conversion.strides
    whole = nn.Sequential(converted, nn.ReLU())
    for model in (converted, whole):
        with pytest.raises(
            ValueError, match=rf"is converted already, with {name}=.* leave {name} o"
        ):
            convert(model, X, **{name: other})
    # Where there is more to convert, the arguments hold for that.
    more = nn.Sequential(converted, nn.Conv2d(8, 8, 3, 2, 1))
    assert convert(more, X, **{name: other}).conversion.steps[-1].modules == ("1",)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_examples_are_told_the_dtype(dtype):
    message = rf"has the dtype of the weights: it is {dtype}, and example.float\(\) makes"
    with pytest.raises(ValueError, match=message) as raised:
        convert(small_network(), X.to(dtype))
    assert "shape" not in str(raised.value)


@pytest.mark.parametrize("given", [lambda m: True, lambda m, *, name: True, ["0"]])
def test_filters_of_other_arguments_are_refused(given):
    with pytest.raises(TypeError, match=r"called as filter_fn\(module, name\), .* but got "):
        convert(small_network(), X, filter_fn=given)
    for right in (lambda *both: True, lambda name, module, more=1: True, isinstance_of_nothing):
        assert convert(small_network(), X, filter_fn=right).conversion.strides


def isinstance_of_nothing(module, name):
    return not isinstance(module, nn.Identity)


def test_swapped_arguments_are_named(tmp_path):
    converted, path = convert(small_network(), X), tmp_path / "net.pt"
    save: Any = diffstride.save
    load: Any = diffstride.load
    with pytest.raises(TypeError, match=r"but got a Sequential: .*as in save\(model, 'net.pt'\)"):
        save(path, converted)
    save(converted, path)
    with pytest.raises(TypeError, match=r"but got a Sequential: .*as in load\(model, 'net.pt'\)"):
        load(path, small_network())
    message = r"^budget must be a positive number or 'before', but got a Tensor of shape "
    message += r"\(2, 3, 32, 32\): pass the example before the budget$"
    with pytest.raises(ValueError, match=message):
        CostBudget(converted, 0.5, X)  # pyright: ignore[reportArgumentType]
    callbacks = pytest.importorskip("diffstride.callbacks", reason="needs Lightning")
    with pytest.raises(ValueError, match=message):
        callbacks.BudgetCallback(0.5, X)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1)), "'1' has None, not "),
        (nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.MaxPool2d(2), nn.ReLU()), "'0' has None, not "),
        (nn.Sequential(nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)), "2: not converted in the other"),
    ],
)
def test_files_of_another_network_do_not_blame_a_filter(other, reason, tmp_path):
    diffstride.save(convert(small_network(), X), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=f"the network differs from .*{reason}") as raised:
        diffstride.load(other, tmp_path / "net.pt")
    assert "filter_fn" not in str(raised.value)


@pytest.mark.parametrize(
    "call",
    [
        DiffStride(2.0),
        diffstride.FixedSpectralPooling(2.0),
        diffstride.MaxPooling(2),
        diffstride.BlurPooling(2),
        diffstride.SpatialPooling(2),
        diffstride.AdaptiveSpectralPooling((4, 4)),
        freeze(nn.Sequential(DiffStride(2.0)), X),
        lambda x: diffstride.diff_stride(x, (2.0, 2.0)),
        lambda x: diffstride.spectral_pool(x, (2.0, 2.0)),
    ],
)
def test_arrays_are_refused_with_what_to_pass(call):
    with pytest.raises(TypeError, match=r"numpy.ndarray of shape \(2, 3, 32, 32\): .*from_numpy"):
        call(X.numpy())
