"""Networks without padding, in which strides can be so large that no sample is left of a map."""

import copy

import pytest
import torch
from conftest import PUBLISHED
from networks import counted
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, stride_layers
from diffstride.graph.minimum_sizes import VanishedError


def lenet(size=32):
    """Its last convolution takes maps of 5 x 5 at the least."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 120, 5),
        nn.AdaptiveAvgPool2d(1),
    )
    x = torch.zeros(1, 1, size, size)
    return convert(net, x), x


def sound():
    """Several convolutions and poolings of a waveform."""
    net = nn.Sequential(
        nn.Conv1d(1, 8, 80, 16),
        nn.MaxPool1d(4),
        nn.Conv1d(8, 8, 3),
        nn.MaxPool1d(4),
        nn.Conv1d(8, 16, 3),
        nn.MaxPool1d(4),
        nn.AdaptiveAvgPool1d(1),
    )
    x = torch.zeros(1, 1, 16000)
    return convert(net, x), x


BEHIND = {
    "convolution": nn.Conv2d(1, 2, 7),
    "dilated": nn.Conv2d(1, 2, 3, dilation=3, padding=1),
    "strided": nn.Conv2d(1, 2, 5, 3),
    "pooling": nn.MaxPool2d(6, 1),
    "halving": nn.AvgPool2d(2),
    "reflecting": nn.Conv2d(1, 2, 5, padding=2, padding_mode="reflect"),
    "reflected": nn.Sequential(nn.ReflectionPad2d((3, 1, 0, 2)), nn.Conv2d(1, 2, 1)),
    "circular": nn.Conv2d(1, 2, 7, padding=3, padding_mode="circular"),
}


@pytest.mark.parametrize("name", BEHIND)
def test_strides_run_the_network_or_are_refused(name):
    net = nn.Sequential(DiffStride(2.0, edge="stopband"), BEHIND[name], nn.Conv2d(2, 2, 1))
    if name in ("pooling", "halving"):
        net[2] = nn.Conv2d(1, 2, 1)
    x, refused = torch.zeros(1, 1, 40, 36), 0
    cost = MultiplyAdds(net, x)
    assert cost.may_vanish
    for stride in range(2, 40):
        net[0].strides.data.fill_(stride)
        try:
            net(x)
        except RuntimeError:
            refused += 1
            for ask in (cost, cost.value, cost.maps, cost.by_module):
                with pytest.raises(VanishedError, match=r"behind .* would have (0|-\d+) samples"):
                    ask()
        else:
            assert cost.value() == counted(net, x) == pytest.approx(cost().item())
    assert 0 < refused < 38


def test_maps_that_vanish_before_they_are_pooled_are_named():
    first = DiffStride(2.0, edge="stopband")
    net = nn.Sequential(first, nn.Conv2d(1, 1, 7), DiffStride(1.5), nn.Conv2d(1, 1, 1))
    cost = MultiplyAdds(net, torch.zeros(1, 1, 32, 32))
    with pytest.raises(VanishedError, match=r"the map that '2' pools would have \S+ samples"):
        cost.value({"0": (30.0, 30.0)})


def test_padded_networks_lose_no_map():
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, padding=1))
    assert not MultiplyAdds(net, torch.zeros(1, 1, 32, 32)).may_vanish


@pytest.mark.parametrize("fraction", [1.5, 0.9, 0.8, 0.7, 0.6])
def test_budgets_are_met_where_a_network_can(fraction):
    """From 0.8 on strides that are scaled alike would leave nothing to the last convolution."""
    net, x = lenet()
    budget = CostBudget(net, x, fraction)
    assert 0.96 <= budget.cost.value() / budget.multiply_adds <= 1
    net(x)


def test_budgets_are_found_although_the_way_there_leads_past_what_runs():
    for fraction in (1.3, 0.9):
        net, x = sound()
        budget = CostBudget(net, x, fraction)
        assert 0.99 <= budget.cost.value() / budget.multiply_adds <= 1
        net(x)


def test_a_budget_below_all_that_run_is_refused_with_the_least_there_is():
    net, x = lenet()
    with pytest.raises(ValueError, match=r"at which no map is empty the network .*") as refusal:
        CostBudget(net, x, 0.4)
    least = int(str(refusal.value).split()[-1].replace(",", ""))
    budget = CostBudget(lenet()[0], x, least)
    assert 0.99 * least <= budget.cost.value() <= least


def test_a_network_runs_wherever_steps_lead():
    net, x = lenet(40)
    budget = CostBudget(net, x, 0.7)
    generator, costs, smallest = torch.Generator().manual_seed(0), [], []
    for _ in range(40):
        for layer in stride_layers(net).values():
            layer.strides.data += 0.2 * torch.randn(2, generator=generator)
        budget.project_()
        net(x)
        costs.append(budget.cost.value() / budget.multiply_adds)
        smallest.append(min(axis.output_size for axis in budget.cost.maps()["3.pooling"]))
    assert 0.95 <= min(costs) <= max(costs) <= 1
    assert min(smallest) == 5  # as small as the last convolution takes them


class Twice(nn.Module):
    """A layer that is called before and behind another one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (DiffStride((1.5,), edge="stopband") for _ in range(2))
        self.one, self.two = nn.Conv1d(1, 32, 3, padding=1), nn.Conv1d(32, 32, 3, padding=1)
        self.last = nn.Conv1d(32, 32, 9)

    def forward(self, x):
        return self.last(self.first(self.second(self.two(self.first(self.one(x))))))


def test_a_layer_that_is_called_twice_goes_ahead_from_its_first_call_on():
    net, x = Twice(), torch.zeros(1, 1, 256)
    assert MultiplyAdds(net, x).order == ["first", "second"]
    budget = CostBudget(net, x, 0.3)
    assert budget.cost.value() <= budget.multiply_adds
    net(x)


def test_steps_from_which_no_scaling_leads_back_are_not_taken(monkeypatch):
    net, x = lenet()
    budget = CostBudget(net, x, 0.8)
    before = [layer.strides.tolist() for layer in stride_layers(net).values()]

    def refuse(*args):
        raise ValueError("cannot be met")

    monkeypatch.setattr("diffstride.cost.budget.scale_to_budget", refuse)
    for layer in stride_layers(net).values():
        layer.strides.data += 0.5
    budget.project_()
    after = [layer.strides.tolist() for layer in stride_layers(net).values()]
    assert after == [pytest.approx(strides, abs=1e-5) for strides in before]
    budget.multiply_adds *= 0.9
    with pytest.raises(ValueError, match="cannot be met"):
        budget.project_()


def test_maps_of_which_no_other_size_will_do_stay():
    layers = [
        DiffStride(strides, smoothness_factor=2.5, **PUBLISHED)
        for strides in ((2, 1.3), (1.5, 1.5))
    ]
    net = nn.Sequential(
        layers[0],
        nn.MaxPool2d(3, 1, ceil_mode=True),
        nn.Conv2d(2, 16, 3, 3),
        nn.Conv2d(16, 4, 1),
        layers[1],
        nn.Conv2d(4, 8, 3, dilation=2),
        nn.Conv2d(8, 4, 1),
    )
    x = torch.zeros(1, 2, 42, 18)
    budget = CostBudget(net, x, 0.7)
    assert budget.cost.value() <= budget.multiply_adds
    net(x)


class Differences(nn.Module):
    """Parts of maps that may be empty, and pooling where a map is large enough."""

    def forward(self, x):
        if x.shape[-1] >= 4:
            x = nn.functional.max_pool2d(x, 4)
        return (x[..., 1:] - x[..., :-1]).sum((2, 3))


def test_empty_parts_and_branches_that_keep_a_map_do_no_harm():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    net = nn.Sequential(DiffStride((6.5, 6.5), edge="stopband"), conv, Differences())
    x = torch.zeros(1, 2, 24, 24)
    assert MultiplyAdds(net, x).value() == counted(net.eval(), x)


def test_later_strides_make_room_for_earlier_ones():
    net, x = lenet()
    for fraction in (0.8, 0.7, 0.6):
        held = copy.deepcopy(net)
        CostBudget(held, x, fraction)
        first, last = (max(layer.stride_values()) for layer in stride_layers(held).values())
        assert last < 2 < first
