"""Max pooling of stride 1 equals that of torch: values, gradients, formats, errors."""

from functools import partial

import pytest
import torch
from torch import nn

from diffstride import convert
from diffstride.conversion.dense_max_pooling import FORMATS, dense_axes, pool_densely

MODULES = {
    "1-D": nn.MaxPool1d(3, 1, padding=1),
    "2-D": nn.MaxPool2d(3, 1, padding=1),
    "3-D": nn.MaxPool3d((2, 3, 1), 1, padding=(1, 0, 0)),
    "even": nn.MaxPool2d(2, 1),
    "dilated": nn.MaxPool2d((3, 2), (1, 1), padding=(1, 0), dilation=(2, 3)),
    "ceil": nn.MaxPool2d(3, 1, ceil_mode=True),
}


def dense(module, x):
    return pool_densely(module, dense_axes(module), module.forward, x)


def maps(module, dtype=torch.float32):
    """Maps with many ties, as behind a ReLU."""
    torch.manual_seed(0)
    return torch.randint(-2, 3, (2, 5, 9, 8, 7)[: dense_axes(module) + 2]).to(dtype).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_values_gradients_and_formats_are_those_of_torch(name, channels_last, dtype):
    module = MODULES[name]
    axes = dense_axes(module)
    if channels_last and axes not in FORMATS:
        pytest.skip("torch has no such format")
    x = maps(module, dtype)
    x = x.contiguous(memory_format=FORMATS[axes]) if channels_last else x
    for learns in (False, True):
        results = []
        for pool in (module, partial(dense, module)):
            given = x.detach().requires_grad_(learns)
            y = pool(given)
            grads = torch.autograd.grad(y.square().sum(), [given]) if learns else ()
            results.append([y, *grads])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, check_stride=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_come_out_as_of_torch(value):
    x = torch.rand(1, 2, 5, 5)
    x[0, 0, 2, 3] = value
    module = MODULES["2-D"]
    torch.testing.assert_close(dense(module, x), module(x), equal_nan=True)


def test_small_maps_and_unbatched_ones_are_left_to_torch():
    module = nn.MaxPool2d(3, 1)
    with pytest.raises(RuntimeError, match="too small"):
        dense(module, torch.rand(1, 1, 2, 5))
    x = torch.rand(4, 6, 5)
    torch.testing.assert_close(dense(module, x), module(x))


def test_only_what_torch_itself_pools_at_stride_1_is_pooled_densely():
    class Own(nn.MaxPool2d):
        def forward(self, input):
            return super().forward(input) + 1

    assert dense_axes(Own(3, 1)) == 0
    assert dense_axes(nn.MaxPool2d(3, 2)) == 0
    assert dense_axes(nn.MaxPool2d(3, (1, 2))) == 0
    assert dense_axes(nn.MaxPool2d(3, 1, return_indices=True)) == 0


def test_a_converted_network_pools_so_in_and_out_of_training():
    x = torch.rand(2, 3, 16, 16)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    converted = convert(network, x)
    assert converted[2].dense_axes == 2
    with torch.no_grad():
        evaluated = converted(x)
    torch.testing.assert_close(evaluated, converted(x))
    torch.testing.assert_close(torch.func.vmap(converted)(x[:, None])[:, 0], evaluated)
