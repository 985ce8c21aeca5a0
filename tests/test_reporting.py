"""The report of a conversion."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Block
from torch import nn

from diffstride.conversion.converter import convert
from diffstride.conversion.freezing import freeze
from diffstride.conversion.reporting import report
from diffstride.cost.multiply_adds import MultiplyAdds


class Windows(nn.Module):
    """Pads maps to whole windows of 7, as shifted-window transformers do."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.down(x)
        return self.mix(F.pad(x, (0, -x.shape[-1] % 7, 0, -x.shape[-2] % 7)))


def test_report_without_a_known_cost_lists_the_modules():
    x = torch.rand(IMAGE)
    model = convert(Windows(), x, order="after")
    with pytest.raises(ValueError, match=r"the cost of mix \(Conv2d\) is no product of the sizes"):
        MultiplyAdds(model, x)
    lines = report(model).splitlines()
    assert lines[1].split()[:5] == ["down", "2.00", "x", "2.00", "2"]
    assert lines[2].split()[:3] == ["whole", "network", "?"]
    assert lines[3].startswith("multiply-adds: the cost of mix (Conv2d) is no product")


def test_report_of_a_frozen_network_is_refused():
    x = torch.rand(IMAGE)
    with pytest.raises(
        ValueError, match="are frozen: report the network that was passed to freeze"
    ):
        report(freeze(convert(Block(), x), x))


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


def test_report_lists_modules_sizes_and_costs():
    model = convert(Block(), torch.rand(IMAGE), order="after")
    model.conv.pooling.strides.data.copy_(torch.tensor([1.6, 2.5]))
    model.conv.pooling.project_()
    lines = report(model).splitlines()
    convolution, pooling = 32 * 32 * 9 * 64, 2 * 8 * (13 * 32 * 32 + 20 * 13 * 32)
    expected = f"conv 1.60 x 2.50 2 x 2 after 32 x 32 -> 20 x 13 {convolution + pooling:,} 147,456"
    assert lines[1].split() == expected.split()
    assert lines[2].split() == [
        "shortcut",
        "same",
        "2",
        "x",
        "2",
        "before",
        f"{20 * 13 * 64:,}",
        "16,384",
    ]
    assert re.match(r"whole network +[\d,]+ +[\d,]+$", lines[3])
    with pytest.raises(ValueError, match="report needs a model returned by convert"):
        report(Block())
