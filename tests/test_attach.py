"""Budgets in words, and hooks that call them at the steps of an optimiser."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from networks import IMAGE
from torch import nn

import diffstride
from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, stride_layers

X = torch.rand(IMAGE, generator=torch.Generator().manual_seed(0))


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


def limited():
    """A network with strides near their lower limit of 1, to which `pull` leads them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride((1.01, 1.6)), nn.Conv2d(4, 4, 3))


def pull(model, factor=1.0):
    (factor * (model(X).square().mean() + model[1].strides.sum())).backward()


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_attached_strides_are_those_projected_by_hand(kind):
    models = [limited() for _ in range(3)]
    optimisers = [OPTIMISERS[kind](model.parameters()) for model in models]
    diffstride.attach(models[0], optimisers[0])
    least = 2.0
    for _ in range(3):
        for model, optimiser in zip(models, optimisers, strict=True):
            optimiser.zero_grad()
            pull(model)
            optimiser.step()
        diffstride.project_strides(models[1])
        attached, by_hand, free = (model[1].strides for model in models)
        assert attached.equal(by_hand)
        assert attached.min() >= 1
        least = min(least, free.min().item())
    assert least < 1


class Case(NamedTuple):
    """A way to attach, with what it does by hand before and after a step."""

    build: Callable[[], nn.Module]
    backward: Callable[..., None]
    attach: Callable[..., Any]
    by_hand: Callable[[nn.Module], tuple[Callable[[], Any], Callable[[], Any]]]


def budget_by_hand(model):
    budget = CostBudget(model, X, "before")
    return budget.project_gradients_, budget.project_


CASES = {
    "strides": Case(
        limited,
        pull,
        diffstride.attach,
        lambda model: (lambda: None, lambda: diffstride.project_strides(model)),
    ),
    "budget": Case(
        network,
        backward,
        lambda model, optimiser: CostBudget(model, X, "before").attach(optimiser),
        budget_by_hand,
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
each_kind = pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)


def pair(case, optimiser):
    """A network with hooks and its optimiser, and one with calls by hand and a step of it."""
    hooked, plain = case.build(), case.build()
    optimisers = optimiser(hooked.parameters()), optimiser(plain.parameters())
    case.attach(hooked, optimisers[0])
    before, after = case.by_hand(plain)

    def step(*arguments):
        before()
        optimisers[1].step(*arguments)
        after()
        optimisers[1].zero_grad()

    return hooked, optimisers[0], plain, step


def assert_same_parameters(one, other, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {}
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, **tolerance)


@each_case
@each_kind
def test_accumulated_gradients_make_the_step_of_their_sum(case, options):
    hooked, optimiser, plain, step = pair(case, lambda p: torch.optim.AdamW(p, lr=0.05, **options))
    start = [each.strides.detach().clone() for each in stride_layers(hooked).values()]
    for number in range(3):
        parameters = [each.detach().clone() for each in hooked.parameters()]
        case.backward(hooked, 0.25)
        case.backward(hooked, 0.75)
        assert all(map(torch.equal, parameters, hooked.parameters())), number
        optimiser.step()
        optimiser.zero_grad()
        case.backward(plain, 0.25)
        case.backward(plain, 0.75)
        step()
    assert_same_parameters(hooked, plain)
    ends = [each.strides for each in stride_layers(hooked).values()]
    assert not all(map(torch.equal, start, ends))


@each_case
@each_kind
@pytest.mark.parametrize("overflow", ["inf", "nan"])
def test_steps_that_a_scaler_skips_change_nothing(case, options, overflow):
    """A fused optimiser is called for a step to skip, with hooks, and skips it itself."""
    hooked, optimiser, plain, step = pair(case, lambda p: torch.optim.AdamW(p, lr=0.05, **options))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for skipped in (False, True, False):
        before = [each.detach().clone() for each in hooked.parameters()]
        # `backward` multiplies the loss by a number: the scale that a scaled 1 has.
        case.backward(hooked, scaler.scale(torch.tensor(float(overflow) if skipped else 1.0)))
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        assert all(map(torch.equal, before, hooked.parameters())) == skipped
        if not skipped:
            case.backward(plain)
            step()
    assert scaler.get_scale() == 2.0**15
    assert_same_parameters(hooked, plain, exactly=False)


@each_case
def test_gradients_that_are_unscaled_and_clipped_before_the_step(case):
    hooked, optimiser, plain, step = pair(case, lambda p: torch.optim.SGD(p, lr=0.5))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        case.backward(hooked, scaler.scale(torch.tensor(1.0)))
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(hooked.parameters(), 0.1)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        case.backward(plain)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        step()
    assert_same_parameters(hooked, plain, exactly=False)


# LBFGS of torch 2.8 makes a number of a loss that has a gradient.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
@each_case
def test_an_optimiser_with_a_closure_is_projected_after_its_step(case):
    hooked, optimiser, plain, step = pair(case, lambda p: torch.optim.LBFGS(p, 0.1, max_iter=2))

    def closure(model):
        model.zero_grad()
        case.backward(model)
        return torch.tensor(1.0)

    for _ in range(2):
        optimiser.step(partial(closure, hooked))
        step(partial(closure, plain))
    assert_same_parameters(hooked, plain)
    if case is CASES["strides"]:
        assert hooked[1].strides.min() == 1
    else:
        budget = CostBudget(hooked, X, "before")
        assert budget.cost.value() <= budget.multiply_adds


def test_some_strides_that_were_fixed_after_the_budget_are_refused_and_all_are_left_alone():
    model = network()
    first, *others = stride_layers(model).values()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CostBudget(model, torch.zeros(IMAGE)).attach(optimizer)
    before = [layer.stride_values() for layer in (first, *others)]
    first.strides.requires_grad_(False)
    backward(model)
    with pytest.raises(ValueError, match=r"requires_grad=False.*before CostBudget"):
        optimizer.step()
    assert [layer.stride_values() for layer in (first, *others)] == before
    for layer in others:
        layer.strides.requires_grad_(False)
    optimizer.zero_grad()
    backward(model)
    optimizer.step()
    assert [layer.stride_values() for layer in (first, *others)] == before


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
    with pytest.raises(
        ValueError, match=r"does not come from diffstride.convert: pass the network that does"
    ):
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


def test_a_budget_of_strides_that_were_fixed_is_copied():
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 8, 3, padding=1))
    budget = CostBudget(net, torch.zeros(1, 1, 32, 32))
    net[0].strides.requires_grad_(False)
    assert copy.deepcopy(budget).multiply_adds == budget.multiply_adds


def test_a_checkpoint_with_a_budget_by_a_numpy_number_is_loaded(tmp_path):
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 16, 3, padding=1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    CostBudget(net, torch.zeros(1, 1, 64, 64), fraction=np.float64(0.9)).attach(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))


def test_the_cost_before_is_for_images_of_one_size():
    with pytest.raises(ValueError, match=r"an example of shape .*: pass one of that size, or mult"):
        CostBudget(network(), torch.zeros(1, X.shape[1], 64, 48), "before")


def test_an_optimiser_keeps_the_states_of_several_budgets():
    def build(fractions):
        models = [network(), network()]  # with layers of the same names
        parameters = [each for model in models for each in model.parameters()]
        optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        budgets = [
            CostBudget(model, X, fraction=each)
            for model, each in zip(models, fractions, strict=True)
        ]
        for budget in budgets:
            budget.attach(optimiser)
        return models, optimiser, budgets

    models, optimiser, budgets = build((0.9, 0.8))
    for model in models:
        backward(model)
    optimiser.step()
    state = copy.deepcopy(optimiser.state_dict())
    _, other, resumed = build((1.0, 1.0))
    other.load_state_dict(state)
    for budget, saved in zip(resumed, budgets, strict=True):
        assert budget.state_dict() == saved.state_dict()
    assert budgets[0].multiply_adds != budgets[1].multiply_adds


def test_a_budget_that_is_attached_again_has_the_state_of_one_attached_once():
    def build(times):
        model = network()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        budget = CostBudget(model, X, fraction=0.9 - 0.1 * times)
        for _ in range(times):
            budget.attach(optimiser).remove()
        budget.attach(optimiser)
        return optimiser, budget

    (optimiser, saved), (other, resumed) = build(2), build(0)
    other.load_state_dict(optimiser.state_dict())
    assert resumed.multiply_adds == saved.multiply_adds


def test_an_attach_that_fails_leaves_gradients_and_warnings_as_they_were():
    model, images = network(), torch.rand_like(X)
    budget = CostBudget(model, X)
    budget.held.compute_gradients(False)
    with pytest.raises(ValueError, match="holds none of the network's strides"):
        budget.attach(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    model(images).square().mean().backward()
    assert all(layer.strides.grad is None for layer in stride_layers(model).values())


def test_a_budget_prints_where_its_cost_is_unknown():
    model = network()
    budget = CostBudget(model, X, fraction=0.9)
    next(iter(stride_layers(model).values())).strides.data.fill_(float("nan"))
    assert repr(budget).startswith(f"CostBudget({budget.multiply_adds:,.0f} multiply-adds; cost")


def test_an_optimiser_around_another_is_refused():
    timm_optim = pytest.importorskip("timm.optim")
    model = network()
    optimiser = timm_optim.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="a Lookahead has no hooks of its own: attach to"):
        CostBudget(model, X, "before").attach(optimiser)


def test_a_state_that_the_optimiser_refuses_leaves_the_budget_as_it_was():
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    budget = CostBudget(model, X, fraction=0.8)
    budget.attach(optimiser)
    before = budget.state_dict()
    state = optimiser.state_dict()
    state["diffstride_budgets"] = {"0": {**before, "multiply_adds": 1e9}}
    state["param_groups"] = []
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimiser.load_state_dict(state)
    assert budget.state_dict() == before


def test_an_optimiser_of_accelerate_is_named():
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True)
    model = network()
    optimiser = accelerate.optimizer.AcceleratedOptimizer(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match=r"inside it \(accelerate.s optimizer\.optimizer\)"):
        diffstride.attach(model, optimiser)
    diffstride.attach(model, optimiser.optimizer)


def test_an_optimizer_of_the_network_before_conversion_is_refused():
    """`convert` returns a copy, so that an optimiser from before trains nothing of it."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 8, 3, padding=1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images = torch.rand(2, 3, 32, 32)
    converted = convert(network, images)
    budget = CostBudget(converted, images)
    for attach_to in (budget.attach, partial(diffstride.attach, converted)):
        with pytest.raises(ValueError, match="holds none of the network's strides: build it from"):
            attach_to(optimizer)
    assert not optimizer._optimizer_step_post_hooks
    ours = torch.optim.SGD(converted.parameters(), lr=0.1)
    budget.attach(ours)
    fixed = nn.Sequential(DiffStride(2.0, trainable=False))
    diffstride.attach(fixed, optimizer)  # nothing learns
