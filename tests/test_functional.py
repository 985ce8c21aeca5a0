"""diff_stride and spectral_pool: values, gradients, memory formats, dtypes and transforms."""

import itertools

import pytest
import torch
from conftest import PUBLISHED, WINDOWED, literal_diff_stride
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from diffstride import (
    AdaptiveSpectralPooling,
    DiffStride,
    FixedSpectralPooling,
    diff_stride,
    spectral_pool,
)
from diffstride.spectral import map_product
from diffstride.spectral.axis_plan import EDGES, output_size, plan_axis
from diffstride.spectral.matrix import axis_matrix, pooling_matrix, ramp_factors

CASES = [
    ((2, 3, 9), (1.7,)),
    ((2, 3, 16), (20.0,)),
    ((1, 2, 8, 9), (2.0, 3.0)),
    ((2, 1, 7, 12), (1.0, 2.6)),
    ((1, 2, 5, 6, 8), (1.5, 2.0, 2.9)),
]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("shape", "strides"), CASES)
def test_equals_complex_fft(shape: tuple, strides: tuple, edge: str) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    y = diff_stride(x, strides, smoothness_factor=2.0, edge=edge, straight_through=False)
    sizes = shape[-len(strides) :]
    out = tuple(output_size(n, s, 2.0, edge) for n, s in zip(sizes, strides, strict=True))
    assert y.shape[-len(strides) :] == out
    torch.testing.assert_close(
        y, literal_diff_stride(x, strides, out, 2.0, edge), atol=1e-14, rtol=0
    )


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("cropping", [True, False])
@pytest.mark.parametrize(("shape", "strides"), CASES)
def test_gradcheck(shape: tuple, strides: tuple, edge: str, cropping: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    # Away from kinks of the window, jumps of the length and the limits of the strides: gradients of
    # clamped strides are straight-through, unlike finite differences.
    values = torch.tensor(strides, dtype=torch.float64).clamp(1.35, 3.0) + 0.0137
    values.requires_grad_()

    def pool(x: Tensor, values: Tensor) -> Tensor:
        return diff_stride(
            x, values, smoothness_factor=1.5, edge=edge, cropping=cropping, straight_through=False
        )

    assert torch.autograd.gradcheck(pool, (x, values))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("edge", EDGES)
def test_straight_through_keeps_all_bins_and_has_the_gradient_of_the_window(
    edge: str, memory_format: torch.memory_format
) -> None:
    strides = torch.tensor([2.1, 1.7], dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64).contiguous(memory_format=memory_format)
    x.requires_grad_()
    options = {"smoothness_factor": 1.5, "edge": edge}
    y = diff_stride(x, strides, straight_through=True, **options)
    grad = torch.randn_like(y)
    y.backward(grad)

    axes = [
        plan_axis(size, s, 1.5, edge, straight_through=False)
        for size, s in zip((12, 9), (2.1, 1.7), strict=True)
    ]
    # The matrices of spectral pooling to the same sizes.
    height, width = (axis_matrix(plan_axis(a.size, a.size / a.output_size)) for a in axes)
    torch.testing.assert_close(y, height @ x @ width.T)
    flat = pooling_matrix(12, 2.1, smoothness_factor=1.5, edge=edge, straight_through=True)
    torch.testing.assert_close(flat, height)
    torch.testing.assert_close(x.grad, height.T @ grad @ width)
    slopes = [ramp_factors(axis.size, axis.output_size, axis.ramp) for axis in axes]
    by_height, by_width = (axis.slope * u @ d.T for axis, (u, d) in zip(axes, slopes, strict=True))
    expected = [(grad * (by_height @ x @ width.T)).sum(), (grad * (height @ x @ by_width.T)).sum()]
    torch.testing.assert_close(strides.grad, torch.stack(expected).detach())


@pytest.mark.parametrize("size", [384, 1100])
def test_straight_through_on_long_axes_equals_spectral_pooling(size: int) -> None:
    x = torch.randn(2, 1, size, dtype=torch.float64)
    flat, windowed = (torch.tensor([2.5], dtype=torch.float64, requires_grad=True) for _ in "ab")
    y = diff_stride(x, flat, edge="stopband", straight_through=True)
    torch.testing.assert_close(y, spectral_pool(x, [2.5]))
    grad = torch.randn_like(y)
    y.backward(grad)
    diff_stride(x, windowed, **WINDOWED).backward(grad)
    torch.testing.assert_close(flat.grad, windowed.grad)  # both have the window's derivative


def test_straight_through_at_stride_1_is_the_identity_and_learns() -> None:
    x = torch.randn(1, 2, 8, 7)
    strides = torch.ones(2, requires_grad=True)
    y = diff_stride(x, strides, edge="stopband", straight_through=True)
    torch.testing.assert_close(y, x)
    y.square().sum().backward()
    assert (strides.grad.abs() > 1e-4).all()


def test_gradient_at_a_jump_of_the_output_length() -> None:
    # Just below stride 2 the length jumps from 16 to 17. The last bin of the ramp has gain 0 at
    # stride 2 and more below it. It counts in the gradient, as for smaller strides.
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    stride = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 1, 16, dtype=torch.float64)
    (diff_stride(x, stride, **WINDOWED) * weights).sum().backward()
    spectrum = torch.fft.rfft(x[0, 0])
    i, expected = torch.arange(16, dtype=torch.float64), 0.0
    for k in range(4, 9):
        phase = torch.exp(2j * torch.pi * k * i / 16)
        weight = 1 if k == 8 else 2
        expected += (weights[0, 0] * (spectrum[k] * phase).real).sum() * weight / 32
    assert stride.grad is not None
    slope = -32 / (2 * 2.0**2 * 4)
    torch.testing.assert_close(stride.grad[0], slope * expected)


def test_clamped_strides_still_receive_the_gradient() -> None:
    x = torch.randn(1, 1, 32, 32)
    for value, used, limits in [
        (1.0, 32 / 28, {}),
        (1.5, 2.0, {"lower_limit_stride": 2.0}),
        (4.0, 3.0, {"upper_limit_stride": 3.0}),
    ]:
        outside = torch.tensor([value, value], requires_grad=True)
        inside = torch.tensor([used, used], requires_grad=True)
        for strides, options in ((outside, limits), (inside, {})):
            diff_stride(x, strides, **PUBLISHED, **options).pow(2).sum().backward()
        assert outside.grad is not None
        assert outside.grad.abs().min() > 0
        torch.testing.assert_close(outside.grad, inside.grad, rtol=1e-4, atol=1e-4)


sizes = st.integers(2, 12)
strides_1d = st.floats(1.0, 6.0, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sizes, strides_1d), min_size=1, max_size=3), st.sampled_from(EDGES))
def test_linear_mean_kept_and_flips_commute(axes: list[tuple[int, float]], edge: str) -> None:
    shape, strides = zip(*axes, strict=True)
    a, b = torch.randn(2, 1, 2, *shape, dtype=torch.float64)

    def pool(x: Tensor) -> Tensor:
        return diff_stride(x, strides, edge=edge, straight_through=False)

    y = pool(a)
    expected = [output_size(n, s, edge=edge) for n, s in axes]
    assert list(y.shape[2:]) == expected
    close = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(pool(3 * a - 2 * b), 3 * y - 2 * pool(b), **close)
    dims = tuple(range(2, 2 + len(axes)))
    torch.testing.assert_close(y.mean(dims), a.mean(dims), **close)
    # Mirroring an axis about sample 0 is a symmetry for all lengths. `flip` moves sample 0, so it
    # is rolled back.
    for dim in dims:
        torch.testing.assert_close(pool(_mirror(a, dim)), _mirror(y, dim), **close)


def _mirror(x: Tensor, dim: int) -> Tensor:
    return x.flip(dim).roll(1, dim)


@pytest.mark.parametrize("strides", [(1.0,), (1.0, 1.0), (1.0, 1.0, 1.0)])
def test_spectral_pool_at_stride_one_is_the_identity(strides: tuple) -> None:
    x = torch.randn(2, 3, *(7,) * len(strides), dtype=torch.float64)
    torch.testing.assert_close(spectral_pool(x, strides), x, rtol=0, atol=1e-14)


def test_spectral_pool_keeps_low_frequencies_unchanged() -> None:
    i, j = torch.arange(32, dtype=torch.float64), torch.arange(11, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * 5 * i / 32 + 0.3)
    expected = torch.cos(2 * torch.pi * 5 * j / 11 + 0.3)
    torch.testing.assert_close(spectral_pool(wave, [3.0]), expected, rtol=0, atol=1e-14)


def _layouts(shape: tuple[int, ...]) -> dict[str, Tensor]:
    x = torch.randn(shape)
    spread = torch.empty(*shape[:-1], 2 * shape[-1])[..., ::2].copy_(x)
    layouts = {"contiguous": x, "strided": spread}
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if len(shape) in formats:
        layouts["channels_last"] = x.contiguous(memory_format=formats[len(shape)])
    return layouts


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 3, 8, 11), (2, 3, 6, 5, 8)])
def test_memory_formats_agree_and_are_kept(shape: tuple[int, ...]) -> None:
    results = {}
    for name, x in _layouts(shape).items():
        x = x.detach().requires_grad_()
        strides = torch.full((len(shape) - 2,), 1.8, requires_grad=True)
        y = diff_stride(x, strides, **WINDOWED)
        weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        (y * weights).sum().backward()
        results[name] = (y, x.grad, strides.grad)
        if name == "channels_last":
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            assert y.is_contiguous(memory_format=formats[len(shape)])
            assert not y.is_contiguous()
        else:
            assert y.is_contiguous()
    for name, result in results.items():
        for got, expected in zip(result, results["contiguous"], strict=True):
            torch.testing.assert_close(got, expected, msg=name, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, 16, 16)
    got, expected = [], []
    for results, kind in ((got, dtype), (expected, torch.float32)):
        inputs = x.to(dtype).to(kind).requires_grad_()
        strides = torch.tensor([2.0, 1.6], requires_grad=True)
        y = diff_stride(inputs, strides, **PUBLISHED)
        assert y.dtype == kind
        y.square().sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.dtype == kind
        results += [y.float(), inputs.grad.float(), strides.grad]
    for a, b, tolerance in zip(got, expected, (0.02, 0.02, 0.03), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_autocast_keeps_the_dtype_of_the_input() -> None:
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    strides = torch.tensor([2.0, 2.0], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = diff_stride(x, strides, **PUBLISHED)
        assert y.dtype == torch.float32
        y.sum().backward()
    torch.testing.assert_close(y, diff_stride(x, strides, **PUBLISHED))


def test_only_the_bins_on_the_ramp_are_saved_for_backward() -> None:
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        diff_stride(x, torch.tensor([2.0, 2.0], requires_grad=True), **PUBLISHED)
    numel = sum(t.numel() for t in kept)
    assert 0 < numel < 0.6 * x.numel()


def test_per_sample_gradients_and_vmap() -> None:
    x = torch.randn(3, 2, 8, 8)
    strides = torch.tensor([2.0, 1.7])

    def loss(strides: Tensor, x: Tensor) -> Tensor:
        return diff_stride(x, strides, **PUBLISHED).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(strides, x)
    for sample, got in zip(x, per_sample, strict=True):
        torch.testing.assert_close(got, torch.func.grad(loss)(strides, sample))
    mapped = torch.func.vmap(lambda x: diff_stride(x, [2.0, 1.7], **PUBLISHED))(x)
    torch.testing.assert_close(mapped, diff_stride(x, [2.0, 1.7], **PUBLISHED))
    for layer in (
        DiffStride(2.0, **PUBLISHED),
        DiffStride(2.0, trainable=False, **PUBLISHED),
        FixedSpectralPooling(2.0),
    ):
        images = torch.randn(3, 2, 2, 8, 8)  # four axes in each sample, which may be channels-last
        torch.testing.assert_close(
            torch.func.vmap(layer)(images), torch.stack([layer(each) for each in images])
        )
    with pytest.raises(RuntimeError, match="loop over the strides"):
        torch.func.vmap(loss, in_dims=(0, None))(strides.expand(2, 2), x)


def test_second_derivatives_work_with_fixed_strides_and_are_refused_with_learned_ones() -> None:
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x: diff_stride(x, [1.5, 2.0], **PUBLISHED).pow(2), (x,)
    )
    strides = torch.tensor([1.5, 2.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        diff_stride(x, strides, **PUBLISHED).pow(2).sum(), x, create_graph=True
    )
    with pytest.raises(NotImplementedError, match=r"no second derivatives.*trainable=False"):
        grad.sum().backward()
    # Inside torch.func `once_differentiable` would return zeros instead of an error.
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.func.jacrev(
            torch.func.jacrev(lambda x: diff_stride(x, strides, **PUBLISHED).pow(2).sum())
        )(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp itself
def test_forward_mode_works_with_fixed_strides_and_is_refused_with_learned_ones() -> None:
    x, tangent = torch.randn(2, 4, 4, 40, 40, dtype=torch.float64)
    for strides in (1.7, torch.tensor([1.7, 2.0], requires_grad=False)):
        y, dual = torch.func.jvp(
            lambda x, s=strides: diff_stride(x, s, **PUBLISHED), (x,), (tangent,)
        )
        torch.testing.assert_close(y, diff_stride(x, strides, **PUBLISHED))
        torch.testing.assert_close(dual, diff_stride(tangent, strides, **PUBLISHED))
        with forward_ad.dual_level():
            y = diff_stride(forward_ad.make_dual(x, tangent), strides, **PUBLISHED)
            torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, dual)
    learned = torch.tensor([1.7, 2.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivatives.*reverse mode"):
        torch.func.jvp(lambda x: diff_stride(x, learned, **PUBLISHED), (x,), (tangent,))
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jacfwd(lambda s: diff_stride(x, s, values=(1.7, 2.0), **PUBLISHED))(
            learned.detach()
        )


@pytest.mark.parametrize("size", [11, 1030])
def test_tensors_cached_inside_nested_transforms_work_afterwards(size: int) -> None:
    layer = DiffStride([1.3217], trainable=False, **PUBLISHED)
    x = torch.randn(1, 1, size, dtype=torch.float64)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: layer(x).pow(2).sum()))
    assert hessian(x[..., :size]).shape == (*x.shape, *x.shape)
    grad = torch.func.grad(lambda x: layer(x).pow(2).sum())(x)
    each = torch.func.vmap(torch.func.grad(lambda x: layer(x).pow(2).sum()))(x[None])
    torch.testing.assert_close(each[0], grad)
    torch.testing.assert_close(grad, 2 * torch.func.vjp(layer, x)[1](layer(x))[0])


@pytest.mark.parametrize("size", [7, 1030])
def test_batches_may_be_empty(size: int) -> None:
    for strides in ([2.0], torch.tensor([2.0], requires_grad=True)):
        x = torch.zeros(0, 3, size, requires_grad=True)
        y = diff_stride(x, strides, **PUBLISHED)
        assert y.shape == (
            0,
            3,
            *diff_stride(torch.zeros(1, 1, size), strides, **PUBLISHED).shape[2:],
        )
        y.sum().backward()
        assert x.grad is not None


def test_an_empty_batch_may_be_enlarged() -> None:
    for size in (24, 1024):
        assert AdaptiveSpectralPooling((2 * size,))(torch.zeros(0, 3, size)).shape[2] == 2 * size


def test_the_order_of_the_axes_does_not_matter() -> None:
    x = torch.randn(1, 1, 9, 10, 11, dtype=torch.float64)
    strides = (1.5, 2.5, 3.5)
    expected = diff_stride(x, strides, **PUBLISHED)
    for order in itertools.permutations(range(3)):
        dims = (0, 1, *(2 + i for i in order))
        permuted = diff_stride(x.permute(dims), [strides[i] for i in order], **PUBLISHED)
        torch.testing.assert_close(permuted, expected.permute(dims))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: diff_stride(x, 0.5, **PUBLISHED), ValueError, r"at least 1, but got 0.5"),
        (lambda x: diff_stride(x, [2.0] * 4, **PUBLISHED), ValueError, r"1 to 3 numbers.*has 4"),
        (
            lambda x: diff_stride(x, 2, smoothness_factor=0, **PUBLISHED),
            ValueError,
            "smoothness_factor .* got 0",
        ),
        (
            lambda x: diff_stride(x, 2, edge="middle", straight_through=False),
            ValueError,
            "'passband', 'stopband'.*'middle'",
        ),
        (
            lambda x: diff_stride(x, 2, lower_limit_stride=0.9, **PUBLISHED),
            ValueError,
            "at least 1.*0.9",
        ),
        (
            lambda x: diff_stride(x, 2, lower_limit_stride=3, upper_limit_stride=2, **PUBLISHED),
            ValueError,
            "lower_limit_stride=3 exceeds",
        ),
        (lambda x: diff_stride(x[0, 0, 0], 2, **PUBLISHED), ValueError, r"shape \(8,\)"),
        (lambda x: diff_stride(x[..., :0], 2, **PUBLISHED), ValueError, r"shape \(1, 1, 8, 0\)"),
        (lambda x: diff_stride(x.int(), 2, **PUBLISHED), TypeError, "torch.int32"),
        (lambda x: diff_stride(x, torch.ones(2, 2), **PUBLISHED), ValueError, r"vector.*\(2, 2\)"),
        (
            lambda x: diff_stride(x, torch.ones(4), **PUBLISHED),
            ValueError,
            r"1 to 3 numbers.* are 4",
        ),
        (
            lambda x: diff_stride(x, torch.ones(0), **PUBLISHED),
            ValueError,
            r"1 to 3 numbers.* are 0",
        ),
        (
            lambda x: diff_stride(x, torch.tensor([2.0, torch.nan]), **PUBLISHED),
            ValueError,
            "diverged",
        ),
        (lambda x: spectral_pool(x, 0.5), ValueError, "at least 1"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.zeros(1, 1, 8, 8))


def test_an_empty_batch_gives_stride_gradients_of_zero() -> None:
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    strides = torch.tensor([2.0, 2.0], requires_grad=True)
    y = diff_stride(x, strides, **WINDOWED)
    assert y.shape == (0, 3, 4, 4)
    y.sum().backward()
    assert strides.grad is not None
    assert strides.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pooling_in_blocks_equals_pooling_at_once(
    dtype: torch.dtype, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(7, 3, 12, 10).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for block_bytes in (1 << 30, 2 * x[0].numel() * 4):
        monkeypatch.setattr(map_product, "BLOCK_BYTES", block_bytes)
        inputs = x.detach().requires_grad_()
        strides = torch.tensor([2.0, 1.4], requires_grad=True)
        y = diff_stride(inputs, strides, **PUBLISHED)
        y.square().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(diff_stride(inputs, strides, **PUBLISHED), y)
        results.append((y, inputs.grad, strides.grad))
    assert results[1][0].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    for at_once, in_blocks in zip(*results, strict=True):
        torch.testing.assert_close(in_blocks, at_once)


def test_flop_counter_counts_every_product() -> None:
    x = torch.randn(7, 3, 12, 10)
    axes = [plan_axis(12, 2.0, **PUBLISHED), plan_axis(10, 2.0, **PUBLISHED)]
    diff_stride(x, 2.0, **PUBLISHED)  # computes the matrices, whose FLOPs count too
    with FlopCounterMode(display=False) as counter:
        diff_stride(x, 2.0, **PUBLISHED)
    assert counter.get_total_flops() == 2 * 7 * 3 * map_product.multiply_adds(axes)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_in_place_operation_may_follow_the_pooling(memory_format: torch.memory_format) -> None:
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 8, 8).contiguous(memory_format=memory_format).requires_grad_()
        strides = torch.tensor([2.0, 1.6], requires_grad=True)
        y = torch.nn.functional.relu(diff_stride(x, strides, **WINDOWED), inplace=inplace)
        y.square().sum().backward()
        results.append((y, x.grad, strides.grad))
    for apart, in_place in zip(*results, strict=True):
        torch.testing.assert_close(in_place, apart)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("size", "stride"), [(32, 4.0), (32, 9.0), (16, 8.0), (64, 20.0)])
def test_a_constant_map_gives_no_stride_gradient(edge: str, size: int, stride: float) -> None:
    strides = torch.tensor([stride], dtype=torch.float64, requires_grad=True)
    diff_stride(
        torch.ones(1, 1, size, dtype=torch.float64), strides, edge=edge, straight_through=False
    ).sum().backward()
    assert strides.grad is not None
    assert strides.grad.abs().max() < 1e-12


def test_gradients_are_exact_under_autocast() -> None:
    x, results = torch.randn(2, 3, 16, 16), []
    for enabled in (False, True):
        inputs, strides = x.clone().requires_grad_(), torch.tensor([2.0, 1.7], requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            diff_stride(inputs, strides, **PUBLISHED).square().sum().backward()
        results.append((inputs.grad, strides.grad))
    for exact, got in zip(*results, strict=True):
        torch.testing.assert_close(got, exact)


def test_a_scalar_stride_sums_the_gradients_of_both_axes() -> None:
    x, one = torch.randn(1, 1, 16, 12), torch.tensor(2.0, requires_grad=True)
    two = torch.tensor([2.0, 2.0], requires_grad=True)
    for strides in (one, two):
        diff_stride(x, strides, **WINDOWED).square().sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    torch.testing.assert_close(one.grad, two.grad.sum())
