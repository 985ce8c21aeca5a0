"""Pooling layers as the aa_layer of timm's networks."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from diffstride import (
    AdaptiveSpectralPooling,
    BlurPooling,
    CostBudget,
    DiffStride,
    FixedSpectralPooling,
    MaxPooling,
    MultiplyAdds,
    SpatialPooling,
    convert,
    parameter_groups,
    stride_layers,
)
from diffstride.pooling import timm_aa_layer

timm = pytest.importorskip("timm", reason="needs timm, of the extra dev")

FIXED = (FixedSpectralPooling, BlurPooling, MaxPooling, SpatialPooling)
BLOCKS = ("layer2.0", "layer3.0", "layer4.0")  # of resnet18, those that stride


def resnet(aa_layer: object, **options: object) -> nn.Module:
    return timm.create_model("resnet18", aa_layer=aa_layer, num_classes=10, **options)


def images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def map_sizes(model: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    return [tuple(each.shape[2:]) for each in model.forward_intermediates(x)[1]]  # type: ignore[operator]


def train(model: nn.Module, x: Tensor, budget: CostBudget | None = None, steps: int = 2) -> None:
    groups = parameter_groups(model, weight_decay=0.0, stride_learning_rate=0.05)
    optimizer = torch.optim.SGD(groups, lr=0.01)
    if budget is not None:
        budget.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), torch.tensor([1, 2])).backward()
        optimizer.step()


def counted(model: nn.Module, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x[:1])
    return counter.get_total_flops() / 2


def test_blur_pooling_returns_what_that_of_timm_returns():
    ours, theirs = resnet(timm_aa_layer(BlurPooling)), resnet(timm.layers.BlurPool2d)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(images(67)), theirs.eval()(images(67)))


@pytest.mark.parametrize("pooling", FIXED)
def test_networks_with_fixed_strides_train_and_have_a_cost(pooling):
    model = resnet(timm_aa_layer(pooling))
    made = [module for module in model.modules() if type(module) is pooling]
    assert len(made) == 4
    assert map_sizes(model, images()) == map_sizes(resnet(None), images())
    before = model.layer2[0].conv1.weight.clone()  # type: ignore[union-attr]
    train(model, images())
    assert not torch.equal(model.layer2[0].conv1.weight, before)  # type: ignore[union-attr]
    assert MultiplyAdds(model, images()).value() == counted(model, images())


def test_options_reach_the_layers():
    model = resnet(timm_aa_layer(DiffStride, upper_limit_stride=3.0, shared_stride=True))
    layers = stride_layers(model).values()
    assert [(each.upper_limit_stride, each.strides.tolist()) for each in layers] == [(3, [2])] * 4


def test_shortcuts_share_the_learned_strides_after_conversion():
    model = convert(resnet(timm_aa_layer(DiffStride)), images())
    for block in map(model.get_submodule, BLOCKS):
        assert block.downsample[0].pooling is block.aa  # type: ignore[union-attr]
    budget = CostBudget(model, images(), "before")
    before = [layer.stride_values() for layer in stride_layers(model).values()]
    train(model, images(), budget)
    assert before != [layer.stride_values() for layer in stride_layers(model).values()]
    cost = MultiplyAdds(model, images()).value()
    assert 0.98 * budget.multiply_adds <= cost <= budget.multiply_adds
    assert cost == counted(model, images())


@pytest.mark.parametrize(
    "pooling", [FIXED[0], *(pytest.param(each, marks=pytest.mark.slow) for each in FIXED[1:])]
)
def test_fixed_strides_that_meet_those_of_shortcuts_follow_learned_ones(pooling):
    model = resnet(timm_aa_layer(pooling))
    x = images(67)
    model = convert(model, x, filter_fn=lambda _, name: name == "conv1", min_channels=0)
    assert list(stride_layers(model)) == ["conv1.pooling"]
    CostBudget(model, x, fraction=0.8)
    assert min(model.conv1.pooling.stride_values()) > 2  # type: ignore[union-attr]
    assert MultiplyAdds(model, x).value() == counted(model, x)


def test_shortcuts_that_stride_on_their_own_are_named():
    with pytest.raises(ValueError, match=r"meets maps in add_ in layer2\.0 whose size"):
        MultiplyAdds(resnet(timm_aa_layer(DiffStride)), images())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_050",
        pytest.param("efficientnet_lite0", marks=pytest.mark.slow),
        pytest.param("cspresnet50", marks=pytest.mark.slow),
    ],
)
def test_networks_without_strided_shortcuts_need_no_conversion(name):
    model = timm.create_model(name, aa_layer=timm_aa_layer(DiffStride), num_classes=10)
    budget = CostBudget(model, images(), fraction=0.9)
    before = [layer.stride_values() for layer in stride_layers(model).values()]
    assert len(before) == 4
    assert all(max(strides) > 2 for strides in before)
    train(model, images(), budget)
    assert before != [layer.stride_values() for layer in stride_layers(model).values()]
    assert MultiplyAdds(model, images()).value() <= budget.multiply_adds


def test_transitions_that_pass_channels_by_position():
    aa_layer = timm_aa_layer(DiffStride)
    model = timm.create_model("densenet121", aa_layer=aa_layer, aa_stem_only=False, num_classes=10)
    layers = [module for module in model.modules() if type(module) is DiffStride]
    assert [layer.stride_values() for layer in layers] == [(2.0, 2.0)] * 4
    assert model(images()).shape == (2, 10)


def test_dilated_stages_are_not_pooled():
    model = resnet(timm_aa_layer(DiffStride), output_stride=8)
    assert list(stride_layers(model)) == ["maxpool.1", "layer2.0.aa"]
    assert type(model.layer3[0].aa) is nn.Identity  # type: ignore[union-attr]
    assert map_sizes(model, images())[-1] == (8, 8)


@pytest.mark.parametrize("pooling", [DiffStride, BlurPooling])
def test_dtype_and_device_are_passed_on(pooling):
    model = resnet(timm_aa_layer(pooling), dtype=torch.bfloat16)
    pooled = model.maxpool[1]  # type: ignore[index]
    tensor = pooled.strides if pooling is DiffStride else pooled.kernel
    assert tensor.dtype == (torch.float32 if pooling is DiffStride else torch.bfloat16)
    layer = timm_aa_layer(pooling)(64, stride=2, device="meta")
    assert {each.device.type for each in layer.state_dict(keep_vars=True).values()} <= {"meta"}
    assert all(each.is_meta for each in (*layer.parameters(), *layer.buffers()))


def test_networks_copy_and_pickle():
    model = resnet(timm_aa_layer(DiffStride, upper_limit_stride=3.0)).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.maxpool[1]) is DiffStride
        torch.testing.assert_close(other(images()), model(images()))


def test_classes_pickle_with_their_options():
    aa_layer = pickle.loads(pickle.dumps(timm_aa_layer(DiffStride, upper_limit_stride=3.0)))
    assert repr(aa_layer(8, 2)) == repr(DiffStride(2.0, upper_limit_stride=3.0))


def test_what_makes_no_layer_is_refused():
    with pytest.raises(TypeError, match="must be a class, such as DiffStride, but got DiffStride"):
        timm_aa_layer(DiffStride())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="smoothness"):
        timm_aa_layer(DiffStride, smoothness=4.0)
    with pytest.raises(TypeError, match="strides"):
        timm_aa_layer(AdaptiveSpectralPooling)
    with pytest.raises(ValueError, match="start within the limits"):
        timm_aa_layer(DiffStride, upper_limit_stride=1.5)
