"""Sizes behind constant strides, slices and concatenations: costs are exact or refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from networks import Net, counted, strided
from torch import nn

from diffstride import DiffStride, MultiplyAdds, convert, stride_layers
from diffstride.graph.group_search import find_stride_groups
from diffstride.graph.map_sizes import MapSizes, SizeExpression
from diffstride.graph.stride_groups import UnlearnedAxes
from diffstride.graph.tracer import trace


def test_sizes_are_rounded_down_as_by_integers():
    for stride, added in itertools.product(range(2, 12), range(-6, 7)):
        size = SizeExpression(("n",), 1 / stride, added / stride, rounded=True)
        for n in range(12, 200):
            assert size.at({"n": n}) == (n + added) // stride


@pytest.mark.parametrize("size", [(16, 20), (17, 23)])
def test_expressions_hold_at_other_sizes(size):
    """Expressions found at one stride give the sizes at others, behind all kinds of operations."""
    net = Net(
        lambda m, x: F.interpolate(m.c(F.max_pool2d(m.b(m.a(x)), 3, 2)), scale_factor=3).flatten(2),
        a=strided(),
        b=nn.Conv2d(4, 4, 3),
        c=nn.Conv2d(4, 4, 3, stride=2, padding=1),
    )
    traced = trace(net, torch.zeros(2, 4, *size))
    nodes = {node.name: node for node in traced.graph.nodes}
    call = nodes["a"]
    groups = find_stride_groups(traced, {call: UnlearnedAxes()})
    sizes = MapSizes(groups)
    for height in range(7, 24):
        maps = F.max_pool2d(net.b(torch.zeros(1, 4, height, 15)), 3, 2)
        rows = sizes.read(groups.dims(nodes["c"])[2]).at({("a", 0): height, ("a", 1): 15})
        assert rows == net.c(maps).shape[2]
        tokens = sizes.read(groups.dims(nodes["flatten"])[2])
        expected = 9 * net.c(maps).shape[2:].numel()
        assert tokens.at({("a", 0): height, ("a", 1): 15}) == expected


@pytest.mark.parametrize(
    "kernel", [3, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 5))]
)
@pytest.mark.parametrize("stride", [3, 5])
def test_constant_strides_that_divide_all_sizes_at_first_round_at_others(stride, kernel):
    for size in range(20, 35):  # all remainders
        net = nn.Sequential(
            DiffStride((1.5,), edge="stopband"), nn.Conv1d(2, 4, kernel, stride=stride)
        )
        x = torch.zeros(1, 2, size)
        cost = MultiplyAdds(net.eval(), x)
        for learned in (1.0, 1.3, 1.7, 2.0):
            net[0].strides.data.fill_(learned)
            assert cost.value() == counted(net, x)


def test_sizes_that_grow_in_proportion_by_chance_have_own_expressions():
    """As 25 and 37 would if they became 250 and 370; whichever growths are drawn, a pair does."""
    conv = nn.Conv2d(1, 2, 3, padding=1)
    for height in range(20, 40):
        net = nn.Sequential(DiffStride(1.5, edge="stopband"), conv).eval()
        x = torch.zeros(1, 1, height, 37)
        cost = MultiplyAdds(net, x)
        for strides in ((1.0, 1.6), (1.6, 1.0)):
            net[0].strides.data.copy_(torch.tensor(strides))
            assert cost.value() == counted(net, x)


@pytest.mark.parametrize("size", [(12, 15, 20), (12, 19, 14), (17, 19, 20), (13, 16, 14)])
def test_axes_of_about_equal_size_have_own_expressions(size):
    strided = nn.MaxPool3d(2), nn.Conv3d(1, 4, 2, stride=3)
    net = nn.Sequential(DiffStride((1.5,) * 3, edge="stopband"), *strided).eval()
    x = torch.zeros(1, 1, *size)
    cost = MultiplyAdds(net, x)
    for strides in ((1.0, 1.0, 1.0), (1.3, 1.0, 1.0), (1.0, 1.3, 1.0), (1.0, 1.0, 1.3)):
        net[0].strides.data.copy_(torch.tensor(strides))
        assert cost.value() == counted(net, x)


class PooledNet(Net):
    """A network with a learned pooling."""

    def __init__(self, forward, axes=2, **modules):
        super().__init__(forward, pool=DiffStride((2.0,) * axes, edge="stopband"), **modules)


def conv(ins=2, outs=4, kernel=3, **options):
    return nn.Conv2d(ins, outs, kernel, **options)


def halved(m, x):
    """A map halved, and a map halved twice and upsampled by 2."""
    skip = F.max_pool2d(m.pool(x), 2)
    return skip, m.up(F.max_pool2d(skip, 2))


def resized(m, x):
    skip, up = halved(m, x)
    return m.out(torch.cat([F.interpolate(up, size=skip.shape[2:]), skip], 1))


def padded(m, x):
    skip, up = halved(m, x)
    missing = [skip.shape[axis] - up.shape[axis] for axis in (3, 2)]
    return m.out(torch.cat([F.pad(up, (0, missing[0], 0, missing[1])), skip], 1))


def cropped(m, x):
    skip, up = halved(m, x)
    return m.out(torch.cat([up, skip[:, :, : up.shape[2], : up.shape[3]]], 1))


def even(m, x):
    x = F.max_pool2d(m.pool(x), 2)
    return m.out(x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2])


def swapped(m, x):
    x = m.pool(x)
    half = x.shape[2] // 2
    return m.out(torch.cat([x[:, :, half:], x[:, :, :half]], 2))


def chunks(m, x):
    first, second = m.pool(x).chunk(2, 2)
    return m.out(torch.cat([second, first], 2))


def joined(m, x):
    maps = m.pool(x), F.max_pool2d(m.pool(x), 2)
    tokens = torch.cat([each.flatten(2) for each in maps], 2).sigmoid()
    parts = tokens.split([each.shape[2] * each.shape[3] for each in maps], 2)
    return sum(m.out(part.transpose(1, 2)).sum() for part in parts)


def two_paths(m, x):
    """One path halves the height as often as the other halves the width."""
    x = m.pool(x)
    return m.out(F.max_pool2d(F.max_pool2d(x, (2, 1)), 2)).sum() + m.out(F.max_pool2d(x, (1, 4)))


def in_steps(m, x):
    x = m.pool(x)
    rows = x.shape[2]
    for _ in range(12):
        rows = rows // 2 + rows % 2 + rows // 3
    return m.out(x[:, :, : rows + 1])


def windows(m, x):
    x = m.down(m.pool(x)).permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, 0, (4 - x.shape[2] % 4) % 4, 0, (4 - x.shape[1] % 4) % 4))
    batch, height, width, channels = x.shape
    x = x.view(batch, height // 4, 4, width // 4, 4, channels)
    return m.out(x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels))


UP = {"up": nn.ConvTranspose2d(2, 2, 2, 2), "out": conv(4, padding=1)}
EXACT = {
    "hop of 160": (lambda m, x: m.c(m.b(m.pool(x))), (4000,), {
        "axes": 1, "b": nn.Conv1d(2, 2, 400, 160), "c": nn.Conv1d(2, 2, 1),
    }),
    "hop of 256": (lambda m, x: m.c(m.b(m.pool(x))), (4100,), {
        "axes": 1, "b": nn.Conv1d(2, 2, 512, 256), "c": nn.Conv1d(2, 2, 1),
    }),
    "patches of 16": (lambda m, x: m.out(m.pool(x)), (226, 200), {
        "out": conv(2, 4, 16, stride=16),
    }),
    "five halvings": (lambda m, x: m.out(m.down(m.pool(x))), (100, 99), {
        "down": nn.Sequential(*(nn.MaxPool2d(2, padding=i % 2) for i in range(5))),
        "out": conv(kernel=1),
    }),
    "resized": (resized, (34, 38), UP),
    "padded": (padded, (66, 64), UP),
    "cropped": (cropped, (64, 66), UP),
    "even": (even, (66, 64), {"out": conv()}),
    "swapped": (swapped, (32, 31), {"out": conv()}),
    "chunks": (chunks, (32, 31), {"out": conv()}),
    "joined": (joined, (64, 63), {"out": nn.Linear(2, 4)}),
    "two paths": (two_paths, (96, 97), {"out": conv()}),
    "windows": (windows, (64, 62), {"down": conv(stride=2, padding=1), "out": nn.Linear(4, 4)}),
    "in steps": (in_steps, (64, 63), {"out": conv()}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_costs_equal_those_counted(name):
    forward, size, modules = EXACT[name]
    torch.manual_seed(0)
    model, x = PooledNet(forward, **modules).eval(), torch.rand(1, 2, *size)
    cost = MultiplyAdds(model, x)
    for _ in range(6):
        with torch.no_grad():
            model.pool.strides.uniform_(1.0, 3.0)
        model.pool.project_()
        assert cost.value() == counted(model, x)


@pytest.mark.parametrize("stride", [1.7, 2.2, 2.36, 2.71])
def test_remainders_that_agree_by_chance_in_two_runs_are_told_apart(stride):
    """149 samples, halved twice and padded to a multiple of three."""
    net = Net(
        lambda m, x: m.c(m.b(F.pad(m.a(x), (0, -m.a(x).shape[-1] % 3)))),
        a=nn.Sequential(nn.Conv1d(3, 8, 3, 2, 1), nn.Conv1d(8, 16, 3, 2, 1)),
        b=nn.Conv1d(16, 32, 3, padding=1),
        c=nn.Conv1d(32, 32, 3, padding=1),
    ).eval()
    x = torch.rand(1, 3, 149)
    converted = convert(net, x)
    cost = MultiplyAdds(converted, x)
    first, last = stride_layers(converted).values()
    first.strides.data.fill_(1.3)
    last.strides.data.fill_(stride)
    assert cost.value() == counted(converted, x)


def unfolded(m, x):
    return m.out(F.unfold(F.max_pool2d(m.pool(x), 2), 2, stride=2).transpose(1, 2))


def by_a_fraction(m, x):
    return m.out(F.interpolate(F.max_pool2d(m.pool(x), 2), scale_factor=1.5))


def row_by_row(m, x):
    return torch.stack([m.out(row) for row in m.pool(x).unbind(2)], 2)


def in_pieces(m, x):
    return torch.cat([m.out(piece) for piece in m.pool(x).split(8, 2)], 2)


@pytest.mark.parametrize(
    ("forward", "size", "modules", "message"),
    [
        (unfolded, (66, 66), {"out": nn.Linear(8, 4)}, r"'?out'? \(Linear\) is no product"),
        (by_a_fraction, (66, 66), {"out": conv()}, r"'?out'? \(Conv2d\) is no product"),
        (row_by_row, (16, 16), {"out": nn.Conv1d(2, 4, 3)}, "counting parts .* the model itself"),
        (in_pieces, (32, 32), {"out": conv()}, "`if` in the model itself"),
    ],
)
def test_costs_that_do_not_follow_from_strides_are_refused(forward, size, modules, message):
    with pytest.raises(ValueError, match=message):
        MultiplyAdds(PooledNet(forward, **modules), torch.rand(1, 2, *size))


class Halved(nn.Module):
    """A map halved in two ways; one rounds up, the other down."""

    def __init__(self, *before, halve=lambda x: F.max_pool2d(x, 2)):
        super().__init__()
        self.stem = conv(2, 2, stride=2, padding=1)
        self.before = nn.Sequential(*before)
        self.conv = conv(2, 2, stride=2, padding=1)
        self.halve = halve

    def forward(self, x):
        x = self.before(self.stem(x))
        return self.conv(x) + self.halve(x)


@pytest.mark.parametrize("up", [(), (0,), (1,), (0, 1), (1, 0), (1, 1), (0, 0), (1, 0, 1)])
def test_different_rounding_is_found_behind_every_pattern_of_halvings(up):
    before = [conv(2, 2, stride=2, padding=1) if each else nn.MaxPool2d(2) for each in up]
    with pytest.raises(ValueError, match="meets maps in"):
        convert(Halved(*before), torch.rand(1, 2, 64, 64), filter_fn=lambda _, name: name == "stem")


def test_different_rounding_of_even_sizes_is_found():
    model = Halved(halve=lambda x: F.avg_pool2d(x, 6, 4, 2))
    model.conv = nn.MaxPool2d(7, 4, 2)
    with pytest.raises(ValueError, match="meets maps in"):
        convert(model, torch.rand(1, 2, 64, 64), filter_fn=lambda _, name: name == "stem")


def test_a_window_as_large_as_the_map_is_a_stride():
    """A window of 256 turns 2,048 samples into the 8 that the linear layer takes."""
    head = nn.Sequential(nn.AvgPool1d(256), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(nn.Conv1d(1, 2, 3, 2, 1), *head)
    with pytest.raises(ValueError, match=r"\(Linear\) accepts maps of one size only"):
        convert(model, torch.rand(1, 1, 4096), filter_fn=lambda _, name: name == "0")


def test_equal_rounding_is_accepted_and_the_cost_equals_that_counted():
    x = torch.rand(1, 2, 64, 60)
    alike = Halved(halve=lambda x: F.max_pool2d(x, 3, 2, 1)).eval()
    model = convert(alike, x, filter_fn=lambda _, name: name == "stem")
    cost = MultiplyAdds(model, x)
    for stride in (1.0, 1.4, 2.7, 3.1):
        with torch.no_grad():
            next(iter(stride_layers(model).values())).strides.fill_(stride)
        assert cost.value() == counted(model, x)
