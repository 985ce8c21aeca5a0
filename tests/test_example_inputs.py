"""Examples by position and by name, in all functions that take one."""

from collections import UserDict

import pytest
import torch
from torch import nn

from diffstride import CostBudget, MultiplyAdds, convert, freeze, recipe, report

X, CONDITION = torch.rand(1, 3, 32, 32), torch.rand(1, 8)


class Conditioned(nn.Module):
    """Inputs by name, as diffusion networks and those of transformers have them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, image, scale=1.0, condition=None, *, sign=1.0):
        y = self.stem(image) * scale
        if condition is not None:
            y = y * condition[:, :, None, None]
        return self.down(y)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_dictionary_names_the_inputs(kind):
    torch.manual_seed(0)
    net = Conditioned()
    example = kind(condition=CONDITION, image=X)
    converted, by_position = convert(net, example), convert(net, (X, 1.0, CONDITION))
    assert recipe(converted) == recipe(by_position)
    cost = MultiplyAdds(converted, (X, 1.0, CONDITION)).value()
    assert MultiplyAdds(converted, example).value() == cost
    assert report(converted, example).multiply_adds == cost
    budget = CostBudget(converted, example, fraction=0.8)
    assert budget.cost.value() <= 0.8 * cost
    y = freeze(converted, example)(**example)
    torch.testing.assert_close(y, converted(**example))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": X, "condtion": CONDITION}, "has 'condtion', .*it takes image, scale, condition"),
        ({"image": X, "sign": -1.0}, "Conditioned.forward takes 'sign' by keyword only.* wrap"),
        ({"condition": CONDITION}, "has no 'image', which Conditioned.forward needs"),
    ],
)
def test_wrong_names_are_refused(example, message):
    with pytest.raises(ValueError, match=message):
        convert(Conditioned(), example)


def test_a_dictionary_of_other_names_is_one_input():
    class FromDictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)

        def forward(self, batch):
            return self.down(batch["image"])

    converted = convert(FromDictionary(), {"image": X}, order="before")
    assert converted({"image": X}).shape == (1, 8, 16, 16)


@pytest.mark.parametrize("limits", [(2.5, None), (None, 2.5), 2.5])
def test_limits_for_each_axis(limits):
    net = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    layer = convert(net, torch.rand(1, 8, 32, 32), upper_limit_stride=limits)[0].pooling
    expected = limits if isinstance(limits, tuple) else (2.5, 2.5)
    assert [high for _, high in layer.limits] == [high or float("inf") for high in expected]


def test_limits_for_each_axis_beside_axes_that_are_kept():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, (1, 2), 1))
    options = {"keep_ones": True, "upper_limit_stride": (3.0, 4.0)}
    layer = convert(net, torch.rand(1, 8, 32, 32), **options)[0].pooling
    assert layer.limits == [(1.0, 1.0), (1.0, 4.0)]


def test_limits_of_another_number_of_axes_are_refused():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1))
    with pytest.raises(ValueError, match=r"upper_limit_stride must be one number or 2.*'0'|'0'.*2"):
        convert(net, torch.rand(1, 8, 32, 32), upper_limit_stride=(3.0, 4.0, 5.0))
    with pytest.raises(ValueError, match="must be one number or 2, but got"):
        convert(
            net, torch.rand(1, 8, 32, 32), lower_limit_stride=(1, 1), upper_limit_stride=(3, 4, 5)
        )
