"""torch.compile: one program in evaluation, and few programs while strides learn."""

import copy
import warnings

import pytest
import torch
from conftest import PUBLISHED, WINDOWED
from torch import nn
from torch._dynamo.testing import CompileCounter

from diffstride import BlurPooling, DiffStride, FixedSpectralPooling, MaxPooling, SpatialPooling
from diffstride._torch_compat import COMPILES_FUNCTIONS


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        DiffStride(2.0, **WINDOWED),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        DiffStride(2.0, **WINDOWED),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Warnings from inside torch are not about this library.
        warnings.filterwarnings("ignore", module="torch")
        yield
    torch._dynamo.reset()


def test_fixed_strides_train_in_one_program() -> None:
    layer, x = (
        DiffStride(2.0, edge="stopband", trainable=False, straight_through=False),
        torch.randn(2, 3, 16, 16),
    )
    program = torch.compile(layer, backend=CompileCounter(), fullgraph=True)
    assert layer.training
    torch.testing.assert_close(program(x), layer(x))
    layer.strides.data.fill_(4.0)
    layer.project_()
    torch.testing.assert_close(program(x), layer(x))


@pytest.mark.slow
def test_gradients_in_evaluation_work_for_any_batch_size() -> None:
    network, counter = _network().eval(), CompileCounter()
    program = torch.compile(network, backend=counter)
    for batch in (2, 3, 5, 6, 7):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(program(x), network(x))
    if COMPILES_FUNCTIONS:
        assert counter.frame_count == 2  # one for the first batch size, one for all others


def test_gradients_in_evaluation_are_those_of_the_eager_network() -> None:
    network, x = _network().eval(), torch.randn(2, 3, 32, 32)
    gradients = []
    for call in (network, torch.compile(network, backend="aot_eager")):
        network.zero_grad()
        call(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_training_equals_eager_and_stops_recompiling() -> None:
    eager, counter = _network(), CompileCounter()
    compiled = copy.deepcopy(eager)
    program = torch.compile(compiled, backend=counter)
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (eager, compiled)]
    x = torch.randn(4, 3, 32, 32)
    sizes, compilations = set(), []
    for _ in range(200):
        losses = []
        for model, call, optimiser in zip(
            (eager, compiled), (eager, program), optimisers, strict=True
        ):
            optimiser.zero_grad()
            loss = call(x).square().sum()
            loss.backward()
            optimiser.step()
            for layer in (model[1], model[4]):
                # A steady step, as from a strong gradient, through about 20 map sizes.
                layer.strides.data += 0.01
                layer.project_()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        sizes.add(compiled[1].output_size((32, 32)))
        compilations.append(counter.frame_count)
    assert len(sizes) > 6
    assert compilations[-1] <= 8
    assert compilations[-1] == compilations[20 * len(compilations) // 100]
    torch.testing.assert_close(eager[1].strides, compiled[1].strides, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pooling", [DiffStride, FixedSpectralPooling, SpatialPooling, MaxPooling, BlurPooling]
)
def test_evaluation_has_no_graph_break_and_follows_the_strides(pooling) -> None:
    # Two layers and a map of two lengths: several constants in one program.
    first, second = pooling(strides=(2.0, 2.0)), pooling(strides=(2.0, 3.0))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), first, nn.ReLU(), second).eval()
    program = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 18, 15)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))
        if pooling is DiffStride:
            model[1].strides += 0.7
            model[1].project_()
            assert program(x).shape == model(x).shape
            torch.testing.assert_close(program(x), model(x))


def test_evaluation_follows_loaded_strides() -> None:
    model, other = (
        nn.Sequential(nn.Conv2d(1, 1, 1), DiffStride(stride, **WINDOWED)).eval()
        for stride in (2.0, 3.0)
    )
    program, x = torch.compile(model, backend="eager"), torch.rand(1, 1, 18, 18)
    with torch.no_grad():
        assert program(x).shape[2:] == (9, 9)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(program(x), other(x))


@pytest.mark.skipif(
    not COMPILES_FUNCTIONS, reason="torch before 2.11 leaves these gradients to eager execution"
)
def test_evaluation_with_gradients_computes_no_matrix() -> None:
    """Saliency maps and attacks need gradients in evaluation; matrices are constants there."""
    model, x, nodes = DiffStride((1.7, 2.1), **PUBLISHED).eval(), torch.randn(2, 3, 18, 15), []

    def record(graph, example_inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    y = torch.compile(model, backend=record, fullgraph=True)(x)
    assert nodes
    assert not any("cos" in node or "arange" in node for node in nodes)
    y.square().sum().backward()
    got, model.strides.grad = model.strides.grad, None
    model(x).square().sum().backward()
    torch.testing.assert_close(got, model.strides.grad)


def test_a_fixed_layer_trains_in_one_program() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FixedSpectralPooling(2.0), FixedSpectralPooling(1.5))
    program = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 18, 15)
    program(x).square().sum().backward()
    assert model[0].weight.grad is not None
    got = model[0].weight.grad.clone()
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(got, model[0].weight.grad)
