"""Max pooling of stride 1 equals that of torch: values, gradients, formats, errors."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffstride import convert, freeze
from diffstride.conversion.dense_max_pooling import dense_axes, pool_densely
from diffstride.spectral.memory_format import CHANNELS_LAST

MODULES = {
    "2-D": nn.MaxPool2d(3, 1, padding=1),
    "even": nn.MaxPool2d(2, 1),
    "dilated": nn.MaxPool2d((3, 2), (1, 1), padding=(1, 0), dilation=(2, 3)),
    "ceil": nn.MaxPool2d(3, 1, ceil_mode=True),
    "3-D": nn.MaxPool3d(3, 1, padding=1),
    "volume": nn.MaxPool3d((2, 3, 1), 1, padding=(1, 0, 0)),
}


def dense(module, x, forward=None):
    return pool_densely(module, dense_axes(module), forward or module.forward, x)


def maps(module, dtype=torch.float32):
    """Maps with many ties, as behind a ReLU."""
    torch.manual_seed(0)
    return torch.randint(-2, 3, (2, 8, 18, 17, 7)[: dense_axes(module) + 2]).to(dtype).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_values_and_formats_are_those_of_torch(name, channels_last, dtype):
    module, x = MODULES[name], maps(MODULES[name], dtype)
    x = x.contiguous(memory_format=CHANNELS_LAST[dense_axes(module)]) if channels_last else x
    found = dense(module, x, forward=lambda x: pytest.fail("pooled by torch"))
    torch.testing.assert_close(found, module(x), rtol=0, atol=0, check_stride=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_torch_which_pools_channels_last(name, channels_last, dtype):
    module, x = MODULES[name], maps(MODULES[name], dtype)
    memory_format = CHANNELS_LAST[dense_axes(module)]
    x = x.contiguous(memory_format=memory_format) if channels_last else x

    def forward(x):
        assert x.is_contiguous(memory_format=memory_format)
        return module(x)

    results = []
    for pool in (module, partial(dense, module, forward=forward)):
        given = x.detach().requires_grad_()
        y = pool(given)
        results.append([y, *torch.autograd.grad(y.square().sum(), [given])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, check_stride=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_come_out_as_of_torch(value):
    module, x = MODULES["2-D"], torch.rand(1, 8, 32, 32)
    x[0, 0, 2, 3] = value
    torch.testing.assert_close(dense(module, x), module(x), equal_nan=True)


def test_small_maps_and_unbatched_ones_are_left_to_torch():
    module = nn.MaxPool2d((3, 9), 1)
    with pytest.raises(RuntimeError, match="too small"):
        dense(module, torch.rand(2, 80, 20, 5))
    x = torch.rand(8, 60, 50)
    torch.testing.assert_close(dense(module, x), module(x))


def test_volumes_keep_their_dtype_under_autocast():
    module, x = MODULES["3-D"], maps(MODULES["3-D"], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(module, x).dtype == module(x).dtype


def test_only_what_torch_itself_pools_at_stride_1_is_pooled_densely():
    class Own(nn.MaxPool2d):
        def forward(self, input):
            return super().forward(input) + 1

    assert dense_axes(Own(3, 1)) == 0
    assert dense_axes(nn.MaxPool2d(3, 2)) == 0
    assert dense_axes(nn.MaxPool2d(3, (1, 2))) == 0
    assert dense_axes(nn.MaxPool2d(3, 1, return_indices=True)) == 0
    assert dense_axes(nn.MaxPool2d(3, 1, padding=(1,))) == 0  # torch takes it for both axes
    assert dense_axes(nn.MaxPool1d(3, 1)) == 0


def test_a_converted_network_pools_so_in_and_out_of_training():
    x = torch.rand(2, 3, 32, 32)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    converted = convert(network, x)
    assert converted[2].dense_axes == 2
    with torch.no_grad():
        evaluated = converted(x)
    torch.testing.assert_close(evaluated, converted(x))
    torch.testing.assert_close(torch.func.vmap(converted)(x[:, None])[:, 0], evaluated)
    scaled = torch.func.vmap(lambda scale: (converted(x) * scale).sum())(torch.ones(2))
    torch.testing.assert_close(scaled, evaluated.sum().expand(2))


class PoolsTwice(nn.Module):
    """Calls the function that its child calls, too."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return F.max_pool2d(self.pool(x), 2)


def test_functions_behind_it_are_still_told_apart_by_their_number():
    x = torch.rand(2, 3, 64, 64)
    converted = convert(PoolsTwice(), x)
    with torch.no_grad():
        converted.maxpool2d_0.pooling.strides.fill_(3.0)
    for images in (x, x.clone().requires_grad_()):
        assert converted(images).shape == (2, 3, 11, 11)
    assert freeze(converted, x)(x).shape == (2, 3, 11, 11)
