"""Strides that move by measured losses."""

import copy
import json
import math
import pickle
import random
import subprocess
import sys
import warnings
from functools import partial
from itertools import count
from random import Random

import numpy as np
import pytest
import torch
from tiny_runs import tiny_network, train_tiny
from torch import nn

from diffstride import CostBudget, DiffStride, MeasuredStrides, convert, stride_layers
from diffstride.cost.map_worth import (
    CHANCE,
    MOST_TIMES_MEASURED,
    Worth,
    able_to_move,
    at_constant_cost,
    few_samples,
    wanted_moves,
    with_prior,
)
from diffstride.cost.rise_measurements import RiseMeasurements
from diffstride.cost.smaller_maps import smaller_maps
from diffstride.resnet import resnet18

pytestmark = pytest.mark.filterwarnings("ignore:no weight of this")  # few tests train

IMAGES = torch.zeros(2, 3, 64, 64)
FIRST, LAST = "1", "3"
BALANCED = 2.2, 1.63  # strides of `chain` at which both maps cost about the same


def chain(strides=(2.0, 2.0)):
    """Two poolings one behind the other, each with a convolution on its map."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        DiffStride(strides[0]),
        nn.Conv2d(8, 16, 3, padding=1),
        DiffStride(strides[1]),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Flatten(),
    )


def output_sizes(budget):
    return {name: [axis.output_size for axis in axes] for name, axes in budget.cost.maps().items()}


def known_loss(budget, weights):
    """A loss that falls with the logarithm of each map size, by a weight for each layer."""

    def loss():
        logs = [
            weight * math.log(size)
            for name, weight in weights.items()
            for size in output_sizes(budget)[name]
        ]
        return torch.tensor(10.0 - sum(logs) + 1e-6 * torch.rand(()).item())

    return loss


def measured_worth(budget, weights):
    """What `known_loss` is worth, measured with each axis a sixteenth smaller."""
    found = smaller_maps(budget.space, budget.in_use)
    return {
        (name, i): weights[name] / (1 + 5 * smaller.step) for (name, i), smaller in found.items()
    }


def learn(budget, loss, steps=48, **options):
    strides = MeasuredStrides(budget, steps, **options)
    for _ in range(steps):
        strides.step(loss)
    return strides


@pytest.mark.parametrize("start", [(1.6, 2.6), (3.2, 1.2)], ids=["last small", "last large"])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_each_map_gets_the_share_of_the_cost_that_it_is_worth(start, share):
    budget = CostBudget(chain(start), IMAGES, multiply_adds=3.1e6)
    weights = {FIRST: share, LAST: 1 - share}
    loss = known_loss(budget, weights)
    learn(budget, lambda: loss() - 10.0, decisions=24)  # without a prior
    saved = smaller_maps(budget.space, budget.in_use)
    own = {name: saved[name, 0].cost + saved[name, 1].cost for name in (FIRST, LAST)}
    worth = measured_worth(budget, weights)
    expected = (worth[FIRST, 0] + worth[FIRST, 1]) / sum(worth.values())
    # Maps rest where no exchange of samples brings a tenth more.
    assert own[FIRST] / sum(own.values()) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("scale", "moves"), [(1.0, True), (0.01, False)])
def test_rises_that_are_small_for_the_loss_do_not_move_strides(scale, moves):
    """As early in a training, when some maps seem to be worth nothing."""
    budget = CostBudget(chain(BALANCED), IMAGES)
    before = output_sizes(budget)
    learn(budget, known_loss(budget, {FIRST: 0.9 * scale, LAST: 0.1 * scale}))
    assert (output_sizes(budget) != before) is moves


def test_rises_that_are_small_for_the_loss_move_strides_far_from_good_ones():
    options = {"num_output_classes": 10, "pool_stem": False, "pooling_cls": DiffStride}
    net = resnet18([1, 1, 4.96, 1.28, 1.1], width=4, order="before", **options)
    budget = CostBudget(net, torch.zeros(1, 3, 32, 32))
    first, *others = [name for name in dict.fromkeys(budget.cost.calls) if name in budget.wanted]
    assert output_sizes(budget)[first] == [7, 7]
    learn(budget, known_loss(budget, {first: 0.01, **dict.fromkeys(others, 1e-5)}))
    assert min(output_sizes(budget)[first]) >= 14


def test_worth_is_the_rise_and_a_share_of_the_loss():
    budget = CostBudget(chain(), IMAGES)
    weights = {FIRST: 0.7, LAST: 0.2}
    loss = known_loss(budget, weights)
    level, total = loss().item(), budget.cost.value()
    measured = measured_worth(budget, weights)
    strides = learn(budget, loss, steps=2, decisions=1)
    mean_cost = sum(each.cost for each in strides.worth.values()) / len(strides.worth)
    for key, worth in strides.worth.items():
        expected = measured[key] + 0.3 * level * mean_cost / total
        assert worth.mean == pytest.approx(expected, rel=1e-3)


def test_at_most_ten_times_the_measured_worth_is_added():
    """So strides far from good ones move although all rises are small for the loss."""
    budget = CostBudget(chain(), IMAGES)
    weights = {FIRST: 1e-3, LAST: 0.0}
    measured = measured_worth(budget, weights)
    strides = learn(budget, known_loss(budget, weights), steps=2, decisions=1)
    mean = sum(measured.values()) / len(measured)
    for key, worth in strides.worth.items():
        assert worth.mean == pytest.approx(measured[key] + MOST_TIMES_MEASURED * mean, rel=0.01)


def state_with_a_measurement():
    strides = MeasuredStrides(CostBudget(chain(), IMAGES), steps=40, decisions=4)
    loss = known_loss(strides.budget, {FIRST: 0.2, LAST: 0.8})
    while not strides.state_dict()["losses"]:
        strides.step(loss)
    return strides.state_dict()


def test_a_state_that_measured_other_maps_starts_measuring_anew():
    state = state_with_a_measurement()
    del state["rises"][FIRST, 0]
    resumed = MeasuredStrides(CostBudget(chain(), IMAGES), steps=40)
    resumed.load_state_dict(state)
    loss = known_loss(resumed.budget, {FIRST: 0.2, LAST: 0.8})
    for _ in range(40):
        resumed.step(loss)
    assert resumed.worth.keys() == {(name, i) for name in (FIRST, LAST) for i in (0, 1)}


def test_in_the_prior_all_maps_of_a_weight_are_worth_the_same():
    """So maps that cost little grow, and all cost the same where nothing tells more."""
    costs = {"a": 1.0, "b": 3.0, "c": 5.0}
    equal = with_prior({(name, 0): Worth(0.3, 1.0, cost) for name, cost in costs.items()}, 0.1)
    assert [each.mean - 0.3 for each in equal.values()] == pytest.approx([0.3] * 3)
    small = with_prior({(name, 0): Worth(1e-9, 0.0, cost) for name, cost in costs.items()}, 0.1)
    moves = wanted_moves(small, [], 1.0)
    assert moves["a", 0] > 0 == moves["b", 0] > moves["c", 0]


def test_the_prior_tells_nothing_of_the_axes_of_a_layer():
    """They cost different amounts where one is pooled first."""
    worth = {("a", 0): Worth(0.0, 0.0, 1.0), ("a", 1): Worth(0.0, 0.0, 3.0)}
    worth["b", 0] = Worth(1.0, 0.0, 4.0)
    added = [each.mean for each in with_prior(worth, 0.1).values()]
    assert added == pytest.approx([0.8 / 3 * 2 / 4, 0.8 / 3 * 2 * 3 / 4, 1 + 0.8 / 3])


def test_maps_that_become_smaller_together_count_together_in_the_prior():
    """Those behind follow a map that becomes smaller than they are."""
    net = nn.Sequential(DiffStride(3.0), nn.Conv2d(3, 8, 3, padding=1))
    net.append(DiffStride(1.0)).append(nn.Conv2d(8, 8, 3, padding=1))
    budget = CostBudget(net, IMAGES)
    smaller = smaller_maps(budget.space, budget.in_use)
    assert output_sizes(budget)["0"] == output_sizes(budget)["2"]
    assert {key: each.weight for key, each in smaller.items()} == pytest.approx(
        {("0", 0): 2.0, ("0", 1): 2.0, ("2", 0): 1.0, ("2", 1): 1.0}
    )
    worth = {("a", 0): Worth(0.0, 0.0, 4.0, weight=2.0), ("b", 0): Worth(1.0, 0.0, 2.0)}
    added = with_prior(worth, 0.1)
    assert added["a", 0].mean == pytest.approx(2 * (added["b", 0].mean - 1.0))


@pytest.mark.parametrize("size", [(64, 20), (40, 101)])
def test_maps_that_become_larger_do_not_count_in_the_prior(size):
    """As behind a shared stride, of which one axis may leave a sample more."""
    net = chain((1.0, 1.0))
    net[1] = DiffStride(1.03 if size[0] == 64 else 3.306, shared_stride=True)
    net[3] = DiffStride(1.067 if size[0] == 64 else 1.845, shared_stride=True)
    budget = CostBudget(net, torch.zeros(1, 3, *size))
    smaller = smaller_maps(budget.space, budget.in_use)
    assert all(each.weight >= 1 - 1e-9 for each in smaller.values())


def test_layers_whose_strides_do_not_learn_do_not_count_in_the_prior():
    weights = []
    for count_ in (0, 2):
        fixed = [DiffStride(1.0, trainable=False) for _ in range(count_)]
        net = nn.Sequential(*chain()[:2], *fixed, *chain()[2:])
        budget = CostBudget(net, IMAGES)
        smaller = smaller_maps(budget.space, budget.in_use)
        weights.append([each.weight for each in smaller.values()])
    assert weights[0] == weights[1] == pytest.approx([1.0] * 4)


def test_a_map_weighs_the_root_of_the_layers_that_run_on_it_in_the_prior():
    """Convolutions of any kernel count once, and what is no product does not."""
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    net.append(nn.Conv2d(8, 8, 1)).append(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    net.append(DiffStride(2.0)).append(nn.Conv2d(8, 8, 3, padding=1))
    net.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(8, 2))
    budget = CostBudget(net, IMAGES)
    assert budget.space.layers_on_maps(budget.in_use) == pytest.approx(
        {("0", 0): 3.0, ("0", 1): 3.0, ("5", 0): 1.0, ("5", 1): 1.0}
    )
    smaller = smaller_maps(budget.space, budget.in_use)
    weights = {key: each.weight for key, each in smaller.items()}
    assert weights["0", 0] == pytest.approx(3**0.5 * weights["5", 0])


def test_products_of_two_maps_run_on_both():
    """As in attention, whose cost has the square of the number of tokens."""

    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2)
            return (tokens.transpose(1, 2) @ tokens).mean()

    budget = CostBudget(nn.Sequential(DiffStride(2.0), Attention()), torch.zeros(1, 3, 16, 16))
    assert budget.space.layers_on_maps(budget.in_use) == pytest.approx(
        {("0", 0): 2.0, ("0", 1): 2.0}
    )


def test_a_map_that_nothing_runs_on_gets_no_prior():
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(3, 8, 3, padding=1), DiffStride(2.0))
    net.append(nn.AdaptiveAvgPool2d(1))
    budget = CostBudget(net, IMAGES)
    assert budget.space.layers_on_maps(budget.in_use)["2", 0] == 0.0
    worth = {("a", 0): Worth(0.5, 0.1, 2.0, weight=0.0), ("b", 0): Worth(0.5, 0.1, 2.0)}
    found = with_prior(worth, 0.1)
    assert found["a", 0] == worth["a", 0]
    assert found["b", 0].mean == pytest.approx(0.5 + 0.4)
    nowhere = {key: each._replace(weight=0.0) for key, each in worth.items()}
    assert with_prior(nowhere, 0.1) == nowhere


def test_maps_that_cannot_grow_are_left_out():
    """Those that are worth more than the price, which falls without them."""
    a, b, c = ("a", 0), ("b", 0), ("c", 0)
    worth = {a: Worth(9.0, 0.0, 1.0), b: Worth(2.0, 0.0, 1.0), c: Worth(1.0, 0.0, 1.0)}
    assert able_to_move(worth, {a}) == {b: worth[b], c: worth[c]}
    assert able_to_move(worth, {a, b}) == {c: worth[c]}
    assert able_to_move(worth, {b, c}) == worth  # both are worth less than the price
    assert able_to_move({}, {a}) == {}


def test_strides_rest_beside_a_map_that_cannot_grow():
    torch.manual_seed(0)
    net = nn.Sequential(DiffStride(1.0), nn.Conv2d(3, 4, 3, padding=1))
    net.append(DiffStride(2.0)).append(nn.Conv2d(4, 32, 3, padding=1))
    net.append(DiffStride(1.2)).append(nn.Conv2d(32, 64, 3, padding=1))
    budget = CostBudget(net, IMAGES)
    strides = MeasuredStrides(budget, steps=160)
    loss = known_loss(budget, {"0": 1e-3, "2": 1e-3, "4": 1e-3})
    seen = [output_sizes(budget)]
    for _ in range(160):
        strides.step(loss)
        seen += [output_sizes(budget)] * (output_sizes(budget) != seen[-1])
    assert len(seen) <= 7
    assert seen[-1]["0"] == [64, 64]
    assert min(seen[-1]["2"]) > 50  # its convolution costs an eighth of that behind it


@pytest.mark.parametrize("limit", [None, 4.0])
def test_a_map_at_its_smallest_size_grows(limit):
    """It cannot be made smaller to see what it is worth."""
    net = chain((1.2, 4.0))
    net[3] = DiffStride(4.0, upper_limit_stride=limit)
    budget = CostBudget(net, IMAGES)
    learn(budget, known_loss(budget, {FIRST: 0.1, LAST: 0.9}))
    assert min(output_sizes(budget)[LAST]) >= 20


def test_without_any_worth_there_is_no_prior():
    worth = {("a", 0): Worth(-0.1, 0.01, 3.0), ("b", 0): Worth(0.0, 0.01, 1.0)}
    assert with_prior(worth, 0.5) == worth


def test_a_smaller_map_saves_what_the_network_costs_less():
    """A sixteenth of the map is left out, and a sample at least."""
    budget = CostBudget(chain((1.9, 2.3)), IMAGES)
    sizes = flat_sizes(budget)
    samples = {(FIRST, 0): 2, (FIRST, 1): 2, (LAST, 0): 1, (LAST, 1): 1}
    assert [sizes[key] for key in samples] == [34, 34, 15, 15]
    for key, smaller in smaller_maps(budget.space, budget.in_use).items():
        strides = {name: [math.exp(at) for at in logs] for name, logs in smaller.logs.items()}
        axes = budget.cost.evaluate(strides)[1]
        found = {(name, i): axis.output_size for name in axes for i, axis in enumerate(axes[name])}
        assert found == {**sizes, key: sizes[key] - samples[key]}
        assert smaller.step == pytest.approx(math.log(sizes[key] / found[key]))
        saved = budget.cost.value() - budget.cost.value(strides)
        assert smaller.cost * smaller.step == pytest.approx(saved)


@pytest.mark.parametrize(("limit", "change"), [(2.003, None), (2.1, 23), (None, 31)])
def test_a_map_near_its_limit_is_measured_if_it_can_become_clearly_smaller(limit, change):
    """What is measured with one sample less of 500 is chance."""
    layers = [DiffStride([2.0], upper_limit_stride=limit), nn.Conv1d(4, 4, 3, padding=1)]
    budget = CostBudget(nn.Sequential(*layers, DiffStride([2.0])), torch.zeros(1, 4, 1000))
    smaller = smaller_maps(budget.space, budget.in_use).get(("0", 0))
    assert (smaller and round(500 - 500 / math.exp(smaller.step))) == change


def test_half_a_sixteenth_less_is_measured_where_a_map_would_be_empty():
    net = [nn.Conv1d(1, 1, 1), DiffStride([2.0]), nn.Conv1d(1, 1, 480)]
    budget = CostBudget(nn.Sequential(*net), torch.zeros(1, 1, 1000))
    (smaller,) = smaller_maps(budget.space, budget.in_use).values()
    assert smaller.step == pytest.approx(math.log(500 / 484))


def test_measurements_by_another_change_of_the_size_do_not_count():
    state = state_with_a_measurement()
    for each, kept in ((state, 1), (state | {"steps": {}}, 0)):
        resumed = MeasuredStrides(CostBudget(chain(), IMAGES), steps=40)
        resumed.load_state_dict(each)
        assert len(resumed.state_dict()["losses"]) == kept


def before_a_linear_layer():
    blocks = [[nn.Conv2d(c, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for c in (3, 8, 8)]
    layers = [module for block in blocks for module in block]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    return convert(network, torch.rand(2, 3, 32, 32))  # the last pooling keeps its output size


def before_a_fixed_stride():
    pools = [DiffStride(2.0), DiffStride(1.6), DiffStride(1.5, trainable=False)]
    return nn.Sequential(*pools, nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("build", [before_a_linear_layer, before_a_fixed_stride])
def test_strides_in_front_of_what_is_fixed_move(build):
    network, images = build(), torch.rand(2, 3, 32, 32)
    strides = MeasuredStrides(CostBudget(network, images), steps=2, decisions=1)
    for _ in range(2):
        strides.step(lambda: network(torch.rand_like(images)).square().mean())
    assert len(strides.worth) == 4
    assert strides.budget.cost.value() <= strides.budget.multiply_adds


def test_maps_that_shrink_along_count_with_what_they_save():
    """A map behind of the same size cannot stay where the one before loses a sample."""
    budget = CostBudget(chain((4.0, 1.0)), IMAGES)
    found = smaller_maps(budget.space, budget.in_use)
    both, last = found[FIRST, 0], found[LAST, 0]
    alone = 9 * 8 * 16 * 16 * 16  # convolution of the first map
    behind = 9 * 16 * 32 * 16 * 16
    assert last.cost * last.step == pytest.approx(behind / 16)  # what starts to pool is left out
    assert both.cost * both.step > (alone + behind) / 16


def test_a_negative_loss_counts_as_none():
    budget = CostBudget(chain(), IMAGES)
    weights = {FIRST: 0.7, LAST: 0.2}
    loss, measured = known_loss(budget, weights), measured_worth(budget, weights)
    strides = learn(budget, lambda: loss() - 100, steps=2, decisions=1)
    assert strides.worth[FIRST, 0].mean == pytest.approx(measured[FIRST, 0], rel=1e-3)


def test_the_budget_is_kept_and_used_up_after_each_step():
    budget = CostBudget(chain((1.6, 2.6)), IMAGES, multiply_adds=3.1e6)
    strides = MeasuredStrides(budget, 24)
    sizes = []
    for _ in range(24):
        strides.step(known_loss(budget, {FIRST: 0.1, LAST: 0.9}))
        assert 0.85 * budget.multiply_adds <= budget.cost.value() <= budget.multiply_adds
        sizes.append(str(output_sizes(budget)))
    assert len(set(sizes)) > 3
    assert budget.cost.value() >= 0.95 * budget.multiply_adds


def test_axes_learn_apart():
    budget = CostBudget(chain(), IMAGES)

    def loss():
        height, width = output_sizes(budget)[LAST]
        return torch.tensor(-0.9 * math.log(height) - 0.1 * math.log(width))

    learn(budget, loss)
    height, width = output_sizes(budget)[LAST]
    assert height > 1.2 * width


def test_a_shared_stride_stays_one():
    net = nn.Sequential(DiffStride(2.0, shared_stride=True), nn.Conv2d(3, 8, 3, padding=1))
    net.append(DiffStride(2.0)).append(nn.Conv2d(8, 16, 3, padding=1))
    budget = CostBudget(net, IMAGES)
    learn(budget, known_loss(budget, {"0": 0.9, "2": 0.1}))
    assert len(set(output_sizes(budget)["0"])) == 1
    assert output_sizes(budget)["0"][0] > 32


@pytest.mark.parametrize(("noise", "most"), [(0.03, 0.1), (0.3, 0.6)])
def test_noise_alone_hardly_moves_a_map(noise, most):
    budget = CostBudget(chain(BALANCED), IMAGES)
    before = output_sizes(budget)
    generator = torch.Generator().manual_seed(0)
    worth = known_loss(budget, {FIRST: 0.58, LAST: 0.42})  # as the cost is shared
    learn(budget, lambda: worth() + noise * torch.randn((), generator=generator), steps=240)
    for name, sizes in output_sizes(budget).items():
        assert math.prod(sizes) == pytest.approx(math.prod(before[name]), rel=most)


def stride_values(net):
    return [layer.stride_values() for layer in stride_layers(net).values()]


def train_a_step(net, optimizer):
    optimizer.zero_grad()
    net(torch.rand(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("gradient_before", [False, True])
def test_optimisers_do_not_move_the_strides(gradient_before):
    net = chain()
    budget = CostBudget(net, torch.zeros(1, 3, 16, 16))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    if gradient_before:
        net(torch.rand(2, 3, 16, 16)).square().mean().backward()
    MeasuredStrides(budget, 1000)
    before = stride_values(net)
    for _ in range(3):
        train_a_step(net, optimizer)
        assert stride_values(net) == before
    assert all(layer.strides.grad is None for layer in stride_layers(net).values())


@pytest.mark.parametrize("again", [CostBudget.attach, lambda budget, _: CostBudget(*budget.args)])
def test_strides_learn_by_gradients_again(again):
    net = chain()
    x = torch.zeros(1, 3, 16, 16)
    budget = CostBudget(net, x)
    budget.args = net, x
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    MeasuredStrides(budget, 1000)
    again(budget, optimizer)
    train_a_step(net, optimizer)
    assert all(layer.strides.grad is not None for layer in stride_layers(net).values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_strides_of_a_copy_learn_by_gradients(copied):
    net = chain()
    MeasuredStrides(CostBudget(net, IMAGES), steps=10)
    other = copied(net)
    for each in (net, other):
        each(torch.rand_like(IMAGES)).square().mean().backward()
    assert net[1].strides.grad is None
    assert other[1].strides.grad is not None


def test_step_undoes_what_an_optimiser_did_to_the_strides():
    """As in several processes, or after another budget has their gradients computed."""
    net = chain()
    strides, before = MeasuredStrides(budget := CostBudget(net, IMAGES), 1000), stride_values(net)
    budget.held.compute_gradients(True)
    net[1].strides.data += 0.5
    strides.step(lambda: torch.zeros(()))
    assert stride_values(net) == before


@pytest.mark.parametrize("steps", [1, 12])
def test_strides_that_are_loaded_stay_and_meet_the_budget(steps):
    loaded = chain((4.0, 1.2)).state_dict()
    net = chain()
    budget = CostBudget(net, IMAGES)
    strides = MeasuredStrides(budget, steps=24, decisions=2)
    loss = known_loss(budget, {FIRST: 0.5, LAST: 0.5})
    for _ in range(steps - 1):
        strides.step(loss)
    net.load_state_dict(loaded)
    strides.step(loss)
    first, last = (values[0] for values in stride_values(net))
    assert first > 2.3
    assert last < 1.5
    assert 0.99 * budget.multiply_adds <= budget.cost.value() <= budget.multiply_adds
    for _ in range(24 - steps):
        strides.step(loss)


@pytest.mark.parametrize("limit", [1.3, 2.2])
def test_strides_at_a_limit_that_float32_rounds_do_not_count_as_moved(limit):
    torch.manual_seed(0)
    pools = [DiffStride(limit, lower_limit_stride=limit), DiffStride(2.0)]
    net = nn.Sequential(pools[0], nn.Conv2d(3, 8, 3, padding=1), pools[1], nn.Conv2d(8, 16, 1))
    budget = CostBudget(net, IMAGES)
    strides = MeasuredStrides(budget, steps=12, decisions=2, batches=2)
    images = torch.rand_like(IMAGES)
    for _ in range(12):
        strides.step(lambda: net(images).square().mean())
    assert strides.worth


def test_the_mode_stays_where_a_loss_changes_it():
    budget = CostBudget(chain(), IMAGES)
    loss = known_loss(budget, {FIRST: 0.5, LAST: 0.5})
    MeasuredStrides(budget, steps=8).step(lambda: (budget.model.eval(), loss())[1])
    assert all(module.training for module in budget.model.modules())


def test_losses_are_measured_before_decisions_only():
    """And once at the first step, so that a wrong loss fails there."""
    budget, calls = CostBudget(chain(), IMAGES), []
    strides = MeasuredStrides(budget, steps=40, decisions=2, batches=3)
    for step in range(50):
        strides.step(lambda step=step: calls.append(step) or torch.tensor(1.0 / len(calls)))
    assert calls.pop(0) == 0
    assert sorted(set(calls)) == [11, 12, 13, 37, 38, 39]
    assert [calls.count(step) for step in sorted(set(calls))] == [5] * 6  # as it is, and four axes
    assert len(strides.worth) == 4


def test_decisions_are_close_to_each_other_at_first():
    budget, calls = CostBudget(chain(), IMAGES), []
    strides = MeasuredStrides(budget, steps=4000)
    for step in range(4000):
        strides.step(lambda step=step: calls.append(step) or torch.tensor(1.0 / len(calls)))
    found = sorted(set(calls[1:]))
    due = [a + 1 for a, b in zip(found, [*found[1:], 9999], strict=True) if b != a + 1]
    assert due == [round(4000 * (k / 16) ** 1.5) for k in range(1, 17)]
    assert len(found) == 16 * 10


@pytest.mark.parametrize("noise", [False, True])
def test_measurements_count_until_a_map_changes(noise):
    """Where losses are noise no map changes, and those of four decisions are kept at most."""
    budget = CostBudget(chain((1.6, 2.6)), IMAGES, multiply_adds=3.1e6)
    clear, source = known_loss(budget, {FIRST: 0.1, LAST: 0.9}), Random(0)
    strides, counts = MeasuredStrides(budget, steps=400, decisions=8, batches=3), []
    for _ in range(400):
        before = output_sizes(budget)
        strides.step(lambda: torch.tensor(source.gauss(0, 1)) if noise else clear())
        counts.append(max((len(each) for each in strides._measurements.rises.values()), default=0))
        if output_sizes(budget) != before:
            assert counts[-1] == 0
    assert max(counts) == 12 if noise else max(counts) < 12


def test_measuring_leaves_statistics_and_random_numbers():
    net = nn.Sequential(*chain()[:-1], nn.BatchNorm2d(32), nn.Dropout(0.5))
    budget = CostBudget(net, IMAGES)
    strides, x = MeasuredStrides(budget, steps=2), torch.rand(2, 3, 64, 64)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    seen, depths = [], []

    def loss():
        seen.append(net(x).square().mean())
        depths.append((random.random(), np.random.rand()))
        assert not torch.is_grad_enabled()
        return seen[-1]

    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected, of_others = torch.rand(4), (random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    strides.step(loss)
    assert torch.equal(torch.rand(4), expected)
    assert (random.random(), np.random.rand()) == of_others
    assert len(seen) == 5
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name])
    # The same dropout and the same random depth, so that losses differ by the maps alone.
    assert max(seen) / min(seen) < 1.3
    assert len(set(depths)) == 1


def test_a_loss_that_changes_modes_leaves_modules_as_their_train_makes_them():
    class Merged(nn.Identity):
        """As of RepVGG, which merges its branches in evaluation mode."""

        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    net = nn.Sequential(*chain(), Merged())
    strides = MeasuredStrides(CostBudget(net, IMAGES), steps=2)

    def loss():
        net.eval()
        return net(IMAGES).square().mean()

    strides.step(loss)
    assert net[-1].training
    assert not net[-1].merged


def test_a_loss_that_fails_leaves_the_strides():
    budget = CostBudget(chain(), IMAGES)
    strides, before = MeasuredStrides(budget, steps=2), output_sizes(budget)
    losses = iter([1.0, 1.0, math.nan] * 2)
    less = "measured with axis 1 of '1' smaller, is nan: training has diverged"
    strides.step(lambda: torch.tensor(next(losses)))
    with pytest.raises(ValueError, match=less):
        strides.step(lambda: torch.tensor(next(losses)))
    assert output_sizes(budget) == before


@pytest.mark.parametrize("failing", [1, 7, 15, 16])
def test_training_goes_on_after_a_loss_that_fails(failing):
    budget = CostBudget(chain((1.6, 2.6)), IMAGES, multiply_adds=3.1e6)
    first, calls, failed = output_sizes(budget), [], []
    strides = MeasuredStrides(budget, steps=24, decisions=6, batches=2)

    def loss():
        calls.append(1)
        if len(calls) == failing:
            raise RuntimeError("out of memory")
        return known_loss(budget, {FIRST: 0.2, LAST: 0.8})()

    for step in range(24):
        try:
            strides.step(loss)
        except RuntimeError:
            failed.append(step)
        assert all(len(rises) <= 2 for rises in strides._measurements.rises.values())
    assert len(failed) == 1
    assert output_sizes(budget) != first


def named_in_a_closure(net, head):
    return lambda batch: lambda: head(net(batch)).square().mean()


def named_by_a_function(net, head):
    def value(batch):
        return head(net(batch)).square().mean()

    return lambda batch: partial(value, batch)


def held_by_an_object(net, head):
    class Trainer:
        def __init__(self, batch):
            self.parts, self.batch = [net, head], batch

        def loss(self):
            return self.parts[1](self.parts[0](self.batch)).square().mean()

    return lambda batch: Trainer(batch).loss


@pytest.mark.parametrize("build", [named_in_a_closure, named_by_a_function, held_by_an_object])
def test_measuring_leaves_statistics_of_a_head_behind_the_network(build):
    net, head = nn.Sequential(*chain()[:-1]), nn.BatchNorm2d(32)
    budget = CostBudget(net, IMAGES)
    strides, loss_of = MeasuredStrides(budget, steps=2), build(net, head)
    before = {name: buffer.clone() for name, buffer in head.named_buffers()}
    strides.step(loss_of(torch.rand(2, 3, 64, 64)))
    for name, buffer in head.named_buffers():
        assert torch.equal(buffer, before[name])


def test_buffers_that_nothing_changes_are_not_written_to():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.body = nn.BatchNorm2d(3), chain()
            self.register_buffer("shift", torch.ones(1).expand(3))  # as large as one number
            with torch.inference_mode():
                self.register_buffer("scale", torch.ones(3))

        def forward(self, x):
            shifted = x * self.scale[:, None, None] + self.shift[:, None, None]
            return self.body(self.norm(shifted))

    net = Shifted()
    net(IMAGES)
    strides = MeasuredStrides(CostBudget(net, IMAGES), steps=2, batches=2)
    before = net.norm.running_mean.clone()
    for _ in range(2):
        strides.step(lambda: net(IMAGES).square().mean())
    assert torch.equal(net.norm.running_mean, before)


def test_buffers_that_forward_replaces_are_put_back():
    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count = self.count + 1
            return x

    count = Count()
    net = nn.Sequential(*chain()[:-1], count)
    budget, x = CostBudget(net, IMAGES), torch.rand(2, 3, 64, 64)
    before, buffer = count.count.clone(), count.count
    MeasuredStrides(budget, steps=2).step(lambda: net(x).square().mean())
    assert count.count is buffer
    assert torch.equal(buffer, before)


def flat_sizes(budget):
    return {(name, i): n for name, ns in output_sizes(budget).items() for i, n in enumerate(ns)}


@pytest.mark.parametrize(("start", "share"), [((1.2, 4.0), 0.001), ((4.0, 1.2), 0.999)])
def test_a_decision_does_not_make_maps_much_larger(start, share):
    budget = CostBudget(chain(start), IMAGES)
    strides = MeasuredStrides(budget, steps=24, decisions=12, batches=2)
    loss = known_loss(budget, {FIRST: share, LAST: 1 - share})
    before, moved = flat_sizes(budget), 0
    for _ in range(22):  # the last decision is free
        strides.step(loss)
        after = flat_sizes(budget)
        assert all(n - before[key] <= max(2, before[key] / 4) for key, n in after.items())
        assert budget.cost.value() <= budget.multiply_adds
        moved += after != before
        before = after
    assert moved > 3


@pytest.mark.parametrize("stop", [5, 12, 13, 30])
def test_a_resumed_training_continues_alike(stop, tmp_path):
    def run(first, last, state=None):
        budget = CostBudget(chain((1.6, 2.6)), IMAGES, multiply_adds=3.1e6)
        strides = MeasuredStrides(budget, steps=40, decisions=8)
        if state:
            strides.load_state_dict(torch.load(state))
        loss = known_loss(budget, {FIRST: 0.2, LAST: 0.8})
        for step in range(first, last):
            torch.manual_seed(step)
            strides.step(loss)
        return budget, strides

    _, strides = run(0, stop)
    torch.save(strides.state_dict(), tmp_path / "state.pt")
    resumed, _ = run(stop, 40, tmp_path / "state.pt")
    whole, _ = run(0, 40)
    assert resumed.in_use == whole.in_use
    assert resumed.wanted == whole.wanted


def test_a_map_of_one_sample_grows_and_stays_if_that_is_worth_it():
    for share, least, most in ((0.5, 16, 64), (0.001, 1, 4)):
        budget = CostBudget(chain((1.5, 60.0)), IMAGES)
        assert output_sizes(budget)[LAST] == [1, 1]
        loss = known_loss(budget, {FIRST: 1 - share, LAST: share})
        learn(budget, lambda loss=loss: loss() - 10.0)  # without a prior
        assert all(least <= size <= most for size in output_sizes(budget)[LAST])


def test_worth_the_same_everywhere_does_not_move():
    worth = {(name, 0): Worth(0.1 * cost, 0.0, cost) for name, cost in (("a", 3.0), ("b", 1.0))}
    assert wanted_moves(worth, [], 0.2) == pytest.approx({("a", 0): 0.0, ("b", 0): 0.0})


def test_moves_are_largest_where_the_worth_is_clear():
    a, b, c = (("a", 0), ("b", 0), ("c", 0))
    worth = {a: Worth(8.0, 0.01, 1.0), b: Worth(0.1, 0.01, 1.0), c: Worth(0.1, 3.0, 1.0)}
    moves = wanted_moves(worth, [], 0.2)
    assert 0 < moves[a] <= 0.2
    assert moves[b] == -0.2
    assert moves[c] == 0  # its distance from the price is not clear
    assert wanted_moves({a: Worth(1.0, 0.1, 1.0), b: Worth(1.1, 0.1, 1.0)}, [], 0.2) == {a: 0, b: 0}
    assert wanted_moves(worth, [b], 0.2)[b] == 0
    assert wanted_moves({a: Worth(-1.0, 0.1, 1.0)}, [], 0.2) == {a: 0.0}


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10, 16, 40])
def test_chance_leads_further_with_few_samples(count):
    stats = pytest.importorskip("scipy.stats")
    exact = stats.t.ppf(stats.norm.cdf(CHANCE), count - 1) / CHANCE
    assert few_samples(count) == pytest.approx(exact, rel=0.03)


def test_axes_of_a_layer_move_together_unless_they_clearly_differ():
    a, b = ({"0": (name, 0), "1": (name, 1)} for name in "ab")
    for error, alike in ((0.3, True), (1e-4, False)):
        worth = {
            a["0"]: Worth(2.4, error, 1.0),
            a["1"]: Worth(3.0, error, 1.0),
            b["0"]: Worth(0.3, error, 1.0),
            b["1"]: Worth(0.2, error, 1.0),
        }
        moves = wanted_moves(worth, [], 1.0)
        assert (moves[a["0"]] == moves[a["1"]]) is alike
        assert min(moves[a["0"]], moves[a["1"]]) > 0 > max(moves[b["0"]], moves[b["1"]])
    layer = 5.4 / 2  # a multiply-add is worth so much in layer a, and 5.9 / 4 in all
    together, apart = math.log(layer / (5.9 / 4), 5), math.log(3.0 / layer, 5)
    assert moves[a["1"]] == pytest.approx(together + 0.3 * apart)


def test_a_map_grows_for_its_next_sample_and_shrinks_for_those_of_others():
    a, b = ("a", 0), ("b", 0)

    def moves(value, growth):
        worth = {a: Worth(value, 0.0, 1.0, growth), b: Worth(1.0, 0.0, 1.0, growth)}
        return wanted_moves(worth, [], 1.0)

    assert moves(1.5, 1.0)[a] > 0 > moves(1.5, 1.0)[b]
    assert moves(1.1, 1.0) == {a: 0.0, b: 0.0}  # too little to disturb the weights
    assert moves(1.5, 1.3) == {a: 0.0, b: 0.0}  # the next sample of a costs more than it is worth
    assert moves(3.0, 1.3)[a] > 0 > moves(3.0, 1.3)[b]


def test_the_next_sample_of_a_map_costs_more_and_brings_less():
    net = nn.Sequential(DiffStride(4.0, shared_stride=True), nn.Conv2d(3, 8, 3, padding=1))
    net.append(DiffStride(2.0)).append(nn.Conv2d(8, 8, 3, padding=1))
    budget = CostBudget(net, IMAGES)
    found = smaller_maps(budget.space, budget.in_use)
    assert found["0", 0].growth == pytest.approx((16.5 / 15.5) ** 3)  # both axes
    assert found["2", 1].growth == pytest.approx((8.5 / 7.5) ** 2)
    net = nn.Sequential(DiffStride(2.0, edge="passband"), nn.Conv2d(3, 8, 3, padding=1))
    net.append(DiffStride(2.0, edge="passband")).append(nn.Conv2d(8, 8, 3, padding=1))
    (first, *_) = smaller_maps((budget := CostBudget(net, IMAGES)).space, budget.in_use).values()
    size = output_sizes(budget)["0"][0]
    assert first.growth == pytest.approx(((size + 1) / (size - 1)) ** 2)  # they lose two samples


def test_all_that_are_worth_less_than_the_price_pay_for_those_that_grow():
    a, b, c = (("a", 0), ("b", 0), ("c", 0))
    worth = {a: Worth(1.0, 0.1, 3.0), b: Worth(3.0, 0.1, 1.0), c: Worth(1.0, 0.1, 2.0)}
    moves = at_constant_cost({a: 0.0, b: 0.1, c: -0.02}, worth, [])
    assert 3 * moves[a] + moves[b] + 2 * moves[c] == pytest.approx(0.0, abs=1e-12)
    assert moves[b] == 0.1
    assert moves[a] - moves[c] == pytest.approx(0.02)
    held = at_constant_cost({a: 0.0, b: 0.1, c: 0.0}, worth, [c])
    assert held == pytest.approx({a: -0.1 / 3, b: 0.1, c: 0.0})
    assert at_constant_cost({b: 0.1}, worth, [b]) == {b: 0.1}
    dear = worth | {c: Worth(5.0, 0.1, 2.0)}
    assert at_constant_cost({a: 0.0, b: 0.1, c: 0.0}, dear, []) == held
    freed = at_constant_cost({a: -0.1, b: 0.0}, worth, [b])
    assert 3 * freed[a] + freed[b] == pytest.approx(0.0, abs=1e-12)


def test_a_residual_network_keeps_the_maps_behind_one_that_moves():
    options = {"num_output_classes": 10, "pool_stem": False, "pooling_cls": DiffStride}
    net = resnet18([1, 1, 2, 2, 2], width=4, **options)
    budget = CostBudget(net, torch.zeros(1, 3, 32, 32))
    names = [name for name in dict.fromkeys(budget.cost.calls) if name in budget.wanted]
    before = output_sizes(budget)
    loss = known_loss(budget, dict(zip(names, (0.6, 0.1, 0.3), strict=True)))
    learn(budget, lambda: loss() - 10.0, steps=2)  # without a prior
    after = output_sizes(budget)
    assert after[names[0]] > before[names[0]]
    assert after[names[1]] < before[names[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be the number of training steps in which strides move"),
        ({"steps": math.inf}, "steps must be"),
        ({"steps": 10, "decisions": 0}, "decisions must be a whole number of at least 1"),
        ({"steps": 10, "decisions": 2.0}, "decisions must be a whole number of at least 1"),
        ({"steps": 10, "batches": 1}, "batches must be a whole number of at least 2"),
    ],
)
def test_numbers_that_are_too_small_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeasuredStrides(CostBudget(chain(), IMAGES), **options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.ones(()), "loss must be a function, but got a Tensor"),
        (lambda: None, "must return one number or a tensor with one, but returned None"),
        (lambda: torch.ones(3), r"but returned a tensor of shape \(3,\)"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        MeasuredStrides(CostBudget(chain(), IMAGES), steps=1000).step(loss)


def test_a_loss_that_calls_backward_is_told():
    budget = CostBudget(chain(), IMAGES)

    def loss():
        found = budget.model(IMAGES).square().mean()
        found.backward()
        return found

    with pytest.raises(ValueError, match=r"with backward\(\) perhaps.*call backward\(\) outside"):
        MeasuredStrides(budget, steps=8).step(loss)


def test_a_loss_of_another_network_is_refused():
    net, other, x = chain(), chain(), torch.rand(2, 3, 64, 64)
    budget = CostBudget(net, IMAGES)
    with pytest.raises(ValueError, match="stays the same with any of 4 maps made smaller"):
        learn(budget, lambda: other(x).square().mean(), steps=4)


def test_strides_that_were_fixed_after_the_budget_are_refused():
    budget = CostBudget(chain(), IMAGES)
    strides, loss = MeasuredStrides(budget, steps=2), known_loss(budget, {FIRST: 0.9, LAST: 0.1})
    budget.model[3].strides.requires_grad_(False)
    strides.step(loss)
    with pytest.raises(ValueError, match=r"'3' have requires_grad=False.*before CostBudget"):
        strides.step(loss)


def test_a_loss_of_zero_decides_nothing():
    """As of hinge losses, once all samples are on their side of the margin."""
    budget = CostBudget(chain(), IMAGES)
    before = stride_values(budget.model)
    learn(budget, lambda: torch.zeros(()), steps=8)
    assert stride_values(budget.model) == before


@pytest.mark.parametrize("every", [1, 15])
def test_batches_with_a_loss_that_is_not_finite_are_left_out(every):
    """As in half precision, where a scaler skips the step."""
    budget, number = CostBudget(chain(BALANCED), IMAGES), count()
    loss = known_loss(budget, {FIRST: 0.9, LAST: 0.1})

    def sometimes():
        return loss() if next(number) % every else torch.tensor(math.inf)

    if every == 1:
        with pytest.raises(ValueError, match="training has diverged"):
            learn(budget, sometimes)
    else:
        learn(budget, sometimes)
        assert output_sizes(budget)[FIRST] > [30, 30]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_weights_that_do_not_change_are_told(trained, fused):
    """An optimiser made before `convert` trains the network that is left behind."""
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten())
    net = convert(plain, IMAGES)
    parameters = (net if trained else plain).parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=fused)
    strides = MeasuredStrides(CostBudget(net, IMAGES, "before"), steps=8, decisions=2)
    images = torch.rand_like(IMAGES)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(8):
            net(images).square().mean().backward()
            optimizer.step()
            strides.step(lambda: net(images).square().mean())
    assert ["make the optimizer of its parameters" in str(each.message) for each in found] == [
        True
    ] * (not trained)


def test_the_dictionary_of_a_training_step_is_a_loss():
    moved = []
    for wrap in (lambda loss: loss, lambda loss: {"loss": loss, "log": 1}):
        budget = CostBudget(chain(BALANCED), IMAGES)
        loss = known_loss(budget, {FIRST: 0.9, LAST: 0.1})
        learn(budget, lambda loss=loss, wrap=wrap: wrap(loss()), steps=4)
        moved.append(stride_values(budget.model))
    assert moved[0] == moved[1] != stride_values(chain(BALANCED))


def test_a_single_stride_has_nothing_to_share():
    net = nn.Sequential(DiffStride(2.0, shared_stride=True), nn.Conv2d(3, 8, 3, padding=1))
    with pytest.raises(ValueError, match=r"holds '0' alone, .* needs two strides that learn"):
        MeasuredStrides(CostBudget(net, IMAGES), steps=10)


def test_a_state_of_another_network_is_refused():
    state = MeasuredStrides(CostBudget(chain(), IMAGES), steps=40).state_dict()
    other = CostBudget(nn.Sequential(nn.Identity(), chain()), IMAGES)
    with pytest.raises(ValueError, match=r"with the strides \{'1': 2, '3': 2\}, by layer, but"):
        MeasuredStrides(other, steps=40).load_state_dict(state)


def test_states_of_budget_and_strides_are_told_apart():
    budget = CostBudget(chain(), IMAGES)
    strides = MeasuredStrides(budget, steps=40)
    with pytest.raises(ValueError, match=r"the state has multiply_adds, .* not of MeasuredStrides"):
        strides.load_state_dict(budget.state_dict())
    with pytest.raises(ValueError, match=r"the state has budget, schedule, .* not of a CostBudget"):
        budget.load_state_dict(strides.state_dict())


def test_a_resumed_training_keeps_the_steps_with_which_it_began():
    budget = CostBudget(chain((1.6, 2.6)), IMAGES)
    loss = known_loss(budget, {FIRST: 0.2, LAST: 0.8})
    started = learn(budget, loss, steps=8, decisions=4)
    resumed = MeasuredStrides(CostBudget(chain(), IMAGES), steps=80)
    resumed.load_state_dict(started.state_dict())
    before = stride_values(resumed.budget.model)
    assert before == stride_values(started.budget.model)
    for _ in range(80):
        resumed.step(lambda: pytest.fail("all decisions are made"))
    assert stride_values(resumed.budget.model) == before


def test_measurements_at_other_strides_are_left_out():
    def start():
        return MeasuredStrides(CostBudget(chain((1.6, 2.6)), IMAGES), steps=40, decisions=2)

    noise, first = Random(0), start()
    for _ in range(12):
        first.step(lambda: torch.tensor(noise.gauss(0, 1)))
    state = first.state_dict()
    assert any(state["rises"].values())
    same, other = start(), start()
    same.continue_(state)
    assert same.state_dict()["rises"] == state["rises"]
    other.budget.aim_({FIRST: [0.9, 0.9], LAST: [0.5, 0.5]})
    other.continue_(state)
    assert not any(other.state_dict()["rises"].values())
    for _ in range(28):
        other.step(lambda: torch.tensor(noise.gauss(0, 1)))


def test_a_state_of_another_network_is_not_continued():
    state = MeasuredStrides(CostBudget(chain(), IMAGES), steps=40).state_dict()
    net = nn.Sequential(nn.Identity(), chain())
    with pytest.raises(ValueError, match=r"strides {'1.*': 2, .*this one has .*'1.1': 2"):
        MeasuredStrides(CostBudget(net, IMAGES), steps=40).continue_(state)


def test_numpy_numbers_can_be_saved(tmp_path):
    budget = CostBudget(chain(), IMAGES)
    numbers = {"decisions": np.int64(4), "batches": np.int64(3)}
    strides = MeasuredStrides(budget, np.float64(40), **numbers)
    torch.save(strides.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt")["schedule"] == strides.state_dict()["schedule"]


def test_it_prints_how_far_it_is():
    strides = MeasuredStrides(CostBudget(chain(), IMAGES), steps=8, decisions=2)
    for _ in range(5):
        strides.step(lambda: torch.rand(()) * strides.budget.cost.value())
    assert repr(strides).startswith(
        "MeasuredStrides(step 5 of 8 in which strides move, after 1 of 2 decisions; CostBudget("
    )
    for _ in range(5):
        strides.step(lambda: torch.rand(()) * strides.budget.cost.value())
    assert repr(strides).startswith(
        "MeasuredStrides(step 10, strides stay since step 8, after all 2 decisions; CostBudget("
    )


def test_a_network_in_place_of_its_budget_is_refused():
    with pytest.raises(TypeError, match="needs a CostBudget, but got a Sequential"):
        MeasuredStrides(chain(), steps=10)


@pytest.mark.parametrize("edge", ["passband", "stopband"])
@pytest.mark.parametrize("size", [(64,), (16, 16), (6, 6, 6)], ids=["1-D", "2-D", "3-D"])
def test_any_number_of_axes_and_both_edges(size, edge):
    axes = len(size)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    net = nn.Sequential(convolution(1, 4, 3, padding=1))
    for _ in range(2):
        net.append(DiffStride((1.5,) * axes, edge=edge)).append(convolution(4, 4, 3, padding=1))
    x = torch.rand(2, 1, *size)
    budget = CostBudget(net, x)
    learn(budget, lambda: net(x).square().mean(), steps=12)
    assert budget.cost.value() <= budget.multiply_adds


def test_a_budget_that_moves_strides_by_gradients_is_refused():
    net = chain()
    budget = CostBudget(net, IMAGES)
    hooks = budget.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"attached to an optimizer.*call remove\(\)"):
        MeasuredStrides(budget, steps=10)
    hooks.remove()
    strides = MeasuredStrides(budget, steps=10)
    budget.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="attached to an optimizer"):
        strides.step(lambda: torch.zeros(()))


def strided(**options):
    model = partial(tiny_network, pooling_cls=DiffStride, strides=(2, 3))
    return train_tiny(**{"model": model, "budget": 0.9, **options})


def test_a_training_moves_its_strides_by_measured_losses(tmp_path):
    summary = strided(workdir=tmp_path / "whole")
    assert summary["multiply_adds_end"] <= summary["budget"]
    assert summary["strides"] != summary["strides_start"]
    with pytest.raises(ValueError, match="differs in stride_rule"):
        strided(workdir=tmp_path / "whole", stride_rule="gradient")
    assert strided(workdir=tmp_path / "whole", stride_rule="measured") == summary


@pytest.mark.parametrize(
    "options",
    [
        {"stride_phase": (0.0, 0.9)},
        pytest.param({"stride_penalty": 1e-6}, marks=pytest.mark.slow),
        pytest.param({"budget": None}, marks=pytest.mark.slow),
    ],
)
def test_options_for_gradients_choose_their_rule(tmp_path, options):
    options |= {"stride_learning_rate": 0.1}
    summary = strided(workdir=tmp_path, **options)
    assert strided(workdir=tmp_path, stride_rule="gradient", **options) == summary


MEASURED = {"stride_rule": "measured", "budget": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_rule": "measured"}, "shares out a budget, but there is none"),
        ({"stride_rule": "loss", "budget": 0.5}, "stride_rule"),
        ({**MEASURED, "stride_phase": (0.0, 0.5)}, "stride_phase=.* learn by their gradients, but"),
        ({**MEASURED, "stride_penalty": 0.1}, "stride_penalty=0.1 is for strides that learn by"),
    ],
)
def test_a_training_refuses_rules_it_cannot_follow(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_tiny(tmp_path, **options)


PROCESSES = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from diffstride import CostBudget, DiffStride, MeasuredStrides
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 8, 3, padding=1), DiffStride(2.0))
net.append(nn.Conv2d(8, 8, 3, padding=1))
budget = CostBudget(net, torch.zeros(1, 1, 40, 40))
strides = MeasuredStrides(budget, steps=8, decisions=4, batches=2)
for step in range(8):
    torch.manual_seed(2 * step + rank)  # other batches in each process
    batch = torch.randn(4, 1, 40, 40)
    strides.step(lambda: -net(batch).square().mean())
    if step == 1:  # a checkpoint of one process has none of what the others measured
        state = strides.state_dict()
        again = MeasuredStrides(CostBudget(net, torch.zeros(1, 1, 40, 40)), 8, 4, 2)
        again.load_state_dict(state)
        assert any(state["rises"].values()) and not any(again.state_dict()["rises"].values())
print([layer.strides.tolist() for layer in (net[0], net[2])], flush=True)
dist.barrier()
os._exit(0)  # threads of the process group may abort an interpreter that shuts down
"""


def test_all_processes_move_alike(tmp_path):
    command = [sys.executable, "-c", PROCESSES]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed, errors = zip(*(each.communicate(timeout=120) for each in ranks), strict=True)
    assert [each.returncode for each in ranks] == [0, 0], errors
    first, second = (each.splitlines()[-1] for each in printed)  # gloo may print before
    assert first == second
    assert json.loads(first) != [[2.0, 2.0], [2.0, 2.0]]


def test_batches_are_measured_with_other_random_numbers_each():
    """Where nothing else draws any, dropout would leave out the same for all."""
    net, x = nn.Sequential(DiffStride(2.0), nn.Conv2d(3, 4, 3)), torch.rand(2, 3, 16, 16)
    measurements = RiseMeasurements(CostBudget(net, x), batches=3, remembered=3)
    drawn = []

    def loss():
        drawn.append(float(torch.rand(())))
        return net(x).square().mean()

    measurements.prepare()
    for _ in range(3):
        measurements.measure(loss)
    assert len(set(drawn)) == 3  # one for each batch, the same for all its maps
    assert len(drawn) > 3
