"""Pooling an axis by one product, by two halves and by Fourier transforms gives the same."""

import itertools
import math
from random import Random

import pytest
import torch
from conftest import PUBLISHED, WINDOWED
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffstride import DiffStride, diff_stride, spectral_pool
from diffstride.spectral import axis_product, long_axis, map_product
from diffstride.spectral.axis_plan import EDGES, plan_axis
from diffstride.spectral.matrix import axis_matrix, matrix, pooling_matrix

NEVER = 1 << 40
WAYS = {
    "product": (NEVER, NEVER, NEVER),
    "halves": (1, NEVER, NEVER),
    "transforms": (NEVER, 1, 1),
}
SHAPES = [(2, 3, 17), (2, 3, 16), (2, 3, 12, 18), (2, 3, 9, 12), (1, 2, 6, 5, 8), (7, 12)]


def _use(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("HALVED_AXIS", "LONG_AXIS", "LONG_SIGNAL"), WAYS[way], strict=True):
        monkeypatch.setattr(axis_product, name, value)


def _pooled(x: Tensor, num_axes: int, stride: float, edge: str) -> list[Tensor]:
    """Outputs and gradients, with learnable and with fixed strides."""
    x = x.detach().requires_grad_()
    strides = torch.full((num_axes,), stride, dtype=torch.float64, requires_grad=True)
    y = diff_stride(x, strides, smoothness_factor=2.0, edge=edge, straight_through=False)
    y.backward(torch.arange(y.numel(), dtype=torch.float64).cos().view_as(y))
    with torch.no_grad():
        evaluated = diff_stride(
            x, strides, smoothness_factor=2.0, edge=edge, straight_through=False
        )
    assert x.grad is not None
    assert strides.grad is not None
    fixed = torch.autograd.grad(spectral_pool(x, [stride] * num_axes).square().sum(), x)[0]
    return [y, x.grad, strides.grad, evaluated, fixed]


@pytest.mark.parametrize("way", ["halves", "transforms"])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("stride", [1.0, 1.3, 2.0, 2.7, 9.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_halves_and_transforms_equal_one_product(
    way: str, edge: str, stride: float, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_axes = max(1, len(shape) - 2)
    x = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    _use("product", monkeypatch)
    expected = _pooled(x, num_axes, stride, edge)
    _use(way, monkeypatch)
    for got, wanted in zip(_pooled(x, num_axes, stride, edge), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("way", WAYS)
def test_blocks_and_half_precision(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 2, 16, 12)
    exact = (
        pooling_matrix(16, 1.9, **PUBLISHED).float()
        @ x
        @ pooling_matrix(12, 1.9, **PUBLISHED).float().T
    )
    _use(way, monkeypatch)
    monkeypatch.setattr(map_product, "BLOCK_BYTES", 3 * x[0].numel() * 4)
    strides = torch.tensor([1.9, 1.9], requires_grad=True)
    torch.testing.assert_close(diff_stride(x, strides, **PUBLISHED), exact)
    half = diff_stride(x.bfloat16(), strides, **PUBLISHED)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.04, rtol=0.02)


def test_an_axis_of_16_000_samples_needs_no_matrix() -> None:
    # The matrix of this axis alone would hold 128 million numbers.
    time = torch.arange(16000, dtype=torch.float64) / 16000
    sound = torch.sin(2 * math.pi * 440 * time).float().expand(1, 2, -1).requires_grad_()
    pool = DiffStride((2.0,), **WINDOWED)
    y = pool(sound)
    y.square().sum().backward()
    assert y.shape == (1, 2, 8000)
    torch.testing.assert_close(y, sound[..., ::2], atol=1e-4, rtol=0)
    assert pool.strides.grad is not None
    assert pool.strides.grad.isfinite().all()


@pytest.mark.parametrize(("way", "share"), [("product", 1), ("halves", 0.5), ("transforms", 0)])
def test_halves_take_half_of_the_multiply_adds(
    way: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = [plan_axis(12, 2.0, **PUBLISHED), plan_axis(10, 2.0, **PUBLISHED)]
    one_product = map_product.multiply_adds(axes)
    x = torch.randn(1, 3, 12, 10)
    _use(way, monkeypatch)
    with torch.no_grad():
        diff_stride(x, 2.0, **PUBLISHED)  # computes the matrices, whose FLOPs count too
        with FlopCounterMode(display=False) as counter:
            diff_stride(x, 2.0, **PUBLISHED)
    assert counter.get_total_flops() == 2 * 3 * share * one_product
    if way != "transforms":  # the cost for a budget counts halves as one product
        assert map_product.multiply_adds(axes) == one_product


def _takes_products(x: Tensor, *strides: float) -> bool:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        diff_stride(x, strides)
    return counter.get_total_flops() > 0


def test_signals_are_transformed_where_it_is_faster_and_axes_of_images_from_1024() -> None:
    signals = [torch.rand(2, 3, n) for n in (16, 250, 254, 256, 508, 797, 1000, 1024, 1031)]
    products = [True, True, True, False, True, True, False, False, False]
    assert [_takes_products(x, 2.0) for x in signals] == products
    assert _takes_products(torch.rand(2, 3, 500), 500 / 251)  # pooled to a prime
    images = [torch.rand(1, 1, n, 4) for n in (384, 1023, 1024)]
    assert [_takes_products(x, 2.0, 1.0) for x in images] == [True, True, False]


def test_the_cost_of_a_signal_rises_with_its_lengths() -> None:
    """Strides under a budget are searched along it, and would jump where it falls."""
    for fixed in (2, 5, 12, 40, 200):
        by_size = [map_product.multiply_adds([plan_axis(n, n / fixed)]) for n in range(201, 1200)]
        assert by_size == sorted(by_size)
    for size in (16, 33, 383, 384, 1024):
        outputs = range(1, size)
        by_output = [map_product.multiply_adds([plan_axis(size, size / m)]) for m in outputs]
        assert by_output == sorted(by_output)


def test_transforms_count_for_each_line() -> None:
    def of_line(n: int, m: int) -> float:
        return 1.25 * (n * math.log2(n) + m * math.log2(m))

    signal, kept = plan_axis(500, 2.0), plan_axis(4, 1.0)
    assert map_product.multiply_adds([signal]) == pytest.approx(of_line(500, 250))
    assert map_product.multiply_adds([signal, kept]) == 500 * 250 * 4
    long, short = plan_axis(2000, 4.0), plan_axis(32, 2.0)
    expected = 2000 * 32 * 16 + 16 * of_line(2000, 500)  # the short axis first
    assert map_product.multiply_adds([short, long]) == pytest.approx(expected)
    frozen = map_product.multiply_adds([signal], transforms=False)
    assert frozen == 500 * 250


def test_a_matrix_of_few_rows_is_taken_where_transforms_cost_more() -> None:
    strides = 2048 / 12, 2048 / 16
    assert [_takes_products(torch.rand(1, 1, 2048), stride) for stride in strides] == [True, False]
    costs = [map_product.multiply_adds([plan_axis(2048, stride)]) for stride in strides]
    assert costs == [12 * 2048, 1.25 * (2048 * 11 + 16 * 4)]


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_compiles_without_a_graph_break(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(way, monkeypatch)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), DiffStride(2.0, **PUBLISHED)).eval()
    program = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 18, 20)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))
    torch._dynamo.reset()


def test_matrices_cached_in_fake_tensor_mode_are_real_tensors():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    axis = plan_axis(
        27, 1.83, 4.0, "stopband", straight_through=False
    )  # in no other test, so not cached
    with FakeTensorMode():
        made = matrix(axis, torch.float32, torch.device("cpu"))
    assert not isinstance(made, FakeTensor)
    torch.testing.assert_close(made, axis_matrix(axis).float())


@pytest.mark.parametrize("size", [100, 2048])
def test_a_learning_signal_at_stride_1_stays_as_it_is(size: int) -> None:
    """A transform there and back would change its last digits."""
    pool, x = DiffStride([1.0]), torch.randn(2, 3, size, requires_grad=True)
    y = pool(x)
    assert y.equal(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.equal(2 * x)


def test_gains_of_transforms_are_kept_while_a_stride_moves_within_a_size() -> None:
    kind, axes = (torch.float32, torch.device("cpu")), [plan_axis(500, s) for s in (2.501, 2.502)]
    assert axes[0] != axes[1]
    for gains in (long_axis.pool_gains, long_axis.spread_gains, long_axis.ramp_weights):
        assert gains(axes[0], *kind) is gains(axes[1], *kind)


def test_axes_are_pooled_in_the_order_that_costs_least() -> None:
    source, changed = Random(0), 0
    for _ in range(200):
        count = source.choice([2, 3])
        sizes = [source.choice([4, 7, 32, 128, 400, 3000]) for _ in range(count)]
        axes = [plan_axis(size, source.uniform(1, min(size, 12))) for size in sizes]
        costs = {}
        for order in itertools.permutations(range(count)):
            current, costs[order] = list(sizes), 0
            for i in order:
                product = math.prod(current) * axes[i].output_size
                costs[order] += 0 if axes[i].is_identity else product
                current[i] = axes[i].output_size
        found = map_product.multiply_adds(axes, transforms=False)
        assert found == min(costs.values())
        by_ratio = sorted(range(count), key=lambda i: axes[i].output_size / sizes[i])
        changed += found < costs[tuple(by_ratio)]
    assert changed > 10
