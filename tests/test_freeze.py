"""Frozen networks: the same outputs from constants, ready for export."""

import functools

import networks
import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED, RELEASE, WINDOWED
from functorch.compile import make_boxed_func
from networks import IMAGE, Block
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from diffstride import DiffStride, FixedSpectralPooling
from diffstride.conversion.converter import convert
from diffstride.conversion.freezing import freeze
from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.pooling.frozen import FrozenPooling, nearest_stride
from diffstride.resnet import resnet18
from diffstride.spectral.axis_plan import plan_axis
from diffstride.strides import stride_layers


def learned(edge="stopband", size=24):
    """A small network whose strides have moved, and an example."""
    pooling_cls = functools.partial(DiffStride, edge=edge, straight_through=False)
    model = resnet18(num_output_classes=10, width=8, pooling_cls=pooling_cls).eval()
    networks.move_strides(model)
    return model, torch.rand(2, 3, size, size)


def assert_same(got, expected, tolerance):
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("edge", ["stopband", "passband"])
def test_outputs_are_the_same_and_no_strides_learn(edge):
    model, x = learned(edge)
    names = set(stride_layers(model))
    frozen = freeze(model, x)
    assert stride_layers(frozen) == {}
    kept = {name for name, _ in frozen.named_parameters()}
    assert kept == {n for n, _ in model.named_parameters() if not n.endswith(".strides")}
    assert all(isinstance(frozen.get_submodule(name), FrozenPooling) for name in names)
    assert set(stride_layers(model)) == names
    for batch in (1, 2, 5):
        other = torch.rand(batch, *x.shape[1:])
        assert_same(frozen(other), model(other), 1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param("torchvision/googlenet", marks=pytest.mark.slow), "timm/resnet18d"]
)
def test_converted_networks(name):
    pytest.importorskip(name.split("/")[0])
    x = networks.example(name)
    model = convert(networks.build_network(name).eval(), x)
    networks.move_strides(model)
    assert_same(freeze(model, x)(x), model(x), 1e-6)


@pytest.mark.parametrize("program", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_under_autocast_is_that_of_the_layer(program, dtype):
    layer, x = DiffStride((1.9, 2.3), **WINDOWED).eval(), torch.randn(2, 8, 24, 24)
    frozen = freeze(layer, x)
    if program == "compiled":
        frozen = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got, expected = frozen(x.to(dtype)), layer(x.to(dtype))
    assert got.dtype == expected.dtype == dtype
    assert_same(got.float(), expected.float(), 1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1.2e-3)])
def test_half_precision_outputs_are_close_to_the_layers(dtype, tolerance):
    layer, x = DiffStride((1.9, 2.3), **WINDOWED).eval(), torch.randn(2, 8, 24, 24).to(dtype)
    with torch.no_grad():
        assert_same(freeze(layer, x)(x).float(), layer(x).float(), tolerance)


def test_frozen_strides_do_not_follow_the_model():
    model, x = learned()
    frozen = freeze(model, x)
    before = frozen(x)
    networks.move_strides(model, seed=1)
    assert torch.equal(frozen(x), before)
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("layer", [DiffStride, FixedSpectralPooling])
def test_single_layers_of_one_to_three_axes(axes, layer):
    pool = layer(strides=(1.7, 2.3, 1.2)[:axes])
    x = torch.rand(2, 3, *(9, 12, 10)[:axes])
    assert_same(freeze(pool, x)(x), pool(x), 1e-6)


def test_mode_dtype_and_statistics_are_kept():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), DiffStride(1.5, **PUBLISHED)
    ).double()
    model[1].eval()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    model[2].float()
    frozen = freeze(model, x)
    assert [m.training for m in frozen] == [True, False, True]
    assert torch.equal(frozen[1].running_mean, torch.zeros(4, dtype=torch.float64))
    assert {buffer.dtype for buffer in frozen[2].buffers()} == {torch.float64}
    torch.testing.assert_close(frozen(x), model(x))


def test_state_dict_of_a_frozen_network_contains_its_matrices():
    model, x = learned()
    frozen, other = freeze(model, x), freeze(model, x)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(x), frozen(x))


def test_other_sizes_are_refused():
    model, x = learned()
    with pytest.raises(ValueError, match=r"frozen for maps of \(24, 24\), but got \(26, 26\)"):
        freeze(model, x)(torch.rand(1, 3, 26, 26))
    layer = FrozenPooling.of(DiffStride(2.0, **PUBLISHED))
    layer.add_size((24, 24))
    with pytest.raises(ValueError, match=r"frozen for maps of \(24, 24\), but got \(26, 26\)"):
        layer.output_size((26, 26))
    with pytest.raises(ValueError, match="Conv2d has no pooling layer to freeze"):
        freeze(nn.Conv2d(3, 3, 3), x)
    with pytest.raises(ValueError, match="round_to must be positive or None, but got 0"):
        freeze(model, x, round_to=0)


def test_the_example_is_cast_to_the_dtype_of_the_weights():
    x = torch.rand(1, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride(1.5, **PUBLISHED)).to(torch.bfloat16)
    assert freeze(network, x)(x.bfloat16()).dtype == torch.bfloat16
    mixed = nn.ModuleDict({"unused": nn.Linear(2, 2).bfloat16(), "used": nn.Conv2d(3, 4, 3)})
    mixed.forward = lambda x: mixed["used"](x)
    assert freeze(nn.Sequential(mixed, DiffStride(1.5, **PUBLISHED)), x)(x).dtype == torch.float32


def test_a_layer_that_the_example_did_not_reach_refuses_maps():
    network = nn.ModuleDict(
        {"used": DiffStride(2.0, **PUBLISHED), "unused": DiffStride(2.0, **PUBLISHED)}
    )
    network.forward = lambda x: network["used"](x)
    with pytest.raises(
        ValueError, match="maps of no size, as the example did not reach it, but got"
    ):
        freeze(nn.Sequential(network), torch.rand(1, 1, 8, 8))[0]["unused"](torch.rand(1, 1, 8, 8))


def test_a_layer_that_is_called_by_keyword_is_frozen():
    net = networks.Net(lambda m, x: m.pool(x=x), pool=DiffStride(2.0))
    x = torch.rand(1, 1, 16, 16)
    assert torch.allclose(freeze(net, x)(x), net(x), atol=1e-5)


def test_a_layer_called_on_two_sizes_has_matrices_for_both():
    pool = DiffStride(1.6, **WINDOWED)
    model = nn.Sequential(pool, nn.ReLU(), pool)
    x = torch.rand(1, 2, 20, 16)
    frozen = freeze(model, x)
    assert frozen[0] is frozen[2]
    assert_same(frozen(x), model(x), 1e-6)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_frozen_network_costs_what_it_cost(order):
    x = torch.rand(IMAGE)
    model = convert(Block().eval(), x, order=order)
    networks.move_strides(model)
    assert MultiplyAdds(freeze(model, x), x).value() == MultiplyAdds(model, x).value()


def test_rounding_gives_the_sizes_of_strided_networks():
    x = torch.rand(1, 3, 32, 32)
    model = convert(networks.build_network("torchvision/resnet18").eval(), x, min_channels=0)
    strided, sizes = networks.build_network("torchvision/resnet18").eval(), []
    for layer in stride_layers(model).values():
        layer.strides.data.copy_(torch.tensor([1.8, 2.3]))
    frozen = freeze(model, x, round_to=1)
    for network in (strided, frozen):
        shapes = []
        for name in ("conv1", "maxpool", "layer2", "layer3"):
            part = network.get_submodule(name)
            part.register_forward_hook(lambda *args, shapes=shapes: shapes.append(args[2].shape))
        network(x)
        sizes.append(shapes)
    assert sizes[0] == sizes[1]
    assert not torch.allclose(frozen(x), model(x))


def test_fixed_spectral_pooling_is_rounded_too():
    frozen = freeze(nn.Sequential(FixedSpectralPooling(1.6)), torch.zeros(1, 1, 32, 32), round_to=1)
    x = torch.rand(1, 1, 32, 32)
    assert_same(frozen(x), FixedSpectralPooling(2)(x), 1e-6)


@pytest.mark.parametrize("round_to", [None, 1])
def test_straight_through_layers_keep_all_bins(round_to):
    pool, x = DiffStride((1.9, 2.2), edge="stopband", straight_through=True), torch.rand(1, 2, 9, 8)
    strides = (1.9, 2.2) if round_to is None else (2, 2)
    assert_same(freeze(pool, x, round_to)(x), FixedSpectralPooling(strides)(x), 1e-6)


def test_rounding_whole_strides_changes_nothing():
    model, x = learned()
    for layer in stride_layers(model).values():
        layer.strides.data.copy_(torch.tensor([2.0, 1.0]))
    assert_same(freeze(model, x, round_to=1)(x), model(x), 1e-6)


@pytest.mark.parametrize("size", [7, 32, 57])
@pytest.mark.parametrize("round_to", [0.5, 1, 2])
def test_nearest_stride_gives_the_nearest_size(size, round_to):
    for stride in (1.0, 1.3, 1.6, 2.2, 3.4, 6.0, 100.0):
        axis = plan_axis(size, stride, **WINDOWED)
        nearest = nearest_stride(axis, round_to)
        assert nearest == 1 or nearest % round_to == 0
        allowed = [1.0, *(k * round_to for k in range(1, 4 * size) if k * round_to >= 1)]
        gaps = [abs(-(-size // s) - axis.output_size) for s in allowed]
        assert abs(-(-size // nearest) - axis.output_size) == min(gaps)


def test_gradients_flow_through_a_frozen_network():
    model, x = learned()
    frozen = freeze(model, x)
    for network in (frozen, model):
        network.zero_grad()
        F.cross_entropy(network(x), torch.tensor([1, 2])).backward()
    torch.testing.assert_close(
        frozen.stem.conv.weight.grad, model.stem.conv.weight.grad, rtol=1e-4, atol=1e-6
    )


def test_export_with_any_batch():
    model, x = learned()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(freeze(model, x), (x,), dynamic_shapes=({0: batch},)).module()
    for images in (x, torch.rand(7, *x.shape[1:])):
        assert_same(program(images), model(images), 1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_network_still_trains_and_freezes(training):
    """Export runs a network on fake tensors, which must not stay in a cache."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        DiffStride(1.9, **PUBLISHED),
        DiffStride(1.3, trainable=False, **PUBLISHED),
    )
    x = torch.rand(2, 3, 23, 21)  # a size of no other test: nothing of it is cached
    program = torch.export.export(model.train(training), (x,))
    y = model(x)
    assert type(y) is torch.Tensor
    assert_same(program.module()(x), y, 1e-6)
    y.square().sum().backward()
    assert type(model[1].strides.grad) is torch.Tensor
    assert {type(buffer) for buffer in freeze(model, x).buffers()} == {torch.Tensor}


@pytest.mark.slow
def test_maps_of_dynamic_size_are_refused_in_an_export():
    model, x = learned()
    height = torch.export.Dim("height", min=16, max=64)
    with pytest.raises(ValueError, match=r"size of a map is dynamic .*batch size alone"):
        torch.export.export(model.eval(), (x,), dynamic_shapes=({2: height},))


def test_symbolic_traces_of_torch_fx_call_the_pooling():
    model, x = learned()
    frozen = freeze(model.eval(), x)
    traced = torch.fx.symbolic_trace(frozen)
    called = [module for module in traced.modules() if isinstance(module, FrozenPooling)]
    assert len(called) == len(stride_layers(model))
    assert torch.equal(traced(x), frozen(x))


def test_compiles_to_one_graph():
    model, x = learned()
    frozen = freeze(model, x)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), model(x), 1e-6)


@pytest.mark.parametrize("strides", [(1.5,), (1.5, 1.5), (1.5, 2.0), (2.0, 1.0), (1.0, 2.0)])
def test_compiled_products_are_of_two_matrices(strides):
    """Batched ones become a product a map where the compiler lays maps out channels-last."""
    x = torch.rand(2, 3, 12, 10) if len(strides) == 2 else torch.rand(2, 3, 12)
    frozen = freeze(DiffStride(strides), x)
    called = []

    def note(graph, inputs):
        called.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    compiled = torch.compile(frozen, fullgraph=True, backend=aot_autograd(fw_compiler=note))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), frozen(x), check_stride=True)
    if RELEASE >= (2, 11):  # the compiler of older ones makes batched products
        assert called.count(torch.ops.aten.mm.default) == sum(stride > 1 for stride in strides)
        assert torch.ops.aten.bmm.default not in called


# Deprecations inside the exporter.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["own", pytest.param("torchvision/resnet18", marks=pytest.mark.slow)]
)
def test_onnxruntime_gives_the_same_outputs_for_any_batch(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if name == "own":
        model, x = learned()
    else:
        x = torch.rand(2, 3, 32, 32)
        model = convert(networks.build_network(name).eval(), x)
        networks.move_strides(model, high=1.8)
    batch = torch.export.Dim("batch", min=1, max=64)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(
        freeze(model, x), (x,), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    for size in (1, 5):
        images = torch.rand(size, *x.shape[1:])
        (got,) = session.run(None, {source.name: images.numpy()})
        with torch.no_grad():
            assert_same(torch.from_numpy(got), model(images), 1e-4)


def test_memory_format_is_kept():
    x = torch.rand(2, 3, 12, 14).contiguous(memory_format=torch.channels_last)
    pool = DiffStride(1.5, **PUBLISHED)
    for got in (freeze(pool, x)(x), pool(x)):
        assert got.is_contiguous(memory_format=torch.channels_last)
    assert_same(freeze(pool, x)(x), pool(x.contiguous()), 1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit is deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_tracing_leaves_the_batch_size_free():
    model, x = learned()
    traced = torch.jit.trace(freeze(model, x), x)
    images = torch.rand(5, *x.shape[1:])
    assert_same(traced(images), model(images), 1e-6)


def test_rounding_keeps_the_transition_width_and_unpooled_maps():
    wide = DiffStride(2.0, smoothness_factor=1.5, **WINDOWED)
    whole = DiffStride(1.1, **PUBLISHED)
    for layer, size, expected in ((wide, 64, 32), (whole, 16, 16)):
        x = torch.rand(1, 1, size, size)
        assert layer.output_size((size, size)) == (expected, expected)
        torch.testing.assert_close(freeze(layer, x, round_to=1)(x), layer(x))


def test_of_two_strides_of_equal_size_difference_the_nearer_is_taken():
    axes = [plan_axis(7, stride, **WINDOWED) for stride in (4.0, 5.0, 6.0)]
    assert [nearest_stride(axis, 1) for axis in axes] == [4, 5, 6]


def test_layers_of_three_axes_can_be_exported():
    layer, x = DiffStride((1.7, 2.3, 1.2), **PUBLISHED).eval(), torch.rand(2, 3, 9, 12, 10)
    program = torch.export.export(freeze(layer, x), (x,)).module()
    torch.testing.assert_close(program(x), layer(x))
