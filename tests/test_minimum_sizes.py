"""Networks without padding, in which large strides lead to empty maps."""

import copy
import re
from contextlib import suppress

import networks
import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED
from networks import counted
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds, convert, stride_layers
from diffstride.cost.budget_scaling import UnreachableBudgetError
from diffstride.graph.minimum_sizes import EmptyMapError


def lenet(size=32):
    """Its last convolution needs maps of at least 5 x 5."""
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


def even(x, mode="constant"):
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode)


BEHIND = {
    "convolution": nn.Conv2d(1, 2, 7),
    "dilated": nn.Conv2d(1, 2, 3, dilation=3, padding=1),
    "strided": nn.Conv2d(1, 2, 5, 3),
    "pooling": nn.MaxPool2d(6, 1),
    "halving": nn.AvgPool2d(2),
    "reflecting": nn.Conv2d(1, 2, 5, padding=2, padding_mode="reflect"),
    "reflected": nn.Sequential(nn.ReflectionPad2d((3, 1, 0, 2)), nn.Conv2d(1, 2, 1)),
    "reflected by a function": networks.Net(
        lambda m, x: m.conv(F.pad(x, (2,) * 4, "reflect")), conv=nn.Conv2d(1, 2, 5)
    ),
    "wrapped by a function": networks.Net(
        lambda m, x: m.conv(F.pad(x, (5, 4, 2, 1), "circular")), conv=nn.Conv2d(1, 2, 3)
    ),
    "averaged in three dimensions": networks.Net(
        lambda m, x: m.conv(m.pool(x[:, :, None].expand(-1, -1, 3, -1, -1))[:, :, 0]),
        pool=nn.AvgPool3d(3),
        conv=nn.Conv2d(1, 2, 1),
    ),
    "circular": nn.Conv2d(1, 2, 7, padding=3, padding_mode="circular"),
    "padded by a number": networks.Net(
        lambda m, x: m.down(even(m.conv(x))),
        conv=nn.Conv2d(1, 2, 3),
        down=nn.Conv2d(2, 2, 2, stride=2),
    ),
    "reflected by a number": networks.Net(
        lambda m, x: m.down(even(m.conv(x), "reflect")),
        conv=nn.Conv2d(1, 2, 3),
        down=nn.Conv2d(2, 2, 2, stride=2),
    ),
}


def test_blur_pooling_of_timm_needs_more_than_one_sample():
    from timm.layers import BlurPool2d

    net = nn.Sequential(DiffStride(2.0, edge="stopband"), BlurPool2d(1, filt_size=7, stride=2))
    cost, x = MultiplyAdds(net, torch.zeros(1, 1, 40, 36)), torch.zeros(1, 1, 40, 36)
    for stride in range(2, 20):
        net[0].strides.data.fill_(stride)
        try:
            net(x)
        except RuntimeError:
            with pytest.raises(EmptyMapError, match=r"1 \(BlurPool2d\) would have"):
                cost.value()
        else:
            assert cost.value() == counted(net, x)


@pytest.mark.parametrize("last", ["convolution", "blur", "padding"])
def test_budgets_keep_maps_large_enough_to_be_reflected(last):
    from timm.layers import BlurPool2d

    lasts = {
        "convolution": [nn.Conv2d(8, 8, 3, 2, 1, padding_mode="reflect")],
        "blur": [BlurPool2d(8, filt_size=5, stride=2), nn.Conv2d(8, 8, 3, padding=1)],
        "padding": [
            networks.Net(lambda m, x: F.pad(x, (2, 2, 2, 2), mode="reflect")),
            nn.Conv2d(8, 8, 5),
        ],
    }
    stem = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    x = torch.rand(1, 3, 32, 32)
    for fraction in (0.8, 0.45, 0.3):
        net = convert(nn.Sequential(*stem, *lasts[last]), x)
        with suppress(ValueError):  # the budget cannot be met at sizes that run
            CostBudget(net, x, fraction)
        net(x)


@pytest.mark.parametrize("name", BEHIND)
def test_strides_run_the_network_or_are_refused(name):
    net = nn.Sequential(DiffStride(2.0, edge="stopband"), BEHIND[name], nn.Conv2d(2, 2, 1))
    if name in ("pooling", "halving"):
        net[2] = nn.Conv2d(1, 2, 1)
    x, refused = torch.zeros(1, 1, 40, 36), 0
    cost = MultiplyAdds(net, x)
    assert cost.has_empty_maps
    for stride in range(2, 40):
        net[0].strides.data.fill_(stride)
        try:
            net(x)
        except RuntimeError:
            refused += 1
            for ask in (cost, cost.value, cost.maps, cost.by_module):
                with pytest.raises(
                    EmptyMapError, match=r"the output of .* would have (0|-\d+) samples"
                ):
                    ask()
        else:
            assert cost.value() == counted(net, x) == pytest.approx(cost().item())
    assert 0 < refused < 38


def test_an_empty_map_before_a_pooling_layer_is_named():
    first = DiffStride(2.0, edge="stopband")
    net = nn.Sequential(first, nn.Conv2d(1, 1, 7), DiffStride(1.5), nn.Conv2d(1, 1, 1))
    cost = MultiplyAdds(net, torch.zeros(1, 1, 32, 32))
    with pytest.raises(EmptyMapError, match=r"the map that '2' pools would have \S+ samples"):
        cost.value({"0": (30.0, 30.0)})


def test_an_empty_map_before_a_pooling_layer_behind_a_padded_map_is_named():
    net = networks.Net(
        lambda m, x: m.last(m.second(even(m.conv(m.first(x))))),
        first=DiffStride(2.0, edge="stopband"),
        conv=nn.Conv2d(1, 1, 7),
        second=DiffStride(1.5),
        last=nn.Conv2d(1, 1, 1),
    )
    cost = MultiplyAdds(net, torch.zeros(1, 1, 32, 32))
    with pytest.raises(EmptyMapError, match=r"would have \S+ samples"):
        cost.value({"first": (30.0, 30.0)})
    budget = CostBudget(net, torch.zeros(1, 1, 32, 32), fraction=0.6)
    assert budget.cost.value() <= budget.multiply_adds


def test_padded_networks_have_no_empty_maps():
    net = nn.Sequential(DiffStride(2.0), nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, padding=1))
    assert not MultiplyAdds(net, torch.zeros(1, 1, 32, 32)).has_empty_maps


@pytest.mark.parametrize("fraction", [1.5, 0.9, 0.8, 0.7, 0.6])
def test_budgets_are_met_at_sizes_that_run(fraction):
    """At 0.8 and less, equally scaled strides would leave no sample to the last convolution."""
    net, x = lenet()
    budget = CostBudget(net, x, fraction=fraction)
    assert 0.96 <= budget.cost.value() / budget.multiply_adds <= 1
    net(x)


def test_budgets_are_met_although_the_search_passes_strides_that_do_not_run():
    for fraction in (1.3, 0.9):
        net, x = sound()
        budget = CostBudget(net, x, fraction=fraction)
        assert 0.99 <= budget.cost.value() / budget.multiply_adds <= 1
        net(x)


def test_a_budget_below_the_smallest_cost_is_refused_and_that_cost_named():
    net, x = lenet()
    with pytest.raises(ValueError, match=r"at which no map is empty the network .*") as refusal:
        CostBudget(net, x, 0.4)
    found = re.search(r"the network costs ([\d,]+), and", str(refusal.value))
    assert found is not None
    least = int(found[1].replace(",", ""))
    budget = CostBudget(lenet()[0], x, least)
    assert 0.99 * least <= budget.cost.value() <= least


def test_a_network_runs_after_any_steps():
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
    assert min(smallest) == 5  # the minimum of the last convolution


class Twice(nn.Module):
    """A layer that is called before and after another one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (DiffStride((1.5,), edge="stopband") for _ in range(2))
        self.one, self.two = nn.Conv1d(1, 32, 3, padding=1), nn.Conv1d(32, 32, 3, padding=1)
        self.last = nn.Conv1d(32, 32, 9)

    def forward(self, x):
        return self.last(self.first(self.second(self.two(self.first(self.one(x))))))


def test_a_layer_that_is_called_twice_has_the_order_of_its_first_call():
    net, x = Twice(), torch.zeros(1, 1, 256)
    assert list(dict.fromkeys(MultiplyAdds(net, x).calls)) == ["first", "second"]
    budget = CostBudget(net, x, 0.3)
    assert budget.cost.value() <= budget.multiply_adds
    net(x)


def test_steps_after_which_no_budget_can_be_met_are_undone(monkeypatch):
    net, x = lenet()
    budget = CostBudget(net, x, 0.8)
    before = [layer.strides.tolist() for layer in stride_layers(net).values()]

    def refuse(*args):
        raise UnreachableBudgetError("cannot be met")

    monkeypatch.setattr("diffstride.cost.strides_on_budget.scale_to_budget", refuse)
    for layer in stride_layers(net).values():
        layer.strides.data += 0.5
    budget.project_()
    after = [layer.strides.tolist() for layer in stride_layers(net).values()]
    assert after == [pytest.approx(strides, abs=1e-5) for strides in before]
    budget.multiply_adds *= 0.9
    with pytest.raises(ValueError, match="cannot be met"):
        budget.project_()


def test_sizes_without_an_alternative_stay():
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
    """Slices of maps, which may be empty, and pooling if a map is large enough."""

    def forward(self, x):
        if x.shape[-1] >= 4:
            x = nn.functional.max_pool2d(x, 4)
        return (x[..., 1:] - x[..., :-1]).sum((2, 3))


def test_empty_slices_and_skipped_pooling_are_accepted():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    net = nn.Sequential(DiffStride((6.5, 6.5), edge="stopband"), conv, Differences())
    x = torch.zeros(1, 2, 24, 24)
    assert MultiplyAdds(net, x).value() == counted(net.eval(), x)


def test_later_strides_shrink_so_that_earlier_ones_can_grow():
    net, x = lenet()
    for fraction in (0.8, 0.7, 0.6):
        held = copy.deepcopy(net)
        CostBudget(held, x, fraction)
        first, last = (max(layer.stride_values()) for layer in stride_layers(held).values())
        assert last < 2 < first


def test_instance_norms_keep_maps_of_more_than_one_sample():
    net = nn.Sequential(
        DiffStride(2.0),
        nn.Conv2d(4, 32, 3, padding=1),
        nn.InstanceNorm2d(32),
        nn.Conv2d(32, 8, 3, 1, 1),
    )
    x = torch.rand(1, 4, 8, 8)
    budget = CostBudget(net, x, fraction=0.5)
    assert min(net[0].output_size((8, 8))) >= 2
    net[0].strides.data.fill_(50.0)
    budget.project_()
    assert min(net[0].output_size((8, 8))) >= 2
    net(x)
    with pytest.raises(EmptyMapError, match=r"2 \(InstanceNorm2d\)"):
        budget.cost.value({"0": (8.0, 2.0)})
