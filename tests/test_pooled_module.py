"""Pooled modules: what is kept of a converted module, copies of it, crop and padding."""

import copy
import io
import pickle

import pytest
import torch
from networks import IMAGE, Block
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from diffstride import diff_stride, spectral_pool
from diffstride.conversion.converter import convert
from diffstride.conversion.pooled_module import CropPad, Pooled, crop_or_pad


@pytest.mark.parametrize("straight_through", [True, False])
def test_a_converted_module_runs_at_stride_1_and_pools(straight_through):
    """Each converted module equals the module at stride 1 followed by diff_stride."""
    x = torch.rand(2, 4, 16, 20)
    modules = {
        "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        "dilated": nn.Conv2d(4, 6, 3, stride=(2, 1), padding=2, dilation=2),
        "max": nn.MaxPool2d(3, 2, padding=1),
        "average": nn.AvgPool2d(3, stride=(2, 4), padding=1),
        "power": nn.LPPool2d(2, 3),
    }
    for module in modules.values():
        options = {"edge": "stopband", "straight_through": straight_through}
        converted = convert(nn.Sequential(module), x, order="after", **options)[0]
        stride = module.stride or module.kernel_size
        strides = torch.broadcast_to(torch.tensor(stride), (2,)).tolist()
        assert converted.pooling.stride_values() == tuple(strides)
        full = copy.deepcopy(module)
        full.stride = type(module.stride)((1, 1)) if isinstance(module.stride, tuple) else 1
        expected = diff_stride(full(x), [float(s) for s in strides], **options)
        torch.testing.assert_close(converted(x), expected)
        assert converted(x).shape == module(x).shape


def test_pointwise_convolution_is_pooled_first_and_costs_less():
    conv, x = nn.Conv2d(8, 64, 1, stride=2), torch.rand(1, 8, 16, 16)
    converted = convert(nn.Sequential(conv), x)
    assert converted[0].pool_first
    conv.stride = (1, 1)
    torch.testing.assert_close(converted(x), spectral_pool(conv(x), 2.0))


def test_modules_parameters_and_hooks_are_kept():
    model = Block().to(memory_format=torch.channels_last).eval()
    model.stem.weight.requires_grad_(False)
    seen = []
    model.conv.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    before = copy.deepcopy(model)
    converted = convert(model, torch.rand(IMAGE), order="after")
    assert type(model.conv) is nn.Conv2d
    assert model.conv.stride == (2, 2)
    assert seen == []
    assert type(converted) is Block
    assert isinstance(converted.conv, nn.Conv2d)
    assert isinstance(converted.conv, Pooled)
    assert not any(module.training for module in converted.modules())
    names = dict(converted.named_parameters())
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, names[name])
        assert parameter.requires_grad == names[name].requires_grad
        assert parameter.stride() == names[name].stride()
    assert [name for name in names if name not in dict(before.named_parameters())] == [
        "conv.pooling.strides"
    ]
    converted(torch.rand(IMAGE))
    assert seen == [(2, 8, 16, 16)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    x = torch.rand(1, 3, 8, 8, dtype=dtype)
    model = convert(Block().to(dtype), x)
    assert model.conv.weight.dtype == dtype
    assert model.conv.pooling.strides.dtype == torch.float32
    assert model(x).dtype == dtype


def test_copies_share_what_the_original_shares():
    x = torch.rand(IMAGE)
    model = convert(Block(), x).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert type(other.conv) is type(model.conv)
        assert other.conv.pooling is other.shortcut.pooling
        assert other.conv.pooling is not model.conv.pooling
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_crop_or_pad_drops_and_repeats_samples_of_its_axis(axes):
    x = torch.arange(5.0).expand(1, 1, *(5,) * axes)
    others = [CropPad()] * (axes - 1)
    for crop_pad, expected in [
        (CropPad(), [0, 1, 2, 3, 4]),
        (CropPad(crop=2, pad=1), [2, 3, 4, 4]),
        (CropPad(crop=1, pad=-2), [1, 2]),
    ]:
        got = crop_or_pad(x, [*others, crop_pad])
        assert torch.equal(got, torch.tensor(expected).float().expand(*x.shape[:-1], -1))


def test_padded_maps_keep_their_dtype_under_autocast():
    model = convert(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)), torch.rand(IMAGE)
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.rand(IMAGE)).dtype == torch.bfloat16


def test_a_parametrization_added_later_is_copied_or_refused_as_in_torch():
    x = torch.rand(IMAGE)
    model = convert(Block(), x).eval()
    nn.utils.parametrizations.weight_norm(model.conv)
    other = copy.deepcopy(model)
    assert type(other.conv) is type(model.conv)
    assert torch.equal(other(x), model(x))
    for copied in (copy.copy, pickle.dumps):
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            copied(model.conv)


def test_a_parametrization_can_be_removed_after_conversion():
    """As weight norms of audio networks are before inference."""
    x = torch.randn(2, 3, 16, 16)
    net = nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1)))
    converted, other = convert(net, x), convert(net, x)
    expected = converted(x)
    assert isinstance(converted[0], nn.Conv2d)
    parametrize.remove_parametrizations(converted[0], "weight")
    torch.testing.assert_close(converted(x), expected)
    assert "weight" in dict(converted[0].named_parameters())
    for untouched in (other, copy.deepcopy(other)):
        torch.testing.assert_close(untouched(x), expected)
    assert net(x).shape == expected.shape


class Counting(nn.Conv2d):
    """Resets its count when it is copied or pickled."""

    def __getstate__(self):
        return self.__dict__ | {"count": 0}


def test_copies_call_getstate_of_the_class():
    model = convert(nn.Sequential(Counting(3, 3, 3, stride=2)), torch.rand(IMAGE))
    model[0].count = 7
    assert copy.copy(model[0]).count == 0
    assert pickle.loads(pickle.dumps(model))[0].count == 0


def test_strides_that_are_views_of_one_tensor_are_all_saved():
    """`vector_to_parameters` makes such parameters."""
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(3)))
    model = convert(net, torch.rand(1, 8, 32, 32))
    names = list(model.state_dict())
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector, model.parameters())
    assert list(model.state_dict()) == names
