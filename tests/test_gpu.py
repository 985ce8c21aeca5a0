"""Layers, budgets, conversion and compilation on the CPU, and on a GPU if there is one.

``python -m benchmarks.gpu correctness`` runs them on a GPU and writes what came of them.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED, literal_diff_stride
from torch import Tensor, nn

from benchmarks.gpu.device import tf32
from diffstride import (
    BlurPooling,
    CostBudget,
    DiffStride,
    FixedSpectralPooling,
    MaxPooling,
    MultiplyAdds,
    SpatialPooling,
    convert,
    freeze,
    project_strides,
    reference,
    stride_layers,
)

pytestmark = [
    pytest.mark.gpu,
    # What torch and its compiler warn of on a GPU is not of this project.
    pytest.mark.filterwarnings("default"),
]
NO_GPU = "needs a CUDA device"
SYNCHRONISATION = "called a synchronizing CUDA operation"
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "stopband": lambda: DiffStride(2.3),
    "window": lambda: DiffStride(2.3, straight_through=False),
    "passband": lambda: DiffStride((1.7, 2.3), **PUBLISHED),
    "shared": lambda: DiffStride(2.3, shared_stride=True),
    "spectral": lambda: FixedSpectralPooling(2.3),
    "spatial": lambda: SpatialPooling((2, 2), (2, 2)),
    "max": lambda: MaxPooling(2, pool_size=3),
    "blur": lambda: BlurPooling(2),
    "reference": lambda: reference.DiffStride((2.0, 2.5)),
}


# On a CPU other tests check the same.
@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return torch.device(request.param)


@pytest.fixture(params=["cuda"])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """A fresh compiler, and convolutions without TF32, which torch allows by default."""
    torch.compiler.reset()
    with tf32(False):
        yield
    torch.compiler.reset()


def small_network(pooling: Callable[[float], nn.Module] = DiffStride) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        pooling(2.0),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        pooling(1.5),
        nn.ReLU(),  # the mean alone would not depend on the stride
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def strided_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def images(device: torch.device, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 32, 32).to(device)


def labels(device: torch.device, batch: int = 4) -> Tensor:
    return torch.arange(batch, device=device) % 4


def gradients(layer: nn.Module, x: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    """The output of a layer, and the gradients of its input and parameters, in float64 on the CPU.

    ``weights``, or a fixed pattern, weighs the output in the loss.
    """
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape) if weights is None else weights
    found = torch.autograd.grad((y * weights.to(y)).sum(), [x, *layer.parameters()])
    return tuple(each.detach().cpu().double() for each in (y, *found))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_and_its_gradients_equal_those_in_float64(
    device: torch.device, name: str, layout: torch.memory_format
) -> None:
    layer, x = POOLINGS[name](), torch.randn(2, 3, 18, 21)
    expected = gradients(copy.deepcopy(layer), x.double(), None)
    found = gradients(layer.to(device), x.to(device).contiguous(memory_format=layout), None)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_pooling_equals_complex_transforms(device: torch.device) -> None:
    x, strides = torch.randn(2, 3, 32, 25), (2.0, 2.5)
    layer = DiffStride(strides, **PUBLISHED).to(device)
    size = layer.output_size((32, 25))
    expected = literal_diff_stride(x.double(), strides, size, 4.0, "passband")
    found = layer(x.to(device)).detach().cpu().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def strides_of(model: nn.Module) -> list[tuple[float, ...]]:
    """The strides of each layer of a network."""
    return [layer.stride_values() for layer in stride_layers(model).values()]  # type: ignore


def train_steps(
    model: nn.Module, device: torch.device, steps: int = 3, rate: float = 0.1
) -> list[float]:
    """Train on one batch, and return the losses."""
    x, y = images(device), labels(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        project_strides(model)
        losses.append(float(loss.detach()))
    return losses


def test_strides_learn_alike_on_all_devices(device: torch.device) -> None:
    model = small_network()
    twin = copy.deepcopy(model).to(device)
    torch.manual_seed(1)
    expected = train_steps(model, torch.device("cpu"))
    torch.manual_seed(1)
    assert train_steps(twin, device) == pytest.approx(expected, rel=1e-4)
    for ours, theirs in zip(strides_of(twin), strides_of(model), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
        assert ours not in [(2.0, 2.0), (1.5, 1.5)]


def test_a_budget_holds_the_cost(device: torch.device) -> None:
    model = small_network().to(device)
    budget = CostBudget(model, images(device), 0.7)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model(images(device)), labels(device)).backward()
        optimiser.step()
        budget.project_()
        assert budget.cost.value() <= budget.multiply_adds
    assert all(p.device.type == device.type for p in model.parameters())


def test_a_converted_network_keeps_its_sizes_and_learns(device: torch.device) -> None:
    model = strided_network().to(device)
    converted = convert(model, images(device))
    assert converted(images(device)).shape == model(images(device)).shape
    assert MultiplyAdds(converted, images(device)).value() > 0
    before = strides_of(converted)
    train_steps(converted, device)
    after = strides_of(converted)
    assert len(before) == 2
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_converted_network_computes_the_same_on_all_devices(device: torch.device) -> None:
    model, x = strided_network().eval(), torch.randn(2, 3, 32, 32)
    expected = convert(model, x)(x)
    found = convert(model.to(device), x.to(device))(x.to(device))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_network_computes_the_same(device: torch.device) -> None:
    model = small_network().to(device).eval()
    frozen = freeze(model, images(device))
    x = images(device, batch=7)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast(device: torch.device, dtype: torch.dtype) -> None:
    """With `torch.amp.GradScaler` in fp16, whose gradients would underflow without it."""
    model = small_network().to(device)
    before = strides_of(model)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=dtype == torch.float16)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=dtype):
            loss = F.cross_entropy(model(torch.ones_like(images(device))), labels(device) * 0)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        project_strides(model)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    strides = [layer.strides for layer in stride_layers(model).values()]
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in strides)  # type: ignore
    assert all(each.grad.isfinite().all() for each in strides)  # type: ignore
    assert strides_of(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_in_half_precision_is_close_to_float32(
    device: torch.device, dtype: torch.dtype
) -> None:
    x = torch.randn(2, 4, 32, 32).to(device)
    layer = DiffStride(2.0, **PUBLISHED).to(device)
    with torch.no_grad():
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(x), rtol=0, atol=0.05)


def compiled(model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    # On the CPU the compiler would need one of C++, and more time.
    return torch.compile(model, backend="inductor" if device.type == "cuda" else "aot_eager")


def test_compiled_training_equals_eager_training(device: torch.device) -> None:
    eager = small_network().to(device)
    twin = copy.deepcopy(eager)
    program = compiled(twin, device)
    x, y = images(device), labels(device)
    losses = []
    for model, call in ((eager, eager), (twin, program)):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = F.cross_entropy(call(x), y)
            loss.backward()
            optimiser.step()
            project_strides(model)
            losses.append(float(loss.detach()))
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-3)


def test_compiled_evaluation_equals_eager_evaluation(device: torch.device) -> None:
    model = small_network().to(device).eval()
    program, x = compiled(model, device), images(device)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-3, atol=1e-4)


def test_host_reads_with_the_rule_of_accelerators() -> None:
    """What the next tests count on a GPU, counted on the CPU by the layers' own reads."""
    model, cpu = small_network(), torch.device("cpu")
    spied = {"autospec": True, "side_effect": DiffStride._refresh}
    with (
        mock.patch.object(DiffStride, "_is_on_cpu", return_value=False),
        mock.patch.object(DiffStride, "_refresh", **spied) as read,
    ):
        train_steps(model, cpu)
        read.reset_mock()
        train_steps(model, cpu, steps=1)
        assert read.call_count <= len(stride_layers(model))
        model.eval()
        with torch.no_grad():
            model(images(cpu))
            read.reset_mock()
            model(images(cpu))
        assert read.call_count == 0


def synchronisations(call: Callable[[], object]) -> int:
    """How often a call makes the host wait for the GPU, by torch's sync debug mode."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONISATION in str(each.message) for each in caught)


def test_training_synchronises_at_most_once_a_layer_and_step(gpu: torch.device) -> None:
    model, x, y = small_network().to(gpu), images(gpu), labels(gpu)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        project_strides(model)

    for _ in range(3):
        step()
    assert 0 < synchronisations(step) <= len(stride_layers(model))


def test_a_budget_synchronises_to_read_and_to_write(gpu: torch.device) -> None:
    model = small_network().to(gpu)
    budget = CostBudget(model, images(gpu), 0.7)
    for _ in range(3):
        with torch.no_grad():
            for layer in stride_layers(model).values():
                layer.strides += 0.05
        assert 0 < synchronisations(budget.project_) <= 2
    with torch.no_grad():
        assert synchronisations(lambda: model(images(gpu))) == 0


def test_evaluation_never_synchronises(gpu: torch.device) -> None:
    model, x = small_network().to(gpu).eval(), images(gpu)
    with torch.no_grad():
        model(x)
        assert synchronisations(lambda: model(x)) == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_evaluation_as_a_graph(gpu: torch.device, frozen: bool) -> None:
    """Strides at rest read nothing, so a graph can hold the evaluation, frozen or not."""
    model, x = small_network().to(gpu).eval(), images(gpu)
    model = freeze(model, x) if frozen else model
    with torch.no_grad():
        # Warm up on another stream, as the documentation of CUDA graphs asks for.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = model(x)
        x.copy_(images(gpu))
        graph.replay()
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)


def test_training_of_fixed_strides_as_graphs(gpu: torch.device) -> None:
    """Learning strides are read by the host in every step, which no graph can hold."""
    model = small_network(lambda stride: DiffStride(stride, trainable=False)).to(gpu)
    x = images(gpu).requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), x)[0]
    sample = x.detach().clone().requires_grad_()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(model), (sample,))
    found = torch.autograd.grad(graphed(x).square().sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
