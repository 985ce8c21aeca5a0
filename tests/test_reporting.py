"""The report of a conversion."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Block, Net
from torch import nn

from diffstride import DiffStride
from diffstride.conversion.converter import convert
from diffstride.conversion.freezing import freeze
from diffstride.conversion.report_table import short
from diffstride.conversion.reporting import report
from diffstride.cost.multiply_adds import MultiplyAdds


class Enlarging(nn.Module):
    """Enlarges maps by a fraction, whose effect on their size is not known."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.down(x)
        return self.mix(F.interpolate(x, scale_factor=1.4))


def test_report_without_a_known_cost_lists_the_modules():
    x = torch.rand(IMAGE)
    model = convert(Enlarging(), x, order="after")
    with pytest.raises(ValueError, match=r"the cost of mix \(Conv2d\) is no product of the sizes"):
        MultiplyAdds(model, x)
    found = report(model)
    (row,) = found
    assert (row.module, row.multiply_adds, row.map_size) == ("down", None, ())
    assert found.multiply_adds is None
    assert found.multiply_adds_before > 0
    lines = str(found).splitlines()
    assert lines[1].split()[:5] == ["down", "2.00", "x", "2.00", "2"]
    assert lines[2].split()[:3] == ["whole", "network", "?"]
    assert lines[3].startswith("MACs are not known: the cost of mix (Conv2d) is no product")


@pytest.mark.parametrize("round_to", [None, 1])
def test_report_of_a_frozen_network_has_its_strides(round_to):
    x = torch.rand(IMAGE)
    model = convert(Block(), x)
    model.conv.pooling.strides.data.copy_(torch.tensor([1.6, 2.4]))
    learned, frozen = report(model), report(freeze(model, x, round_to=round_to))
    strides = (2.0, 2.0) if round_to else pytest.approx((1.6, 2.4))
    assert [row.strides for row in frozen] == [strides, strides]
    assert [row.module for row in frozen] == [row.module for row in learned]
    if round_to is None:
        assert frozen.multiply_adds == learned.multiply_adds


def test_report_of_a_network_with_layers_of_its_own():
    x = torch.rand(1, 1, 32, 32)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), DiffStride(2.0), nn.Conv2d(4, 2, 1))
    found = report(net, x)
    (row,) = found
    assert (row.module, row.strides, row.old_strides) == ("1", (2.0, 2.0), ())
    assert (row.map_size, row.pooled_size) == ((30, 30), (15, 15))
    assert found.multiply_adds == MultiplyAdds(net, x).value()
    assert found.multiply_adds_before is None
    assert found.costliest == "1"


def test_report_of_a_plain_network_lists_costs_by_module():
    inner = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    net = nn.Sequential(inner, nn.Conv2d(8, 3, 1))
    found = report(net, torch.rand(1, 4, 32, 32))
    assert list(found) == []
    large, small = 16 * 16 * 8 * 4 * 9, 16 * 16 * 8
    assert found.by_module == {
        "0": large + 8 * small,
        "0.0": large,
        "0.2": 8 * small,
        "1": 3 * small,
    }
    assert found.multiply_adds == large + 11 * small
    lines = [line.split() for line in str(found).splitlines()]
    assert lines[1] == ["0", "90.1", "k", "94%"]
    assert lines[2] == ["0", "73.7", "k", "77%"]
    assert lines[-1] == ["costliest", "module:", "0.0", "(73.7", "k,", "77%)"]
    assert len(found.tree(depth=1).splitlines()) == 4
    with pytest.raises(ValueError, match="cannot run on its input"):
        report(net, torch.rand(1, 3, 32, 32))


def test_report_as_html_has_the_cells_of_the_text():
    found = report(convert(Block(), torch.rand(IMAGE)))
    html = found._repr_html_()
    assert html.count("<tr>") == len(found) + 2
    assert "<td>conv</td><td>2.00 x 2.00</td>" in html
    assert "-&gt;" in html


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        *[(0, "0"), (999, "999"), (1000, "1.00 k"), (999_499, "999 k"), (999_500, "1.00 M")],
        *[(9_994_999, "9.99 M"), (9_996_000, "10.0 M"), (99_960_000, "100 M"), (None, "?")],
    ],
)
def test_numbers_keep_three_digits(cost, text):
    assert short(cost) == text


def test_report_of_a_network_with_a_part_that_was_converted_before():
    x = torch.rand(1, 3, 32, 32)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.MaxPool2d(2)),
    )
    at_once = convert(net, x)
    partly = copy.deepcopy(net)
    partly[1] = convert(net[1], torch.rand(1, 4, 16, 16))
    assert report(convert(partly, x)) == report(at_once)
    assert report(torch.compile(at_once)) == report(at_once)


def test_a_converted_module_that_was_replaced_has_no_row():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    converted = convert(net, torch.rand(1, 8, 32, 32))
    converted[2] = nn.Identity()
    assert [row.module for row in report(converted)] == ["0"]


def test_report_lists_modules_sizes_and_costs():
    model = convert(Block(), torch.rand(IMAGE), order="after")
    model.conv.pooling.strides.data.copy_(torch.tensor([1.6, 2.5]))
    model.conv.pooling.project_()
    found = report(model)
    convolution, pooling = 32 * 32 * 9 * 64, 2 * 8 * (13 * 32 * 32 + 20 * 13 * 32)
    first, second = found
    assert first.strides == pytest.approx((1.6, 2.5))
    assert first[2:] == (
        *((2, 2), "after", False, (), (32, 32), (20, 13)),
        *(convolution + pooling, 147_456),
    )
    assert second[0] == "shortcut"
    assert second[2:] == ((2, 2), "before", True, (), (), (), 20 * 13 * 64, 16_384)
    lines = str(found).splitlines()
    assert "\n".join(lines) == str(found)
    expected = "conv 1.60 x 2.50 2 x 2 after 32 x 32 -> 20 x 13 936 k 147 k"
    assert lines[1].split() == expected.split()
    assert lines[2].split() == [
        "shortcut",
        "same",
        "2",
        "x",
        "2",
        "before",
        "16.6",
        "k",
        "16.4",
        "k",
    ]
    assert lines[3].split()[:2] == ["whole", "network"]
    with pytest.raises(ValueError, match=r"needs an example input of this Block"):
        report(Block())


def test_report_of_a_network_with_a_converted_part():
    x = torch.rand(1, 3, 32, 32)
    part = convert(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)), x)
    found = report(nn.Sequential(part, nn.Conv2d(8, 2, 1)), x)
    assert [(row.module, row.old_strides, row.placement) for row in found] == [
        ("0.0", (2, 2), "on top"),
        ("0.1", (2, 2), "before"),
    ]
    assert [row.multiply_adds_before for row in found] == [
        row.multiply_adds_before for row in report(part)
    ]
    assert found.multiply_adds_before is None


def test_cost_before_is_known_for_the_size_of_the_conversion():
    model = convert(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1)), torch.rand(1, 3, 32, 32))
    assert report(model, torch.rand(4, 3, 32, 32)).multiply_adds_before == 16 * 16 * 8 * 27
    larger = report(model, torch.rand(1, 3, 64, 64))
    assert larger.multiply_adds_before is None
    assert larger.rows[0].multiply_adds_before is None
    assert larger.multiply_adds == 32 * 32 * 8 * 27


def test_a_module_with_a_layer_for_each_call_has_its_own_cost_in_its_first_row():
    def forward(m, x):  # the second map is flattened, so its layer has a fixed size
        return m.last(m.conv(m.conv(x)).flatten(1))

    net = Net(forward, conv=nn.Conv2d(8, 8, 3, stride=2, padding=1), last=nn.Linear(128, 4))
    converted = convert(net, torch.rand(2, 8, 16, 16), order="after")
    found = report(converted, torch.rand(2, 8, 16, 16))
    first, second = found
    assert (first.module, second.module) == ("conv", "conv")
    cost = MultiplyAdds(converted, torch.rand(2, 8, 16, 16))
    assert first.multiply_adds + second.multiply_adds + 4 * 128 == cost.value()
    assert first.multiply_adds_before == 8 * 8 * 9 * (64 + 16)
    assert second.multiply_adds_before is None
