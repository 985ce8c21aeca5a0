"""Budgets in words, and hooks that call them at the steps of an optimiser."""

import copy
import pickle

import pytest
import torch
from networks import IMAGE
from torch import nn

import diffstride
from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, stride_layers

X = torch.rand(IMAGE)


def network():
    """Two strided convolutions, of which the first is ``model[1]``."""
    torch.manual_seed(0)
    channels = [3, 16, 32, 32, 64]
    layers = [
        nn.Sequential(nn.Conv2d(one, two, 3, stride, 1), nn.BatchNorm2d(two), nn.ReLU())
        for one, two, stride in zip(channels, channels[1:], (1, 2, 2, 1), strict=False)
    ]
    return convert(nn.Sequential(*layers), X)


def backward(model, factor=1.0):
    (factor * model(X).square().mean()).backward()


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_an_attached_budget_is_one_called_by_hand(kind):
    models = network(), network()
    budgets = [CostBudget(model, X, "before") for model in models]
    optimisers = [OPTIMISERS[kind](model.parameters()) for model in models]
    budgets[0].attach(optimisers[0])
    for _ in range(4):
        for model, optimiser in zip(models, optimisers, strict=True):
            optimiser.zero_grad()
            backward(model)
        optimisers[0].step()
        budgets[1].project_gradients_()
        optimisers[1].step()
        budgets[1].project_()
    strides = [model[1][0].pooling.strides for model in models]
    assert strides[0].equal(strides[1])
    assert budgets[0].cost.value() <= budgets[0].multiply_adds


def test_accumulated_gradients_do_not_project():
    model = network()
    budget = CostBudget(model, X, "before")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    budget.attach(optimiser)
    calls = []
    budget.project_ = lambda: calls.append(1)
    backward(model)
    backward(model)
    assert not calls


def test_steps_that_a_scaler_skips_change_nothing():
    model = network()
    budget = CostBudget(model, X, "before")
    for fused in (False, True):
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        budget.attach(optimiser)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        before = model[1][0].pooling.strides.detach().clone()
        scaler.scale(model(X).square().mean() * float("inf")).backward()
        scaler.step(optimiser)
        scaler.update()
        assert model[1][0].pooling.strides.equal(before)
        optimiser.zero_grad()
        scaler.scale(model(X).square().mean()).backward()
        scaler.step(optimiser)
        assert not model[1][0].pooling.strides.equal(before)
        assert budget.cost.value() <= budget.multiply_adds
        optimiser.zero_grad()


# LBFGS of torch 2.8 makes a number of a loss that has a gradient.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_an_optimiser_with_a_closure():
    model = network()
    budget = CostBudget(model, X, "before")
    optimiser = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    budget.attach(optimiser)

    def closure():
        optimiser.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert budget.cost.value() <= budget.multiply_adds


def test_hooks_can_be_removed():
    pool = DiffStride(2.0)
    optimiser = torch.optim.SGD(pool.parameters(), lr=1.0)
    hooks = diffstride.attach(pool, optimiser)
    pool.strides.grad = torch.tensor([2.0, 0.0])
    optimiser.step()
    assert pool.strides.tolist() == [1.0, 2.0]
    hooks.remove()
    optimiser.step()
    assert pool.strides.tolist() == [-1.0, 2.0]


def test_attach_needs_an_optimiser():
    with pytest.raises(TypeError, match=r"attach needs a torch.optim.Optimizer, but got a Linear"):
        diffstride.attach(DiffStride(2.0), nn.Linear(1, 1))


def test_budgets_in_words():
    model = network()
    now, before = MultiplyAdds(model, X).value(), model.conversion.multiply_adds[""]
    assert CostBudget(model, X).multiply_adds == now
    assert CostBudget(network(), X, "before").multiply_adds == before
    assert CostBudget(network(), X, fraction=0.9).multiply_adds == 0.9 * now
    assert CostBudget(network(), X, multiply_adds=0.9 * now).multiply_adds == 0.9 * now
    tiny = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 1, 1))
    example = torch.zeros(1, 1, 4, 4)
    assert CostBudget(tiny, example, multiply_adds=60).multiply_adds == 60  # a number below 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.5, "fraction": 0.5}, "give one of budget and fraction, not both"),
        ({"budget": "after"}, "budget must be a positive number or 'before', but got 'after'"),
        ({"fraction": -1}, "fraction must be a positive number, but got -1"),
        ({"multiply_adds": "35M"}, "multiply_adds must be a positive number, but got '35M'"),
    ],
)
def test_wrong_budgets(arguments, message):
    with pytest.raises(ValueError, match=message):
        CostBudget(network(), X, **arguments)


def test_the_cost_before_needs_a_converted_network():
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(3, 8, 1))
    with pytest.raises(ValueError, match=r"does not come from diffstride.convert: pass fraction="):
        CostBudget(net, X, "before")


def test_a_budget_tells_what_it_holds():
    text = repr(CostBudget(network(), X, "before"))
    assert text.startswith("CostBudget(")
    assert "multiply-adds, 9" in text or "multiply-adds, 100.0%" in text
    assert all(name in text for name in stride_layers(network()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_budgets_are_copied_with_their_network(copied):
    model = network()
    budget = CostBudget(model, X, fraction=0.9)
    other, again = copied((model, budget))
    for each, held in ((model, budget), (other, again)):
        each[1][0].pooling.strides.data.copy_(torch.tensor([1.5, 1.9]))
        held.project_()
    assert other[1][0].pooling.strides.equal(model[1][0].pooling.strides)
    assert again.multiply_adds == budget.multiply_adds
    assert again.cost.value() == budget.cost.value()
