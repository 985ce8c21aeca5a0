"""Helpers for the strides of any network: names, and parameter groups for an optimiser."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

from diffstride import DiffStride, pooling, reference, resnet
from diffstride.resnet import Resnet
from diffstride.strides import parameter_groups, stride_layers, stride_scalars


def small(**kwargs) -> Resnet:
    return resnet.resnet18(width=4, num_output_classes=5, **kwargs)


# Parameter groups


@pytest.mark.parametrize("pooling_cls", [pooling.DiffStride, reference.DiffStride])
def test_parameter_groups_split_the_whole_model(pooling_cls: type) -> None:
    network = small(pooling_cls=pooling_cls)
    groups = parameter_groups(network, network.weight_decay)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kernels, others, strides = ([names.pop(id(p)) for p in group["params"]] for group in groups)
    assert names == {}
    assert all("conv" in name or "shortcut" in name or "dense" in name for name in kernels)
    assert all("norm" in name or name == "dense.bias" for name in others)
    assert strides == [f"{name}.strides" for name in stride_layers(network)]
    assert [group["name"] for group in groups] == ["kernels", "others", "strides"]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_parameter_groups_pass_the_weight_decay_on_as_it_is(optimizer: type) -> None:
    network = small(pooling_cls=pooling.DiffStride)
    groups = optimizer(parameter_groups(network, 0.05), lr=0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.0]


def test_twice_the_factor_of_the_published_penalty_is_its_weight_decay() -> None:
    network = small(pooling_cls=pooling.DiffStride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    before = copy.deepcopy(network.state_dict())
    penalised = copy.deepcopy(network)
    kernels = {name: p for name, p in penalised.named_parameters() if p.ndim > 1}
    penalty = torch.stack([0.03 * kernel.square().sum() for kernel in kernels.values()]).sum()
    gradients = torch.autograd.grad(penalty, list(kernels.values()))
    expected = {
        name: kernels[name] - 0.1 * gradient
        for name, gradient in zip(kernels, gradients, strict=True)
    }
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(parameter_groups(network, 2 * 0.03), lr=0.1).step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, expected.get(name, before[name]))


def test_strides_learn_at_their_own_rate() -> None:
    network = small(pooling_cls=pooling.DiffStride)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    groups = parameter_groups(network, 0.0, stride_learning_rate=0.25)
    torch.optim.SGD(groups, lr=0.1).step()
    assert network.get_parameter("blocks.1.0.pooling.strides").tolist() == [1.75, 1.75]
    assert network.dense.bias.tolist() == pytest.approx([-0.1] * 5)


def test_parameter_groups_of_a_model_without_strides_serve_an_optimiser() -> None:
    network = small()
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    before = network.dense.bias.detach().clone()
    torch.optim.SGD(parameter_groups(network, 5e-4), lr=0.1, momentum=0.9).step()
    assert not torch.equal(network.dense.bias, before)


@pytest.mark.parametrize("name", ["weight_decay", "stride_learning_rate", "bias_learning_rate"])
@pytest.mark.parametrize("value", [-1.0, "0.1"])
def test_parameter_groups_refuse_negative_values_and_words(name: str, value: object) -> None:
    build = partial(parameter_groups, **{"model": small(), "weight_decay": 0.0, name: value})
    message = f"{name} must be a number of at least 0, but got {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


# Names


@pytest.mark.parametrize(
    ("strides", "names"),
    [
        (2.0, ["/height", "/width"]),
        ((2.0,), [""]),
        ((2.0, 3.0, 4.0), ["/depth", "/height", "/width"]),
    ],
)
def test_scalars_are_named_by_layer_and_axis(strides, names):
    scalars = stride_scalars(nn.ModuleDict({"pool": DiffStride(strides)}))
    values = strides if isinstance(strides, tuple) else (strides, strides)
    assert scalars == {f"stride/pool{name}": v for name, v in zip(names, values, strict=True)}


def test_a_shared_stride_has_one_scalar_per_axis():
    scalars = stride_scalars(nn.ModuleDict({"pool": DiffStride(3.0, shared_stride=True)}))
    assert scalars == {"stride/pool/height": 3.0, "stride/pool/width": 3.0}
