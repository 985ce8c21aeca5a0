"""Pooling layers: arguments, limits, state, and equality with the functions."""

import copy
import io
import pickle
import re
from math import comb
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED, WINDOWED
from torch import nn

from diffstride import (
    BlurPooling,
    DiffStride,
    FixedSpectralPooling,
    MaxPooling,
    SpatialPooling,
    diff_stride,
    reference,
    spectral_pool,
    stride_layers,
)
from diffstride.pooling import FrozenPooling
from diffstride.spectral import matrix

OPTIONS = [
    {},
    PUBLISHED,
    {"straight_through": False},
    PUBLISHED | {"cropping": False},
    {"smoothness_factor": 1.5, "straight_through": False},
    PUBLISHED | {"lower_limit_stride": 1.5, "upper_limit_stride": 3.0},
    {"edge": "stopband", "straight_through": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("shape", "strides"), [((2, 3, 20), [1.7]), ((2, 3, 9, 12), [2.0, 1.5])])
def test_layer_equals_function(shape: tuple, strides: list, options: dict) -> None:
    layer, x = DiffStride(strides, **options), torch.randn(shape)
    torch.testing.assert_close(layer(x), diff_stride(x, strides, **options))
    assert layer.output_size(shape[2:]) == tuple(layer(x).shape[2:])
    fixed = FixedSpectralPooling(strides)
    torch.testing.assert_close(fixed(x), spectral_pool(x, strides))
    assert fixed.output_size(shape[2:]) == tuple(fixed(x).shape[2:])


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_every_stride_learns(num_axes: int) -> None:
    layer = DiffStride([2.0] * num_axes, **PUBLISHED)
    layer(torch.randn(2, 3, *(12,) * num_axes)).square().sum().backward()
    assert layer.strides.grad is not None
    assert (layer.strides.grad.abs() > 1e-4).all()


def test_shared_stride_sums_the_gradients_of_the_axes() -> None:
    x = torch.randn(2, 3, 12, 16)
    shared, separate = (
        DiffStride(2.0, shared_stride=True, **PUBLISHED),
        DiffStride(2.0, **PUBLISHED),
    )
    for layer in (shared, separate):
        layer(x).square().sum().backward()
    assert shared.strides.shape == (1,)
    torch.testing.assert_close(shared.strides.grad, separate.strides.grad.sum(0, keepdim=True))


def test_a_fixed_layer_has_no_gradient_and_its_repr_says_fixed() -> None:
    layer = DiffStride(2.0, trainable=False, **PUBLISHED)
    layer(torch.randn(1, 1, 8, 8, requires_grad=True)).sum().backward()
    assert layer.strides.grad is None
    assert "fixed" in repr(layer)


def test_project_clamps_strides_and_forward_never_writes_them() -> None:
    layer = DiffStride([2.0, 2.0], lower_limit_stride=1.5, upper_limit_stride=3.0, **PUBLISHED)
    layer.strides.data = torch.tensor([0.2, 7.0])
    y = layer(torch.randn(1, 1, 32, 32))
    assert layer.strides.tolist() == pytest.approx([0.2, 7.0])
    assert layer.stride_values() == (1.5, 3.0)
    layer.project_()
    assert layer.strides.tolist() == [1.5, 3.0]
    assert y.shape[2:] == layer.output_size((32, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_stride_is_reported(value: float) -> None:
    layer = DiffStride(2.0, **PUBLISHED)
    with torch.no_grad():
        layer.strides[0] = value
    with pytest.raises(ValueError, match="diverged"):
        layer(torch.zeros(1, 1, 8, 8))


def test_state_survives_saving_copying_and_pickling() -> None:
    layer, x = (
        DiffStride([2.3, 1.4], **WINDOWED),
        torch.randn(1, 2, 16, 16),
    )
    expected = layer(x)
    other = DiffStride(**WINDOWED).eval()
    other(x)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    for copied in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [DiffStride, reference.DiffStride])
def test_repr_shows_strides_that_are_not_finite(kind: Any) -> None:
    layer = kind((2.0, 2.0))
    layer.strides.data.copy_(torch.tensor([float("nan"), float("inf")]))
    assert re.search(r"strides=\(nan, inf\)", repr(nn.Sequential(layer)))
    with pytest.raises(ValueError, match=r"have become \(nan, inf\): .*; look whether the loss"):
        layer.stride_values()


def test_repr_shows_strides_and_whether_they_learn() -> None:
    layer = DiffStride([2.0, 1.625], shared_stride=False, upper_limit_stride=4, **PUBLISHED)
    assert repr(layer) == (
        "DiffStride(strides=(2, 1.625), smoothness_factor=4, edge='passband', "
        "straight_through=False, upper_limit_stride=4, learning)"
    )
    assert "straight_through=True, learning" in repr(
        DiffStride(straight_through=True, edge="passband")
    )
    assert repr(FixedSpectralPooling(1.5)) == "FixedSpectralPooling(strides=(1.5, 1.5))"


def test_the_text_has_the_strides_in_use() -> None:
    pool = DiffStride(2.0, upper_limit_stride=3.0)
    pool.strides.data = torch.tensor([0.8, 4.0])  # as a step of an optimiser leaves them
    assert "strides=(1, 3)" in repr(pool)
    assert pool.output_size((12, 12)) == (12, 4)


def test_strides_from_a_half_precision_checkpoint_learn() -> None:
    layer = DiffStride([2.0, 1.5], **PUBLISHED)
    state = {name: value.bfloat16() for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(50):
        layer.strides.grad = torch.full((2,), -1e-3)
        optimizer.step()
    assert layer.strides.dtype == torch.float32
    assert layer.stride_values() == pytest.approx((2.05, 1.55), abs=1e-5)


def test_sharded_strides_are_refused_with_advice() -> None:
    layer = DiffStride(2.0, **PUBLISHED)
    vars(layer.strides)["full_tensor"] = lambda: None  # a DTensor has this method
    with pytest.raises(TypeError, match=r"sharded .* use DistributedDataParallel"):
        layer.eval()


def test_moving_to_a_device_or_dtype_keeps_the_strides() -> None:
    layer = DiffStride([2.3, 1.4], **PUBLISHED).double()
    assert layer.stride_values() == tuple(layer.strides.tolist())
    assert layer.to("meta").stride_values() == pytest.approx((2.3, 1.4), abs=1e-6)


class OnAccelerator(DiffStride):
    """A layer that reads its strides as on an accelerator, and counts how often."""

    reads = 0

    def _is_on_cpu(self) -> bool:
        return False

    def _refresh(self) -> None:
        super()._refresh()
        self.reads += 1


@torch.no_grad()
def test_strides_on_an_accelerator_are_read_once_per_change() -> None:
    layer, x = OnAccelerator(2.0, edge="stopband").eval(), torch.zeros(1, 1, 12, 12)
    layer(x)
    layer.reads = 0
    sizes = [layer(x).shape[2] for _ in range(3)]
    assert (sizes, layer.reads) == ([6, 6, 6], 0)
    layer.strides.add_(1)
    sizes = [layer(x).shape[2] for _ in range(3)]
    assert (sizes, layer.reads) == ([4, 4, 4], 1)


def test_strides_on_an_accelerator_are_read_once_per_training_step() -> None:
    layer, x = OnAccelerator(2.0, edge="stopband"), torch.zeros(1, 1, 12, 12)
    layer.reads = 0
    for _ in range(3):
        layer(x).sum().backward()
        layer.project_()
        layer.stride_values()
    assert layer.reads == 3 + 1  # the first pass, and each projection


def test_a_layer_called_twice_on_an_accelerator_reads_its_strides_once_per_step() -> None:
    layer, x = OnAccelerator(2.0, edge="stopband"), torch.rand(1, 1, 12, 12)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3, fused=True)
    layer(x).sum().backward()
    layer.reads = 0
    for _ in range(3):
        (layer(x).square().sum() + layer(x + 1).square().sum()).backward()
        optimiser.step()
    assert layer.reads == 3
    assert layer.stride_values() == tuple(layer.strides.tolist())


def test_strides_that_keep_the_map_sizes_need_no_new_matrix() -> None:
    layer, x = DiffStride(2.1), torch.rand(1, 1, 20, 20)
    layer(x)
    with mock.patch.object(matrix, "axis_matrix", side_effect=AssertionError):
        layer.strides.data.add_(0.01)
        assert layer(x).shape == (1, 1, 10, 10)


@pytest.mark.parametrize("training", [False, True])  # norms are often tuned in evaluation mode
@pytest.mark.parametrize("fused", [False, True])
def test_steps_of_any_optimizer_are_noticed_on_an_accelerator(fused: bool, training: bool) -> None:
    """Fused optimisers do not change the version of a parameter."""
    layer, x = OnAccelerator(2.0, edge="stopband").train(training), torch.zeros(1, 1, 12, 12)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, fused=fused)
    layer(x).sum().backward()
    layer.strides.grad = torch.full((2,), -1.0)
    if training:
        with torch.no_grad():
            layer(x)  # a forward pass between two steps
    optimizer.step()
    assert layer(x).shape[2:] == (4, 4)


def test_a_replaced_parameter_is_noticed_on_an_accelerator() -> None:
    layer, x = OnAccelerator(2.0, edge="stopband").eval(), torch.zeros(1, 1, 12, 12)
    other = {"strides": torch.tensor([4.0, 3.0])}
    assert torch.func.functional_call(layer, other, (x,)).shape[2:] == (3, 4)
    assert layer(x).shape[2:] == (6, 6)
    layer.strides = nn.Parameter(other["strides"])
    assert layer(x).shape[2:] == (3, 4)


@pytest.mark.parametrize(("size", "stride"), [(56, 1.4), (26, 1.3), (32, 1.28), (7, 7.0)])
def test_rounding_of_strides_to_float32_does_not_change_sizes(size: int, stride: float) -> None:
    x, whole = torch.zeros(1, 1, size, size), round(size / stride)
    assert DiffStride(stride, **WINDOWED)(x).shape[2:] == (
        whole,
        whole,
    )
    assert FixedSpectralPooling(stride)(x).shape[2:] == (whole, whole)
    assert DiffStride(stride + 1e-5, **WINDOWED)(x).shape[2:] == (
        whole,
        whole,
    )
    if whole > 1:
        assert DiffStride(stride - 1e-5, **WINDOWED)(x).shape[2:] == (
            whole + 1,
            whole + 1,
        )


@pytest.mark.parametrize("size", [5_000, 10**7])
def test_long_axes_keep_their_length_at_stride_1(size: int) -> None:
    assert DiffStride([1.0], **WINDOWED).output_size([size]) == (size,)
    assert FixedSpectralPooling([1.0]).output_size([size]) == (size,)


@pytest.mark.parametrize("layer", [DiffStride, FixedSpectralPooling, BlurPooling, MaxPooling])
def test_layers_run_on_the_meta_device(layer) -> None:
    with torch.device("meta"):
        assert layer(2)(torch.zeros(2, 3, 17, 16)).shape == layer(2)(torch.rand(2, 3, 17, 16)).shape


def test_blur_pooling_restores_its_filter_after_to_empty() -> None:
    with torch.device("meta"):
        layer = BlurPooling(2, filter_size=4)
    x = torch.rand(1, 2, 9, 8)
    torch.testing.assert_close(layer.to_empty(device="cpu")(x), BlurPooling(2, filter_size=4)(x))
    assert layer.half().kernel.dtype == torch.float16


@pytest.mark.parametrize(
    "layer",
    [
        FixedSpectralPooling(2.6),
        DiffStride(2.6, **PUBLISHED),
        DiffStride(2.6, trainable=False, **PUBLISHED),
    ],
)
@pytest.mark.parametrize("size", [19, 1026])
def test_trains_after_it_ran_in_inference_mode(layer: nn.Module, size: int) -> None:
    """As in Lightning, whose first validation comes before training."""
    x = torch.rand(1, 2, size, 9)
    with torch.inference_mode():
        expected = layer(x)
    y = layer(x.requires_grad_())
    torch.testing.assert_close(y, expected.clone())
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_copies_made_in_inference_mode_work() -> None:
    layer, x = DiffStride(1.7, **WINDOWED), torch.rand(1, 2, 9, 9)
    with torch.inference_mode():
        copied = copy.deepcopy(layer).eval()
        assert torch.equal(copied(x), layer(x))
        copied.strides.fill_(3.0)
    with torch.no_grad():
        assert copied(x).shape[2:] == (3, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DiffStride((2.0, 0.9), **PUBLISHED), r"at least 1, but got \(2.0, 0.9\)"),
        (lambda: DiffStride("ab", **PUBLISHED), "must be finite numbers"),
        (
            lambda: DiffStride(None, **PUBLISHED),
            "must be finite numbers of at least 1, but got None",
        ),
        (
            lambda: DiffStride(2.0, smoothness_factor="4", **PUBLISHED),
            "smoothness_factor .* got '4'",
        ),
        (
            lambda: DiffStride(2.0, upper_limit_stride="4", **PUBLISHED),
            "upper_limit_stride .* got '4'",
        ),
        (
            lambda: DiffStride((2.0, 3.0), shared_stride=True, **PUBLISHED),
            "shared_stride needs equal",
        ),
        (lambda: DiffStride(2.5, upper_limit_stride=2.0, **PUBLISHED), "start within the limits"),
        (lambda: DiffStride(2.0, smoothness_factor=-1.0, **PUBLISHED), "smoothness_factor .* -1.0"),
        (lambda: DiffStride(2.0, edge="flat", straight_through=False), "'flat'"),
        (
            lambda: DiffStride(2.0, cropping=False, straight_through=True, edge="passband"),
            "cropping=False with straight_through=True would return the input",
        ),
        (lambda: FixedSpectralPooling(()), "has 0"),
        (lambda: SpatialPooling(2, 1.5), r"strides must be whole numbers, but got 1\.5"),
        (
            lambda: SpatialPooling((2, 1.5)),
            r"pool_size must be whole numbers, but got .*\)$",
        ),
        (lambda: MaxPooling(1.5), r"whole numbers, but got 1\.5; DiffStride"),
        (lambda: MaxPooling(2, pool_size=2), "odd number of samples, but got 2"),
        (lambda: MaxPooling(2, pool_size=2.5), "odd number of samples, but got 2.5"),
        (lambda: BlurPooling(2, filter_size=0), "filter_size must be .* at least 1"),
        (lambda: BlurPooling(2)(torch.zeros(1, 8, 8)), r"BlurPooling.*but got \(1, 8, 8\)"),
        (lambda: MaxPooling(2).output_size((8,)), r"2 positive lengths, but got \(8,\)"),
        (lambda: SpatialPooling((2, 2, 2), 2), "one number per"),
        (lambda: DiffStride(**PUBLISHED)(torch.zeros(1, 8, 8)), r"but got \(1, 8, 8\)"),
        (lambda: SpatialPooling()(torch.zeros(8, 8)), r"but got \(8, 8\)"),
        (lambda: DiffStride(**PUBLISHED).output_size((8,)), r"2 positive lengths, but got \(8,\)"),
    ],
)
def test_errors(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_tensor_of_strides_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match=r"strides must be numbers, .* pass strides.tolist\(\)"):
        DiffStride(torch.tensor([2.0, 2.0]), **PUBLISHED)


def test_spatial_pooling_subsamples_and_averages() -> None:
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(SpatialPooling()(x), x[..., ::2, ::2])
    torch.testing.assert_close(SpatialPooling(2, 2)(x[..., :8, :]), F.avg_pool2d(x[..., :8, :], 2))
    ones = torch.ones(1, 1, 9, 10)
    for pool_size, stride in ((3, 2), (2, 3), (4, 2), (1, 3), (2.0, 2)):
        y = SpatialPooling(pool_size, stride)(ones)
        assert tuple(y.shape[2:]) == SpatialPooling(pool_size, stride).output_size((9, 10))
        torch.testing.assert_close(y, torch.ones_like(y))


def test_spatial_pooling_of_signals_and_volumes() -> None:
    x = torch.randn(1, 2, 7)
    expected = torch.stack(
        [x[..., 0:2].mean(-1), x[..., 2:4].mean(-1), x[..., 4:6].mean(-1), x[..., 6]], -1
    )
    torch.testing.assert_close(SpatialPooling(2, [2])(x), expected)
    volume = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(SpatialPooling(2, [2, 2, 2])(volume), F.avg_pool3d(volume, 2))


@pytest.mark.parametrize("strides", [[2], [3], [2, 3], [1, 2], [3, 1], [2, 1, 3]])
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_max_and_blur_pooling_equal_a_loop_over_windows(strides, size) -> None:
    """The loop computes one sample at a time; sizes are those of padded strided convolutions."""
    sizes = [size + 2 * axis for axis in range(len(strides))]
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    greatest, blurred = x, x
    for dim, stride in enumerate(strides, start=2):
        if stride > 1:
            greatest = _windows(
                greatest,
                dim,
                stride,
                lambda before, at, after: torch.maximum(torch.maximum(before, at), after),
            )
            blurred = _windows(
                blurred, dim, stride, lambda before, at, after: (before + 2 * at + after) / 4
            )
    for layer, expected in ((MaxPooling(strides), greatest), (BlurPooling(strides), blurred)):
        torch.testing.assert_close(layer(x), expected)
        assert layer.output_size(sizes) == tuple(expected.shape[2:])


def _windows(x, dim, stride, combine):
    """Combine three neighbours around every strided sample of an axis with mirrored borders."""
    last = x.shape[dim] - 1
    picked = [
        combine(*(x.select(dim, min(max(_mirror(j, last), 0), last)) for j in (i - 1, i, i + 1)))
        for i in range(0, last + 1, stride)
    ]
    return torch.stack(picked, dim)


def _mirror(index, last):
    index = abs(index)
    return 2 * last - index if index > last else index


@pytest.mark.parametrize("layer", [MaxPooling, BlurPooling])
def test_max_and_blur_pooling_return_a_copy_of_the_input_at_stride_1(layer) -> None:
    x = torch.randn(1, 2, 5, 6)
    y = layer(1)(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("filter_size", [1, 2, 4, 5])
def test_binomial_filters_of_other_sizes_keep_constants_and_size(filter_size) -> None:
    layer = BlurPooling((2, 3), filter_size).to(torch.bfloat16)
    y = layer(torch.ones(1, 2, 9, 9, dtype=torch.bfloat16))
    torch.testing.assert_close(y, torch.ones(1, 2, 5, 3, dtype=torch.bfloat16))
    assert layer.state_dict() == {}


@pytest.mark.parametrize("autocast", [False, True])
def test_blur_pooling_rounds_once_and_keeps_the_dtype(autocast) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    exact = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, expected = BlurPooling(2)(x), BlurPooling(2)(exact)
    assert (y.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.float())
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(x.grad, exact.grad.bfloat16(), rtol=0, atol=0)


def test_stride_layers_finds_learned_strides_only() -> None:
    model = nn.Sequential(
        DiffStride(**PUBLISHED),
        FixedSpectralPooling(),
        nn.Sequential(DiffStride([2.0], **PUBLISHED)),
    )
    assert list(stride_layers(model)) == ["0", "2.0"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_strides_stay_in_float32_in_a_half_precision_network(dtype):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), DiffStride(1.7001, **WINDOWED)).to(dtype)
    assert model[0].weight.dtype == dtype
    assert model[1].strides.tolist() == torch.tensor([1.7001, 1.7001]).tolist()
    y = model(torch.rand(1, 1, 18, 18, dtype=dtype))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert model[1].strides.grad.dtype == torch.float32
    assert model.double()[1].strides.dtype == torch.float64


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_blur_pooling_equals_its_formula_away_from_the_borders(taps: int) -> None:
    x = torch.randn(1, 1, 24, dtype=torch.float64)
    weights = torch.tensor([comb(taps - 1, j) / 2 ** (taps - 1) for j in range(taps)]).double()
    y = BlurPooling([2], taps)(x)[0, 0]
    for i in range(2, 9):
        first = 2 * i - (taps - 1) // 2
        expected = (weights * x[0, 0, first : first + taps]).sum()
        torch.testing.assert_close(y[i], expected)


def test_pool_size_of_max_pooling_is_for_axes_of_stride_above_1() -> None:
    x = torch.randn(1, 2, 11, 12)
    expected = nn.functional.max_pool2d(x, 5, 2, padding=2)
    assert torch.equal(MaxPooling(2, pool_size=5)(x), expected)
    assert torch.equal(MaxPooling(2, pool_size=5.0)(x), expected)
    assert torch.equal(MaxPooling((1, 2), pool_size=1)(x), x[..., ::2])


def test_defaults_give_the_size_of_a_strided_convolution_and_keep_every_bin() -> None:
    x = torch.randn(1, 2, 32, 31)
    y = DiffStride()(x)
    assert y.shape == (1, 2, 16, 16)
    torch.testing.assert_close(y, spectral_pool(x, 2.0))
    torch.testing.assert_close(y, diff_stride(x, 2.0))
    torch.testing.assert_close(DiffStride(1.0)(x), x)


@pytest.mark.parametrize(
    "layer",
    [
        DiffStride,
        FixedSpectralPooling,
        SpatialPooling,
        reference.DiffStride,
        reference.FixedSpectralPooling,
    ],
)
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_data_format_of_the_published_layers_is_refused_with_advice(layer, data_format) -> None:
    with pytest.raises(ValueError, match=rf"data_format='{data_format}'.*batch, channels, height"):
        layer(strides=(2, 2), data_format=data_format)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        DiffStride(1.7),
        FixedSpectralPooling(1.7),
        SpatialPooling(3, 2),
        MaxPooling(2),
        BlurPooling(2),
        nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride(1.7)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_traced_layers_return_the_same_with_strides_as_constants(layer, training):
    """Tracing serves add_graph of TensorBoard, and log_graph=True of Lightning."""
    x = torch.rand(2, 3, 17, 20)
    traced = torch.jit.trace(layer.train(training), x)
    assert torch.allclose(traced(x), layer(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_an_operation_in_place_may_follow_in_transforms_and_programs():
    net = nn.Sequential(DiffStride(1.7), nn.ReLU(inplace=True)).eval()
    x = torch.randn(2, 3, 12, 12)
    expected = net(x)
    assert torch.equal(torch.func.vmap(lambda each: net(each[None])[0])(x), expected)
    assert torch.equal(torch.compile(net, backend="eager")(x), expected)
    assert torch.equal(torch.export.export(net, (x,)).module()(x), expected)


def test_layers_in_a_vmap_over_their_strides_are_refused_with_advice():
    layers = [DiffStride(2.0), DiffStride(3.0)]
    (parameters, _), x = torch.func.stack_module_state(layers), torch.rand(1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"the strides have no values to read.* loop"):
        torch.vmap(lambda p: torch.func.functional_call(layers[0], p, x))(parameters)


def test_each_axis_may_have_a_limit():
    layer = DiffStride((1.0, 2.0), upper_limit_stride=(1, None), lower_limit_stride=[1.0, 1.5])
    assert layer.limits == [(1.0, 1), (1.5, float("inf"))]
    assert "upper_limit_stride=(1, None)" in repr(layer)
    assert layer.output_size((9, 9)) == (9, 5)
    for wrong in ((1.0,), (1.0, 0.5), (1.0, "2")):
        with pytest.raises(ValueError, match="upper_limit_stride must be"):
            DiffStride((1.0, 2.0), upper_limit_stride=wrong)
    with pytest.raises(ValueError, match="upper_limit_stride must be a number or None"):
        DiffStride(2.0, shared_stride=True, upper_limit_stride=(3.0, 3.0))
    with pytest.raises(ValueError, match="exceeds"):
        DiffStride((1.0, 2.0), lower_limit_stride=1.5, upper_limit_stride=(1.0, 3.0))


def test_strides_that_replace_others_for_a_call_are_read(monkeypatch):
    """As on an accelerator: a new tensor may have the id of one that is gone."""
    layer, x = DiffStride((2.0, 2.0)), torch.rand(1, 1, 32, 32)
    monkeypatch.setattr(DiffStride, "_is_on_cpu", lambda self: False)
    for size in (16, 8, 4) * 20:
        y = torch.func.functional_call(layer, {"strides": torch.full((2,), 32 / size)}, (x,))
        assert y.shape[2:] == (size, size)
    assert layer(x).shape[2:] == (16, 16)
    assert pickle.loads(pickle.dumps(layer))(x).shape[2:] == (16, 16)


@pytest.mark.parametrize(
    "layer",
    [
        DiffStride(1.0),
        FixedSpectralPooling(1.0),
        FrozenPooling.of(FixedSpectralPooling(1.0)),
        SpatialPooling(1),
        MaxPooling(1),
        BlurPooling(1),
    ],
)
def test_an_operation_in_place_may_follow_where_nothing_is_pooled(layer):
    x = torch.randn(1, 2, 4, 6)
    if hasattr(layer, "add_size"):
        layer.add_size((4, 6))
    before = x.clone()
    layer(x).detach().zero_()
    assert torch.equal(x, before)
