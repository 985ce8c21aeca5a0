"""A budget that nobody holds warns, as strides do that nobody moves, and no other does."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from diffstride import CostBudget, DiffStride, MeasuredStrides

X = torch.rand(2, 1, 32, 32)


def network():
    torch.manual_seed(0)
    return nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 4, 3, padding=1), DiffStride(1.5))


def train(net, rate=0.01, steps=4, after=lambda: None):
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
        after()


def test_strides_that_move_under_a_budget_that_nobody_holds_warn_once():
    net = network()
    budget = CostBudget(net, X, 0.9)
    message = r"nothing holds their budget of [\d,]+ multiply-adds: .*Call attach\(optimizer\)"
    with pytest.warns(UserWarning, match=message) as found:
        train(net, steps=8)
    assert len(found) == 1
    assert budget.cost.value() != pytest.approx(budget.multiply_adds, rel=1e-3)


def test_budgets_that_are_held_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = network()
        train(net, after=CostBudget(net, X, 0.9).project_)
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        CostBudget(net, X, 0.9).attach(optimizer)
        for _ in range(4):
            net(X).square().mean().backward()
            optimizer.step()
        net = network()
        strides = MeasuredStrides(CostBudget(net, X, 0.9), steps=10_000)
        train(net, after=lambda: strides.step(lambda: torch.zeros(())))


def test_a_budget_whose_place_another_took_does_not_warn():
    net = network()
    budget = CostBudget(net, X, 0.9)
    budget = CostBudget(net, X, 0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, after=budget.project_)


def test_strides_that_stay_or_are_loaded_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = network()
        CostBudget(net, X, 0.9)
        train(net, rate=0.0)
        other = network()
        other[0].strides.data.fill_(3.0)
        net.load_state_dict(other.state_dict())
        train(net, rate=0.0)


def test_measured_strides_without_a_step_warn_once():
    net = network()
    strides = MeasuredStrides(CostBudget(net, X, 0.9), steps=10_000)
    message = r"nothing moves its strides: call step\(loss\) of MeasuredStrides"
    with pytest.warns(UserWarning, match=message) as found:
        train(net, steps=300)
    assert len(found) == 1
    assert copy.deepcopy(strides).budget.cost.value() == strides.budget.cost.value()


def test_measured_strides_with_a_step_among_many_batches_do_not_warn():
    net = network()
    strides = MeasuredStrides(CostBudget(net, X, 0.9), steps=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, steps=64)
        strides.step(lambda: net(X).square().mean())
        train(net, steps=200)


def test_a_copy_of_an_attached_budget_is_held_by_nobody_and_warns():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    budget = CostBudget(net, X, 0.9)
    budget.attach(optimizer)
    copied_net, _, copied = copy.deepcopy((net, optimizer, budget))
    assert budget.is_attached
    assert not copied.is_attached
    assert pickle.loads(pickle.dumps(copied)).state_dict() == copied.state_dict()
    with pytest.warns(UserWarning, match="nothing holds their budget"):
        train(copied_net, steps=8)


def test_a_watched_network_is_copied_and_saved(tmp_path):
    net = network()
    CostBudget(net, X, 0.9)
    torch.save(net, tmp_path / "net.pt")
    for same in (copy.deepcopy(net), torch.load(tmp_path / "net.pt", weights_only=False)):
        assert torch.equal(same[0].strides, net[0].strides)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(same)  # the budget is that of another network


def test_only_the_first_backward_passes_are_watched():
    net = network()
    CostBudget(net, X, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, rate=0.0, steps=20)
        train(net)
