"""The fast parts of costs and budgets against slow obvious versions."""

import itertools
from math import exp, inf, log

import pytest
import torch
from conftest import PUBLISHED, WINDOWED
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import counted
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, stride_layers
from diffstride.cost.budget_scaling import scale_to_budget
from diffstride.cost.projection import project_step
from diffstride.cost.single_changes import Change, SingleChanges
from diffstride.cost.size_search import TRIES, SizeSearch, combinations
from diffstride.cost.size_thresholds import first_log, threshold
from diffstride.cost.stride_space import StrideSpace
from diffstride.resnet import resnet18
from diffstride.spectral.axis_plan import WindowSettings
from diffstride.spectral.map_product import multiply_adds

SIZE = 40, 37
STRIDES = st.floats(1.0, 6.0, width=32)


def network(first, second):
    """Two poolings, with convolutions and a rounded size between them."""
    return nn.Sequential(
        DiffStride(**first),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.MaxPool2d(2),
        DiffStride(**second),
        nn.Conv2d(4, 8, 3, padding=1),
    )


def straight_through(whole, smooth):
    return whole + smooth - smooth.detach()


def pooled(layer, sizes, strides):
    """Output sizes of a layer as tensors whose gradient is that of the unrounded sizes."""
    axes = layer.plan([round(size.item()) for size in sizes], strides.tolist())
    outputs = []
    for size, stride, axis in zip(sizes, strides, axes, strict=True):
        smooth = size / (stride + (axis.stride - stride.detach()))
        if layer.edge == "passband":
            factor = layer.smoothness_factor
            smooth = smooth + (2 * factor if axis.transition == factor else size / 2)
            if 2 * axis.cutoff >= axis.size:
                smooth = size + 0 * stride
        outputs.append(straight_through(axis.output_size, smooth))
    return axes, outputs


def slow_cost(net, first, second):
    """The cost of `network` by autograd over its sizes."""
    start = [torch.tensor(float(size), dtype=torch.float64) for size in SIZE]
    axes, sizes = pooled(net[0], start, first)
    total = multiply_adds(axes, start, sizes) + 9 * 4 * sizes[0] * sizes[1]
    halves = [straight_through(round(size.item()) // 2, size / 2) for size in sizes]
    axes, sizes = pooled(net[3], halves, second)
    return total + 4 * multiply_adds(axes, halves, sizes) + 9 * 4 * 8 * sizes[0] * sizes[1]


NETWORKS = {
    name: network(*({"strides": 2.0, **window} for window in windows))
    for name, windows in {
        "stopband": (WINDOWED, WINDOWED),
        "passband": (PUBLISHED, PUBLISHED),
        "both": (WINDOWED, PUBLISHED),
    }.items()
}
COSTS = {name: MultiplyAdds(net, torch.zeros(1, 1, *SIZE)) for name, net in NETWORKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None)
@given(strides=st.lists(STRIDES, min_size=4, max_size=4))
def test_costs_and_gradients_are_those_of_autograd(name, strides):
    net, cost = NETWORKS[name], COSTS[name]
    ours, slow = (
        torch.tensor(strides, dtype=torch.float64).view(2, 2).requires_grad_() for _ in range(2)
    )
    found, expected = cost({"0": ours[0], "3": ours[1]}), slow_cost(net, *slow)
    assert found.item() == cost.value({"0": strides[:2], "3": strides[2:]})
    assert found.item() == pytest.approx(expected.item())
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, slow.grad, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_of_other_strides_do_not_depend_on_those_before(name):
    """Costs are kept by map sizes: at strides in any order they are those that torch counts."""
    net, x = NETWORKS[name].eval(), torch.zeros(1, 1, *SIZE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for layer in stride_layers(net).values():
            layer.strides.data = 1 + 2 * torch.rand(2, generator=generator)
        assert COSTS[name].value() == counted(net, x)


def test_scalar_tensors_and_numbers_may_be_mixed():
    cost, stride = COSTS["stopband"], torch.tensor(2.5, requires_grad=True)
    cost({"0": [stride, 3.0], "3": (2.0, 2.0)}).backward()
    assert stride.grad.item() < 0
    assert cost.value({"0": [stride, 3.0]}) == cost.value({"0": torch.tensor([2.5, 3.0])})


@pytest.mark.parametrize("edge", ["stopband", "passband"])
@settings(deadline=None)
@given(size=st.integers(1, 300), part=st.floats(0, 1))
def test_strides_at_which_a_size_changes(edge, size, part):
    window = WindowSettings(edge=edge)

    def output_size(at):
        return window.plan(size, exp(at)).output_size

    most = round(part * size)
    slow = threshold(lambda at: output_size(at) <= most, 0.0, log(2 * size))
    found = first_log(window, size, most)
    assert found == pytest.approx(slow, abs=2e-7)
    if output_size(log(2 * size)) <= most:
        assert output_size(found) <= most
    if found > 1e-5:
        assert output_size(found - 2e-6) > most


EFFECTS = st.integers(-8, 8).map(float)
DISTANCES = st.floats(0.01, 1.0)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(EFFECTS, DISTANCES), min_size=1, max_size=2), min_size=1, max_size=5
    ),
    EFFECTS,
)
def test_combinations_are_the_nearest_of_all(numbers, least):
    options = [
        [Change({(str(i), 0): j}, *each) for j, each in enumerate(option)]
        for i, option in enumerate(numbers)
    ]
    every = [[Change({}, 0.0, 0.0), *option] for option in options]
    expected = sorted(
        sum(change.distance for change in changes)
        for changes in itertools.product(*every)
        if least <= sum(change.effect for change in changes) <= least + 1
    )
    distances = {key: c.distance for o in options for c in o for key in [tuple(c.sizes.items())]}
    found = [
        sum(distances[(item,)] for item in sizes.items())
        for sizes in combinations(options, least, least + 1)
    ]
    assert found == pytest.approx(expected[:TRIES])


def searches():
    """Networks with strides on one axis, two and three, shared ones, and limits at 1."""
    chain, x = network({"strides": 2.0, **WINDOWED}, {"strides": 1.5, **PUBLISHED}), (1, 40, 37)
    chain[2] = nn.Identity()
    shared = nn.Sequential(
        DiffStride(1.5, shared_stride=True), nn.Conv2d(1, 4, 3, padding=1),
        DiffStride(1.0), nn.Conv2d(4, 4, 3, padding=1),
        DiffStride(2.0, lower_limit_stride=1.7), nn.Conv2d(4, 8, 3, padding=1),
    )  # fmt: skip
    video = nn.Sequential(
        DiffStride((2.0, 1.5, 1.0)), nn.Conv3d(1, 4, 3, padding=1),
        DiffStride((1.0, 2.5, 2.0)), nn.Conv3d(4, 8, 3, padding=1),
    )  # fmt: skip
    return {"chain": (chain, x), "shared": (shared, x), "video": (video, (1, 8, 20, 22))}


@pytest.mark.parametrize("name", searches())
def test_the_effect_of_one_sample_is_that_on_the_cost_of_the_network(name):
    """Exactly, but where one stride changes two axes, or the order in which axes are pooled."""
    model, size = searches()[name]
    space = CostBudget(model, torch.zeros(1, *size)).space
    generator, compared = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        above, search = random_logs(space, generator, 1.0), SizeSearch(space)
        wanted = {
            name: [low + more for low, more in zip(lows, above[name], strict=True)]
            for name, lows in space.smallest().items()
        }
        start = search._choice(wanted, {})
        assert start is not None
        single = SingleChanges(space, wanted, start)
        for key, by in itertools.product(start.sizes, (-1, 1)):
            change = single.change(key, by)
            choice = search._choice(wanted, start.sizes | {key: start.sizes[key] + by})
            assert (change is None) == (choice is None)
            if change and choice:
                effect = choice.cost - start.cost
                assert change.sizes == {key: choice.sizes[key]}
                assert change.effect == pytest.approx(effect, abs=2e-3 * start.cost)
                assert change.distance == pytest.approx(choice.distance - start.distance)
                compared += effect != 0
    assert compared > 40


def test_effects_that_are_not_exact_are_computed_from_the_network(monkeypatch):
    """As where a layer is called twice. Without that the search finds no sizes here."""
    change = SingleChanges.change

    def wrong(self, key, by):
        found = change(self, key, by)
        return found and found._replace(effect=found.effect / 50)

    monkeypatch.setattr(SingleChanges, "change", wrong)
    monkeypatch.setattr(SizeSearch, "_grow", lambda self, goal, start: start)
    network = resnet18([1, 1, 2, 2, 2], width=4, num_output_classes=10, pooling_cls=DiffStride)
    budget = CostBudget(network, torch.zeros(1, 3, 32, 32), fraction=0.9)
    assert 0.99 <= budget.cost.value() / budget.multiply_adds <= 1
    monkeypatch.setattr(SizeSearch, "_exactly", lambda self, wanted, start, option: option)
    budget = CostBudget(network, torch.zeros(1, 3, 32, 32), fraction=0.9)
    assert budget.cost.value() / budget.multiply_adds < 0.99


def test_a_step_computes_the_cost_of_the_network_few_times(monkeypatch):
    """With 18 strides there are 36 changes of one sample, which need no evaluation."""
    layers = [(DiffStride((1.6,) * 3), nn.Conv3d(4 if i else 1, 4, 3, padding=1)) for i in range(6)]
    model = nn.Sequential(*itertools.chain.from_iterable(layers))
    budget = CostBudget(model, torch.zeros(1, 1, 50, 60, 70), fraction=0.8)
    evaluate, calls = budget.cost.evaluate, []
    monkeypatch.setattr(budget.cost, "evaluate", lambda *a: (calls.append(1), evaluate(*a))[1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for layer in stride_layers(model).values():
            layer.strides.data += 0.03 * torch.randn(3, generator=generator)
        budget.project_()
    assert len(calls) / 20 < 20


def test_the_projection_of_strides_that_stand_still():
    no = [False, False]
    assert project_step([1.0, 0.0], [1.0, 1.0], no, no) == [0.5, -0.5]
    assert project_step([0.0, 0.0], [1.0, 1.0], [True, False], no) == [0.0, 0.0]


def spaces():
    """Networks with both edges, limits, a shared stride, and maps that can be empty."""
    chain = network({"strides": 2.0, **WINDOWED}, {"strides": 1.5, **PUBLISHED})
    limited = network(
        {"strides": 2.0, "shared_stride": True, **WINDOWED},
        {"strides": 1.5, "lower_limit_stride": 1.3, "upper_limit_stride": 2.5, **WINDOWED},
    )
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.AvgPool2d(2),
        nn.Conv2d(16, 40, 5),
    )  # fmt: skip
    x = torch.zeros(1, 1, 40, 37)
    return {"chain": chain, "limited": limited, "lenet": convert(lenet, x)}, x


def random_logs(space, generator, high):
    return {
        name: [high * torch.rand(1, generator=generator).item() for _ in layer.strides]
        for name, layer in space.layers.items()
    }


@pytest.mark.parametrize("name", ["chain", "limited", "lenet"])
def test_the_factor_that_meets_a_budget_is_the_least(name):
    models, x = spaces()
    cost = MultiplyAdds(models[name], x)
    space, generator = StrideSpace(cost, cost.layers), torch.Generator().manual_seed(0)
    for _ in range(20):
        logs = random_logs(space, generator, 0.7)
        most = space.value(logs) * (0.8 + 0.4 * torch.rand(1, generator=generator).item())

        def path(amount, logs=logs):
            clamped = {}
            for key, values in logs.items():
                each = zip(values, space.limits[key], strict=True)
                clamped[key] = [min(max(v * exp(amount), low), high) for v, (low, high) in each]
            return clamped

        amount = threshold(lambda a, most=most: space.value(path(a)) <= most, -5.0, 5.0)
        if space.value(path(amount)) > most or amount <= -5.0:
            continue
        found = scale_to_budget(logs, space, inf, most)
        slow = space.runnable(path(amount)).logs
        assert space.value(found) == space.value(slow) <= most
        # Both stop a little behind the change of a size, by 6e-7 of a logarithm or of the amount.
        for key, values in found.items():
            assert values == pytest.approx(slow[key], abs=2e-5)


def test_the_least_sizes_lead_to_the_strides_that_a_search_finds():
    models, x = spaces()
    cost = MultiplyAdds(models["lenet"], x)
    space, generator = StrideSpace(cost, cost.layers), torch.Generator().manual_seed(0)
    differ = 0
    for _ in range(20):
        logs = random_logs(space, generator, 1.6)
        found, slow = space.runnable(logs).logs, space._largest_runnable(logs)
        for key, values in slow.items():
            assert found[key] == pytest.approx(values, abs=1e-6)
        differ += found != logs
    assert differ > 5


@pytest.mark.parametrize("name", ["chain", "limited", "lenet"])
@pytest.mark.parametrize(
    "far", [0.05, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.003, 0.5))]
)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 1000))
def test_a_budget_is_never_exceeded(name, far, seed):
    models, x = spaces()
    model = models[name].eval()
    budget, generator = CostBudget(model, x, 0.8), torch.Generator().manual_seed(seed)
    for _ in range(10):
        for layer in stride_layers(model).values():
            layer.strides.data += far * torch.randn(layer.strides.shape, generator=generator)
        budget.project_()
        assert counted(model, x) == budget.cost.value() <= budget.multiply_adds
    for layer in stride_layers(model).values():
        low, high = layer.lower_limit_stride or 1.0, layer.upper_limit_stride or inf
        assert all(low <= stride <= high for stride in layer.stride_values())


def test_layers_know_the_strides_that_a_budget_writes(monkeypatch):
    models, x = spaces()
    model = models["limited"]
    budget, layers = CostBudget(model, x, 0.8), list(stride_layers(model).values())
    monkeypatch.setattr(DiffStride, "_is_on_cpu", lambda self: False)
    for layer in layers:
        layer.strides.data += 0.3
    budget.project_()
    monkeypatch.setattr(DiffStride, "_refresh", None)  # nothing is read from here on
    for layer in layers:
        values = layer.strides.tolist() * (2 if layer.shared_stride else 1)
        assert layer.stride_values() == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("strides", [(1, 2, 4), (1, 1, 8)])
def test_strides_of_one_rise_where_the_others_alone_would_empty_the_maps(strides):
    """The first map alone costs more than the budget: no stride behind it can help."""
    network = resnet18(
        [1, 1, *strides], width=4, num_output_classes=10, pooling_cls=DiffStride, pool_stem=False
    )
    example = torch.zeros(1, 3, 32, 32)
    first, *_ = stride_layers(network).values()
    budget = CostBudget(network, example, fraction=0.3)
    factors = [
        torch.tensor(layer.stride_values()) / start
        for layer, start in zip(stride_layers(network).values(), strides, strict=True)
    ]
    assert min(first.stride_values()) > 1.2
    assert max(factor.max() for factor in factors) < 3
    assert 0.98 <= budget.cost.value() / budget.multiply_adds <= 1


@pytest.mark.parametrize("axes", [2, 1])
def test_a_layer_at_stride_1_is_not_used_to_spend_the_budget(axes):
    """Its own products cost more than the sample saves, and gain nothing."""
    convolution = nn.Conv2d if axes == 2 else nn.Conv1d
    network = nn.Sequential(
        convolution(3, 4, 3, padding=1),
        DiffStride((1.0,) * axes),
        convolution(4, 8, 3, padding=1),
        DiffStride((2.0,) * axes),
        convolution(8, 256, 3, padding=1),
    )
    x = torch.zeros(1, 3, *(20,) * axes)
    for fraction in (0.95, 0.9, 0.8, 0.7):
        network[3].strides.data.fill_(2.0)
        budget = CostBudget(network, x, fraction=fraction)
        assert network[1].strides.tolist() == [1.0] * axes
        assert budget.cost.value() <= budget.multiply_adds


def test_a_stride_at_a_limit_that_float32_rounds_counts_as_at_its_limit():
    limit = 40.1  # as a parameter 40.09999847
    layers = DiffStride(40.1, upper_limit_stride=limit), DiffStride(1.0, upper_limit_stride=limit)
    net = nn.Sequential(layers[0], nn.Conv2d(1, 4, 3, padding=1), layers[1], nn.Conv2d(4, 1, 1))
    budget = CostBudget(net, torch.zeros(1, 1, 256, 256), fraction=1.0)
    high, low = {("0", 0), ("0", 1)}, {("2", 0), ("2", 1)}
    assert (budget.space.at_lowest(budget.in_use), budget.space.at_highest(budget.in_use)) == (
        low,
        high,
    )


def test_strides_of_a_signal_follow_its_budget_without_a_jump():
    """Its cost once fell where a map became longer than 383 samples."""
    found = []
    for fraction in (0.98, 0.97, 0.92):
        pools = [DiffStride((2.0,), upper_limit_stride=2.2) for _ in range(2)]
        layers = [nn.Conv1d(1, 8, 3, padding=1), pools[0], nn.Conv1d(8, 8, 3, padding=1), pools[1]]
        net = nn.Sequential(*layers, nn.Conv1d(8, 8, 3, padding=1))
        budget = CostBudget(net, torch.zeros(1, 1, 800), fraction=fraction)
        assert 0.98 <= budget.cost.value() / budget.multiply_adds <= 1
        found += [pool.strides.item() for pool in pools]
    assert found == sorted(found)
