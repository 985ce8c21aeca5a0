"""The published layers: golden vectors, sizes, limits, dtypes and errors."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffstride import reference

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
LAYERS = (reference.DiffStride, reference.FixedSpectralPooling)


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def build(name: str) -> reference.DiffStride | reference.FixedSpectralPooling:
    case = CASES[name]
    return getattr(reference, case["kind"])(case["strides"], **case.get("kw", {}))


def assert_close_to_peak(actual: Tensor, expected: Tensor) -> None:
    peak = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * peak)


def test_all_golden_cases_are_here() -> None:
    assert len(CASES) == 18
    assert sorted(path.stem for path in GOLDEN.glob("*.npz")) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_golden_output_and_input_gradient(name: str) -> None:
    golden = load(name)
    x = golden["x"].requires_grad_()
    y = build(name)(x)
    (y * golden["cotangent"]).sum().backward()
    assert x.grad is not None
    assert_close_to_peak(y.detach(), golden["y"])
    assert_close_to_peak(x.grad, golden["grad_x"])


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["kind"] == "DiffStride"])
def test_golden_stride_gradient_and_parameter(name: str) -> None:
    golden, layer = load(name), build(name)
    assert isinstance(layer, reference.DiffStride)
    (layer(golden["x"]) * golden["cotangent"]).sum().backward()
    torch.testing.assert_close(layer.strides.grad, golden["grad_strides"], rtol=1e-4, atol=0)
    torch.testing.assert_close(layer.strides.detach(), golden["strides_after"], rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_output_size_agrees_with_golden(name: str) -> None:
    golden, layer = load(name), build(name)
    assert layer.output_size(golden["x"].shape[2:]) == tuple(golden["y"].shape[2:])


@pytest.mark.parametrize("layer_cls", LAYERS)
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (4, 4), (5, 8), (16, 15), (33, 30)])
@pytest.mark.parametrize("strides", [(1.0, 1.0), (1.1, 1.3), (2.0, 3.0), (2.5, 40.0)])
def test_output_size_agrees_with_forward(layer_cls: type, size: tuple, strides: tuple) -> None:
    layer = layer_cls(strides)
    expected = layer.output_size(size)  # computed first, because forward may raise the strides
    assert tuple(layer(torch.randn(1, 1, *size)).shape[2:]) == expected
    assert layer.output_size(size) == expected


def test_without_cropping_only_an_odd_width_changes() -> None:
    layer = reference.DiffStride(3.0, cropping=False)
    assert layer.output_size((15, 17)) == (15, 16)
    assert layer(torch.zeros(1, 1, 15, 17)).shape == (1, 1, 15, 16)


@pytest.mark.parametrize("layer_cls", LAYERS)
def test_a_constant_map_grows_by_the_ratio_of_the_areas(layer_cls: type) -> None:
    layer = layer_cls((2.0, 3.0))
    height, width = layer.output_size((32, 24))
    y = layer(torch.full((1, 1, 32, 24), 0.5))
    torch.testing.assert_close(y, torch.full_like(y, 0.5 * 32 * 24 / (height * width)))


def test_size_of_fixed_pooling_is_rounded_in_single_precision() -> None:
    assert reference.FixedSpectralPooling(1.1).output_size((33, 44)) == (30, 40)


def test_gradients_by_finite_differences() -> None:
    layer = reference.DiffStride((1.7, 2.3), smoothness_factor=2.5).double()
    x = torch.randn(1, 2, 12, 11, dtype=torch.float64, requires_grad=True)

    def pool(x: Tensor, strides: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"strides": strides}, (x,))

    strides = layer.strides.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(pool, (x, strides))


def test_forward_raises_the_smallest_stride_in_place() -> None:
    layer = reference.DiffStride((1.0, 3.0))
    layer(torch.zeros(1, 1, 16, 16))
    assert layer.strides.tolist() == pytest.approx([16 / 12, 3.0])


def test_shared_stride_is_raised_for_the_shorter_axis() -> None:
    layer = reference.DiffStride(1.0, shared_stride=True)
    layer(torch.zeros(1, 1, 32, 16))
    assert layer.strides.tolist() == pytest.approx([16 / 12])
    assert layer.stride_values() == pytest.approx((16 / 12, 16 / 12))


def test_gradient_of_two_calls_of_which_the_second_raises_the_stride() -> None:
    # As in a residual layer, where the two branches share the pooling layer.
    large, small = torch.randn(1, 1, 32, 32), torch.randn(1, 1, 12, 12)
    layer = reference.DiffStride(1.2)
    (layer(large).square().sum() + layer(small).square().sum()).backward()
    alone = reference.DiffStride(1.2)
    alone(large).square().sum().backward()
    raised = reference.DiffStride(1.5)
    raised(small).square().sum().backward()
    assert alone.strides.grad is not None
    assert raised.strides.grad is not None
    expected = alone.strides.grad + raised.strides.grad
    torch.testing.assert_close(layer.strides.grad, expected)


@pytest.mark.parametrize(("stride", "limit"), [(1.2, 2.0), (4.0, 3.0)])
def test_outside_the_limits_the_limit_is_used_without_a_gradient(
    stride: float, limit: float
) -> None:
    x = torch.randn(1, 1, 24, 24)
    layer = reference.DiffStride(stride, lower_limit_stride=2.0, upper_limit_stride=3.0)
    y = layer(x)
    torch.testing.assert_close(y, reference.DiffStride(limit)(x))
    y.square().sum().backward()
    assert layer.strides.grad is not None
    assert layer.strides.grad.tolist() == [0.0, 0.0]
    assert layer.strides.tolist() == pytest.approx([stride, stride])
    assert layer.stride_values() == (limit, limit)
    layer.project_()
    assert layer.strides.tolist() == [limit, limit]


def test_a_stride_at_its_limit_still_learns() -> None:
    layer = reference.DiffStride(2.0, lower_limit_stride=2.0)
    layer(torch.randn(1, 1, 24, 24)).square().sum().backward()
    assert layer.strides.grad is not None
    assert layer.strides.grad.abs().min() > 0


def test_projection_without_limits_clamps_to_one() -> None:
    layer = reference.DiffStride(2.0)
    with torch.no_grad():
        layer.strides.copy_(torch.tensor([0.3, 7.0]))
    assert layer.stride_values() == (1.0, 7.0)
    layer.project_()
    assert layer.strides.tolist() == [1.0, 7.0]


def test_untrainable_strides_get_no_gradient() -> None:
    layer = reference.DiffStride(2.0, trainable=False)
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    # The gradient of a bare sum has strides of 0, which Fourier transforms of PyTorch 2.8 refuse.
    layer(x).square().sum().backward()
    assert layer.strides.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("layer_cls", LAYERS)
def test_low_precision_is_computed_in_float32(layer_cls: type) -> None:
    x = torch.randn(1, 2, 12, 10).bfloat16()
    layer = layer_cls((1.7, 2.3))
    assert torch.equal(layer(x), layer(x.float()).bfloat16())


@pytest.mark.parametrize("layer_cls", LAYERS)
def test_double_precision_agrees_with_single(layer_cls: type) -> None:
    x = torch.randn(1, 2, 12, 10)
    y = layer_cls((1.7, 2.3)).double()(x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), layer_cls((1.7, 2.3))(x))


@pytest.mark.parametrize("layer_cls", LAYERS)
def test_memory_format_does_not_change_the_values(layer_cls: type) -> None:
    x = torch.randn(2, 3, 12, 10)
    layer = layer_cls((1.7, 2.3))
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


def test_pickled_layer_keeps_its_strides() -> None:
    layer = reference.DiffStride((1.7, 2.3), lower_limit_stride=1.5)
    copy = pickle.loads(pickle.dumps(layer))
    assert copy.strides.tolist() == layer.strides.tolist()
    assert copy.lower_limit_stride == 1.5
    assert "strides=(1.7" in repr(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strides": (0.5, 2.0)}, "at least 1, but got (0.5, 2.0)"),
        ({"strides": (2.0,)}, "one number or two (height, width), but got (2.0,)"),
        ({"strides": (2.0, 2.0, 2.0)}, "one number or two (height, width), but got (2.0, 2.0,"),
        ({"strides": (2.0, 3.0), "shared_stride": True}, "equal strides, but got (2.0, 3.0)"),
        ({"smoothness_factor": 0.0}, "smoothness_factor must be a finite number"),
        ({"lower_limit_stride": 0.5}, "lower_limit_stride must be a number of at least 1"),
        ({"lower_limit_stride": 3.0, "upper_limit_stride": 2.0}, "lower_limit_stride=3.0 exceeds"),
    ],
)
def test_constructor_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.DiffStride(**arguments)


def test_fixed_pooling_refuses_a_stride_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        reference.FixedSpectralPooling((2.0, 0.9))


@pytest.mark.parametrize("layer_cls", LAYERS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 8, 8), "but got torch.float32 of shape (3, 8, 8)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "but got torch.int64 of shape (1, 1, 8, 8)"),
        (torch.zeros(1, 1, 8, 1), "both at least 2, but got (8, 1)"),
    ],
)
def test_forward_refuses(layer_cls: type, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_cls()(x)


def test_strides_larger_than_the_map_keep_the_fewest_bins() -> None:
    x = torch.randn(1, 1, 16, 16)  # a window ends at max(N / s, 2) / 2 at least
    torch.testing.assert_close(reference.DiffStride(40.0)(x), reference.DiffStride(8.0)(x))
